"""S1 below labels that end with L5: drawn blocks, and a stand-in for the network that takes what is bright for a body."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.labels import structure
from scripts.levels.sacrum import find_sacrum

SIZE_MM = np.array([80, 120, 160])


def scene(
    spacing=(1.0, 1.0, 1.0), names=("L4", "L5"), bent_deg: float = 0.0, filled: float = 1.0
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Image, label and the voxels of S1: blocks of 40 x 30 x 24 mm, 32 mm apart, S1 behind a bend."""
    shape = np.rint(SIZE_MM / spacing).astype(int)
    grid = np.stack(np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing)), indexing="ij"), -1)
    place, angle = np.array([40.0, 75.0, 120.0]), 0.0
    masks = []
    for number in range(3):
        if number == 2:
            angle = np.deg2rad(bent_deg)
        up = np.array([0, np.sin(angle), np.cos(angle)])
        if number:
            place = place - 32 * up
        front = np.array([0, np.cos(angle), -np.sin(angle)])
        masks.append(
            np.logical_and.reduce([np.abs((grid - place) @ axis) < n / 2 for axis, n in ((np.eye(3)[0], 40), (front, 30), (up, 24))])
        )
    label = np.zeros(shape, np.uint8)
    for name, mask in zip(names, masks):
        label[mask] = structure(name).channel
    holes = np.random.default_rng(0).random(shape) > filled
    image = np.any(masks, 0) & ~(masks[2] & holes)
    return torch.from_numpy(image[None].astype(np.float32)), label, masks[2]


def bright(patch: torch.Tensor) -> torch.Tensor:
    body = 20 * (patch - 0.5)
    return torch.cat([-body, body, torch.full_like(body, -20)], 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)])
@pytest.mark.parametrize("bent_deg", [0.0, 35.0])
def test_finds_s1_on_its_place(spacing, bent_deg):
    image, label, truth = scene(spacing, bent_deg=bent_deg)
    found = find_sacrum(image, label, spacing, bright)
    assert found.shape == label.shape
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93
    assert not (found & (label > 0)).any()


def test_the_network_sees_it_upright():
    """The patches are turned by 10 to 40 degrees: S1 bent by 25 is upright in the middle of them."""
    image, label, _ = scene(bent_deg=25.0)
    image[0][torch.from_numpy(label > 0)] = 0  # S1 alone
    widths = []

    def watched(patch: torch.Tensor) -> torch.Tensor:
        seen = (patch[0, 0] > 0.5).nonzero()
        widths.append((seen.amax(0) - seen.amin(0) + 1)[2].item())
        return bright(patch)

    find_sacrum(image, label, (1.0, 1.0, 1.0), watched)
    height = 24 * np.cos(np.deg2rad(15)) + 30 * np.sin(np.deg2rad(15))  # of the block, 15 or 5 degrees off
    near = 24 * np.cos(np.deg2rad(5)) + 30 * np.sin(np.deg2rad(5))
    assert widths == pytest.approx([height, near, near, height], abs=1.5)


def test_no_guess():
    spacing = (1.0, 1.0, 1.0)
    image, label, truth = scene()
    assert find_sacrum(image, np.where(label == structure("L5").channel, 0, label), spacing, bright) is None  # L5 is not labelled
    empty = image.clone()
    empty[0][torch.from_numpy(truth)] = 0
    assert find_sacrum(empty, label, spacing, bright) is None  # nothing there
    assert find_sacrum(*scene(filled=0.6)[:2], spacing, bright) is None  # in shreds


def test_below_a_labelled_disc():
    image, label, truth = scene()
    discs = np.zeros_like(label)
    for name, low, high in (("L4/L5", 102, 106), ("L5/S1", 70, 74)):
        discs[20:60, 60:90, low:high] = structure(name).channel
    found = find_sacrum(image, discs, (1.0, 1.0, 1.0), bright)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.93
