"""The label table, its schemes, and messages on unknown numbers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from conftest import fails

from scripts.common.errors import CallError, UserError
from scripts.labels import METADATA_FILE, SCHEMES, channels_from_verse, check_scheme, decode, encode, label_table, structure, use_table


def test_table_has_every_lumbar_structure_in_verse_numbers():
    numbers = {s.name: s.verse for s in label_table()}
    assert numbers["T11"] == 18
    assert [numbers[f"L{i}"] for i in range(1, 7)] == [20, 21, 22, 23, 24, 25]
    assert numbers["S1"] == 26
    assert numbers["T12/L1"] == 119
    assert numbers["L5/S1"] == 124
    assert all(s.verse == 100 + numbers[s.name.split("/")[0]] for s in label_table() if s.is_disc)


def test_channel_def_repeats_the_table():
    channel_def = json.loads(METADATA_FILE.read_text())["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channel_def == {str(s.channel): s.name for s in label_table()}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_encode_undoes_decode(scheme):
    # L6 and its disc are left out: spider shifts with them, totalspineseg tells L5/S1 and L6/S1 by where they lie
    label = np.array([[s.channel for s in label_table() if "L6" not in s.name and (s.name != "S1" or scheme != "spider")]], np.uint8)
    np.testing.assert_array_equal(encode(decode(label, scheme), "f", scheme), label)
    np.testing.assert_array_equal(encode(decode(label, scheme).astype(np.float32), "f", scheme), label)


def test_totalspineseg_disc_above_the_sacrum():
    label = np.array([structure(n).channel for n in ("background", "L5", "L5/S1", "L6", "L6/S1", "S1")])
    values = decode(label, "totalspineseg")
    assert values.tolist() == [0, 45, 100, 46, 100, 50]
    assert encode(np.array([100]), "f", "totalspineseg").tolist() == [structure("L5/S1").channel]
    np.testing.assert_array_equal(encode(values, "f", "totalspineseg"), label)
    np.testing.assert_array_equal(encode(values[::-1], "f", "totalspineseg"), label[::-1])  # the axis may point upwards
    assert encode(np.delete(values, 1), "f", "totalspineseg")[1] == structure("L6/S1").channel  # L5 is not in view


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["T12", "L1", "L5", "L5/S1", "S1"], [6, 5, 1, 201, 0]),
        (["L4", "L4/L5"], [2, 202]),  # the sacrum is out of view: L5 is the lowest by name
        (["L5", "L6", "L5/S1", "L6/S1", "S1"], [2, 1, 202, 201, 0]),  # six lumbar vertebrae
        (["L3", "L4", "L4/L5", "S1"], [2, 1, 201, 0]),  # four
        (["L3", "L4", "L4/L5", "L5/S1", "S1"], [3, 2, 202, 201, 0]),  # five: the body of L5 was missed, its discs were not
    ],
)
def test_spider_counts_from_the_lowest_vertebra(names, expected):
    assert decode(np.array([structure(n).channel for n in names]), "spider").tolist() == expected


@pytest.mark.parametrize(
    ("values", "scheme", "message"),
    [
        ([0, 20.5], "verse", r"a.nii: fractional label values, e.g. 20.5. Resample labels by nearest neighbour."),
        ([0, 20, 99], "verse", r"a.nii: unknown label values \[99\]. The label scheme 'verse' has 15 = T8"),
        ([-1, 20], "verse", r"a.nii: unknown label values \[-1\]"),
        ([20, 1000], "verse", r"a.nii: unknown label values \[1000\]"),
        ([-2, 0, *range(150, 154)], "verse", r"a.nii: unknown label values \[-2, 150, 151, 152, 153\]. The label scheme"),
        (range(1, 4000), "verse", r"values \[1, 2, 3, 4, 5\] and 3\d\d\d more. Is it a scan, not a mask\? The label scheme 'verse' has"),
        ([0, 77], "spider", r"a.nii: unknown label values \[77\]. The label scheme 'spider' has 1 = L5"),
        (
            [5, 100, 120],
            "spider",
            r"values \[100, 120\]. The label scheme .* Set SPIDER's canal \(100\) and partly visible vertebrae .* to 0",
        ),
        (
            [1, 5, 100, 205],
            "verse",
            r"a.nii: unknown label values \[1, 5, 100, 205\]. All values are numbers of 'spider': set --read_scheme",
        ),
        ([0], "verso", r"label scheme 'verso' does not exist; choose one of verse, channel, spider, totalspineseg. Did you mean verse\?"),
    ],
)
def test_bad_values(values, scheme, message):
    with pytest.raises(UserError, match=message):
        encode(np.array(values), "a.nii", scheme)


def test_decode_refuses_an_unknown_scheme():
    with pytest.raises(UserError, match="label scheme 'bids' does not exist"):
        decode(np.zeros(1, np.uint8), "bids")


def test_channels_keep_their_order():
    assert channels_from_verse([26, 0, 20]) == [structure("S1").channel, 0, structure("L1").channel]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"verse": 300}, "the verse of L1 is 300; a whole number from 0 to 255 is needed, masks are 8-bit"),
        ({"spider": -1}, "the spider of L1 is -1; a whole number from 0 to 255 is needed, masks are 8-bit"),
        ({"totalspineseg": 4.5}, "the totalspineseg of L1 is 4.5; a whole number from 0 to 255 is needed, masks are 8-bit"),
        ({"verse": "20"}, "the verse of L1 is '20'; a whole number from 0 to 255 is needed, masks are 8-bit"),
        ({"verse": None}, "the verse of L1 is None; a whole number from 0 to 255 is needed, masks are 8-bit"),
        ({"name": 5}, "channel 1 has the name 5; a text is needed, such as 'L1'"),
        ({"name": ["L1"]}, "channel 1 has the name ['L1']; a text is needed, such as 'L1'"),
    ],
)
def test_a_table_whose_numbers_no_mask_can_hold(row, message, tmp_path):
    path = tmp_path / "table.json"
    rows = [{"channel": 0, "name": "background", "verse": 0}, {"channel": 1, "name": "L1", "verse": 20, **row}]
    path.write_text(json.dumps(rows))
    with fails(f"{path}: {message}"):
        use_table(str(path))


NO_TABLE = "no label table there ("
NO_LIST = f"{NO_TABLE}'labels' must be a list of objects with channel, name and verse)"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("no json", CallError, NO_TABLE),
        ("5", CallError, NO_LIST),
        ('{"labels": 3}', CallError, NO_LIST),
        ('{"labels": {"a": 1}}', CallError, NO_LIST),
        ("[5, 6]", CallError, NO_LIST),
        ('{"label": []}', CallError, f"{NO_TABLE}the key 'labels' is missing"),
        ('[{"chanel": 0}]', CallError, f"{NO_TABLE}got an unexpected keyword argument 'chanel'"),
        ('[{"channel": 0, "name": "background"}]', CallError, f"{NO_TABLE}missing 1 required positional argument: 'verse'"),
        (
            '[{"channel": 0, "name": "background", "verse": 0}, {"channel": 2, "name": "L1", "verse": 1}]',
            UserError, "the channels of 'labels' must count 0, 1, 2",
        ),
        (
            '[{"channel": 0, "name": "background", "verse": 0}, {"channel": 1, "name": "L1", "verse": 0}]',
            UserError, "two structures share a verse",
        ),
        (
            '[{"channel": 0, "name": "background", "verse": 0}, {"channel": 1, "name": "L1/L2", "verse": 1}]',
            UserError, "no bodies above and below",
        ),
        (
            '[{"channel": 0, "name": "L3", "verse": 0}, {"channel": 1, "name": "L4", "verse": 1}]',
            UserError, "channel 0 must be the background, with the number 0: it is L3, 0",
        ),
        (
            '[{"channel": 0, "name": "background", "verse": 5}, {"channel": 1, "name": "L4", "verse": 1}]',
            UserError, "channel 0 must be the background, with the number 0: it is background, 5",
        ),
        (
            '[{"channel": 0, "name": "background", "verse": 0}, {"channel": 1, "name": "L4", "verse": 1, "totalspineseg": 44},'
            ' {"channel": 2, "name": "L5", "verse": 2, "totalspineseg": 44}]',
            UserError, "two structures share a totalspineseg, [44]",
        ),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line(content, error, message, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(error, match=rf"^{re.escape(f'{path}: {message}')}"):
        use_table(str(path))
    assert len(label_table()) == 24


def test_a_table_from_bottom_to_top(tmp_path):
    names = ["background", "L5", "L4", "L4/L5"]
    path = tmp_path / "table.json"
    path.write_text(json.dumps([{"channel": i, "name": name, "verse": i} for i, name in enumerate(names)]))
    with fails(f"{path}: bodies must be listed from top to bottom, but the disc L4/L5 names the lower one first"):
        use_table(str(path))


def test_a_scheme_that_the_table_lacks(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps([{"channel": i, "name": name, "verse": i} for i, name in enumerate(["background", "L4"])]))
    use_table(str(path))
    try:
        with fails("label scheme 'spider': no structure of the label table has a number in it; choose another, or add the numbers"):
            check_scheme("spider")
        check_scheme("verse")
    finally:
        use_table()


def test_background_needs_no_number_of_a_scheme(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps([{"channel": 0, "name": "background", "verse": 0}, {"channel": 1, "name": "L4", "verse": 1, "spider": 2}]))
    use_table(str(path))
    try:
        channels = np.array([0, 1, 0], np.uint8)
        assert decode(channels, "spider").tolist() == [0, 2, 0]
        assert encode(np.array([0, 2, 0]), scheme="spider").tolist() == [0, 1, 0]
    finally:
        use_table()
