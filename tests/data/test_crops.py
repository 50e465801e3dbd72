"""Random patches and views: known affine maps give known voxels, random ones keep what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.nn.functional import avg_pool3d

from scripts.data.complete_labels import BEYOND, UNKNOWN
from scripts.data.crops import RandSpineSamplesd

PATCH, VIEW, VOXEL = (6, 8, 8), (4, 6, 5), (4, 4, 4)
SIZE = (16, 24, 20)  # of the scan: VIEW * VOXEL
MIDDLE = (np.array(SIZE) - 1) / 2


def sampler(**options) -> RandSpineSamplesd:
    return RandSpineSamplesd(["image", "label"], **{"patch_size": PATCH, "view_size": VIEW, "view_voxel": VOXEL, **options})


def draw(
    image: torch.Tensor,
    label: torch.Tensor,
    matrix=None,
    patch_centre=MIDDLE,
    view_centre=MIDDLE,
    wave=(0, 0, 0),
    seen=(0, None),
    **options,
) -> dict:
    """Samples through a given map instead of a random one."""
    transform = sampler(**options)
    matrix = np.eye(3) if matrix is None else np.array(matrix, float)
    given = {"view_matrix": matrix, "patch_matrix": matrix, "patch_centre": patch_centre, "view_centre": view_centre}
    given["wave"], given["seen"] = wave, seen
    transform.randomize = lambda label: vars(transform).update(given)
    return transform({"image": image, "label": label})


def scan(size=SIZE, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and a label that has another value in every voxel of a neighbourhood."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, *size, generator=generator), torch.randint(0, 24, (1, *size), generator=generator, dtype=torch.uint8)


def crop(volume: torch.Tensor, start) -> torch.Tensor:
    return volume[:, start[0] : start[0] + 6, start[1] : start[1] + 8, start[2] : start[2] + 8].float()


START = (3, 10, 5)
CENTRE = np.array(START) + (np.array(PATCH) - 1) / 2


def assert_patch(samples: dict, image: torch.Tensor, label: torch.Tensor) -> None:
    torch.testing.assert_close(samples["image"], image, atol=1e-4, rtol=0)
    assert torch.equal(samples["label"], label)


def test_identity_is_a_crop():
    image, label = scan()
    samples = draw(image, label, patch_centre=CENTRE)
    assert_patch(samples, crop(image, START), crop(label, START))
    assert {k: tuple(v.shape) for k, v in samples.items()} == {
        **dict.fromkeys(("image", "label"), (1, *PATCH)),
        **dict.fromkeys(("view", "view_label"), (1, *VIEW)),
    }
    assert {v.dtype for v in samples.values()} == {torch.float32}


def test_flip_mirrors_left_and_right():
    image, label = scan()
    samples, straight = (draw(image, label, np.diag([x, 1, 1]), CENTRE) for x in (-1, 1))
    assert_patch(samples, crop(image, START).flip(1), crop(label, START).flip(1))
    torch.testing.assert_close(samples["view"], straight["view"].flip(1))


def test_quarter_turn():
    image, label = scan()
    # a step along the patch's second axis is one along the scan's third; one along its third goes back along the scan's second
    samples = draw(image, label, [[1, 0, 0], [0, 0, -1], [0, 1, 0]], CENTRE)
    assert_patch(samples, *(crop(v, START).flip(2).transpose(2, 3) for v in (image, label)))


def test_any_affine_map_of_a_ramp():
    size, weights = (40, 44, 36), torch.tensor([0.5, -0.25, 1.0])
    x = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
    image = torch.einsum("a,axyz->xyz", weights, x)[None]  # linear, so that interpolation is exact
    transform = sampler(rotate=0.4, scale=0.2, exact_prob=0.0, flip_prob=1.0).set_random_state(3)
    transform.randomize(torch.zeros(1, *size))
    samples = draw(
        image,
        torch.zeros(1, *size),
        transform.patch_matrix,
        np.array([19.3, 22.1, 16.8]),
        np.array([18.5, 21.0, 17.25]),
        view_size=(3, 4, 3),
    )
    for name, n, centre, voxel in (("image", PATCH, (19.3, 22.1, 16.8), 1), ("view", (3, 4, 3), (18.5, 21.0, 17.25), 4)):
        steps = torch.stack(torch.meshgrid(*[(torch.arange(float(k)) - (k - 1) / 2) * voxel for k in n], indexing="ij"))
        places = torch.einsum("ab,bxyz->axyz", torch.tensor(transform.patch_matrix).float(), steps) + torch.tensor(centre).view(3, 1, 1, 1)
        torch.testing.assert_close(samples[name][0], torch.einsum("a,axyz->xyz", weights, places), atol=2e-3, rtol=0)


def test_outside_the_scan_is_zero():
    image, label = scan()
    image, label = image + 1, label + 1
    samples = draw(image, label, patch_centre=np.array([-0.5, 3.5, 19.5]))  # half of it before the first axis, half behind the third
    for name, volume in (("image", image), ("label", label)):
        expected = torch.zeros(1, *PATCH)
        expected[:, 3:, :, :4] = volume[:, :3, :8, 16:]
        torch.testing.assert_close(samples[name], expected, atol=1e-4, rtol=0)
    samples = draw(image, label, patch_centre=np.array([100.0, -50.0, 7.0]), view_centre=np.array([-90.0, 11.5, 9.5]))
    assert not any(v.any() for v in samples.values())


@pytest.mark.parametrize("voxel", [(4, 4, 4), (2, 4, 2), (1, 2, 1)])
def test_view_averages_the_scan(voxel):
    size = tuple(np.array(VIEW) * voxel)
    image, _ = scan(size)
    _, coarse = scan(VIEW)
    label = coarse
    for axis, n in enumerate(voxel, start=1):
        label = label.repeat_interleave(n, axis)
    samples = draw(image, label, view_centre=(np.array(size) - 1) / 2, view_voxel=voxel, samples=("view",))
    torch.testing.assert_close(samples["view"], avg_pool3d(image[None], voxel)[0], atol=1e-4, rtol=0)
    assert torch.equal(samples["view_label"], coarse.float())


def test_view_of_an_odd_number_of_voxels():
    """A ramp keeps its values whatever the weights of the mean."""
    ramp = torch.arange(18.0).view(1, 1, 1, -1).expand(1, 12, 18, 18)
    samples = draw(ramp, torch.zeros(1, 12, 18, 18), view_centre=np.array([5.5, 8.5, 8.5]), view_voxel=(3, 3, 3), view_size=(2, 4, 4))
    torch.testing.assert_close(samples["view"], torch.tensor([4.0, 7.0, 10.0, 13.0]).expand(1, 2, 4, 4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(40, 30, 50), (9, 50, 12)])
def test_random_samples(size):
    image, _ = scan(size)
    label = torch.zeros(1, *size, dtype=torch.uint8)
    label[:, 2:7, 10:20, 3:9] = 9
    label[:, :, 20:25], label[:, :, 25:] = BEYOND, UNKNOWN
    copies = image.clone(), label.clone()
    data = {"image": MetaTensor(image), "label": MetaTensor(label), "labelled": "kept"}
    transform, again = sampler().set_random_state(0), sampler().set_random_state(0)
    seen = set()
    for _ in range(10):
        samples, repeated = transform(data), again(data)
        assert samples.pop("labelled") == "kept"
        for name, value in samples.items():
            assert value.untyped_storage().data_ptr() not in (image.untyped_storage().data_ptr(), label.untyped_storage().data_ptr())
            assert type(value) is torch.Tensor
            assert value.shape == (1, *(VIEW if "view" in name else PATCH))
            assert torch.equal(value, repeated[name])
        for name in ("label", "view_label"):
            seen |= set(samples[name].unique().tolist())
    assert seen == {0, 9, BEYOND, UNKNOWN}
    assert not torch.equal(sampler().set_random_state(1)(data)["image"], sampler().set_random_state(0)(data)["image"])
    assert sorted(data) == ["image", "label", "labelled"]
    assert torch.equal(image, copies[0])
    assert torch.equal(label, copies[1])


def test_exact_patches_are_crops():
    image, label = scan()
    transform = sampler(rotate=0.3, view_rotate=0.3, exact_prob=1.0).set_random_state(0)
    flipped = []
    for _ in range(20):
        samples = transform({"image": image, "label": label})
        assert np.abs(transform.view_matrix - np.diag([np.linalg.det(transform.view_matrix), 1, 1])).max() > 0.01  # still turned
        mirrored = transform.patch_matrix[0, 0] < 0
        start = (transform.patch_centre - (np.array(PATCH) - 1) / 2).astype(int)
        inside = [slice(max(0, -s), min(n, size - s)) for s, n, size in zip(start, PATCH, SIZE)]
        place = tuple(slice(i.start + s, i.stop + s) for i, s in zip(inside, start))
        for name, volume in (("image", image), ("label", label.float())):
            patch = samples[name].flip(1) if mirrored else samples[name]
            expected = torch.zeros_like(patch)
            expected[(slice(None), *inside)] = volume[(slice(None), *place)]
            assert torch.equal(patch, expected)
        flipped.append(mirrored)
    assert 4 < sum(flipped) < 16


def test_a_wave_bends_the_view_alone():
    x, y, z = torch.meshgrid(*[torch.arange(float(n)) for n in SIZE], indexing="ij")
    size, voxel = (3, 3, 6), (2, 2, 2)
    wave = (2.0, 2 * np.pi / 24, 0.5)
    options = {"view_size": size, "view_voxel": voxel, "wave": wave}
    samples = draw(x[None], torch.zeros(1, *SIZE), **options)
    layers = (np.arange(6) - 2.5) * 2
    shift = 2 * (np.sin(layers * 2 * np.pi / 24 + 0.5) - np.sin(0.5))
    expected = 7.5 + 2 * (np.arange(3) - 1)[:, None] + shift  # the first coordinate at the places of x and z
    assert np.abs(samples["view"][0, :, 1].numpy() - expected).max() < 0.1  # the view averages two layers
    for axis in (y, z):
        bent, straight = (draw(axis[None], torch.zeros(1, *SIZE), **{**options, "wave": w}) for w in (wave, (0, 0, 0)))
        torch.testing.assert_close(bent["view"], straight["view"], atol=1e-4, rtol=0)
    torch.testing.assert_close(samples["image"], draw(x[None], torch.zeros(1, *SIZE))["image"])


def test_random_maps():
    label = torch.zeros(1, *SIZE)
    for flip_prob, expected in ((0.0, [1, 1, 1]), (1.0, [-1, 1, 1])):
        still = sampler(rotate=0, scale=0, view_rotate=0, view_scale=0, flip_prob=flip_prob)
        still.randomize(label)
        np.testing.assert_array_equal(still.patch_matrix, np.diag(expected))
        np.testing.assert_array_equal(still.view_matrix, np.diag(expected))
    transform = sampler(rotate=0.2, scale=0.15, view_rotate=0.4, view_scale=0.3, exact_prob=0.0).set_random_state(0)
    flips, drawn = 0, []
    for _ in range(200):
        transform.randomize(label)
        sizes = [np.linalg.norm(m, axis=0) for m in (transform.patch_matrix, transform.view_matrix)]
        np.testing.assert_allclose(2 * (sizes[0] - 1), sizes[1] - 1, atol=1e-12)
        patch_axes, view_axes = (m / size for m, size in zip((transform.patch_matrix, transform.view_matrix), sizes))
        for axes in (patch_axes, view_axes):
            np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)  # no shear
        assert np.abs(np.diag(patch_axes)).min() > np.cos(0.2) ** 2 - 0.01  # two turns move every axis
        assert np.abs(np.diag(view_axes)).min() > np.cos(0.4) ** 2 - 0.03
        assert np.linalg.det(patch_axes) * np.linalg.det(view_axes) > 0
        flips += np.linalg.det(patch_axes) < 0
        drawn.append([*(np.abs(size - 1).max() for size in sizes), np.abs(np.diag(patch_axes)).min(), np.abs(np.diag(view_axes)).min()])
    assert 70 < flips < 130
    assert (np.max(drawn, axis=0)[:2] <= [0.15, 0.3]).all()
    assert (np.max(drawn, axis=0)[:2] > [0.14, 0.28]).all()
    assert (np.min(drawn, axis=0)[2:] < [np.cos(0.19), np.cos(0.38)]).all()


def test_patches_lie_near_the_spine():
    label = torch.full((1, 40, 50, 60), BEYOND, dtype=torch.uint8)
    label[:, :20] = UNKNOWN
    label[:, 30:36, 5:25, 11:41] = 7  # 3 % of the scan
    low, high = np.array([30, 5, 11]), np.array([35, 24, 40])
    transform = sampler(spine_prob=1.0, jitter=0.25, exact_prob=0.0).set_random_state(0)
    centres = []
    for _ in range(200):
        transform.randomize(label)
        centres.append(transform.patch_centre)
    reach = 0.25 * np.array(PATCH)
    assert (np.min(centres, axis=0) >= low - reach).all()
    assert (np.max(centres, axis=0) <= high + reach).all()
    assert (np.min(centres, axis=0) < low + 1).all()  # they use all of it
    assert (np.max(centres, axis=0) > high - 1).all()


@pytest.mark.parametrize("spine_prob", [0.0, 1.0])
def test_patches_without_labelled_voxels_lie_anywhere(spine_prob):
    label = torch.full((1, *SIZE), UNKNOWN, dtype=torch.uint8)
    label[:, 0] = 0
    if spine_prob == 0:
        label[:, 8:12, 8:12, 8:12] = 7
    transform = sampler(spine_prob=spine_prob, exact_prob=0.0).set_random_state(0)
    centres = []
    for _ in range(300):
        transform.randomize(label)
        centres.append(transform.patch_centre)
    for outermost, end in ((np.min(centres, axis=0), np.zeros(3)), (np.max(centres, axis=0), np.array(SIZE) - 1)):
        assert (np.abs(outermost - end) < 1).all()
    assert (np.min(centres, axis=0) >= 0).all()
    assert (np.max(centres, axis=0) <= np.array(SIZE) - 1).all()
    assert transform({"image": torch.rand(1, *SIZE), "label": label})["image"].shape == (1, *PATCH)


@pytest.mark.parametrize(("alone", "keys"), [("image", {"image", "label"}), ("view", {"view", "view_label"})])
def test_a_sample_alone_is_that_of_both(alone, keys):
    image, label = scan()
    both, one = (sampler(samples=s).set_random_state(5)({"image": image, "label": label}) for s in (("image", "view"), (alone,)))
    assert one.keys() == keys
    assert all(torch.equal(one[key], both[key]) for key in keys)


def test_a_cut_view_is_that_of_a_smaller_scan():
    image, label = scan()
    smaller = [v[..., 4:16] for v in (image, label)]
    centre = np.array([7.5, 11.5, 5.5])
    cut, whole = draw(image, label, view_centre=centre, seen=(4, 16)), draw(*smaller, view_centre=centre)
    torch.testing.assert_close(cut["view"], whole["view"])
    assert torch.equal(cut["view_label"], whole["view_label"])
    torch.testing.assert_close(cut["image"], draw(image, label)["image"])  # patches lie anywhere all the same


def test_views_are_cut_at_either_end():
    transform = sampler(cut=0.25).set_random_state(0)
    seen = []
    for _ in range(400):
        transform.randomize(torch.zeros(1, 16, 24, 100))
        seen.append(transform.seen)
    low, high = np.array(seen).T
    assert 160 < (low == 0).sum() < 240
    assert 160 < (high == 100).sum() < 240
    assert low.max() == 24
    assert high.min() in (75, 76)
    transform.randomize(torch.zeros(1, 16, 24, 1))
    assert transform.seen == (0, 1)


def test_view_and_scan_lie_within_each_other():
    size = np.array([40, 24, 10])  # the view has 16, 24 and 20 voxels of the scan
    transform = sampler(cut=0).set_random_state(0)
    starts = []
    for _ in range(200):
        transform.randomize(torch.zeros(1, *size))
        starts.append(transform.view_centre - (np.array(VIEW) * VOXEL - 1) / 2)
    least, most = np.min(starts, axis=0), np.max(starts, axis=0)
    assert (least >= np.array([0, 0, -10]) - 1e-9).all()
    assert (most <= np.array([24, 0, 0]) + 1e-9).all()
    assert (least < [1, 1e-9, -9]).all()
    assert (most > [23, -1e-9, -1]).all()


def test_scan_of_a_single_slice():
    image, label = scan((1, 24, 20))
    samples = draw(image, label, patch_centre=np.array([0.5, *CENTRE[1:]]))
    expected = torch.zeros(1, *PATCH)
    expected[:, 2] = image[:, 0, 10:18, 5:13]
    torch.testing.assert_close(samples["image"], expected, atol=1e-4, rtol=0)
    view = draw(image, label, view_centre=np.array([0.0, *MIDDLE[1:]]), view_size=(1, 6, 5), samples=("view",))["view"]
    torch.testing.assert_close(view, avg_pool3d(image[None], (1, 4, 4))[0], atol=1e-4, rtol=0)
