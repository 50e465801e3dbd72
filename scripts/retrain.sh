#!/usr/bin/env bash
# Train from random weights: draw phantoms, add S1 (as the shipped weights draw it) to the labels that lack it, train both networks, and then
# each of them alone. docs/experiments.md has the accuracy that this reaches.
#   bash scripts/retrain.sh --dataset_dir DIR
# DIR holds scans and their datalist.json. Of the public scans of the model card, some sources are shown more often than others. Everything is
# written to --output_dir (output/retrain), the weights to levels/model.pt there; all other options are given to every training. The variable
# PHANTOMS sets how many phantoms are drawn (100). It takes three to four hours on two CPU cores; run again, the same command goes on where it
# was interrupted.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
read_options "$@"
[[ -n "$dataset_dir" ]] || { echo "usage: bash scripts/retrain.sh --dataset_dir DIR [options of train.yaml]" >&2; exit 2; }
out=${out:-output/retrain}

# train FOLDER REPEAT OPTIONS...: train, unless this training is over. REPEAT is JSON; sources that the datalist lacks are left out of it.
train() {
    local folder=$out/$1 repeat resume=()
    [[ ! -e "$folder/over" ]] || { echo "$folder: this training is over"; return 0; }
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
