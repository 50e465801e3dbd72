"""Write the page and the plot of the benchmark from its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from scripts.common.files import write_whole
from scripts.common.tables import markdown

NOT_MEASURED = "Not measured."
PROCESSES = """Most steps besides the networks run on one core. Several processes with one core each can therefore do more together. Each
takes its share of the scans, with the command in [training.md](training.md#several-gpus-several-machines), and needs its own memory."""
NETWORKS = ("coarse network", "fine network")
STEPS_AFTER_MASK = ("measure", "read again", "figure", "report")  # no rival has these steps
WAYS = {"ours": "this bundle", "plain": "plain way of the model zoo", "nnunet": "nnU-Net v2"}
MIB_PER_GB = 1e9 / 2**20


class Knob(NamedTuple):
    """A row of the knob table: `overrides` are measured, `gives` and `costs` say why one would want them or not."""

    name: str
    overrides: dict[str, Any]
    gives: str
    costs: str


KNOBS = (
    Knob("as shipped", {}, "", ""),
    Knob(
        "--amp False",
        {"amp": False},
        "float32: the same masks on every machine",
        "time, on GPUs, with AMX, and on AMD processors with AVX512-BF16",
    ),
    Knob("--overlap 0.5", {"overlap": 0.5}, "smoother seams between windows", "more windows"),
    Knob("--overlap 0.1", {"overlap": 0.1}, "fewer windows", "seams may show"),
    Knob("--margin 4", {"margin": 4}, "fewer windows", "a vertebra that the coarse network half misses is cut off"),
    Knob("--margin 24", {"margin": 24}, "more of a vertebra that is cut off", "more windows"),
    Knob("--threshold 0.5", {"threshold": 0.5}, "larger outlines", "they are too large in scans of some hospitals"),
    Knob("--tta False", {"tta": False}, "one pass of the coarse network instead of three", "names depend more on where a scan ends"),
    Knob("--sw_batch_size 1", {"sw_batch_size": 1}, "less memory on a GPU", "some time there, on some CPUs up to twice the time"),
    Knob("--figures False", {"figures": False}, "no time for pictures", "nothing to look at"),
)

PAGE = """# Speed

How long a scan takes, where the time goes, and how long other ways take for the same scans. This page is generated from
[{results}]({results}), which holds every figure, by

```bash
python -m monai.bundle run benchmark --config_file configs/tools.yaml --results docs/{results}
```

Each figure was measured in a process of its own, one after the other, on this machine:

{machine}

Scans (phantoms unless `--scans` names others): {scans}. Times of this
bundle, its knobs and the plain way are medians of {repeats} runs after one that warms up, in seconds.

## Where the time goes

{steps}

{plot}*Start-up* is the time from a cold shell to the first voxel of the scan in memory: Python, PyTorch and MONAI are imported, the config
is parsed, the weights are loaded. It is taken in the process of the benchmark. *Cold* is the whole command for one scan, with its reader
process and the first, slower run of every step. *Peak memory, cold* is that of all processes of that command together. GFLOPs/s are those
of the convolutions in both networks; the last row is what a single 3 x 3 x 3 convolution of 32 channels reaches in the same precision.

## Compared with other ways

{rivals}

*Plain way of the model zoo*: the same weights in float32, `sliding_window_inference` with windows of 96 x 96 x 96 voxels and an overlap of
0.5 over the whole scan, one-hot classes brought back by linear interpolation. It draws no figure, writes no report, and does without our
memory setting (`scripts/common/memory.py`). *nnU-Net v2*: the predictor of the package with the plan that its own planner makes for a
data set of this scan, random weights, one fold, no mirroring, run once; it therefore has no Dice. Both write a mask and nothing else:
*our mask* is this bundle without the steps {after_mask}. Dice is the mean over the structures of the scan's label.
Memory is the peak of the one process that did all runs.

## Accuracy

{accuracy}

## Knobs of `inference.yaml`

{knobs}

The first row repeats the settings of the table at the top. Where the two disagree, the speed of the machine has drifted, and smaller
differences between rows mean nothing. Other knobs do not change a mask: `--num_workers 1` (the default) reads the next scan while the
network works, `--num_workers 0` saves the memory of one process. `--spacing` and `--patch_size` belong to the weights: leave them.

## torch.compile

{compiled}

Only the fine network is compiled, during the first scan; the coarse one would be compiled anew for every size of a scan. No config does it.

## Folders

{folder}{many}

## A large scan

{large}

## Training

{training}
"""


def write_page(results: Mapping[str, Any], results_file: Path) -> Path:
    """Write the page `.md` and, if steps were measured, the plot `.png` beside `results_file`; return the path of the page."""
    page, plot = (results_file.with_suffix(suffix) for suffix in (".md", ".png"))
    scans = [f"*{name}*, {_by(scan['shape'])} voxels of {_by(scan['spacing_mm'])} mm" for name, scan in results["scans"].items()]
    text = PAGE.format(
        results=results_file.name,
        machine=markdown(["machine", ""], [[k, v] for k, v in results["machine"].items()], words=2),
        scans="; ".join(scans),
        repeats=results["repeats"],
        after_mask=", ".join(f"*{step}*" for step in STEPS_AFTER_MASK),
        plot=f"![Seconds per step]({plot.name})\n\n" if "ours" in results else "",
        **{
            section.__name__.strip("_"): section(results)
            for section in (_steps, _rivals, _accuracy, _knobs, _compiled, _folder, _many, _large, _training)
        },
    )
    if "ours" in results:
        write_whole(plot, lambda path: _plot(results["ours"], path))
    return write_whole(page, lambda path: path.write_text(text, encoding="utf-8"))


def _by(numbers: list) -> str:
    return " x ".join(f"{n:g}" for n in numbers)


def forward_s(measured: Mapping[str, Any]) -> float:
    """Return the seconds in both networks."""
    return sum(measured["steps"].get(name, 0.0) for name in NETWORKS)


def _steps(results: Mapping[str, Any]) -> str:
    ours = results.get("ours")
    if not ours:
        return NOT_MEASURED
    names = dict.fromkeys(name for scan in ours.values() for name in scan["steps"])
    rows = [[name, *(f"{scan['steps'].get(name, 0):.2f}" for scan in ours.values())] for name in names]
    figures = {
        "**sum**": lambda s: f"**{s['total_s']:.2f}**",
        "sum / networks": lambda s: f"{s['total_s'] / forward_s(s):.2f}",
        "start-up": lambda s: f"{s['first_voxel_s']:.2f}",
        "cold": lambda s: f"{s['cold_s']:.2f}",
        "peak memory, cold, GB": lambda s: _gb(s["cold_peak_mib"]),
        "GFLOPs": lambda s: f"{s['forward']['gflops']:.0f}",
        "GFLOPs/s": lambda s: f"{s['forward']['gflops_per_s']:.0f}",
        "GFLOPs/s of one convolution": lambda s: f"{s['forward']['convolution_gflops_per_s']:.0f}",
    }
    if all("gpu_peak_mib" in scan for scan in ours.values()):
        figures["GPU memory, GB"] = lambda s: _gb(s["gpu_peak_mib"])
    rows += [[name, *(figure(scan) for scan in ours.values())] for name, figure in figures.items()]
    return markdown(["step", *ours], rows, words=1)


def _rivals(results: Mapping[str, Any]) -> str:
    rows, missing = [], []
    for scan in results["scans"]:
        for way, title in WAYS.items():
            measured = results.get(way, {"missing": "not measured"})
            if "missing" in measured:
                missing.append(f"{title}: {measured['missing']}.")
                continue
            own, base = measured[scan], results.get("ours", {}).get(scan)
            bases = [base["total_s"], base["total_s"] - sum(base["steps"].get(step, 0.0) for step in STEPS_AFTER_MASK)] if base else []
            ratios = [f"{own['total_s'] / seconds:.1f}" for seconds in bases] or ["-", "-"]
            rows.append([scan, title, f"{own['total_s']:.1f}", *ratios, _gb(own["peak_mib"]), _dice(own)])
    header = ["scan", "way", "seconds", "time / ours", "time / our mask", "peak memory, GB", "Dice"]
    table = markdown(header, rows, words=2) if rows else NOT_MEASURED
    return "\n\n".join([table, *dict.fromkeys(missing)])


def _accuracy(results: Mapping[str, Any]) -> str:
    accuracy = results.get("accuracy")
    if not accuracy:
        return NOT_MEASURED
    rows = []
    for name, dice in accuracy.items():
        gains = [a - b for a, b in zip(dice["ours"], dice["plain"])]
        rows.append([name, str(len(gains)), *(f"{mean(n):.3f} ± {stdev(n):.3f}" for n in (dice["ours"], dice["plain"], gains))])
    header = ["phantoms", "n", *(WAYS[way] for way in ("ours", "plain")), "difference"]
    what = "Dice, mean ± standard deviation over phantoms of two grids (thick slices of 4 mm, isotropic voxels of 1 mm):"
    return f"{what}\n\n{markdown(header, rows, words=1)}"


def _dice(measured: Mapping[str, Any]) -> str:
    return f"{measured['dice']:.4f}" if "dice" in measured else "-"


def _gb(mib: float) -> str:
    return f"{mib / MIB_PER_GB:.2f}"


def _knobs(results: Mapping[str, Any]) -> str:
    measured = results.get("knobs", {})
    rows = []
    for knob in KNOBS:
        cells = []
        for scan in results["scans"]:
            own = measured.get(scan, {}).get(knob.name)
            cells += [f"{own['total_s']:.2f}", _gb(own["peak_mib"]), _dice(own)] if own else ["-"] * 3
        rows.append([f"`{knob.name}`" if knob.overrides else knob.name, knob.gives, knob.costs, *cells])
    header = [f"{scan}: {name}" for scan in results["scans"] for name in ("seconds", "GB", "Dice")]
    return markdown(["knob", "gives", "costs", *header], rows, words=3)


def _compiled(results: Mapping[str, Any]) -> str:
    rows = [
        [scan, way, *(f"{own[key]:.3f}" for key in ("fine_s", "total_s")), f"{own['first_s']:.1f}"]
        for scan, ways in results.get("compiled", {}).items()
        for way, own in ways.items()
    ]
    return markdown(["scan", "way", "fine network, s", "sum, s", "first scan, s"], rows, words=2) if rows else NOT_MEASURED


def _folder(results: Mapping[str, Any]) -> str:
    folder = results.get("folder")
    if not folder:
        return NOT_MEASURED
    rows = []
    titles = {
        "one_by_one": "one by one (`--num_workers 0`)",
        "overlapped": "the next scan is read meanwhile (`--num_workers 1`, the default)",
        "side_by_side": f"{folder['processes']} processes (`torchrun --nproc_per_node={folder['processes']}`, `--num_workers 0`)",
    }
    for name, title in titles.items():
        own = folder[name]
        gain = folder["one_by_one"]["per_scan_s"] / own["per_scan_s"]
        rows.append([title, f"{own['seconds']:.1f}", f"{own['per_scan_s']:.2f}", f"{gain:.2f}", _gb(own["peak_mib"])])
    header = ["way", f"{folder['scans']} scans, s", "s a scan, after the first", "times the rate", "GB"]
    return f"{markdown(header, rows, words=1)}\n\n{PROCESSES}"


def _many(results: Mapping[str, Any]) -> str:
    many = results.get("many")
    if not many:
        return ""
    took = f"{many['scans']} scans in {many['processes']} processes: {many['seconds'] / 60:.0f} minutes"
    rates = f"{many['first_tenth_s']:.2f} s a scan in the first tenth and {many['last_tenth_s']:.2f} s in the last"
    return f"\n\n{took}, {rates}, {_gb(many['peak_mib'])} GB."


def _large(results: Mapping[str, Any]) -> str:
    large = results.get("large")
    if not large:
        return NOT_MEASURED
    what = f"A phantom of {_by(large['shape'])} voxels of {_by(large['spacing_mm'])} mm"
    return f"{what}, from a cold shell: {large['cold_s']:.0f} s, {_gb(large['cold_peak_mib'])} GB for all processes together."


def _training(results: Mapping[str, Any]) -> str:
    training = results.get("training")
    if not training:
        return NOT_MEASURED
    titles = {
        "ours": "`train.yaml`",
        "bfloat16": "`train.yaml`, `--train_amp True`",
        "batch of 16": "`train.yaml`, `--batch_size 16`",
        "plain": "`train.yaml` in float32, without channels last, transforms in the same process",
    }
    figures = {
        "steps per second": lambda own: f"{own['steps_per_s']:.3f}",
        "samples per second": lambda own: f"{own['samples_per_s']:.1f}",
        "waiting for data": lambda own: f"{100 * own['waiting']:.0f} %",
        "peak memory, GB": lambda own: _gb(own["peak_mib"]),
    }
    if all("gpu_peak_mib" in own for own in training.values()):
        figures["GPU computes"] = lambda own: "-" if own["gpu_busy"] is None else f"{100 * own['gpu_busy']:.0f} %"
        figures["GPU memory, GB"] = lambda own: _gb(own["gpu_peak_mib"])
    figures["samples, times the last row's rate"] = lambda own: f"{own['samples_per_s'] / training['plain']['samples_per_s']:.1f}"
    rows = [[titles[way], *(figure(own) for figure in figures.values())] for way, own in training.items()]
    return markdown(["way", *figures], rows, words=1)


def _plot(ours: Mapping[str, Any], path: Path) -> None:
    """Draw one bar per scan, with its steps in order."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for scan in ours.values() for name in scan["steps"]))
    figure = Figure(figsize=(10, 1.6 + 0.7 * len(ours)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(ours)
    for i, name in enumerate(names):
        seconds = [scan["steps"].get(name, 0.0) for scan in ours.values()]
        axes.barh(list(ours), seconds, left=left, label=name, color=colormaps["tab20"](i % 20))
        left = [a + b for a, b in zip(left, seconds)]
    axes.set_xlabel("seconds")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.savefig(path, format="png")
