"""Scans that may be none get a note."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.scans import few_values, read_scan

MASK, SCAN = np.arange(4096).reshape(16, 16, 16) % 5, np.arange(4096).reshape(16, 16, 16) % 200


def saved(folder: Path, values: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([4.0, 1.0, 1.0, 1.0])), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def test_a_mask_in_the_place_of_a_scan(tmp_path):
    assert read_scan(saved(tmp_path, MASK)).notes == ("it holds 5 different values only: a mask, no scan?",)
    assert read_scan(saved(tmp_path, SCAN)).notes == ()


@pytest.mark.parametrize("order", ["C", "F"])
def test_few_values(order, monkeypatch):
    assert few_values(np.asarray(MASK, np.float32, order=order)) == 5
    assert few_values(np.asarray(SCAN, np.float32, order=order)) == 200
    rare = np.zeros((8, 8, 8), np.float32)
    rare[3, 3, 3:6] = (1, 2, 3)
    monkeypatch.setattr("scripts.data.scans.SAMPLE", 16)  # which misses them
    assert few_values(rare) == 4
