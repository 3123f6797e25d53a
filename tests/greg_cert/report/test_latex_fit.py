"""What a venue's LaTeX makes of the tables and figures, where LaTeX is installed."""

import re
import shutil
import subprocess
from types import SimpleNamespace

import pandas as pd
import pytest

from greg_cert.evaluation.sheet import evaluation_sheet
from greg_cert.report import VENUES, load_results, venue_style
from greg_cert.report.figures.registry import figure_specs
from greg_cert.report.latex.figures import latex_figures
from greg_cert.report.latex.tables import latex_floats, latex_sheet, latex_sheets
from greg_cert.report.latex.text import escape_tex, printed_width
from greg_cert.report.tables.comparison import compare

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")

NAMES = (
    *("energy", "GReg+ lambda=0.1", "greg_plus_seed2", "POEM"),
    *("cifar10_resnet18_gregplus_lambda0.1_seed2_final", "GReg+, m_in = -7, m_out = -1"),
)
LAYOUTS = {venue: name for name, venue in VENUES.items()}
"""The last of the venues that have one layout, by that layout."""
HIGH = {"lncs": 7.6}  # inches of text, else 8.9
LARGE = ("jmlr", "acl")  # whose text is of 11 points
MODERN = ("lncs", "jmlr", "tmlr", None)  # in Computer Modern, else in Times


def verified(made, folder, names, methods):
    """Results of so many runs, with every table that there is."""
    n = 40
    frames = made.realistic(n, names=names)
    radii = ["radius_certified", "radius_attack"]
    ood = [
        made.ood_of(name, dataset, *(frame[column] for column in radii))
        for name, frame in zip(names, frames, strict=True)
        for dataset in ("mnist", "textures (Cimpoi)")
    ]
    more = {}
    if methods:
        frames = [
            made.with_smoothing(made.with_methods(f), ["accepted"] * n, [0.1] * n) for f in frames
        ]
        more["methods"] = ["crown", "alpha-crown", "branch", "clever", "smoothing"]
    made.write(folder, frames, baseline=names[0] if len(names) > 1 else None, **more)
    first = [frame for frame in ood if frame["dataset"].iloc[0] == "mnist"]
    pairs = zip(frames, first, strict=True)
    made.write_test_scores(folder, [made.all_scores_of(f, ood=far) for f, far in pairs])
    made.write_ood(folder, ood, [made.scores_of(pd.concat(ood))])
    results = load_results(folder)
    return results, latex_sheets(results, compare(results, resamples=99))


@pytest.fixture(scope="module")
def many(made, tmp_path_factory):
    """Results of 1, 3 and 6 runs, those of 6 with all methods."""
    folder = tmp_path_factory.mktemp("latex")
    kinds = [(1, False), (3, False), (6, False), (6, True)]
    return [verified(made, folder / f"{k}{m}", NAMES[-k:], m) for k, m in kinds]


