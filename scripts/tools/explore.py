"""Describe a dataset before training: geometry, intensities and label volumes of every scan, and its problems."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.orientations import aff2axcodes
from tqdm import tqdm

from scripts import figures, views
from scripts.common.errors import UserError, counted, shown
from scripts.common.files import write_whole
from scripts.common.preflight import check_writable
from scripts.common.tables import aligned, write_rows
from scripts.data.check_labels import label_problems
from scripts.data.datalist import SPLITS, patients_in_two_splits, read_datalist
from scripts.data.find import distinct_names, find_images, find_label
from scripts.data.own_masks import is_uncorrected
from scripts.data.scans import check_grid
from scripts.data.volumes import Volume, grid_mismatch, read_volume, voxel_mm3
from scripts.labels import anatomical_order, channels_from_verse, encode, label_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BODY_ML = 75.0  # the largest body in public labels has 65 ml
PERCENTILES = {"min": 0, "p1": 1, "median": 50, "p99": 99, "max": 100}  # of the intensities
MONTAGE = 12  # the most scans in the picture


@dataclass
class Scan:
    """Description of one scan of the dataset. Fields stay empty if a file could not be read."""

    split: str
    source: str
    image: Path
    label: Path | None
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    axes: str = ""  # direction of the array axes, e.g. "PIR": to posterior, inferior, right
    dtype: str = ""
    intensity: dict[str, float] = field(default_factory=dict)
    volume_ml: dict[int, float] = field(default_factory=dict)  # by channel; only structures that are present
    problems: list[str] = field(default_factory=list)
    label_scheme: str = "verse"  # of the label
    case: str = ""  # name, with the folders that tell it from others


def explore(
    dataset_dir: str | Path,
    output_dir: str | Path,
    datalist: str | Path = "",
    allow_outside: bool = False,
    label_scheme: str = "verse",
) -> int:
    """Describe a dataset and find its problems.

    This prints a table of scans, totals and the problems, and writes `explore.csv` (a row per scan; volumes in ml) and `explore.png`. One
    scan at a time is in memory, and a file that cannot be read does not stop the others.

    Args:
        dataset_dir: folder of the scans.
        output_dir: created if missing.
        datalist: JSON file with the splits; empty: `datalist.json` in `dataset_dir`, or, without one, all scans there and below, paired
            with labels by name.
        allow_outside: see `read_datalist`.
        label_scheme: scheme of the numbers in the labels.

    Returns:
        the number of problems.

    Raises:
        UserError: if the folder or the datalist itself cannot be used.
    """
    splits = list_entries(dataset_dir, datalist, allow_outside)
    check_writable(str(output_dir), "output_dir")
    problems = unfit_splits(splits) + patients_in_two_splits(splits)
    entries = [{"split": split, **entry} for split, entries in splits.items() for entry in entries]
    scans: list[Scan] = []
    seen: dict[str, Path] = {}
    for entry in tqdm(entries, desc="explore", unit="scan"):
        scans.append(examine(entry, seen, label_scheme))
        problems += scans[-1].problems
    names = distinct_names(scan.image for scan in scans)
    for scan in scans:
        scan.case = names[str(scan.image)]
    output_dir = Path(output_dir)
    written = [
        write_whole(output_dir / "explore.csv", lambda path: write_csv(scans, path)),
        draw(scans, output_dir / "explore.png"),
    ]
    print(scan_table(scans))
    print(totals(scans))
    print(f"\n{counted(problems, 'problem')}" + "".join(f"\n  {shown(line)}" for line in problems))
    print(f"\nwritten: {shown(', '.join(map(str, written)))}")
    return len(problems)


def run(dataset_dir: str | Path, output_dir: str | Path, datalist: str | Path = "", **options: Any) -> None:
    """Run `explore` as a bundle command, which fails if there are problems.

    Raises:
        UserError: with the number of problems, after everything is printed and written.
    """
    if count := explore(dataset_dir, output_dir, datalist, **options):
        raise UserError(f"{counted(count, 'problem')} in {datalist or dataset_dir}, listed above")


def list_entries(dataset_dir: str | Path, datalist: str | Path, allow_outside: bool) -> Mapping[str, Sequence[dict]]:
    """List the entries by split. Without a datalist the split is "-" and the source is the scan's folder."""
    default = Path(dataset_dir) / "datalist.json"
    if datalist or default.is_file():
        return read_datalist(datalist or default, dataset_dir, must_exist=False, allow_outside=allow_outside)
    found = find_images(dataset_dir)
    return {"-": [{"source": path.parent.name, "image": str(path), "label": find_label(path, is_uncorrected)} for path in found]}


