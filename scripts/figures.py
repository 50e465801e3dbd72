"""Pictures of scans with the outlines and names of their structures, with true proportions in mm.

matplotlib is imported inside the functions: it takes half a second, and most commands draw nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from scripts.common.errors import UserError, shown
from scripts.common.files import write_whole
from scripts.labels import label_table, of_kind
from scripts.views import MARGIN_MM, View, best_index, crop_columns, make_view, spine_path, to_ras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
WIDTH_INCH = 10.0  # 1200 pixels
MAX_HEIGHT_INCH = 8.6  # of a panel; without warnings the whole figure then fits a laptop screen
GAP_INCH = 0.42  # between panels; level names stand there where a sagittal slab is narrow
MAX_REMARKS, REMARK_POINTS = 8, 8.5  # lines below the panels, and the size of their letters
WINDOW_VOXELS = 2**18  # about so many evenly spread voxels decide which intensities are black and white
BACKGROUND, TEXT, DIM, WARNING = "#0d0f12", "#e8eaed", "#8b929b", "#e8b339"
BODY_COLORS = (  # from top to bottom; a table of more than twelve bodies repeats them
    "#ff7ab8", "#54e08a", "#f6f05a", "#b79cff", "#41c7ff", "#ffb000", "#5a8dff", "#ff6b5e", "#00c9a7", "#e05ce8", "#5affd0", "#d9935a",
)  # fmt: skip
SOURCE_COLORS = ("#41c7ff", "#ffb000", "#54e08a", "#ff7ab8", "#b79cff", "#f6f05a", "#ff6b5e", "#9fe3d4")


def structure_color(channel: int) -> tuple[float, float, float]:
    """Return the RGB colour of a structure, in [0, 1]; a disc has the colour of the body above it, mixed with white."""
    from matplotlib.colors import to_rgb

    structure = label_table()[channel]
    bodies = [s.name for s in of_kind("body")]
    rgb = np.array(to_rgb(BODY_COLORS[bodies.index(structure.level) % len(BODY_COLORS)]))
    return tuple((rgb + 1) / 2 if structure.is_disc else rgb)


def intensity_window(image: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Return the intensities drawn black and white: percentiles 1 and 99.5, narrowed so that labelled structures are mid-grey.

    Fat may saturate then.
    """
    step = max(1, round((image.size / WINDOW_VOXELS) ** (1 / 3)))
    image, label = (volume[::step, ::step, ::step] for volume in (image, label))
    finite = np.isfinite(image)
    if not finite.any():
        return 0.0, 1.0
    low, bright, high = (float(v) for v in np.percentile(image[finite], (1, 90, 99.5)))
    spine = image[finite & (label > 0)]
    if spine.size:
        high = min(high, max(bright, low + 3.2 * (float(np.percentile(spine, 75)) - low)))
    return low, high if high > low else low + 1


def _letters_in(inches: float, points: float, width: float = 0.6) -> int:
    """Return how many letters of a size fit, whose mean width is that share of it."""
    return int(inches * 72 / (width * points))


def fitted(text: str, inches: float, points: float) -> str:
    """Shorten a bold text to the space for it, keeping its end, which tells names apart."""
    most = _letters_in(inches, points, width=0.68)
    return text if len(text) <= most else f"…{text[1 - most :]}"


def draw_view(axes: Axes, view: View, window: tuple[float, float], *, letters: bool = True, font: float = 9, width: float = 1.1) -> None:
    """Draw one slice with thin outlines, level names beside the bodies and orientation letters; `font` and `width` are in points."""
    height, length = view.size_mm
    pixels = np.nan_to_num(np.asarray(view.image, np.float32), nan=window[0])
    axes.imshow(pixels, "gray", vmin=window[0], vmax=window[1], extent=(0, length, height, 0), interpolation="bicubic", aspect="equal")
    present = [int(c) for c in np.unique(view.label) if 0 < c < len(label_table())]
    discs = [c for c in present if label_table()[c].is_disc]
    bodies = [c for c in present if not label_table()[c].is_disc]
    _outlines(axes, view, discs + bodies, width)  # bodies last, so that their edges lie on top
    drawn = {label_table()[c].name for c in present}
    without_body = [c for c in discs if view.plane == "sagittal" and label_table()[c].level not in drawn]
    _names(axes, view, sorted(bodies + without_body) or present, font)
    if letters:
        _letters(axes, view.plane, font - 1)
    axes.set(xlim=(0, length), ylim=(height, 0))
    axes.set_axis_off()


