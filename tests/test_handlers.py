"""Exact output of the handlers, attached to a bare Ignite engine."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import fails
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents

from scripts import figures, handlers
from scripts.common.errors import UserError
from scripts.data.volumes import Volume
from scripts.handlers import CaseFigures, CaseReports, StructureReport, format_table
from scripts.labels import structure

L1, L2, DISC = (structure(name).channel for name in ("L1", "L2", "L1/L2"))
AFFINE = np.array([[0, 0, 3.0, -10], [-0.8, 0, 0, 5], [0, -1.2, 0, 40], [0, 0, 0, 1]])  # PIR, 0.8 x 1.2 x 3 mm


def boxes(*rows: tuple[int, slice]) -> np.ndarray:
    label = np.zeros((12, 30, 6), np.uint8)
    for channel, y in rows:
        label[3:9, y, 1:5] = channel
    return label


def meta_tensor(data: np.ndarray, path: str) -> MetaTensor:
    return MetaTensor(torch.from_numpy(data)[None], affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": path})


def step(path: str, predicted: np.ndarray, reference: np.ndarray | None = None, **extra: str) -> tuple[list[dict], list[dict]]:
    """Return batch and output of one iteration, as MONAI's evaluators hold them after `decollate`."""
    batch = {"image": meta_tensor(np.zeros((2, 2, 2), np.float32), path), **extra}
    output = {"pred": meta_tensor(predicted, path)}
    if reference is not None:
        output["label"] = meta_tensor(reference, path)
    return [batch], [output]


def run(handler, steps: list[tuple[list[dict], list[dict]]], epochs: int = 1) -> Engine:
    outputs = iter([output for _ in range(epochs) for _, output in steps])

    def step(engine: Engine, batch: list[dict]) -> list[dict]:
        engine.state.output = next(outputs)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    handler.attach(engine)
    engine.run([batch for batch, _ in steps], max_epochs=epochs)
    return engine


# format_table


def test_format_table():
    rows = [
        {"structure": "L1", "scans": 3, "dice": 0.91234, "asd_mm": 0.456, "missed": 0},
        {"structure": "L1/L2", "scans": 12, "dice": 1.0, "asd_mm": None, "missed": 2},
        {"structure": "all", "scans": 12, "dice": 0.5, "asd_mm": 10.0, "missed": 2},
    ]
    assert format_table(rows) == (
        "structure  scans   dice  asd_mm  missed\n"
        "L1             3  0.912    0.46       0\n"
        "L1/L2         12  1.000       -       2\n"
        "all           12  0.500   10.00       2"
    )


def test_format_table_with_words_last_and_a_missing_number_first():
    rows = [{"asd_mm": None, "source": "a"}, {"asd_mm": 12.375, "source": "spider"}]
    assert format_table(rows) == "asd_mm  source\n     -  a\n 12.38  spider"


# StructureReport

WEIGHTS = __file__  # any file
PERFECT = boxes((L1, slice(2, 10)), (DISC, slice(10, 13)))
HEADER = "case,source,structure,group,dice,level_dice,asd_mm,hd95_mm,identified\r\n"


