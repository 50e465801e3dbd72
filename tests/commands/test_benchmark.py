"""Results of the benchmark with faked clocks and processes; the measurements themselves are not tested."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, SMALL
from ignite.engine import Engine
from monai.bundle import load_bundle_config

from scripts.benchmark import benchmark as command
from scripts.benchmark import inference, stopwatch, training
from scripts.benchmark import parts as bench
from scripts.benchmark.benchmark import benchmark
from scripts.benchmark.page import KNOBS, NETWORKS, forward_s, write_page
from scripts.benchmark.process import Child, GpuWatch, run_child
from scripts.benchmark.stopwatch import Stopwatch
from scripts.benchmark.training import step_rate
from scripts.common.cores import cores
from scripts.common.errors import UserError
from scripts.common.inference_config import inference_config


def measured(total: float, dice: float, factor: float = 1.0) -> dict:
    steps = {"read": 0.5, "coarse network": 0.5, "fine network": 1.5, "figure": 0.25}
    return {
        "total_s": total, "dice": dice, "peak_mib": 953.67431640625, "steps": {k: factor * v for k, v in steps.items()},
        "first_voxel_s": 4.0, "cold_s": 9.0, "cold_peak_mib": 2 * 953.67431640625,
        "forward": {"gflops": 300.0, "gflops_per_s": 150.0, "convolution_gflops_per_s": 200.0},
    }  # fmt: skip


def results() -> dict:
    return {
        "machine": {"processor": "a processor", "cores": "2"},
        "repeats": 3,
        "scans": {"thick": {"shape": [20, 320, 320], "spacing_mm": [4.0, 0.8, 0.8]}},
        "ours": {"thick": measured(3.0, 0.93)},
        "plain": {"thick": {"total_s": 45.0, "peak_mib": 4768.37158203125, "dice": 0.931}},
        "accuracy": {"thick": {"ours": [0.92, 0.94, 0.96], "plain": [0.9, 0.93, 0.96]}},
        "nnunet": {"missing": "nnunetv2 was not installed"},
        "knobs": {"thick": {KNOBS[0].name: {"total_s": 3.0, "peak_mib": 953.67431640625, "dice": 0.93}}},
        "large": {"shape": [400, 512, 512], "spacing_mm": [0.6, 0.6, 0.6], "cold_s": 40.4, "cold_peak_mib": 3.5e9 / 2**20},
        "folder": {
            "scans": 8,
            "processes": 3,
            "one_by_one": {"seconds": 32.0, "per_scan_s": 3.0, "peak_mib": 953.67431640625},
            "overlapped": {"seconds": 26.0, "per_scan_s": 2.0, "peak_mib": 953.67431640625},
            "side_by_side": {"seconds": 22.0, "per_scan_s": 1.5, "peak_mib": 3 * 953.67431640625},
        },
        "many": {
            "scans": 1000,
            "processes": 3,
            "seconds": 1500.0,
            "first_tenth_s": 1.5,
            "last_tenth_s": 1.52,
            "peak_mib": 3.5e9 / 2**20,
        },
        "training": {
            "ours": {"steps_per_s": 0.8, "samples_per_s": 6.4, "waiting": 0.01, "peak_mib": 953.67431640625},
            "plain": {"steps_per_s": 0.2, "samples_per_s": 0.4, "waiting": 0.25, "peak_mib": 953.67431640625},
        },
        "compiled": {"thick": {"compiled": {"fine_s": 0.25, "total_s": 2.0, "first_s": 30.04}}},
    }


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Return a clock that stands still until a test changes its only item."""
    time = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: time[0])
    return time


# measurements


def test_a_step_inside_another_counts_once(clock):
    watch = Stopwatch()

    def inner(seconds: float) -> str:
        clock[0] += seconds
        return "result"

    for _ in range(2):
        with watch.step("outer"):
            clock[0] += 1
            assert watch.timed("inner", inner)(seconds=4.0) == "result"
            clock[0] += 2
    assert watch.seconds == {"inner": 8.0, "outer": 6.0}


def test_step_rate_leaves_the_warmup_out(clock):
    def batches():
        for i in range(100):
            clock[0] += 1.0 if i < 3 else 0.5  # waiting
            yield i

    def step(engine: Engine, batch: int) -> None:
        clock[0] += 10.0 if batch < 3 else 1.5

    trainer = Engine(step)
    trainer.run = lambda run=trainer.run: run(batches(), epoch_length=100)
    assert step_rate(trainer, steps=5, warmup=3) == {"steps_per_s": pytest.approx(0.5), "waiting": pytest.approx(0.25)}
    assert trainer.state.iteration == 8


