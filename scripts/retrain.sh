#!/usr/bin/env bash
# Train from random weights: draw phantoms, add S1 to the labels that lack it, as the shipped weights see it, train both networks, and then
# each of them alone. docs/experiments.md has what it gives.
#   bash scripts/retrain.sh --dataset_dir DIR
# DIR holds the public scans of the model card and their datalist.json. --output_dir is where everything goes (output/retrain), the
# weights to levels/model.pt; any other option goes to all trainings, and PHANTOMS=100 phantoms are drawn. Three to four hours on two
# CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
read_options "$@"
[[ -n "$dataset_dir" ]] || { echo "usage: bash scripts/retrain.sh --dataset_dir DIR [options of train.yaml]" >&2; exit 2; }

out=${out:-output/retrain}
train() {
    run --config_file configs/train.yaml --dataset_dir "$out/sacrum" --allow_outside True --also_train_on "['$out/phantoms']" \
        --train_amp True --num_workers 0 "$@" "${options[@]+"${options[@]}"}"
}
run phantoms --config_file configs/tools.yaml --dataset_dir "$out/phantoms" --training "${PHANTOMS:-100}" --seed 100 --anomalies 0.4
run label_sacrum --config_file configs/tools.yaml --dataset_dir "$dataset_dir" --sacrum_dir "$out/sacrum" --overwrite True
train --epochs 56 --repeat "{'zheng': 6, 'myosegmentum': 2, 'zukic': 10, 'menezesreis': 12}" --output_dir "$out/both"
train --epochs 50 --repeat "{'zheng': 8, 'myosegmentum': 3, 'zukic': 18, 'menezesreis': 16}" --output_dir "$out/outlines" \
    --train_only outlines --pretrained "$out/both/last.pt" --learning_rate 1.0e-3
train --epochs 64 --repeat "{'zheng': 6, 'myosegmentum': 3, 'zukic': 10, 'menezesreis': 12}" --output_dir "$out/levels" \
    --train_only levels --pretrained "$out/outlines/last.pt" --learning_rate 1.5e-3
