"""The output of the two networks gives the same logits as volumes of all levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from torch import nn

from scripts.labels import channels_of, label_table
from scripts.levels.logits import COARSE_VOXEL, GATED, SpineLogits, level_logits
from scripts.network import KINDS, SpineNet

CHANNELS = len(label_table())


def answers(shape: tuple[int, int, int], voxel: tuple[int, int, int]) -> tuple[SpineNet, torch.Tensor, torch.Tensor]:
    """A network, level logits on the coarse grid and kind logits; in a part of the view no level is likely, so that the gate is shut."""
    generator = torch.Generator().manual_seed(0)
    levels = 3 * torch.randn(1, CHANNELS, *[-(-n // v) for n, v in zip(shape, voxel)], generator=generator)
    levels[:, 0, : levels.shape[2] // 2] += 12
    return SpineNet(nn.Identity(), nn.Conv3d(1, 3, 1), 1, voxel), levels, 4 * torch.randn(1, 3, *shape, generator=generator)


@pytest.mark.parametrize(("shape", "voxel"), [((37, 22, 19), (4, 4, 4)), ((9, 14, 7), (2, 3, 4)), ((3, 9, 16), (4, 4, 4))])
def test_networks_say_what_combine_says(shape, voxel):
    net, levels, kinds = answers(shape, voxel)
    whole = net.combine(levels, kinds)[0].log_softmax(0)
    found = SpineLogits.of_networks(kinds[0], net.gated(levels)[0], voxel)
    every = np.arange(np.prod(shape))
    torch.testing.assert_close(found.at(every), whole.flatten(1), atol=2e-5, rtol=0)  # sums in another order
    torch.testing.assert_close(found.log_kind, SpineLogits.of_levels(whole).log_kind, atol=2e-5, rtol=0)
    some = np.array([5, 3, 11])
    torch.testing.assert_close(found.at(some), whole.flatten(1)[:, some], atol=2e-5, rtol=0)
    assert found.at(some[:0]).shape == (CHANNELS, 0)


def test_kinds_of_level_logits_by_hand():
    p = torch.zeros(CHANNELS, 1, 1, 2)
    body, disc = channels_of("body"), channels_of("disc")
    p[0, ..., 0], p[body[:2], ..., 0], p[disc[3], ..., 0] = 0.1, 0.25, 0.4
    p[0, ..., 1] = 1.0
    found = SpineLogits.of_levels((p + 1e-30).log() + torch.tensor([7.0, -3.0]))  # a constant says nothing
    torch.testing.assert_close(found.log_kind.exp(), torch.tensor([[0.1, 1.0], [0.5, 0.0], [0.4, 0.0]]).reshape(3, 1, 1, 2))
    assert len(found.log_kind) == len(KINDS)


def test_metadata_tell_which_logits_they_are():
    net, levels, kinds = answers((8, 8, 8), (4, 4, 4))
    batch = MetaTensor(kinds, affine=torch.eye(4)[None], meta={GATED: net.gated(levels), COARSE_VOXEL: torch.tensor([[4, 4, 4]])})
    whole = net.combine(levels, kinds)[0]
    expected = SpineLogits.of_levels(whole).log_kind
    for pred in (batch[0], decollate_batch(batch)[0], whole, MetaTensor(whole)):
        torch.testing.assert_close(SpineLogits.of(pred).log_kind, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(level_logits(pred).log_softmax(0), whole.log_softmax(0), atol=2e-5, rtol=0)
