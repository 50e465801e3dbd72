"""Measures of drawn spines against the geometry that they were drawn from, and properties that must hold."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from monai.transforms.utils import create_rotate
from nibabel.affines import from_matvec

from scripts.labels import encode, label_table, structure
from scripts.measure.spine import SpineMeasures, height_loss, measure_spine, turned_deg
from scripts.phantoms.phantom import Phantom, draw_phantom

HEIGHTS = ("anterior_height_mm", "middle_height_mm", "posterior_height_mm")


@pytest.fixture(
    scope="module",
    params=[{}, {"wedged": {"L1": 0.3}, "slipped": {"L4": 6.0}}, {"lumbar": 4}, {"lumbar": 6}, {"scoliosis": -30.0}],
    ids=str,
)
def phantom(request) -> Phantom:
    return draw_phantom(5, contrast="T2w", **request.param)


def measured(phantom: Phantom) -> SpineMeasures:
    return measure_spine(encode(phantom.label), phantom.affine)


def test_against_the_truth(phantom):
    found, truth = measured(phantom), phantom.truth
    complete = {row["name"]: row for row in [*truth["vertebrae"], *truth["discs"]] if row["complete"]}
    checked = 0
    for name, row in found.structures.items():
        if name == "S1" or name not in complete:
            continue
        checked += 1
        assert [row[h] for h in HEIGHTS] == pytest.approx([complete[name][h] for h in HEIGHTS], abs=0.8)
        angle = "angle_deg" if "/" in name else "wedge_deg"
        assert row[angle] == pytest.approx(complete[name][angle], abs=2.5)
        if "coronal_deg" in row:
            assert row["coronal_deg"] == pytest.approx(complete[name]["coronal_deg"], abs=1.5)
        if "axial_deg" in row:
            assert row["axial_deg"] == pytest.approx(complete[name]["axial_deg"], abs=5)
        if "slip_mm" in row:
            assert row["slip_mm"] == pytest.approx(truth["slip_mm"][name], abs=0.8)
    assert checked >= 10
    assert found.spine["lordosis_deg"] == pytest.approx(truth["lordosis_deg"], abs=1.5)
    tilts = [row["coronal_deg"] for name, row in complete.items() if "coronal_deg" in found.structures.get(name, {})]
    assert found.spine["cobb_deg"] == pytest.approx(max(tilts) - min(tilts), abs=1.7)


def test_numbers_that_follow_from_others(phantom):
    rows = measured(phantom).structures
    lowest = {4: "L4", 5: "L5", 6: "L6"}[phantom.truth["lumbar"]]
    disc = next(name for name in rows if name.startswith(f"{lowest}/"))
    above_sacrum = np.mean([rows[disc][h] for h in HEIGHTS]) / rows[lowest]["middle_height_mm"]  # the sacrum itself is not measured
    assert rows[disc]["height_index"] == pytest.approx(above_sacrum, abs=0.01)
    l2, l3 = rows["L2"], rows["L3"]
    heights = np.mean([rows["L2/L3"][h] for h in HEIGHTS])
    assert rows["L2/L3"]["height_index"] == pytest.approx(heights / np.mean([l2["middle_height_mm"], l3["middle_height_mm"]]), abs=0.01)
    assert l2["slip_percent"] == pytest.approx(100 * l2["slip_mm"] / l3["depth_mm"], abs=0.05)
    neighbours = np.mean([rows[n]["posterior_height_mm"] for n in ("L1", "L3")])
    ratios = [l2["anterior_height_mm"] / l2["posterior_height_mm"], l2["middle_height_mm"] / l2["posterior_height_mm"]]
    assert l2["height_loss"] == pytest.approx(max(0, 1 - min([*ratios, l2["posterior_height_mm"] / neighbours])), abs=0.01)


def test_a_fracture_and_a_slip():
    rows = measured(draw_phantom(5, contrast="T2w", wedged={"L1": 0.3}, slipped={"L4": 6.0})).structures
    assert {name: row["height_loss_grade"] for name, row in rows.items() if row.get("height_loss_grade")} == {"L1": 2}
    assert {name for name, row in rows.items() if abs(row.get("slip_mm", 0)) > 3} == {"L4"}
    assert rows["L4"]["slip_percent"] == pytest.approx(100 * 6.0 / rows["L5"]["depth_mm"], abs=2.5)


@pytest.mark.parametrize(
    ("anterior_mm", "loss", "grade"),
    [(25.0, 0.0, 0), (20.2, 0.19, 0), (20.1, 0.2, 1), (18.9, 0.24, 1), (18.85, 0.25, 2), (18.7, 0.25, 2), (15.1, 0.4, 3)],
)
def test_the_grade_is_that_of_the_loss_that_is_written(anterior_mm, loss, grade):
    heights = {"anterior_height_mm": anterior_mm, "middle_height_mm": 25.0, "posterior_height_mm": 25.0}
    assert height_loss(heights, []) == {"height_loss": loss, "height_loss_grade": grade}


@pytest.mark.parametrize("order", ["PIR", "LSA", "IPL"])
def test_the_order_of_the_voxels_does_not_matter(order):
    phantom = draw_phantom(6, contrast="T2w", order="RAS")
    label = nib.Nifti1Image(encode(phantom.label), phantom.affine)
    change = nib.orientations.ornt_transform(nib.orientations.io_orientation(phantom.affine), nib.orientations.axcodes2ornt(tuple(order)))
    turned = label.as_reoriented(change)
    again, expected = measure_spine(np.asarray(turned.dataobj), turned.affine), measured(phantom)
    assert again.structures == expected.structures
    assert again.spine == expected.spine


def test_a_mirrored_spine_leans_the_other_way():
    phantom = draw_phantom(7, contrast="T2w", order="RAS", oblique_deg=0.0)
    label = encode(phantom.label)
    ours, mirrored = measure_spine(label, phantom.affine), measure_spine(label[::-1], phantom.affine)
    for name, row in ours.structures.items():
        for key, value in row.items():
            assert mirrored.structures[name][key] == pytest.approx(-value if key in ("coronal_deg", "axial_deg") else value, abs=0.02)
    assert mirrored.spine["cobb_deg"] == pytest.approx(ours.spine["cobb_deg"], abs=0.02)


@pytest.mark.parametrize("degrees", [-10.0, 20.0])
def test_a_patient_who_lies_turned(degrees):
    """About the long axis, by which the coronal plane of the scanner is no longer that of the patient."""
    phantom = draw_phantom(7, contrast="T2w", oblique_deg=0.0)
    label, turn = encode(phantom.label), from_matvec(create_rotate(3, [0, 0, np.radians(degrees)])[:3, :3])
    lying, turned = measure_spine(label, phantom.affine), measure_spine(label, turn @ phantom.affine)
    checked = 0
    for name, row in lying.structures.items():
        if "axial_deg" in row:
            checked += 1
            assert turned.structures[name]["axial_deg"] == pytest.approx(row["axial_deg"] + degrees, abs=2.5)
            assert turned.structures[name]["coronal_deg"] == pytest.approx(row["coronal_deg"], abs=1)
            assert turned.structures[name]["wedge_deg"] == pytest.approx(row["wedge_deg"], abs=1)
    assert checked >= 5
    assert turned.spine["cobb_deg"] == pytest.approx(lying.spine["cobb_deg"], abs=1)


def test_the_label_is_not_changed():
    phantom = draw_phantom(7, contrast="T2w")
    label, affine = encode(phantom.label), phantom.affine.copy()
    before = label.copy()
    measure_spine(label, affine)
    assert np.array_equal(label, before)
    assert np.array_equal(affine, phantom.affine)


# what is not measured


@pytest.fixture(scope="module")
def upright() -> tuple[np.ndarray, np.ndarray]:
    """Label and affine of a phantom in RAS order."""
    phantom = draw_phantom(6, contrast="T2w", order="RAS", oblique_deg=0.0)
    return encode(phantom.label), phantom.affine


def rows_of(label: np.ndarray, name: str) -> np.ndarray:
    return np.flatnonzero((label == structure(name).channel).any((0, 1)))


def test_what_the_view_cuts(upright):
    label, affine = upright
    bottom, top = int(rows_of(label, "L5").mean()), int(rows_of(label, "L1").mean())
    found = measure_spine(label[:, :, bottom:top], affine)
    assert list(found.bodies) == ["L2", "L3", "L4"]
    assert set(found.structures) == {"L2", "L3", "L4", "L2/L3", "L3/L4"}
    assert set(found.spine) == {"cobb_deg", "cobb_levels"}
    assert "slip_mm" not in found.structures["L4"]
    narrow = measure_spine(label[4:-4], affine)  # slices often miss the sides of the bodies
    assert "L3" in narrow.bodies


def test_sacrum_at_the_end_of_the_view(upright):
    label, affine = upright
    whole = measure_spine(label, affine)
    rows = rows_of(label, "S1")
    plate = measure_spine(label[:, :, rows[len(rows) // 3] :], affine)
    assert ("S1" in plate.bodies) == (plate.spine.get("lordosis_deg") is not None)
    for start in range(rows[0] + 1, rows[-1]):  # cut anywhere, its end-plate is right or not there
        cut = measure_spine(label[:, :, start:], affine)
        if "lordosis_deg" in cut.spine:
            assert cut.spine["lordosis_deg"] == pytest.approx(whole.spine["lordosis_deg"], abs=2.0)


def test_a_missing_vertebra_has_no_disc(upright):
    label, affine = upright[0].copy(), upright[1]
    label[label == structure("L3").channel] = 0
    found = measure_spine(label, affine)
    assert not {"L2/L3", "L3/L4"} & set(found.structures)
    assert "slip_mm" not in found.structures["L2"]
    assert "L4/L5" in found.structures


@pytest.mark.parametrize("names", [[], ["L3"]])
def test_few_bodies(upright, names):
    label = np.where(np.isin(upright[0], [structure(name).channel for name in names]), upright[0], 0)
    found = measure_spine(label, upright[1])
    assert list(found.structures) == names
    assert found.spine == {}
    if names:
        assert "slip_mm" not in found.structures["L3"]
        whole = measure_spine(*upright).structures["L3"]
        assert [found.structures["L3"][h] for h in HEIGHTS] == pytest.approx([whole[h] for h in HEIGHTS], abs=0.1)


def test_what_is_cut_where_the_volume_goes_on(upright):
    """A blank border of the scan cuts a structure, which the label map does not show."""
    label, affine = upright
    whole, cut = measure_spine(label, affine), measure_spine(label, affine, {"L2": ["superior"], "L4": ["left"]})
    assert "L2" in whole.bodies
    assert [*cut.bodies] == [name for name in whole.bodies if name != "L2"]
    assert {"L1/L2", "L2", "L2/L3"}.isdisjoint(cut.structures)
    assert cut.structures["L4"] == whole.structures["L4"]


def test_angles_do_not_wrap():
    forward = np.array([0.0, 1.0, 0.0])

    def at(deg: float) -> np.ndarray:
        return np.array([0.0, np.cos(np.radians(deg)), np.sin(np.radians(deg))])

    assert turned_deg(forward, at(20)) == pytest.approx(20)
    assert turned_deg(at(175), at(-175)) == pytest.approx(10)  # not -350
    assert turned_deg(at(-170), at(170)) == pytest.approx(-20)
    assert turned_deg(np.array([5.0, 1.0, 0.0]), np.array([-3.0, 1.0, 1.0])) == pytest.approx(45)  # in the sagittal plane alone


def test_the_cobb_angle_leaves_out_half_a_body():
    """The half that is left of a body has another slope."""
    phantom = draw_phantom(11, contrast="T2w", scoliosis=30.0, shape=(30, 200, 280), spacing_mm=(1.0, 4.0), order="RAS", oblique_deg=0.0)
    label = encode(phantom.label)
    everything = measure_spine(label, phantom.affine)
    first = everything.spine["cobb_levels"].split("-")[0]
    half = label.copy()
    middle = int(np.argwhere(label == structure(first).channel)[:, 0].mean())
    half[: middle + 1][half[: middle + 1] == structure(first).channel] = 0
    without = measure_spine(half, phantom.affine)
    assert not {"axial_deg", "coronal_deg"} & without.structures[first].keys()
    assert first not in without.spine["cobb_levels"].split("-")
    assert without.spine["cobb_deg"] < everything.spine["cobb_deg"]
    two = np.where(np.isin(label, [structure(name).channel for name in ("L1", "L2")]), label, 0)
    narrow = measure_spine(two[middle - 2 : middle + 3], phantom.affine)
    assert not any({"axial_deg", "coronal_deg"} & row.keys() for row in narrow.structures.values())
    assert "cobb_deg" not in narrow.spine


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5])
def test_a_narrow_body_does_not_fall_over(slices):
    """In a scoliosis, with the axis across the slices, a narrow part has the heights of the whole body, or none."""
    phantom = draw_phantom(33, contrast="T2w", scoliosis=35.0, order="RAS")
    label = encode(phantom.label)
    narrow = np.zeros_like(label)
    for s in (s for s in label_table()[1:] if not s.is_disc and (label == s.channel).any()):
        places = np.flatnonzero((label == s.channel).any((1, 2)))
        kept = places[(len(places) - slices) // 2 :][:slices]
        narrow[kept] += s.channel * (label[kept] == s.channel).astype(np.uint8)
    everything, rest = measure_spine(label, phantom.affine), measure_spine(narrow, phantom.affine)
    assert bool(rest.structures) is (slices > 1)
    for name, row in rest.structures.items():
        for key in ("anterior_height_mm", "middle_height_mm", "posterior_height_mm"):
            if "/" not in name and name != "S1":
                assert row[key] == pytest.approx(everything.structures[name][key], abs=4)
