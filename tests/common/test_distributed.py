"""Shares of the processes; runs of several processes are in tests/clients/test_processes.py."""

from __future__ import annotations

import os
from types import SimpleNamespace

import ignite.distributed as idist
import pytest
import torch

from scripts.batch.outcomes import Outcomes
from scripts.batch.survive import Scans
from scripts.common import distributed
from scripts.common.distributed import ScanSampler, from_first, gathered
from scripts.common.errors import CallError, UserError
from scripts.data.masks import MaskLayout


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


def test_all_processes_divide_the_scans_that_the_first_has_found(monkeypatch):
    found = [{"image": "/d/b.nii.gz"}, {"image": "/d/c.nii.gz"}]  # before a.nii.gz arrived
    monkeypatch.setattr("scripts.batch.survive.from_first", lambda scans: found)
    dataset = Scans([{"image": "/d/a.nii.gz"}, *found], None, SimpleNamespace(layout=MaskLayout("/out", "/d")))
    assert list(dataset.data) == found
    assert sorted(dataset.first.values()) == ["/d/b.nii.gz", "/d/c.nii.gz"]


def test_one_process_needs_no_others():
    assert gathered({"a": [1], "b": [2]}) == [1, 2]
    assert gathered({}) == []
    assert from_first("20260101") == "20260101"


@pytest.fixture
def two_gpus(monkeypatch) -> dict:
    """Pretend that this machine has two GPUs; return the calls to PyTorch."""
    asked: dict = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: asked.update(gpu=index))
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda backend, timeout: asked.update(backend=backend))
    monkeypatch.setattr(idist, "sync", lambda: os.environ.update(LOCAL_RANK="0"))  # as under Slurm
    return asked


@pytest.mark.parametrize(("local", "share", "gpu", "backend"), [(1, False, 1, "nccl"), (1, True, 1, "gloo"), (3, True, 1, "gloo")])
def test_a_gpu_for_every_process_or_shared_ones(two_gpus, monkeypatch, local, share, gpu, backend):
    monkeypatch.setenv("LOCAL_RANK", str(local))
    distributed.start(share_gpus=share)
    assert two_gpus == {"gpu": gpu, "backend": backend}
    assert os.environ["LOCAL_RANK"] == str(local)  # by which the configs choose the device


def test_more_processes_than_gpus(two_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(CallError, match="2 GPUs here, but more processes: lower --nproc_per_node"):
        distributed.start()
    assert not two_gpus  # it has not waited for the others


def test_start_without_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="runs under torchrun"):
        distributed.start()


def test_failures_of_all_processes_are_in_one_table(of_processes, monkeypatch, tmp_path, capsys):
    outcomes = [Outcomes(str(tmp_path)) for _ in range(2)]
    monkeypatch.setattr(idist, "all_gather", lambda own: [o.rows for o in outcomes])
    for rank, (file, outcome) in enumerate(zip(("/a.nii", "/b.nii"), outcomes)):
        of_processes(rank, 2)
        outcome.segmented(f"/good_{rank}.nii")
        outcome.failed(file, "too small", "Scan more.")
    assert not list(tmp_path.iterdir())  # two writers would overwrite each other
    capsys.readouterr()
    for rank, outcome in enumerate(outcomes):
        of_processes(rank, 2)
        outcome.close(None)
        with pytest.raises(SystemExit) as end:
            outcome.end()
        assert end.value.code == 1
    rows = ["/a.nii,too small,Scan more.", "/b.nii,too small,Scan more."]
    assert (tmp_path / "failures.csv").read_text().splitlines() == ["file,reason,fix", *rows]
    assert capsys.readouterr().out == f"2 segmented, 0 skipped (already done), 2 failed: see {tmp_path / 'failures.csv'}\n"
