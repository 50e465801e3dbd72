"""Measure how many steps per second a training takes, and how long the network waits for data."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import load_bundle_config
from monai.utils import set_determinism

from scripts.benchmark.process import GpuWatch
from scripts.benchmark.stopwatch import gpu_memory, now
from scripts.common.memory import keep_freed_memory

PREFETCHED = 2  # batches that every process of a DataLoader prepares ahead


def train(bundle_root: str, dataset_dir: str, output_dir: str, steps: int, as_usual: bool = False, overrides: dict | None = None) -> dict:
    """Measure steps per second of train.yaml, without validation and checkpoints.

    Args:
        bundle_root: folder of the bundle.
        dataset_dir: folder with a datalist.
        output_dir: folder that the configuration needs; its contents can be deleted.
        steps: number of steps to measure. Steps before them, whose samples are prepared in advance, do not count.
        as_usual: measure the plain way instead: the same samples and network in float32, without channels last, with the transforms in
            the process of the network.
        overrides: knobs of train.yaml.

    Returns:
        `steps_per_s`, `samples_per_s` and `waiting`, the share of the time in which the network waits for data. On a GPU also
        `gpu_busy`, the share of the time in which it computes, and `gpu_peak_mib`.
    """
    parser = load_bundle_config(bundle_root, "train.yaml")
    scans = len(json.loads((Path(dataset_dir) / "datalist.json").read_text(encoding="utf-8"))["training"])
    parser.update({"bundle_root": bundle_root, "dataset_dir": dataset_dir, "output_dir": output_dir, "epochs": 1, **(overrides or {})})
    if as_usual:
        parser.update({"train_amp": False, "num_workers": 0})
    else:
        keep_freed_memory()
    batch_size, workers = (parser.get_parsed_content(knob) for knob in ("batch_size", "num_workers"))
    warmup = 3 + PREFETCHED * workers
    parser.update({"repeat": {"phantom": -(-(steps + warmup) * batch_size // scans)}, "train::handlers": []})
    set_determinism(0)
    trainer = parser.get_parsed_content("train::trainer")
    if as_usual:
        trainer.network.to(memory_format=torch.contiguous_format)
    rate = step_rate(trainer, steps, warmup)
    return {**rate, "samples_per_s": batch_size * rate["steps_per_s"], **gpu_memory()}


def step_rate(trainer: Any, steps: int, warmup: int) -> dict[str, float]:
    """Run an Ignite engine for `warmup + steps` iterations.

    Returns:
        `steps_per_s`, `waiting` and, on a GPU, `gpu_busy` of the last `steps` iterations, see `train`.
    """
    from ignite.engine import Events

    begun: list[float] = []
    waited: list[float] = []
    ended: list[float] = []
    watches: list[GpuWatch] = []

    def end(engine: Any) -> None:
        ended.append(now())
        if len(ended) == warmup and torch.cuda.is_available():
            watches.append(GpuWatch(f"GPU-{torch.cuda.get_device_properties(0).uuid}"))
        if len(ended) == warmup + steps:
            engine.terminate()

    trainer.add_event_handler(Events.GET_BATCH_STARTED, lambda _: begun.append(time.perf_counter()))
    trainer.add_event_handler(Events.GET_BATCH_COMPLETED, lambda _: waited.append(time.perf_counter() - begun[-1]))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, end)
    trainer.run()
    took = ended[warmup + steps - 1] - ended[warmup - 1]
    rate = {"steps_per_s": steps / took, "waiting": sum(waited[warmup : warmup + steps]) / took}
    return {**rate, "gpu_busy": watches[0].end()} if watches else rate
