"""Scans kept in memory after the deterministic transforms."""

from __future__ import annotations

import re
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import fails
from monai.data import DataLoader
from monai.transforms import Compose, CopyItemsd, RandomizableTransform, Transform

from scripts.common.errors import UserError
from scripts.data.dataset import CachedScans, CarriedError
from scripts.transforms import LoadImageVolumesd


class Load(Transform):
    """Stands for the deterministic transforms; notes what it was asked for."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def __call__(self, data: dict) -> dict:
        if data["image"] == "bad":
            raise UserError("bad: not a scan")
        self.loaded.append(data["image"])
        return {**data, "value": torch.zeros(2)}


class Count(RandomizableTransform):
    """Stands for the random transforms, and writes into what it gets."""

    def __init__(self) -> None:
        super().__init__(prob=1.0)
        self.count = 0

    def __call__(self, data: dict) -> dict:
        self.count += 1
        data["value"] += self.count
        return data


def scans(*names: str) -> list[dict]:
    return [{"image": name, "labelled": [20]} for name in names]


def test_cached_scans_are_loaded_once():
    load, again, augment = Load(), Load(), Count()
    # nested, as train.yaml has it: MONAI alone would take the inner Compose for random and cache nothing
    dataset = CachedScans(scans("a", "b"), Compose([Compose([load, Compose([again])]), augment]), progress=False)
    assert sorted(load.loaded) == sorted(again.loaded) == ["a", "b"]  # by several threads
    assert augment.count == 0
    values = [dataset[i]["value"].tolist() for i in (0, 0, 1, 0)]
    assert sorted(load.loaded) == sorted(again.loaded) == ["a", "b"]  # by several threads
    assert values == [[1, 1], [2, 2], [3, 3], [4, 4]]  # a new sample each time, and the cached one stays as it is
    assert dataset[1]["image"] == "b"


def test_cached_scans_keep_a_repeated_scan_once():
    load = Load()
    dataset = CachedScans(scans("a", "b", "a", "a", "c"), Compose([Compose([load]), Count()]), progress=False)
    assert len(dataset) == 5
    assert sorted(load.loaded) == ["a", "b", "c"]
    assert [dataset[i]["image"] for i in range(5)] == ["a", "b", "a", "a", "c"]
    assert len(load.loaded) == 3


def test_cached_scans_with_a_share_in_memory():
    load, augment = Load(), Count()
    dataset = CachedScans(scans("a", "b", "a", "c", "d"), Compose([load, augment]), cache_rate=0.5, progress=False)
    assert sorted(load.loaded) == ["a", "b"]  # two of four
    assert [dataset[i]["image"] for i in range(5)] == ["a", "b", "a", "c", "d"]
    assert load.loaded[2:] == ["c", "d"]
    load.loaded.clear()
    dataset = CachedScans(scans("a", "b"), Compose([Compose([load]), augment]), cache_rate=0.0, progress=False)
    assert [dataset[0]["image"], dataset[0]["image"]] == load.loaded == ["a", "a"]


def test_cached_scans_without_random_transforms():
    load = Load()
    dataset = CachedScans(scans("a"), Compose([Compose([load])]), progress=False)
    assert [dataset[0]["value"].tolist() for _ in range(2)] == [[0, 0]] * 2
    assert load.loaded == ["a"]


def test_cached_scans_pass_on_what_is_wrong_with_a_scan():
    with fails("bad: not a scan"):  # and the pool does not wait forever
        CachedScans(scans("a", "bad"), Compose([Compose([Load()]), Count()]), progress=False)


def test_no_scan_is_being_loaded_any_more_when_one_was_bad():
    load, loaded = Load(), []

    class Slow(Transform):
        def __call__(self, data: dict) -> dict:
            time.sleep(0 if data["image"] == "bad" else 0.5)
            loaded.append(load(data)["image"])
            return data

    with fails("bad: not a scan"):
        CachedScans(scans("a", "bad"), Compose([Slow()]), num_workers=2, progress=False)
    assert loaded == ["a"]


@pytest.mark.parametrize(("workers", "kind"), [(0, UserError), (1, CarriedError)])
def test_what_is_wrong_with_a_scan_comes_out_of_a_worker(workers, kind):
    dataset = CachedScans(scans("a", "bad"), Compose([Load(), Count()]), cache_rate=0.0, progress=False)
    loaded = iter(DataLoader(dataset, batch_size=1, num_workers=workers))
    assert next(loaded)["image"] == ["a"]
    with pytest.raises(kind, match=f"^{re.escape('bad: not a scan')}$"):
        next(loaded)


def test_what_the_reader_has_to_say_is_told_once(tmp_path, caplog):
    values = np.random.default_rng(0).uniform(0, 100, (40, 40, 40)).astype(np.float32)
    values[0, 0, :2] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "a.nii")
    data = [{"image": str(tmp_path / "a.nii")}] * 3  # as `repeat` lists a scan
    CachedScans(data, Compose([LoadImageVolumesd("image"), CopyItemsd("image", names="other")]), progress=False)
    told = [record.message for record in caplog.records if "NaN" in record.message]
    assert told == [f"{tmp_path}/a.nii: 2 voxels (0.0031 %) were NaN or infinite: taken for the lowest value, and left out of signals"]
