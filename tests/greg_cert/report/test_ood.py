"""The OOD side of a report: its files, its numbers and its words."""

import pandas as pd
import pytest

from greg_cert.errors import RunError
from greg_cert.report import FigureStyle, load_results, write_report
from greg_cert.report.figures.registry import FIGURES, OOD_FIGURE
from greg_cert.report.tables.notes import contradictions
from greg_cert.report.tables.ood_rows import ball_rows, fixed_radii, ood_rows, round_radius
from greg_cert.report.tables.statement import statement
from greg_cert.report.wording import fixed_radius

INF, NAN = float("inf"), float("nan")


@pytest.fixture
def folder(made, small):
    """Two runs, of which "b" proves more; two OOD sets of four samples, scores of one."""
    frames = [
        # Accepted clean, undecided, then proven to 0.1 and to 0.4.
        made.ood_of("a", "mnist", [9, 0.0, 0.1, 0.4], [9, 0.3, 0.2, INF], [0]),
        made.ood_of("a", "svhn", [0.5] * 4, [INF] * 4),
        made.ood_of("b", "mnist", [0.2, 0.2, 0.2, 0.0], [0.4] * 4),
    ]
    return made.write_ood(small, frames, [made.scores_of(frames[0]), made.scores_of(frames[2])])


def test_rows_equal_numbers_worked_out_by_hand(folder):
    a, _, b = ood_rows(load_results(folder))
    assert (a.run, a.dataset, b.run) == ("a", "mnist", "b")
    assert (a.samples, a.certified, a.wrong) == (4, 2, 1)
    assert a.certified_median == pytest.approx(0.05)
    assert a.certified_mean == pytest.approx(0.125)
    assert a.attack_median == pytest.approx(0.25)  # 0, 0.2, 0.3, inf
    assert b.certified_median == pytest.approx(0.2)


def test_shares_at_fixed_radii_by_hand(folder):
    results = load_results(folder)
    assert fixed_radii(results) == [0.05, 0.1, 0.2]
    rows = {(r.run, r.dataset, r.radius): r for r in ball_rows(results)}
    a = [rows["a", "mnist", r] for r in (0.05, 0.1, 0.2)]
    assert [r.certified_fpr for r in a] == [0.5, 0.5, 0.75]
    assert [r.attacked_fpr for r in a] == [0.25, 0.25, 0.5]
    assert [r.acceptance for r in a] == [0.6, 0.6, 0.4]  # 0.1 0.2 0.3 0 and a rejected one
    # Clean scores -14 and near -8; ID scores -15, and -11 for the rejected sample.
    assert [r.auroc for r in a] == pytest.approx([0.95] * 3)
    # Bounds lie 1, 2 and 4 lower: -15 ties with ID, then falls below it.
    assert [r.guaranteed for r in a] == pytest.approx([0.75, 0.75, (0 + 3 * 0.8) / 4])
    assert [r.adversarial for r in a] == pytest.approx([0.95, 0.75, 0.75])
    svhn = rows["a", "svhn", 0.1]
    assert (svhn.certified_fpr, svhn.attacked_fpr, svhn.guaranteed) == (0.0, 0.0, None)


def test_areas_are_ordered_and_the_centre_of_a_ball_counts_as_found(made, small):
    ood = made.ood_of("a", "x", [0.1] * 6, [INF] * 6)
    # Clean scores below those of ID samples, and no attack that came below them.
    scores = made.scores_of(ood).assign(score=-15.5, score_bound=-16.0, score_attack=100.0)
    for row in ball_rows(load_results(made.write_ood(small, [], [scores]))):
        assert row.guaranteed <= row.adversarial <= row.auroc


@pytest.mark.parametrize(
    ("value", "norm", "rounded", "shown"),
    [
        (0.13, 2.0, 0.1, "0.1"),
        (0.16, 2.0, 0.2, "0.2"),
        (0.0042, 2.0, 0.005, "0.005"),
        (8.2, 2.0, 10.0, "10"),
        (7 / 255, INF, 8 / 255, "8/255"),
        (0.8 / 255, INF, 1 / 255, "1/255"),
        (0.0011, INF, 0.001, "0.001"),
    ],
)
def test_round_radii(value, norm, rounded, shown):
    assert round_radius(value, norm) == pytest.approx(rounded)
    assert fixed_radius(round_radius(value, norm), norm) == shown


def test_without_scores_the_radii_lie_near_the_median_proof(made, small):
    ood = made.ood_of("a", "x", [0.0, 0.09, 0.1, 0.11], [INF] * 4)
    results = load_results(made.write_ood(small, [ood]))
    assert fixed_radii(results) == [0.05, 0.1, 0.2]
    row = ball_rows(results)[1]
    assert (row.certified_fpr, row.attacked_fpr, row.auroc) == (0.5, 0.0, None)