def test_report(tmp_path, capsys):
    steps = [
        step("/data/a/sub-01.v2_T2w.nii.gz", PERFECT, PERFECT, source="spider"),
        step("/data/b/sub-02.mha", boxes((L2, slice(2, 10))), PERFECT),  # wrong level, no disc; no source
    ]
    run(StructureReport(str(tmp_path / "out"), WEIGHTS), steps)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.csv", "metrics.json"]
    assert (tmp_path / "out" / "metrics.csv").read_bytes().decode() == HEADER + (
        "sub-01.v2_T2w,spider,L1,body,1.0,1.0,0.0,0.0,1.0\r\n"
        "sub-01.v2_T2w,spider,L1/L2,disc,1.0,1.0,0.0,0.0,1.0\r\n"
        "sub-02,,L1,body,1.0,0.0,0.0,0.0,0.0\r\n"
        "sub-02,,L1/L2,disc,0.0,0.0,,,0.0\r\n"
    )
    summary = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(summary) == ["by_structure", "by_source", "measures", "worst_cases", "scans_sha256", "weights_sha256"]
    assert summary["weights_sha256"] == hashlib.sha256(Path(WEIGHTS).read_bytes()).hexdigest()
    assert summary["scans_sha256"] == hashlib.sha256(b"a/sub-01.v2_T2w.nii.gz\nb/sub-02.mha").hexdigest()
    assert [(c["case"], c["level_dice"], c["worst_structure"]) for c in summary["worst_cases"]] == [
        ("sub-02", 0.0, "L1"),
        ("sub-01.v2_T2w", 1.0, "L1"),
    ]
    everything = {
        "scans": 2,
        "n": 4,
        "dice": 0.75,
        "dice_sd": pytest.approx(np.sqrt(3) / 4),
        "level_dice": 0.5,
        "asd_mm": 0.0,
        "hd95_mm": 0.0,
        "missed": 1,
        "identified": 0.5,
        "all_levels": 0.5,
    }
    assert summary["by_structure"][-1] == {"structure": "all", **everything}
    assert summary["by_source"][-1] == {"source": "all", "group": "all", **everything}
    assert [s["structure"] for s in summary["by_structure"]] == ["L1", "L1/L2", "all"]
    keys = [(s["source"], s["group"]) for s in summary["by_source"]]
    assert keys == [("", "body"), ("", "disc"), ("spider", "body"), ("spider", "disc"), ("all", "all")]
    assert summary["by_source"][1]["asd_mm"] is None
    tables, measures = capsys.readouterr().out.split("\ngroup  measure")
    assert tables == (
        "\n"
        "structure  scans  n   dice  dice_sd  level_dice  asd_mm  hd95_mm  missed  identified  all_levels\n"
        "L1             2  2  1.000    0.000       0.500    0.00     0.00       0       0.500       0.500\n"
        "L1/L2          2  2  0.500    0.500       0.500    0.00     0.00       1       0.500       0.500\n"
        "all            2  4  0.750    0.433       0.500    0.00     0.00       1       0.500       0.500\n"
        "\n"
        "source  group  scans  n   dice  dice_sd  level_dice  asd_mm  hd95_mm  missed  identified  all_levels\n"
        "        body       1  1  1.000    0.000       0.000    0.00     0.00       0       0.000       0.000\n"
        "        disc       1  1  0.000    0.000       0.000       -        -       1       0.000       0.000\n"
        "spider  body       1  1  1.000    0.000       1.000    0.00     0.00       0       1.000       1.000\n"
        "spider  disc       1  1  1.000    0.000       1.000    0.00     0.00       0       1.000       1.000\n"
        "all     all        2  4  0.750    0.433       0.500    0.00     0.00       1       0.500       0.500\n"
    )
    assert measures.endswith(f"\n\n{tmp_path / 'out' / 'metrics.csv'}\n{tmp_path / 'out' / 'metrics.json'}\n")


def test_report_measures_in_mm_of_the_label(tmp_path):
    run(StructureReport(str(tmp_path), WEIGHTS), [step("a.nii", boxes((L1, slice(4, 12))), boxes((L1, slice(2, 10))))])
    values = (tmp_path / "metrics.csv").read_text().splitlines()[1].split(",")
    assert float(values[4]) == pytest.approx(0.75)
    assert float(values[7]) == pytest.approx(2 * 1.2)  # hd95: two voxels along the axis of 1.2 mm