def unfit_splits(splits: Mapping[str, Sequence[dict]]) -> list[str]:
    """Return the problems that keep a datalist from training: splits that it lacks, and scans without a label."""
    if "-" in splits:  # there is no datalist
        return []
    has = f"it has {', '.join(splits)}"
    problems = [f"no split '{s}': {has}. Rename one, or write a datalist with prepare." for s in SPLITS[:2] if s not in splits]
    for split in SPLITS:
        problems += [f"{entry['image']}: no label, under '{split}'" for entry in splits.get(split, []) if not entry.get("label")]
    return problems


def examine(entry: dict, seen: dict[str, Path], label_scheme: str = "verse") -> Scan:
    """Read one scan and its label, and describe them.

    Args:
        entry: entry of a datalist, with its `split`.
        seen: images by path and by digest of their voxels, to find duplicates; this one is added.
        label_scheme: scheme of the numbers in the label, if the entry names none.
    """
    scan = Scan(entry["split"], entry.get("source", ""), Path(entry["image"]), Path(entry["label"]) if entry.get("label") else None)
    scan.label_scheme = entry.get("label_scheme", label_scheme)
    path = str(scan.image.resolve())
    if path in seen:
        scan.problems.append(f"{scan.image}: listed twice. Remove one entry.")
    try:
        volume = read_volume(scan.image, series=True)
        check_grid(scan.image, volume.data.shape, volume.affine)
        describe(scan, volume)
        digest = hashlib.blake2b(np.ascontiguousarray(volume.data).data).hexdigest()
        if path not in seen and digest in seen:
            scan.problems.append(f"{scan.image}: the same voxels as {seen[digest]}. Keep one of them.")
        seen.setdefault(digest, scan.image)
        grid = (volume.data.shape, volume.affine)
    except UserError as error:
        scan.problems.append(str(error))
        grid = None
    seen[path] = scan.image
    if scan.label:
        try:
            label = read_volume(scan.label)
            scan.problems += check_label(label, scan, grid, entry.get("labelled"))
        except UserError as error:
            scan.problems.append(str(error))
    return scan


def describe(scan: Scan, volume: Volume) -> None:
    """Fill in the geometry and intensities of a scan."""
    data = volume.data
    scan.shape, scan.dtype, scan.axes = data.shape, volume.dtype, "".join(str(c) for c in aff2axcodes(volume.affine))
    scan.spacing_mm = tuple(float(s) for s in np.linalg.norm(volume.affine[:3, :3], axis=0))
    finite = data[np.isfinite(data)]
    if finite.size < data.size:
        scan.problems.append(f"{scan.image}: {data.size - finite.size} voxels are not finite numbers. Replace them, e.g. by 0.")
    if finite.size:
        scan.intensity = dict(zip(PERCENTILES, (float(v) for v in np.percentile(finite, list(PERCENTILES.values())))))
        if scan.intensity["min"] == scan.intensity["max"]:
            scan.problems.append(f"{scan.image}: all voxels have the value {scan.intensity['min']:g}. Export it again or remove it.")


def check_label(label: Volume, scan: Scan, grid: tuple[tuple[int, ...], np.ndarray] | None, labelled: list[int] | None) -> list[str]:
    """Return the problems of a label map, and fill in the volumes of `scan`.

    Args:
        label: label map in the numbers of the scan's `label_scheme`.
        scan: the scan that the label belongs to.
        grid: shape and affine of the image; None if that could not be read.
        labelled: VerSe numbers that are annotated according to the datalist; None if it does not say.
    """
    where = str(scan.label)
    channels, problems = label_problems(label, where, scan.image, grid, scan.label_scheme)
    counts = np.bincount(channels.ravel(), minlength=len(label_table()))
    voxel_ml = voxel_mm3(label.affine) / 1000
    scan.volume_ml = {int(c): float(counts[c] * voxel_ml) for c in np.flatnonzero(counts) if c}
    too_large = [(label_table()[c], ml) for c, ml in scan.volume_ml.items() if label_table()[c].kind == "body" and ml > MAX_BODY_ML]
    if too_large:
        large = ", ".join(f"{s.name} ({ml:.0f} ml)" for s, ml in too_large)
        problems.append(f"{where}: larger than a vertebral body: {large}. Erase arches, and the sacrum below its first segment.")
    if labelled:  # an empty list means whatever the label holds, and so does None
        missing = [label_table()[c] for c in sorted(set(scan.volume_ml) - set(channels_from_verse(labelled, where)))]
        if missing:
            names = ", ".join(f"{s.verse} ({s.name})" for s in missing)
            problems.append(f"{where}: holds {names}, which 'labelled' does not list. Add to 'labelled' or erase.")
    return problems


