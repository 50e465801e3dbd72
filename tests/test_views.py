"""Slices: the right one, the right way up, along a curved spine."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from drawn_phantom import DISC, L1, L2, SPACING, curved, phantom, turned

from scripts import views
from scripts.labels import structure


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL", "SRP"])
@pytest.mark.parametrize("degrees", [0, 14])
def test_to_ras_undoes_every_orientation(codes, degrees):
    image, _ = phantom()
    stored, affine = turned(image, codes, degrees)
    assert "".join(nib.aff2axcodes(affine)) == codes
    found, spacing_mm = views.to_ras(stored, affine)
    np.testing.assert_array_equal(found, image)
    np.testing.assert_allclose(spacing_mm, SPACING)


def test_to_ras_takes_spacings():
    found, spacing_mm = views.to_ras(np.zeros((2, 3, 4)), np.array([4, 1, 1.5]))
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(spacing_mm, SPACING)


def test_take_slice_is_radiological():
    image, _ = phantom()
    sagittal = views.take_slice(image, "sagittal", 5)
    assert sagittal.shape == (50, 40)
    assert np.unravel_index(sagittal.argmax(), sagittal.shape) == (4, 2)  # superior: near the top; anterior: near the left edge
    coronal = views.take_slice(image, "coronal", 22)
    assert coronal.shape == (50, 9)
    assert np.unravel_index(coronal.argmax(), coronal.shape) == (46, 7)  # inferior: near the bottom; patient's left: near the right edge


def test_best_index():
    _, label = phantom()
    assert views.best_index(label, "sagittal") == 5
    assert views.best_index(label, "coronal") == 22
    assert views.best_index(np.zeros_like(label), "sagittal") == 4
    assert views.best_index(np.zeros_like(label), "coronal") == 20
    discs = np.zeros_like(label)
    discs[7, 3, 3] = DISC
    assert views.best_index(discs, "sagittal") == 7
    discs[8] = 255  # "ignore" is no structure
    assert views.best_index(discs, "sagittal") == 7


def test_a_slice_follows_the_spine():
    path = views.spine_path(curved(5), "sagittal", SPACING)  # 20 mm apart
    assert path.shape == (50,)
    assert [path[z] for z in (0, 14, 18, 22, 34, 49)] == pytest.approx([3, 3, 4, 5, 8, 8])
    assert path[20] == pytest.approx(4.5)
    assert views.spine_path(curved(5), "coronal", SPACING) == 20  # straight in that plane
    assert views.spine_path(curved(1), "sagittal", SPACING) == views.best_index(curved(1), "sagittal")  # 4 mm
    assert views.spine_path(np.zeros((9, 40, 50), np.uint8), "sagittal", SPACING) == 4
    discs = np.where(curved(5) == L1, DISC, np.where(curved(5) == L2, structure("L2/L3").channel, 0))
    np.testing.assert_array_equal(views.spine_path(discs, "sagittal", SPACING), path)


@pytest.mark.parametrize("plane", ["sagittal", "coronal"])
def test_a_curved_slice_has_the_voxels_on_its_path(plane):
    volume = np.random.default_rng(0).normal(size=(6, 6, 5))
    path = np.array([0, 2, 5, 5, 1])
    drawn = views.take_slice(volume, plane, path)
    for z, i in enumerate(path):
        row = volume[i, :, z] if plane == "sagittal" else volume[:, i, z]
        np.testing.assert_array_equal(drawn[::-1, ::-1][z], row)
    np.testing.assert_array_equal(views.take_slice(volume, plane, np.full(5, 3)), views.take_slice(volume, plane, 3))


@pytest.mark.parametrize("plane", ["sagittal", "coronal"])
def test_images_are_interpolated_between_slices_and_labels_are_not(plane):
    volume = np.zeros((6, 6, 4))
    volume[2], volume[3] = 10, 20
    if plane == "coronal":
        volume = volume.swapaxes(0, 1)
    view = views.make_view(volume, (volume / 10).astype(np.uint8), SPACING, plane, np.array([2.0, 2.25, 2.75, 5.0]), slice(1, 3))
    assert view.image[::-1].tolist() == [[10.0] * 2, [12.5] * 2, [17.5] * 2, [0.0] * 2]
    assert view.label[::-1].tolist() == [[1] * 2, [1] * 2, [2] * 2, [0] * 2]


def test_crop_columns_keeps_margin_and_length():
    label = np.zeros((9, 200, 50), np.uint8)
    label[4, 90:100, 20] = L1
    columns = views.crop_columns(label, "sagittal", SPACING)
    assert columns == slice(60, 150)  # anterior 40 mm in front of index 99: column 200 - 1 - 99 - 40; behind index 90 likewise
    assert views.crop_columns(label, "coronal", SPACING) == slice(0, 9)
    assert views.crop_columns(np.zeros_like(label), "sagittal", SPACING) == slice(None)
    view = views.make_view(label.astype(float), label, SPACING, "sagittal", 4, columns)
    assert view.image.shape == (50, 90)
    assert view.size_mm == (75, 90)
