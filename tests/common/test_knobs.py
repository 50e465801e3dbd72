"""Limits of the numbers among the knobs; every number in the configs has some."""

from __future__ import annotations

import pytest
from conftest import EVALUATE, INFERENCE, TOOLS, TRAIN, fails
from monai.bundle import ConfigParser

from scripts.common.knobs import LIMITS, check_knobs


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"spacing": [0, 1, 1]}, "--spacing [0, 1, 1]: three numbers above 0 are needed"),
        ({"spacing": [1.0, 1.0]}, "--spacing [1.0, 1.0]: three numbers above 0 are needed"),
        ({"spacing": [1.0, float("nan"), 1.0]}, "--spacing [1.0, nan, 1.0]: three numbers above 0 are needed"),
        ({"spacing": 1.0}, "--spacing 1.0: three numbers above 0 are needed"),
        ({"epochs": 1, "batch_size": 0}, "--batch_size 0: a whole number of at least 1 is needed"),
        ({"epochs": 1.5}, "--epochs 1.5: a whole number of at least 1 is needed"),
        (
            {"margin": "wide", "bend": -1},
            "--margin wide: a whole number of at least 0 is needed; --bend -1: a number of at least 0 is needed",
        ),
        ({"num_workers": 257}, "--num_workers 257: a whole number from 0 to 256 is needed"),
        ({"threshold": 0}, "--threshold 0: a number from 0.01 to 0.99 is needed"),
        ({"many_scans": 19, "folder_size": 2}, "--many_scans 19: a whole number of at least 20 is needed"),
    ],
)
def test_what_is_refused(knobs, message):
    with fails(message):
        check_knobs(knobs)


@pytest.mark.parametrize("value", [-0.1, 0.91, "half", True, None, float("nan")])
def test_ranges(value):
    with fails(f"--overlap {value}: a number from 0 to 0.9 is needed"):
        check_knobs({"overlap": value})


@pytest.mark.parametrize("value", [[50, 80, 128], 17, [16, 32], [16, 16, 16.0], "abc", [0, 16, 16], [16, 16, -16]])
def test_multiples(value):
    with fails(f"--patch_size {value}: three multiples of 16 are needed"):
        check_knobs({"patch_size": value})


def test_what_passes():
    check_knobs({"spacing": [1.0, 0.5, 2], "patch_size": [16, 32, 48], "overlap": 0, "scale": 0.9, "epochs": 10**9, "min_speck_mm3": 0.5})
    check_knobs({"patch_size": "$@inference['patch_size']", "margin": "@other", "workers": {"_target_": "f"}, "of_no_table": -1})


@pytest.mark.parametrize("file", [TRAIN, EVALUATE, INFERENCE, TOOLS])
def test_every_number_in_a_config_is_within_its_limits(file):
    config = ConfigParser.load_config_file(file)
    check_knobs(config)
    numbers = {k for k, v in config.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    assert numbers <= LIMITS.keys()
