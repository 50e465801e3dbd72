"""Draw what was measured: end-plates on a sagittal slice, and the numbers beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import apply_affine

from scripts.data.volumes import turned_to_ras
from scripts.figures import BACKGROUND, DIM, DPI, TEXT, draw_view, fitted, intensity_window, structure_color
from scripts.labels import anatomical_order, label_table, level_of, structure
from scripts.measure.rows import SPINE_WORDS
from scripts.measure.spine import SACRUM, SpineMeasures
from scripts.views import crop_columns, make_view, spine_path, to_ras

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT_INCH, HEAD_INCH, TABLE_INCH = 8.0, 1.1, 6.4  # height of the slice and of the head above it, width of the table beside it
MARGIN_INCH = 0.2  # from the left edge to the title, and from the slice up to the headings
TITLE_INCH, CURVES_INCH = 0.3, 0.62  # from the upper edge down to the title and to the angles of the spine
NAME_INCH, NOTE_INCH = 0.12, 0.78  # from the left edge of the table to a name and to a note behind it
FIRST_COLUMN_INCH, COLUMN_INCH = 1.5, 0.78  # from that edge to the right end of the first column, and on to the next one
ROW_INCH = 0.17  # smallest height of a row of numbers
COLUMNS = (  # heading, measures of a body or a disc below it, format
    ("anterior mm", ("anterior_height_mm",), ".1f"),
    ("middle", ("middle_height_mm",), ".1f"),
    ("posterior", ("posterior_height_mm",), ".1f"),
    ("angle °", ("wedge_deg", "angle_deg"), ".1f"),
    ("height loss", ("height_loss",), ".0%"),
    ("disc index", ("height_index",), ".2f"),
    ("slip mm", ("slip_mm",), ".1f"),
)


@dataclass(frozen=True)
class _Panel:
    """The panel that shows a sagittal slice of a volume in RAS order, cropped from front to back."""

    shape: tuple[int, ...]  # shape of the volume
    to_voxel: np.ndarray  # 4x4, world mm -> voxel
    spacing_mm: np.ndarray
    first_column: int  # the crop begins here, counted from the front

    def place_mm(self, point_mm: np.ndarray) -> np.ndarray:
        """Return the position (2,) of a world point (3,): mm from the left and from the upper side of the panel."""
        from_front, from_top = (np.array(self.shape) - 0.5 - apply_affine(self.to_voxel, point_mm))[1:]
        return np.array([(from_front - self.first_column) * self.spacing_mm[1], from_top * self.spacing_mm[2]])


def measures_figure(
    image: np.ndarray, label: np.ndarray, affine: np.ndarray, measures: SpineMeasures, title: str = "", note: str = ""
) -> Figure:
    """Draw a sagittal slice with outlines and end-plates, and the measures of each structure at its height.

    In a scoliosis the slice follows the spine (`spine_path`), so that it cuts every body near its middle, where it is measured.

    Args:
        image, label: volumes on one grid, shape XYZ; the label holds channel indices.
        affine: 4x4, voxel -> world mm, RAS.
        measures: result of `measure_spine` for that label.
        title: name of the case.
        note: text beside the angles of the spine.
    """
    from matplotlib.figure import Figure

    turned, spacing_mm = to_ras(np.asarray(image), affine)
    marked, marked_affine = turned_to_ras(np.asarray(label), affine)
    columns, path = crop_columns(marked, "sagittal", spacing_mm), spine_path(marked, "sagittal", spacing_mm)
    view = make_view(turned, marked, spacing_mm, "sagittal", path, columns)
    panel = _Panel(marked.shape, np.linalg.inv(marked_affine), spacing_mm, columns.start or 0)

    panel_inch = HEIGHT_INCH * view.size_mm[1] / view.size_mm[0]
    size = np.array([panel_inch + TABLE_INCH, HEIGHT_INCH + HEAD_INCH])
    figure = Figure(figsize=size, dpi=DPI, facecolor=BACKGROUND)
    axes = figure.add_axes((0, 0, panel_inch / size[0], HEIGHT_INCH / size[1]), facecolor="black")
    draw_view(axes, view, intensity_window(turned, marked), width=0.7)
    _draw_end_plates(axes, panel, measures)
    places = {name: HEIGHT_INCH * mm / view.size_mm[0] for name, mm in _row_places_mm(marked, panel, measures).items()}
    for name, place in zip(places, rows_apart(list(places.values()))):
        _draw_row(figure, panel_inch, HEIGHT_INCH - place, name, measures)
    _draw_head(figure, panel_inch, title, "   ".join(filter(None, [_curves(measures.spine), note])), follows=np.ndim(path) > 0)
    return figure


def _draw_end_plates(axes: Axes, panel: _Panel, measures: SpineMeasures) -> None:
    for name, body in measures.bodies.items():
        for plate in [body.superior] if name == SACRUM else [body.superior, body.inferior]:
            points = np.array([panel.place_mm(point) for point in (plate.posterior_mm, plate.middle_mm, plate.anterior_mm)])
            axes.plot(*points[[0, 2]].T, ".-", color=TEXT, linewidth=1.2, markersize=4)
            axes.plot(*points[1], ".", color=TEXT, markersize=4)


def _row_places_mm(marked: np.ndarray, panel: _Panel, measures: SpineMeasures) -> dict[str, float]:
    """Return where the row of each structure should be: name -> mm from the upper side of the slice, from top to bottom.

    A disc has a row if it was measured, halfway between its end-plates; a body if it is drawn, at its mean height.
    """
    places_mm: dict[str, float] = {}
    for name in [label_table()[c].name for c in anatomical_order()]:
        if structure(name).is_disc:
            if name in measures.structures:
                above = list(measures.bodies).index(level_of(name))
                upper, lower = list(measures.bodies.values())[above : above + 2]
                places_mm[name] = panel.place_mm((upper.inferior.middle_mm + lower.superior.middle_mm) / 2)[1]
        else:
            heights = np.nonzero(marked == structure(name).channel)[2]
            if heights.size:
                places_mm[name] = (marked.shape[2] - 0.5 - heights.mean()) * panel.spacing_mm[2]
    return places_mm


def _draw_head(figure: Figure, panel_inch: float, title: str, curves: str, follows: bool) -> None:
    """Write the title, the angles of the spine and the headings of the table above the slice."""
    width, top = figure.get_size_inches()
    headings_inch = HEIGHT_INCH + MARGIN_INCH
    _text(figure, MARGIN_INCH, top - TITLE_INCH, fitted(title, width - 2 * MARGIN_INCH, 13), fontsize=13, fontweight="bold")
    _text(figure, MARGIN_INCH, top - CURVES_INCH, curves, fontsize=11)
    if follows:
        _text(figure, MARGIN_INCH, headings_inch, "this slice follows the spine", color=DIM)
    for column, (heading, _, _) in enumerate(COLUMNS):
        _text(figure, panel_inch + _column_inch(column), headings_inch, heading, color=DIM, ha="right")


def _draw_row(figure: Figure, panel_inch: float, y_inch: float, name: str, measures: SpineMeasures) -> None:
    """Write the name and the measures of a structure, or why it has none, beside the slice."""
    disc, row = structure(name).is_disc, measures.structures.get(name)
    font = {"fontsize": 9 if disc else 10, "fontweight": "normal" if disc else "bold"}
    _text(figure, panel_inch + NAME_INCH, y_inch, name, color=structure_color(structure(name).channel), **font)
    if row is None:
        reason = measures.unmeasured.get(name)
        _text(figure, panel_inch + NOTE_INCH, y_inch, f"not measured: {reason}" if reason else "not measured", color=DIM)
    elif name == SACRUM:
        _text(figure, panel_inch + NOTE_INCH, y_inch, "superior end-plate only", color=DIM)
    else:
        for column, (_, keys, number_format) in enumerate(COLUMNS):
            if value := next((format(row[key], number_format) for key in keys if key in row), ""):
                value = value.lstrip("-") if not float(value.rstrip("%")) else value  # no -0.0
                _text(figure, panel_inch + _column_inch(column), y_inch, value, color=DIM if disc else TEXT, ha="right")


def _text(figure: Figure, x_inch: float, y_inch: float, text: str, **style: Any) -> None:
    """Write a text, centred at a height, inches from the left and the lower edge of the figure."""
    width, height = figure.get_size_inches()
    figure.text(x_inch / width, y_inch / height, text, **{"color": TEXT, "fontsize": 9, "va": "center", "parse_math": False, **style})


def rows_apart(places: list[float]) -> list[float]:
    """Move rows (inches from the top, in order) down where two would overlap, and up again where the last would be too low."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + ROW_INCH) if moved else place)
    lowest = HEIGHT_INCH - ROW_INCH / 2
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], lowest)
        lowest = moved[i] - ROW_INCH
    return moved


def _column_inch(column: int) -> float:
    """Return the right end of a column of the table, inches from the left edge of the table."""
    return FIRST_COLUMN_INCH + COLUMN_INCH * column


def _curves(spine: dict[str, float | str]) -> str:
    """Return the angles of the spine as a line of text."""
    texts = [f"{word} {spine[key]:.1f}°" for key, word in SPINE_WORDS.items() if key in spine]
    return "   ".join(texts) + (f" ({spine['cobb_levels']})" if "cobb_levels" in spine else "")
