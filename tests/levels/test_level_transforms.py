"""`NameLevelsd` and the report of `CaseReports`, on boxes of oblique scans."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from voting_column import BODY, CHANNEL, DISC, DISCS, LUMBAR, MIN_MM3, SHAPE, SIDE, SPACING, TABLE, body_box, column, dense, paint, row

from scripts.data.volumes import Volume
from scripts.handlers import CaseReports
from scripts.labels import structure
from scripts.levels.logits import COARSE_VOXEL, GATED, level_logits
from scripts.measure.rows import CENTRE
from scripts.transforms import CleanLabelMapd, NameLevelsd, RestoreGridd

# NameLevelsd and CaseReports


def oblique(spacing_mm: tuple[float, float, float], origin: tuple[float, float, float] = (-12.0, 20.0, 7.0)) -> np.ndarray:
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing_mm), origin
    return affine


def scan(offset: tuple[int, int, int], extra: tuple[int, int, int]) -> tuple[MetaTensor, MetaTensor]:
    """A preprocessed image of 2 mm voxels, read from one of 1 x 1 x 2 mm, and logits of the box of SHAPE that starts at `offset`."""
    affine = oblique(SPACING)
    original = oblique((1.0, 1.0, 2.0))
    original[:3, 3] -= affine[:3, :3] @ (0.25, 0.25, 0.0)  # two of its voxels lie in each one of the image
    shape = [n + o + e for n, o, e in zip(SHAPE, offset, extra)]
    meta = {"filename_or_obj": "/data/site 1/sub-01.nii.gz", "original_affine": original}
    meta["spatial_shape"] = (2 * shape[0], 2 * shape[1], shape[2])
    image = MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(affine), meta=meta)
    shift = np.eye(4)
    shift[:3, 3] = offset
    return image, MetaTensor(column(LUMBAR, DISCS), affine=torch.from_numpy(affine @ shift))


def test_box_keeps_its_affine_and_knows_where_the_scan_ends():
    image, logits = scan((0, 5, 0), (4, 6, 0))
    x, y, z = body_box(0)
    paint(logits, (slice(0, x.stop), y, z), L1=1)  # up to the left face of the scan
    paint(logits, (x, slice(0, y.stop), body_box(2)[2]), L3=1)  # to the posterior face of the box, 5 voxels from that of the scan
    paint(logits, (*SIDE, slice(0, body_box(5)[2].stop)), S1=1)
    pred = NameLevelsd(min_instance_mm3=MIN_MM3)({"image": image, "pred": logits})["pred"]
    np.testing.assert_allclose(pred.affine, logits.affine.numpy())
    assert pred.channel_map.shape == SHAPE
    cut = {r["name"]: r["cut_by_view"] for r in pred.report["structures"]}
    assert cut == {**{name: [] for name in [*LUMBAR, *DISCS]}, "L1": ["left"], "S1": ["inferior"]}


class OnDevice(MetaTensor):
    """Stands for a scan on a GPU, whose voxels NumPy cannot take."""

    def numpy(self) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def cpu(self) -> torch.Tensor:
        return self.as_tensor()


def test_a_scan_on_a_device_with_a_blank_border():
    """The scan is seen above the lowest vertebra and blank below its upper half."""
    image, logits = scan((0, 0, 0), (0, 0, 0))
    seen = torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    middle = (body_box(4)[2].start + body_box(4)[2].stop) // 2
    seen[..., :middle] = 0
    blank = OnDevice(seen, affine=image.affine, meta=image.meta)
    with pytest.raises(TypeError, match="cpu"):
        blank[0].numpy()
    pred = NameLevelsd(min_instance_mm3=MIN_MM3)({"image": blank, "pred": logits})["pred"]
    cut = {r["name"] for r in pred.report["structures"] if "inferior" in r["cut_by_view"]}
    assert cut == {"L5", "L5/S1", "S1"}


def test_logits_without_an_affine_lie_on_the_grid_of_the_image():
    image, logits = scan((0, 0, 0), (0, 0, 0))
    named_box = NameLevelsd(min_instance_mm3=MIN_MM3)({"image": image, "pred": logits})["pred"]
    pred = NameLevelsd(min_instance_mm3=MIN_MM3)({"image": image, "pred": logits.as_tensor()})["pred"]
    np.testing.assert_allclose(pred.affine, image.affine.numpy())
    assert torch.equal(dense(pred), dense(named_box))
    assert pred.report == named_box.report


def test_masks_without_names_hold_the_likeliest_level_of_every_voxel():
    """Imitate the output of the inferer for a box of one level whose upper half looks more like the level above."""
    image, whole = scan((0, 0, 0), (0, 0, 0))
    kinds = torch.full((3, *SHAPE), -9.0)
    kinds[0] = 0
    kinds[1][body_box(2)] = 9.0
    levels = torch.zeros(len(TABLE) + 1, *[n // 4 for n in SHAPE])  # the last one is the gate, which is open
    levels[CHANNEL["L3"]], levels[CHANNEL["L2"], :, :, body_box(2)[2].start // 4 + 1 :] = 5, 20
    pred = MetaTensor(kinds, affine=whole.affine, meta={GATED: levels, COARSE_VOXEL: torch.tensor([4, 4, 4])})
    mask = RestoreGridd()({"image": image, "pred": pred})["pred"][0]
    expected = RestoreGridd()({"image": image, "pred": MetaTensor(level_logits(pred), affine=whole.affine)})["pred"][0]
    assert torch.equal(mask, expected)
    assert mask.unique().tolist() == [0, CHANNEL["L2"], CHANNEL["L3"]]
    assert (mask > 0).sum() == 4 * (kinds[1] > 0).sum()  # two by two voxels of the scan lie in each one of the image


def test_volumes_are_mm3_of_the_oblique_grid():
    image, logits = scan((3, 2, 1), (2, 2, 2))
    disc = (logits.argmax(0) == CHANNEL["L3/L4"]).sum().item() * 8.0  # mm3
    for min_mm3, kept in ((disc - 1, True), (disc + 1, False)):
        pred = NameLevelsd(min_instance_mm3=min_mm3)({"image": image, "pred": logits})["pred"]
        assert bool((pred.channel_map == CHANNEL["L3/L4"]).any()) is kept


def write_report(folder, output: dict, image: MetaTensor) -> dict:
    handler = CaseReports(str(folder), "/data")
    volume = Volume(np.full(output["pred"].shape[1:], 2.5, np.float32), output["pred"].affine.numpy(), "float32")
    handler.write(SimpleNamespace(state=SimpleNamespace(batch=[{"image": image, "volume": volume}], output=[output])))
    (path,) = [p for p in folder.rglob("*") if p.is_file()]  # whole, without a partial file beside it
    assert path.relative_to(folder).as_posix() == "site 1/sub-01_seg.json"
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    return json.loads(text)


def test_case_report(tmp_path, capsys):
    image, logits = scan((3, 2, 1), (2, 2, 2))
    paint(logits, body_box(2), L3=0.5, L2=0.5)
    postprocessing = Compose([NameLevelsd(min_instance_mm3=MIN_MM3), RestoreGridd(), CleanLabelMapd(min_instance_mm3=MIN_MM3)])
    output = postprocessing({"image": image, "pred": logits})
    assert output["pred"].shape == (1, *image.meta["spatial_shape"])
    report = write_report(tmp_path, output, image)
    assert list(report) == [
        "scan",
        "source",
        "sequence_probability",
        "uncertain",
        "runner_up",
        "runner_up_probability",
        "structures",
        "warnings",
    ]
    (line,) = report["warnings"]  # bodies of a quarter of their size
    assert line.startswith("unusual: L1 (volume_mm3 7200), L2 (volume_mm3 7200)")
    assert report["scan"] == "sub-01"
    assert report["uncertain"] is False
    assert [s["name"] for s in report["structures"]] == [*LUMBAR, *DISCS]
    for found in report["structures"]:
        signal = {"signal_mean": 2.5, "signal_sd": 0.0, "signal_median": 2.5}
        assert set(found) == {"name", "value", "mean_entropy", "vote", "cut_by_view", "volume_mm3", *CENTRE, *signal}
        assert {key: found[key] for key in signal} == signal
        assert found["value"] == structure(found["name"]).channel  # of the array: no mask was written in another scheme
        voxels = int((output["pred"] == structure(found["name"]).channel).sum())
        assert found["volume_mm3"] == 2.0 * voxels
        assert found["volume_mm3"] == pytest.approx(8.0 * 100 * (DISC if "/" in found["name"] else BODY), rel=0.1)
    assert row(report, "L3")["mean_entropy"] == round(np.log(2), 4)
    assert capsys.readouterr().out == f"/data/site 1/sub-01.nii.gz: {line}\n"
