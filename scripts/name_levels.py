"""Level logits of single voxels -> level logits that agree within every vertebra and count down the spine, and a report on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from scripts.instances import CORE_DEPTH_MM, Instance, find_instances
from scripts.labels import label_table
from scripts.naming import name_bodies
from scripts.network import KINDS
from scripts.restore import largest

NEVER = -30.0  # logit of a level that a voxel does not have
NEIGHBOUR_COST = 5.0  # nats below the level that a voxel has, for that of a neighbour of the same kind that touches it
CERTAIN = 0.9  # a sequence less probable than this is reported as uncertain
MAX_DISC_OFFSET_MM = 25.0  # of a disc's centre from the line between its two bodies
FACES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))  # of a grid in RAS order: first and last voxels of an axis


def name_levels(logits: torch.Tensor, spacing_mm: Sequence[float], min_instance_mm3: float) -> tuple[torch.Tensor, dict[str, Any]]:
    """Let the voxels of every vertebra vote, take the best consecutive sequence, and name the discs after the bodies beside them.

    Args:
        logits: level logits, shape CXYZ, last axis towards superior.
        spacing_mm: voxel size.
        min_instance_mm3: smaller pieces have no vote and become background.

    Returns:
        level logits in which every voxel has the probability of its kind under a single level, and the report: `sequence_probability`,
        `uncertain`, `runner_up` with `runner_up_probability`, and `structures` with the `mean_entropy` (nats, of the voxels' level
        probabilities) and the `vote` (mean probability of the level given the kind) of each.
    """
    table = label_table()
    groups = np.array([s.group for s in table])
    log_kind = torch.stack([logits[torch.from_numpy(groups == g)].float().logsumexp(0) for g in KINDS]).log_softmax(0)
    kind = largest(log_kind)
    levels = largest(logits[torch.from_numpy(groups == "body")])
    body_map, bodies = find_instances(kind == 1, spacing_mm, min_instance_mm3, CORE_DEPTH_MM, levels)
    disc_map, discs = find_instances(kind == 2, spacing_mm, min_instance_mm3)
    votes = _votes(logits, groups == "body", body_map, len(bodies))
    naming = name_bodies(bodies, votes)
    disc_votes = _votes(logits, groups == "disc", disc_map, len(discs))
    named = [(b, c) for b, c in zip(bodies, naming.channels) if c is not None]
    disc_channels = [_name_disc(disc, named, vote) for disc, vote in zip(discs, disc_votes)]
    channel_map = np.zeros(kind.shape, np.uint8)
    for numbers, channels in ((body_map, naming.channels), (disc_map, disc_channels)):
        channel_map += np.array([0, *(c or 0 for c in channels)], np.uint8)[numbers]

    report = {
        "sequence_probability": naming.probability,
        "uncertain": naming.probability < CERTAIN,
        "runner_up": [table[c].name for c in naming.runner_up if c],
        "runner_up_probability": naming.runner_up_probability,
        "structures": _structures(logits, channel_map),
    }
    return _agreeing_logits(log_kind, kind, channel_map), report


def _votes(logits: torch.Tensor, of_kind: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """Mean log-probability of every channel given the kind, shape (count, C); -inf for channels of another kind."""
    votes = np.full((count, len(logits)), -np.inf)
    channels = torch.from_numpy(np.flatnonzero(of_kind))
    for number, box in enumerate(ndimage.find_objects(numbers, max_label=count), start=1):
        inside = torch.from_numpy(numbers[box] == number)
        votes[number - 1, of_kind] = logits[(channels, *box)][:, inside].float().log_softmax(0).mean(1).numpy()
    return votes


def _name_disc(disc: Instance, bodies: list[tuple[Instance, int]], vote: np.ndarray) -> int:
    """Channel of a disc from the levels of the named bodies above and below it; 0 if it lies beside the spine.

    With fewer than two bodies to tell where the spine runs, its own vote counts.
    """
    table = label_table()
    if len(bodies) < 2:
        discs = [s.channel for s in table if s.is_disc]
        return discs[int(np.argmax(vote[discs]))]
    has_l6 = any(table[c].name == "L6" for _, c in bodies)
    chain = [s.channel for s in table if s.group == "body" and (s.name != "L6" or has_l6)]
    disc_below = {s.name.split("/")[0]: s.channel for s in table if s.is_disc}
    position = [chain.index(c) for _, c in bodies]
    centres = [b.centre_mm for b, _ in bodies]
    for i, j in pairwise(range(len(bodies))):
        along, offset = _project(disc.centre_mm, centres[i], centres[j])
        if 0 <= along < 1 and offset < MAX_DISC_OFFSET_MM:
            return disc_below[table[chain[position[i] + int(along * (position[j] - position[i]))]].name]
    # beyond the ends, on the line through the last two: the next disc lies half a vertebra on, further ones a vertebra each
    above, offset_above = _project(disc.centre_mm, centres[1], centres[0])
    below, offset_below = _project(disc.centre_mm, centres[-2], centres[-1])
    if above >= 1 and offset_above < MAX_DISC_OFFSET_MM:
        level = position[0] - 1 - int((above - 1) * (position[1] - position[0]))
    elif below >= 1 and offset_below < MAX_DISC_OFFSET_MM:
        level = position[-1] + int((below - 1) * (position[-1] - position[-2]))
    else:
        return 0
    return disc_below.get(table[chain[level]].name, 0) if 0 <= level < len(chain) else 0


def _project(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Where `point` lies along a..b (0 at a, 1 at b), and its distance in mm from that line."""
    line = b - a
    along = float((point - a) @ line / (line @ line))
    return along, float(np.linalg.norm(point - a - along * line))


