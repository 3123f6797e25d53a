from functools import partial

import numpy as np
import pytest

from greg_cert.cli.report import VENUE_HELP
from greg_cert.errors import UsageError
from greg_cert.report import VENUES, FigureStyle, load_results, venue_style
from greg_cert.report.figures.registry import FIGURES
from greg_cert.report.figures.render import render
from greg_cert.report.figures.style import PALETTES, run_styles

# Column and text width as authors' guides state them, in inches.
PRINTED = {
    "neurips": (5.5, 5.5),
    "iclr": (5.5, 5.5),
    "icml": (3.25, 6.75),
    "cvpr": (3.28, 6.875),
    "wacv": (3.28, 6.875),
    "eccv": (4.80, 4.80),
    "aaai": (3.31, 7.0),
    "acm": (3.33, 7.0),
    "ieee": (3.49, 7.14),
    "jmlr": (6.0, 6.0),
    "tmlr": (6.5, 6.5),
    "acl": (3.03, 6.30),
    "usenix": (3.335, 7.0),
}


def lightness(colour):
    """CIE 1976 L* of a colour such as #004488, from 0 (black) to 100 (white)."""
    channels = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    y = float(linear @ [0.2126, 0.7152, 0.0722])
    return 116 * y ** (1 / 3) - 16 if y > (6 / 29) ** 3 else y * (29 / 3) ** 3


@pytest.mark.parametrize("name", PRINTED)
def test_widths_are_those_of_the_guides(name):
    column, text = PRINTED[name]
    assert venue_style(name).width == pytest.approx(column, abs=0.01)
    assert VENUES[name].text == pytest.approx(text, abs=0.01)
    if column != text:
        both = venue_style(name.upper(), 2)
        assert both.width == pytest.approx(text, abs=0.01)
        assert both.wide
    assert not venue_style(name).wide


def test_every_venue_makes_a_style():
    for name in VENUES:
        style = venue_style(name)
        assert style.small >= 7
        assert style.font in ("STIXGeneral", "DejaVu Sans")


def test_without_a_venue_nothing_changes_but_what_is_given():
    assert venue_style() == FigureStyle()
    assert venue_style(width=6.0, dpi=99, bins=7, palette="grey", font_size=9) == FigureStyle(
        width=6.0, dpi=99, bins=7, palette="grey", font_size=9
    )
    assert venue_style(columns=2).width == 6.75
    given = venue_style("cvpr", 2, width=5.0, font="DejaVu Serif")
    assert (given.width, given.font, given.font_size) == (5.0, "DejaVu Serif", 8.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nips",), "--venue: expected one of neurips"),
        (("neurips", 2), "--columns: expected 1 for neurips"),
        (("cvpr", 3), "--columns: expected 1 or 2"),
        ((None, 0), "--columns: expected 1 or 2"),
    ],
)
def test_what_there_is_not_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        venue_style(*arguments)


@pytest.mark.parametrize("palette", PALETTES)
def test_the_first_four_colours_are_apart_in_grey_and_dark_enough_on_white(palette):
    found = [lightness(colour) for colour in PALETTES[palette][:4]]
    apart = [abs(a - b) for k, a in enumerate(found) for b in found[:k]]
    assert min(apart) >= 18
    assert max(found) <= 75


@pytest.mark.parametrize("palette", PALETTES)
def test_runs_are_told_apart_without_colour(palette):
    looks = list(run_styles(list("abcde"), 10, palette).values())
    for what in ("line", "hatch", "marker"):
        assert len({str(getattr(look, what)) for look in looks}) == 5
    assert len({look.fill for look in looks[:2]}) == 2


def test_the_grey_palette_draws_no_colour(made, tmp_path):
    results = load_results(made.write(tmp_path / "v", made.realistic(30), baseline="energy"))
    for spec in FIGURES:
        with made.figure_of(spec, results, dpi=60, palette="grey") as figure:
            figure.canvas.draw()
            pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)
        # Edges of letters are smoothed in grey too.
        assert (pixels.max(axis=-1) - pixels.min(axis=-1)).max() <= 2, spec.name


def test_a_venue_of_times_embeds_its_own_letters_whole(made, tmp_path):
    names = ("energy", "greg+ \u6a21\u578b")
    results = load_results(made.write(tmp_path / "v", made.realistic(10, names=names)))
    draw = partial(FIGURES[0].draw, results)
    figure = render(draw, venue_style("ieee", dpi=60), svg=True)
    assert b"STIXGeneral" in figure.pdf
    assert b"/Type3" not in figure.pdf
    assert b"<svg" in figure.svg
    again = render(draw, venue_style("ieee", dpi=60))
    assert (again.png, again.pdf, again.svg) == (figure.png, figure.pdf, b"")


def test_the_help_names_every_venue():
    assert all(name in VENUE_HELP for name in VENUES)