def test_report_starts_anew_with_every_run(tmp_path):
    report = StructureReport(str(tmp_path), WEIGHTS)
    run(report, [step("a.nii", PERFECT, PERFECT)])
    run(report, [step("b.nii", PERFECT, PERFECT)])
    assert [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == ["case", "b", "b"]


def test_report_of_a_batch_of_two(tmp_path):
    (first, one), (second, two) = step("a.nii", PERFECT, PERFECT), step("b.nii", PERFECT, PERFECT)
    run(StructureReport(str(tmp_path), WEIGHTS), [(first + second, one + two)])
    assert [line.split(",")[0] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == ["case", "a", "a", "b", "b"]


def test_report_of_a_scan_with_labels_of_two_raters(tmp_path):
    steps = [step("a.nii", PERFECT, PERFECT, source="first"), step("a.nii", PERFECT, boxes((L1, slice(2, 10))), source="second")]
    for (_, (output,)), rater in zip(steps, "12"):
        output["label"].meta["filename_or_obj"] = f"a_{rater}.nii"
    run(StructureReport(str(tmp_path), WEIGHTS), steps)
    rows = [line.split(",")[1:3] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert rows == [["first", "L1"], ["first", "L1/L2"], ["second", "L1"]]


def test_report_of_measures(tmp_path, capsys):
    """Two bodies of 26 mm; the network has drawn the upper one 2 mm lower, and another label cuts it off."""
    label = np.zeros((20, 46, 90), np.uint8)
    label[3:17, 5:41, 10:36], label[3:17, 5:41, 46:72] = L2, L1
    predicted = label.copy()
    predicted[..., 70:72] = 0
    affine = torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    both = [MetaTensor(torch.from_numpy(a)[None], affine=affine, meta={"filename_or_obj": "a.nii"}) for a in (predicted, label)]
    batch = {"image": meta_tensor(np.zeros((2, 2, 2), np.float32), "a.nii")}
    run(StructureReport(str(tmp_path), WEIGHTS), [([batch], [{"pred": both[0], "label": both[1]}])])
    measures = {row["measure"]: row for row in json.loads((tmp_path / "metrics.json").read_text())["measures"] if row["group"] == "body"}
    assert measures["anterior_height_mm"]["n"] == 2
    assert measures["anterior_height_mm"]["bias"] == pytest.approx(-1, abs=0.15)
    assert measures["anterior_height_mm"]["max_error"] == pytest.approx(2, abs=0.2)
    assert "anterior_height_mm" in capsys.readouterr().out
    both[0].meta["report"] = {"structures": [{"name": "L1", "cut_by_view": ["superior"]}]}
    run(StructureReport(str(tmp_path), WEIGHTS), [([batch], [{"pred": both[0], "label": both[1]}])])
    measures = {row["measure"]: row for row in json.loads((tmp_path / "metrics.json").read_text())["measures"] if row["group"] == "body"}
    assert measures["anterior_height_mm"]["n"] == 1


def test_report_leaves_out_what_the_reference_lacks(tmp_path):
    run(StructureReport(str(tmp_path), WEIGHTS), [step("a.nii", PERFECT, boxes((DISC, slice(10, 13)))), step("b.nii", PERFECT, boxes())])
    assert (tmp_path / "metrics.csv").read_text() == HEADER.replace("\r\n", "\n") + "a,,L1/L2,disc,1.0,1.0,0.0,0.0,1.0\n"


def test_report_of_empty_references(tmp_path):
    with pytest.raises(UserError, match=r"^nothing to score: no label of this split holds a structure$"):
        run(StructureReport(str(tmp_path), WEIGHTS), [step("a.nii", PERFECT, boxes())])
    assert list(tmp_path.iterdir()) == []


# CaseFigures


class Writer:
    """Stand-in for TensorBoard's SummaryWriter."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def add_image(self, tag, image, step, dataformats):
        self.calls.append((tag, image, step, dataformats))


@pytest.fixture
def scans(tmp_path) -> list[str]:
    image = np.random.default_rng(0).uniform(0, 100, (12, 30, 6)).astype(np.float32)
    paths = [tmp_path / "in" / "site 1" / "sub-01.v2_T2w.nii.gz", tmp_path / "in" / "site 2" / "sub-01.v2_T2w.nii.gz"]
    for path in paths:
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(image, AFFINE), path)
    return [str(path) for path in paths]


def test_figures_stand_beside_the_masks(tmp_path, scans):
    from matplotlib.image import imread

    run(CaseFigures(str(tmp_path / "out"), str(tmp_path / "in")), [step(scans[0], PERFECT), step(scans[1], PERFECT, PERFECT)])
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert written == ["site 1/sub-01.v2_T2w_seg.png", "site 2/sub-01.v2_T2w_seg.png"]
    pictures = [imread(tmp_path / "out" / name) for name in written]
    assert all(p.ndim == 3 and p.shape[1] >= 6 * figures.DPI for p in pictures)
    assert pictures[0].shape != pictures[1].shape or not np.array_equal(*pictures)  # the second shows the reference too


def test_a_title_tells_patients_apart():
    handler = CaseFigures("/out", "/data")
    names = {"/data/a_T2w.nii.gz": "a_T2w", "/data/P1/T2/scan.nii": "P1/T2/scan", "/data/P2/series": "P2/series", "/other/b.mha": "b"}
    assert {path: handler.title_of(path) for path in names} == names


def test_figures_get_the_scan_the_map_and_the_reference(tmp_path, scans, monkeypatch):
    calls = []
    monkeypatch.setattr(figures, "case_figure", lambda *a, **k: calls.append((a, k)))
    handler = CaseFigures()
    steps = [step(scans[0], PERFECT), step(scans[1], PERFECT, boxes((L2, slice(2, 10))))]
    steps[1][1][0]["pred"].meta["report"] = {"uncertain": True, "sequence_probability": 0.456, "structures": []}
    run(handler, steps)
    (image, prediction, affine), keywords = calls[0]
    np.testing.assert_array_equal(image, np.asarray(nib.load(scans[0]).dataobj))  # from the file, not from the batch
    np.testing.assert_array_equal(prediction, PERFECT)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    assert keywords == {"reference": None, "title": "sub-01.v2_T2w", "note": "", "warnings": ()}
    assert calls[1][1]["note"] == "1 warning"  # that the mask is empty
    np.testing.assert_array_equal(calls[1][1]["reference"], boxes((L2, slice(2, 10))))
    assert not (tmp_path / "out").exists()  # without an output_dir nothing is written
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["in"]


def test_summary_writer_gets_pixels_at_the_epoch(scans):
    writer = Writer()
    run(CaseFigures(summary_writer=writer, max_cases=1), [step(path, PERFECT, PERFECT) for path in scans])
    ((tag, image, epoch, dataformats),) = writer.calls
    assert (tag, epoch, dataformats) == ("sub-01.v2_T2w", 1, "HWC")
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.shape[1] >= 6 * figures.DPI
    assert image.max() > 200
    assert image.min() < 30


def test_max_cases_counts_per_run(scans, monkeypatch):
    monkeypatch.setattr(figures, "case_figure", lambda *a, **k: None)
    monkeypatch.setattr(figures, "figure_to_array", lambda figure: None)
    writer = Writer()
    handler = CaseFigures(summary_writer=writer, max_cases=2)
    (first, one), (second, two) = step(scans[0], PERFECT), step(scans[1], PERFECT)
    run(handler, [(first + second, one + two), (first, one)])
    assert len(writer.calls) == 2
    run(handler, [(first, one)])
    assert len(writer.calls) == 3
    run(CaseFigures(summary_writer=writer, max_cases=0), [(first, one)])
    assert len(writer.calls) == 3


def test_figures_of_scans_with_one_stem_have_names_of_their_own(scans, monkeypatch):
    monkeypatch.setattr(figures, "case_figure", lambda *a, **k: None)
    monkeypatch.setattr(figures, "figure_to_array", lambda figure: None)
    writer = Writer()
    run(CaseFigures(summary_writer=writer), [step(path, PERFECT) for path in scans], epochs=2)
    names = ["sub-01.v2_T2w", "site 2/sub-01.v2_T2w"]
    assert [(tag, epoch) for tag, _, epoch, _ in writer.calls] == [(name, epoch) for epoch in (1, 2) for name in names]
    handler = CaseFigures()
    assert [handler.name_of(f"/d/{name}") for name in ("a/s/t.nii", "b/s/t.nii", "c/s/t.nii", "c/s/t.mha", "a/s/t.nii")] == [
        "t", "s/t", "c/s/t", "d/c/s/t", "t",
    ]  # fmt: skip


# CaseReports


@pytest.fixture
def stored(monkeypatch) -> list[str]:
    """Let every scan have the grid of the mask; return the list of scans that were read."""
    were_read = []
    scan = Volume(np.zeros((4, 4, 4), np.float32), AFFINE, "float32")
    monkeypatch.setattr(handlers, "read_scan", lambda path: were_read.append(path) or scan)
    return were_read


def reported(path: str, rows: list[dict], **naming) -> tuple[list[dict], list[dict]]:
    """Return one iteration whose prediction carries a report; three voxels of 2.88 mm3 are L1."""
    predicted = np.zeros((4, 4, 4), np.uint8)
    predicted[0, 0, :3] = L1
    batch, (output,) = step(path, predicted)
    defaults = {"sequence_probability": 0.95, "uncertain": False, "runner_up": ["L5"], "runner_up_probability": 0.05}
    output["pred"].meta["report"] = {**defaults, **naming, "structures": rows}
    return batch, [output]


def written(mask: Path, content: bytes = b"a mask") -> None:
    mask.parent.mkdir(exist_ok=True)
    mask.write_bytes(content)


def test_case_report_of_an_uncertain_scan(stored, tmp_path, capsys):
    rows = [{"name": "L1", "vote": 0.5}, {"name": "L2", "vote": 0.5}]
    iteration = reported("/data/a/x_T2w.nii.gz", rows, sequence_probability=0.456, uncertain=True)
    written(tmp_path / "a" / "x_T2w_seg.nii.gz")
    run(CaseReports(str(tmp_path), "/data"), [iteration])
    report = json.loads((tmp_path / "a" / "x_T2w_seg.json").read_text())
    assert [s["volume_mm3"] for s in report["structures"]] == [8.6]  # L2 was cleaned away
    assert report["runner_up"] == ["L5"]
    assert rows == [{"name": "L1", "vote": 0.5}, {"name": "L2", "vote": 0.5}]
    assert capsys.readouterr().out.splitlines() == [
        "/data/a/x_T2w.nii.gz: the levels are uncertain (no S1 in the mask): perhaps L5? If so, rename --lowest L5 --lumbar 5",
        "/data/a/x_T2w.nii.gz: unusual: L1 (volume_mm3 9). A disease, or an outline that has failed? Look at the picture",
        f"{tmp_path}/overview.html: 1 mask, 1 with warnings",
    ]


def test_a_report_tells_of_the_mask_that_its_run_has_written(stored, tmp_path):
    """Another run may have replaced the mask since."""
    iteration = reported("/data/x.nii.gz", [{"name": "L1"}])
    iteration[1][0]["pred"].meta["mask_sha256"] = "of my own mask"
    written(tmp_path / "x_seg.nii.gz", b"that of somebody else")
    run(CaseReports(str(tmp_path), "/data"), [iteration])
    assert json.loads((tmp_path / "x_seg.json").read_text())["mask_sha256"] == "of my own mask"


def test_tables_of_all_scans(stored, tmp_path):
    found = [{"name": "L1", "vote": 0.9, "cut_by_view": ["superior", "left"], "measures": {"wedge_deg": -1.5, "height_loss_grade": 0}}]
    spine = {"cobb_deg": 3.25, "cobb_levels": "L1-L4"}
    steps = [reported("/data/a/x_T2w.nii.gz", found), reported("/data/y.nii.gz", [], sequence_probability=0.0)]
    steps[0][1][0]["pred"].meta["report"]["spine"] = spine
    steps[0][1][0]["pred"].meta["label_scheme"] = "verse"
    handler = CaseReports(str(tmp_path), "/data")
    for name in ("a/x_T2w_seg.nii.gz", "y_seg.nii.gz"):
        written(tmp_path / name)
    run(handler, steps)
    written(tmp_path / "y_seg.nii.gz", b"edited")
    (tmp_path / "z_seg.json").write_text((tmp_path / "y_seg.json").read_text())  # its mask is gone
    shutil.copytree(tmp_path / "a", tmp_path / ".trash")
    run(handler, steps[:1])  # the row of the other mask comes from its report
    assert (tmp_path / "structures.csv").read_text().splitlines() == [
        "mask,edited_since,label_scheme,sequence_probability,uncertain,named_by_hand,"
        "name,value,vote,cut_by_view,volume_mm3,centre_x_mm,centre_y_mm,centre_z_mm,wedge_deg,height_loss_grade",
        "a/x_T2w_seg.nii.gz,False,verse,,False,False,L1,20,0.9,superior left,8.6,-7.0,5.0,40.0,-1.5,0",
        "y_seg.nii.gz,True,,0.0,False,False,,,,,,,,,,",  # nothing found in it
    ]
    assert (tmp_path / "spines.csv").read_text().splitlines() == [
        "mask,edited_since,scan,label_scheme,sequence_probability,uncertain,named_by_hand,cobb_deg,cobb_levels,warnings",
        "a/x_T2w_seg.nii.gz,False,/data/a/x_T2w.nii.gz,verse,,False,False,3.25,L1-L4,",  # without S1 no probability
        "y_seg.nii.gz,True,/data/y.nii.gz,,0.0,False,False,,,no vertebra and no disc was found: the mask is empty",
    ]
    report = json.loads((tmp_path / "a" / "x_T2w_seg.json").read_text())
    assert report["structures"][0]["measures"] == found[0]["measures"]
    assert report["spine"] == spine
    assert report["label_scheme"] == "verse"


def test_a_scan_is_read_once_for_figure_and_report_and_not_kept(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "case_figure", lambda *a, **k: None)
    monkeypatch.setattr(figures, "save_figure", lambda *a, **k: None)
    batch, output = reported("/data/y.nii.gz", [{"name": "L1", "vote": 1.0}])
    for handler in (CaseFigures(str(tmp_path), "/data"), CaseReports(str(tmp_path), "/data")):
        run(handler, [(batch, output)])
    assert stored == ["/data/y.nii.gz"]
    assert not {"volume", "report"} & batch[0].keys()


@pytest.mark.parametrize("name", ["structures.csv", "spines.csv"])
def test_tables_that_a_spreadsheet_has_saved_with_semicolons(tmp_path, name):
    (tmp_path / name).write_text("mask;name\na_seg.nii.gz;L1\n")
    with fails(f"{tmp_path}/{name}: no column 'mask'. Save it with commas, or move it away."):
        run(CaseReports(str(tmp_path), "/data"), [reported("/data/y.nii.gz", [])])
    assert [p.name for p in tmp_path.iterdir()] == [name]  # found before any work was done
    assert (tmp_path / name).read_text() == "mask;name\na_seg.nii.gz;L1\n"
