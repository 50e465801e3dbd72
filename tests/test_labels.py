"""The label table, its schemes, and what they do with numbers that they do not know."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scripts.common.errors import UserError
from scripts.labels import METADATA_FILE, SCHEMES, channels_from_verse, decode, encode, label_table, structure


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
    # L6 and its disc are left out: spider shifts with them, totalspineseg gives its disc the number of L5/S1
    label = np.array([[s.channel for s in label_table() if "L6" not in s.name and (s.name != "S1" or scheme != "spider")]], np.uint8)
    np.testing.assert_array_equal(encode(decode(label, scheme), "f", scheme), label)
    np.testing.assert_array_equal(encode(decode(label, scheme).astype(np.float32), "f", scheme), label)


def test_totalspineseg_disc_above_the_sacrum():
    label = np.array([structure(n).channel for n in ("background", "L5", "L5/S1", "L6", "L6/S1", "S1")])
    values = decode(label, "totalspineseg")
    assert values.tolist() == [0, 45, 100, 46, 100, 50]
    assert encode(np.array([100]), "f", "totalspineseg").tolist() == [structure("L5/S1").channel]
    assert encode(values, "f", "totalspineseg")[4] == structure("L6/S1").channel


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["T12", "L1", "L5", "L5/S1", "S1"], [6, 5, 1, 201, 0]),
        (["L4", "L4/L5"], [2, 202]),  # the sacrum is out of view: L5 is the lowest by name
        (["L5", "L6", "L5/S1", "L6/S1", "S1"], [2, 1, 202, 201, 0]),  # six lumbar vertebrae
        (["L3", "L4", "L4/L5", "S1"], [2, 1, 201, 0]),  # four
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
        ([0, 77], "spider", r"a.nii: unknown label values \[77\]. The label scheme 'spider' has 1 = L5"),
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
