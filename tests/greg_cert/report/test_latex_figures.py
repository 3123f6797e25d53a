import re

import pytest

from greg_cert.errors import UsageError
from greg_cert.report import FigureStyle, load_results, venue_style, write_figures
from greg_cert.report.figures.registry import FIGURES, figure_specs
from greg_cert.report.latex.figures import latex_figures

STYLE = FigureStyle(dpi=60)


def bare(text):
    """Characters that LaTeX would take as its own, where nothing escapes them."""
    text = re.sub(r"\$[^$]*\$", "", text)  # mathematics
    text = re.sub(r"\\[{}$&#%_]", "", text)
    text = re.sub(r"\\[a-zA-Z]+(\{\})?", "", text)
    return set(text) & set("$&#%_^~<>|\\")


@pytest.fixture
def results(made, tmp_path):
    names = ("a_b & 5% $x$ {#} ~^\\ <|>", "greg+")
    frames = made.realistic(40, names=names)
    folder = made.write(tmp_path / "v", frames, baseline="greg+", complete=False, wanted=90)
    return load_results(made.write_test_scores(folder, [made.all_scores_of(f) for f in frames]))


def test_every_figure_is_a_float_that_latex_can_read(results):
    specs = figure_specs(results, {})
    text = latex_figures(results, specs, venue_style("cvpr"))
    assert text.isascii()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert len(specs) == 5
    for spec in specs:
        assert rf"\includegraphics[width=3.2812in]{{\gregcertfigures/{spec.name}.pdf}}" in text
        assert rf"\label{{fig:{spec.name.replace('_', '-')}}}" in text
    assert text.count(r"\begin{figure}[t]") == text.count(r"\end{figure}") == 5
    captions = re.findall(r"\\caption\{(.*)\}\n\\label", text)
    assert len(captions) == 5
    for caption in captions:
        assert bare(caption) == set()


def test_captions_say_what_the_numbers_are(results):
    text = latex_figures(results, FIGURES, STYLE)
    for caption in re.findall(r"\\caption\{(.*)\}\n", text):
        assert r"$\ell_2$" in caption
        assert "n = 40 ID test samples a run" in caption
        assert r"(tpr = 0.95)" in caption
        assert "proof" in caption or "proven" in caption
        assert "Unfinished: 40 of 90" in caption
    for words in ("upper bound", "estimate", "energy score", r"threshold $\gamma$"):
        assert words in text


def test_a_contradicted_proof_is_taken_back_in_every_caption(made, tmp_path):
    results = load_results(made.write(tmp_path / "v", [made.frame_of("a", [0.1, 0.3], [0.2] * 2)]))
    text = latex_figures(results, FIGURES, STYLE)
    assert text.count("attacks contradict proofs") == len(FIGURES)


def test_what_spans_two_columns_is_a_starred_float(results):
    for style, star in (
        (venue_style("cvpr", 2), "*"),
        (venue_style("neurips"), ""),
        (venue_style("tmlr"), ""),
        (FigureStyle(width=6.75), "*"),
    ):
        text = latex_figures(results, FIGURES[:1], style)
        assert rf"\begin{{figure{star}}}[t]" in text
        assert rf"\end{{figure{star}}}" in text


def test_some_figures_alone_leave_the_rest_of_the_report(results, tmp_path):
    out, names = tmp_path / "out", ["bracket", "radius_histogram"]
    out.mkdir()
    new = {f"{name}.{kind}" for name in names for kind in ("png", "pdf", "svg")}
    for name in {"report.html", "table.md", "ood_fpr.png", *new}:
        (out / name).write_text("old")
    drawn = write_figures(results.folder, out, only=names, style=STYLE, svg=True)
    assert sorted(drawn) == sorted(names)
    assert {path.name for path in out.iterdir() if path.read_bytes() != b"old"} == new
    with pytest.raises(UsageError, match="--only: expected one of radius_histogram"):
        write_figures(results.folder, out, only=["histogram"])
    with pytest.raises(UsageError, match="'ood_fpr', for which there are no data"):
        write_figures(results.folder, out, only=["ood_fpr"])
