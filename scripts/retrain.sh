#!/usr/bin/env bash
# Train from random weights: draw phantoms, add S1 to the labels that lack it, as the shipped weights see it, train both networks.
# docs/experiments.md has what it gives.
#   bash scripts/retrain.sh --dataset_dir DIR
# DIR holds the public scans of the model card and their datalist.json. --output_dir is where everything goes (output/retrain), the
# weights to train/last.pt; any other option goes to the training, and PHANTOMS=100 phantoms are drawn. Two hours on two CPU cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
read_options "$@"
[[ -n "$dataset_dir" ]] || { echo "usage: bash scripts/retrain.sh --dataset_dir DIR [options of train.yaml]" >&2; exit 2; }

out=${out:-output/retrain}
run phantoms --config_file configs/tools.yaml --dataset_dir "$out/phantoms" --training "${PHANTOMS:-100}" --seed 100 --anomalies 0.4
run label_sacrum --config_file configs/tools.yaml --dataset_dir "$dataset_dir" --sacrum_dir "$out/sacrum" --overwrite True
run --config_file configs/train.yaml --dataset_dir "$out/sacrum" --allow_outside True --also_train_on "['$out/phantoms']" \
    --repeat "{'zheng': 6, 'myosegmentum': 2, 'zukic': 10, 'menezesreis': 12}" --epochs 56 --train_amp True --num_workers 0 \
    --output_dir "$out/train" "${options[@]+"${options[@]}"}"
