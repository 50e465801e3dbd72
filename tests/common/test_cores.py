"""Processes and threads beside the network."""

from __future__ import annotations

import os

import pytest
import torch
from conftest import BUNDLE
from monai.bundle.utils import load_bundle_config

from scripts.common import cores


def test_cores_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert cores.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert cores.cores() == 7


@pytest.mark.parametrize(
    ("gpus", "device", "workers"),
    [(2, "cuda:1", 8), (2, torch.device("cuda"), 8), (32, "cuda", 1), (0, "cuda", 16), (2, "cpu", 1), (0, torch.device("cpu"), 1)],
)
def test_workers_of_a_training(monkeypatch, gpus, device, workers):
    monkeypatch.setattr(cores, "cores", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    parser = load_bundle_config(str(BUNDLE), "train.yaml")
    parser["device"] = device
    parser.parse()
    assert parser.get_parsed_content("num_workers") == workers