def _letters(axes: Axes, plane: str, font: float) -> None:
    """Write the orientation letters where no level names stand, which are in front of the bodies or on the patient's left."""
    left, right = "AP" if plane == "sagittal" else "RL"
    superior_x = 0.95 if plane == "sagittal" else 0.05
    for x, y, text in ((0.05, 0.025, left), (0.5, 0.025, "I"), (0.95, 0.025, right), (superior_x, 0.975, "S")):
        axes.text(x, y, text, transform=axes.transAxes, color=TEXT, fontsize=font, ha="center", va="center", path_effects=_halo())


def _outlines(axes: Axes, view: View, channels: Sequence[int], width: float) -> None:
    """Draw contours along the borders of voxels, padded by half a voxel so that they close at the edge of the slice."""
    from contourpy import contour_generator  # matplotlib's own `contour`, which uses it, takes ten times as long
    from matplotlib.collections import LineCollection

    lines, colors, widths, styles = [], [], [], []
    boxes = ndimage.find_objects(view.label)
    for channel in channels:
        disc, box = label_table()[channel].is_disc, boxes[channel - 1]
        mask = np.pad(view.label[box] == channel, 1).astype(np.float32)
        y, x = (s.start - 0.5 + np.arange(n) for s, n in zip(box, mask.shape))
        found = contour_generator(x * view.spacing_mm[1], y * view.spacing_mm[0], mask).lines(0.5)
        lines += found
        colors += [structure_color(channel)] * len(found)
        widths += [width * (0.8 if disc else 1.0)] * len(found)
        styles += [(0, (2.2, 1.4)) if disc else "solid"] * len(found)
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=widths, linestyles=styles), autolim=False)


