"""The dictionary transforms on files with oblique, anisotropic grids: values, grids, names and formats of the written files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, ScaleIntensityRanged, Spacingd

from scripts.common.errors import UserError
from scripts.common.inference_config import inference_config
from scripts.data.complete_labels import BEYOND, NO_BODY, complete_labels
from scripts.labels import decode, encode, label_table, structure
from scripts.levels.postprocess import clean_label_map
from scripts.measure.spine import measure_spine
from scripts.phantoms.phantom import draw_phantom
from scripts.transforms import (
    CleanLabelMapd,
    CompleteLabelsd,
    CropBlankBordersd,
    EncodeLabelsd,
    LoadImageVolumesd,
    MeasureSpined,
    RestoreGridd,
    SaveImageLabelsd,
    ScaleIntensitySampledPercentilesd,
)

CHANNELS = len(label_table())
L1, L5, S1, DISC = (structure(name).channel for name in ("L1", "L5", "S1", "L1/L2"))


def pir_affine(spacing_mm: tuple[float, float, float] = (0.8, 0.9, 4.0), degrees: float = 13.0) -> np.ndarray:
    """Return an affine for voxels stored posterior x inferior x right, as in many sagittal scans, turned about two axes."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]) @ np.diag(spacing_mm)
    affine[:3, 3] = (-21.5, 33.25, 60.125)
    assert "".join(nib.aff2axcodes(affine)) == "PIR"
    return affine


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return str(path)


def label_tensor(values: np.ndarray, name: str = "case_seg.nii.gz") -> MetaTensor:
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(pir_affine()), meta={"filename_or_obj": name})


# CropBlankBordersd


def test_blank_borders_go_and_the_rest_stays_where_it_is():
    """Borders of 1.6 mm and more are cropped; voxels have 0.8 x 0.9 x 4 mm."""
    scan = torch.zeros(1, 9, 8, 7)
    scan[0, 2:8, 1:8, 3:5] = torch.rand(6, 7, 2, generator=torch.Generator().manual_seed(0)) + 1
    scan[0, 4] = 0.0  # a blank slice within
    image = MetaTensor(scan, affine=torch.from_numpy(pir_affine()))
    label = MetaTensor(torch.arange(9 * 8 * 7).reshape(1, 9, 8, 7), affine=torch.from_numpy(pir_affine()))
    cropped = CropBlankBordersd(["image", "label"], least_mm=1.6)({"image": image, "label": label})
    assert torch.equal(cropped["image"].as_tensor(), scan[:, 2:, :, 3:5])
    assert torch.equal(cropped["label"].as_tensor(), label.as_tensor()[:, 2:, :, 3:5])
    expected = pir_affine()
    expected[:3, 3] = pir_affine() @ [2, 0, 3, 1] @ np.eye(4, 3)
    for key in ("image", "label"):
        np.testing.assert_allclose(cropped[key].affine, expected)
    assert image.shape == (1, 9, 8, 7)  # the input is not changed


def test_a_padded_scan_gets_the_same_mask(small_scan, tmp_path):
    """The mask is on the scan's own grid, with the blank slices."""
    scan = nib.load(small_scan)
    padded = np.pad(np.asarray(scan.dataobj), ((9, 30), (0, 80), (90, 11)))
    place = scan.affine @ nib.affines.from_matvec(np.eye(3), [-9, 0, -90])
    before, after = tmp_path / "scan.nii.gz", tmp_path / "padded.nii.gz"
    shutil.copy(small_scan, before)
    nib.save(nib.Nifti1Image(padded, place), after)
    inference = inference_config(str(BUNDLE))
    read = inference.get_parsed_content("preprocessing")
    images = [read({"image": str(path)})["image"] for path in (before, after)]
    assert torch.equal(*(image.as_tensor() for image in images))
    np.testing.assert_allclose(images[0].affine, images[1].affine, atol=1e-4)
    seen = images[0].as_tensor()
    logits = torch.cat([0.503 - seen, seen - 0.503, torch.full((CHANNELS - 2, *seen.shape[1:]), -9.0)])
    labels = [RestoreGridd()({"image": i, "pred": MetaTensor(logits, affine=i.affine)})["pred"][0].numpy() for i in images]
    assert labels[0].any()
    np.testing.assert_array_equal(labels[1], np.pad(labels[0], ((9, 30), (0, 80), (90, 11))))


# ScaleIntensitySampledPercentilesd


