"""Combine the output of the two networks: the kind of every voxel, and the level of single voxels on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import convert_to_tensor
from torch.nn.functional import embedding_bag, interpolate, pad

from scripts.labels import channels_of
from scripts.levels.restore import CHUNK_VOXELS
from scripts.network import KINDS

GATED, COARSE_VOXEL = "gated_levels", "coarse_voxel"  # metadata of kind logits that hold the levels, see `SpineLogits.of_networks`


@dataclass(frozen=True)
class SpineLogits:
    """Log-probabilities of the kinds in all voxels, and of the levels in single voxels on request.

    Filling and reading volumes of all 24 levels takes as long as the networks, and most voxels have no level at all.
    """

    log_kind: torch.Tensor  # log-probabilities of background, body and disc, 3XYZ, float32, on the CPU
    at: Callable[[np.ndarray], torch.Tensor]  # function from flat indices of N voxels to log-probabilities of the levels, CN

    @classmethod
    def of(cls, pred: torch.Tensor) -> SpineLogits:
        """Read the output of `CoarseToFineInferer` (3XYZ, with the levels in its metadata) or level logits (CXYZ)."""
        if isinstance(pred, MetaTensor) and GATED in pred.meta:
            # metadata of a batch have a batch axis
            gated, voxel = pred.meta[GATED], torch.as_tensor(pred.meta[COARSE_VOXEL])
            return cls.of_networks(pred.as_tensor(), gated.reshape(gated.shape[-4:]), voxel.flatten().tolist())
        return cls.of_levels(pred)

    @classmethod
    def of_levels(cls, logits: torch.Tensor) -> SpineLogits:
        """Take the logits of all levels in all voxels, CXYZ."""
        logits = convert_to_tensor(logits).float().cpu()  # a plain tensor, without metadata
        log_kind = torch.stack([logits[channels_of(kind)].logsumexp(0) for kind in KINDS]).log_softmax(0)
        return cls(log_kind, lambda voxels: _take(logits, voxels).log_softmax(0))

    @classmethod
    def of_networks(cls, kinds: torch.Tensor, gated: torch.Tensor, coarse_voxel: Sequence[int]) -> SpineLogits:
        """Combine the two networks as `SpineNet.combine` does.

        Args:
            kinds: kind logits, 3XYZ.
            gated: output of `SpineNet.gated`: level logits and the gate, on the coarse grid.
            coarse_voxel: size of a coarse voxel in voxels of `kinds`.
        """
        kinds, gated = kinds.float().cpu(), gated.float().cpu()
        x, y, z = kinds.shape[1:]
        gate = interpolate(gated[None, -1:], scale_factor=[float(n) for n in coarse_voxel], mode="trilinear", align_corners=False)[0]
        log_kind = kinds.clone()
        log_kind[1:] += gate[:, :x, :y, :z]
        log_kind = log_kind.log_softmax(0)
        levels = _trilinear(gated[:-1], coarse_voxel)

        def at(voxels: np.ndarray) -> torch.Tensor:
            result = levels(np.unravel_index(voxels, (x, y, z)))
            for kind, log_p in zip(KINDS, _take(log_kind, voxels)):
                result[channels_of(kind)] = result[channels_of(kind)].log_softmax(0) + log_p
            return result

        return cls(log_kind, at)


def level_logits(pred: torch.Tensor) -> torch.Tensor:
    """Return the level logits of all voxels, CXYZ, from the input of `SpineLogits.of`; this is slow and holds all classes in memory."""
    if not (isinstance(pred, MetaTensor) and GATED in pred.meta):
        return convert_to_tensor(pred)
    logits, voxels = SpineLogits.of(pred), np.arange(pred[0].numel())
    parts = [logits.at(some) for some in np.split(voxels, range(CHUNK_VOXELS, len(voxels), CHUNK_VOXELS))]
    return torch.cat(parts, 1).reshape(-1, *pred.shape[1:])


def _take(volumes: torch.Tensor, voxels: np.ndarray) -> torch.Tensor:
    """Read single voxels (flat indices) of volumes (CXYZ), CN. NumPy takes half the time of torch."""
    return torch.from_numpy(volumes.flatten(1).numpy().take(voxels, axis=1))


def _trilinear(coarse: torch.Tensor, voxel: Sequence[int]) -> Callable[[Sequence[np.ndarray]], torch.Tensor]:
    """Return a function that interpolates coarse volumes (Cxyz) at single fine voxels (indices along the three axes), CN.

    It gives the values that `interpolate` gives for all voxels. The eight coarse voxels around a fine one always lie the same way, and
    their weights depend only on its place in its own coarse voxel.
    """
    size = coarse.shape[1:]
    table = pad(coarse[None], [1] * 6, mode="replicate")[0].flatten(1).T.contiguous()
    stride = ((size[1] + 2) * (size[2] + 2), size[2] + 2, 1)
    corners = sum(np.ix_(*(np.array([0, s], np.int32) for s in stride))).ravel()
    inside = (voxel[1] * voxel[2], voxel[2], 1)
    first, place, shares = [], [], []
    for n, step, v, s in zip(size, stride, voxel, inside):
        at = (np.arange(v * n) + 0.5) / v + 0.5  # position in the padded volume
        first.append(np.floor(at).astype(np.int32) * step)
        place.append(np.arange(v * n, dtype=np.int32) % v * s)
        shares.append(np.stack([1 - at[:v] % 1, at[:v] % 1], 1))
    weights = np.einsum("ai,bj,ck->abcijk", *shares).reshape(-1, 8).astype(np.float32)

    def values(voxels: Sequence[np.ndarray]) -> torch.Tensor:
        rows = sum(f[v] for f, v in zip(first, voxels))[:, None] + corners
        shares = weights[sum(p[v] for p, v in zip(place, voxels))]
        return embedding_bag(torch.from_numpy(rows), table, per_sample_weights=torch.from_numpy(shares), mode="sum").T.contiguous()

    return values
