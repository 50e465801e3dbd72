"""Federated averaging of two sites that labelled different structures, through MONAI's own client."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, NO_AUGMENTATION, SMALL
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from scripts.phantoms.phantom import write_cohort

pytestmark = pytest.mark.clients
SITES = {"bodies": ("T1w", range(15, 27)), "discs": ("T2w", range(115, 126))}  # contrast and what the site labels
ROUNDS, LOCAL_EPOCHS = 15, 10
SMALL_VIEW = {"view": "L3", "shape": (12, 64, 96), "spacing_mm": (2.5, 4.9)}


def write_site(folder, seed: int, contrast: str, labelled: range):
    """Phantoms of one contrast; the site did not label all of what its label files hold."""
    write_cohort(folder, training=4, validation=2, testing=0, seed=seed, contrast=contrast, **SMALL_VIEW)
    path = folder / "datalist.json"
    splits = json.loads(path.read_text())
    for entry in (e for entries in splits.values() for e in entries):
        strip_label(folder / entry["label"], labelled)
        entry["labelled"] = [v for v in entry["labelled"] if v in labelled]
    path.write_text(json.dumps(splits))
    return folder


def strip_label(path, labelled: range) -> None:
    image = nib.load(path)
    values = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(np.isin(values, list(labelled)), values, 0).astype(np.uint8), image.affine), path)


def client(name: str, dataset_dir, output_dir) -> MonaiAlgo:
    options = {**SMALL, "dataset_dir": str(dataset_dir), "learning_rate": 3e-3, "epochs": 10_000, "val_interval": 10_000, **NO_AUGMENTATION}
    algo = MonaiAlgo(
        bundle_root=str(BUNDLE),
        local_epochs=LOCAL_EPOCHS,
        config_train_filename="configs/train.yaml",
        config_evaluate_filename=["configs/train.yaml", "configs/evaluate.yaml"],
        train_kwargs={**options, "output_dir": str(output_dir / "train")},
        eval_kwargs={**options, "output_dir": str(output_dir / "evaluate"), "figures": False},
    )
    algo.initialize(extra={ExtraItems.CLIENT_NAME: name})
    return algo


def dice(algo: MonaiAlgo, weights: dict[str, torch.Tensor]) -> float:
    return algo.evaluate(ExchangeObject(weights=weights)).metrics["val_mean_dice"]


def test_average_is_better_than_either_site_on_the_other(tmp_path):
    sites = {}
    for seed, (name, (contrast, labelled)) in enumerate(SITES.items()):
        folder = write_site(tmp_path / name, seed, contrast, labelled)
        sites[name] = client(name, folder, tmp_path / f"{name}_out")
    average = {k: v.clone() for k, v in next(iter(sites.values())).trainer.network.state_dict().items()}
    for _ in range(ROUNDS):
        differences, local = {}, {}
        for name, algo in sites.items():
            algo.train(ExchangeObject(weights=average), extra={})
            differences[name] = algo.get_weights(extra={}).weights
            local[name] = {k: v.clone() for k, v in algo.trainer.network.state_dict().items()}
        for key in average:
            average[key] = average[key] + sum(torch.as_tensor(d[key]) for d in differences.values()) / len(sites)
    scores = {name: dice(algo, average) for name, algo in sites.items()}
    assert scores["bodies"] > dice(sites["bodies"], local["discs"])
    assert scores["discs"] > dice(sites["discs"], local["bodies"])
    assert min(scores.values()) > 0.3
