import io
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from greg_cert.report import FigureStyle
from greg_cert.report.figures.canvas import drawn, render
from greg_cert.report.figures.style import SMALLEST_TYPE
from greg_cert.train.toy.picture import TOY_STYLE, draw_toy


@dataclass(frozen=True)
class Run:
    score: np.ndarray
    slope: np.ndarray
    threshold: float
    cut_score: np.ndarray
    cut_slope: np.ndarray


@dataclass(frozen=True)
class Points:
    test: np.ndarray
    outliers: np.ndarray


@dataclass(frozen=True)
class Settings:
    extent: float = 4.0


@dataclass(frozen=True)
class Toy:
    settings: Settings
    points: Points
    axis: np.ndarray
    cut: np.ndarray
    runs: dict
    pair: tuple | None


def cone(height, threshold):
    """S = height * distance from the middle, whose slope is `height` everywhere."""
    axis = np.linspace(-4, 4, 31)
    x, y = np.meshgrid(axis, axis)
    t = np.linspace(-4, 4, 50)
    flat = np.full_like(x, height)
    return Run(height * np.hypot(x, y), flat, threshold, height * abs(t), np.full(50, height))


@pytest.fixture
def toy():
    rng = np.random.default_rng(0)
    points = Points(rng.normal(size=(20, 2)), np.array([[3.9, 3.9], [-3.9, 0.0], [1.0, -3.9]]))
    cut = np.column_stack([np.linspace(-4, 4, 50), np.zeros(50)])
    runs = {"energy": cone(3.0, 6.0), "greg": cone(1.0, 2.0)}
    return Toy(Settings(), points, np.linspace(-4, 4, 31), cut, runs, (0, 1))


def figure(toy, style=TOY_STYLE):
    return drawn(lambda _, s: draw_toy(toy, s), None, style)


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
        with figure(replace(toy, pair=value)) as drawing:
            words = [t.get_text() for t in drawing.legends[0].get_texts()]
            return [[t.get_text() for t in axes.texts] for axes in drawing.axes[:2]], words

    marked, words = letters((0, 2))
    assert marked == [["A", "B"]] * 2
    assert any("A, B" in word for word in words)
    marked, words = letters(None)
    assert marked == [[], []]
    assert not any("A, B" in word for word in words)


def test_a_threshold_outside_the_map_draws_no_boundary(toy):
    runs = {k: replace(run, threshold=99.0) for k, run in toy.runs.items()}
    render(lambda _, s: draw_toy(replace(toy, runs=runs), s), None, FigureStyle(width=6.75, dpi=60))


@pytest.mark.parametrize("width", [5.0, 6.75])
def test_type_lies_inside_and_can_be_read(toy, width):
    with figure(toy, FigureStyle(width=width, dpi=80)) as drawing:
        drawing.savefig(io.BytesIO(), format="png", dpi=80)
        texts = [t for legend in drawing.legends for t in legend.get_texts()]
        for axes in drawing.axes:
            texts += [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts]
        for text in filter(lambda t: t.get_text(), texts):
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.x1 <= drawing.bbox.x1 + 1, text
            assert box.y0 >= -1, text
            assert box.y1 <= drawing.bbox.y1 + 1, text
            assert text.get_fontsize() >= SMALLEST_TYPE


def test_equal_values_give_equal_files_with_ink(toy):
    style = FigureStyle(width=6.75, dpi=60)
    one, again = (render(lambda _, s: draw_toy(toy, s), None, style) for _ in range(2))
    assert one == again
    assert one.pdf.startswith(b"%PDF")
    with Image.open(io.BytesIO(one.png)) as image:
        assert np.asarray(image.convert("L")).std() > 20