def test_percentiles_become_0_and_1_and_what_is_beyond_is_clipped():
    image = MetaTensor(torch.arange(101.0).reshape(1, 1, 1, 101), affine=torch.from_numpy(pir_affine()))
    scaled = ScaleIntensitySampledPercentilesd("image", lower=10.0, upper=90.0)({"image": image})["image"]
    np.testing.assert_allclose(scaled[0, 0, 0], np.clip((np.arange(101.0) - 10) / 80, 0, 1), atol=1e-6)
    assert torch.equal(scaled.affine, image.affine)
    assert torch.equal(image, torch.arange(101.0).reshape(1, 1, 1, 101))  # the input is not changed


def test_percentiles_are_those_of_evenly_spread_voxels_where_there_are_many():
    image = torch.zeros(1, 8, 8, 8)
    image[:, ::2, ::2, ::2] = torch.arange(64.0).reshape(1, 4, 4, 4)
    scaled = ScaleIntensitySampledPercentilesd("image", lower=0.0, upper=100.0, voxels=64)({"image": image - 3})["image"]
    np.testing.assert_allclose(scaled[0, ::2, ::2, ::2].flatten(), np.arange(64.0) / 63, atol=1e-6)
    whole = ScaleIntensitySampledPercentilesd("image", lower=0.0, upper=98.0)({"image": image})["image"]
    assert whole[0, 6, 6, 6] == 1.0
    assert 0 < whole[0, 0, 0, 6] < 3 / np.percentile(image, 98) + 1e-6


def test_a_scan_of_which_most_is_empty_stays_finite():
    image = torch.zeros(1, 10, 10, 10)
    image[0, 5, 5, 5] = 700.0
    scaled = ScaleIntensitySampledPercentilesd("image", lower=0.5, upper=99.5)({"image": image})["image"]
    assert scaled.unique().tolist() == [0.0, 1.0]


# EncodeLabelsd


def test_encode_reads_values_and_the_list_of_labelled_structures(tmp_path):
    values = np.zeros((4, 3, 2), np.int16)
    values[0, 0], values[1, 1, 1], values[3, 2, 0] = 20, 120, 26
    path = save(tmp_path / "a_seg.nii.gz", values, pir_affine())
    loaded = LoadImaged("label", ensure_channel_first=True)({"label": path, "labelled": [19, 20, 26, 120]})
    copy = loaded["label"].clone()
    encoded = EncodeLabelsd()(loaded)
    assert encoded["label"].dtype == torch.uint8
    expected = np.zeros((1, 4, 3, 2), np.uint8)
    expected[0, 0, 0], expected[0, 1, 1, 1], expected[0, 3, 2, 0] = L1, DISC, S1
    np.testing.assert_array_equal(encoded["label"].numpy(), expected)
    np.testing.assert_allclose(encoded["label"].affine.numpy(), pir_affine(), atol=1e-5)
    assert encoded["labelled"].dtype == torch.bool
    assert encoded["labelled"].nonzero().flatten().tolist() == [0, structure("T12").channel, L1, S1, DISC]
    assert torch.equal(loaded["label"], copy)
    assert loaded["labelled"] == [19, 20, 26, 120]


@pytest.mark.parametrize("labelled", [{}, {"labelled": None}, {"labelled": []}])
def test_encode_without_the_list_takes_what_is_there(labelled):
    encoded = EncodeLabelsd()({"label": label_tensor(np.array([[[0, 24, 24, 120]]], np.uint8)), **labelled})
    assert encoded["label"].flatten().tolist() == [0, L5, L5, DISC]
    assert encoded["labelled"].shape == (CHANNELS,)
    assert encoded["labelled"].nonzero().flatten().tolist() == [0, L5, DISC]


def test_encode_adds_structures_that_the_list_forgot():
    encoded = EncodeLabelsd()({"label": label_tensor(np.array([[[0, 24]]], np.uint8)), "labelled": [20]})
    assert encoded["labelled"].nonzero().flatten().tolist() == [0, L1, L5]


def test_encode_reads_the_scheme_that_the_entry_names():
    values = label_tensor(np.array([[[0, structure("L5").spider, structure("L1").spider]]], np.uint8))
    encoded = EncodeLabelsd(label_scheme="verse")({"label": values, "label_scheme": "spider"})
    assert encoded["label"].flatten().tolist() == [0, L5, L1]


def test_encode_of_an_empty_label():
    encoded = EncodeLabelsd()({"label": label_tensor(np.zeros((2, 2, 2), np.float32)), "labelled": [20, 26]})
    assert not encoded["label"].any()
    assert encoded["labelled"].nonzero().flatten().tolist() == [0, L1, S1]


