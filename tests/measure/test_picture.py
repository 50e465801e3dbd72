"""The picture shows the end-plates where they were measured, and every number once."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.labels import encode, structure
from scripts.measure.picture import HEIGHT_INCH, ROW_INCH, measures_figure, rows_apart
from scripts.measure.spine import measure_spine
from scripts.phantoms.phantom import draw_phantom


@pytest.fixture(scope="module", params=["RAS", "PIR"])
def drawn(request):
    phantom = draw_phantom(6, contrast="T2w", order=request.param, oblique_deg=0.0)
    label = encode(phantom.label)
    label[label == structure("L4/L5").channel] = 0  # nobody drew it; it is measured between the bodies
    measures = measure_spine(label, phantom.affine)
    return measures, measures_figure(phantom.image, label, phantom.affine, measures, "a title_$")


def test_lines_lie_on_the_end_plates(drawn):
    measures, figure = drawn
    (axes,) = figure.axes
    ends = np.array([line.get_xydata() for line in axes.lines if len(line.get_xydata()) == 2])
    plates = [plate for name, body in measures.bodies.items() for plate in [body.superior, body.inferior][: 1 if name == "S1" else 2]]
    expected = np.array([[plate.posterior_mm[1:], plate.anterior_mm[1:]] for plate in plates]) * -1  # to the back and downwards
    offsets = ends - expected  # the same for all: that of the panel
    np.testing.assert_allclose(offsets - offsets[0, 0], 0, atol=1e-3)
    outline = np.concatenate([p.vertices for p in axes.collections[0].get_paths()])
    assert ends[..., 0].min() > outline[:, 0].min()
    assert ends[..., 0].max() < outline[:, 0].max()
    assert ends[..., 1].max() < outline[:, 1].max()


def test_numbers_stand_beside_their_structures(drawn):
    measures, figure = drawn
    texts = {}
    for text in figure.texts:
        texts.setdefault(round(text.get_position()[1], 6), []).append(text.get_text())
    lines = {line[0]: line[1:] for line in texts.values()}
    assert lines["L3"] == [
        f"{measures.structures['L3'][key]:.1f}" for key in ("anterior_height_mm", "middle_height_mm", "posterior_height_mm", "wedge_deg")
    ] + [
        f"{measures.structures['L3']['height_loss']:.0%}",
        f"{measures.structures['L3']['slip_mm']:.1f}",
    ]
    assert lines["L4/L5"][-1] == f"{measures.structures['L4/L5']['height_index']:.2f}"
    assert lines["S1"] == ["superior end-plate only"]
    order = [line[0] for _, line in sorted(texts.items(), reverse=True) if line[0] in measures.structures]
    names = list(measures.bodies)
    assert [name for name in order if "/" not in name] == names
    assert order.index("L4") < order.index("L4/L5") < order.index("L5")
    assert "a title_$" in lines
    spine = measures.spine
    curves = (
        f"lordosis L1-S1 {spine['lordosis_deg']:.1f}°   lordosis L1-L5 {spine['lordosis_l1_l5_deg']:.1f}°   Cobb {spine['cobb_deg']:.1f}°"
    )
    assert f"{curves} ({spine['cobb_levels']})" in lines


def test_rows_that_would_overlap_move_apart():
    assert rows_apart([]) == []
    assert rows_apart([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert rows_apart([1.0, 1.05, 3.0]) == pytest.approx([1.0, 1.0 + ROW_INCH, 3.0])
    lowest = HEIGHT_INCH - ROW_INCH / 2
    assert rows_apart([lowest - 0.1, lowest]) == pytest.approx([lowest - ROW_INCH, lowest])


def test_what_is_not_measured_is_named():
    phantom = draw_phantom(6, contrast="T2w", order="RAS", oblique_deg=0.0)
    label = encode(phantom.label)
    top = int(np.flatnonzero((label == structure("L2").channel).any((0, 1))).mean())
    image, label = phantom.image[:, :, :top], label[:, :, :top]
    figure = measures_figure(image, label, phantom.affine, measure_spine(label, phantom.affine))
    texts = [text.get_text() for text in figure.texts]
    assert texts[texts.index("L2") + 1] == "not measured: cut by the view (superior)"
    assert "L2/L3" not in texts


def test_a_speck_is_named_as_one():
    phantom = draw_phantom(6, contrast="T2w", order="RAS", oblique_deg=0.0)
    label = encode(phantom.label)
    voxels = np.argwhere(label == structure("L2").channel)
    label[tuple(voxels[5:].T)] = 0
    figure = measures_figure(phantom.image, label, phantom.affine, measure_spine(label, phantom.affine))
    texts = [text.get_text() for text in figure.texts]
    assert texts[texts.index("L2") + 1] == "not measured: smaller than 300 mm³"


@pytest.mark.parametrize(("scoliosis", "follows"), [(0.0, False), (38.0, True)])
def test_the_slice_follows_a_scoliosis(scoliosis, follows, monkeypatch):
    phantom = draw_phantom(5, contrast="T2w", order="RAS", oblique_deg=0.0, scoliosis=scoliosis)
    label = encode(phantom.label)
    drawn = []
    monkeypatch.setattr("scripts.measure.picture.draw_view", lambda axes, view, *args, **kwargs: drawn.append(view))
    figure = measures_figure(phantom.image, label, phantom.affine, measure_spine(label, phantom.affine))
    assert {*np.unique(label)} - {*np.unique(drawn[0].label)} == set()
    assert ("this slice follows the spine" in [text.get_text() for text in figure.texts]) is follows
