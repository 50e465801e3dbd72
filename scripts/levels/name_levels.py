"""Name the vertebrae and discs of a scan, make its logits agree with the names, and report how certain they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes

from scripts.common.arrays import argmax_channels, structure_boxes
from scripts.labels import channels_of, label_table, of_kind
from scripts.levels.instances import CORE_DEPTH_MM, Instance, find_instances, grown
from scripts.levels.level_sequence import name_bodies, usual_step
from scripts.levels.logits import SpineLogits
from scripts.levels.restore import ClassLogits
from scripts.levels.sacral_shape import sacral_evidence
from scripts.network import KINDS

NEVER = -30.0  # logit of a level that a voxel does not have
BOX_MARGIN = 3  # voxels around an instance in the box of its logits: interpolation reads beyond the last voxel that can win
NEIGHBOUR_COST = 5.0  # nats by which, in a voxel of one instance, a touching instance of the same kind scores less
MIN_CERTAIN_PROBABILITY = 0.96  # less probable sequences are uncertain, and so are all without a sacrum in view or with a gap
MIN_VOTING_VOXELS = 20_000  # sampled from all bodies, and from all discs; with twice as many, mean votes differed by at most 0.01
LUMBAR_STEP_MM = 36.0  # between the centres of two lumbar bodies, assumed where the scan shows only two bodies
MAX_DISC_OFFSET_MM = 25.0  # from the centre of a disc to the line between its two bodies


@dataclass(frozen=True)
class NamedLevels:
    """The result of `name_levels`, on the grid of its logits."""

    logits: ClassLogits  # every voxel has the probability of its kind under a single level
    channel_map: np.ndarray  # level of every voxel of an instance, 0 elsewhere, uint8, shape XYZ
    affine: np.ndarray  # 4x4, voxel -> world mm
    report: dict[str, Any]  # see `name_levels`


def name_levels(logits: SpineLogits, affine: np.ndarray, min_instance_mm3: float, first_slice: int = 0) -> NamedLevels:
    """Let the voxels of every vertebra vote, take the best consecutive sequence, and name the discs after the bodies beside them.

    Args:
        logits: log-probabilities of a box whose last axis points towards superior.
        affine: 4x4, voxel -> world mm.
        min_instance_mm3: smaller pieces have no vote and become background.
        first_slice: lowest slice of the field of view, along the last axis.

    Returns:
        the named levels. Their report has `sequence_probability`, `uncertain`, `runner_up`, `runner_up_probability`, and `structures`,
        each with its `mean_entropy` (nats, of the level probabilities of its voxels) and its `vote` (mean probability of the level given
        the kind).
    """
    table = label_table()
    spacing_mm, kind = voxel_sizes(affine), argmax_channels(logits.log_kind)
    is_body, is_disc = (kind == KINDS.index(name) for name in ("body", "disc"))
    body_map, bodies = find_instances(is_body, spacing_mm, min_instance_mm3, CORE_DEPTH_MM, partial(_likeliest_body, logits))
    disc_map, discs = find_instances(is_disc, spacing_mm, min_instance_mm3)
    body_evidence, disc_evidence = _evidence(logits, "body", body_map, len(bodies)), _evidence(logits, "disc", disc_map, len(discs))
    votes = np.array([e.log_vote for e in body_evidence]).reshape(-1, len(table))
    naming = name_bodies(bodies, votes, sacral_evidence(body_map, bodies, spacing_mm, first_slice))
    named = [(b, c) for b, c in zip(bodies, naming.channels) if c is not None]
    disc_channels = [_name_disc(disc, named, e.log_vote) for disc, e in zip(discs, disc_evidence)]
    channel_map = np.zeros(kind.shape, np.uint8)
    for numbers, channels in ((body_map, naming.channels), (disc_map, disc_channels)):
        channel_map += np.array([0, *(c or 0 for c in channels)], np.uint8)[numbers]

    report = {
        "sequence_probability": naming.probability,
        "uncertain": naming.probability < MIN_CERTAIN_PROBABILITY or _has_gap(named),
        "runner_up": [table[c].name for c in naming.runner_up if c],
        "runner_up_probability": naming.runner_up_probability,
        "structures": _structures([*zip(naming.channels, body_evidence), *zip(disc_channels, disc_evidence)]),
    }
    return NamedLevels(_agreeing_logits(logits.log_kind, kind, channel_map), channel_map, affine, report)


def _likeliest_body(logits: SpineLogits, voxels: tuple[np.ndarray, ...]) -> np.ndarray:
    return argmax_channels(logits.at(np.ravel_multi_index(voxels, logits.log_kind.shape[1:]))[channels_of("body")])


@dataclass(frozen=True)
class _Evidence:
    """The votes of an instance: means over voxels sampled from it."""

    voxels: int  # number of the sampled voxels
    log_vote: np.ndarray  # mean log-probability of every channel given the kind, shape C; -inf for channels of another kind
    vote: np.ndarray  # mean probability of every channel given the kind, for the report; 0 for channels of another kind
    entropy: float  # nats, mean entropy of the level probabilities


def _evidence(logits: SpineLogits, kind: str, numbers: np.ndarray, count: int) -> list[_Evidence]:
    """Collect the evidence on every instance of a kind, numbered 1 to `count` in `numbers` (XYZ)."""
    if not count:
        return []
    voxels = np.flatnonzero(numbers)
    instance = numbers.flat[voxels].astype(np.min_scalar_type(count))  # small integers are sorted in a tenth of the time
    by_instance = np.split(voxels[np.argsort(instance, kind="stable")], np.cumsum(np.bincount(instance, minlength=count + 1)[1:-1]))
    step = max(1, len(voxels) // MIN_VOTING_VOXELS)
    sampled = [own_voxels[::step] for own_voxels in by_instance]
    sizes = [len(own_voxels) for own_voxels in sampled]
    log_p = logits.at(np.concatenate(sampled))
    own = channels_of(kind)
    entropy, given_kind = -(log_p.exp() * log_p).sum(0), log_p[own].log_softmax(0)
    found = []
    for own_entropy, given in zip(entropy.split(sizes), given_kind.split(sizes, 1)):
        log_vote, vote = np.full(len(log_p), -np.inf), np.zeros(len(log_p))
        log_vote[own], vote[own] = given.mean(1).numpy(), given.exp().mean(1).numpy()
        found.append(_Evidence(len(own_entropy), log_vote, vote, float(own_entropy.mean())))
    return found


def _name_disc(disc: Instance, bodies: list[tuple[Instance, int]], log_vote: np.ndarray) -> int:
    """Return the channel of a disc from the levels of the named bodies above and below it; 0 if it lies beside the spine.

    With fewer than two bodies to tell where the spine runs, the disc's own vote decides. A label table may have no discs.
    """
    table = label_table()
    if len(bodies) < 2:
        return max((s.channel for s in table if s.is_disc), key=lambda channel: log_vote[channel], default=0)
    absent = absent_levels(bodies)
    chain = [s.channel for s in of_kind("body", absent)]
    disc_below = {s.level: s.channel for s in table if s.is_disc}
    position = [chain.index(c) for _, c in bodies]
    centres = [b.centre_mm for b, _ in bodies]
    for i, j in pairwise(range(len(bodies))):
        along, offset = _project(disc.centre_mm, centres[i], centres[j])
        if 0 <= along < 1 and offset < MAX_DISC_OFFSET_MM:
            return disc_below.get(table[chain[position[i] + int(along * (position[j] - position[i]))]].name, 0)
    # above the first or below the last body, on the line through the two at that end: half a vertebra on to the next disc, then one each
    above, offset_above = _project(disc.centre_mm, centres[1], centres[0])
    below, offset_below = _project(disc.centre_mm, centres[-2], centres[-1])
    if above >= 1 and offset_above < MAX_DISC_OFFSET_MM:
        level = position[0] - 1 - int((above - 1) * (position[1] - position[0]))
    elif below >= 1 and offset_below < MAX_DISC_OFFSET_MM:
        level = position[-1] + int((below - 1) * (position[-1] - position[-2]))
    else:
        return 0
    return disc_below.get(table[chain[level]].name, 0) if 0 <= level < len(chain) else 0


def _has_gap(bodies: list[tuple[Instance, int]]) -> bool:
    """Return True if a level is missing between two bodies: one was not found, or the names are wrong."""
    chain = [s.channel for s in of_kind("body", absent_levels(bodies))]
    return any(chain.index(below) - chain.index(above) > 1 for (_, above), (_, below) in pairwise(bodies))


def absent_levels(bodies: list[tuple[Instance, int]]) -> set[str]:
    """Return the levels that this spine lacks: L6 unless it was found, and L5 if S1 follows L4 at the distance of a neighbour."""
    names = [label_table()[c].name for _, c in bodies]
    absent = {"L6"} - {*names}
    if ("L4", "S1") in pairwise(names):
        upper = names.index("L4")
        distance = np.linalg.norm(bodies[upper + 1][0].centre_mm - bodies[upper][0].centre_mm)
        step = usual_step([b for b, _ in bodies]) if len(bodies) > 2 else LUMBAR_STEP_MM
        if round(float(distance) / step) < 2:
            absent.add("L5")
    return absent


def _project(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the position of `point` along the line a..b (0 at a, 1 at b), and its distance in mm from that line."""
    line = b - a
    along = float((point - a) @ line / (line @ line))
    return along, float(np.linalg.norm(point - a - along * line))


