"""One measurement in a process of its own; `benchmark` starts these in turn.

    python -m scripts.benchmark.runs NAME OPTIONS

calls the function NAME with OPTIONS, a JSON object, and prints what it returns as JSON in the last line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from monai.bundle import ConfigParser, load_bundle_config
from monai.inferers import sliding_window_inference
from monai.transforms import AsDiscrete, Compose, Invertd, Spacingd
from monai.utils import set_determinism
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmark.process import GpuWatch
from scripts.common.memory import keep_freed_memory
from scripts.common.shared import inference_config
from scripts.data.find import case_name
from scripts.data.masks import write_label_map
from scripts.data.own_masks import write_report
from scripts.data.scans import read_scan
from scripts.figures import case_figure, save_figure
from scripts.inferers import has_bfloat16
from scripts.labels import decode
from scripts.measure.report import fresh_report
from scripts.transforms import CropBlankBordersd, KeysOnlySpacingd

COARSE, FINE = "coarse network", "fine network"
STEPS = {  # how the names of the transforms start
    "LoadImage": "read", "EnsureChannelFirst": "read", "Orientation": "orient and resample", "CropBlank": "orient and resample",
    "KeysOnlySpacing": "orient and resample", "ScaleIntensity": "scale intensities", "CastToType": "scale intensities",
    "NameLevels": "name levels", "RestoreGrid": "back to the scan's grid", "CleanLabelMap": "clean up", "MeasureSpine": "measure",
    "SaveImage": "write mask",
}  # fmt: skip
PREFETCHED = 2  # batches that every process of a DataLoader draws ahead
PLAIN_WINDOW, PLAIN_OVERLAP, PLAIN_BATCH = (96, 96, 96), 0.5, 4  # as in the spleen bundle of the model zoo


class Stopwatch:
    """Seconds per step; what a step inside another takes is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = [0.0]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._inside.append(0.0)
        start = _now()
        try:
            yield
        finally:
            took = _now() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inside.pop()
            self._inside[-1] += took

    def timed(self, name: str, function: Callable) -> Callable:
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return measured


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _gpu_memory() -> dict[str, float]:
    """`gpu_peak_mib`, the most that PyTorch has held on the GPU in this process; nothing without one."""
    return {"gpu_peak_mib": torch.cuda.max_memory_reserved() / 2**20} if torch.cuda.is_available() else {}


def segment(
    bundle_root: str,
    scan: str,
    output_dir: str,
    repeats: int,
    spawned: float = 0.0,
    overrides: dict | None = None,
    compiled: bool = False,
) -> dict:
    """Inference of one scan as inference.yaml does it, `repeats` times after one that warms up.

    Args:
        bundle_root: folder of the bundle.
        scan: file.
        output_dir: for mask, figure and report.
        repeats: runs that count.
        spawned: `time.time()` at which this process was started.
        overrides: knobs of inference.yaml.
        compiled: let `torch.compile` make kernels for the fine network; that of the coarse one would be made for every size of a scan.

    Returns:
        `steps` and `total_s` (medians, seconds), `totals_s` of every run, `first_s` of the first, `first_voxel_s` from the start of the
        process until the scan was read, `forward` (see `forward_rate`), `mask`, the file, and on a GPU `gpu_peak_mib`.
    """
    parser = inference_config(bundle_root, output_dir=output_dir, **(overrides or {}))
    parts = _parts(parser)
    if compiled:
        parts.network.fine.compile()
    keep_freed_memory()
    runs, first_voxel = [], None
    for _ in range(repeats + 1):
        watch = Stopwatch()
        parts.network.locate, parts.network.delineate = watch.timed(COARSE, parts.locate), watch.timed(FINE, parts.delineate)
        start = _now()
        with torch.no_grad():
            data = {"image": scan}
            for transform in parts.preprocessing:
                with watch.step(step_of(transform)):
                    data = transform(data)
                first_voxel = first_voxel or time.time() - spawned
            with watch.step("windows"):
                data["pred"] = parts.inferer(data["image"][None].to(parts.device), parts.network)[0]
            for transform in parts.postprocessing:
                with watch.step(step_of(transform)):
                    data = transform(data)
        with watch.step("read again"):
            volume = read_scan(scan)
        if parser["figures"]:
            with watch.step("figure"):
                figure = case_figure(volume.data, data["pred"][0].cpu().numpy(), volume.affine, title=case_name(scan))
                save_figure(figure, Path(output_dir) / f"{case_name(scan)}_seg.png")
        with watch.step("report"):
            report = fresh_report(data["pred"], volume, data["image"].meta["notes"].splitlines())
            write_report(Path(data["pred"].meta["saved_to"]), report)
        runs.append((_now() - start, watch.seconds))
    totals = [total for total, _ in runs[1:]]
    steps = {name: median(seconds[name] for _, seconds in runs[1:]) for name in runs[0][1]}
    return {
        "total_s": median(totals),
        "totals_s": totals,
        "first_s": runs[0][0],
        "first_voxel_s": first_voxel,
        "steps": steps,
        "forward": forward_rate(parts, data["image"], steps[COARSE] + steps.get(FINE, 0.0), parser.get_parsed_content("patch_size")),
        "mask": str(data["pred"].meta["saved_to"]),
        **_gpu_memory(),
    }


