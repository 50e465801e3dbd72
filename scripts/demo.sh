#!/usr/bin/env bash
# Run everything in one call: data, training, evaluation, inference on unseen scans, figures, a table of accuracies.
#   bash scripts/demo.sh                                  on phantoms that it draws itself
#   bash scripts/demo.sh --dataset_dir DIR [--epochs 50]  on your labelled scans
# Everything is written to --output_dir (output/demo); all other options are given to the training.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
read_options "$@"

out=${out:-output/demo}
mkdir -p "$out"
if [[ ! -e "$out/.demo" && -n "$(ls -A "$out")" ]]; then  # only what an earlier demo has written is replaced
    echo "$out: not empty, and not of an earlier demo. Set --output_dir to a folder of its own." >&2
    exit 2
fi
touch "$out/.demo"
step() { echo; echo "== $1"; run "${@:2}"; }

step "Check the installation" check --config_file configs/tools.yaml
if [[ -z "$dataset_dir" ]]; then
    dataset_dir="$out/phantoms"
    step "Draw phantoms" phantoms --config_file configs/tools.yaml --dataset_dir "$dataset_dir" --training 20 --validation 4 --testing 4
fi
datalist=$dataset_dir/datalist.json
if [[ ! -f "$datalist" ]]; then
    datalist="$out/datalist.json"
    step "Pair scans with labels and split them by patient" prepare --config_file configs/tools.yaml --dataset_dir "$dataset_dir" --datalist "$datalist" --overwrite True
fi
split=$(python -c "import json, sys; print('testing' if json.load(open(sys.argv[1])).get('testing') else 'validation')" "$datalist")
data=(--dataset_dir "$dataset_dir" --datalist "$datalist")
evaluate=(--config_file "['configs/train.yaml','configs/evaluate.yaml']" "${data[@]}" --split "$split")

step "Explore the data" explore --config_file configs/tools.yaml "${data[@]}" --output_dir "$out/explore"
rm -rf "${out:?}"/{before,train,masks,after}
step "Score the shipped weights" "${evaluate[@]}" --output_dir "$out/before" --figures False
step "Fine-tune them" --config_file configs/train.yaml "${data[@]}" --pretrained models/model.pt --output_dir "$out/train" \
    --epochs 16 --val_interval 8 --learning_rate 5.0e-4 "${options[@]+"${options[@]}"}"
step "Segment unseen scans" --config_file configs/inference.yaml "${data[@]}" --split "$split" --ckpt_path "$out/train/model.pt" --output_dir "$out/masks"
step "Score the fine-tuned weights" "${evaluate[@]}" --ckpt_path "$out/train/model.pt" --output_dir "$out/after"
step "Before -> after fine-tuning" compare --config_file configs/tools.yaml --before "$out/before/metrics.json" --after "$out/after/metrics.json"

echo
echo "== Written to $out"
echo "explore/     the data: explore.csv, explore.png"
echo "before/      metrics.csv and metrics.json of the shipped weights"
echo "train/       model.pt (best), last.pt, tensorboard/"
echo "masks/       <stem>_seg.nii.gz, .png and .json of the scans under '$split'"
echo "after/       metrics.csv, metrics.json, masks, reports and figures beside the reference"