def _structures(instances: list[tuple[int | None, _Evidence]]) -> list[dict]:
    """Return a row for every channel that an instance has, in the order of the label table."""
    rows = []
    for channel in sorted({c for c, _ in instances if c}):
        own = [e for c, e in instances if c == channel]
        means = np.average([(e.entropy, e.vote[channel]) for e in own], axis=0, weights=[e.voxels for e in own])
        rows.append({"name": label_table()[channel].name, "mean_entropy": float(means[0]), "vote": float(means[1])})
    return rows


def _agreeing_logits(log_kind: torch.Tensor, kind: np.ndarray, channel_map: np.ndarray) -> ClassLogits:
    """Put the probability of the kind under the channel of each instance.

    It goes one voxel beyond the instance, also into its neighbours, so that no seam opens when the logits are interpolated.
    """
    background = log_kind[0].masked_fill(torch.from_numpy((channel_map == 0) & (kind > 0)), 0.0)  # unnamed pieces become background
    boxes = {}
    for channel, box in structure_boxes(channel_map).items():
        kind_number = KINDS.index(label_table()[channel].kind)
        wide = tuple(slice(max(0, s.start - BOX_MARGIN), min(s.stop + BOX_MARGIN, n)) for s, n in zip(box, channel_map.shape))
        near = grown(channel_map[wide] == channel)
        other = torch.from_numpy((kind[wide] == kind_number) & (channel_map[wide] > 0) & (channel_map[wide] != channel))
        log_p = log_kind[(kind_number, *wide)] - NEIGHBOUR_COST * other
        boxes[channel] = (wide, torch.where(torch.from_numpy(near), log_p, NEVER))
    return ClassLogits(background, boxes)
