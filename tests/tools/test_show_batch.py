"""The picture of a batch before and after the random transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandGaussianNoised
from monai.utils import set_determinism

from scripts.data.complete_labels import UNKNOWN
from scripts.tools import show_batch


@pytest.mark.parametrize("keys", [{"image", "label"}, {"view", "view_label"}, {"image", "label", "view", "view_label"}])
def test_show_batch(monkeypatch, tmp_path, capsys, keys):
    affine = torch.diag(torch.tensor([4.0, 2.0, 1.5, 1.0], dtype=torch.float64))
    calls = []
    monkeypatch.setattr(show_batch, "draw_batch", lambda columns, path: calls.append(columns) or path)

    def load(entry: dict) -> dict:
        value = float(entry["image"][0])
        return {k: MetaTensor(torch.full((1, 2, 3, 4), value), affine=affine) for k in ("image", "label")}

    def augment(sample: dict) -> dict:
        label = sample["label"].as_tensor().clone()
        label[0, 0, 0, 0] = UNKNOWN
        samples = {"image": sample["image"] + 0.5, "label": label, "view": sample["image"] + 0.25, "view_label": label}
        return {k: samples[k] for k in keys}

    data = [{"image": f"{i}_T2w.nii.gz"} for i in (1, 2, 3)]
    assert show_batch.show_batch(data, [load], [augment], 2, tmp_path, (1, 2, 2)) == tmp_path / "batch.png"
    assert capsys.readouterr().out == f"{tmp_path / 'batch.png'}\n"
    (columns,) = calls
    expected = {"preprocessed, labels completed": (0, (4, 2, 1.5))}
    expected |= {"patch for the fine network": (0.5, (4, 2, 1.5))} if "image" in keys else {}
    expected |= {"view for the coarse network": (0.25, (4, 4, 3))} if "view" in keys else {}
    assert [*columns] == [*expected]
    for heading, (added, voxel_mm) in expected.items():
        assert [row[3] for row in columns[heading]] == ["1_T2w", "2_T2w"]
        for i, (image, label, spacing_mm, _) in enumerate(columns[heading], start=1):
            np.testing.assert_array_equal(image, np.full((2, 3, 4), i + added))
            assert label[0, 0, 0] == (0 if added else i)
            assert (label.ravel()[1:] == i).all()
            assert label.dtype == np.uint8
            np.testing.assert_allclose(spacing_mm, voxel_mm)
    assert data == [{"image": f"{i}_T2w.nii.gz"} for i in (1, 2, 3)]


def test_every_row_is_another_draw(monkeypatch, tmp_path):
    monkeypatch.setattr(show_batch, "draw_batch", lambda columns, path: images.extend(row[0] for row in [*columns.values()][1]) or path)
    images: list[np.ndarray] = []
    set_determinism(seed=0)
    change = [RandGaussianNoised(keys="image", prob=1.0)]
    volume = MetaTensor(torch.zeros(1, 2, 3, 4), affine=torch.eye(4))
    show_batch.show_batch([{"image": "a.nii"}] * 2, [lambda entry: {"image": volume, "label": volume}], change, 2, tmp_path, (4, 4, 4))
    set_determinism(None)
    assert not np.array_equal(*images)