def compiled(folder, name, parts):
    """The lines in which LaTeX complains about a document of a venue's measures."""
    venue = VENUES.get(name) or venue_style().paper
    columns = "" if venue.gap is None else f",columnsep={venue.gap}in"
    text = [
        r"\documentclass[{}pt{}]{{article}}".format(
            11 if name in LARGE else 10, "" if venue.gap is None else ",twocolumn"
        ),
        rf"\usepackage[letterpaper,textwidth={venue.text}in,textheight={HIGH.get(name, 8.9)}in"
        rf"{columns}]{{geometry}}",
        r"\usepackage{booktabs}\usepackage[demo]{graphicx}",
        "" if name in MODERN else r"\usepackage{mathptmx}",
        r"\begin{document}",
        *(f"{part}\n\\clearpage" for part in parts),
        r"\end{document}",
    ]
    (folder / "paper.tex").write_text("\n".join(text), encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    run = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    bad = r"^(?:!|Overfull|LaTeX Warning: Float).*$"
    assert run.returncode == 0, run.stdout[-2000:]
    return re.findall(bad, run.stdout, re.MULTILINE)


def evaluated():
    """The table of an evaluation of many runs and detectors, with all its columns."""
    keys = ("id_accuracy", "calibration_error", "fpr95", "fpr95_ood_recall", "auroc", "aupr_in")
    groups = [f"{group}_{metric}" for group in ("near", "far") for metric in ("fpr95", "auroc")]
    numbers = dict.fromkeys([*keys, "aupr_out", *groups], 0.98765)
    label = range(10_000)
    rows = [
        SimpleNamespace(
            run=run,
            detection=SimpleNamespace(detector=detector, sets={"tiny_imagenet": None}),
            predictions=SimpleNamespace(label=label),
            numbers=lambda: numbers,
        )
        for run in NAMES
        for detector in ("energy", "pro-energy:eps=0.005,steps=3", "certified-energy")
    ]
    mean = SimpleNamespace(title=NAMES[-2], seeds=range(3), detector="energy")
    mean.mean = mean.std = numbers
    return evaluation_sheet(rows, [mean])


@needs_latex
@pytest.mark.parametrize("name", [*LAYOUTS.values(), None])
def test_every_table_and_figure_fits_the_page(many, tmp_path, name):
    styles = [venue_style(name)]
    if styles[0].paper.gap is not None:
        styles.append(venue_style(name, 2))
    tables = [*(sheets for _, sheets in many), [evaluated()]]
    parts = [latex_floats(sheets, "", styles[0].paper) for sheets in tables]
    for style in styles:
        for results, _ in (many[0], many[-1]):
            parts.append(latex_figures(results, figure_specs(results, {}), style))
    assert compiled(tmp_path, name, parts) == []


@needs_latex
def test_what_does_not_fit_is_seen(tmp_path):
    wide = r"\begin{table}\begin{tabular}{l}\hbox to 6in{x}\end{tabular}\end{table}"
    (found,) = compiled(tmp_path, "neurips", [wide])
    assert "Overfull" in found


@needs_latex
def test_latin_and_greek_letters_compile(tmp_path):
    greek = [chr(c) for c in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA)) if c != 0x3A2]
    latin = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿčďěğłńňőřśšťůűźżž"
    names = [*greek, *latin]
    assert compiled(tmp_path, "neurips", [escape_tex(" ".join([*names, "→ ≈ \u2032"]))]) == []


def test_type_is_no_smaller_than_the_venue_wants(many):
    for _, sheets in many:
        for name, least in (("aaai", 9.0), ("neurips", 8.0)):
            text = latex_floats(sheets, "", VENUES[name])
            sizes = [float(size) for size in re.findall(r"\\fontsize\{([\d.]+)\}", text)]
            assert min(sizes) >= least


def test_a_narrow_table_stands_in_one_column_and_a_wide_one_over_both(many):
    sheet = many[1][1][0]
    narrow = sheet.only(["certified", "attack"])
    for table, venue, environment in (
        *((narrow, "icml", "table"), (sheet, "icml", "table*")),
        *((narrow, "neurips", "table"), (sheet, "neurips", "table")),
    ):
        text = latex_sheet(table, table.caption, paper=VENUES[venue])
        assert rf"\begin{{{environment}}}[t]" in text
        assert rf"\end{{{environment}}}" in text


def test_a_long_table_is_continued_under_its_number(many):
    text = latex_floats(many[-1][1], "", VENUES["neurips"])
    floats = text.split(r"\label{tab:ood-radii}")[1].split(r"\label{")[0].split(r"\end{table}")
    floats = [part for part in floats if r"\begin{tabular}" in part]
    assert len(floats) > 1
    for part in floats[1:]:
        assert "\\addtocounter{table}{-1}\n\\caption{(continued)}" in part
    rows = [row for part in floats for row in part.splitlines() if re.search("& 0.(05|1|2) &", row)]
    blocks = floats[0].count(r"\begin{tabular}")
    assert len(rows) == len(NAMES) * 2 * 3 * blocks
    assert len({row.rpartition("&")[0] for row in rows}) > len(rows) // 2


@pytest.mark.parametrize(
    ("text", "size", "points"),
    [
        ("98.10", 10, 22.78),
        ("FPR95 AUROC", 10, 70.83),
        ("certified", 10, 35.03),
        ("GReg+, m_in = -7", 9, 75.47),
        ("0.0453 to 0.0698", 8, 60.45),
        ("cifar10-resnet18", 8, 58.38),
        ("2.3e-07", 8, 39.69),
        ("proven, %", 8, 37.08),
    ],
)
def test_widths_are_a_little_above_those_that_latex_prints(text, size, points):
    assert points <= printed_width(text, size) <= 1.11 * points
