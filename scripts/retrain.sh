#!/usr/bin/env bash
# Train from random weights: draw phantoms, add S1 to the labels that lack it, as the shipped weights see it, train both networks, and then
# each of them alone. docs/experiments.md has what it gives.
#   bash scripts/retrain.sh --dataset_dir DIR
# DIR holds scans and their datalist.json; of the public scans of the model card some are shown more often than others. --output_dir is
# where everything goes (output/retrain), the weights to levels/model.pt; any other option goes to all trainings, and PHANTOMS=100 phantoms
# are drawn. Three to four hours on two CPU cores; the same command goes on where it was interrupted.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
read_options "$@"
[[ -n "$dataset_dir" ]] || { echo "usage: bash scripts/retrain.sh --dataset_dir DIR [options of train.yaml]" >&2; exit 2; }
out=${out:-output/retrain}

# train FOLDER REPEAT OPTIONS...: unless it is over; REPEAT is JSON, sources that are not there do not count
train() {
    local folder=$out/$1 repeat resume=()
    [[ ! -e "$folder/over" ]] || return 0
    [[ ! -e "$folder/last.pt" ]] || resume=(--resume True)
    repeat=$(python -c "import json, sys
there = {entry.get('source') for entry in json.load(open(sys.argv[1]))['training']}
print({source: times for source, times in json.loads(sys.argv[2]).items() if source in there})" "$out/sacrum/datalist.json" "$2")
    run --config_file configs/train.yaml --dataset_dir "$out/sacrum" --allow_outside True --also_train_on "['$out/phantoms']" \
        --train_amp True --num_workers 0 --output_dir "$folder" --repeat "$repeat" "${resume[@]+"${resume[@]}"}" "${@:3}" \
        "${options[@]+"${options[@]}"}"
    touch "$folder/over"
}
[[ -e "$out/phantoms/datalist.json" ]] ||
    run phantoms --config_file configs/tools.yaml --dataset_dir "$out/phantoms" --training "${PHANTOMS:-100}" --seed 100 --anomalies 0.4
[[ -e "$out/sacrum/datalist.json" ]] ||
    run label_sacrum --config_file configs/tools.yaml --dataset_dir "$dataset_dir" --sacrum_dir "$out/sacrum" --overwrite True
train both '{"zheng": 6, "myosegmentum": 2, "zukic": 10, "menezesreis": 12}' --epochs 56
train outlines '{"zheng": 8, "myosegmentum": 3, "zukic": 18, "menezesreis": 16}' --epochs 50 \
    --train_only outlines --pretrained "$out/both/last.pt" --learning_rate 1.0e-3
train levels '{"zheng": 6, "myosegmentum": 3, "zukic": 10, "menezesreis": 12}' --epochs 64 \
    --train_only levels --pretrained "$out/outlines/last.pt" --learning_rate 1.5e-3
