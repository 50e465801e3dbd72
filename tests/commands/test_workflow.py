"""The configs at work: training learns, evaluation scores what inference writes, and masks lie on the scans' own grids."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import re
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, EPOCHS, EVALUATE, INFERENCE, NO_AUGMENTATION, TRAIN, WORKING_GRID, run_bundle
from monai.data import MetaTensor
from monai.transforms import Compose
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.common.errors import UserError
from scripts.common.inference_config import inference_config
from scripts.common.tables import read_rows
from scripts.data.datalist import split_entries
from scripts.data.find import case_name
from scripts.data.volumes import read_volume
from scripts.labels import encode, label_table
from scripts.metrics import score_structures
from scripts.tools.measure import measure


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def infer(trained: Path, output_dir: Path, **options) -> None:
    run_bundle(INFERENCE, ckpt_path=str(trained / "model.pt"), output_dir=str(output_dir), **options)


@pytest.fixture(scope="module")
def masks(cohort, trained, tmp_path_factory) -> Path:
    """Run inference on the whole cohort and return its output_dir."""
    folder = tmp_path_factory.mktemp("masks")
    infer(trained, folder, dataset_dir=str(cohort))
    return folder


def test_training_learns_the_phantom(evaluated):
    groups = {row["group"]: row for row in json.loads((evaluated / "metrics.json").read_text())["by_source"]}
    assert groups["body"]["dice"] > 0.4
    assert groups["disc"]["dice"] > 0.4
    assert groups["all"]["identified"] > 0.5


def test_labels_with_a_fourth_axis_score_the_same(cohort, trained, evaluated, tmp_path):
    """Some tools write label maps as X x Y x Z x 1."""
    entry = split_entries(cohort / "datalist.json", cohort, "training")[0]
    label = nib.load(entry["label"])
    entry["label"] = str(tmp_path / "a_seg.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj)[..., None], label.affine), entry["label"])
    (tmp_path / "datalist.json").write_text(json.dumps({"validation": [entry]}))
    options = {"dataset_dir": str(cohort), "datalist": str(tmp_path / "datalist.json"), "allow_outside": True, "figures": False}
    run_bundle([TRAIN, EVALUATE], output_dir=str(tmp_path / "out"), ckpt_path=str(trained / "model.pt"), **options)
    rows, before = (list(csv.DictReader((folder / "metrics.csv").open())) for folder in (tmp_path / "out", evaluated))
    assert len(rows) > 4
    assert rows == [row for row in before if row["case"] == rows[0]["case"]]


def test_training_writes_what_it_promises(trained):
    state = torch.load(trained / "model.pt", weights_only=True)
    assert all(isinstance(v, torch.Tensor) and v.device.type == "cpu" for v in state.values())
    last = torch.load(trained / "last.pt", weights_only=True)
    assert last["trainer"]["iteration"] == EPOCHS
    assert last["best"]  # the best score so far
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    loss = [e.value for e in events.Scalars("loss")]
    assert len(loss) == EPOCHS
    assert np.mean(loss[-10:]) < 0.6 * np.mean(loss[:10])
    assert [e.step for e in events.Scalars("val_mean_dice")] == [EPOCHS // 2, EPOCHS]
    assert len(events.Tags()["images"]) == 1  # tensorboard_cases


def test_resume_goes_on_where_it_stopped(cohort, tmp_path):
    options = {"dataset_dir": str(cohort), "epochs": 2, "val_interval": 2}
    run_bundle(TRAIN, output_dir=str(tmp_path), **options)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["lr_scheduler"]["last_epoch"] == 2
    run_bundle(TRAIN, resume=str(tmp_path), **{**options, "epochs": 3})
    rates = [g["lr"] for g in torch.load(tmp_path / "last.pt", weights_only=True)["optimizer"]["param_groups"]]
    assert rates == [pytest.approx(2e-3)]  # after the last epoch, so that a federated client that runs on starts anew
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(events.Scalars("val_mean_dice")) == 2  # after epoch 2 and, though the interval is 2, after the last one
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 3
    with pytest.raises(UserError, match=r"last.pt: its run has done 3 epochs already; set --epochs above that"):
        run_bundle(TRAIN, resume=str(tmp_path), **{**options, "epochs": 3})


@pytest.mark.parametrize(("interval", "steps"), [(20, [2, 4]), (3, [2, 3, 4])])
def test_the_loss_is_logged_at_an_interval_and_after_every_epoch(cohort, tmp_path, monkeypatch, caplog, interval, steps):
    monkeypatch.setattr(logging.getLogger("monai.handlers.StatsHandler"), "handlers", [caplog.handler])
    run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path), epochs=2, batch_size=1, val_interval=2, log_interval=interval)
    logged = re.findall(r"Epoch: (\d)/2, Iter: (\d)/2 -- loss: \d", caplog.text)
    assert logged == [(str((step + 1) // 2), str(2 - step % 2)) for step in steps]


def test_a_resumed_run_with_more_epochs_still_learns(cohort, tmp_path):
    options = {"dataset_dir": str(cohort), "val_interval": 1}
    run_bundle(TRAIN, output_dir=str(tmp_path), epochs=1, **options)
    before = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    run_bundle(TRAIN, resume=str(tmp_path), epochs=3, **options)
    after = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    assert not torch.equal(before["fine.model.0.conv.unit0.conv.weight"], after["fine.model.0.conv.unit0.conv.weight"])


@pytest.mark.parametrize(("only", "network", "other"), [("outlines", "fine.", "coarse."), ("levels", "coarse.", "fine.")])
def test_one_network_can_be_trained_alone(cohort, trained, tmp_path, only, network, other):
    options = {"pretrained": str(trained / "model.pt"), "train_only": only, "epochs": 1, "val_interval": 1}
    run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path), **options)
    before, after = (torch.load(path, weights_only=True) for path in (trained / "model.pt", tmp_path / "last.pt"))
    same = {name: torch.equal(t.float(), after["model"][name]) for name, t in before.items()}
    assert all(same[name] for name in same if name.startswith(other))
    assert not any(same[name] for name in same if name.startswith(network) and name.endswith("conv.weight"))


def with_unknown_value(label: nib.Nifti1Image) -> nib.Nifti1Image:
    values = np.asarray(label.dataobj)
    return nib.Nifti1Image(np.where(values == 22, 99, values).astype(np.uint8), label.affine)


def with_fractions(label: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(label.dataobj) * np.float32(0.5), label.affine)


def on_another_grid(label: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.asarray(label.dataobj), label.affine @ np.diag([1, 1, 1.1, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_unknown_value, r"bad_seg.nii.gz: unknown label values \[99\]"),
        (with_fractions, r"bad_seg.nii.gz: fractional label values"),
        (on_another_grid, r"bad_seg.nii.gz: not on the grid of"),
    ],
)
def test_bad_labels_end_the_training_before_it_begins(cohort, tmp_path, change, message):
    entries = json.loads((cohort / "datalist.json").read_text())
    label = nib.load(cohort / entries["training"][1]["label"])
    nib.save(change(label), tmp_path / "bad_seg.nii.gz")
    entries["training"][1]["label"] = str(tmp_path / "bad_seg.nii.gz")
    (tmp_path / "list.json").write_text(json.dumps(entries))
    options = {"datalist": str(tmp_path / "list.json"), "allow_outside": True}
    with pytest.raises(UserError, match=message):
        run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path / "out"), epochs=1, **options)


def test_postprocessing_without_a_loader(cohort):
    """MONAI Deploy drops LoadImage and SaveImage steps and passes an array with its affine alone."""
    parser = inference_config(str(BUNDLE), **WORKING_GRID)
    scan = nib.load(next((cohort / "testing").glob("*w.nii.gz")))
    keep = [
        [t for t in parser.get_parsed_content(key).transforms if type(t).__name__[:9] not in ("LoadImage", "SaveImage")]
        for key in ("preprocessing", "postprocessing")
    ]
    image = MetaTensor(np.asarray(scan.dataobj).astype(np.float32), affine=scan.affine)
    data = Compose(keep[0])({"image": image})
    pred = torch.zeros(24, *data["image"].shape[1:])
    pred[0] = 6
    pred[8, 4:8, 10:30, 20:40] = 9
    label = Compose(keep[1])({**data, "pred": pred})["pred"]
    assert label.shape == (1, *scan.shape)
    np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)
    assert np.unique(label).tolist() == [0, 8]


def test_early_stop(cohort, tmp_path):
    run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path), epochs=9, val_interval=1, patience=2, learning_rate=0.0)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 3  # validations 2 and 3 are no better


def test_fine_tuning_starts_from_the_weights(cohort, trained, tmp_path):
    weights = str(trained / "model.pt")
    run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path), epochs=1, val_interval=1, pretrained=weights, learning_rate=0.0)
    before, after = (torch.load(folder / "model.pt", weights_only=True) for folder in (trained, tmp_path))
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_two_trainings_are_equal(cohort, tmp_path):
    for name in "ab":
        run_bundle(TRAIN, dataset_dir=str(cohort), output_dir=str(tmp_path / name), epochs=1, val_interval=1)
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_evaluation_equals_scoring_the_masks_of_inference(cohort, evaluated, masks):
    with (evaluated / "metrics.csv").open() as handle:
        reported = {(r["case"], r["structure"]): r for r in csv.DictReader(handle)}
    scored = 0
    for entry in split_entries(cohort / "datalist.json", cohort, "training"):
        label, mask = nib.load(entry["label"]), nib.load(masks / "training" / f"{case_name(entry['image'])}_seg.nii.gz")
        same = evaluated / "training" / f"{case_name(entry['image'])}_seg.nii.gz"
        np.testing.assert_array_equal(mask.dataobj, nib.load(same).dataobj)
        rows = score_structures(encode(np.asarray(label.dataobj)), encode(np.asarray(mask.dataobj)), label.header.get_zooms())
        for row in rows:
            saved = reported[case_name(entry["image"]), row["structure"]]
            assert float(saved["dice"]) == pytest.approx(row["dice"], abs=1e-6)
            assert float(saved["level_dice"]) == pytest.approx(row["level_dice"], abs=1e-6)
            assert float(saved["asd_mm"] or "inf") == pytest.approx(row["asd_mm"], abs=1e-3)
            scored += 1
    assert scored == len(reported)


def test_measure_tells_of_its_masks_what_inference_has_told(masks, tmp_path):
    measure(masks, tmp_path)
    for name, measured, of_network in (
        ("structures.csv", "measures.csv", {"mean_entropy", "vote"}),
        ("spines.csv", "measured_spines.csv", set()),
    ):
        told = [{k: v for k, v in row.items() if k not in of_network} for row in read_rows(masks / name)]
        assert len(told) >= 6
        assert [{k: v for k, v in row.items() if k in told[0]} for row in read_rows(tmp_path / measured)] == told


def test_masks_lie_on_the_scans_grids(cohort, masks):
    scans = list(cohort.rglob("*w.nii.gz"))
    assert len(scans) == 6
    orders = set()
    for path in scans:
        scan, mask = nib.load(path), nib.load(masks / path.parent.name / f"{case_name(path)}_seg.nii.gz")
        assert mask.shape == scan.shape
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
        np.testing.assert_allclose(mask.header.get_qform(), scan.affine, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        assert np.abs(scan.affine[:3, :3]).min() > 1e-3  # oblique
        orders.add(nib.aff2axcodes(scan.affine))
    assert len(orders) > 1
    assert len(list(masks.rglob("*.png"))) == 6
    assert not list(masks.rglob("*partial*"))


def test_inference_leaves_its_input_alone(cohort, trained, tmp_path):
    before = digests(cohort)
    infer(trained, tmp_path, dataset_dir=str(cohort), datalist=str(cohort / "datalist.json"), split="testing", figures=False)
    assert digests(cohort) == before
    assert len(list(tmp_path.rglob("*_seg.nii.gz"))) == 2
    assert not list(tmp_path.rglob("*.png"))


def test_output_beside_the_input_is_not_taken_for_input(cohort, trained, tmp_path):
    scan = next((cohort / "testing").glob("*w.nii.gz"))
    (tmp_path / scan.name).write_bytes(scan.read_bytes())
    for _ in range(2):
        infer(trained, tmp_path, dataset_dir=str(tmp_path), figures=False)
    written = [f"{case_name(scan)}_seg.json", f"{case_name(scan)}_seg.nii.gz", "spines.csv", "structures.csv", "overview.html"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([scan.name, *written])


@pytest.mark.parametrize("scheme", ["channel", "spider", "totalspineseg"])
def test_label_scheme_changes_the_numbers_only(cohort, trained, masks, tmp_path, scheme):
    scan = next((cohort / "testing").glob("*w.nii.gz"))
    infer(trained, tmp_path, image=str(scan), dataset_dir=str(scan.parent), label_scheme=scheme, figures=False)
    name = f"{case_name(scan)}_seg.nii.gz"
    verse, other = (np.asarray(nib.load(f / name).dataobj) for f in (masks / "testing", tmp_path))
    if scheme == "channel":
        np.testing.assert_array_equal(other, encode(verse))
    elif scheme == "totalspineseg":
        pairs = set(zip(verse[verse > 0].tolist(), other[verse > 0].tolist()))
        assert pairs <= {(s.verse, s.totalspineseg) for s in label_table()}
        assert len(pairs) > 4
    else:
        pairs = set(zip(verse[verse > 0].tolist(), other[verse > 0].tolist()))
        assert len(pairs) == len(set(verse[verse > 0].tolist())) > 4
        assert set(other[verse == 26].tolist()) <= {0}


PATIENT = "Mustermann^Erika"


def write_as(folder: Path, kind: str, scan: nib.Nifti1Image, series_number: int = 1) -> Path:
    """Write the scan as MetaImage, NRRD or DICOM series with ITK (world LPS)."""
    image = itk.image_from_array(np.ascontiguousarray(np.asarray(scan.dataobj).T.astype(np.int16)))
    lps = np.diag([-1, -1, 1]) @ scan.affine[:3]
    spacing = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:, :3] / spacing)))
    if kind != "dicom":
        path = folder / f"scan{kind}"
        itk.imwrite(image, str(path))
        return path
    series = folder / "series"
    series.mkdir()
    for i in range(scan.shape[2]):
        slice_2d = itk.image_from_array(np.ascontiguousarray(np.asarray(scan.dataobj)[:, :, i].T.astype(np.int16)))
        slice_2d.SetSpacing(spacing[:2].tolist())
        tags = slice_2d.GetMetaDataDictionary()
        tags["0008|0016"] = "1.2.840.10008.5.1.4.1.1.4"  # MR image storage
        tags["0008|0060"] = "MR"
        tags["0010|0010"] = PATIENT
        tags["0020|000e"] = f"1.2.826.0.1.3680043.2.1125.1.{series_number}"  # series
        tags["0020|000d"] = "1.2.826.0.1.3680043.2.1125.2"  # study
        tags["0020|0013"] = str(i + 1)
        tags["0018|0050"] = f"{spacing[2]:.6f}"
        tags["0020|0032"] = "\\".join(f"{v:.6f}" for v in lps[:, 3] + i * lps[:, 2])
        tags["0020|0037"] = "\\".join(f"{v:.8f}" for v in (lps[:, :2] / spacing[:2]).T.ravel())
        dicom = itk.GDCMImageIO.New(KeepOriginalUID=True)
        itk.ImageFileWriter.New(slice_2d, FileName=str(series / f"{i:03}.dcm"), ImageIO=dicom, UseInputMetaDataDictionary=True).Update()
    return series


@pytest.mark.parametrize("kind", [".mha", ".nrrd", "dicom"])
def test_every_format_gives_the_same_mask(cohort, trained, masks, tmp_path, kind, capfd):
    source = next(p for p in sorted((cohort / "testing").glob("*w.nii.gz")))
    scan = nib.load(source)
    path = write_as(tmp_path, kind, scan)
    infer(trained, tmp_path / "out", dataset_dir=str(tmp_path))
    written = [gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in (tmp_path / "out").iterdir()]
    assert len(written) == 6  # mask, figure, report, two tables, overview
    assert not any(name in content for content in [*written, "".join(capfd.readouterr()).encode()] for name in (b"Mustermann", b"Erika"))
    mask = nib.load(tmp_path / "out" / f"{case_name(path)}_seg.nii.gz")
    expected = nib.load(masks / "testing" / f"{case_name(source)}_seg.nii.gz")
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-3)
    assert np.mean(np.asarray(mask.dataobj) == np.asarray(expected.dataobj)) > 0.999


def test_two_series_in_one_folder_are_not_taken_for_one(cohort, tmp_path):
    scan = nib.load(min((cohort / "testing").glob("*w.nii.gz"))).slicer[:, :, :3]
    folders = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        folders.append(write_as(tmp_path / str(number), "dicom", scan, number))
    assert read_volume(folders[0]).data.shape == scan.shape
    for path in folders[1].iterdir():
        path.rename(folders[0] / f"second_{path.name}")
    with pytest.raises(UserError, match=r"series: holds 2 DICOM series \(.*\)\. Convert the folder with dcm2niix, or move"):
        read_volume(folders[0])


def test_missing_weights_are_named(cohort, tmp_path):
    with pytest.raises(
        UserError, match=r"none.pt: no weights there. Train some with configs/train.yaml, or set --ckpt_path to a model.pt."
    ):
        run_bundle(INFERENCE, dataset_dir=str(cohort), ckpt_path=str(tmp_path / "none.pt"), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


REAL = BUNDLE.parent / "shared" / "data"


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data")
def test_partly_labelled_real_scans_train(tmp_path):
    datalist = json.loads((REAL / "datalist.json").read_text())
    first = {e["source"]: e for e in datalist["training"]}
    (tmp_path / "datalist.json").write_text(json.dumps({"training": list(first.values()), "validation": datalist["validation"][:1]}))
    options = {"datalist": str(tmp_path / "datalist.json"), "epochs": 6, "val_interval": 6, **NO_AUGMENTATION}
    run_bundle(TRAIN, dataset_dir=str(REAL), output_dir=str(tmp_path / "out"), **options)
    loss = [e.value for e in EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload().Scalars("loss")]
    assert np.isfinite(loss).all()
    assert np.mean(loss[-2:]) < np.mean(loss[:2])
