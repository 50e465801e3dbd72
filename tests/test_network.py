"""Combination of the two networks, with stand-ins whose answers are known; and the real ones in TorchScript."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from conftest import BUNDLE
from torch import nn

from scripts.common.inference_config import inference_config
from scripts.labels import label_table, structure
from scripts.network import GATE_FLOOR, KINDS, SpineNet

TABLE = label_table()
CHANNELS = len(TABLE)
L3, L4, DISC = (structure(name).channel for name in ("L3", "L4", "L3/L4"))
BODIES = [s.channel for s in TABLE if s.kind == "body"]
DISCS = [s.channel for s in TABLE if s.kind == "disc"]


class Recorder(nn.Module):
    """Pointwise stand-in that records its inputs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, channels, 1)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.conv(x)


def stand_in(**options) -> SpineNet:
    torch.manual_seed(0)
    return SpineNet(Recorder(6), Recorder(3), 6, **options).eval()


def level_logits(shape: tuple[int, int, int], **odds: float) -> torch.Tensor:
    """Return coarse logits of the same probabilities everywhere; the other levels share the rest."""
    by_channel = {structure(name).channel: p for name, p in odds.items()}
    rest = (1 - sum(by_channel.values())) / (CHANNELS - len(by_channel))
    p = torch.tensor([by_channel.get(c, rest) for c in range(CHANNELS)]).clamp(min=1e-12)
    return p.log().view(1, -1, 1, 1, 1).repeat(1, 1, *shape)


def kind_logits(shape: tuple[int, int, int], *p: float) -> torch.Tensor:
    return torch.tensor(p).log().view(1, 3, 1, 1, 1).repeat(1, 1, *shape)


# combine


def test_probabilities_by_hand():
    levels = level_logits((2, 2, 2), background=0.2, L3=0.3, L4=0.1, **{"L3/L4": 0.4})  # 0.4 bodies, 0.4 discs
    p = stand_in().combine(levels, kind_logits((8, 8, 8), 0.5, 0.3, 0.2)).exp()
    expected = torch.zeros(CHANNELS)
    expected[0], expected[L3], expected[L4], expected[DISC] = 0.5, 0.3 * 0.75, 0.3 * 0.25, 0.2  # p_fine(kind) * p_coarse(level | kind)
    torch.testing.assert_close(p, expected.view(1, -1, 1, 1, 1).expand(p.shape), atol=1e-6, rtol=1e-5)


def test_logits_need_no_normalisation_and_need_not_be_float32():
    levels, kinds = torch.randn(1, CHANNELS, 2, 3, 2), torch.randn(1, 3, 8, 12, 8)
    net = stand_in()
    result = net.combine(levels, kinds)
    torch.testing.assert_close(net.combine(levels + 7, kinds - 3), result)
    half = net.combine(levels.bfloat16(), kinds.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, net.combine(levels.bfloat16().float(), kinds.bfloat16().float()))


def test_open_gate_keeps_the_probability_of_the_kind():
    levels = torch.randn(1, CHANNELS, 3, 2, 4)  # the background is never above one half here
    levels[:, 0] = -1
    kinds = torch.randn(1, 3, 12, 8, 16)
    result = stand_in().combine(levels, kinds)
    log_kind = kinds.log_softmax(1)
    assert torch.equal(result[:, 0], log_kind[:, 0])
    # between coarse voxels the logarithms are interpolated, so the levels sum to 1 at the most there
    for channels, kind in ((BODIES, 1), (DISCS, 2)):
        assert (result[:, channels].logsumexp(1) <= log_kind[:, kind] + 1e-5).all()
    constant = stand_in().combine(levels[..., :1, :1, :1].expand(-1, -1, 3, 2, 4), kinds)
    for channels, kind in ((BODIES, 1), (DISCS, 2)):
        torch.testing.assert_close(constant[:, channels].logsumexp(1), log_kind[:, kind])


@pytest.mark.parametrize(
    ("background", "gate"), [(0.0, 1.0), (0.5, 1.0), (0.6, 0.8), (0.9, 0.2), (0.9999, 2e-4), (0.99999, GATE_FLOOR), (1.0, GATE_FLOOR)]
)
def test_gate_by_hand(background, gate):
    levels = level_logits((2, 2, 2), background=background, L3=0.75 * (1 - background), L4=0.25 * (1 - background))
    p = stand_in().combine(levels.double().float(), kind_logits((8, 8, 8), 0.5, 0.5, 1e-9)).exp()[0, :, 4, 4, 4]
    assert p[0] == pytest.approx(0.5)  # the background itself is left alone
    assert p[BODIES].sum() == pytest.approx(0.5 * gate, rel=1e-2)
    if background < 0.9999:
        assert p[L3] == pytest.approx(0.5 * gate * 0.75, rel=1e-3)


