"""Names of a column of bodies from their votes and places."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from scripts.labels import label_table, structure
from scripts.levels.instances import Instance
from scripts.levels.level_sequence import (
    DROP_COST,
    DROP_SHARE_BELOW_S1,
    FLOOR,
    LAST_OFF_COST,
    LUMBAR_COST,
    MISCOUNT_COST,
    Naming,
    name_bodies,
)

LEVELS = [s.name for s in label_table() if s.kind == "body"]  # T8 .. L5, L6, S1
FIVE_LUMBAR = [name for name in LEVELS if name != "L6"]
DROP = sum(DROP_COST)  # of a body as large as the others
MM = 35.0  # from one vertebra to the next


def column(*depths: float, volume: float = 20000.0) -> list[Instance]:
    """Bodies straight below each other, `depths` in vertebrae."""
    return [Instance(n, np.array([0.0, 0.0, 500 - MM * d]), volume) for n, d in enumerate(depths, start=1)]


def piece(depth: float, forward_mm: float, volume: float) -> Instance:
    return Instance(0, np.array([0.0, forward_mm, 500 - MM * depth]), volume)


def votes(*rows: dict[str, float]) -> np.ndarray:
    """Log-probabilities of all channels; what a row does not give away is shared by the other levels."""
    log_p = np.full((len(rows), len(label_table())), -np.inf)
    for out, row in zip(log_p, rows):
        rest = (1 - sum(row.values())) / max(1, len(LEVELS) - len(row))
        for name in LEVELS:
            out[structure(name).channel] = np.log(row.get(name, rest) or 1e-30)
    return log_p


def sure(*levels: str, p: float = 0.9) -> list[dict[str, float]]:
    return [{name: p} for name in levels]


def blurred(*levels: str) -> list[dict[str, float]]:
    """Half for the level, a little less for the one above it, some for the one below."""
    shares = [(FIVE_LUMBAR[i - 1 : i + 2], (0.35, 0.45, 0.2)) for i in map(FIVE_LUMBAR.index, levels)]
    return [dict(zip(near, p)) for near, p in shares]


def names(channels: list[int | None]) -> list[str | None]:
    return [None if c is None else label_table()[c].name for c in channels]


def best(bodies: list[Instance], rows: list[dict[str, float]]) -> list[str | None]:
    return names(name_bodies(bodies, votes(*rows)).channels)


def check(naming: Naming, count: int) -> None:
    """Check what must hold whatever the votes say."""
    for channels in (naming.channels, naming.runner_up):
        assert len(channels) == count
        assert all(b > a for a, b in pairwise([c for c in channels if c is not None]))
    assert 0 <= naming.runner_up_probability <= naming.probability
    assert naming.probability + naming.runner_up_probability <= 1 + 1e-9


# votes


@pytest.mark.parametrize("first", range(12))
@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_plain_votes(first, count):
    levels = FIVE_LUMBAR[first : first + count]
    naming = name_bodies(column(*range(len(levels))), votes(*sure(*levels)))
    assert names(naming.channels) == levels
    check(naming, len(levels))


@pytest.mark.parametrize("wrong", ["L1", "S1", "T9"])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_wrong_vote_is_outvoted(wrong, place):
    levels = FIVE_LUMBAR[4:11]  # T12 .. S1
    rows = sure(*levels, p=0.6)
    rows[place] = {wrong: 0.95}
    assert best(column(*range(7)), rows) == levels


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_wrong_and_certain_vote_is_outvoted(place):
    levels = FIVE_LUMBAR[4:11]
    rows = sure(*levels, p=0.9)
    rows[place] = {"T9": 0.9999}
    assert best(column(*range(7)), rows) == levels


def test_two_equal_votes_become_neighbours():
    rows = [*sure("L1", "L2"), {"L3": 0.9}, {"L3": 0.5, "L4": 0.4}, *sure("L5", "S1")]
    assert best(column(*range(6)), rows) == ["L1", "L2", "L3", "L4", "L5", "S1"]
    assert best(column(0, 1), sure("L3", "L3", p=0.6)) in (["L2", "L3"], ["L3", "L4"])


def test_six_lumbar_vertebrae_by_their_votes():
    levels = LEVELS[4:]  # T12, L1 .. L6, S1
    assert best(column(*range(8)), sure(*levels, p=0.8)) == levels
    assert best(column(*range(7)), sure(*levels[:-1], p=0.8)) == levels[:-1]  # L6 is the last in view


def test_five_lumbar_vertebrae_where_the_votes_cannot_decide():
    six = LEVELS[4:]
    five = FIVE_LUMBAR[3:]  # T11 .. L5, S1
    rows = [dict.fromkeys({a, b}, 0.45) for a, b in zip(six, five)]
    naming = name_bodies(column(*range(8)), votes(*rows))
    assert names(naming.channels) == five
    assert names(naming.runner_up) == six
    ratio = naming.runner_up_probability / naming.probability
    assert ratio == pytest.approx(np.exp(-LUMBAR_COST[6]), rel=0.1)  # with a body left out, it agrees with both


def test_two_vertebrae_that_look_like_l5_are_l4_and_l5():
    rows = sure("L1", "L2", "L3", "L4", "L5", "L5", "S1", p=0.999)
    naming = name_bodies(column(*range(7)), votes(*rows))
    assert names(naming.channels) == ["T12", "L1", "L2", "L3", "L4", "L5", "S1"]
    assert names(naming.runner_up) == ["L1", "L2", "L3", "L4", "L5", "L6", "S1"]
    ratio = naming.runner_up_probability / naming.probability
    assert ratio == pytest.approx(np.exp(FLOOR - LUMBAR_COST[6] + MISCOUNT_COST), rel=0.01)


def test_a_run_of_votes_that_ends_a_level_off():
    """The lower two look like the level above theirs, but not so much that the five above them were misread for it."""
    upper = sure("T12", "L1", "L2", "L3", "L4", p=0.999)
    lower = [{"L4": 0.7, "L5": 0.2}, {"L5": 0.6, "S1": 0.3}]
    assert best(column(*range(7)), [*upper, *lower]) == ["T12", "L1", "L2", "L3", "L4", "L5", "S1"]
    assert best(column(*range(7)), [*upper, *sure("L4", "L5", p=0.99)]) == ["T11", "T12", "L1", "L2", "L3", "L4", "L5"]


def test_sacrum_below_what_looks_like_l4_is_doubtful():
    naming = name_bodies(column(*range(6)), votes(*sure("T12", "L1", "L2", "L3", "L4", "S1", p=0.999)))
    assert names(naming.channels) == ["T12", "L1", "L2", "L3", "L4", "S1"]
    assert names(naming.runner_up) == ["T12", "L1", "L2", "L3", "L4", "L5"]  # the sacrum alone is misread
    ratios = np.exp([FLOOR + LUMBAR_COST[4], LUMBAR_COST[4] - MISCOUNT_COST])  # or all but the sacrum are
    assert naming.runner_up_probability / naming.probability == pytest.approx(ratios[0], rel=0.01)
    assert naming.probability == pytest.approx(1 / (1 + ratios.sum()), rel=0.03)


def test_four_lumbar_vertebrae_by_their_votes():
    levels = ["T11", "T12", "L1", "L2", "L3", "L4", "S1"]
    assert best(column(*range(7)), sure(*levels, p=0.97)) == levels
    even = [*[dict.fromkeys(pair, 0.45) for pair in zip(levels[:-1], FIVE_LUMBAR[4:])], {"S1": 0.9999}]
    naming = name_bodies(column(*range(7)), votes(*even))
    assert names(naming.channels) == FIVE_LUMBAR[4:]
    assert naming.runner_up_probability / naming.probability == pytest.approx(np.exp(-LUMBAR_COST[4]), rel=0.15)
    assert names(naming.runner_up) == levels


# places


@pytest.mark.parametrize(("forward_mm", "volume"), [(80.0, 1500.0), (80.0, 20000.0), (-60.0, 400.0), (-60.0, 20000.0)])
@pytest.mark.parametrize("depth", [2.5, 4.6])
@pytest.mark.parametrize("vote", [{"S1": 0.9}, {"L4": 0.9}, {}])
def test_piece_off_the_line_is_no_vertebra(forward_mm, volume, depth, vote):
    levels = ["L1", "L2", "L3", "L4", "L5", "S1"]
    bodies, rows = column(*range(6)), sure(*levels)
    place = int(depth) + 1  # between two vertebrae: a bladder, or the spinous processes
    bodies.insert(place, piece(depth, forward_mm, volume))
    rows.insert(place, vote)
    levels.insert(place, None)
    assert best(bodies, rows) == levels


def test_piece_below_the_sacrum_is_no_vertebra():
    bodies, rows = column(*range(5)), sure("L2", "L3", "L4", "L5", "S1")
    assert best([*bodies, piece(6, 90, 900.0)], [*rows, {}]) == ["L2", "L3", "L4", "L5", "S1", None]
    assert best(column(*range(6)), [*rows, {"S1": 0.9}]) == ["L2", "L3", "L4", "L5", "S1", None]  # S2 looks like S1


def test_thoracic_bodies_with_wrong_votes_are_named_not_left_out():
    """They have half of the volume of lumbar ones, and the voxels of the upper two vote for the level below."""
    names_there = ["T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1"]
    volumes = (8000.0, 17000.0, 18000.0, 22000.0, 24500.0, 26500.0, 30000.0, 33000.0, 36800.0, 36100.0)
    bodies = [piece(i, 0, volume) for i, volume in enumerate(volumes)]
    assert best(bodies, sure("T10", "T11", *names_there[2:])) == names_there
    fragment = [piece(-1, 0, 3000.0), *bodies]  # of an arch, say
    assert best(fragment, sure("T10", "T10", "T11", *names_there[2:])) == [None, *names_there]


def test_sacrum_behind_the_last_vertebra_keeps_its_name():
    bodies = [*column(*range(4)), piece(3.8, -30, 15000.0)]  # 30 mm back and 28 mm down: a slope below the limit
    assert best(bodies, sure("L2", "L3", "L4", "L5", "S1")) == ["L2", "L3", "L4", "L5", "S1"]


@pytest.mark.parametrize(
    ("depths", "levels"),
    [
        ((0, 1, 3, 4, 5), ["T12", "L1", "L3", "L4", "L5"]),
        ((0, 1, 2, 4, 5), ["T12", "L1", "L2", "L4", "L5"]),
        ((0, 1, 4, 5, 6), ["T11", "T12", "L3", "L4", "L5"]),
        ((0, 1, 2, 3, 5), ["L1", "L2", "L3", "L4", "S1"]),
    ],
)
def test_missing_vertebra_leaves_a_gap(depths, levels):
    rows = [*sure(levels[0]), {}, {}, {}, *sure(levels[-1])]  # two that know their level, and places for the rest
    assert best(column(*depths), rows) == levels


def test_missing_vertebra_of_a_short_column():
    assert best(column(0, 2, 3), sure("L3", "L5", "S1")) == ["L3", "L5", "S1"]


@pytest.mark.parametrize("split", [2, 5])
def test_fragments_of_vertebrae_are_left_out(split):
    levels = ["L1", "L2", "L3", "L4", "L5", "S1"]
    bodies, rows, expected = [], [], []
    for depth, (body, level) in enumerate(zip(column(*range(6)), levels)):
        bodies, rows, expected = [*bodies, body], [*rows, {level: 0.9}], [*expected, level]
        if depth < split:  # 15 mm below its vertebra, with the same vote
            bodies, rows, expected = [*bodies, piece(depth + 0.43, 0.0, 500.0)], [*rows, {level: 0.9}], [*expected, None]
    assert best(bodies, rows) == expected


def test_votes_that_are_shifted_in_a_part_of_the_column():
    rows = [*sure("T11", "T12", "L1", p=0.999), *sure("L3", "L4", "L5", "S1", p=0.999)]
    assert best(column(*range(7)), rows) == ["T12", "L1", "L2", "L3", "L4", "L5", "S1"]


def test_vertebrae_that_grow_downwards_leave_no_gap():
    heights = np.cumsum([0.0, 24, 25, 27, 29, 31, 33, 36, 38]) / MM
    levels = FIVE_LUMBAR[2:11]  # T10 .. S1
    assert best(column(*heights), [*sure("T10"), *[{}] * 7, *sure("S1")]) == levels


# probabilities


def test_view_without_a_sacrum_is_uncertain():
    levels = ["T11", "T12", "L1", "L2", "L3"]
    naming = name_bodies(column(*range(5)), votes(*blurred(*levels)))
    assert names(naming.channels) == levels
    assert names(naming.runner_up) == ["T10", "T11", "T12", "L1", "L2"]
    assert naming.probability < 0.9
    assert naming.runner_up_probability / naming.probability == pytest.approx(np.exp(5 * np.log(0.35 / 0.45)), rel=0.15)
    sacrum = name_bodies(column(*range(7)), votes(*blurred("L1", "L2", "L3", "L4"), {"L5": 0.9}, {"S1": 0.99}, {}))
    assert names(sacrum.channels) == ["L1", "L2", "L3", "L4", "L5", "S1", None]
    assert sacrum.probability > 0.8


def test_flat_votes_of_two_bodies_by_hand():
    naming = name_bodies(column(0, 1), votes({}, {}))
    pairs = 11 + np.exp(-LUMBAR_COST[6]) + np.exp(-LUMBAR_COST[4])  # neighbours, L5 above S1 among them; L5 above L6; L4 above S1
    alone = np.exp(np.log(12) - DROP)  # one of them, which is 12 times as probable as both
    single = 11 * alone + np.exp(np.log(12) - DROP_SHARE_BELOW_S1 * DROP)  # it has any of 12 levels; below S1, leaving out costs less
    assert naming.runner_up_probability == pytest.approx(1 / (pairs + single))
    assert naming.probability == pytest.approx((1 + alone) / (pairs + single))  # the upper one alone has the level that it has in the pair
    first, second = names(naming.channels), names(naming.runner_up)
    assert all(FIVE_LUMBAR.index(b) - FIVE_LUMBAR.index(a) == 1 or "L6" in (a, b) for a, b in (first, second))
    assert first != second


def test_flat_votes_of_five_bodies_by_hand():
    naming = name_bodies(column(*range(5)), votes(*[{}] * 5))
    check(naming, 5)
    # six starts above L5 and one with S1 come at no price; L6, L4 above S1 and bodies left out make up the rest
    assert naming.runner_up_probability == pytest.approx(1 / 7, rel=0.25)
    assert naming.probability == pytest.approx(1 / 7, rel=0.25)


def test_a_doubtful_piece_leaves_the_levels_certain():
    """It does not matter for the levels of the others whether the part of T12 at the upper end of the view counts as a vertebra."""
    half = Instance(1, column(0)[0].centre_mm, 0.15 * column(0)[0].volume_mm3)
    bodies = [half, *column(1, 2, 3, 4, 5, 6)]
    naming = name_bodies(bodies, votes({"T12": 0.1}, *({n: 0.95} for n in FIVE_LUMBAR[5:])))
    assert names(naming.channels)[1:] == FIVE_LUMBAR[5:]
    assert naming.probability > 0.95
    assert names(naming.runner_up)[1:] != FIVE_LUMBAR[5:]


def test_a_single_body():
    naming = name_bodies(column(0), votes({"L3": 0.7, "L4": 0.3}))
    assert names(naming.channels) == ["L3"]
    assert names(naming.runner_up) == ["L4"]
    off = np.exp(-LAST_OFF_COST)  # L2 and L5 may be the ones that look like L3 and L4, or L1 and L6
    shares = np.maximum([0.7, 0.3, 0.7 * off, 0.3 * off, 0.7 * off**2, 0.3 * off**2, *6 * [0]], np.exp(FLOOR))
    assert [naming.probability, naming.runner_up_probability] == pytest.approx((shares / shares.sum())[:2])


def test_no_bodies():
    assert name_bodies([], np.zeros((0, len(label_table())))) == Naming([], 0.0, [], 0.0)  # nothing to be sure of


def test_more_bodies_than_levels():
    naming = name_bodies(column(*range(15)), votes(*[{}] * 15))
    check(naming, 15)
    assert sum(c is not None for c in naming.channels) in (11, 12)


@pytest.mark.parametrize("seed", range(60))
def test_random_spines(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 11))
    heights = -np.cumsum(random.uniform(2, 90, count))
    bodies = [
        Instance(n, np.array([random.normal(0, 5), random.normal(0, 30), z]), float(random.uniform(300, 40000)))
        for n, z in enumerate(heights, start=1)
    ]
    log_p = np.full((count, len(label_table())), -np.inf)
    with np.errstate(divide="ignore"):  # a probability of 0 occurs
        log_p[:, [structure(n).channel for n in LEVELS]] = np.log(random.dirichlet(np.full(12, random.choice([0.02, 0.2, 5.0])), count))
    naming = name_bodies(bodies, log_p)
    check(naming, count)
    assert any(c is not None for c in naming.channels)
    assert {c for c in naming.channels if c} <= {structure(n).channel for n in LEVELS}


def test_hundreds_of_specks_do_not_hide_the_spine():
    spine = column(0, 1, 2, 3, 4)
    random = np.random.default_rng(0)
    specks = [piece(depth, forward, 400.0) for depth, forward in zip(random.uniform(-1, 6, 400), random.uniform(150, 300, 400))]
    bodies = sorted([*spine, *specks], key=lambda b: -b.centre_mm[2])
    rows = [{} if b.volume_mm3 < 1000 else sure(f"L{round((500 - b.centre_mm[2]) / MM) + 1}")[0] for b in bodies]
    naming = name_bodies(bodies, votes(*rows))
    assert [c for c, b in zip(names(naming.channels), bodies) if b.volume_mm3 > 1000] == ["L1", "L2", "L3", "L4", "L5"]
    assert sum(c is not None for c in naming.channels) == 5
    check(naming, len(bodies))
