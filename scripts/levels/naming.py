"""Names for the vertebrae of a scan: the best consecutive sequence of levels, how sure it is, and the second best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from scripts.labels import of_kind
from scripts.levels.instances import Instance, usual_volume

FLOOR = -5.5  # least log-probability of a level: no single vertebra decides alone, and a large one is rather renamed than left out
LUMBAR = {5: {"L6"}, 6: set(), 4: {"L5", "L6"}}  # number of lumbar vertebrae -> levels that such a spine lacks
LUMBAR_COST = {5: 0.0, 6: 3.0, 4: 3.5}  # nats, about minus the logarithm of how often five lumbar vertebrae turn out to be six or four
DROP_COST = (1.5, 10.0)  # nats, to take a piece for no vertebra at all: of any size, and more for one as large as its neighbours
BELOW_SACRUM = 0.6  # share of that price below S1, where S2 looks like another
TILT_COST = 6.0  # nats per unit of the slope between neighbours beyond MAX_SLOPE
OFFSETS = (0, -1, 1, -2, 2)  # levels that the votes for a run of neighbours may be off: who miscounts misreads all that follow
MISCOUNT_COST = 6.5  # nats a level, where such a run begins or ends below another
LAST_OFF_COST = 3.0  # nats a level, for votes that are off down to the last body: near the sacrum there is little to count
MAX_BODIES = 30  # largest pieces that may be bodies: a whole spine has 24, and time grows with the square of their number
WHOLE = 0.4  # share of the usual volume from which on a piece counts for the usual distance
STEP_MM = (22.0, 45.0)  # bounds of the usual distance between the centres of two neighbours
MAX_SLOPE = 1.2  # horizontal by vertical distance of two neighbours; the sacrum lies behind L5


@dataclass(frozen=True)
class Naming:
    """The level of every instance, `None` for one that is no vertebra."""

    channels: list[int | None]
    probability: float  # of all sequences that give no body another level than this one
    runner_up: list[int | None]  # the best sequence that gives one another level
    runner_up_probability: float  # of that one alone


def name_bodies(bodies: Sequence[Instance], log_p: np.ndarray, sacral: np.ndarray | None = None) -> Naming:
    """Best sequence of levels of the bodies, from top to bottom.

    Every path takes some of the bodies in order; each following one carries the following level, or skips as many levels as their
    distance says are missing between them. Its score is the sum of the log-probabilities of its levels, less the price of bodies left
    out, of slopes that no spine has, and of four or six lumbar vertebrae. A whole run of votes may be a level or two off, for one
    price: two neighbours that both look like L5 above a sacrum are rather L4 and L5 than L5 and L6. A dynamic programme finds the best
    path for every pair of a first and a last level; their scores, normalised, are the probabilities. Sequences that differ in whether a
    piece is a vertebra at all, as at the upper end of the view, agree on the levels. Where no sacrum is in view, several shifts score
    alike and the probability says so.

    Args:
        bodies: from top to bottom.
        log_p: mean log-probability of every channel given that the voxel is a body, shape (bodies, channels).
        sacral: nats in favour of S1 for every body besides, shape (bodies,); None for none.
    """
    levels, names = zip(*((s.channel, s.name) for s in of_kind("body")))
    if not bodies:
        return Naming([], 0.0, [], 0.0)
    if len(bodies) > MAX_BODIES:
        return _name_largest(bodies, log_p, sacral)
    votes = _votes(np.maximum(log_p[:, levels], FLOOR), names)
    if sacral is not None and "S1" in names:
        votes[:, :, names.index("S1")] += sacral
    votes = votes.swapaxes(0, 1).tolist()  # lists: single numbers of arrays are slow
    drop = _drop_prices([b.volume_mm3 for b in bodies])
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
    """Whether no body has two levels, and one has the same."""
    pairs = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
    return bool(pairs) and all(x == y for x, y in pairs)


def _name_largest(bodies: Sequence[Instance], log_p: np.ndarray, sacral: np.ndarray | None) -> Naming:
    """As `name_bodies`, with all but the largest left out."""
    kept = sorted(np.argsort([-b.volume_mm3 for b in bodies], kind="stable")[:MAX_BODIES])
    naming = name_bodies([bodies[i] for i in kept], log_p[kept], None if sacral is None else sacral[kept])
    both: list[list[int | None]] = [[None] * len(bodies), [None] * len(bodies)]
    for place, *channels in zip(kept, naming.channels, naming.runner_up):
        both[0][place], both[1][place] = channels
    return Naming(both[0], naming.probability, both[1], naming.runner_up_probability)


def usual_step(bodies: Sequence[Instance]) -> float:
    """Distance in mm between neighbouring whole bodies: the lower median, because a missing body lengthens it, within STEP_MM."""
    usual = usual_volume([b.volume_mm3 for b in bodies])
    centres = [b.centre_mm for b in bodies if b.volume_mm3 >= WHOLE * usual]
    near = sorted(float(np.linalg.norm(b - a)) for a, b in pairwise(centres))
    return float(np.clip(near[(len(near) - 1) // 2], *STEP_MM)) if near else STEP_MM[0]


def _drop_prices(volumes_mm3: Sequence[float]) -> np.ndarray:
    """Price of leaving out each body, from top to bottom.

    It goes with the volume, compared with that of the larger neighbour, because thoracic bodies have half of the volume of lumbar ones; but
    with no more than the usual one, and no less than a share of the largest, because specks have specks for neighbours.
    """
    usual, least = usual_volume(volumes_mm3), WHOLE * max(volumes_mm3)
    prices = []
    for i, volume in enumerate(volumes_mm3):
        beside = max([*volumes_mm3[max(0, i - 1) : i], *volumes_mm3[i + 1 : i + 2]], default=usual)
        prices.append(DROP_COST[0] + DROP_COST[1] * min(1.0, volume / max(least, min(usual, beside))))
    return np.array(prices)


def _steps(bodies: Sequence[Instance]) -> dict[tuple[int, int], tuple[int, float]]:
    """For bodies i above j: how many levels further j is, and the price of their slope."""
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
    """Votes for every level if they are `OFFSETS` off, shape (offsets, bodies, levels), from those as they are (bodies, levels).

    The sacrum is not counted but seen: it is not taken for another level, nor another for it.
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
    """Last level -> (score, level of every body) of the best path whose first level is `start`; votes by body, offset and level."""
    n = len(votes)
    left_out = [0.0, *np.cumsum(drop).tolist()]  # price of leaving out the first k bodies
    best: list[dict[tuple[int, int], tuple[float, tuple]]] = [{} for _ in range(n)]  # by level and offset of the last body
    result: dict[int, tuple[float, list]] = {}
    for j in range(n):
        for own, off in zip(votes[j], OFFSETS):
            best[j][start, off] = (own[start] - left_out[j], ((j, start),))
        for i in range(j):
            step, price = steps[i, j]
            between = left_out[j] - left_out[i + 1]
            for (level, before), (score, path) in best[i].items():
                for following, cost in _following(level, step, names):
                    for own, off in zip(votes[j], OFFSETS):
                        total = score + own[following] - price - between - cost - MISCOUNT_COST * abs(off - before)
                        if (following, off) not in best[j] or total > best[j][following, off][0]:
                            best[j][following, off] = (total, (*path, (j, following)))
        for (level, off), (score, path) in best[j].items():
            below = (left_out[n] - left_out[j + 1]) * (BELOW_SACRUM if names[level] == "S1" else 1)
            total = score - below - LAST_OFF_COST * abs(off)
            if level not in result or total > result[level][0]:
                chosen = dict(path)
                result[level] = (total, [chosen.get(k) for k in range(n)])
    return result


@cache
def _following(level: int, step: int, names: tuple[str, ...]) -> list[tuple[int, float]]:
    """Levels (indices into `names`, from top to bottom) that lie `step` below, with their price: of a spine of five lumbar vertebrae, and
    of others where it passes L5."""
    if not {"L5", "L6", "S1"} <= set(names):  # a table without the exceptions
        return [(level + step, 0.0)] if level + step < len(names) else []
    l5, found = names.index("L5"), {}
    for lumbar, lacking in LUMBAR.items():
        spine = [i for i, name in enumerate(names[: names.index("S1") + 1]) if name not in lacking]
        if level in spine and spine.index(level) + step < len(spine):
            following = spine[spine.index(level) + step]
            found.setdefault(following, LUMBAR_COST[lumbar] if level <= l5 < following else 0.0)
    return [*found.items()]
