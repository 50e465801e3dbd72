"""Random intensities and slice thickness against hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.augment import RandBlankBordersd, RandIntensityMapd, RandInvertIntensityd, RandThickSlicesd

AFFINE = torch.diag(torch.tensor([4.0, 0.8, 0.9, 1.0], dtype=torch.float64))

# RandInvertIntensityd


def test_rand_invert():
    image = MetaTensor(torch.tensor([[0.0, 0.25], [0.75, 1.0]])[None], affine=AFFINE)
    copy = image.clone()
    inverted = RandInvertIntensityd(prob=1.0)({"image": image, "label": image})
    assert inverted["image"].tolist() == [[[1.0, 0.75], [0.25, 0.0]]]
    assert torch.equal(inverted["image"].affine, AFFINE)
    assert inverted["label"] is image
    assert RandInvertIntensityd(prob=0.0)({"image": image})["image"] is image
    assert torch.equal(image, copy)


def test_rand_invert_changes_all_keys_or_none():
    invert = RandInvertIntensityd(["image", "view"], prob=0.5).set_random_state(0)
    results = [invert({"image": torch.zeros(1), "view": torch.zeros(1)}) for _ in range(20)]
    assert {(r["image"].item(), r["view"].item()) for r in results} == {(0, 0), (1, 1)}


def test_rand_invert_follows_its_seed_and_probability():
    invert = RandInvertIntensityd(prob=0.25).set_random_state(0)
    flips = [invert({"image": torch.zeros(1)})["image"].item() for _ in range(400)]
    assert 0.18 < np.mean(flips) < 0.32
    again = RandInvertIntensityd(prob=0.25).set_random_state(0)
    assert flips == [again({"image": torch.zeros(1)})["image"].item() for _ in range(400)]


# RandIntensityMapd


def test_intensity_map_by_hand():
    change = RandIntensityMapd(["image", "view"], knots=3)
    change.randomize = lambda: vars(change).update(_do_transform=True, values=torch.tensor([0.25, 1.0, 0.0]), share=1.0)  # at 0, 0.5 and 1
    image = torch.tensor([-0.5, 0.0, 0.25, 0.5, 0.75, 0.875, 1.0, 1.5]).view(1, 2, 2, 2)
    changed = change({"image": image, "view": image.flip(1), "label": image})
    expected = torch.tensor([0.25, 0.25, 0.625, 1.0, 0.5, 0.25, 0.0, 0.0]).view(1, 2, 2, 2)
    torch.testing.assert_close(changed["image"], expected)
    torch.testing.assert_close(changed["view"], expected.flip(1))
    assert changed["label"] is image
    assert image.min() == -0.5


def test_intensity_map_without_strength_is_the_identity():
    image = torch.linspace(0, 1, 101).view(1, 101, 1, 1)
    changed = RandIntensityMapd(prob=1.0, strength=0.0)({"image": image})["image"]
    torch.testing.assert_close(changed, image, atol=1e-6, rtol=0)
    assert changed is not image


def test_intensity_map_of_quantiles():
    """Five dark tissues of as many voxels get values of their own, whatever their intensities are."""
    change = RandIntensityMapd(["view"], knots=5, quantiles=True, allow_missing_keys=True)
    values = torch.tensor([0.9, 0.1, 0.5, 0.0, 1.0])
    change.randomize = lambda: vars(change).update(_do_transform=True, values=values, share=1.0)
    tissues = torch.tensor([0.0, 0.02, 0.05, 0.06, 1.0])
    changed = change({"view": tissues.repeat_interleave(100)[:-99].view(1, -1, 1, 1)})["view"].flatten()
    torch.testing.assert_close(changed[[50, 150, 250, 350, 400]], values, atol=2e-2, rtol=0)
    assert change({"image": tissues})["image"] is tissues


@pytest.mark.parametrize(("knots", "strength"), [(2, 1.0), (6, 0.3), (6, 1.0)])
def test_random_intensity_maps(knots, strength):
    change = RandIntensityMapd(prob=1.0, knots=knots, strength=strength).set_random_state(0)
    image = torch.linspace(0, 1, 10 * (knots - 1) + 1).view(1, -1, 1, 1)
    turned = 0
    for _ in range(50):
        changed = change({"image": image})["image"].flatten()
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert (changed - image.flatten()).abs().max() <= strength + 1e-6
        torch.testing.assert_close(changed[::10], torch.lerp(torch.linspace(0, 1, knots), change.values, change.share), atol=1e-5, rtol=0)
        between = (changed[0::10][:-1] + changed[10::10]) / 2
        torch.testing.assert_close(changed[5::10], between, atol=1e-5, rtol=0)  # straight from knot to knot
        turned += bool((changed.diff() < 0).any())
    assert turned > 5  # tissues change their order


def test_intensity_map_follows_its_seed_and_probability():
    image = torch.linspace(0, 1, 8).view(1, 2, 2, 2)
    assert RandIntensityMapd(prob=0.0)({"image": image})["image"] is image
    first, again = (RandIntensityMapd(prob=0.25).set_random_state(0) for _ in range(2))
    maps = [first({"image": image})["image"] for _ in range(400)]
    assert 0.18 < np.mean([m is not image for m in maps]) < 0.32
    assert all(torch.equal(m, again({"image": image})["image"]) for m in maps)


# RandThickSlicesd


def along(axis: int, values, size: int = 3) -> torch.Tensor:
    """Volume 1XYZ whose values change along one axis."""
    values = torch.as_tensor(values, dtype=torch.float32)
    return values.view([-1 if a == axis else 1 for a in range(3)]).expand([-1 if a == axis else size for a in range(3)])[None].clone()


def thick(thickness: float, axis: int = 0, **options) -> RandThickSlicesd:
    return RandThickSlicesd(prob=1.0, thickness=(thickness, thickness), axis_prob=np.eye(3)[axis], **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_of_a_ramp(axis):
    image = along(axis, range(12))
    copy = image.clone()
    changed = thick(4, axis)({"image": image, "label": image})
    # three slices with the means 1.5, 5.5 and 9.5; straight between them, constant outside
    torch.testing.assert_close(changed["image"], along(axis, [1.5, 1.5, 2, 3, 4, 5, 6, 7, 8, 9, 9.5, 9.5]))
    assert changed["label"] is image
    assert torch.equal(image, copy)
    assert RandThickSlicesd(prob=0.0)({"image": image})["image"] is image


def test_thick_slices_of_a_bright_voxel():
    spread = [0, 0, 1, 3, 5, 7, 7, 5, 3, 1, 0, 0]  # the second of three slices holds 1/4, halfway to the next it fades
    changed = thick(4)({"image": along(0, np.arange(12) == 5)})["image"]
    torch.testing.assert_close(changed, along(0, np.array(spread) / 32))
    assert changed.sum().item() == pytest.approx(9)


def test_thick_slices_leave_the_other_axes():
    image = torch.tensor([[3.0, 1.0, 4.0, 1.0], [5.0, 9.0, 2.0, 6.0]]).expand(1, 12, 2, 4)
    torch.testing.assert_close(thick(3)({"image": image})["image"], image)


def test_thickness_is_the_same_for_all_keys():
    changed = thick(4, keys=["image", "other"])({"image": along(0, range(8)), "other": along(0, range(8))})
    torch.testing.assert_close(changed["image"], along(0, [1.5, 1.5, 2, 3, 4, 5, 5.5, 5.5]))  # two slices of 4 voxels
    torch.testing.assert_close(changed["other"], changed["image"])


@pytest.mark.parametrize("thickness", [1.0, 2.3, 3.7, 5.0, 100.0])
def test_thick_slices_keep_shape_and_mean(thickness):
    image = torch.rand(1, 11, 7, 5, generator=torch.Generator().manual_seed(0))
    changed = thick(thickness)({"image": image})["image"]
    assert changed.shape == image.shape
    assert changed.dtype == torch.float32
    assert changed.mean().item() == pytest.approx(image.mean().item(), abs=0.02)
    assert changed.min() >= image.min()
    assert changed.max() <= image.max()
    assert torch.equal(changed, image) is (thickness == 1)


def test_thick_slices_draw_axis_and_thickness():
    change = RandThickSlicesd(prob=0.5, thickness=(2, 6), axis_prob=(0.7, 0.3, 0.0)).set_random_state(0)
    again = RandThickSlicesd(prob=0.5, thickness=(2, 6), axis_prob=(0.7, 0.3, 0.0)).set_random_state(0)
    image = torch.rand(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    axes, roughness = [], set()
    for _ in range(120):
        changed = change({"image": image})["image"]
        assert torch.equal(changed, again({"image": image})["image"])
        if changed is not image:
            smooth = [changed.diff(dim=a).abs().mean().item() for a in (1, 2, 3)]
            axes.append(int(np.argmin(smooth)))
            roughness.add(round(min(smooth), 3))
    assert 40 < len(axes) < 80
    assert 0.5 < np.mean(np.array(axes) == 0) < 0.9
    assert set(axes) == {0, 1}
    assert len(roughness) > 4  # several thicknesses


# RandBlankBordersd


class Borders(RandBlankBordersd):
    """A transform whose borders are given instead of drawn."""

    def __init__(self, *borders: tuple[int, float, bool]) -> None:
        super().__init__(["image", "label"], prob=1.0)
        self.given = list(borders)

    def randomize(self, data: None = None) -> None:
        super().randomize(data)
        self.borders = self.given


def test_blank_borders_by_hand():
    image, label = torch.rand(1, 4, 6, 8) + 1, torch.ones(1, 4, 6, 8, dtype=torch.uint8)
    copies = image.clone(), label.clone()
    found = Borders((0, 0.3, True), (2, 0.5, False))({"image": image, "label": label, "other": image})
    seen = torch.zeros(1, 4, 6, 8, dtype=torch.uint8)
    seen[:, 1:, :, :4] = 1  # one slice of four, rounded down, and four of eight
    assert torch.equal(found["label"], seen)
    assert torch.equal(found["image"], image * seen)
    assert found["other"] is image
    assert torch.equal(image, copies[0])
    assert torch.equal(label, copies[1])
    assert torch.equal(Borders((1, 0.1, False))({"image": image, "label": label})["image"], image)  # less than a voxel


def test_blank_borders_follow_their_seed_probability_and_share():
    def blank(seed: int, **options) -> list[list[int]]:
        """Number of blank slices along every axis, of 300 images."""
        blank_borders = RandBlankBordersd("image", **options).set_random_state(seed)
        images = [blank_borders({"image": torch.ones(1, 20, 20, 20)})["image"][0].bool() for _ in range(300)]
        return [[20 - int(image.movedim(axis, 0).flatten(1).any(1).sum()) for axis in range(3)] for image in images]

    found = np.array(blank(0, prob=0.4, share=0.5))
    assert 0.3 < (found > 0).any(1).mean() < 0.45
    assert set((found > 0).sum(1)) == {0, 1, 2}  # axes
    assert found.max() == 9  # less than half of 20 slices
    assert blank(1) == blank(1) != blank(2)
    assert not np.any(blank(0, prob=0.0))
