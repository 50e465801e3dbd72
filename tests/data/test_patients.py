"""Which scans are of one patient: by their names, their folders, their labels and their bytes."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from conftest import labelled, touch

from scripts.data.patients import CONTRAST, PATIENT_PATTERN, PLANE
from scripts.tools.prepare import prepare

pytestmark = pytest.mark.usefixtures("no_copies")


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("phantom_0001_T2w", "phantom_0001"),
        ("1_t1", "1"),
        ("1_t2_SPACE", "1"),
        ("sub-01_ses-2_acq-x_T2w", "sub-01"),
        ("a_STIR", "a"),
        ("L1_scan", "L1_scan"),
        ("pat1_T1_sag", "pat1"),
        ("pat1-T2-TSE", "pat1"),
        ("a_T2_STIR", "a"),
        ("a_t2_dixon_water", "a"),
        ("a_T1w_MR", "a"),
        ("b_MR", "b"),
        ("T1_pat1", "pat1"),
        ("stir-pat1_sag", "pat1_sag"),
        ("T2_sub-01", "sub-01"),
        ("t2", "t2"),
        ("pat7_t1_tse_sag_320", "pat7"),  # as dcm2niix names them
        ("12_t2_spine_3", "12"),
        ("001_T2w_run-2", "001"),
        ("5_T2FS", "5"),
        ("5_pd_fs", "5"),
        ("PAT-01-T1 TSE", "PAT-01"),
        ("lumbar_T2_001", "lumbar_T2_001"),  # a folder of many patients
        ("study_MR_7", "study_MR_7"),
        ("fatima", "fatima"),
        ("P01.t1", "P01"),
        ("P01.T2.sag_3", "P01"),
        ("1.2.840.7", "1.2.840.7"),
    ],
)
def test_patient_of_a_name(name, patient):
    assert re.match(PATIENT_PATTERN, name).group(1) == patient


def patient_of_each(root: Path, **options) -> dict[str, str]:
    """Return the patient of every scan, by its path without suffix."""
    datalist = prepare(root, root / "list.json", overwrite=True, **options)
    return {e["image"].removesuffix(".nii"): e["patient"] for e in chain(*json.loads(datalist.read_text()).values())}


@pytest.mark.parametrize(
    ("stems", "patients"),
    [
        ([f"sub-0{i}/t2" for i in range(5)], [f"sub-0{i}" for i in range(5)]),
        ([f"images/p{i}/t2" for i in range(3)], ["p0", "p1", "p2"]),
        (["p1/s1/t2", "p1/s2/t2", "p2/s1/t2", "p3/t2"], ["p1", "p1", "p2", "p3"]),  # sessions of a patient stay together
        (["p1/t1", "p1/t2", "p2/t1", "p2/t2", "p3/t2", "p3/t2_tse_new"], ["p1", "p1", "p2", "p2", "p3", "p3"]),
        (["p1/t2", "p2/t2", "p3/t2", "q_T2w", "r/s_T1w"], ["p1", "p2", "p3", "q", "r"]),  # and flat ones beside them
        ([f"p{i}/t2" for i in range(3)] + ["p9/sag_a", "p9/tse3"], ["p0", "p1", "p2", "p9", "p9"]),  # names of its own
        ([f"p{i}/{c}" for i in range(3) for c in ("t1", "t2", "stir", "t2_tse")], [f"p{i}" for i in range(3) for _ in range(4)]),
        (["T1/a", "T1/b", "T1/c", "T2/a", "T2/b", "T2/c"], ["a", "b", "c", "a", "b", "c"]),  # folders of contrasts
        (["x/a", "x/b", "x/c", "y/a", "y/d", "y/e"], ["a", "b", "c", "a", "d", "e"]),  # folders of sites
        ([f"lumbar/2024/p{i}/{c}" for i in range(3) for c in ("t1", "stir")], [f"p{i}" for i in range(3) for _ in range(2)]),
        (["x/p0/t1", "x/p1/t2", "x/p2/stir"], ["p0", "p1", "p2"]),
    ],
)
def test_patients_with_a_folder_each(tmp_path, capsys, stems, patients):
    assert patient_of_each(labelled(tmp_path, *stems)) == dict(zip(stems, patients))
    if stems[0] == "sub-00/t2":  # the folder of all patients is the source, not one for each
        assert {e["source"] for e in chain(*json.loads((tmp_path / "list.json").read_text()).values())} == {tmp_path.name}
    by_folder = any("/" in stem and patient in stem.split("/")[:-1] for stem, patient in zip(stems, patients))
    said = "  each folder is taken for a patient, because file names repeat from folder to folder or are only contrasts"
    assert capsys.readouterr().out.splitlines()[4:] == [said] * by_folder


@pytest.mark.parametrize("pattern", [r"site/(sub-\d+)", r"[^/]+/([^/]+)/", r"(?:t2)?.*(sub-\d+)"])
def test_a_pattern_may_match_the_path(tmp_path, pattern):
    stems = [f"site/sub-{i}/t2" for i in range(3)]
    assert patient_of_each(labelled(tmp_path, *stems), patient_pattern=pattern) == {s: s.split("/")[1] for s in stems}


def test_scans_that_share_a_label_are_of_one_patient(tmp_path):
    """These are the channels of nnU-Net, and scans of one case with any other names."""
    image = nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.eye(4))
    for case in "abc":
        for name in (f"imagesTr/{case}_0000", f"imagesTr/{case}_0001", f"labelsTr/{case}"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            nib.save(image, tmp_path / f"{name}.nii")
    of_case = {f"imagesTr/{case}_000{channel}": case for case in "abc" for channel in (0, 1)}
    assert patient_of_each(tmp_path) == of_case
    for name in ("p_first", "p_second", "q_first", "r_first", "p_seg", "q_seg", "r_seg"):
        nib.save(image, touch(tmp_path, f"x/{name}.nii") / "x" / f"{name}.nii")
    assert patient_of_each(tmp_path / "x") == {"p_first": "p_first", "p_second": "p_first", "q_first": "q_first", "r_first": "r_first"}


def test_copies_are_of_one_patient(tmp_path):
    root = labelled(tmp_path, "a", "b", "c", "d", "e")
    for stem in "abc":
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), ord(stem), np.uint8), np.eye(4)), root / f"{stem}.nii")
    assert patient_of_each(root) == {"a": "a", "b": "b", "c": "c", "d": "d", "e": "d"}


def test_equal_headers_are_no_copies(tmp_path):
    """MetaImage headers may have their voxels in another file."""
    for stem in "abc":
        itk.imwrite(itk.image_from_array(np.full((2, 2, 2), ord(stem), np.uint8)), tmp_path / f"{stem}.mhd")
        header = (tmp_path / f"{stem}.mhd").read_text().replace(f"{stem}.raw", "x.raw")
        assert header == (tmp_path / "a.mhd").read_text().replace("a.raw", "x.raw")
        nib.save(nib.Nifti1Image(np.full((2, 2, 2), 20, np.uint8), np.diag([-1, -1, 1, 1])), tmp_path / f"{stem}_seg.nii")
    for folder in "abc":  # under one name, so that the headers are the same bytes
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t2.mhd").write_text((tmp_path / f"{folder}.mhd").read_text().replace(f"{folder}.raw", "t2.raw"))
        (tmp_path / f"{folder}.raw").rename(tmp_path / folder / "t2.raw")
        (tmp_path / f"{folder}.mhd").unlink()
        (tmp_path / f"{folder}_seg.nii").rename(tmp_path / folder / "t2_seg.nii")
    copies = patient_of_each(tmp_path)
    assert set(copies.values()) == {"a", "b", "c"}


def test_names_that_differ_in_the_contrast_are_of_one_patient(tmp_path):
    stems = [f"lumbar_{contrast}_00{i}" for i in range(3) for contrast in ("T1", "T2")] + ["x/T2_1", "x/T1w", "y_stir_tra"]
    stems += ["T1/a_T1_5", "T2/a_T2_5"]  # folders of contrasts
    found = patient_of_each(labelled(tmp_path, *stems))
    assert [found[stem] for stem in stems] == [f"lumbar_T1_00{i}" for i in range(3) for _ in range(2)] + ["1", "T1w", "y"] + ["a_T1_5"] * 2
    pattern = "(.+)"
    assert patient_of_each(tmp_path, patient_pattern=pattern) == {stem: Path(stem).name for stem in stems}


@pytest.mark.parametrize(
    ("stems", "twins"),
    [
        ([f"pat{i}_{visit}" for i in range(3) for visit in ("pre", "post")], "pat0_post and pat0_pre"),
        (["a-20200101", "a-20210305", "b-20200101", "c-20200101", "c-20200102"], "a-20200101 and a-20210305"),
        ([f"p{i}_T{c}_2020010112{c}000_{c}" for i in range(3) for c in (1, 2)], "p0_T1_20200101121000_1 and p0_T2_20200101122000_2"),
        ([f"T2_{plane}_00{i}" for i in range(3) for plane in ("sag", "ax")], "ax_000 and sag_000"),
        ([f"{plane}_00{i}_T2w_a" for i in range(3) for plane in ("SAGITTAL", "axial")], "SAGITTAL_000 and axial_000"),
        ([f"P0{i}T{c}" for i in range(3) for c in (1, 2)], "P00T1 and P00T2"),
        ([f"{visit}_P0{i}" for i in range(3) for visit in ("pre", "post")], "post_P00 and pre_P00"),
        ([f"case_{i}" for i in range(6)], ""),
        ([f"site{s}_{i}" for s in "AB" for i in range(3)], ""),
        (["a_1", "a_2", "b", "c", "d"], ""),
    ],
)
def test_names_that_may_be_those_of_one_patient(tmp_path, capsys, stems, twins):
    root = labelled(tmp_path, *stems)
    prepare(root, root / "list.json")
    lines = capsys.readouterr().out.splitlines()
    by_plane = f"(?:(?:.*[ ._-])?{PLANE}[ ._-])?([^ _-]+)" if "ax" in twins else "(.+)[ ._-]"
    pattern = "(.+?)(?:[ ._-](?i:t[12]|stir|tirm|pd).*)?$" if "_T1" in twins else by_plane
    pattern = {"P00T1": f"(.+?){CONTRAST}", "post_P00": "[A-Za-z]+[ ._-](.+)"}.get(twins.split(" and ")[0], pattern)
    question = f"{root}/list.json: are {twins} the same patient, and other names likewise? Then set --patient_pattern '{pattern}'"
    assert lines[4:] == [question] * bool(twins)
    if "ax" in twins:
        assert {*patient_of_each(root, patient_pattern=by_plane).values()} == {"000", "001", "002"}
        capsys.readouterr()
    prepare(root, root / "list.json", patient_pattern="(.+)", overwrite=True)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_folders_that_may_be_those_of_patients(tmp_path, capsys):
    stems = [f"p{i}/1.2.84.{2 * i + j}" for i in range(3) for j in range(2)]
    root = labelled(tmp_path, *stems)
    prepare(root, root / "list.json")
    *_, line = capsys.readouterr().out.splitlines()
    assert (
        line
        == f"{root}/list.json: are the scans in p0 of one patient, and likewise in the other folders? Then set --patient_pattern '([^/]+)/'"
    )
    assert patient_of_each(root, patient_pattern="([^/]+)/") == {stem: stem[:2] for stem in stems}
    below = tmp_path / "all"
    labelled(below / "x" / "y.z", *stems)
    prepare(below, below / "list.json")
    *_, line = capsys.readouterr().out.splitlines()
    (pattern,) = re.findall("--patient_pattern '(.+)'", line)
    assert patient_of_each(below, patient_pattern=pattern) == {f"x/y.z/{stem}": stem[:2] for stem in stems}


def test_a_contrast_is_no_patient(tmp_path, capsys):
    root = labelled(tmp_path, "p/t1", "q/t2", "q/ses-1/stir", "r/x")
    prepare(root, root / "list.json")
    question = "is stir a contrast, not a patient? If folders are patients, set --patient_pattern '([^/]+)/'"
    assert capsys.readouterr().out.splitlines()[-1] == f"{root}/list.json: {question}"
    found = patient_of_each(root, patient_pattern="([^/]+)/")
    assert found == {"p/t1": "p", "q/t2": "q", "q/ses-1/stir": "q", "r/x": "r"}


def test_folders_that_may_be_those_of_sites(tmp_path, capsys):
    stems = [f"{site}/p{i}/{contrast}" for site in "xyz" for i in range(3) for contrast in ("t1", "t2")]
    root = labelled(tmp_path, *stems)
    assert {*patient_of_each(root).values()} == {"x", "y", "z"}  # too few patients, but none in two splits
    *_, line = capsys.readouterr().out.splitlines()
    asked = "are the folders in x (p0, p1, ...) different patients, and likewise in the others?"
    assert line == f"{root}/list.json: {asked} Then set --patient_pattern '[^/]+/([^/]+)/'"
    assert {*patient_of_each(root, patient_pattern="[^/]+/([^/]+)/").values()} == {"p0", "p1", "p2"}


def test_a_pattern_that_matches_the_name_is_not_tried_on_the_path(tmp_path):
    stems = [f"sub-9/case{i}" for i in range(3)]
    assert set(patient_of_each(labelled(tmp_path, *stems), patient_pattern=r"(\w+\d)").values()) == {"case0", "case1", "case2"}
