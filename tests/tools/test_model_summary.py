"""Weights, operations and activations of networks small enough to count by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.tools.model_summary import model_summary, trace


def test_conv3d_by_hand(capsys):
    result = model_summary(nn.Conv3d(2, 3, 3, padding=1), (4, 5, 6), in_channels=2)
    assert result == {
        "weights": 3 * 2 * 27 + 3,
        "trainable_weights": 165,
        "weights_mb": 165 * 4 / 2**20,
        "gflops": 2 * 27 * 2 * 3 * 120 / 1e9,  # multiply-add, kernel, channels in and out, voxels
        "activations_training_mb": 3 * 120 * 4 / 2**20,
        "activations_inference_mb": (2 + 3) * 120 * 4 / 2**20,
    }
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "type", "output", "weights"]
    assert lines[1].split() == ["(network)", "Conv3d", "3", "x", "4", "x", "5", "x", "6", "165"]
    assert "patch                     4 x 5 x 6, 2 channels" in lines
    assert "weights                   165 (165 trainable), 0.0 MB" in lines


@pytest.mark.parametrize(
    ("layer", "operations"),
    [
        (nn.Conv3d(2, 4, 3, stride=2, padding=1), 2 * 27 * 2 * 4 * 8),  # 8 voxels come out
        (nn.Conv3d(2, 4, 3, padding=1, groups=2), 2 * 27 * 1 * 4 * 64),
        (nn.ConvTranspose3d(2, 3, 2, stride=2), 2 * 8 * 2 * 3 * 64),  # every input voxel meets the whole kernel
        (nn.ConvTranspose3d(2, 3, 3, stride=2, padding=1, output_padding=1), 2 * 27 * 2 * 3 * 64),
        (nn.InstanceNorm3d(2), 0),
    ],
)
def test_operations_by_hand(layer, operations):
    assert trace(layer, (1, 2, 4, 4, 4))[1] == operations


class Shared(nn.Module):
    """Network with a convolution that is used twice, in-place activations and a frozen head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.Conv3d(1, 2, 1))
        self.head.requires_grad_(False)

    def forward(self, x):
        return {"out": self.head(self.relu(self.conv(self.relu(self.conv(x)))))}


def test_shared_and_in_place_layers(capsys):
    network = Shared().train()
    layers, operations = trace(network, (1, 1, 2, 2, 2))
    assert [(row.name, row.weights, row.output_values) for row in layers] == [
        ("conv", 1, 8), ("relu", 0, 0), ("conv", 0, 8), ("relu", 0, 0), ("head.0", 4, 16),
    ]  # fmt: skip
    assert operations == 2 * 8 + 2 * 8 + 2 * 2 * 8
    result = model_summary(network, [2, 2, 2])
    assert (result["weights"], result["trainable_weights"]) == (5, 1)
    assert result["activations_training_mb"] == 32 * 4 / 2**20
    assert network.training
    assert not network.conv._forward_hooks
    assert "head.0" in capsys.readouterr().out


def test_batch_statistics_are_kept():
    network = nn.Sequential(nn.BatchNorm3d(1)).train()
    before = network[0].running_mean.clone()
    model_summary(network, (2, 2, 2))
    assert torch.equal(network[0].running_mean, before)
    assert network[0].num_batches_tracked == 0


def test_failure_removes_the_hooks():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(1, 2, 1))
    with pytest.raises(RuntimeError):
        model_summary(network, (2, 2, 2))
    assert not network[0]._forward_hooks
