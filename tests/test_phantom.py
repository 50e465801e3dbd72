"""The phantom draws what its truth says: measured on the labels and images, never read back from the generator."""

from __future__ import annotations

import json
from itertools import product

import nibabel as nib
import numpy as np
import pytest
from conftest import fails
from scipy import ndimage

from scripts.common.errors import UserError
from scripts.labels import label_table
from scripts.phantoms.anatomy import build_spine, level_names, sagittal_deg
from scripts.phantoms.phantom import Phantom, draw_options, draw_phantom, write_cohort

SMALL = {"shape": (10, 64, 90), "spacing_mm": (2.5, 5.0)}  # a whole lumbar field of view in 60 000 voxels
ENDS = (0.35, 0.0, -0.35)  # 15, 50 and 85 % of the depth, from the front


@pytest.fixture(scope="module")
def scan() -> Phantom:
    return draw_phantom(3)


def vertebra(phantom: Phantom, name: str) -> dict:
    return next(v for v in phantom.truth["vertebrae"] if v["name"] == name)


def sampled(phantom: Phantom, array: np.ndarray, points_mm: np.ndarray) -> np.ndarray:
    """Return the nearest voxels of an array at world points (..., 3); 0 outside."""
    indices = nib.affines.apply_affine(np.linalg.inv(phantom.affine), points_mm)
    return ndimage.map_coordinates(array, np.moveaxis(indices, -1, 0), order=0)


def end_plates_mm(phantom: Phantom, name: str, u: float) -> np.ndarray:
    """Return the heights (2,) of the lowest and highest labelled point over a body's mid-plane in the mid-sagittal plane."""
    v = vertebra(phantom, name)
    steps = np.arange(-30, 30, 0.05)
    points = v["centre_mm"] + u * v["depth_mm"] * v["anterior"] + steps[:, None] * v["superior"]
    return steps[sampled(phantom, phantom.label, points) == v["verse"]][[0, -1]]