def write_csv(scans: Iterable[Scan], path: Path) -> None:
    """Write a row per scan; volumes in ml, empty where a structure is not labelled."""
    rows = []
    for s in scans:
        row = {"case": s.case, "split": s.split, "source": s.source, "image": s.image, "label": s.label or ""}
        row |= {"shape": "x".join(map(str, s.shape)), "spacing_mm": "x".join(f"{v:.4g}" for v in s.spacing_mm)}
        row |= {"axes": s.axes, "dtype": s.dtype, **{p: f"{s.intensity[p]:.6g}" if s.intensity else "" for p in PERCENTILES}}
        row |= {label_table()[c].name: f"{s.volume_ml[c]:.3f}" if c in s.volume_ml else "" for c in anatomical_order()}
        rows.append({**row, "problems": "; ".join(s.problems)})
    write_rows(rows, path)


def scan_table(scans: Iterable[Scan]) -> str:
    """Format a line per scan: geometry, intensities and the labelled range."""
    rows = [["case", "split", "source", "labels", "shape", "spacing_mm", "axes", "dtype", *PERCENTILES, "label_ml", "problems"]]
    for s in scans:
        present = [label_table()[c].name for c in anatomical_order() if c in s.volume_ml]
        labels = f"{present[0]} .. {present[-1]} ({len(present)})" if present else "none" if s.label else "-"
        numbers = [f"{s.intensity[p]:.4g}" if s.intensity else "" for p in PERCENTILES]
        geometry = ["x".join(map(str, s.shape)), "x".join(f"{v:.3g}" for v in s.spacing_mm), s.axes, s.dtype]
        total = f"{sum(s.volume_ml.values()):.1f}" if s.volume_ml else ""
        rows.append([shown(s.case), s.split, shown(s.source), labels, *geometry, *numbers, total, str(len(s.problems) or "")])
    return aligned(rows, left=range(4))


def totals(scans: list[Scan]) -> str:
    """Format the scans per split and source, the ranges of the geometry, and the volumes per structure."""
    parts = ["", aligned(_counts(scans)), "", *_ranges([s for s in scans if s.shape])]
    volumes = _volumes(scans)
    if len(volumes) > 1:
        parts += ["", aligned(volumes)]
    return "\n".join(parts)


def _counts(scans: Sequence[Scan]) -> list[list[str]]:
    """Count the scans by source (rows) and split (columns), with totals."""
    splits, sources = dict.fromkeys(s.split for s in scans), dict.fromkeys(s.source for s in scans)
    count = Counter((s.split, s.source) for s in scans)
    of_source, of_split = Counter(s.source for s in scans), Counter(s.split for s in scans)
    rows = [["scans", *splits, "all"]]
    for source in sources:
        rows.append([shown(source) or "-", *(str(count[split, source]) for split in splits), str(of_source[source])])
    return [*rows, ["all", *(str(of_split[split]) for split in splits), str(len(scans))]]


def _ranges(scans: Sequence[Scan]) -> list[str]:
    """Format a line each on shapes, spacings and axes."""
    if not scans:
        return []
    lines = []
    for name, form in (("shape", "d"), ("spacing_mm", ".3g")):
        values = np.array([getattr(s, name) for s in scans])
        ranges = zip(values.min(0), values.max(0))
        lines.append(f"{name:<12}" + " x ".join(f"{a:{form}}..{b:{form}}" if a < b else f"{a:{form}}" for a, b in ranges))
    return [*lines, "axes        " + ", ".join(f"{axes} {n}" for axes, n in Counter(s.axes for s in scans).most_common())]


def _volumes(scans: Sequence[Scan]) -> list[list[str]]:
    """Summarise the volumes of every structure that is labelled in a scan, below a row of headings."""
    rows = [["volume_ml", "n", "mean", "sd", "min", "max"]]
    for channel in anatomical_order():
        values = np.array([s.volume_ml[channel] for s in scans if channel in s.volume_ml])
        if values.size:
            sd = f"{values.std(ddof=1):.2f}" if values.size > 1 else "-"
            name, mean = label_table()[channel].name, f"{values.mean():.2f}"
            rows.append([name, str(values.size), mean, sd, f"{values.min():.2f}", f"{values.max():.2f}"])
    return rows


def spread(scans: Iterable[Scan], count: int) -> list[Scan]:
    """Choose up to `count` readable scans, in turn from each source, labelled ones first."""
    queues: dict[str, list[Scan]] = defaultdict(list)
    for scan in sorted((s for s in scans if s.shape), key=lambda s: not s.volume_ml):
        queues[scan.source].append(scan)
    turns = [scan for turn in range(count) for queue in queues.values() for scan in queue[turn : turn + 1]]
    return turns[:count]