def name_positions(view: View, channels: Sequence[int], gap_mm: float, apart_mm: float) -> list[tuple[int, float, float]]:
    """Choose where to write the names of bodies: (channel, x, y) in mm, in front of a body (sagittal) or on the patient's left (coronal).

    A channel whose pixels lie in several large pieces gets a name beside each of them, so that one level on two bodies can be seen.

    Args:
        view: the slice.
        channels: the bodies that are present in it.
        gap_mm: space between the body and its name.
        apart_mm: smallest distance between two names, so that they stay readable where one body carries two labels.
    """
    found = []
    boxes = ndimage.find_objects(view.label)
    for channel in channels:
        first_row, first_column = (s.start for s in boxes[channel - 1])
        pieces, _ = ndimage.label(view.label[boxes[channel - 1]] == channel, np.ones((3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        for piece in np.flatnonzero(sizes >= 0.3 * sizes.max()) + 1:
            rows, columns = np.add(np.nonzero(pieces == piece), [[first_row], [first_column]])
            middle = rows.mean()
            if view.plane == "sagittal" and label_table()[channel].name == "S1":
                middle += 0.25 * np.ptp(rows)  # S1 is tilted, with the disc in front of its middle
            waist = columns[np.abs(rows - middle) <= max(1.0, 0.25 * np.ptp(rows))]  # without the corners of a tilted body
            edge = (waist if waist.size else columns) * view.spacing_mm[1]
            x = edge.min() - gap_mm if view.plane == "sagittal" else edge.max() + view.spacing_mm[1] + gap_mm
            found.append((float((middle + 0.5) * view.spacing_mm[0]), float(x), channel))
    positions: list[tuple[int, float, float]] = []
    for y, x, channel in sorted(found):
        positions.append((channel, x, max(y, positions[-1][2] + apart_mm) if positions else y))
    return positions


def _names(axes: Axes, view: View, channels: Sequence[int], font: float) -> None:
    mm_per_point = view.size_mm[0] / (axes.figure.get_size_inches()[1] * axes.get_position().height * 72)
    for channel, x, y in name_positions(view, channels, 4 * mm_per_point, 1.05 * font * mm_per_point):
        axes.text(
            x, y, label_table()[channel].name, color=structure_color(channel), fontsize=font, fontweight="bold", va="center",
            ha="right" if view.plane == "sagittal" else "left", clip_on=False, path_effects=_halo(),
        )  # fmt: skip


def _halo() -> list:
    """Return the dark rim that keeps text readable on bright tissue."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground=BACKGROUND)]


def case_figure(
    image: np.ndarray,
    prediction: np.ndarray,
    affine: np.ndarray,
    *,
    reference: np.ndarray | None = None,
    title: str = "",
    note: str = "",
    warnings: Sequence[str] = (),
) -> Figure:
    """Draw the outlines of structures on a sagittal and a coronal slice, with a reference on the same slices of it beside them.

    The slices follow the spine, see `spine_path`: that of the reference if there is one. Without it, the sagittal slice is shown
    unmarked as well.

    Args:
        image, prediction, reference: (X, Y, Z) on one grid; the latter two hold channel indices.
        affine: (4, 4) voxel -> RAS world in mm.
        title: the case's name.
        note: added to the heading of the prediction.
        warnings: written below the slices, as far as there is room.
    """
    turned, spacing_mm = to_ras(np.asarray(image), affine)
    labels = [to_ras(np.asarray(label), affine)[0] for label in (prediction, reference) if label is not None]
    # the prediction guides where the reference ends
    guide = labels[0] if reference is None else np.where(labels[1] > 0, labels[1], labels[0])
    planes = {p: (spine_path(guide, p, spacing_mm), crop_columns(guide, p, spacing_mm)) for p in MARGIN_MM}
    panels = []
    if reference is None:
        panels.append(("scan", make_view(turned, np.zeros_like(guide), spacing_mm, "sagittal", *planes["sagittal"])))
    for heading, label, words in zip(("prediction (discs dashed)", "reference"), labels, (note, "")):
        heading += ("" if label.any() else ": no structures") + (f", {words}" if words else "")
        panels += [(heading, make_view(turned, label, spacing_mm, plane, *place)) for plane, place in planes.items()]
    curved = [plane for plane, (index, _) in planes.items() if np.ndim(index)]
    follow = f"The {' and '.join(curved)} {'slices follow' if len(curved) > 1 else 'slice follows'} the spine."
    remarks = [(follow, DIM)] if curved else []
    remarks += [(line, WARNING) for line in warnings]
    return _panel_figure(panels, intensity_window(turned, guide), title, remarks)


def _panel_figure(
    panels: Sequence[tuple[str, View]], window: tuple[float, float], title: str, remarks: Sequence[tuple[str, str]]
) -> Figure:
    """Draw all panels in one row at one scale, with a heading over each group and remarks (text, color) below."""
    from matplotlib.figure import Figure

    head, side, line = 0.72, 0.4, 0.19  # inches above and beside the panels, and per line below them
    gaps = [GAP_INCH * (1 if i == 0 or panels[i - 1][0] == heading else 1.6) for i, (heading, _) in enumerate(panels)]
    free = 2 * side + sum(gaps[1:])
    height_mm, widths_mm = panels[0][1].size_mm[0], [view.size_mm[1] for _, view in panels]
    inch_per_mm = min((WIDTH_INCH - free) / sum(widths_mm), MAX_HEIGHT_INCH / height_mm)
    width = max(6.0, sum(widths_mm) * inch_per_mm + free)
    lines = [(part, color) for text, color in remarks for part in wrap(text, _letters_in(width - 2 * side, REMARK_POINTS))]
    if len(lines) > MAX_REMARKS:
        lines = [*lines[: MAX_REMARKS - 1], ("... and more, see the report", WARNING)]
    foot = 0.12 + (line * len(lines) + 0.1 if lines else 0.0)
    height = height_mm * inch_per_mm + head + foot
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    title = fitted(title, width - 2 * side, 13)
    figure.text(side / width, 1 - 0.24 / height, title, color=TEXT, fontsize=13, fontweight="bold", va="center", parse_math=False)
    left, previous = side, ""
    for (heading, view), width_mm, gap in zip(panels, widths_mm, [*gaps[1:], 0.0]):
        if heading != previous:
            room = _letters_in(width - left, 10)
            text = heading if len(heading) <= room else f"{heading[: room - 1]}…"
            figure.text(left / width, 1 - 0.55 / height, text, color=DIM, fontsize=10, va="center")
        box = (left / width, foot / height, width_mm * inch_per_mm / width, height_mm * inch_per_mm / height)
        draw_view(figure.add_axes(box, facecolor="black"), view, window)
        left, previous = left + width_mm * inch_per_mm + gap, heading
    for i, (text, color) in enumerate(reversed(lines)):
        figure.text(side / width, (0.15 + line * i) / height, text, color=color, fontsize=REMARK_POINTS, va="center", parse_math=False)
    return figure


def draw_batch(columns: Mapping[str, Sequence[tuple]], path: str | Path) -> Path:
    """Draw training samples: a row per scan, a column per heading, such as the scan and the sample after augmentation.

    Args:
        columns: by heading, per scan (image (X, Y, Z), label (X, Y, Z) of channel indices, affine (4, 4) or spacing_mm (3,), name); with
            spacings alone, the arrays are taken to be in RAS.
        path: the PNG file, which is returned.
    """
    from matplotlib.figure import Figure

    row, head = 3.6, 0.4  # inches
    share = 1 / len(columns)  # of the width, for each column
    rows = max(map(len, columns.values()))
    figure = Figure(figsize=(0.4 * WIDTH_INCH * len(columns), row * rows + head), dpi=DPI, facecolor=BACKGROUND)
    height = figure.get_size_inches()[1]
    for column, (heading, samples) in enumerate(columns.items()):
        left = (column + 0.04) * share
        figure.text(left, 1 - 0.5 * head / height, heading, color=TEXT, fontsize=12, fontweight="bold", va="center")
        for i, (image, label, affine, name) in enumerate(samples):
            turned, spacing_mm = to_ras(np.asarray(image), affine)
            marked = to_ras(np.asarray(label), affine)[0]
            view = make_view(turned, marked, spacing_mm, "sagittal", best_index(marked, "sagittal"), slice(None))
            top = 1 - (head + i * row) / height
            figure.text(left, top - 0.1 / height, shown(name), color=DIM, fontsize=8, va="center", parse_math=False)
            axes = figure.add_axes((left, top - (row - 0.1) / height, 0.92 * share, (row - 0.35) / height), facecolor="black")
            draw_view(axes, view, intensity_window(turned, marked), font=8, width=1.0)
            axes.set_anchor("NW")
    return save_figure(figure, path)


def figure_to_array(figure: Figure) -> np.ndarray:
    """Return the pixels of a figure, uint8 (H, W, 3), as TensorBoard takes them with `dataformats="HWC"`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_figure(figure: Figure, path: str | Path, source: str = "") -> Path:
    """Write a PNG file, whole or not at all; it records the name of its `source`, a scan, for `check_picture`."""
    metadata = {"Source": shown(os.path.abspath(source))} if source else {}
    fast = {"compress_level": 1}  # a third of the time
    options = {"format": "png", "dpi": DPI, "facecolor": figure.get_facecolor(), "pil_kwargs": fast}
    return write_whole(path, lambda partial: figure.savefig(partial, metadata=metadata, **options))


def check_picture(path: str | Path, source: str | Path) -> None:
    """Refuse to replace a picture that this bundle has not drawn, or that of another scan: scans of one name lie in many folders.

    Raises:
        UserError: if the picture at `path` names no source, or another than `source` that still exists.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            other = picture.info.get("Source", "")
    except OSError:
        return  # there is no file, or it is no picture
    if not other:
        raise UserError(f"{path}: exists already, and this command has not drawn it. Move it, or set another --output_dir.")
    if os.path.exists(other) and os.path.realpath(other) != os.path.realpath(source):
        raise UserError(f"{path}: exists already, and is the picture of {other}. Move it, or set another --output_dir.")