def test_nothing_proven_and_nothing_attacked_leaves_no_radius(made, small):
    results = load_results(made.write_ood(small, [made.ood_of("a", "x", [0.0] * 3, [INF] * 3)]))
    assert fixed_radii(results) == []
    with made.figure_of(OOD_FIGURE, results) as figure:
        assert figure.axes[0].get_xlim()[1] > 0


def test_every_form_carries_the_numbers_and_their_status(made, folder):
    forms = made.forms_of(folder)
    for form, text in forms.items():
        for words in ("OOD side", "OOD side at fixed radii", "upper bound", "lower bound", "svhn"):
            assert words in text, (form, words)
        for number in ("75.00", "95.00", "0.125", "60.00"):
            assert number in text, (form, number)
    markdown = forms["markdown"]
    for words in (
        "Certified FPR, upper bound, % (proof)",
        "Attacked FPR, % (lower bound)",
        "Guaranteed AUROC, lower bound, % (proof)",
        "Attacked AUROC, % (upper bound)",
        "Clean AUROC, % (measured)",
        "Certified acceptance of ID, lower bound, % (proof)",
    ):
        assert words in markdown


def test_statement_names_the_worst_set_and_both_ends(folder):
    results = load_results(folder)
    text = statement(results, [])
    assert (
        "within an \u21132 radius of 0.1: \u201ca\u201d accepts as ID at most 50.0 % (proof) and "
        "at least 25.0 % (attack) of \u201cmnist\u201d, its worst of 2 OOD sets by the proof"
    ) in text
    assert "guaranteed AUROC of 75.0 % (clean 95.0 %)" in text
    assert "No attack contradicted a certificate." in text


def test_statement_where_nothing_is_proven(made, small):
    ood = made.ood_of("a", "x", [0.0] * 4, [0.1] * 4)
    results = load_results(made.write_ood(small, [ood]))
    text = statement(results, [])
    assert "nothing is proven for \u201ca\u201d, and an attack makes it accept 100.0 %" in text


def test_names_of_sets_cannot_inject_markup(made, small):
    name = "<script>alert(1)</script> & | $x_1$"
    ood = made.ood_of("a", name, [0.1] * 4, [0.2] * 4)
    texts = made.forms_of(made.write_ood(small, [ood], [made.scores_of(ood)]))
    assert "<script" not in texts["html"]
    assert "<script" not in texts["markdown"]
    assert r"\& \textbar{} \$x\_1\$" in texts["latex"]
    (line, *_) = [x for x in texts["markdown"].split("| a | ") if "alert" in x]
    assert line.startswith("&lt;script&gt;alert(1)&lt;/script&gt; &amp; \\| \\$x\\_1\\$ |")


def test_curves_of_the_figure_by_hand(made, folder):
    with made.figure_of(OOD_FIGURE, load_results(folder)) as figure:
        low, high = [x for x in figure.axes[0].lines if x.get_drawstyle() == "steps-post"][:2]
        at = dict(zip(*high.get_data(), strict=True))
        # Just after each corner, mean of mnist (0.5, 0.75, 0.75) and svhn (0 until 0.5).
        assert [at[r] for r in (0.0, 0.1, 0.2)] == pytest.approx([0.25, 0.375, 0.375])
        at = dict(zip(*low.get_data(), strict=True))
        assert [at[r] for r in (0.0, 0.2, 0.3)] == pytest.approx([0.125, 0.25, 0.375])
        assert (low.get_ydata() <= high.get_ydata()).all()


def test_the_figure_is_written_where_there_is_an_ood_side(folder, tmp_path, made, one_figure):
    files = write_report(folder, tmp_path / "out", style=FigureStyle(dpi=60))
    assert list(files.figures) == [FIGURES[0].name, OOD_FIGURE.name]
    assert "OOD samples accepted under perturbation" in files.html.read_text()
    (folder / "ood_certificates.parquet").unlink()
    made.edit(
        folder, "summary.json", lambda s: [r.pop("ood_side", None) for r in s["runs"].values()]
    )
    files = write_report(folder, tmp_path / "scores", style=FigureStyle(dpi=60))
    assert OOD_FIGURE.name not in files.figures
    text = files.markdown.read_text()
    assert "Guaranteed AUROC" in text
    assert "Certified FPR" not in text


def warned(made, folder, *words):
    assert contradictions(load_results(folder))
    texts = made.forms_of(folder)
    for form, text in texts.items():
        for word in ("must not be relied on", *words):
            assert word in text, (form, word)
    assert 'class="result alarm"' in texts["html"]
    assert "No attack contradicted" not in texts["html"]


