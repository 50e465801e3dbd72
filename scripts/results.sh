#!/usr/bin/env bash
# Score the shipped weights and enter the figures in docs/results.json and the model card.
#   bash scripts/results.sh --dataset_dir DIR
# This scores the validation split of DIR and the testing split of phantoms that no training has seen. It takes one to four minutes on two
# CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
read_options "$@"
[[ -n "$dataset_dir" && ${#options[@]} == 0 ]] || { echo "usage: bash scripts/results.sh --dataset_dir DIR" >&2; exit 2; }

out=${out:-output/results}
phantoms=$out/phantoms
score() { # name, folder with the scans, split
    run --config_file "['configs/train.yaml','configs/evaluate.yaml']" --dataset_dir "$2" --split "$3" --output_dir "$out/$1" --overwrite True
    run record --config_file configs/tools.yaml --metrics "$out/$1/metrics.json" --name "$1"
}
run phantoms --config_file configs/tools.yaml --dataset_dir "$phantoms" --training 1 --validation 1 --testing 8 --seed 7 --anomalies 0.25
score validation "$dataset_dir" validation
score phantoms "$phantoms" testing
