"""Shares of the processes; the run of several is in tests/clients/test_processes.py."""

from __future__ import annotations

import ignite.distributed as idist
import pytest

from scripts import distributed
from scripts.distributed import ScanSampler, from_first, gathered
from scripts.errors import UserError


@pytest.fixture
def of_processes(monkeypatch):
    """Pretend to be one of several processes."""

    def pretend(rank: int, size: int) -> None:
        monkeypatch.setattr(idist, "get_rank", lambda: rank)
        monkeypatch.setattr(idist, "get_world_size", lambda: size)

    return pretend


def shares(of_processes, scans: int, size: int, **kwargs) -> list[list[int]]:
    found = []
    for rank in range(size):
        of_processes(rank, size)
        sampler = ScanSampler(range(scans), **kwargs)
        assert len(sampler) == len(list(sampler))
        found.append(list(sampler))
    return found


def test_every_scan_belongs_to_one_process(of_processes):
    assert shares(of_processes, scans=7, size=3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert shares(of_processes, scans=7, size=3, never_empty=True) == [[0, 3, 6], [1, 4], [2, 5]]


def test_fewer_scans_than_processes(of_processes):
    assert shares(of_processes, scans=2, size=5) == [[0], [1], [], [], []]
    assert shares(of_processes, scans=2, size=5, never_empty=True) == [[0], [1], [0], [1], [0]]
    assert shares(of_processes, scans=0, size=2, never_empty=True) == [[], []]


def test_gathered_rows_have_the_order_of_the_scans(of_processes, monkeypatch):
    of_processes(0, 2)
    parts = [{"a": [1, 2], "c": [5]}, {"b": [3, 4], "a": [1, 2]}]
    monkeypatch.setattr(idist, "all_gather", lambda own: parts)
    assert gathered(parts[0]) == [1, 2, 3, 4, 5]


def test_one_process_needs_no_others():
    assert gathered({"a": [1], "b": [2]}) == [1, 2]
    assert gathered({}) == []
    assert from_first("20260101") == "20260101"


def test_start_without_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="runs under torchrun"):
        distributed.start()