def _structures(logits: torch.Tensor, channel_map: np.ndarray) -> list[dict]:
    table = label_table()
    rows = []
    for structure, box in zip(table[1:], ndimage.find_objects(channel_map, max_label=len(table) - 1)):
        if box is None:
            continue
        values = logits[(slice(None), *box)][:, torch.from_numpy(channel_map[box] == structure.channel)].float()
        log_p = values.log_softmax(0)
        of_kind = [s.channel for s in table if s.group == structure.group]
        vote = values[of_kind].softmax(0)[of_kind.index(structure.channel)].mean()
        rows.append({"name": structure.name, "mean_entropy": float(-(log_p.exp() * log_p).sum(0).mean()), "vote": float(vote)})
    return rows


def _agreeing_logits(log_kind: torch.Tensor, kind: np.ndarray, channel_map: np.ndarray) -> torch.Tensor:
    """The probability of the kind under the channel of the instance.

    It reaches one voxel beyond the instance, into its neighbours too, so that no seam opens when the logits are interpolated.
    """
    result = torch.full((len(label_table()), *channel_map.shape), NEVER)
    result[0] = log_kind[0]
    result[0][torch.from_numpy((channel_map == 0) & (kind > 0))] = 0.0  # pieces that are no vertebra
    for structure, box in zip(label_table()[1:], ndimage.find_objects(channel_map, max_label=len(label_table()) - 1)):
        if box is None:
            continue
        wide = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        near = ndimage.binary_dilation(channel_map[wide] == structure.channel, np.ones((3, 3, 3)))
        of_kind = kind[wide] == KINDS.index(structure.group)
        other = torch.from_numpy(of_kind & (channel_map[wide] > 0) & (channel_map[wide] != structure.channel))
        log_p = log_kind[(KINDS.index(structure.group), *wide)] - NEIGHBOUR_COST * other
        result[(structure.channel, *wide)] = torch.where(torch.from_numpy(near), log_p, NEVER)
    return result


def cut_faces(shape: Sequence[int], offset: Sequence[int], channel_map: np.ndarray) -> dict[str, list[str]]:
    """Structure -> faces of the scan that it touches; `channel_map` starts at voxel `offset` of a scan of `shape`, both in RAS order."""
    cut = {}
    for structure, box in zip(label_table()[1:], ndimage.find_objects(channel_map, max_label=len(label_table()) - 1)):
        if box is None:
            continue
        first = [s.start + o for s, o in zip(box, offset)]
        last = [s.stop + o for s, o in zip(box, offset)]
        faces = [FACES[a][0] for a in range(3) if first[a] <= 0] + [FACES[a][1] for a in range(3) if last[a] >= shape[a]]
        if faces:
            cut[structure.name] = faces
    return cut
