"""A messy folder: every good scan gets its mask, every bad one a line, and nothing is done twice or by halves."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from conftest import failures, files, infer, last_line

from scripts import handlers, transforms
from scripts.common.files import write_whole
from scripts.common.tables import read_rows
from scripts.data import masks
from scripts.data.scans import read_scan


def write_bad(folder: Path, scan: nib.Nifti1Image) -> dict[str, str]:
    """Write one file per fault; return a part of the reason by file."""
    voxels, affine = np.asarray(scan.dataobj).astype(np.float32), scan.affine

    def save(name: str, data: np.ndarray, **header) -> None:
        image = nib.Nifti1Image(data, header.get("affine", affine))
        for key, value in header.items():
            if key != "affine":
                image.header[key] = value
        nib.save(image, folder / name)

    def without_affine(name: str, value: float) -> None:
        """Fill the affine with one value by changing bytes of the header, because nibabel refuses to write that."""
        save(name, voxels)
        content = bytearray((folder / name).read_bytes())
        content[280:328] = np.full(12, value, "<f4").tobytes()
        (folder / name).write_bytes(content)

    save("cut.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)))
    (folder / "cut.nii.gz").write_bytes((folder / "cut.nii.gz").read_bytes()[:20000])
    (folder / "empty.nii.gz").touch()
    (folder / "text.nii.gz").write_text("no scan")
    (folder / "link.nii.gz").symlink_to(folder / "nowhere.nii.gz")
    save("flat.nii.gz", voxels[..., 6])
    save("colour.nii.gz", np.zeros((8, 8, 8), np.dtype([(c, "u1") for c in "RGB"])))
    save("five.nii.gz", np.zeros((4, 4, 4, 1, 3), np.float32))
    save("constant.nii.gz", np.full((8, 8, 8), 7, np.int16))
    save("all_nan.nii.gz", np.full((8, 8, 8), np.nan, np.float32))
    save("thick.nii.gz", voxels, affine=affine @ np.diag([1, 1, 50 / np.linalg.norm(affine[:3, 2]), 1]))
    save("metres.nii.gz", voxels, affine=np.diag([0.001, 0.001, 0.001, 1]) @ affine)
    save("huge.nii.gz", np.arange(400 * 4 * 4, dtype=np.int16).reshape(400, 4, 4), affine=np.diag([8.0, 1, 1, 1]))
    (folder / "short.nii").write_bytes(nib.Nifti1Image(np.zeros((900, 900, 900), np.int8), affine).to_bytes()[:5000])
    without_affine("zero_affine.nii", 0)
    without_affine("nan_affine.nii", np.nan)
    return {
        "cut.nii.gz": "cannot be read (Compressed file ended", "empty.nii.gz": "0 bytes",
        "short.nii": "the file is too short for the 900 x 900 x 900 voxels of its header", "text.nii.gz": "cannot be read (",
        "link.nii.gz": "a link that leads nowhere", "flat.nii.gz": "has the shape (64, 96)", "colour.nii.gz": "in colour",
        "five.nii.gz": "has the shape (4, 4, 4, 1, 3)", "constant.nii.gz": "every voxel has the value 7",
        "all_nan.nii.gz": "no voxel holds a finite number", "thick.nii.gz": " x 50 mm, and 0.05 to 12.0 mm are possible",
        "metres.nii.gz": "0.05 to 12.0 mm are possible", "huge.nii.gz": "its view of 3200 x 4 x 4 mm is larger than a body",
        "zero_affine.nii": "is not that of a volume", "nan_affine.nii": "holds NaN",
    }  # fmt: skip


def write_good(folder: Path, scan: nib.Nifti1Image) -> dict[str, str]:
    """Write scans with blemishes; return the remark on each."""
    voxels, affine = np.asarray(scan.dataobj).astype(np.float32), scan.affine
    holes = voxels.copy()
    holes[0, 0, :2], holes[0, 0, 2], holes[0, 0, 3] = np.nan, np.inf, -np.inf
    nib.save(nib.Nifti1Image(holes, affine), folder / "holes.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([voxels - 2, voxels + 4, voxels - 2], 3), affine), folder / "series.nii.gz")
    two = nib.Nifti1Image(voxels, affine)
    two.set_sform(affine, 1)
    shifted = affine.copy()
    shifted[2, 3] += 7
    two.set_qform(shifted, 1)
    nib.save(two, folder / "two_grids.nii.gz")
    (folder / "älter 1" / "b b").mkdir(parents=True)
    nib.save(scan, folder / "älter 1" / "b b" / "Rücken 2.nii.gz")
    nib.save(scan, folder / "älter 1" / "Rücken 2.nii.gz")
    nib.save(scan, folder / "twin.nii")
    shutil.copy(folder / "älter 1" / "Rücken 2.nii.gz", folder / "twin.nii.gz")
    nib.save(nib.Nifti1Image(voxels[..., 6:7], affine), folder / "one_slice.nii.gz")
    noise = np.random.default_rng(0).integers(0, 100, (16, 16, 16)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, np.diag([0.25, 0.25, 0.25, 1])), folder / "no_spine.nii.gz")  # smaller than any vertebra
    negative = nib.Nifti1Image(voxels, affine)
    nib.save(negative, folder / "negative.nii")
    content = bytearray((folder / "negative.nii").read_bytes())
    content[80:92] = (-np.frombuffer(content[80:92], "<f4")).tobytes()  # pixdim
    (folder / "negative.nii").write_bytes(content)
    return {
        "holes": "4 voxels (0.0054 %) were NaN or infinite: taken for the lowest value, and left out of signals",
        "series": "a series of 3 volumes: their mean is used",
        "two_grids": "sform and qform disagree by up to 7 mm: the sform is used",
        "one_slice": "1 slice only: the spine is hardly seen in so few",
        "no_spine": "no vertebra and no disc was found: the mask is empty",
        "negative": "header: pixdim[1,2,3] should be positive; setting to abs of pixdim values",
        "twin.nii": "", "twin.nii.gz": "", "älter 1/Rücken 2": "", "älter 1/b b/Rücken 2": "",
    }  # fmt: skip


def test_messy_folder(weights, scan, tmp_path, capfd):
    data, out = tmp_path / "in", tmp_path / "out"
    data.mkdir()
    bad, good = write_bad(data, scan), write_good(data, scan)
    assert infer(weights, out, data, num_workers=1) == 1
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert printed.out.splitlines()[-1] == f"{len(good)} segmented, 0 skipped (already done), {len(bad)} failed: see {out / 'failures.csv'}"
    rows = failures(out)
    assert rows.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in rows[name]["reason"], name
        assert rows[name]["fix"].endswith((".", "?")), name
        assert f"{rows[name]['file']}: {rows[name]['reason']}. {rows[name]['fix']}" in printed.out
    expected = {f"{name}_seg{suffix}" for name in good for suffix in (".nii.gz", ".png", ".json")}
    assert files(out) == {*expected, "failures.csv", "structures.csv", "spines.csv", "overview.html"}
    for name, warning in good.items():
        report = json.loads((out / f"{name}_seg.json").read_text(encoding="utf-8"))
        assert warning in [*report["warnings"], ""]
        assert f": {warning}\n" in printed.out or not warning
    whole = np.asarray(nib.load(out / "twin.nii_seg.nii.gz").dataobj)
    assert whole.any()
    for name in ("twin.nii.gz", "älter 1/Rücken 2", "series", "negative", "two_grids", "holes"):
        mask = nib.load(out / f"{name}_seg.nii.gz")
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
        assert np.mean(np.asarray(mask.dataobj) == whole) > 0.999, name
    assert nib.load(out / "one_slice_seg.nii.gz").shape == (*scan.shape[:2], 1)
    assert not np.asarray(nib.load(out / "no_spine_seg.nii.gz").dataobj).any()

    # run again: done scans are not touched, failed ones are tried again, and one of them is fine now
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*_seg.*")}
    nib.save(scan, data / "empty.nii.gz")
    table = (out / "structures.csv").read_text(encoding="utf-8")
    assert infer(weights, out, data) == 1
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == f"1 segmented, {len(good)} skipped (already done), {len(bad) - 1} failed: see {out / 'failures.csv'}"
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert failures(out).keys() == bad.keys() - {"empty.nii.gz"}
    again = (out / "structures.csv").read_text(encoding="utf-8").splitlines()
    assert [line for line in again if not line.startswith("empty_")] == table.splitlines()
    assert any(line.startswith("empty_seg.nii.gz,") for line in again)


def test_what_counts_as_done(weights, two, tmp_path, capfd):
    out = tmp_path / "out"
    options = {"weights": weights, "output_dir": out, "dataset_dir": two}

    def outcome(**changes) -> tuple[int, int]:
        """Return the numbers of segmented and skipped scans."""
        assert infer(**{**options, **changes}) == 0
        words = last_line(capfd).split()
        return int(words[0]), int(words[2])

    assert outcome(figures=False) == (2, 0)
    assert outcome(figures=False) == (0, 2)
    assert outcome() == (2, 0)  # the figures are missing
    assert outcome() == (0, 2)
    assert outcome(overwrite=True) == (2, 0)
    mask = out / "a_seg.nii.gz"
    image = nib.load(mask)
    corrected = np.asarray(image.dataobj).copy()
    corrected[0] = 0
    nib.save(nib.Nifti1Image(corrected, image.affine), mask)
    assert infer(**options) == 0  # corrected by hand
    *before, last = capfd.readouterr().out.splitlines()
    assert last.startswith("0 segmented, 2 skipped")
    assert [line for line in before if "edited" in line] == [f"{mask}: {handlers.EDITED}"]
    for table in ("structures.csv", "spines.csv"):
        assert {(row["mask"], row["edited_since"]) for row in read_rows(out / table)} == {
            ("a_seg.nii.gz", "True"),
            ("b_seg.nii.gz", "False"),
        }
    mask.write_bytes(mask.read_bytes()[:-9])
    assert outcome() == (1, 1)
    (out / "b_seg.png").write_bytes((out / "b_seg.png").read_bytes()[:-9])
    assert outcome() == (1, 1)
    (out / "b_seg.json").write_text("{")
    assert outcome() == (1, 1)
    os.utime(two / "b.nii.gz", ns=(0, 0))  # another file
    assert outcome() == (1, 1)
    assert outcome(min_speck_mm3=21.0) == (2, 0)
    inner = {"inferer::inferer::margin": 9, "postprocessing::transforms::2::min_speck_mm3": 22.0}
    assert [outcome(**inner), outcome(**inner)] == [(2, 0), (0, 2)]
    assert outcome(label_scheme="spider") == (2, 0)
    other = tmp_path / "other.pt"
    changed = torch.load(weights, weights_only=True)
    next(iter(changed.values())).add_(1e-3)
    torch.save(changed, other)
    assert outcome(weights=other, label_scheme="spider") == (2, 0)
    assert outcome(weights=other, label_scheme="spider") == (0, 2)


def test_a_json_file_of_others_stays(weights, two, tmp_path):
    """The file is where a report would go, and there is no mask beside it."""
    note = two / "a_seg.json"
    note.write_text('{"RawSources": ["a.nii.gz"]}')
    assert infer(weights, two, two, figures=False) == 1
    assert failures(two)["a.nii.gz"]["reason"] == f"{note} is there already and not as this bundle has written it"
    assert note.read_text() == '{"RawSources": ["a.nii.gz"]}'
    assert files(two) == {
        "a.nii.gz",
        "b.nii.gz",
        "a_seg.json",
        "b_seg.nii.gz",
        "b_seg.json",
        "structures.csv",
        "spines.csv",
        "overview.html",
        "failures.csv",
    }


def test_what_others_have_written_stays(weights, two, tmp_path, capfd, monkeypatch):
    """Such files are labels beside the scans, and corrected masks."""
    were_read = []
    monkeypatch.setattr(transforms, "read_scan", lambda path: were_read.append(Path(path).name) or read_scan(path))
    label = two / "a_seg.nii.gz"
    nib.save(nib.load(two / "a.nii.gz"), label)
    content = label.read_bytes()
    assert infer(weights, two, two, figures=False) == 1
    assert failures(two).keys() == {"a.nii.gz"}
    assert were_read == ["b.nii.gz"]
    assert failures(two)["a.nii.gz"]["reason"].startswith(f"{label} is there already and not as this bundle has written it")
    assert label.read_bytes() == content
    assert (two / "b_seg.nii.gz").is_file()

    corrected = two / "b_seg.nii.gz"
    image = nib.load(corrected)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 0, image.affine, image.header), corrected)
    assert infer(weights, two, two, figures=False, min_speck_mm3=21.0) == 1
    assert failures(two).keys() == {"a.nii.gz", "b.nii.gz"}
    assert not np.asarray(nib.load(corrected).dataobj).any()
    assert (two / "b_seg.json").is_file()
    assert infer(weights, two, two, figures=False, overwrite=True) == 0
    assert label.read_bytes() != content
    assert last_line(capfd).startswith("2 segmented, 0 skipped (already done), 0 failed: see ")


def test_the_table_keeps_the_masks_of_other_runs(weights, two, tmp_path):
    out = tmp_path / "out"

    def masks() -> set[str]:
        with (out / "structures.csv").open(newline="", encoding="utf-8") as handle:
            return {row["mask"] for row in csv.DictReader(handle)}

    for name in "ab":
        assert infer(weights, out, two, image=str(two / f"{name}.nii.gz"), figures=False) == 0
    assert masks() == {"a_seg.nii.gz", "b_seg.nii.gz"}
    (out / "a_seg.nii.gz").unlink()
    assert infer(weights, out, two, image=str(two / "b.nii.gz"), figures=False) == 0
    assert masks() == {"b_seg.nii.gz"}


def test_what_fails_after_reading_costs_one_scan(weights, two, tmp_path, capfd, monkeypatch):
    """Post-processing, the disk or the figure may fail; the table keeps the rows of other runs into the same folder."""
    out = tmp_path / "out"
    (tmp_path / "c.nii.gz").touch()
    assert infer(weights, out, two, image=str(tmp_path / "c.nii.gz")) == 1

    def full(path: Path, write) -> Path:
        if path.name == "a_seg.nii.gz":
            raise OSError(errno.ENOSPC, "No space left on device", path.name)
        return write_whole(path, write)

    monkeypatch.setattr(masks, "write_whole", full)
    assert infer(weights, out, two) == 1
    assert last_line(capfd).startswith("1 segmented, 0 skipped (already done), 1 failed")
    assert failures(out)["a.nii.gz"]["reason"] == "No space left on device (a_seg.nii.gz)"
    assert failures(out)["a.nii.gz"]["fix"].startswith("Make room on the disk of output_dir")
    assert "c.nii.gz" in failures(out)
    assert {"b_seg.nii.gz", "b_seg.png", "b_seg.json"} <= files(out)
    assert not {name for name in files(out) if name.startswith("a_")}
    monkeypatch.undo()

    def broken(*args):
        raise ValueError("bad luck")

    monkeypatch.setattr(transforms, "name_levels", broken)
    assert infer(weights, out, two) == 1
    assert failures(out)["a.nii.gz"]["reason"] == "ValueError: bad luck"
    monkeypatch.undo()
    monkeypatch.setattr(handlers, "read_scan", broken)  # the figure reads the scan
    assert infer(weights, out, two) == 1
    assert last_line(capfd).startswith("0 segmented, 1 skipped (already done), 1 failed")
    assert "a_seg.nii.gz" in files(out)
    monkeypatch.undo()
    assert infer(weights, out, two) == 0  # the mask without a report is not done
    assert last_line(capfd).startswith("1 segmented, 1 skipped (already done), 0 failed: see ")


def test_wrong_calls(weights, two, tmp_path, capfd):
    (tmp_path / "file").touch()
    for options, message in {
        ("output_dir", str(tmp_path / "file" / "out")): "cannot be written to (Not a directory)",
        ("weights", str(two / "a.nii.gz")): "cannot be read as weights (torch.save did not write it)",
        ("overwrite", "maybe"): "--overwrite is 'maybe', neither True nor False",
        ("dataset_dir", str(tmp_path / "nowhere")): "no such folder",
        ("pattern", "*T3*"): "--pattern *T3*: fits none of 2 scans, such as a.nii.gz.",
    }.items():
        assert infer(**{"weights": weights, "output_dir": tmp_path / "out", "dataset_dir": two, options[0]: options[1]}) == 2
        assert message in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("opened",))


def test_weights_that_would_run_code_are_refused(two, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": RunsCode()}, tmp_path / "evil.pt")
    assert infer(tmp_path / "evil.pt", tmp_path / "out", two) == 2
    assert "evil.pt: refused, it holds posix.mkdir beside weights, which could run code" in capfd.readouterr().err
    assert not (tmp_path / "opened").exists()
