"""Measure size and cost of a network: weights, floating point operations and activations of one patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.common.errors import counted
from scripts.common.tables import aligned

MIB = 2**20
BYTES = 4  # of a float32


class Layer(NamedTuple):
    """One call of a module without submodules."""

    name: str
    type: str
    output_shape: tuple[int, ...]
    weights: int  # 0 if an earlier row has counted them
    input_values: int  # count of numbers
    output_values: int  # count of numbers; 0 if they overwrite the input or are a view of it


def model_summary(network: torch.nn.Module, patch_size: Sequence[int], in_channels: int = 1) -> dict[str, float]:
    """Print a table of the layers with totals for one forward pass of one patch.

    GFLOPs count convolutions, matrix products and attention (a multiply-add is two operations), but not normalisation, activation
    functions and sums, which together are a few percent. Activations are estimates for float32 and batch size 1: training keeps the
    output of every layer for the backward pass; inference needs at least the largest input and output of one layer at a time (skip
    connections, workspaces and the allocator come on top).

    Args:
        network: on any device; its mode is kept.
        patch_size: voxels per axis.
        in_channels: channels of the input.

    Returns:
        weights, trainable_weights (counts), weights_mb, gflops, activations_training_mb, activations_inference_mb (MB of 2**20 bytes).
    """
    layers, flops = trace(network, (1, in_channels, *patch_size))
    weights = sum(p.numel() for p in network.parameters())
    result = {
        "weights": weights,
        "trainable_weights": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "weights_mb": sum(p.numel() * p.element_size() for p in network.parameters()) / MIB,
        "gflops": flops / 1e9,
        "activations_training_mb": sum(layer.output_values for layer in layers) * BYTES / MIB,
        "activations_inference_mb": max((layer.input_values + layer.output_values for layer in layers), default=0) * BYTES / MIB,
    }
    print(layer_table(layers))
    print(
        f"\n{'patch':<26}{' x '.join(map(str, patch_size))}, {counted(in_channels, 'channel')}"
        f"\n{'weights':<26}{weights:,} ({result['trainable_weights']:,} trainable), {result['weights_mb']:.1f} MB"
        f"\n{'one forward pass':<26}{result['gflops']:.2f} GFLOPs"
        f"\n{'activations, training':<26}about {result['activations_training_mb']:.0f} MB for each patch of the batch"
        f"\n{'activations, inference':<26}at least {result['activations_inference_mb']:.0f} MB"
    )
    return result


def trace(network: torch.nn.Module, shape: Sequence[int]) -> tuple[list[Layer], int]:
    """Trace a forward pass of zeros of `shape` (B, C, X, Y, Z); return the calls of leaf modules in order, and the FLOPs of the pass."""
    layers: list[Layer] = []
    seen: set[int] = set()

    def record(name: str):
        def hook(module: torch.nn.Module, inputs: tuple, output: object) -> None:
            given, tensors = _tensors(inputs), _tensors(output)
            new = [p for p in module.parameters() if id(p) not in seen]  # a module or a weight may be used twice
            seen.update(id(p) for p in new)
            sources = {t.untyped_storage().data_ptr() for t in given}
            made = sum(t.numel() for t in tensors if t.untyped_storage().data_ptr() not in sources)
            first = tuple(tensors[0].shape) if tensors else ()
            layers.append(Layer(name, type(module).__name__, first, sum(p.numel() for p in new), sum(t.numel() for t in given), made))

        return hook

    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    handles = [m.register_forward_hook(record(n)) for n, m in network.named_modules() if next(m.children(), None) is None]
    training = network.training
    counter = FlopCounterMode(display=False)
    try:
        network.eval()  # batch statistics of one patch must not be learned
        with torch.no_grad(), counter:
            network(torch.zeros(tuple(shape), device=device))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return layers, counter.get_total_flops()


def _tensors(value: object) -> list[torch.Tensor]:
    """Return all tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    return [tensor for child in value for tensor in _tensors(child)]


def layer_table(layers: Sequence[Layer]) -> str:
    """Format a row per layer as aligned columns; shapes are given without the batch axis."""
    rows = [("layer", "type", "output", "weights")]
    rows += [(row.name or "(network)", row.type, " x ".join(map(str, row.output_shape[1:])), f"{row.weights:,}") for row in layers]
    return aligned(rows, left=(0, 1, 2))