def test_gate_opens_for_the_neighbours_of_a_coarse_voxel():
    levels = level_logits((5, 5, 5), background=1 - 1e-7)
    levels[0, L3, 2, 2, 2] = 30
    net = stand_in(coarse_voxel=(3, 3, 3))  # an odd number of voxels has one in the middle
    p = net.combine(levels, kind_logits((15, 15, 15), 0.5, 0.4, 0.1)).exp()[0]
    expected = torch.full((5, 5, 5), 0.4 * GATE_FLOOR)
    expected[1:4, 1:4, 1:4] = 0.4
    torch.testing.assert_close(p[BODIES].sum(0)[1::3, 1::3, 1::3], expected)
    torch.testing.assert_close(p[0], torch.full((15, 15, 15), 0.5))


def test_levels_are_interpolated_between_the_centres_of_coarse_voxels():
    levels = level_logits((1, 1, 2), background=0.0)
    levels[0, L3, 0, 0, 1] += 8
    result = stand_in().combine(levels, kind_logits((4, 4, 8), 0.2, 0.5, 0.3))[0, L3] - np.log(0.5)
    weight = torch.tensor([0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1])  # fine centres at -3/8, -1/8, 1/8, .. of the way
    between = levels[0, BODIES, 0, 0, :1] * (1 - weight) + levels[0, BODIES, 0, 0, 1:] * weight
    torch.testing.assert_close(result, between.log_softmax(0)[BODIES.index(L3)].expand(4, 4, 8))


def test_no_body_is_lost_between_two_levels():
    levels = level_logits((1, 1, 2), background=0.0)
    levels[0, L3, 0, 0, 0] += 20
    levels[0, L4, 0, 0, 1] += 20
    p = stand_in().combine(levels, kind_logits((4, 4, 8), 0.2, 0.5, 0.3)).exp()[0]
    torch.testing.assert_close(p[BODIES].sum(0), torch.full((4, 4, 8), 0.5))


def test_a_coarse_voxel_covers_its_fine_voxels():
    levels = level_logits((3, 4, 5), background=0.0)
    levels[0, L3] += 6
    levels[0, L4, 1, 2, 3] += 12
    result = stand_in().combine(levels, kind_logits((12, 16, 20), 0.1, 0.8, 0.1)).argmax(1)[0]
    expected = torch.full((12, 16, 20), L3)
    expected[4:8, 8:12, 12:16] = L4
    where = (result == L4).nonzero()
    assert (where.float().mean(0) - torch.tensor([5.5, 9.5, 13.5])).abs().max() < 1e-5  # centred on the block
    assert (result[5:7, 9:11, 13:15] == L4).all()
    assert (result[expected == L3] == L3).all()


# parts


def test_locate_sees_the_mean_of_every_coarse_voxel():
    net = stand_in()
    x = torch.rand(1, 1, 12, 20, 8)
    levels = net.locate(x)
    assert levels.shape == (1, CHANNELS, 3, 5, 2)
    mean = x.view(1, 1, 3, 4, 5, 4, 2, 4).mean((3, 5, 7))
    torch.testing.assert_close(levels, net.coarse(mean))


def test_odd_sizes():
    net = stand_in()
    x = torch.rand(2, 1, 5, 9, 13)
    levels, kinds = net.locate(x), net.delineate(x)
    assert levels.shape == (2, CHANNELS, 2, 3, 4)
    assert kinds.shape == (2, 3, 5, 9, 13)
    assert net(x).shape == (2, CHANNELS, 5, 9, 13)
    assert torch.equal(net(x), net.combine(levels, kinds))
    last = x[:, :, 4:, 8:, 12:]  # the last coarse voxel has a single fine one: no zeros count in its mean
    torch.testing.assert_close(levels[..., 1:, 2:, 3:], net.coarse(last))
    torch.testing.assert_close(kinds, net.fine(x))


@pytest.mark.parametrize("slices", [1, 3])
def test_fewer_slices_than_a_coarse_voxel(slices):
    assert stand_in()(torch.rand(1, 1, slices, 40, 40)).shape == (1, CHANNELS, slices, 40, 40)