def test_child_returns_its_output_time_and_memory(tmp_path):
    code = "import os, time; data = b'x' * (100 * 2**20); del data; print(os.getcwd()); print('last'); time.sleep(0.5)"
    own = bytearray(b"x" * (500 * 2**20))  # of this process, which Linux counts as the child's peak too
    child = run_child([sys.executable, "-c", code], str(tmp_path))
    assert len(own) == 500 * 2**20
    assert child.output.splitlines() == [str(tmp_path), "last"]
    assert 100 < child.peak_mib < 200
    assert child.seconds > 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_memory_of_a_child_and_its_children(tmp_path):
    sleeps = "import time; data = b'x' * (100 * 2**20); time.sleep(1.5)"
    code = f"import subprocess, sys; data = b'x' * (60 * 2**20); subprocess.run([sys.executable, '-c', {sleeps!r}])"
    both = run_child([sys.executable, "-c", code], str(tmp_path), with_children=True).peak_mib
    assert 160 < both < 300


@pytest.mark.parametrize(("code", "timeout"), [("raise ValueError('why')", 60), ("import time; time.sleep(60)", 0.5)])
def test_child_that_fails(tmp_path, code, timeout):
    with pytest.raises(UserError, match="ended with 1 .*ValueError: why" if timeout > 1 else "ended with -9 after"):
        run_child([sys.executable, "-c", code], str(tmp_path), timeout)