def test_encode_names_the_file_of_an_unknown_value(tmp_path):
    path = save(tmp_path / "bad_seg.nii.gz", np.full((2, 2, 2), 99, np.uint8), np.eye(4))
    loaded = LoadImaged("label", ensure_channel_first=True)({"label": path})
    with pytest.raises(UserError, match=rf"^{re.escape(path)}: unknown label values \[99\]\. The label scheme 'verse' has 15 = T8"):
        EncodeLabelsd()(loaded)
    with pytest.raises(UserError, match=r"^case_seg.nii.gz: unknown label values \[7, 99\]"):
        EncodeLabelsd()({"label": label_tensor(np.zeros((1, 1, 1), np.uint8)), "labelled": [99, 20, 7]})


# CompleteLabelsd


def test_complete_adds_the_disc_between_two_bodies():
    values = np.zeros((40, 30, 10), np.uint8)  # 0.8 x 0.9 x 4 mm
    values[6:18, 8:22, 2:8], values[22:34, 8:22, 2:8] = L1, structure("L2").channel
    labelled = torch.zeros(CHANNELS, dtype=torch.bool)
    labelled[[0, L1, structure("L2").channel]] = True
    data = {"label": label_tensor(values), "labelled": labelled, "source": "a"}
    completed = CompleteLabelsd()(data)
    label = completed["label"]
    expected, _ = complete_labels(values, labelled.numpy(), (0.8, 0.9, 4.0))
    np.testing.assert_array_equal(label[0].numpy(), expected)
    assert (label[0, 19:21, 8:22, 2:8] == DISC).all()
    assert (label[0, [18, 21], 8:22, 2:8] == NO_BODY).all()  # within 1.5 mm of a body: its end-plate
    # 1.6 mm below L1 and 2.4 mm above L2: 0.9 mm beside the gap a voxel may be disc, 1.8 mm (cosine -0.08) beside it its neighbour
    assert label[0, 19, [5, 6, 7], 5].tolist() == [0, NO_BODY, NO_BODY]
    assert label[0, 19, 12, [0, 9]].tolist() == [0, 0]
    assert set(label.unique().tolist()) == {0, L1, structure("L2").channel, DISC, BEYOND, NO_BODY}
    assert label.shape == (1, 40, 30, 10)
    assert label.dtype == torch.uint8
    np.testing.assert_allclose(label.affine.numpy(), pir_affine())
    assert label.meta["filename_or_obj"] == "case_seg.nii.gz"
    assert completed["labelled"].dtype == torch.bool
    assert completed["labelled"].nonzero().flatten().tolist() == [0, L1, structure("L2").channel, DISC]
    assert completed["source"] == "a"
    np.testing.assert_array_equal(data["label"][0].numpy(), values)
    assert data["labelled"] is labelled
    assert labelled.sum() == 3


# RestoreGridd


