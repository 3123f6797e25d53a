"""What captions say of the setting: thresholds, training, margins and seeds."""

import pytest

from greg_cert.report import load_results
from greg_cert.report.figures.registry import FIGURES
from greg_cert.report.latex.figures import full_captions
from greg_cert.report.tables.forms import all_sheets, markdown_table
from greg_cert.report.tables.setting import seed_words, threshold_words, training_words


def manifest(seed, *stages, **last):
    stages = [{"method": m, "m_in": i, "m_out": o} for m, i, o in stages]
    stages[-1] |= last
    return {"seed": seed, "stages": stages}


@pytest.fixture
def results(made, small):
    runs = {
        "a": manifest(
            1, ("ce", None, None), ("greg+", -7.25, -1.5), lambda_score=0.1, lambda_grad=0.03
        ),
        "b": manifest(2, ("energy", -7.25, -1.5), lambda_score=0.1, lambda_lipschitz=1e-4),
    }
    made.edit(
        *(small, "certificates.parquet"),
        lambda rows: rows.assign(method=rows["method"].where(rows["run"] == "a", "greg")),
    )
    made.put(small, runs__b__method="greg", provenance__runs=runs, provenance__seed=5)
    return load_results(small)


def test_a_fact_is_said_once_where_all_runs_have_it_and_by_run_where_not(results):
    assert threshold_words(results).endswith("(tpr = 0.95): \u03b3 = \u221213.70.")
    assert training_words(results) == (
        "Training: energy (\u201ca\u201d), greg (\u201cb\u201d); "
        "margins m_in = \u22127.25, m_out = \u22121.5; "
        "weights λ_S = 0.1, λ_∇ = 0.03 (\u201ca\u201d), λ_S = 0.1, λ_L = 0.0001 (\u201cb\u201d)."
    )
    assert (
        seed_words(results)
        == "Seeds: training 1 (\u201ca\u201d), 2 (\u201cb\u201d), verification 5."
    )


def test_what_is_not_recorded_is_not_said(made, tmp_path):
    frames = made.realistic(10, ("energy",))
    results = load_results(made.write(tmp_path / "v", frames, minimal=True))
    assert (training_words(results), seed_words(results)) == ("", "")
    assert "  " not in all_sheets(results, [])[0].caption


@pytest.mark.parametrize(
    "stages", [None, [], "x", [1], [{"m_in": "auto", "m_out": -1.0, "lambda_grad": "much"}]]
)
def test_what_is_no_number_is_not_said(made, small, stages):
    made.put(small, provenance__runs={"a": {"seed": None, "stages": stages}})
    words = training_words(load_results(small))
    assert "margins" not in words
    assert "weights" not in words


def test_captions_have_the_facts(made, results):
    page = " ".join(made.html_of(results).split())
    (caption,) = full_captions(results, FIGURES[:1])
    for text in (all_sheets(results, [])[0].caption, caption):
        for words in ("n = 5", "\u21132 norm", "\u03b3 = \u221213.70", "Certified: proven by"):
            assert words in text
        assert seed_words(results) in text
    assert training_words(results) in page
    assert seed_words(results) in page
    assert "stays accepted as ID" in markdown_table(results, [])
