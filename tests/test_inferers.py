"""Inferers, with a network whose coarse answer is a threshold and whose fine answer is pointwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from torch import nn

from scripts import inferers
from scripts.inferers import AutocastInferer, CoarseToFineInferer
from scripts.labels import label_table, structure
from scripts.levels.logits import level_logits
from scripts.network import SpineNet

CHANNELS = len(label_table())
L3 = structure("L3").channel
SHAPE = (37, 70, 66)  # no size is a multiple of a coarse voxel or a stride
SPINE = (slice(12, 20), slice(28, 40), slice(16, 48))  # coarse voxels 3:5, 7:10, 4:12
WINDOW = (64, 64, 64)  # one window for every box here
ALL = (slice(None), slice(None))


def network() -> SpineNet:
    """Make a network that sees L3 in bright voxels: on the coarse grid above a mean of 0.5, on the fine grid the likelier the brighter."""
    net = SpineNet(nn.Identity(), nn.Conv3d(1, 3, 1), 1).eval()
    with torch.no_grad():
        level = net.coarse[1]
        level.weight.zero_()
        level.bias.fill_(-20.0)
        level.weight[0], level.bias[0] = -20.0, 10.0
        level.weight[L3], level.bias[L3] = 20.0, -10.0
        net.fine.weight[:, 0, 0, 0, 0] = torch.tensor([-6.0, 6.0, 0.0])
        net.fine.bias[:] = torch.tensor([3.0, -3.0, -5.0])
    return net


def image(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    x = 0.05 * torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    for box in boxes:
        x[(..., *box)] += 0.9
    return x


def oblique() -> torch.Tensor:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag([1.0, 0.9, 1.1])
    affine[:3, 3] = (-30, 12, 5)
    return torch.from_numpy(affine)


def infer(x: torch.Tensor, net: nn.Module | None = None, window: tuple[int, int, int] = WINDOW, **options) -> torch.Tensor:
    with torch.no_grad():
        return dense(CoarseToFineInferer(window, **options)(x, net or network()))


def dense(result: torch.Tensor) -> torch.Tensor:
    """Convert a result to level logits of all its voxels, up to a constant for every voxel."""
    return MetaTensor(level_logits(result[0])[None], affine=result.affine) if isinstance(result, MetaTensor) else result


def box_of(result: MetaTensor, affine: torch.Tensor) -> tuple[slice, slice, slice]:
    """Return the place of the result in the scan, from its affine alone."""
    to_scan = torch.linalg.solve(affine, result.affine)
    start = to_scan[:3, 3].round()
    expected = torch.eye(4, dtype=torch.float64)
    expected[:3, 3] = start
    torch.testing.assert_close(to_scan, expected, atol=1e-9, rtol=0)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(start, result.shape[2:]))


def inner(box: tuple[slice, slice, slice], shape: tuple[int, int, int] = SHAPE) -> tuple[slice, ...]:
    """Cut the six voxels off a box that coarse voxels outside it reach; none at the border of the scan."""
    return tuple(slice(6 if s.start else None, -6 if s.stop < n else None) for s, n in zip(box, shape))


def assert_same_spine(logits: torch.Tensor, whole: torch.Tensor) -> None:
    """Check for equal logits (BCXYZ) where a level has 1/C of the probability of the background, and for background elsewhere."""
    spine = whole[0, 1:].amax(0) > whole[0, 0] - np.log(CHANNELS)
    assert spine.any()
    torch.testing.assert_close(logits.log_softmax(1)[..., spine], whole.log_softmax(1)[..., spine])
    assert torch.equal(logits.argmax(1), whole.argmax(1))


# CoarseToFineInferer


@pytest.mark.parametrize(
    ("margin", "box"),
    [
        (0, (slice(12, 20), slice(28, 40), slice(16, 48))),
        (1, (slice(8, 24), slice(24, 44), slice(12, 52))),  # whole coarse voxels
        (4, (slice(8, 24), slice(24, 44), slice(12, 52))),
        (12, (slice(0, 32), slice(16, 52), slice(4, 60))),
        (20, (slice(0, 37), slice(8, 60), slice(0, 66))),  # up to the border, with its broken coarse voxels
    ],
)
def test_box_is_the_spine_and_its_margin(margin, box):
    x, affine = image(SPINE), oblique()
    result = infer(MetaTensor(x, affine=affine), margin=margin)
    assert isinstance(result, MetaTensor)
    assert box_of(result, affine) == box
    assert result.shape[:2] == (1, CHANNELS)


def test_levels_are_the_mean_of_three_views():
    """The network answers with the number of slices in view, as the log-probability of T8 against the background."""

    class Counting(nn.Module):
        coarse_voxel, seen = (4, 4, 4), []

        def locate(self, x: torch.Tensor) -> torch.Tensor:
            shape = [-(-n // 4) for n in x.shape[2:]]
            self.seen.append(x)
            return torch.full((1, 2, *shape), 0.0).index_fill(1, torch.tensor([1]), float(shape[-1]))

    x, net = image(shape=(8, 8, 4 * 75 - 3)), Counting()  # 75 coarse slices, the last of one voxel
    levels = CoarseToFineInferer(WINDOW, tta=True)._locate(x, net, 1.0)
    assert [torch.equal(a, b) for a, b in zip(net.seen, (x, x[..., :240], x[..., 28:]))] == [True] * 3
    whole, lower, upper = (torch.tensor([0.0, n]).log_softmax(0) for n in (75.0, 60.0, 68.0))
    torch.testing.assert_close(levels[0, :, 0, 0, 0], (whole + lower) / 2)
    torch.testing.assert_close(levels[0, :, 0, 0, 7], (whole + lower + upper) / 3)
    torch.testing.assert_close(levels[0, :, 0, 0, 60], (whole + upper) / 2)
    for short, layer_mm in ((x[..., : 4 * 64], 1.0), (x, 0.8)):
        assert torch.equal(CoarseToFineInferer(WINDOW, tta=True)._locate(short, net, layer_mm), net.locate(short).log_softmax(1))
    assert torch.equal(CoarseToFineInferer(WINDOW)._locate(x, net, 1.0), net.locate(x))


def test_box_holds_what_the_network_says_there():
    x, net, affine = image(SPINE), network(), oblique()
    with torch.no_grad():
        whole = net(x)
    result = infer(MetaTensor(x, affine=affine), net)
    box = box_of(result, affine)
    inside = (*ALL, *inner(box))
    assert_same_spine(result.as_tensor()[inside], whole[(*ALL, *box)][inside])
    found = whole.argmax(1) == L3
    assert found.sum() == 8 * 12 * 32
    assert torch.equal(result.as_tensor().argmax(1) == L3, found[(slice(None), *box)])


@pytest.mark.parametrize("sw_batch_size", [1, 2, 4])
def test_a_single_window_that_is_left_over_goes_twice(sw_batch_size):
    net = network()
    sizes = []
    net.fine.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    result = infer(image(SPINE), net, window=(64, 64, 16), overlap=0, margin=4, sw_batch_size=sw_batch_size)
    assert sizes == {1: [1, 1, 1], 2: [2, 2], 4: [3]}[sw_batch_size]  # three windows
    torch.testing.assert_close(result, infer(image(SPINE), net, window=(64, 64, 16), overlap=0, margin=4))


def test_windows_blend_into_the_same_logits():
    x, net = image(SPINE), network()
    one, many = infer(x, net), infer(x, net, window=(16, 16, 16), sw_batch_size=3, overlap=0.5)
    torch.testing.assert_close(many, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_threshold_is_the_probability_from_which_a_voxel_is_spine(threshold):
    x, affine = image(SPINE), oblique()
    x[(..., *SPINE)] = torch.linspace(0.3, 0.7, 32)  # the fine network has p(body) / p(background) = exp(12 x - 6)
    net = network()
    with torch.no_grad():
        net.coarse[1].bias[L3] = 10.0  # the coarse network sees it everywhere
    above = torch.sigmoid(12 * x[0, 0] - 6) > threshold
    assert 0.1 < above[SPINE].float().mean() < 0.9
    for scan in (x, MetaTensor(x, affine=affine)):
        result = infer(scan, net, threshold=threshold)
        assert torch.equal(torch.as_tensor(result.argmax(1)[0] == L3), above)


@pytest.mark.parametrize("options", [{"threshold": 0}, {"threshold": 1}, {"threshold": -0.2}, {"overlap": 1}, {"overlap": -0.1}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"(threshold|overlap) \S+: a number .* is needed"):
        CoarseToFineInferer(WINDOW, **options)


def test_what_lies_far_from_the_spine_is_left_out_where_the_box_would_be_too_large(monkeypatch):
    far = (slice(24, 28), slice(60, 64), slice(0, 4))
    x, affine = MetaTensor(image(SPINE, far), affine=oblique()), oblique()
    mm3 = 8 * 12 * 32 * 0.9 * 1.1  # as the affine says
    monkeypatch.setattr(inferers, "MAX_BOX_MM3", 1.001 * mm3)
    assert box_of(infer(x, margin=0), affine) == SPINE
    monkeypatch.setattr(inferers, "MAX_BOX_MM3", 0.999 * mm3)
    with pytest.raises(ValueError, match="sees a spine in a box of 0 litres"):
        infer(x, margin=0)


def test_plain_tensor_gives_the_whole_grid():
    x, affine = image(SPINE), oblique()
    result = infer(x)
    assert type(result) is torch.Tensor
    assert result.shape == (1, CHANNELS, *SHAPE)
    part = infer(MetaTensor(x, affine=affine))
    box = box_of(part, affine)
    assert torch.equal(result[(*ALL, *box)], part.as_tensor())
    outside = torch.ones(SHAPE, dtype=torch.bool)
    outside[box] = False
    assert not result.argmax(1)[0][outside].any()
    assert (result[0, 0][outside] == 0).all()
    assert (result[0, 1:][:, outside] == -20).all()


def test_box_holds_every_part_of_the_spine():
    second = (slice(24, 28), slice(52, 56), slice(8, 12))
    affine = oblique()
    result = infer(MetaTensor(image(SPINE, second), affine=affine), margin=0)
    assert box_of(result, affine) == (slice(12, 28), slice(28, 56), slice(8, 48))


@pytest.mark.parametrize("margin", [0, 12])
def test_spine_at_the_border(margin):
    spine = (slice(0, 37), slice(60, 70), slice(40, 66))  # touches four faces of the scan
    x, affine, net = image(spine), oblique(), network()
    result = infer(MetaTensor(x, affine=affine), net, margin=margin)
    box = box_of(result, affine)
    assert box == (slice(0, 37), slice(60 - margin, 70), slice(40 - margin, 66))
    with torch.no_grad():
        whole = net(x)[(*ALL, *box)]
    inside = (*ALL, *inner(box)) if margin else (*ALL, slice(None), slice(6, None), slice(6, None))
    assert_same_spine(result.as_tensor()[inside], whole[inside])
    assert infer(x, net, margin=margin).shape[2:] == SHAPE


def test_box_smaller_than_the_window():
    affine = oblique()
    result = infer(MetaTensor(image(SPINE), affine=affine), window=(80, 80, 80), margin=0)
    assert box_of(result, affine) == SPINE
    assert (result.as_tensor().argmax(1) == L3).all()


@pytest.mark.parametrize("margin", [0, 12])
def test_no_spine_is_background_everywhere(margin):
    x, affine = image(), oblique()
    assert not infer(x, margin=margin).argmax(1).any()
    result = infer(MetaTensor(x, affine=affine), margin=margin)
    box = box_of(result, affine)
    assert all(s.start == 0 and s.stop > 0 for s in box)  # one voxel, because the next steps need a box
    assert not result.argmax(1).any()


def test_no_spine_is_background_even_where_the_fine_network_is_sure():
    net = network()
    with torch.no_grad():
        net.fine.bias[:] = torch.tensor([0.0, 15.0, 0.0])
    assert not infer(image(), net).argmax(1).any()


def test_thin_scan():
    shape = (9, 40, 40)
    spine = (slice(4, 8), slice(16, 24), slice(16, 24))
    affine = oblique()
    result = infer(MetaTensor(image(spine, shape=shape), affine=affine), margin=0)
    assert box_of(result, affine) == spine


@pytest.mark.parametrize("shape", [(4, 40, 40), (5, 40, 40), (9, 40, 40), (12, 40, 40)])
def test_thin_scans_with_a_margin(shape):
    spine = (slice(0, shape[0]), slice(16, 24), slice(16, 24))
    x, affine = image(spine, shape=shape), oblique()
    result = infer(MetaTensor(x, affine=affine))
    assert box_of(result, affine) == (slice(0, shape[0]), slice(4, 36), slice(4, 36))
    assert infer(x).shape[2:] == shape


def test_wrapped_network():
    class Wrapper(nn.Module):  # like DistributedDataParallel, it has no locate, delineate or combine
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    x, net = image(SPINE), network()
    assert torch.equal(infer(x, Wrapper(net)), infer(x, net))


def test_scripted_network():
    x, net = image(SPINE), network()
    torch.testing.assert_close(infer(x, torch.jit.script(net)), infer(x, net))


def test_collated_batch_and_back():
    x, affine = image(SPINE), oblique()
    batch = list_data_collate([{"image": MetaTensor(x[0], affine=affine)}])  # its affine has a batch axis
    with torch.no_grad():
        batch["pred"] = CoarseToFineInferer(WINDOW)(batch["image"], network())
    (item,) = decollate_batch(batch)
    expected = infer(MetaTensor(x, affine=affine))
    torch.testing.assert_close(item["pred"].affine, expected.affine)
    assert torch.equal(dense(item["pred"][None]).as_tensor(), expected.as_tensor())
    torch.testing.assert_close(item["image"].affine, affine)


def test_input_is_not_changed():
    x, affine = image(SPINE), oblique()
    scan = MetaTensor(x.clone(), affine=affine.clone())
    infer(scan)
    assert torch.equal(scan.as_tensor(), x)
    assert torch.equal(scan.affine, affine)


# AutocastInferer around it


@pytest.mark.parametrize("hardware", [True, False])
def test_amp_keeps_the_box_and_its_affine(monkeypatch, hardware):
    monkeypatch.setattr(inferers, "has_bfloat16", lambda device: hardware)
    x, affine = image(SPINE), oblique()
    with torch.no_grad():
        result = dense(AutocastInferer(CoarseToFineInferer(WINDOW))(MetaTensor(x, affine=affine), network()))
    expected = infer(MetaTensor(x, affine=affine))
    assert isinstance(result, MetaTensor)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.affine, expected.affine)
    assert torch.equal(result.as_tensor(), expected.as_tensor()) is not hardware
    assert torch.equal(result.argmax(1).as_tensor(), expected.argmax(1).as_tensor())


def test_both_parts_of_a_training_step_become_float32(monkeypatch):
    monkeypatch.setattr(inferers, "has_bfloat16", lambda device: True)
    x, view = torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 8, 16, 16)
    parts = AutocastInferer(lambda inputs, net, *args: net(inputs, *args))(x, network(), view)
    assert [p.dtype for p in parts] == [torch.float32] * 2
    assert [p.shape[1] for p in parts] == [CHANNELS, 3]


def test_views_are_summed_in_float32():
    """Autocast on CPUs leaves the logits, and their softmax, in bfloat16, which has three digits."""

    class Half(nn.Module):
        coarse_voxel = (4, 4, 4)

        def locate(self, x: torch.Tensor) -> torch.Tensor:
            shape = [-(-n // 4) for n in x.shape[2:]]
            return torch.linspace(-3, 3, 5, dtype=torch.bfloat16).reshape(1, 5, 1, 1, 1).expand(1, 5, *shape)

    levels = CoarseToFineInferer(WINDOW, tta=True)._locate(image(shape=(8, 8, 300)), Half(), 1.0)
    assert levels.dtype == torch.float32
    expected = torch.linspace(-3, 3, 5, dtype=torch.bfloat16).float().log_softmax(0)
    torch.testing.assert_close(levels[0, :, 0, 0, 20], expected)
