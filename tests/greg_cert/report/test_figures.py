import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from greg_cert.errors import UsageError
from greg_cert.report import DOUBLE_COLUMN, FigureStyle, load_results
from greg_cert.report.figures.registry import FIGURES
from greg_cert.report.figures.render import render

LONG = "a-very-long-run-name_with/many parts 2024-12-01 lambda=0.1 seed"
SPECS = {spec.name: spec for spec in FIGURES}
INF = float("inf")


def inspect(made, folder):
    """Draws every figure once; all its type must lie inside the figure and be readable."""
    results = load_results(folder)
    for spec in FIGURES:
        with made.figure_of(spec, results, dpi=60) as figure:
            made.assert_readable(figure)
            for legend in figure.legends:
                assert legend.get_window_extent().y0 >= figure.axes[0].bbox.y1 - 1
            if len(figure.axes) > 1:
                made.assert_apart([axes.title for axes in figure.axes])


@pytest.mark.parametrize(
    ("names", "found", "norm"),
    [
        (("only",), 1.0, 2.0),
        (("energy", "greg+"), 0.0, "inf"),
        (("energy", "$greg_+$", "_hidden", LONG + " 3", LONG + " 4"), 0.5, 2.0),
        (("模型", "m\u0001\n%", "W" * 60), 1.0, 1),
    ],
)
def test_any_runs_norms_and_attacks(made, tmp_path, names, found, norm):
    frames = made.realistic(40, names=names, found=found)
    inspect(made, made.write(tmp_path / "v", frames, norm=norm, baseline=names[0]))


@pytest.mark.parametrize(
    ("attack", "rejected", "minimal"), [(0.0, (), False), (INF, range(5), True)]
)
def test_all_radii_zero(made, tmp_path, attack, rejected, minimal):
    frames = [made.frame_of(name, [0] * 5, [attack] * 5, rejected) for name in ("a", "b")]
    inspect(made, made.write(tmp_path / "v", frames, minimal=minimal))


def test_gradient_norms_that_are_missing_are_left_out(made, tmp_path):
    frame = made.realistic(20)[0]
    frame.loc[:3, "gradient_norm"] = np.nan
    frame.loc[4:6, "gradient_norm"] = 0.0
    frame.loc[frame["status"] != "rejected", "radius_gradient"] = np.inf
    inspect(made, made.write(tmp_path / "v", [frame]))


def test_histogram_leaves_out_zeros_and_counts_them(made, small):
    with made.figure_of(SPECS["radius_histogram"], load_results(small)) as figure:
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert legend == ["a: 0.100; 1 rejected, 1 unproven", "b: 0.200; 1 rejected"]
        assert figure.legends[0].get_title().get_text() == "median certified radius"
        outlines = [p for p in figure.axes[0].patches if p.get_linewidth() > 0]
        assert [p.get_data().values.sum() for p in outlines] == [3, 4]


def outlines(axes):
    return [patch for patch in axes.patches if patch.get_linewidth() > 0]


def test_the_last_bin_stands_inside_the_frame(made, small):
    for style in ({}, {"attack": True}):
        with made.figure_of(SPECS["radius_histogram"], load_results(small), **style) as figure:
            (axes,) = figure.axes
            end = max(patch.get_data().edges[-1] for patch in outlines(axes))
            assert axes.get_xlim()[1] > end


def test_attack_radii_are_light_outlines_where_asked_for(made, small):
    results = load_results(small)
    with made.figure_of(SPECS["radius_histogram"], results, attack=True) as figure:
        made.assert_readable(figure)
        drawn = outlines(figure.axes[0])
        light = [patch for patch in drawn if patch.get_alpha() and patch.get_alpha() < 0.6]
        assert len(light) == 2
        # Of b, one sample was not broken by any attack; both have one that is rejected.
        assert [patch.get_data().values.sum() for patch in light] == [4, 3]
        assert max(p.get_linewidth() for p in light) < 1.0
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert legend[0] == "a: 0.100 / 0.400; 1 rejected, 1 unproven"
        assert legend[-1] == "attack (upper bound)"
        assert figure.legends[0].get_title().get_text() == "median: certified / attack"


def test_a_legend_that_is_too_long_for_one_line_has_two(made, tmp_path):
    frames = made.realistic(40, names=("energy of a long name", "greg+"))
    results = load_results(made.write(tmp_path / "v", frames, correct=True))
    with made.figure_of(SPECS["radius_histogram"], results, attack=True, dpi=60) as figure:
        made.assert_readable(figure)
        assert all("\n" in text.get_text() for text in figure.legends[0].get_texts()[:2])


@pytest.mark.parametrize(("samples", "bins"), [(1, 2), (8, 4), (100, 10), (1000, 20), (10**5, 30)])
def test_few_samples_have_few_bins(samples, bins):
    assert FigureStyle().bins_of(samples) == bins
    assert FigureStyle(bins=17).bins_of(samples) == 17


def test_curves_are_drawn_at_values_computed_by_hand(made, small):
    with made.figure_of(SPECS["certified_fraction"], load_results(small)) as figure:
        lines = [x for x in figure.axes[0].lines if x.get_drawstyle() == "steps-post"]
        attack, certified = lines[0], lines[1]
        assert (attack.get_linestyle(), certified.get_linestyle()) == ("--", "-")
        x, y = certified.get_data()
        np.testing.assert_allclose(x[:6], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
        np.testing.assert_allclose(y[:6], np.array([3, 2, 1, 0, 0, 0]) / 5)
        np.testing.assert_allclose(attack.get_ydata()[:6], np.array([4, 4, 3, 3, 2, 1]) / 5)


def test_wide_figures_of_a_given_height(small):
    style = FigureStyle(width=DOUBLE_COLUMN, height=2.5, dpi=100, font="STIXGeneral", font_size=9)
    figure = render(partial(SPECS["bracket"].draw, load_results(small)), style)
    with Image.open(io.BytesIO(figure.png)) as image:
        assert image.size == (675, 250)
    assert figure.pdf.startswith(b"%PDF")


WRONG = {"width": 1, "font_size": 6, "dpi": 0, "bins": 0, "height": float("nan")}
WRONG |= {"palette": "rainbow", "font": "No Such Family"}


@pytest.mark.parametrize("field", WRONG)
def test_wrong_styles_are_refused(field):
    with pytest.raises(UsageError, match=f"figure {field}"):
        FigureStyle(**{field: WRONG[field]})
