"""Name the vertebrae of a scan: find the best consecutive sequence of levels, its probability, and the second best sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from scripts.labels import of_kind
from scripts.levels.instances import Instance, usual_volume

FLOOR = -5.5  # lowest log-probability of a level, so that no vertebra decides alone and a large one is renamed rather than left out
LUMBAR = {5: {"L6"}, 6: set(), 4: {"L5", "L6"}}  # number of lumbar vertebrae -> levels that such a spine lacks
LUMBAR_COST = {5: 0.0, 6: 3.0, 4: 3.5}  # nats, about minus the log of how often a spine has six or four lumbar vertebrae, not five
DROP_COST = (1.5, 10.0)  # nats, for leaving out a piece as no vertebra: for any piece, and in addition for one as large as its neighbours
DROP_SHARE_BELOW_S1 = 0.6  # share of that cost for a piece below S1, where S2 looks like a vertebra
TILT_COST = 6.0  # nats per unit of the slope between neighbours beyond MAX_SLOPE
OFFSETS = (0, -1, 1, -2, 2)  # levels by which the votes of a run of neighbours may be off: a miscount shifts all that follow
MISCOUNT_COST = 6.5  # nats per level, where the offset changes from one body to the next
LAST_OFF_COST = 3.0  # nats per level, for votes that are off down to the last body: near the sacrum there is little to count
MAX_BODIES = 30  # only so many pieces, the largest, may be bodies: a whole spine has 24, and time grows with the square of the number
MIN_WHOLE_SHARE = 0.4  # of the usual volume: smaller pieces are no whole bodies; of the largest one: a body is compared with no less
STEP_MM = (22.0, 45.0)  # bounds of the usual distance between the centres of two neighbours
MAX_SLOPE = 1.2  # horizontal / vertical distance of two neighbours that costs nothing; S1 lies behind L5


@dataclass(frozen=True)
class Naming:
    """Levels of the instances of a scan; `None` stands for an instance that is no vertebra."""

    channels: list[int | None]
    probability: float  # of all sequences that agree with this one on the levels
    runner_up: list[int | None]  # the best sequence that gives a body another level
    runner_up_probability: float  # of the runner-up alone


def name_bodies(bodies: Sequence[Instance], log_p: np.ndarray, sacral: np.ndarray | None = None) -> Naming:
    """Find the best sequence of levels for the bodies, from top to bottom.

    A path takes some of the bodies in order; each next body carries the next level, or skips as many levels as the distance between
    the two says are missing. The score of a path is the sum of the log-probabilities of its levels, less the costs of bodies left
    out, of slopes that no spine has, and of four or six lumbar vertebrae. A whole run of votes may be a level or two off, for a single
    cost: two neighbours that both look like L5 above a sacrum are rather L4 and L5 than L5 and L6. A dynamic programme finds the best
    path for every pair of a first and a last level; the normalised scores are the probabilities. Sequences that only differ in whether
    a piece is a vertebra at all, such as at the upper end of the view, agree on the levels. Where no sacrum is in view, several shifts
    score alike and the probability is low.

    Args:
        bodies: vertebral bodies from top to bottom.
        log_p: mean log-probability of every channel given that the voxel is a body, shape (bodies, channels).
        sacral: additional nats in favour of S1 for every body, shape (bodies,); None adds nothing.
    """
    levels, names = zip(*((s.channel, s.name) for s in of_kind("body")))
    if not bodies:
        return Naming([], 0.0, [], 0.0)
    if len(bodies) > MAX_BODIES:
        return _name_largest(bodies, log_p, sacral)
    votes = _votes(np.maximum(log_p[:, levels], FLOOR), names)
    if sacral is not None and "S1" in names:
        votes[:, :, names.index("S1")] += sacral
    votes = votes.swapaxes(0, 1).tolist()  # reading single numbers is faster from lists than from arrays
    drop = _drop_costs([b.volume_mm3 for b in bodies])
    steps = _steps(bodies)
    paths = [path for start in range(len(levels)) for path in _best_paths(start, votes, drop, steps, names).values()]
    ranked = sorted(paths, key=lambda item: -item[0])
    weights = np.exp(np.array([score for score, _ in ranked]) - ranked[0][0])
    weights /= weights.sum()
    sequences = [[None if level is None else levels[level] for level in path] for _, path in ranked]
    others = [i for i, sequence in enumerate(sequences) if not _agree(sequence, sequences[0])]
    probability = 1.0 - float(weights[others].sum())
    if not others:
        return Naming(sequences[0], probability, [None] * len(bodies), 0.0)
    return Naming(sequences[0], probability, sequences[others[0]], float(weights[others[0]]))


def _agree(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Return True if there are bodies that both sequences name, and they give all of these the same level."""
    pairs = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
    return bool(pairs) and all(x == y for x, y in pairs)