def test_contradictions_anywhere_raise_the_alarm(made, folder, tmp_path):
    assert contradictions(load_results(folder)) == []

    def spoil(bounds):
        bounds.loc[5, "score_bound"] = bounds.loc[5, "score_attack"] + 1e-9
        return bounds

    made.edit(folder, "ood_scores.parquet", spoil)
    warned(made, folder, "1 of 12 score bounds")
    other = made.write(tmp_path / "other", [made.frame_of("b", [0.1], [0.2])])
    made.write_ood(other, [made.ood_of("b", "x", [0.3, 0.1], [0.2, 0.2])])
    warned(made, other, "on x: 1 of 2")


@pytest.mark.parametrize("inside", [False, True])
def test_violations_of_the_audit_raise_the_alarm(small, inside, made):
    audit = {"attacks": ["pgd", "square"], "violations": 3, "steps": 40, "restarts": 3}

    def change(summary):
        (summary["runs"]["b"] if inside else summary)["audit"] = audit

    made.edit(small, "summary.json", change)
    warned(made, small, "audit", ": 3")
    assert "attacks pgd, square, steps 40, restarts 3, violations 3" in made.forms_of(small)["html"]


def test_notes_stand_in_every_form(small, made):
    for text in made.forms_of(small).values():
        assert "Unfinished" not in text
    more = {"complete": False, "wanted": 20, "correct": True, "score": "max_logit"}
    made.edit(small, "summary.json", lambda s: s.update(more))
    for form, text in made.forms_of(small).items():
        for words in (
            "Unfinished: 5 of 20 samples",
            "accepted as ID and correctly classified",
            "rejected or misclassified",
            "The score is the maximum logit, not the energy",
        ):
            assert words in text, (form, words)


def test_an_unfinished_folder_shows_the_samples_all_runs_have(made, tmp_path):
    frames = made.realistic(20)
    frames[1] = frames[1].iloc[:12]
    folder = made.write(tmp_path / "v", frames, baseline="energy", complete=False, wanted=50)
    results = load_results(folder)
    assert results.samples == 12
    text = made.forms_of(folder)["markdown"]
    assert "\u201cenergy\u201d 20, \u201cgreg+\u201d 12 of 50 samples" in text
    made.edit(folder, "summary.json", lambda s: s.update(complete=True, wanted=None))
    with pytest.raises(RunError, match="same samples"):
        load_results(folder)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("ood_certificates.parquet", lambda f: f.drop(columns="dataset"), "missing column dataset"),
        ("ood_certificates.parquet", lambda f: f.assign(radius_attack=NAN), "radius_attack"),
        ("ood_certificates.parquet", lambda f: f.assign(threshold=-12.0), "threshold.*-12"),
        ("ood_certificates.parquet", lambda f: pd.concat([f, f]), "twice"),
        ("ood_certificates.parquet", lambda f: f.replace({"run": {"b": "c"}}), "'c' is not among"),
        ("ood_certificates.parquet", lambda f: f.iloc[1:], "ood_side.mnist.samples"),
        ("ood_scores.parquet", lambda f: f.assign(score_bound=NAN), "score_bound"),
        ("ood_scores.parquet", lambda f: f.assign(score_bound=INF), "score_bound"),
        ("ood_scores.parquet", lambda f: f.assign(score_attack=INF), "score_attack"),
        ("ood_scores.parquet", lambda f: f.assign(radius=-0.1), "radius"),
        ("ood_scores.parquet", lambda f: f.assign(score="x"), "score"),
        ("ood_scores.parquet", lambda f: pd.concat([f, f]), "twice"),
        ("summary.json", lambda s: s.update(side="ood"), "side"),
        ("summary.json", lambda s: s.update(smoothing={"sigma": 0.1}), "smoothing.n"),
        (
            "summary.json",
            lambda s: s["runs"]["a"]["ood_side"]["mnist"].update(violations=1),
            "ood_side.mnist.violations",
        ),
    ],
)
def test_damaged_or_disagreeing_files_are_refused(folder, name, change, words, made):
    made.edit(folder, name, change)
    with pytest.raises(RunError, match=words) as error:
        load_results(folder)
    assert "\n" not in str(error.value)


def test_unproven_bounds_and_a_lost_file(folder, made):
    made.edit(folder, "ood_scores.parquet", lambda f: f.assign(score_bound=-INF))
    assert {row.guaranteed for row in ball_rows(load_results(folder))} == {0.0, None}
    (folder / "ood_certificates.parquet").unlink()
    with pytest.raises(RunError, match=r"ood_side\.mnist: expected rows in ood_cert"):
        load_results(folder)
