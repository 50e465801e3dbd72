"""Measure the inference of single scans, the way of this bundle and the plain way of the model zoo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import sliding_window_inference
from monai.transforms import AsDiscrete, Compose, Invertd, Spacingd
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmark.stopwatch import Stopwatch, gpu_memory, now
from scripts.common.inference_config import inference_config
from scripts.common.memory import keep_freed_memory
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
STEPS = {  # beginning of a transform's name -> step that its time is counted for
    "LoadImage": "read", "EnsureChannelFirst": "read", "Orientation": "orient and resample", "CropBlank": "orient and resample",
    "KeysOnlySpacing": "orient and resample", "ScaleIntensity": "scale intensities", "CastToType": "scale intensities",
    "NameLevels": "name levels", "RestoreGrid": "back to the scan's grid", "CleanLabelMap": "clean up", "MeasureSpine": "measure",
    "SaveImage": "write mask",
}  # fmt: skip
PLAIN_WINDOW, PLAIN_OVERLAP, PLAIN_BATCH = (96, 96, 96), 0.5, 4  # as in the spleen bundle of the model zoo


def segment(
    bundle_root: str,
    scan: str,
    output_dir: str,
    repeats: int,
    spawned: float = 0.0,
    overrides: dict | None = None,
    compiled: bool = False,
) -> dict:
    """Measure the inference of one scan as inference.yaml does it: `repeats` runs after one that warms up.

    Args:
        bundle_root: folder of the bundle.
        scan: file.
        output_dir: folder for mask, figure and report.
        repeats: number of runs that count.
        spawned: `time.time()` at which this process was started.
        overrides: knobs of inference.yaml.
        compiled: use `torch.compile` for the fine network. The coarse one would be compiled anew for every size of a scan.

    Returns:
        `steps` and `total_s` (medians, seconds), `totals_s` of every run, `first_s` of the first, `first_voxel_s` from the start of the
        process until the scan was read, `forward` (see `forward_rate`), `mask`, the file, and on a GPU `gpu_peak_mib`.
    """
    parser = inference_config(bundle_root, output_dir=output_dir, **(overrides or {}))
    parts = _parts(parser)
    if compiled:
        parts.network.fine.compile()
    keep_freed_memory()
    totals, watches, image, mask = [], [], None, None
    for _ in range(repeats + 1):
        watches.append(Stopwatch())
        start = now()
        image, mask = _segment_once(parts, scan, parser["figures"], watches[-1])
        totals.append(now() - start)
    steps = {name: median(watch.seconds[name] for watch in watches[1:]) for name in watches[0].seconds}
    return {
        "total_s": median(totals[1:]),
        "totals_s": totals[1:],
        "first_s": totals[0],
        "first_voxel_s": watches[0].first_ended - spawned,
        "steps": steps,
        "forward": forward_rate(parts, image, steps[COARSE] + steps.get(FINE, 0.0), parser.get_parsed_content("patch_size")),
        "mask": str(mask),
        **gpu_memory(),
    }


def masks(bundle_root: str, scans: Sequence[str], output_dir: str, way: str) -> dict[str, list[str]]:
    """Segment scans once each.

    Args:
        bundle_root: folder of the bundle.
        scans: files with different names.
        output_dir: folder for the masks.
        way: "ours", as inference.yaml does it, or "plain", see `plain`.

    Returns:
        `masks`, the files in the order of the scans.
    """
    parts = _parts(inference_config(bundle_root, output_dir=output_dir))
    one = _plain_way(parts, output_dir) if way == "plain" else lambda scan: _segment_once(parts, scan, False, Stopwatch())[1]
    return {"masks": [str(one(scan)) for scan in scans]}


def step_of(transform: Any) -> str:
    """Return the step that a transform belongs to, or its own name if it belongs to none."""
    name = type(transform).__name__
    return next((step for start, step in STEPS.items() if name.startswith(start)), name)


def _parts(parser: ConfigParser) -> SimpleNamespace:
    """Return what a client takes from inference.yaml, with the weights in the network."""
    device = parser.get_parsed_content("device")
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(parser.get_parsed_content("ckpt_path"), map_location=device, weights_only=True))
    return SimpleNamespace(
        device=device,
        network=network,
        locate=network.locate,
        delineate=network.delineate,
        spacing=parser["spacing"],
        preprocessing=parser.get_parsed_content("preprocessing").flatten().transforms,
        inferer=parser.get_parsed_content("inferer"),
        postprocessing=parser.get_parsed_content("postprocessing").flatten().transforms,
    )


def _segment_once(parts: SimpleNamespace, scan: str, with_figure: bool, watch: Stopwatch) -> tuple[torch.Tensor, Path]:
    """Segment a scan step by step; return the preprocessed image and the file of the mask."""
    parts.network.locate, parts.network.delineate = watch.timed(COARSE, parts.locate), watch.timed(FINE, parts.delineate)
    data = {"image": scan}
    with torch.no_grad():
        for transform in parts.preprocessing:
            with watch.step(step_of(transform)):
                data = transform(data)
        with watch.step("windows"):
            data["pred"] = parts.inferer(data["image"][None].to(parts.device), parts.network)[0]
        for transform in parts.postprocessing:
            with watch.step(step_of(transform)):
                data = transform(data)
    mask = Path(data["pred"].meta["saved_to"])
    with watch.step("read again"):
        volume = read_scan(scan)
    if with_figure:
        with watch.step("figure"):
            figure = case_figure(volume.data, data["pred"][0].cpu().numpy(), volume.affine, title=case_name(scan))
            save_figure(figure, mask.with_name(f"{case_name(scan)}_seg.png"))
    with watch.step("report"):
        report = fresh_report(data["pred"], volume, data["image"].meta["notes"].splitlines())
        write_report(mask, report, data["pred"].meta["mask_sha256"])
    return data["image"], mask


def forward_rate(parts: SimpleNamespace, image: torch.Tensor, forward_s: float, patch_size: list[int]) -> dict[str, float]:
    """Return the GFLOPs of the networks for an image, their rate, and the rate of one 3 x 3 x 3 convolution of 32 channels."""
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
            start = now()
            convolution(patch)
            seconds.append(now() - start)
    reference = 2 * 32 * 32 * 27 * patch[0, 0].numel() / median(seconds[1:]) / 1e9
    gflops = counter.get_total_flops() / 1e9
    return {"gflops": gflops, "gflops_per_s": gflops / forward_s if forward_s else 0.0, "convolution_gflops_per_s": reference}


def plain(bundle_root: str, scan: str, output_dir: str, repeats: int = 1) -> dict:
    """Measure the same weights the way of the model zoo: `repeats` runs after one that warms up.

    That way computes in float32, in windows over the whole scan, and brings one-hot classes back by linear resampling. It draws no figure,
    writes no report, and names levels voxel by voxel. Arguments and result are those of `segment`.
    """
    one = _plain_way(_parts(inference_config(bundle_root, output_dir=output_dir)), output_dir)
    totals, mask = [], None
    for _ in range(repeats + 1):
        start = now()
        mask = one(scan)
        totals.append(now() - start)
    return {"total_s": median(totals[1:]), "totals_s": totals[1:], "mask": str(mask)}


def _plain_way(parts: SimpleNamespace, output_dir: str) -> partial[Path]:
    """Return a function that segments a scan the plain way and returns the file of its mask."""
    parts.network.to(memory_format=torch.contiguous_format)
    preprocessing = Compose(
        [
            Spacingd(t.keys, parts.spacing, mode="bilinear") if isinstance(t, KeysOnlySpacingd) else t
            for t in parts.preprocessing
            if not isinstance(t, CropBlankBordersd)
        ]
    )
    back = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    return partial(_plain_once, parts, preprocessing, back, Path(output_dir))


def _plain_once(parts: SimpleNamespace, preprocessing: Compose, back: Invertd, output_dir: Path, scan: str) -> Path:
    path = output_dir / f"{case_name(scan)}_seg.nii.gz"
    with torch.no_grad():
        data = preprocessing({"image": scan})
        image = data["image"].as_tensor()[None].to(parts.device)
        kinds = sliding_window_inference(image, PLAIN_WINDOW, PLAIN_BATCH, parts.network.delineate, overlap=PLAIN_OVERLAP)
        kinds[:, 0] += parts.inferer.inferer.background_bonus  # the same threshold
        logits = parts.network.combine(parts.network.locate(image), kinds)[0]
        one_hot = AsDiscrete(argmax=True, to_onehot=len(logits))(logits)
        del logits, kinds
        label = back({**data, "pred": one_hot})["pred"].argmax(0)
    affine = label.meta.get("original_affine", label.affine)
    write_label_map(decode(label.cpu().numpy(), "verse"), torch.as_tensor(affine).numpy(), path)
    return path