def draw(scans: list[Scan], path: Path) -> Path:
    """Draw mid-sagittal slices with outlines, intensities per scan and volumes per structure, and write them to `path`."""
    from matplotlib.figure import Figure

    chosen = spread(scans, MONTAGE)
    columns = min(6, max(3, len(chosen)))
    rows = math.ceil(len(chosen) / columns)
    height = 2.9 * rows + 4.3  # inches
    figure = Figure(figsize=(2.3 * columns, height), dpi=figures.DPI, facecolor=figures.BACKGROUND)
    for i, scan in enumerate(chosen):
        row, column = divmod(i, columns)
        box = ((column + 0.03) / columns, 1 - (2.9 * row + 2.8) / height, 0.94 / columns, 2.5 / height)
        axes = figure.add_axes(box, facecolor=figures.BACKGROUND)
        _draw_slice(axes, scan)
        axes.set_title(shown(f"{scan.case}  {scan.axes}"), color=figures.DIM, fontsize=7, pad=3, parse_math=False)
    left = figure.add_axes((0.06, 0.75 / height, 0.4, 2.9 / height), facecolor=figures.BACKGROUND)
    right = figure.add_axes((0.53, 0.75 / height, 0.45, 2.9 / height), facecolor=figures.BACKGROUND)
    readable = sum(bool(scan.shape) for scan in scans)
    _plot_intensities(left, scans, f"{len(chosen)} of {readable} scans drawn; of all, " if len(chosen) < readable else "")
    _plot_volumes(right, scans)
    for axes in (left, right):
        axes.tick_params(colors=figures.DIM, labelsize=8, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(figures.DIM)
    return figures.save_figure(figure, path)


def _draw_slice(axes: Axes, scan: Scan) -> None:
    volume = read_volume(scan.image, series=True)
    marked = np.zeros(volume.data.shape, np.uint8)
    if scan.volume_ml:  # only set for a label that could be read and has known values
        label = read_volume(scan.label)
        if not grid_mismatch(volume.data.shape, volume.affine, label.data.shape, label.affine):
            marked = encode(label.data, str(scan.label), scan.label_scheme)
    turned, spacing_mm = views.to_ras(volume.data, volume.affine)
    marked = views.to_ras(marked, volume.affine)[0]
    columns = views.crop_columns(marked, "sagittal", spacing_mm)
    view = views.make_view(turned, marked, spacing_mm, "sagittal", views.spine_path(marked, "sagittal", spacing_mm), columns)
    figures.draw_view(axes, view, figures.intensity_window(turned, marked), letters=False, font=6, width=0.8)


def _plot_intensities(axes: Axes, scans: list[Scan], drawn: str) -> None:
    """Plot the percentiles 1 to 99 of every scan as a line and the median as a dot, by source; `drawn` begins the title."""
    from matplotlib.ticker import ScalarFormatter, SymmetricalLogLocator

    sources = sorted({s.source for s in scans if s.intensity})
    start, ticks = 0, []
    for i, source in enumerate(sources):
        color = figures.SOURCE_COLORS[i % len(figures.SOURCE_COLORS)]
        values = np.array([[s.intensity[p] for p in ("p1", "median", "p99")] for s in scans if s.source == source and s.intensity])
        x = start + np.arange(len(values))
        axes.vlines(x, values[:, 0], values[:, 2], color=color, linewidth=1.2)
        axes.plot(x, values[:, 1], "o", color=color, markersize=3)
        ticks.append((start + (len(values) - 1) / 2, f"{shown(source) or '-'}\nn = {len(values)}"))
        start += len(values) + 1
    axes.set_yscale("symlog", linthresh=10)  # scanners differ by orders of magnitude
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xticks([x for x, _ in ticks], [name for _, name in ticks], parse_math=False)
    axes.set_title(f"{drawn}intensity: median, percentiles 1 to 99", color=figures.TEXT, fontsize=9, loc="left")


def _plot_volumes(axes: Axes, scans: list[Scan]) -> None:
    """Plot the volumes of every structure: a dot per scan, and the median as a bar."""
    order = [c for c in anatomical_order() if any(c in s.volume_ml for s in scans)]
    for x, channel in enumerate(order):
        values = np.array([s.volume_ml[channel] for s in scans if channel in s.volume_ml])
        jitter = 0.5 * ((np.arange(len(values)) * 0.618) % 1 - 0.5)  # golden ratio: even, and the same in every run
        axes.plot(x + jitter, values, "o", color=figures.structure_color(channel), markersize=2.5, alpha=0.8)
        axes.hlines(np.median(values), x - 0.35, x + 0.35, color=figures.TEXT, linewidth=1.2)
    axes.set_xticks(range(len(order)), [label_table()[c].name for c in order], rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylim(bottom=0)
    if not order:
        axes.set_axis_off()
    axes.set_title("volume per structure in ml, and the median" if order else "no labels", color=figures.TEXT, fontsize=9, loc="left")