def test_inputs_are_padded_on_both_sides():
    net = stand_in(coarse_multiple=(2, 4, 8), fine_multiple=(4, 8, 16), view_size=(9, 8, 8))
    x = torch.rand(1, 1, 21, 33, 37) + 0.1
    assert net(x).shape[2:] == x.shape[2:]
    (coarse,), (fine,) = net.coarse[0].seen, net.fine.seen
    assert coarse.shape[2:] == (9, 12, 16)  # 6 x 9 x 10 coarse voxels: the least size, and multiples of 4 and 8
    assert fine.shape[2:] == (24, 40, 48)
    assert torch.equal(fine[..., 1:22, 3:36, 5:42], x)
    assert fine.count_nonzero() == x.numel()
    assert coarse[..., 1:7, 1:10, 3:13].count_nonzero() == coarse.count_nonzero() == 6 * 9 * 10


def test_coarse_voxel_need_not_be_a_cube():
    net = stand_in(coarse_voxel=[1, 2, 4])
    x = torch.rand(1, 1, 3, 6, 16)
    assert net.locate(x).shape[2:] == (3, 3, 4)
    assert net(x).shape[2:] == (3, 6, 16)


def test_training_gets_both_parts():
    net = stand_in()
    x, view = torch.rand(2, 1, 16, 16, 16), torch.rand(2, 1, 8, 16, 16)
    parts = net(x, view)
    assert isinstance(parts, tuple)
    levels, kinds = parts
    assert torch.equal(levels, net.coarse(view))  # the view is on the coarse grid already
    assert torch.equal(kinds, net.fine(x))
    assert levels.shape == (2, CHANNELS, 8, 16, 16)
    assert net(x, view)[1].shape == (2, 3, 16, 16, 16)
    (levels.sum() + kinds.sum()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_kinds_are_those_of_the_table():
    net = stand_in()
    assert KINDS == ("background", "body", "disc")
    assert (net.bodies.tolist(), net.discs.tolist()) == (BODIES, DISCS)
    assert net.kind_of_channel == [0] + [1] * len(BODIES) + [2] * len(DISCS)


# TorchScript


def test_script_of_the_real_network():
    torch.manual_seed(0)
    net = inference_config(str(BUNDLE)).get_parsed_content("network_def").eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    buffer.seek(0)
    script = torch.jit.load(buffer)
    x = torch.rand(1, 1, 21, 50, 70)  # no size is a multiple of a stride
    with torch.no_grad():
        levels, kinds, whole = net.locate(x), net.delineate(x), net(x)
        assert whole.shape == (1, CHANNELS, 21, 50, 70)
        assert torch.equal(whole, net.combine(levels, kinds))
        torch.testing.assert_close(script(x), whole)
        torch.testing.assert_close(script.locate(x), levels)
        torch.testing.assert_close(script.delineate(x), kinds)
        torch.testing.assert_close(script.combine(levels, kinds), whole)


def test_instance_norm_stays_channels_last_and_keeps_its_weights():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(1, 8, 3), nn.Sequential(nn.InstanceNorm3d(8, affine=True)), nn.Conv3d(8, 8, 1), nn.InstanceNorm3d(8))
    nn.init.normal_(plain[1][0].weight)
    nn.init.normal_(plain[1][0].bias)
    x = torch.randn(2, 1, 9, 8, 7)
    expected, weights = plain(x), plain.state_dict()
    net = SpineNet(nn.Conv3d(1, 6, 1), plain, 6)
    for values in (net.fine(x), torch.jit.script(net).fine(x)):
        torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    assert net.fine(x).is_contiguous(memory_format=torch.channels_last_3d)
    assert net.fine.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in net.fine.state_dict().items())


def test_instance_norm_is_exact_far_from_zero():
    torch.manual_seed(0)
    x = (torch.randn(1, 16, 24, 40, 64) + 20).to(memory_format=torch.channels_last_3d)
    net = SpineNet(nn.Conv3d(1, 6, 1), nn.Sequential(nn.InstanceNorm3d(16)), 6)
    expected = nn.functional.instance_norm(x.double()).float()
    torch.testing.assert_close(net.fine(x), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [8, 16, 64])
def test_instance_norm_in_bfloat16(channels):
    """The memory format stays, with and without gradients, and the result is as exact as bfloat16 allows."""
    torch.manual_seed(0)
    x = (torch.randn(2, channels, 12, 20, 32) * 3 + 5).bfloat16().to(memory_format=torch.channels_last_3d)
    norm = SpineNet(nn.Conv3d(1, 6, 1), nn.Sequential(nn.InstanceNorm3d(channels, affine=True)), 6).fine[0]
    expected = nn.functional.instance_norm(x.double())
    for found in (norm(x), norm(x.clone().requires_grad_())):
        assert found.dtype == torch.bfloat16
        assert found.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=2**-8)