@pytest.mark.parametrize("shape", [(48, 52, 12), (48, 52, 1)])
def test_restore_puts_a_blob_back(tmp_path, shape):
    affine = pir_affine()
    centre = (20.0, 31.0, (shape[2] - 1) // 2)
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    distance_mm = np.linalg.norm((voxels - centre) * (0.8, 0.9, 4.0), axis=-1)
    blob = distance_mm < 11
    soft = np.clip((11.5 - distance_mm), 0, 1).astype(np.float32)
    path = save(tmp_path / "scan.nii.gz", soft * 1000, affine)
    preprocessing = Compose(
        [
            LoadImaged("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(4.0, 2.0, 2.0), mode="bilinear"),
            ScaleIntensityRanged("image", 0, 1000, 0, 1, clip=True),
        ]
    )
    data = preprocessing({"image": path})
    assert data["image"].shape[1:] != shape
    assert "".join(nib.aff2axcodes(data["image"].affine.numpy())) == "RAS"
    logits = torch.full((CHANNELS, *data["image"].shape[1:]), -1.0)
    logits[0], logits[L5] = 0.5 - data["image"][0], data["image"][0] - 0.5
    copy, image_affine = logits.clone(), data["image"].affine.clone()
    restored = RestoreGridd()({**data, "pred": logits})
    pred = restored["pred"]
    assert pred.shape == (1, *shape)
    assert pred.dtype == torch.uint8
    np.testing.assert_allclose(pred.affine.numpy(), affine, atol=1e-4)
    assert pred.meta["filename_or_obj"] == path
    np.testing.assert_allclose(pred.pixdim.numpy(), (0.8, 0.9, 4.0), atol=1e-5)
    assert set(pred.unique().tolist()) == {0, L5}
    found = pred[0].numpy() == L5
    shift = np.argwhere(found).mean(0) - np.argwhere(blob).mean(0)
    assert np.abs(shift).max() < 0.5
    assert 2 * (found & blob).sum() / (found.sum() + blob.sum()) > 0.93
    assert torch.equal(logits, copy)
    assert torch.equal(data["image"].affine, image_affine)


# CleanLabelMapd


def test_clean_uses_the_spacing_of_the_oblique_grid():
    values = np.zeros((12, 12, 10), np.uint8)
    values[:8, :8, :4] = L1  # 256 voxels of 2.88 mm3
    values[0, 0, 9] = L1  # 2.88 mm3
    values[2:4, 2:4, 4:6] = S1  # 8 voxels on it
    data = {"pred": label_tensor(values)}
    cleaned = CleanLabelMapd()(data)["pred"]
    np.testing.assert_array_equal(cleaned[0].numpy(), clean_label_map(values, (0.8, 0.9, 4.0)))
    expected = np.zeros_like(values)
    expected[:8, :8, :4] = expected[2:4, 2:4, 4:6] = L1  # 23.04 mm3 are more than a speck
    np.testing.assert_array_equal(cleaned[0].numpy(), expected)
    np.testing.assert_allclose(cleaned.affine.numpy(), pir_affine())
    assert cleaned.meta["filename_or_obj"] == "case_seg.nii.gz"
    np.testing.assert_array_equal(data["pred"][0].numpy(), values)
    expected[2:4, 2:4, 4:6] = 0
    np.testing.assert_array_equal(CleanLabelMapd(min_speck_mm3=23.1)(data)["pred"][0].numpy(), expected)
    assert not CleanLabelMapd(min_instance_mm3=740)(data)["pred"].any()  # 256 x 2.88 = 737.28 mm3


# MeasureSpined


def test_measures_join_the_report():
    phantom = draw_phantom(5, contrast="T2w")
    label = encode(phantom.label)
    report = {"uncertain": False, "structures": [{"name": "L3", "vote": 0.9}, {"name": "T8", "vote": 0.4}]}
    data = {"pred": MetaTensor(torch.from_numpy(label)[None], affine=phantom.affine, meta={"report": report})}
    pred = MeasureSpined()(data)["pred"]
    expected = measure_spine(label, phantom.affine)
    rows = [{"name": "T8", "vote": 0.4, "measures": {}}, {"name": "L3", "vote": 0.9, "measures": expected.structures["L3"]}]
    discs = [s.name for s in label_table() if s.is_disc and s.name in expected.structures]  # the report lacks these discs
    assert len(discs) > 4
    rows += [{"name": name, "cut_by_view": [], "measures": expected.structures[name]} for name in discs]
    assert pred.meta["report"] == {"uncertain": False, "structures": rows, "spine": expected.spine}
    np.testing.assert_array_equal(pred[0].numpy(), label)
    np.testing.assert_allclose(pred.affine, phantom.affine)
    assert report["structures"][0] == {"name": "L3", "vote": 0.9}
    assert "report" not in MeasureSpined()({"pred": MetaTensor(torch.from_numpy(label)[None], affine=phantom.affine)})["pred"].meta


# LoadImageVolumesd


def test_of_a_header_only_the_grid_is_kept(tmp_path):
    affine = np.array([[0, 0, 3.0, -10], [-0.8, 0, 0, 5], [0, -1.2, 0, 40], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine)
    image.header["descrip"] = b"Mustermann^Erika"
    for name in ("a.nii.gz", "a_seg.nii.gz"):
        nib.save(image, tmp_path / name)
    load = LoadImageVolumesd(["image", "label"])
    paths = {"image": tmp_path / "a.nii.gz", "label": tmp_path / "a_seg.nii.gz"}
    loaded = load(paths)
    assert [*loaded] == ["image", "label"]
    for key in loaded:
        assert loaded[key].dtype == torch.float32
        np.testing.assert_array_equal(loaded[key].numpy(), np.asarray(image.dataobj))
        np.testing.assert_allclose(loaded[key].affine, affine, atol=1e-6)
        assert "Mustermann" not in str(loaded[key].meta)
        assert tuple(loaded[key].meta["spatial_shape"]) == (2, 3, 4)
    load._loader.image_only = False  # as MONAI Label does
    np.testing.assert_allclose(load(paths)["image_meta_dict"]["affine"], affine, atol=1e-6)


# SaveImageLabelsd


def five_levels(shape: tuple[int, int, int] = (10, 12, 6)) -> np.ndarray:
    label = np.zeros(shape, np.uint8)
    for i, name in enumerate(("L4", "L4/L5", "L5", "L5/S1", "S1")):
        label[2:5, 2 * i : 2 * i + 2] = structure(name).channel
    return label


@pytest.mark.parametrize(
    ("scheme", "numbers"),
    [
        ("verse", [23, 123, 24, 124, 26]),
        ("channel", [9, 21, 10, 22, 12]),
        ("spider", [2, 202, 1, 201, 0]),
        ("totalspineseg", [44, 95, 45, 100, 50]),
    ],
)
def test_saved_mask(tmp_path, scheme, numbers):
    affine, label = pir_affine(), five_levels()
    scan = save(tmp_path / "in" / "sub" / "case.v2_T2w.nii.gz", label.astype(np.float32), affine)
    loaded = LoadImaged("image", ensure_channel_first=True)({"image": scan})["image"]
    data = {"pred": MetaTensor(torch.from_numpy(label)[None], meta=loaded.meta)}
    returned = SaveImageLabelsd("pred", str(tmp_path / "out"), str(tmp_path / "in"), scheme)(data)
    np.testing.assert_array_equal(returned["pred"][0].numpy(), label)  # channel indices
    path = tmp_path / "out" / "sub" / "case.v2_T2w_seg.nii.gz"
    assert returned["pred"].meta["saved_to"] == str(path)
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]  # and no partial file
    written = nib.load(path)
    assert written.get_data_dtype() == np.uint8
    assert written.shape == label.shape
    values = np.asarray(written.dataobj)
    assert [int(values[3, 2 * i, 0]) for i in range(5)] == numbers
    np.testing.assert_array_equal(values, decode(label, scheme))
    assert (written.header["scl_slope"], written.header["scl_inter"]) in ((1, 0), (0, 0)) or np.isnan(written.header["scl_slope"])
    source = nib.load(scan)
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
    np.testing.assert_allclose(written.get_sform(), source.affine, atol=1e-4)
    np.testing.assert_allclose(written.get_qform(), source.affine, atol=1e-4)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(written.header.get_zooms(), (0.8, 0.9, 4.0), atol=1e-5)
    assert written.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("shape", [(10, 12, 1), (1, 12, 6), (10, 1, 6)])
def test_saved_mask_of_a_single_slice_is_three_dimensional(tmp_path, shape):
    label = five_levels(shape)
    data = {"pred": MetaTensor(torch.from_numpy(label)[None], affine=torch.from_numpy(pir_affine()), meta={"filename_or_obj": "a.nii"})}
    SaveImageLabelsd("pred", str(tmp_path))(data)
    written = nib.load(next(tmp_path.rglob("*_seg.nii.gz")))
    assert written.shape == shape
    np.testing.assert_array_equal(np.asarray(written.dataobj), decode(label, "verse"))
    np.testing.assert_allclose(written.affine, pir_affine(), atol=1e-4)


def test_saved_mask_with_a_path_of_spaces_and_umlauts(tmp_path):
    folder = tmp_path / "Wirbelsäule 腰椎"
    scan = save(folder / "in put" / "Müller (2).nii.gz", five_levels().astype(np.float32), pir_affine())
    loaded = LoadImaged("image", ensure_channel_first=True)({"image": scan})["image"]
    data = {"pred": MetaTensor(torch.from_numpy(five_levels())[None], meta=loaded.meta)}
    SaveImageLabelsd("pred", str(folder / "out put"), str(folder))(data)
    written = nib.load(folder / "out put" / "in put" / "Müller (2)_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), decode(five_levels(), "verse"))


def test_a_failed_write_leaves_the_old_mask(tmp_path, monkeypatch):
    scan = str(tmp_path / "a.nii.gz")
    save_mask = SaveImageLabelsd("pred", str(tmp_path), str(tmp_path))
    save_mask({"pred": label_tensor(five_levels(), scan)})

    def disk_full(image, path):
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_mask({"pred": label_tensor(np.zeros_like(five_levels()), scan)})
    assert [p.name for p in tmp_path.iterdir()] == ["a_seg.nii.gz"]
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a_seg.nii.gz").dataobj), decode(five_levels(), "verse"))


def test_save_refuses_an_unknown_scheme_before_the_first_scan(tmp_path):
    with pytest.raises(UserError, match=r"^label scheme 'bids' does not exist; choose one of verse, channel, spider, totalspineseg\.$"):
        SaveImageLabelsd("pred", str(tmp_path), label_scheme="bids")