def _name_largest(bodies: Sequence[Instance], log_p: np.ndarray, sacral: np.ndarray | None) -> Naming:
    """Run `name_bodies` on the `MAX_BODIES` largest bodies and leave out the others."""
    kept = sorted(np.argsort([-b.volume_mm3 for b in bodies], kind="stable")[:MAX_BODIES])
    naming = name_bodies([bodies[i] for i in kept], log_p[kept], None if sacral is None else sacral[kept])
    both: list[list[int | None]] = [[None] * len(bodies), [None] * len(bodies)]
    for place, *channels in zip(kept, naming.channels, naming.runner_up):
        both[0][place], both[1][place] = channels
    return Naming(both[0], naming.probability, both[1], naming.runner_up_probability)


def usual_step(bodies: Sequence[Instance]) -> float:
    """Return the lower median of the distances in mm between neighbouring whole bodies, within STEP_MM; a missing body lengthens some."""
    usual = usual_volume([b.volume_mm3 for b in bodies])
    centres = [b.centre_mm for b in bodies if b.volume_mm3 >= MIN_WHOLE_SHARE * usual]
    near = sorted(float(np.linalg.norm(b - a)) for a, b in pairwise(centres))
    return float(np.clip(near[(len(near) - 1) // 2], *STEP_MM)) if near else STEP_MM[0]


def _drop_costs(volumes_mm3: Sequence[float]) -> np.ndarray:
    """Return the cost of leaving out each body, from top to bottom.

    It grows with the volume relative to the larger neighbour, because thoracic bodies have half the volume of lumbar ones. The volume
    to compare with is at most the usual one, and at least a share of the largest, because specks have specks for neighbours.
    """
    usual, least = usual_volume(volumes_mm3), MIN_WHOLE_SHARE * max(volumes_mm3)
    costs = []
    for i, volume in enumerate(volumes_mm3):
        beside = max([*volumes_mm3[max(0, i - 1) : i], *volumes_mm3[i + 1 : i + 2]], default=usual)
        costs.append(DROP_COST[0] + DROP_COST[1] * min(1.0, volume / max(least, min(usual, beside))))
    return np.array(costs)


def _steps(bodies: Sequence[Instance]) -> dict[tuple[int, int], tuple[int, float]]:
    """Return, for every body i above a body j, by how many levels j is lower and the cost of the slope between them."""
    centres = np.array([b.centre_mm for b in bodies])
    usual = usual_step(bodies)
    steps = {}
    for i in range(len(bodies)):
        for j in range(i + 1, len(bodies)):
            across, down = np.linalg.norm(centres[j, :2] - centres[i, :2]), centres[i, 2] - centres[j, 2]
            slope = float(across / max(down, 1.0))
            steps[i, j] = max(1, round(float(np.hypot(across, down)) / usual)), TILT_COST * max(0.0, slope - MAX_SLOPE)
    return steps


def _votes(votes: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Shift votes (bodies, levels) by each of `OFFSETS`, shape (offsets, bodies, levels).

    The network sees the sacrum rather than counting down to it, so votes for S1 are not shifted, nor others to S1.
    """
    counted = [i for i, name in enumerate(names) if name not in ("L6", "S1")]
    result = np.full((len(OFFSETS), *votes.shape), FLOOR)
    result[0] = votes
    for off, voted in zip(OFFSETS[1:], result[1:]):
        for place, level in enumerate(counted):
            if 0 <= place + off < len(counted):
                voted[:, level] = votes[:, counted[place + off]]
        if off < 0 and "L6" in names and -off <= len(counted):
            voted[:, names.index("L6")] = votes[:, counted[off]]
    return result


def _best_paths(start: int, votes: list, drop: np.ndarray, steps: dict, names: tuple[str, ...]) -> dict[int, tuple[float, list]]:
    """Find the best path from the level `start` to every last level, by dynamic programming.

    The state of a path is its last body, the level of that body, and the offset of its votes; `best` keeps the best path to each state.

    Args:
        start: first level of all paths, an index into `names`.
        votes: votes by body, offset (in the order of `OFFSETS`) and level.
        drop: cost of leaving out each body.
        steps: result of `_steps`.
        names: levels from top to bottom.

    Returns:
        last level -> score of the path, and the level of every body (None if it is left out).
    """
    n_bodies = len(votes)
    skipped_cost = [0.0, *np.cumsum(drop).tolist()]  # cost of leaving out the first k bodies
    best: list[dict[tuple[int, int], tuple[float, tuple]]] = [{} for _ in range(n_bodies)]  # per last body: (level, offset) -> score, path
    result: dict[int, tuple[float, list]] = {}
    for body in range(n_bodies):
        for votes_at_offset, offset in zip(votes[body], OFFSETS):
            best[body][start, offset] = (votes_at_offset[start] - skipped_cost[body], ((body, start),))
        for previous in range(body):
            step, slope_cost = steps[previous, body]
            between_cost = skipped_cost[body] - skipped_cost[previous + 1]
            for (previous_level, previous_offset), (score, path) in best[previous].items():
                for level, lumbar_cost in _following(previous_level, step, names):
                    for votes_at_offset, offset in zip(votes[body], OFFSETS):
                        miscount_cost = MISCOUNT_COST * abs(offset - previous_offset)
                        total = score + votes_at_offset[level] - slope_cost - between_cost - lumbar_cost - miscount_cost
                        if (level, offset) not in best[body] or total > best[body][level, offset][0]:
                            best[body][level, offset] = (total, (*path, (body, level)))
        for (level, offset), (score, path) in best[body].items():
            below_cost = (skipped_cost[n_bodies] - skipped_cost[body + 1]) * (DROP_SHARE_BELOW_S1 if names[level] == "S1" else 1)
            total = score - below_cost - LAST_OFF_COST * abs(offset)
            if level not in result or total > result[level][0]:
                level_of = dict(path)
                result[level] = (total, [level_of.get(i) for i in range(n_bodies)])
    return result


@cache
def _following(level: int, step: int, names: tuple[str, ...]) -> list[tuple[int, float]]:
    """Return the levels (indices into `names`, from top to bottom) that may lie `step` below `level`, each with its cost.

    Spines of four or six lumbar vertebrae cost something where the step passes L5.
    """
    if not {"L5", "L6", "S1"} <= set(names):  # such a table knows only one number of lumbar vertebrae
        return [(level + step, 0.0)] if level + step < len(names) else []
    l5, found = names.index("L5"), {}
    for lumbar, lacking in LUMBAR.items():
        spine = [i for i, name in enumerate(names[: names.index("S1") + 1]) if name not in lacking]
        if level in spine and spine.index(level) + step < len(spine):
            following = spine[spine.index(level) + step]
            found.setdefault(following, LUMBAR_COST[lumbar] if level <= l5 < following else 0.0)
    return [*found.items()]
