"""Pictures: in mm, with outlines and names in the colours of the structures."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from drawn_phantom import DISC, L1, L2, SPACING, curved, phantom, turned

from scripts import figures, views
from scripts.labels import label_table, structure


def test_a_long_title_keeps_its_end():
    assert figures.fitted("a" * 40, 9.2, 13) == "a" * 40
    title = figures.fitted("patient/" * 20 + "scan_v2", 9.2, 13)
    assert len(title) == 74
    assert title.startswith("…")
    assert title.endswith("patient/scan_v2")


def test_intensity_window():
    image = np.arange(1001, dtype=float).reshape(7, 11, 13)
    nothing = np.zeros(image.shape, int)
    assert figures.intensity_window(image, nothing) == pytest.approx((10, 995))
    spine = (image == 290).astype(int)
    assert figures.intensity_window(image, spine) == pytest.approx((10, 10 + 3.2 * 280))
    assert figures.intensity_window(image, (image == 20).astype(int)) == pytest.approx((10, 900))  # never below percentile 90
    assert figures.intensity_window(np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2))) == (0, 1)
    assert figures.intensity_window(np.full((2, 2, 2), 7.0), np.zeros((2, 2, 2))) == (7, 8)
    large = 1000 * np.random.default_rng(0).random((160, 160, 160))  # every second voxel is looked at
    assert figures.intensity_window(large, np.zeros(large.shape, np.uint8)) == pytest.approx((10, 995), abs=1)


def test_colors_of_neighbours_differ():
    table = label_table()
    bodies = [s.channel for s in table if s.kind == "body"]
    pairs = [*pairwise(bodies), (structure("L5").channel, structure("S1").channel)]
    for above, below in pairs:
        assert np.abs(np.subtract(figures.structure_color(above), figures.structure_color(below))).max() > 0.45
    np.testing.assert_allclose(figures.structure_color(DISC), (np.array(figures.structure_color(L1)) + 1) / 2)


def test_name_positions():
    image, label = phantom()
    sagittal = views.make_view(image, label, SPACING, "sagittal", 5, slice(None))
    # L1 fills rows 12..21 and columns 12..24 (39 - 27 .. 39 - 15); L2 rows 26..35
    assert figures.name_positions(sagittal, [L1, L2], 3, 5) == [(L1, 9, 17 * 1.5), (L2, 9, 31 * 1.5)]
    assert figures.name_positions(sagittal, [L1, L2], 3, 30) == [(L1, 9, 25.5), (L2, 9, 55.5)]  # pushed apart
    coronal = views.make_view(image, label, SPACING, "coronal", 22, slice(None))
    assert figures.name_positions(coronal, [L1], 3, 5) == [(L1, 7 * 4 + 3, 25.5)]  # columns 1..6, on the patient's left
    label[label == L2] = L1
    label[:, :, 24:28] = 0
    again = views.make_view(image, label, SPACING, "sagittal", 5, slice(None))
    assert [(c, y) for c, _, y in figures.name_positions(again, [L1], 3, 5)] == [(L1, 25.5), (L1, 46.5)]  # one level on two bodies


def share(pixels: np.ndarray, channel: int) -> int:
    """Count the pixels in the colour of a structure."""
    return int((np.abs(pixels / 255 - figures.structure_color(channel)).max(axis=-1) < 0.04).sum())


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_case_figure_shows_outlines(codes):
    image, label = phantom()
    stored, affine = turned(image, codes, 10)
    marked, _ = turned(label, codes)
    pixels = figures.figure_to_array(figures.case_figure(stored, marked, affine, title="a case"))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert min(share(pixels, L1), share(pixels, L2)) > 200
    assert share(pixels, DISC) > 20
    assert share(pixels, structure("L3").channel) == 0
    rows = [np.flatnonzero((np.abs(pixels / 255 - figures.structure_color(c)).max(axis=-1) < 0.04).any(axis=1)).mean() for c in (L1, L2)]
    assert rows[0] < rows[1]  # L1 is drawn above L2


def test_case_figure_with_reference(tmp_path):
    image, label = phantom()
    only_l1 = np.where(label == L1, label, 0)
    stored, affine = turned(image, "LPS")
    figure = figures.case_figure(stored, turned(only_l1, "LPS")[0], affine, reference=turned(label, "LPS")[0], title="a")
    path = figures.save_figure(figure, tmp_path / "new" / "a.png")
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]  # no partial file is left
    from matplotlib.image import imread

    pixels = imread(path)[..., :3] * 255
    left, right = np.array_split(pixels, 2, axis=1)
    assert share(left, L2) == 0
    assert share(right, L2) > 100
    assert share(left, L1) > 100


def headings(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_case_figure_headings():
    image, label = phantom()
    affine = np.diag([*SPACING, 1])
    assert headings(figures.case_figure(image, label, affine, title="c")) == ["c", "scan", "prediction (discs dashed)"]
    assert (
        headings(figures.case_figure(image, label, affine, note="levels uncertain (0.46)"))[2]
        == "prediction (discs dashed), levels uncertain (0.46)"
    )
    empty = figures.case_figure(image, np.zeros_like(label), affine, reference=label, title="c")
    assert headings(empty) == ["c", "prediction (discs dashed): no structures", "reference"]
    assert len(empty.axes) == 4
    letters = [[t.get_text() for t in axes.texts] for axes in empty.axes[:2]]
    assert letters == [["A", "I", "P", "S"], ["R", "I", "L", "S"]]
    assert figures.figure_to_array(empty).shape[1] == pytest.approx(1200, rel=0.45)


def test_a_long_heading_ends_at_the_edge():
    image, label = phantom()
    figure = figures.case_figure(image, np.zeros_like(label), np.diag([*SPACING, 1]), note="a note that is far too long " * 4)
    heading = figure.texts[2]
    assert heading.get_text().startswith("prediction (discs dashed): no structures, a note")
    assert heading.get_text().endswith("…")
    figures.figure_to_array(figure)
    assert heading.get_window_extent().x1 < figure.get_window_extent().width


def test_the_prediction_guides_where_the_reference_ends(monkeypatch):
    """The path runs on through a body that the reference lacks."""
    guides = []
    monkeypatch.setattr(figures, "spine_path", lambda guide, plane, spacing_mm: guides.append(guide) or 5)
    image, label = phantom()
    part = np.where(label == L1, L1, 0).astype(np.uint8)
    figures.case_figure(image, label, np.diag([*SPACING, 1]), reference=part)
    np.testing.assert_array_equal(guides[0], label)


def test_warnings_stand_below_the_slices():
    image, label = phantom()
    affine = np.diag([*SPACING, 1])
    words = "a warning that is too long for a line " * 5
    texts = headings(figures.case_figure(image, label, affine, title="c", warnings=["first", words]))
    assert texts[-1] == "first"  # the lines are drawn from the last one up
    assert " ".join(reversed(texts[3:-1])) == words.strip()
    many = figures.case_figure(image, label, affine, title="c", warnings=[f"warning {i}" for i in range(20)])
    assert headings(many)[3:] == ["... and more, see the report", *(f"warning {i}" for i in reversed(range(figures.MAX_REMARKS - 1)))]
    for figure in (many, figures.case_figure(image, label, affine, warnings=["m" * 10 + " " * 2 + "wide words " * 40])):
        figures.figure_to_array(figure)
        edge = figure.get_window_extent().width
        assert all(text.get_window_extent().x1 < edge for text in figure.texts)
    curved_label = curved(5)
    assert headings(figures.case_figure(np.ones(curved_label.shape), curved_label, affine))[-1] == "The sagittal slice follows the spine."


def test_aspect_is_in_mm():
    image, label = phantom()
    axes = figures.case_figure(image, label, np.diag([*SPACING, 1])).axes
    for shown, width_mm in ((axes[1], 40), (axes[2], 36)):  # 40 x 1 mm and 9 x 4 mm, both 50 x 1.5 mm high
        box = shown.get_window_extent()
        assert box.width / box.height == pytest.approx(width_mm / 75, rel=0.01)


def test_draw_batch(tmp_path):
    image, label = phantom()
    stored, affine = turned(image, "PIR", 8)
    before = (stored, turned(label, "PIR")[0], affine, "one")
    after = (image[2:8, 5:35, 20:45], label[2:8, 5:35, 20:45], SPACING, "one")
    path = figures.draw_batch({"before": [before, before], "after": [after, after], "view": [after]}, tmp_path / "batch.png")
    from matplotlib.image import imread

    for third in np.array_split(imread(path)[..., :3] * 255, 3, axis=1):
        assert share(third, L1) > 100
        assert share(third, L2) > 100


def test_a_name_is_no_formula(tmp_path):
    image, label = phantom()
    stored, affine = turned(image, "RAS")
    figures.save_figure(figures.case_figure(stored, label, affine, title="do$llar_$_x"), tmp_path / "a.png")
    figures.draw_batch({"a": [(stored, label, affine, "$_$ and \n")], "b": [(stored, label, affine, "$_$")]}, tmp_path / "b.png")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


@pytest.mark.parametrize(("kept", "names"), [((L1, DISC, L2), {"L1", "L2"}), ((DISC,), {"L1/L2"})])
def test_what_is_named(kept, names):
    """Bodies are named, or discs where nothing else is labelled."""
    image, label = phantom()
    figure = figures.case_figure(image, np.where(np.isin(label, kept), label, 0), np.diag([*SPACING, 1.0]))
    written = {text.get_text() for axes in figure.axes for text in axes.texts} - set("APRLIS")
    assert written == names
