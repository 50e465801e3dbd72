"""The picture of a batch before and after the random transforms."""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import RandGaussianNoised
from monai.utils import set_determinism

from scripts.tools import show_batch


def test_show_batch(monkeypatch, tmp_path, capsys):
    affine = torch.diag(torch.tensor([4.0, 2.0, 1.5, 1.0], dtype=torch.float64))
    calls = []
    monkeypatch.setattr(show_batch, "draw_batch", lambda before, after, path: calls.append((before, after)) or path)

    def load(entry: dict) -> dict:
        value = float(entry["image"][0])
        return {k: MetaTensor(torch.full((1, 2, 3, 4), value), affine=affine) for k in ("image", "label")}

    def augment(sample: dict) -> dict:
        return {"image": sample["image"] + 0.5, "label": sample["label"]}

    data = [{"image": f"{i}_T2w.nii.gz"} for i in (1, 2, 3)]
    assert show_batch.show_batch(data, [load], [augment], 2, tmp_path) == tmp_path / "batch.png"
    assert capsys.readouterr().out == f"{tmp_path / 'batch.png'}\n"
    ((before, after),) = calls
    for rows, added in ((before, 0), (after, 0.5)):
        assert [row[3] for row in rows] == ["1_T2w", "2_T2w"]
        for i, (image, label, spacing_mm, _) in enumerate(rows, start=1):
            np.testing.assert_array_equal(image, np.full((2, 3, 4), i + added))
            np.testing.assert_array_equal(label, np.full((2, 3, 4), i))
            assert label.dtype == np.uint8
            np.testing.assert_allclose(spacing_mm, (4, 2, 1.5))
    assert data == [{"image": f"{i}_T2w.nii.gz"} for i in (1, 2, 3)]


def test_every_row_is_another_draw(monkeypatch, tmp_path):
    monkeypatch.setattr(show_batch, "draw_batch", lambda before, after, path: images.extend(row[0] for row in after) or path)
    images: list[np.ndarray] = []
    set_determinism(seed=0)
    change = [RandGaussianNoised(keys="image", prob=1.0)]
    volume = MetaTensor(torch.zeros(1, 2, 3, 4), affine=torch.eye(4))
    show_batch.show_batch([{"image": "a.nii"}] * 2, [lambda entry: {"image": volume, "label": volume}], change, 2, tmp_path)
    set_determinism(None)
    assert not np.array_equal(*images)