def test_the_seed_decides() -> None:
    first, again, other = draw_phantom(7, **SMALL), draw_phantom(7, **SMALL), draw_phantom(8, **SMALL)
    for name in ("image", "label", "affine"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.contrast == again.contrast
    assert first.image.shape != other.image.shape or not np.array_equal(first.label, other.label)


def test_contrast_and_resolution_leave_the_anatomy_alone() -> None:
    first, second = draw_phantom(7, contrast="T1w", **SMALL), draw_phantom(7, contrast="STIR", **SMALL)
    np.testing.assert_array_equal(first.label, second.label)
    assert not np.array_equal(first.image, second.image)
    for a, b in zip(first.truth["vertebrae"], draw_phantom(7, shape=(4, 20, 20)).truth["vertebrae"], strict=True):
        np.testing.assert_array_equal(a["centre_mm"], b["centre_mm"])


def test_default_scan(scan: Phantom) -> None:
    assert scan.image.dtype == np.int16
    assert scan.label.dtype == np.uint8
    assert scan.image.shape == scan.label.shape
    assert scan.image.min() >= 0
    assert 400 < scan.image.max() < 4000
    spacing = np.sort(nib.affines.voxel_sizes(scan.affine))
    assert spacing[0] == pytest.approx(spacing[1])
    assert 0.8 < spacing[0] < 1.3
    assert 3.4 < spacing[2] < 4.6
    complete = {v["name"] for v in scan.truth["vertebrae"] if v["complete"]}
    assert {"L1", "L2", "L3", "L4", "L5"} <= complete
    assert "T8" not in complete


@pytest.mark.parametrize("order", ["RAS", "PIR", "ASL"])
def test_affine(order: str) -> None:
    phantom = draw_phantom(4, shape=(8, 20, 30), spacing_mm=(1.5, 4.0), oblique_deg=6, order=order)
    straight = draw_phantom(4, shape=(8, 20, 30), spacing_mm=(1.5, 4.0), oblique_deg=0, order=order)
    assert "".join(nib.aff2axcodes(phantom.affine)) == order
    slice_axis = next(i for i, letter in enumerate(order) if letter in "LR")
    assert np.argmax(nib.affines.voxel_sizes(phantom.affine)) == slice_axis
    np.testing.assert_allclose(np.sort(nib.affines.voxel_sizes(phantom.affine)), [1.5, 1.5, 4.0])
    assert 0.1 < nib.affines.obliquity(phantom.affine).max() * 180 / np.pi < 11
    assert nib.affines.obliquity(straight.affine).max() == pytest.approx(0)


def test_voxel_order_moves_no_anatomy() -> None:
    first, second = (draw_phantom(4, order=order, **SMALL) for order in ("RAS", "PIL"))
    for a, b in ((first.image, second.image), (first.label, second.label)):
        canonical = [nib.as_closest_canonical(nib.Nifti1Image(x, p.affine)) for x, p in ((a, first), (b, second))]
        np.testing.assert_array_equal(*(np.asarray(c.dataobj) for c in canonical))
        np.testing.assert_allclose(*(c.affine for c in canonical), atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels(seed: int) -> None:
    phantom = draw_phantom(seed, spacing_mm=(1.6, 4.0))
    values = set(np.unique(phantom.label).tolist())
    assert values <= {s.verse for s in label_table()}
    assert {20, 21, 22, 23, 24, 120, 121, 122, 123} <= values
    for v in phantom.truth["vertebrae"]:
        if v["complete"]:  # the edge of the field of view may cut the rims of a concave end-plate off their body
            assert ndimage.label(phantom.label == v["verse"], np.ones((3, 3, 3)))[1] == 1, v["name"]
            index = np.argwhere(phantom.label == v["verse"]).mean(0)
            # the cut sides, the wedge and the taper of S1 shift the centroid a little
            assert np.linalg.norm(nib.affines.apply_affine(phantom.affine, index) - v["centre_mm"]) < 4


@pytest.mark.parametrize(("seed", "name", "options"), [(1, "L3", {}), (2, "L1", {"wedged": {"L1": 0.3}}), (3, "T11", {})])
def test_heights_of_a_body(seed: int, name: str, options: dict) -> None:
    phantom = draw_phantom(seed, view=name, spacing_mm=(0.7, 0.7), shape=(16, 70, 60), **options)
    v = vertebra(phantom, name)
    for end, u in zip(("anterior", "middle", "posterior"), ENDS, strict=True):
        low, high = end_plates_mm(phantom, name, u)
        assert high - low == pytest.approx(v[f"{end}_height_mm"], abs=0.7)


def test_size_of_a_body() -> None:
    phantom = draw_phantom(5, view="L2", spacing_mm=(0.8, 0.8), shape=(72, 60, 60))
    v = vertebra(phantom, "L2")
    assert v["complete"]
    points = nib.affines.apply_affine(phantom.affine, np.argwhere(phantom.label == v["verse"])) - v["centre_mm"]
    assert np.ptp(points @ v["anterior"]) == pytest.approx(v["depth_mm"], abs=1.6)
    assert np.ptp(points @ v["right"]) == pytest.approx(v["width_mm"], abs=1.6)


def test_heights_of_a_disc() -> None:
    phantom = draw_phantom(6, view="L4", spacing_mm=(0.6, 0.6), shape=(30, 100, 180))
    disc = next(d for d in phantom.truth["discs"] if d["name"] == "L3/L4")
    lower, upper = vertebra(phantom, "L4"), vertebra(phantom, "L3")
    for end, u in zip(("anterior", "middle", "posterior"), ENDS, strict=True):
        ends = [end_plates_mm(phantom, name, u) for name in ("L4", "L3")]
        floor = lower["centre_mm"] + u * lower["depth_mm"] * lower["anterior"] + ends[0][1] * lower["superior"]
        ceiling = upper["centre_mm"] + u * upper["depth_mm"] * upper["anterior"] + ends[1][0] * upper["superior"]
        axis = lower["superior"] + upper["superior"]
        assert (ceiling - floor) @ axis / np.linalg.norm(axis) == pytest.approx(disc[f"{end}_height_mm"], abs=0.7)
        # the label fills the gap
        between = np.linspace(floor + 0.15 * (ceiling - floor), ceiling - 0.15 * (ceiling - floor), 20)
        assert np.all(sampled(phantom, phantom.label, between) == disc["verse"])


def test_lordosis() -> None:
    phantom = draw_phantom(9, view="L3", spacing_mm=(0.8, 1.0), shape=(30, 150, 310))
    angles = []
    for name in ("L1", "S1"):
        v = vertebra(phantom, name)
        u = np.linspace(-0.35, 0.35, 57)
        slope = np.polyfit(u * v["depth_mm"], [end_plates_mm(phantom, name, x)[1] for x in u], 1)[0]
        angles.append(sagittal_deg(v["anterior"] + slope * v["superior"]))
    assert angles[0] - angles[1] == pytest.approx(phantom.truth["lordosis_deg"], abs=1.0)


def test_scoliosis_is_the_largest_coronal_angle(scan: Phantom) -> None:
    right = np.array([v["right"] for v in scan.truth["vertebrae"] if v["complete"]])
    slopes = np.rad2deg(np.arctan2(right[:, 2], right[:, 0]))
    assert scan.truth["scoliosis_deg"] == pytest.approx(max(abs(a - b) for a, b in product(slopes, slopes)))


@pytest.mark.parametrize("cobb_deg", [30.0, -50.0])
def test_scoliosis_adds_a_curve(cobb_deg: float) -> None:
    plain, curved = draw_phantom(2, **SMALL), draw_phantom(2, scoliosis=cobb_deg, **SMALL)
    names = [v["name"] for v in plain.truth["vertebrae"]]  # upwards from S1
    added, turned, shifted = {}, {}, {}
    for name in names:
        before, after = vertebra(plain, name), vertebra(curved, name)
        added[name] = (after["coronal_deg"] - before["coronal_deg"]) / cobb_deg
        turned[name] = (after["axial_deg"] - before["axial_deg"]) / cobb_deg
        shifted[name] = (after["centre_mm"] - before["centre_mm"])[0] / cobb_deg
        heights = ("anterior_height_mm", "middle_height_mm", "posterior_height_mm")
        assert [after[key] for key in heights] == [before[key] for key in heights]
    assert added["S1"] == turned["S1"] == shifted["S1"] == 0
    lower, upper = max(added, key=added.get), min(added, key=added.get)
    assert (lower in ("L5", "L4", "L3"), upper in ("T12", "T11", "T10")) == (True, True)
    assert [added[lower], added[upper]] == pytest.approx([0.5, -0.5], abs=0.05)  # a vertebra that leans already turns by a little less
    between = names[names.index(lower) : names.index(upper) + 1]
    assert [added[name] for name in between] == sorted((added[name] for name in between), reverse=True)
    apex = max(turned, key=turned.get)
    assert apex in between[1:-1]
    assert turned[apex] == pytest.approx(0.35, abs=0.05)
    assert min(shifted[name] for name in between) < -0.2  # mm per degree: convex to the left if it is positive


def test_wedge() -> None:
    plain, wedged = draw_phantom(2, **SMALL), draw_phantom(2, wedged={"L1": 0.3}, **SMALL)
    before, after = vertebra(plain, "L1"), vertebra(wedged, "L1")
    assert after["posterior_height_mm"] == before["posterior_height_mm"]
    assert after["anterior_height_mm"] == pytest.approx(0.7 * before["anterior_height_mm"])
    assert after["wedge_deg"] < before["wedge_deg"] - 10
    np.testing.assert_array_equal(vertebra(wedged, "L2")["centre_mm"], vertebra(plain, "L2")["centre_mm"])


def test_slip() -> None:
    options = {"view": "L5", "shape": (24, 110, 200), "spacing_mm": (1.0, 2.0), "order": "RAS"}
    plain, slipped = draw_phantom(2, **options), draw_phantom(2, slipped={"L4": 8.0}, **options)
    assert slipped.truth["slip_mm"]["L4"] == pytest.approx(8.0)
    assert slipped.truth["slip_mm"]["L3"] == pytest.approx(plain.truth["slip_mm"]["L3"])
    np.testing.assert_array_equal(plain.affine, slipped.affine)
    shifts_mm = {}
    for name, value in (("L5", 24), ("L4", 23), ("L3", 22)):
        centroids = [np.argwhere(p.label == value).mean(0) for p in (plain, slipped)]
        shifts_mm[name] = plain.affine[:3, :3] @ (centroids[1] - centroids[0])
    np.testing.assert_allclose(shifts_mm["L5"], 0, atol=1e-9)
    added_mm = 8.0 - plain.truth["slip_mm"]["L4"]
    for name in ("L4", "L3"):
        assert shifts_mm[name] @ vertebra(plain, "L5")["superior_chord"] == pytest.approx(added_mm, abs=0.5)


@pytest.mark.parametrize("lumbar", [4, 5, 6])
def test_lumbar_count(lumbar: int) -> None:
    phantom = draw_phantom(1, lumbar=lumbar, **SMALL)
    names = ["S1", *(f"L{i}" for i in range(lumbar, 0, -1)), "T12", "T11", "T10", "T9", "T8"]
    assert [v["name"] for v in phantom.truth["vertebrae"]] == names
    values = set(np.unique(phantom.label).tolist())
    assert {26, 19 + lumbar, 119 + lumbar, 20, 19} <= values
    absent = {24, 25} - set(range(20, 20 + lumbar))
    assert not values & (absent | {v + 100 for v in absent})


def test_the_spine_goes_on_beyond_the_named_levels() -> None:
    for lumbar in (4, 5, 6):
        assert {"T8", "T7", "T6"} <= set(level_names(lumbar))
        spine = build_spine(np.random.default_rng(lumbar), lumbar=lumbar)
        assert [v.name for v in spine.vertebrae[:4]] == ["S4", "S3", "S2", "S1"]


def test_options_of_a_cohort() -> None:
    assert all(draw_options(seed, 0.0) == {} for seed in range(20))
    options = [draw_options(seed, 1.0) for seed in range(50)]
    assert all(options)
    assert {o["lumbar"] for o in options if "lumbar" in o} == {4, 6}
    assert any("wedged" in o for o in options)
    assert any("slipped" in o for o in options)
    angles = [draw_options(seed, 0.3).get("scoliosis", 0.0) for seed in range(200)]
    assert 0.2 < np.count_nonzero(angles) / 200 < 0.4
    assert all(angle == 0 or 10 <= abs(angle) <= 40 for angle in angles)
    assert min(angles) < 0 < max(angles)


def test_contrasts() -> None:
    for seed, contrast in product((0, 1), ("T1w", "T2w", "STIR")):
        phantom = draw_phantom(seed, contrast=contrast, spacing_mm=(1.0, 4.0), shape=(21, 230, 30), view="L4")
        v = vertebra(phantom, "L4")
        wall_mm = v["centre_mm"] - v["depth_mm"] / 2 * v["anterior"]
        along = np.linspace(-6, 6, 13)[:, None] * v["superior"]
        csf = np.median(sampled(phantom, phantom.image, wall_mm - 5.5 * v["anterior"] + along))
        psoas = np.concatenate([v["centre_mm"] + side * 37 * v["right"] - 6 * v["anterior"] + along for side in (-1, 1)])
        seen = sampled(phantom, phantom.image, psoas)
        muscle = np.median(seen[seen > 0])
        # subcutaneous fat lies 3-5 mm behind the first bright voxels on the way in from the back
        path = wall_mm + np.arange(-150, -20, 0.5)[:, None, None] * np.array([0, 1, 0]) + along
        profile = np.median(sampled(phantom, phantom.image, path), 1)
        skin = np.argmax(profile > 0.4 * np.median(profile[-40:]))
        fat = np.median(profile[skin + 6 : skin + 9])
        if contrast == "T2w":
            assert csf > 2 * muscle
            assert fat > 2 * muscle
        elif contrast == "T1w":
            assert fat > 2 * csf
            assert fat > muscle > csf
        else:
            assert csf > 3 * fat


def test_impossible_requests() -> None:
    with pytest.raises(UserError, match="contrast 'PD' does not exist; choose one of T1w, T2w, STIR"):
        draw_phantom(0, contrast="PD")
    with pytest.raises(UserError, match="lumbar = 7: a phantom has 4, 5 or 6 lumbar vertebrae"):
        draw_phantom(0, lumbar=7)
    with pytest.raises(UserError, match="no vertebra L5 in a phantom with 4 lumbar vertebrae"):
        draw_phantom(0, lumbar=4, slipped={"L5": 3.0})
    with pytest.raises(UserError, match=r"must lie in \[0, 0.8\)"):
        draw_phantom(0, wedged={"L1": 30})
    with pytest.raises(UserError, match="scoliosis = -61: a phantom has a Cobb angle from -60 to 60 degrees"):
        draw_phantom(0, scoliosis=-61)
    with pytest.raises(UserError, match="scoliosis = nan"):
        draw_phantom(0, scoliosis=float("nan"))
    with pytest.raises(UserError, match="scoliosis = left: a phantom has a Cobb angle"):
        draw_phantom(0, scoliosis="left")
    for order in ("XYZ", 5):
        with pytest.raises(UserError, match=f"order '{order}' is no voxel order"):
            draw_phantom(0, order=order, **SMALL)
    for options, message in (
        ({"lumbar": "five"}, "lumbar = five: a phantom has 4, 5 or 6 lumbar vertebrae"),
        ({"wedged": 0.3}, "wedged = 0.3: a number for every level is needed, such as {'L1': 0.3}"),
        ({"slipped": {"L4": "x"}}, "slipped = {'L4': 'x'}: a number for every level is needed, such as {'L1': 0.3}"),
        ({"spacing_mm": 1}, "spacing_mm = 1: 2 numbers above 0 are needed"),
        ({"shape": (10, 20)}, "shape = (10, 20): 3 numbers above 0 are needed"),
        ({"oblique_deg": "x"}, "oblique_deg = x: a number is needed"),
    ):
        with fails(message):
            draw_phantom(0, **options)


def test_a_smaller_cohort_leaves_none_of_the_larger_one(tmp_path) -> None:
    write_cohort(tmp_path, training=3, validation=1, testing=0, **SMALL)
    (tmp_path / "training" / "mine_T2w.nii.gz").touch()
    write_cohort(tmp_path, training=1, validation=0, testing=1, **SMALL)
    entries = [entry for split in json.loads((tmp_path / "datalist.json").read_text()).values() for entry in split]
    expected = {entry[key] for entry in entries for key in ("image", "label")}
    expected |= {entry["label"].replace("_seg.nii.gz", "_truth.json") for entry in entries}
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == {
        *expected, "datalist.json", "training/mine_T2w.nii.gz",
    }  # fmt: skip


def test_cohort(tmp_path, capsys) -> None:
    counts = {"training": 3, "validation": 1, "testing": 1}
    lists = [write_cohort(tmp_path / f"{w}", **counts, seed=1, anomalies=1.0, workers=w, **SMALL) for w in (1, 2)]
    assert lists[0].read_bytes() == lists[1].read_bytes()
    assert capsys.readouterr().out.splitlines() == [f"{path}: 5 phantoms" for path in lists]
    datalist = json.loads(lists[0].read_text())
    assert {split: len(entries) for split, entries in datalist.items()} == counts
    entries = [e for split in datalist.values() for e in split]
    assert [e["patient"] for e in entries] == [f"phantom_{i:04d}" for i in range(1, 6)]
    for entry in entries:
        assert entry["source"] == "phantom"
        for key in ("image", "label"):
            first, second = (nib.load(file.parent / entry[key]) for file in lists)
            np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
            np.testing.assert_array_equal(first.affine, second.affine)
            assert first.get_sform(coded=True)[1] == first.get_qform(coded=True)[1] == 1
            np.testing.assert_allclose(first.get_sform(), first.get_qform(), atol=1e-4)
        label = nib.load(lists[0].parent / entry["label"])
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(label.dataobj)) - {0} < set(entry["labelled"]) == {s.verse for s in label_table()[1:]}
    names = {file.name for file in lists[0].parent.rglob("*") if file.is_file()}
    assert len(names) == 3 * len(entries) + 1
    assert not any(name.startswith(".") for name in names)


def test_a_phantom_in_another_contrast_is_replaced(tmp_path) -> None:
    options = {"training": 1, "validation": 0, "testing": 0, **SMALL}
    for contrast in ("T1w", "T2w"):
        write_cohort(tmp_path, contrast=contrast, **options)
    assert {p.name for p in (tmp_path / "training").iterdir()} == {f"phantom_0001_{n}" for n in ("T2w.nii.gz", "seg.nii.gz", "truth.json")}


def test_foreign_files_beside_a_phantom_stay(tmp_path) -> None:
    options = {"training": 1, "validation": 0, "testing": 0, **SMALL}
    write_cohort(tmp_path, contrast="T1w", **options)
    mine = [tmp_path / "training" / f"phantom_0001_{name}.nii.gz" for name in ("T1w_seg", "T2w_seg", "mine")]
    for file in mine:
        file.write_text("mine")
    write_cohort(tmp_path, contrast="T2w", **options)
    assert [file.read_text() for file in mine] == ["mine"] * 3
    assert not (tmp_path / "training" / "phantom_0001_T1w.nii.gz").exists()


def test_truth_survives_its_file(tmp_path) -> None:
    write_cohort(tmp_path, training=1, validation=0, testing=0, seed=0, **SMALL)
    truth, drawn = json.loads((tmp_path / "training" / "phantom_0001_truth.json").read_text()), draw_phantom(0, **SMALL).truth
    assert {k: v for k, v in truth.items() if k not in ("vertebrae", "discs")} == {
        k: v for k, v in drawn.items() if k not in ("vertebrae", "discs")
    }
    for group in ("vertebrae", "discs"):
        for read, made in zip(truth[group], drawn[group], strict=True):
            assert read.keys() == made.keys()
            for key in read:
                np.testing.assert_array_equal(read[key], made[key])


@pytest.mark.parametrize(
    ("image", "source"),
    [
        ("a.nii.gz", "mine"),
        ("a.nii.gz", "phantom"),  # a folder of that name, as `prepare` lists it
        ("../other/training/phantom_0001_T2w.nii.gz", "phantom"),  # as `label_sacrum` lists those of another cohort
    ],
)
def test_a_datalist_of_other_scans_stays(tmp_path, image, source):
    folder = tmp_path / "cohort"
    scan = folder / image
    scan.parent.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    scan.write_text("scan")
    content = json.dumps({"training": [{"image": image, "source": source}]})
    (folder / "datalist.json").write_text(content)
    message = f"{folder}/datalist.json lists scans that are no phantoms of this folder: give another --dataset_dir, the phantoms' own."
    with fails(message):
        write_cohort(folder, training=1, validation=0, testing=0, seed=0)
    assert (folder / "datalist.json").read_text() == content
    assert scan.read_text() == "scan"
