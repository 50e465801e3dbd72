"""nnU-Net v2's predictor on one scan, for `benchmark`: runs in an environment with nnunetv2, which the bundle does not need.

    python scripts/benchmark/nnunet.py OPTIONS

OPTIONS is a JSON object with `scan` and `label` (files), `folder` (for nnU-Net's files) and `classes`, background included. Planner and
predictor are nnU-Net's own: the plan of its default planner for a dataset of this scan, random weights, one fold, no mirroring, on
the GPU where there is one.
Prints `total_s` (reading, preprocessing, network, resampling, writing), `patch_size` and `spacing` of the plan, and `version`, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path

NAME, CONFIGURATION, TRAINER = "Dataset001_benchmark", "3d_fullres", "nnUNetTrainer"


def main(scan: str, label: str, folder: str, classes: int) -> dict:
    root = Path(folder)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(root / variable)  # nnU-Net reads them when it is imported

    import torch
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw = root / "nnUNet_raw" / NAME
    for source, target in ((scan, "imagesTr/case_0000.nii.gz"), (label, "labelsTr/case.nii.gz")):
        (raw / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, raw / target)
    labels = {"background": 0, **{f"level{i}": i for i in range(1, classes)}}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    (root / "nnUNet_preprocessed" / NAME).mkdir(parents=True, exist_ok=True)
    DatasetFingerprintExtractor(NAME, num_processes=1).run(overwrite_existing=True)
    plans = PlansManager(ExperimentPlanner(NAME).plan_experiment())
    configuration = plans.get_configuration(CONFIGURATION)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        classes,
        deep_supervision=False,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = nnUNetPredictor(use_mirroring=False, perform_everything_on_device=False, device=device, allow_tqdm=False)
    predictor.manual_initialization(network, plans, configuration, [network.state_dict()], dataset, TRAINER, None)
    start = time.perf_counter()
    image, properties = plans.image_reader_writer_class().read_images([str(raw / "imagesTr" / "case_0000.nii.gz")])
    predictor.predict_single_npy_array(image, properties, output_file_truncated=str(root / "prediction"))
    return {
        "total_s": time.perf_counter() - start,
        "patch_size": [int(n) for n in configuration.patch_size],
        "spacing": [float(n) for n in configuration.spacing],
        "version": version("nnunetv2"),
    }


if __name__ == "__main__":
    result = main(**json.loads(sys.argv[1]))
    print("\n" + json.dumps(result))
