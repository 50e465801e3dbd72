"""A picture of what was measured: end-plates on a sagittal slice, and the numbers beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import apply_affine

from scripts.data.volumes import turned_to_ras
from scripts.figures import (
    BACKGROUND,
    DIM,
    DPI,
    TEXT,
    best_index,
    crop_columns,
    draw_view,
    fitted,
    intensity_window,
    make_view,
    structure_color,
    to_ras,
)
from scripts.labels import anatomical_order, label_table, level_of, structure
from scripts.measure.rows import SPINE_WORDS
from scripts.measure.spine import SACRUM, SpineMeasures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT_INCH, HEAD_INCH, TABLE_INCH = 8.0, 1.1, 6.0  # of the slice, of what stands above it and beside it
BESIDE_MM = 8.0  # an end-plate whose middle lies further from the slice is dashed
ROW_INCH = 0.17  # of a row of numbers, at least
COLUMNS = (  # heading, measures of a body or a disc that stand below it, format
    ("anterior mm", ("anterior_height_mm",), ".1f"),
    ("middle", ("middle_height_mm",), ".1f"),
    ("posterior", ("posterior_height_mm",), ".1f"),
    ("angle °", ("wedge_deg", "angle_deg"), ".1f"),
    ("height loss", ("height_loss",), ".0%"),
    ("disc index", ("height_index",), ".2f"),
    ("slip mm", ("slip_mm",), ".1f"),
)


def measures_figure(
    image: np.ndarray, label: np.ndarray, affine: np.ndarray, measures: SpineMeasures, title: str = "", note: str = ""
) -> Figure:
    """The slice through most of the bodies with their outlines and end-plates, and the measures of each structure at its height.

    In a scoliosis, end-plates that lie beside the slice are dashed: they do not fit the outlines there.

    Args:
        image, label: shape XYZ, on one grid; the latter holds channel indices.
        affine: 4x4, voxel -> world mm, RAS.
        measures: of that label.
        title: the case's name.
        note: stands beside the angles of the spine.
    """
    from matplotlib.figure import Figure

    turned, spacing_mm = to_ras(np.asarray(image), affine)
    marked, marked_affine = turned_to_ras(np.asarray(label), affine)
    to_voxel = np.linalg.inv(marked_affine)
    columns = crop_columns(marked, "sagittal", spacing_mm)
    slice_index = best_index(marked, "sagittal")
    view = make_view(turned, marked, spacing_mm, "sagittal", slice_index, columns)

    def on_panel(point_mm: np.ndarray) -> np.ndarray:
        """A world point (3,) -> mm from the left and the upper side of the panel, (2,)."""
        from_front, from_top = (np.array(marked.shape) - 0.5 - apply_affine(to_voxel, point_mm))[1:]
        return np.array([(from_front - (columns.start or 0)) * spacing_mm[1], from_top * spacing_mm[2]])

    width = HEIGHT_INCH * view.size_mm[1] / view.size_mm[0]
    size = np.array([width + TABLE_INCH, HEIGHT_INCH + HEAD_INCH])
    figure = Figure(figsize=size, dpi=DPI, facecolor=BACKGROUND)
    axes = figure.add_axes((0, 0, width / size[0], HEIGHT_INCH / size[1]), facecolor="black")
    draw_view(axes, view, intensity_window(turned, marked), width=0.7)
    any_beside = False
    for name, body in measures.bodies.items():
        for plate in [body.superior] if name == SACRUM else [body.superior, body.inferior]:
            points = np.array([on_panel(p) for p in (plate.posterior_mm, plate.middle_mm, plate.anterior_mm)])
            is_beside = abs(apply_affine(to_voxel, plate.middle_mm)[0] - slice_index) * spacing_mm[0] > BESIDE_MM
            any_beside |= is_beside
            axes.plot(*points[[0, 2]].T, ".--" if is_beside else ".-", color=TEXT, linewidth=1.2, markersize=4)
            axes.plot(*points[1], ".", color=TEXT, markersize=4)

    places: dict[str, float] = {}  # of the rows, inches from the upper side of the slice
    for name in [label_table()[c].name for c in anatomical_order()]:
        if structure(name).is_disc:
            if name not in measures.structures:
                continue
            above = list(measures.bodies).index(level_of(name))
            upper, lower = list(measures.bodies.values())[above : above + 2]
            place_mm = on_panel((upper.inferior.middle_mm + lower.superior.middle_mm) / 2)[1]
        else:
            heights = np.nonzero(marked == structure(name).channel)[2]
            if not heights.size:
                continue
            place_mm = (marked.shape[2] - 0.5 - heights.mean()) * spacing_mm[2]
        places[name] = HEIGHT_INCH * place_mm / view.size_mm[0]
    for name, place in zip(places, rows_apart(list(places.values()))):
        _line(figure, (HEIGHT_INCH - place) / size[1], width, name, measures.structures.get(name))
    top, curves = HEIGHT_INCH + HEAD_INCH, "   ".join(filter(None, [_curves(measures.spine), note]))
    line = {"x": 0.2 / size[0], "color": TEXT, "va": "center", "parse_math": False}
    figure.text(y=(top - 0.3) / size[1], s=fitted(title, size[0] - 0.4, 13), fontsize=13, fontweight="bold", **line)
    figure.text(y=(top - 0.62) / size[1], s=curves, fontsize=11, **line)
    if any_beside:
        figure.text(y=(HEIGHT_INCH + 0.2) / size[1], s="dashed: beside this slice", fontsize=9, **{**line, "color": DIM})
    for place, (heading, _, _) in enumerate(COLUMNS):
        figure.text((width + _x(place)) / size[0], (HEIGHT_INCH + 0.2) / size[1], heading, color=DIM, fontsize=9, ha="right", va="center")
    return figure


def rows_apart(places: list[float]) -> list[float]:
    """Heights of rows in inches, from top to bottom, moved down where two would overlap, and up again where the last would be too low."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + ROW_INCH) if moved else place)
    lowest = HEIGHT_INCH - ROW_INCH / 2
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], lowest)
        lowest = moved[i] - ROW_INCH
    return moved


def _x(place: int) -> float:
    """Right end of a column of the table, inches from its left end."""
    return 1.5 + 0.72 * place


def _line(figure: Figure, y: float, left_inch: float, name: str, row: dict[str, float] | None) -> None:
    """Name and measures of a structure at the height `y` (share of the figure)."""
    disc, width = structure(name).is_disc, figure.get_size_inches()[0]
    font = {"fontsize": 9 if disc else 10, "fontweight": "normal" if disc else "bold", "va": "center"}
    figure.text((left_inch + 0.12) / width, y, name, color=structure_color(structure(name).channel), **font)
    if name == SACRUM or row is None:
        note = "not measured" if row is None else "superior end-plate only"
        figure.text((left_inch + 0.78) / width, y, note, color=DIM, fontsize=9, va="center")
        return
    for place, (_, keys, form) in enumerate(COLUMNS):
        if value := next((format(row[key], form) for key in keys if key in row), ""):
            value = value.lstrip("-") if not float(value.rstrip("%")) else value  # no -0.0
            figure.text((left_inch + _x(place)) / width, y, value, color=DIM if disc else TEXT, fontsize=9, ha="right", va="center")


def _curves(spine: dict[str, float | str]) -> str:
    """The angles of the spine in a line."""
    texts = [f"{word} {spine[key]:.1f}°" for key, word in SPINE_WORDS.items() if key in spine]
    return "   ".join(texts) + (f" ({spine['cobb_levels']})" if "cobb_levels" in spine else "")
