"""The network: a coarse U-Net names levels on the whole view, a fine one draws bodies and discs, and one forward combines the two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from scripts.labels import channels_of, label_table

KINDS = ("background", "body", "disc")  # classes of the fine network
GATE_FLOOR = 1e-4  # the least that the coarse network may leave of a fine foreground probability


class SpineNet(nn.Module):
    """Level by context, outline by detail: p(level) = p_fine(kind) x p_coarse(level | kind).

    Only the whole view tells which level a vertebra is, and only the fine grid where its border runs. The coarse network therefore
    sees the image averaged over `coarse_voxel` and answers in levels, the fine network sees the image as it is and answers in three
    kinds: background, body, disc. Where the coarse network sees no spine at all, the fine foreground is gated out.

    Args:
        coarse: image (B1XYZ) -> features (BFXYZ), sizes in multiples of `coarse_multiple`; a linear layer turns them into level logits.
        fine: image (B1XYZ) -> kind logits (B3XYZ), sizes in multiples of `fine_multiple`.
        features: F; a full-resolution convolution of 24 channels would take most of the time.
        coarse_voxel: size of a coarse voxel in fine voxels.
        view_size: coarse voxels of a view in training; a smaller one is padded to it, so that instance norm sees the same frame.
        coarse_multiple, fine_multiple: inputs are padded to multiples of these, which the strides of the two networks divide.
    """

    def __init__(
        self,
        coarse: nn.Module,
        fine: nn.Module,
        features: int,
        coarse_voxel: Sequence[int] = (4, 4, 4),
        view_size: Sequence[int] = (24, 80, 80),
        coarse_multiple: Sequence[int] = (8, 16, 16),
        fine_multiple: Sequence[int] = (16, 16, 16),
    ) -> None:
        super().__init__()
        self.kind_of_channel = [KINDS.index(s.kind) for s in label_table()]
        for kind, group in zip(KINDS[1:], ("bodies", "discs")):
            # a tensor, because a table may have no discs and TorchScript cannot type an empty list
            channels = torch.tensor(channels_of(kind), dtype=torch.long)
            self.register_buffer(group, channels, persistent=False)
        # with channels last, oneDNN's bfloat16 convolutions take two thirds of the time
        self.coarse = nn.Sequential(coarse, nn.Conv3d(features, len(self.kind_of_channel), kernel_size=1)).to(
            memory_format=torch.channels_last_3d
        )
        self.fine = fine.to(memory_format=torch.channels_last_3d)
        _keep_channels_last(self)
        self.gate_floor = GATE_FLOOR  # TorchScript does not read globals
        self.coarse_voxel = [int(n) for n in coarse_voxel]
        self.view_size = [int(n) for n in view_size]
        self.coarse_multiple = [int(n) for n in coarse_multiple]
        self.fine_multiple = [int(n) for n in fine_multiple]

    def forward(self, x: torch.Tensor, view: torch.Tensor | None = None):
        """Return the level logits (BCXYZ) of an image (B1XYZ, intensities in [0, 1]).

        Training passes a whole `view` on the coarse grid as well, and gets two tensors: the level logits of `view` and the kind logits
        of `x`. An empty input is returned as it is.
        """
        # TorchScript allows one return type only: it skips this branch if `is_scripting` stands alone in its condition
        if not torch.jit.is_scripting():  # noqa: SIM102
            if view is not None:
                return self.coarse(view) if view.numel() else view, self.delineate(x) if x.numel() else x
        return self.combine(self.locate(x), self.delineate(x))

    @torch.jit.export
    def locate(self, x: torch.Tensor) -> torch.Tensor:
        """Return level logits on the coarse grid, shape BC and the image's sizes divided by `coarse_voxel`, rounded up."""
        voxel = [min(v, n) for v, n in zip(self.coarse_voxel, x.shape[2:])]
        pooled = functional.avg_pool3d(x, voxel, ceil_mode=True, count_include_pad=False)
        frame = _frame(pooled.shape, self.coarse_multiple, self.view_size)
        return _inner(self.coarse(functional.pad(pooled, frame)), frame, pooled.shape)

    @torch.jit.export
    def delineate(self, x: torch.Tensor) -> torch.Tensor:
        """Return the kind logits of the image, shape B3XYZ."""
        # instance norm needs two voxels at the coarsest resolution
        least = [self.fine_multiple[0], self.fine_multiple[1], 2 * self.fine_multiple[2]]
        frame = _frame(x.shape, self.fine_multiple, least)
        return _inner(self.fine(functional.pad(x, frame)), frame, x.shape)

    @torch.jit.export
    def combine(self, levels: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Combine level logits on the coarse grid with kind logits (B3XYZ) of the same image to level logits (BCXYZ).

        This computes all voxels at once, as an exported network needs it; `SpineLogits` does the same for voxels that have a level only.
        """
        factor = [float(f) for f in self.coarse_voxel]
        gated = functional.interpolate(self.gated(levels), scale_factor=factor, mode="trilinear", align_corners=False)
        gated = _inner(gated, [0] * 6, kinds.shape)  # the last coarse voxels may reach beyond the image
        log_kind = kinds.float().log_softmax(1)
        levels, gate = gated[:, :-1], gated[:, -1:]
        shift = [log_kind[:, :1]]  # added to the level logits of a kind, it turns them into log-probabilities
        for kind, channels in [(1, self.bodies), (2, self.discs)]:
            shift.append(log_kind[:, kind : kind + 1] + gate - levels.index_select(1, channels).logsumexp(1, keepdim=True))
        return torch.cat(shift, 1)[:, self.kind_of_channel].add_(levels)

    @torch.jit.export
    def gated(self, levels: torch.Tensor) -> torch.Tensor:
        """Return the float32 tensor that `combine` interpolates: level logits (BCXYZ), 0 for the background, then the log of the gate.

        Logits are interpolated, not log-probabilities, so that between L3 and L4 the two probabilities still add up to one.
        """
        levels = levels.float()
        gate = functional.max_pool3d(2 * (1 - levels.softmax(1)[:, :1]), 3, 1, 1).clamp(self.gate_floor, 1.0).log()
        return torch.cat([torch.zeros_like(gate), levels[:, 1:], gate], 1)  # the fine network alone decides on background


class ChannelsLastInstanceNorm(nn.InstanceNorm3d):
    """`InstanceNorm3d` that keeps the memory format of its input; on CPUs it runs as a group norm of one channel per group.

    On CPUs, PyTorch's instance norm gives up channels last, for every layer up to the next convolution, and a window takes 15 % longer.
    Its group norm would be fastest with channels last, but loses three digits then, so it gets the channels first. On GPUs instance norm
    is faster, and stays in bfloat16 under autocast.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_cuda:
            return functional.instance_norm(x, None, None, self.weight, self.bias, True, self.momentum, self.eps)
        channels_last = x.is_contiguous(memory_format=torch.channels_last_3d)
        x = functional.group_norm(x.contiguous(), self.num_features, self.weight, self.bias, self.eps)
        return x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network itself, without the `DistributedDataParallel` that may wrap it."""
    return getattr(network, "module", network)


def _keep_channels_last(network: nn.Module) -> None:
    """Replace every `InstanceNorm3d` by `ChannelsLastInstanceNorm`; the names in the state_dict stay."""
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.InstanceNorm3d:
                replacement = ChannelsLastInstanceNorm(norm.num_features, norm.eps, affine=norm.affine)
                replacement.load_state_dict(norm.state_dict())
                setattr(module, name, replacement)


def _frame(shape: list[int], multiple: list[int], least: list[int]) -> list[int]:
    """Return the padding of BCXYZ, as `functional.pad` takes it, to a multiple and at least `least`, evenly on both sides."""
    frame: list[int] = []
    for axis in [2, 1, 0]:
        size = shape[axis + 2]
        whole = (size + multiple[axis] - 1) // multiple[axis] * multiple[axis]  # ONNX rounds quotients of negative numbers up
        extra = _larger(least[axis], whole) - size
        frame += [extra // 2, extra - extra // 2]
    return frame


def _inner(x: torch.Tensor, frame: list[int], shape: list[int]) -> torch.Tensor:
    """Cut the frame off; the result has the spatial sizes of `shape` (BCXYZ), under the same names in an ONNX file."""
    for axis in [2, 3, 4]:
        x = x.narrow(axis, frame[2 * (4 - axis)], shape[axis])
    return x


def _larger(a: int, b: int) -> int:
    """Return the larger number. `max` would decide during an export, and tie the ONNX file to the size of the example."""
    if not torch.jit.is_scripting():
        return torch.sym_max(a, b)
    return max(a, b)
