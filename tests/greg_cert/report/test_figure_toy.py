from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from greg_cert.report import FigureStyle
from greg_cert.report.figures.render import drawn
from greg_cert.train.toy.picture import TOY_STYLE, draw_toy


def cone(height, threshold):
    """S = height * distance from the middle, whose slope is `height` everywhere."""
    axis = np.linspace(-4, 4, 31)
    x, y = np.meshgrid(axis, axis)
    t = np.linspace(-4, 4, 50)
    flat = np.full_like(x, height)
    cuts = {"cut_score": height * abs(t), "cut_slope": np.full(50, height)}
    return SimpleNamespace(score=height * np.hypot(x, y), slope=flat, threshold=threshold, **cuts)


@pytest.fixture
def toy():
    rng = np.random.default_rng(0)
    outliers = np.array([[3.9, 3.9], [-3.9, 0.0], [1.0, -3.9]])
    return SimpleNamespace(
        settings=SimpleNamespace(extent=4.0),
        points=SimpleNamespace(test=rng.normal(size=(20, 2)), outliers=outliers),
        axis=np.linspace(-4, 4, 31),
        cut=np.column_stack([np.linspace(-4, 4, 50), np.zeros(50)]),
        runs={"energy": cone(3.0, 6.0), "greg": cone(1.0, 2.0)},
        pair=(0, 1),
    )


def figure(toy, style=TOY_STYLE):
    return drawn(partial(draw_toy, toy), style)


def test_maps_show_the_values_on_one_scale_a_column(toy):
    with figure(toy) as drawing:
        maps = np.array(drawing.axes[:6], dtype=object).reshape(2, 3)[:, :2]
        for row, run in zip(maps, toy.runs.values(), strict=True):
            for axes, values in zip(row, (run.score, run.slope), strict=True):
                np.testing.assert_array_equal(axes.images[0].get_array(), values)
        for column in maps.T:
            limits = [axes.images[0].get_clim() for axes in column]
            assert limits[0] == limits[1]


def test_the_boundary_is_where_the_score_is_the_threshold(toy):
    with figure(toy) as drawing:
        for axes in (*drawing.axes[:2], *drawing.axes[3:5]):
            (contour,) = [c for c in axes.collections if len(c.get_paths())]
            ring = np.concatenate([path.vertices for path in contour.get_paths()])
            np.testing.assert_allclose(np.hypot(*ring.T), 2.0, atol=0.02)


def test_the_cut_compares_both_detectors(toy):
    with figure(toy) as drawing:
        for axes, name in zip((drawing.axes[2], drawing.axes[5]), ("score", "slope"), strict=True):
            curves = [x for x in axes.lines if len(x.get_xdata()) == 50]
            for curve, run in zip(curves, toy.runs.values(), strict=True):
                np.testing.assert_array_equal(curve.get_ydata(), getattr(run, f"cut_{name}"))
                np.testing.assert_allclose(curve.get_xdata(), np.linspace(-4, 4, 50), atol=0.09)
            assert len({str(c.get_color()) for c in curves}) == 2
        flat = [x.get_ydata()[0] for x in drawing.axes[2].lines if len(x.get_xdata()) == 2]
        assert flat == [6.0, 2.0]


def test_a_pair_is_marked_only_where_there_is_one(toy):
    def letters(value):
        toy.pair = value
        with figure(toy) as drawing:
            words = [t.get_text() for t in drawing.legends[0].get_texts()]
            return [[t.get_text() for t in axes.texts] for axes in drawing.axes[:2]], words

    marked, words = letters((0, 2))
    assert marked == [["A", "B"]] * 2
    assert any("A, B" in word for word in words)
    marked, words = letters(None)
    assert marked == [[], []]
    assert not any("A, B" in word for word in words)


def test_a_threshold_outside_the_map_draws_no_boundary(toy):
    for run in toy.runs.values():
        run.threshold = 99.0
    with figure(toy) as drawing:
        assert not any(len(c.get_paths()) for c in drawing.axes[0].collections)


@pytest.mark.parametrize("width", [5.0, 6.75])
def test_type_lies_inside_and_can_be_read(made, toy, width):
    with figure(toy, FigureStyle(width=width, dpi=80)) as drawing:
        made.assert_readable(drawing)