def step_of(transform: Any) -> str:
    """The step that a transform belongs to; its own name if there is none."""
    name = type(transform).__name__
    return next((step for start, step in STEPS.items() if name.startswith(start)), name)


def _parts(parser: ConfigParser) -> SimpleNamespace:
    """What a client takes from inference.yaml, with the weights in the network."""
    device = parser.get_parsed_content("device")
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(parser.get_parsed_content("ckpt_path"), map_location=device, weights_only=True))
    return SimpleNamespace(
        device=device,
        network=network,
        locate=network.locate,
        delineate=network.delineate,
        preprocessing=parser.get_parsed_content("preprocessing").flatten().transforms,
        inferer=parser.get_parsed_content("inferer"),
        postprocessing=parser.get_parsed_content("postprocessing").flatten().transforms,
    )


def forward_rate(parts: SimpleNamespace, image: torch.Tensor, forward_s: float, patch_size: list[int]) -> dict[str, float]:
    """GFLOPs of the networks for this image, their rate, and that of one 3 x 3 x 3 convolution of 32 channels in the same precision."""
    parts.network.locate, parts.network.delineate = parts.locate, parts.delineate
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        parts.inferer(image[None].to(parts.device), parts.network)
    dtype = torch.bfloat16 if parts.inferer.amp and has_bfloat16(parts.device) else torch.float32
    layout = {"dtype": dtype, "memory_format": torch.channels_last_3d, "device": parts.device}
    convolution = torch.nn.Conv3d(32, 32, 3, padding=1, bias=False).to(**layout)
    patch = torch.zeros(1, 32, *patch_size).to(**layout)
    seconds = []
    with torch.no_grad():
        for _ in range(6):
            start = _now()
            convolution(patch)
            seconds.append(_now() - start)
    reference = 2 * 32 * 32 * 27 * patch[0, 0].numel() / median(seconds[1:]) / 1e9
    gflops = counter.get_total_flops() / 1e9
    return {"gflops": gflops, "gflops_per_s": gflops / forward_s if forward_s else 0.0, "convolution_gflops_per_s": reference}


def plain(bundle_root: str, scan: str, output_dir: str, repeats: int = 1) -> dict:
    """The same weights the way of the model zoo: float32, windows over the whole scan, one-hot classes brought back by linear resampling.

    Neither figure nor report is made, and levels are named voxel by voxel. Arguments and result as of `segment`.
    """
    parser = inference_config(bundle_root, output_dir=output_dir)
    parts = _parts(parser)
    network = parts.network.to(memory_format=torch.contiguous_format)
    preprocessing = Compose(
        [
            Spacingd(t.keys, parser["spacing"], mode="bilinear") if isinstance(t, KeysOnlySpacingd) else t
            for t in parts.preprocessing
            if not isinstance(t, CropBlankBordersd)
        ]
    )
    back = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    path = Path(output_dir) / f"{case_name(scan)}_seg.nii.gz"
    totals = []
    for _ in range(repeats + 1):
        start = _now()
        with torch.no_grad():
            data = preprocessing({"image": scan})
            image = data["image"].as_tensor()[None].to(parts.device)
            kinds = sliding_window_inference(image, PLAIN_WINDOW, PLAIN_BATCH, network.delineate, overlap=PLAIN_OVERLAP)
            kinds[:, 0] += parts.inferer.inferer.background_bonus  # the same threshold
            logits = network.combine(network.locate(image), kinds)[0]
            one_hot = AsDiscrete(argmax=True, to_onehot=len(logits))(logits)
            del logits, kinds
            label = back({**data, "pred": one_hot})["pred"].argmax(0)
        affine = label.meta.get("original_affine", label.affine)
        write_label_map(decode(label.cpu().numpy(), "verse"), torch.as_tensor(affine).numpy(), path)
        totals.append(_now() - start)
    return {"total_s": median(totals[1:]), "totals_s": totals[1:], "mask": str(path)}


def train(bundle_root: str, dataset_dir: str, output_dir: str, steps: int, as_usual: bool = False, overrides: dict | None = None) -> dict:
    """Steps per second of train.yaml, without validation and checkpoints.

    Args:
        bundle_root: folder of the bundle.
        dataset_dir: folder with a datalist.
        output_dir: nothing of worth lands there.
        steps: that count, after those whose samples are drawn before the first of them is done.
        as_usual: the same samples and network in float32, without channels last, transforms in the process of the network.
        overrides: knobs of train.yaml.

    Returns:
        `steps_per_s`, `samples_per_s`, and `waiting`, the share of the time in which the network waits for data; on a GPU `gpu_busy`, the
        share of the time in which it computes, and `gpu_peak_mib` too.
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
    return {**rate, "samples_per_s": batch_size * rate["steps_per_s"], **_gpu_memory()}


def step_rate(trainer: Any, steps: int, warmup: int) -> dict[str, float]:
    """Run an Ignite engine for `warmup + steps` iterations; rate, share of waiting and use of a GPU of the last `steps`."""
    from ignite.engine import Events

    begun: list[float] = []
    waited: list[float] = []
    ended: list[float] = []
    watches: list[GpuWatch] = []

    def end(engine: Any) -> None:
        ended.append(_now())
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


RUNS = {"segment": segment, "plain": plain, "train": train}

if __name__ == "__main__":
    result = RUNS[sys.argv[1]](**json.loads(sys.argv[2]))
    print("\n" + json.dumps(result))