def test_use_of_a_gpu_is_the_mean_of_what_the_driver_says(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "$@" > "$0.call"\necho 40\necho 80\necho "[N/A]"\nwhile true; do sleep 0.1; done\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    watch = GpuWatch("GPU-1234")
    while not (tmp_path / "nvidia-smi.call").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    assert watch.end() == pytest.approx(0.6)
    assert "--id=GPU-1234 --query-gpu=utilization.gpu" in (tmp_path / "nvidia-smi.call").read_text()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert GpuWatch("GPU-1234").end() is None


@pytest.mark.skipif(not (BUNDLE / "models" / "model.pt").exists(), reason="no weights are shipped")
def test_both_ways_segment_the_same_spine(small_scan, tmp_path, monkeypatch):
    monkeypatch.chdir(BUNDLE)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    ours = inference.segment(str(BUNDLE), str(small_scan), str(tmp_path / "ours"), repeats=1)
    assert not compiled
    again = inference.segment(str(BUNDLE), str(small_scan), str(tmp_path / "again"), repeats=1, compiled=True)
    assert [type(module).__name__ for module in compiled] == ["UNet"]
    assert np.array_equal(*(nib.load(way["mask"]).dataobj for way in (ours, again)))
    assert {"read", "orient and resample", *NETWORKS, "name levels", "back to the scan's grid", "figure", "report"} <= set(ours["steps"])
    assert 0.9 * ours["total_s"] < sum(ours["steps"].values()) <= ours["total_s"]
    assert ours["forward"]["gflops"] > 1
    assert len(list((tmp_path / "ours").glob("*_seg.*"))) == 3
    plain = inference.plain(str(BUNDLE), str(small_scan), str(tmp_path / "plain"))
    a, b = (nib.load(way["mask"]) for way in (ours, plain))
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
    a, b = (np.asarray(mask.dataobj) > 0 for mask in (a, b))
    # not the same mask: instance norm sees other windows, and the plain way keeps specks and nameless pieces
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8


@pytest.mark.parametrize("as_usual", [False, True])
def test_training_is_measured(cohort, tmp_path, monkeypatch, as_usual):
    def small(*args):
        parser = load_bundle_config(*args)
        parser.update(SMALL)
        return parser

    monkeypatch.setattr(training, "load_bundle_config", small)
    found = training.train(str(BUNDLE), str(cohort), str(tmp_path), steps=2, as_usual=as_usual)
    assert found["samples_per_s"] == 2 * found["steps_per_s"] > 0
    assert 0 < found["waiting"] < 1


def test_many_scans_by_the_times_of_their_reports(tmp_path, small_scan, monkeypatch):
    def command(_: bench.Bench, options: list[str], **kwargs) -> Child:
        source, target = (Path(options[options.index(name) + 1]) for name in ("--dataset_dir", "--output_dir"))
        target.mkdir()
        for i, scan in enumerate(sorted(source.iterdir())):
            assert scan.read_bytes() == small_scan.read_bytes()
            report = target / f"{scan.name}_seg.json"
            report.touch()
            os.utime(report, (0, 1e9 + 2 * i + (i >= 90) * (i - 90)))  # 2 s each, and 3 s in the last tenth
        return Child("", 230.0, 1024.0)

    monkeypatch.setattr(bench, "_command", command)
    found = bench.many(bench.Bench(str(BUNDLE), tmp_path, {"thick": small_scan}, 1, 4, 100, 1, ""))
    assert found.pop("processes") == cores()
    assert found == {"scans": 100, "seconds": 230.0, "first_tenth_s": 2.0, "last_tenth_s": 3.0, "peak_mib": 1024.0}


def test_folder_by_the_medians_of_three_turns(tmp_path, small_scan, monkeypatch):
    """The reports of two processes come in pairs: 4 s a scan one by one, 3 s with a reader, 2 s in two processes, once ten times that."""
    turns: list[str] = []

    def command(_: bench.Bench, options: list[str], processes: int, **kwargs) -> Child:
        source, target, workers = (Path(options[options.index(name) + 1]) for name in ("--dataset_dir", "--output_dir", "--num_workers"))
        target.mkdir()
        turns.append(f"{processes} {workers}")
        slow = 10 if len(turns) > 6 else 1
        for i, scan in enumerate(sorted(source.iterdir())):
            report = target / f"{scan.name}_seg.json"
            report.touch()
            os.utime(report, (0, 1e9 + slow * (4 * (i // 2) if processes == 2 else (4 - int(workers.name)) * i)))
        return Child("", 30.0 * slow, 1024.0 * processes)

    monkeypatch.setattr(bench, "_command", command)
    monkeypatch.setattr(bench, "cores", lambda: 2)
    found = bench.folder(bench.Bench(str(BUNDLE), tmp_path, {"thick": small_scan}, 3, 8, 100, 1, ""))
    assert turns == ["1 0", "1 1", "2 0"] * 3
    assert found == {
        "scans": 8,
        "processes": 2,
        "one_by_one": {"seconds": 30.0, "per_scan_s": 4.0, "peak_mib": 1024.0},
        "overlapped": {"seconds": 30.0, "per_scan_s": 3.0, "peak_mib": 1024.0},
        "side_by_side": {"seconds": 30.0, "per_scan_s": 2.0, "peak_mib": 2048.0},
    }


# command


@pytest.fixture
def parts(monkeypatch) -> dict:
    """Replace the parts by ones that measure nothing."""
    made = {"ours": lambda b: results()["ours"], "plain": lambda b: {name: {"n": b.repeats} for name in b.scans}}
    monkeypatch.setattr(command, "PARTS", made)
    monkeypatch.setattr(command, "machine", lambda: {"cores": "2"})
    monkeypatch.setattr(command, "write_page", lambda results, path: path.with_suffix(".md"))
    return made


def run(folder: Path, *names: str, scans: tuple = ("thick.nii.gz",), **options) -> dict:
    path = folder / "benchmark.json"
    benchmark(str(BUNDLE), str(path), list(names), [str(folder / s) for s in scans], **options)
    return json.loads(path.read_text())


def test_parts_are_entered_one_by_one(tmp_path, small_scan, parts):
    (tmp_path / "thick.nii.gz").write_bytes(small_scan.read_bytes())
    assert list(run(tmp_path, "ours")) == ["machine", "repeats", "scans", "ours"]
    found = run(tmp_path, "plain")
    assert found["plain"] == {"thick": {"n": 3}}
    assert found["ours"] == results()["ours"]
    assert sorted(found["scans"]["thick"]["shape"]) == [9, 32, 51]
    assert sorted(found["scans"]["thick"]["spacing_mm"]) == [2.5, 2.5, 4.9]


def test_figures_of_another_machine_go(tmp_path, small_scan, parts, monkeypatch):
    (tmp_path / "thick.nii.gz").write_bytes(small_scan.read_bytes())
    run(tmp_path, "ours")
    monkeypatch.setattr(command, "machine", lambda: {"cores": "64"})
    assert "ours" not in run(tmp_path, "plain")


def test_wrong_calls(tmp_path, parts):
    with pytest.raises(UserError, match="benchmark has no part speed; choose from ours, plain"):
        run(tmp_path, "speed", scans=())
    with pytest.raises(UserError, match=r"missing\.nii\.gz: no such file"):
        run(tmp_path, "ours", scans=("missing.nii.gz",))
    with pytest.raises(UserError, match="nothing measured yet"):
        run(tmp_path, scans=())


def test_nnunet_that_is_not_installed_is_reported(tmp_path):
    empty = bench.Bench(str(BUNDLE), tmp_path, {}, 1, 1, 20, 1, str(tmp_path / "python"))
    assert "not installed" in bench.nnunet(empty)["missing"]


def test_knobs_exist():
    names = {name for knob in KNOBS for name in knob.overrides}
    assert names <= set(inference_config(str(BUNDLE)).config)
    assert all(f"--{k} {v}" == knob.name for knob in KNOBS for k, v in knob.overrides.items())


# page


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_page_holds_the_figures(tmp_path):
    text = write_page(results(), tmp_path / "benchmark.json").read_text(encoding="utf-8")
    assert "*thick*, 20 x 320 x 320 voxels of 4 x 0.8 x 0.8 mm" in text
    assert cells(text, "fine network") == ["1.50"]
    assert cells(text, "sum / networks") == ["1.50"]  # 3.0 s, 2.0 s of them in the networks
    assert cells(text, "peak memory, cold, GB") == ["2.00"]
    assert "| thick | this bundle | 3.0 | 1.0 | 1.1 | 1.00 | 0.9300 |" in text  # 2.75 s without the figure
    assert "| thick | plain way of the model zoo | 45.0 | 15.0 | 16.4 | 5.00 | 0.9310 |" in text
    assert "| thick | 3 | 0.940 ± 0.020 | 0.930 ± 0.030 | 0.010 ± 0.010 |" in text
    assert "nnU-Net v2: nnunetv2 was not installed." in text
    assert cells(text, KNOBS[0].name)[2:] == ["3.00", "1.00", "0.9300"]
    assert cells(text, f"`{KNOBS[1].name}`")[2:] == ["-", "-", "-"]
    assert cells(text, "3 processes (`torchrun --nproc_per_node=3`, `--num_workers 0`)") == ["22.0", "1.50", "2.00", "3.00"]
    assert "400 x 512 x 512 voxels of 0.6 x 0.6 x 0.6 mm, from a cold shell: 40 s, 3.50 GB for all processes together." in text
    assert "1000 scans in 3 processes: 25 minutes, 1.50 s a scan in the first tenth and 1.52 s in the last, 3.50 GB." in text
    assert cells(text, "`train.yaml`") == ["0.800", "6.4", "1 %", "1.00", "16.0"]
    assert "| thick | compiled | 0.250 | 2.000 | 30.0 |" in text
    assert "(benchmark.png)" in text
    assert (tmp_path / "benchmark.png").read_bytes()[:4] == b"\x89PNG"


def test_page_of_a_gpu(tmp_path):
    found = results()
    found["ours"]["thick"]["gpu_peak_mib"] = 1907.3486328125
    for own in found["training"].values():
        own.update(gpu_busy=0.874, gpu_peak_mib=3814.697265625)
    text = write_page(found, tmp_path / "benchmark.json").read_text(encoding="utf-8")
    assert cells(text, "GPU memory, GB") == ["2.00"]
    assert cells(text, "`train.yaml`") == ["0.800", "6.4", "1 %", "1.00", "87 %", "4.00", "16.0"]


def test_page_says_what_was_not_measured(tmp_path):
    few = {k: v for k, v in results().items() if k in ("machine", "repeats", "scans")}
    text = write_page(few, tmp_path / "benchmark.json").read_text(encoding="utf-8")
    assert text.count("Not measured.") == 7
    assert not (tmp_path / "benchmark.png").exists()
    assert "benchmark.png" not in text


def test_published_page_is_that_of_the_published_results(tmp_path):
    source = BUNDLE / "docs" / "benchmark.json"
    if not source.is_file():
        pytest.skip("no results are published")
    page = write_page(json.loads(source.read_text(encoding="utf-8")), tmp_path / "benchmark.json")
    assert page.read_text(encoding="utf-8") == source.with_suffix(".md").read_text(encoding="utf-8")


def test_seconds_in_the_networks():
    assert forward_s(measured(3.0, 0.9, factor=2.0)) == 4.0
