"""How benchmarks/claims.py chooses weights, and what it makes of the cells of its grid."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def candidate(accuracy: float, fpr: float, radius: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "fpr": fpr, "radius_certified": radius}


@pytest.mark.parametrize(
    ("candidates", "taken"),
    [
        ([candidate(0.9, 0.5, 0.1), candidate(0.9, 0.3, 0.1)], 1),  # the lowest FPR95
        ([candidate(0.9, 0.305, 0.2), candidate(0.9, 0.3, 0.1)], 0),  # as low: the longest radius
        ([candidate(0.9, 0.5, 0.1), candidate(0.88, 0.1, 0.9)], 0),  # more than a point lost
        ([candidate(0.8, 0.1, 0.9), candidate(0.85, 0.5, 0.1)], 1),  # all of them: most accurate
        ([{"error": "not finite"}, candidate(0.9, 0.5, 0.1)], 1),
    ],
)
def test_one_rule_chooses_the_weights(candidates: list[dict[str, Any]], taken: int) -> None:
    from grid.choose import chosen

    assert chosen(candidates, accuracy=0.9) == taken


def test_an_interval_is_students_over_the_seeds() -> None:
    from grid.verdicts import interval

    values = [0.1, 0.4, 0.3]
    found = interval(values)
    ends = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert math.isnan(interval([0.2]).low)


@pytest.mark.parametrize(
    ("low", "high", "room", "word"),
    [
        (0.01, 0.09, 1.0, "confirmed"),
        (-0.09, -0.01, 1.0, "refuted"),
        (-0.01, 0.004, 1.0, "refuted"),  # no gain that would matter
        (0.001, 0.004, 1.0, "refuted"),  # nor here, though there is one
        (-0.01, 0.09, 1.0, "undecided"),
        (-0.01, 0.09, 0.004, "nothing to gain"),
    ],
)
def test_a_verdict_follows_from_the_interval(
    low: float, high: float, room: float, word: str
) -> None:
    from grid.verdicts import Interval, verdict

    found = Interval((low + high) / 2, low, high, 3)
    assert verdict(found, least=0.005, room=room) == word
    assert verdict(Interval(0.0, math.nan, math.nan, 1), least=0.005, room=1.0) == "one seed"
    assert Interval(-0.0004, -0.0006, 0.0, 3).text(3) == "+0.000 [-0.001, +0.000]"
    assert verdict(Interval(0.1, 0.09, 0.11, 2), least=0.005, room=1.0) == "two seeds"


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.009, 0.01, "confirmed"), (-0.05, -0.02, "refuted"), (-0.05, 0.01, "undecided")],
)
def test_a_loss_is_harmless_where_the_interval_excludes_it(
    low: float, high: float, word: str
) -> None:
    from grid.verdicts import Interval, harmless

    assert harmless(Interval((low + high) / 2, low, high, 3), most=0.01) == word


def cell(rows: list[list[float | None]], auroc: float) -> dict[str, Any]:
    """Of a run with one near and one far set, and these radii in both norms."""
    columns = ["index", "accepted", "radius_certified", "radius_attack", "radius_gradient"]
    radii = {
        "columns": columns,
        "rows": rows,
        "violations": 0,
        "settings": {"method": ["crown"], "max_radius": 1.0},
    }
    sets = {"a": {"auroc": auroc, "fpr95": 0.5}, "b": {"auroc": 0.8, "fpr95": 0.2}}
    return {
        "accuracy": 0.9,
        "ece": 0.1,
        "ood": sets,
        "groups": {"a": "near", "b": "far"},
        "gradient": {"id": 2.0, "a": 1.0, "b": 3.0},
        "lipschitz": 5.0,
        "train_seconds": 1.0,
        "auc": {name: {"0.1": [0.5, 0.6]} for name in sets},
        "radii": {"2": radii, "inf": radii},
        "model": {"name": "mlp"},
        "git_commit": "0123456789",
        "versions": {"torch": "2"},
    }


ROWS: list[list[float | None]] = [
    [0, 1, 0.1, 0.2, 0.3],
    [1, 1, 0.3, 0.4, 0.35],
    [2, 0, 0.0, 0.0, 0.0],  # rejected
    [3, 1, 0.5, None, 0.9],  # no attack found
]


def test_medians_are_over_all_samples_and_shares_over_those_that_an_attack_broke() -> None:
    from grid.verdicts import exceeds, mean_of_sets, median_radius, share, slope

    one = cell(ROWS, 0.7)
    assert median_radius("2", "radius_certified")(one) == pytest.approx(0.2)
    assert median_radius("2", "radius_attack")(one) == pytest.approx(0.3)
    assert share("2")(one) == pytest.approx((0.5 + 0.75) / 2)
    assert exceeds("2")(one) == pytest.approx(1 / 3)  # 0.3 > 0.2 alone
    assert mean_of_sets("auroc", "near")(one) == 0.7
    assert mean_of_sets("fpr95", None)(one) == pytest.approx(0.35)
    assert slope("ood")(one) == pytest.approx(2.0)


def test_the_page_says_what_the_cells_say() -> None:
    from grid.page import section

    longer = [[*row[:2], *(v and 2 * v for v in row[2:])] for row in ROWS]
    cells = {
        "energy": {s: cell(ROWS, 0.6 + 0.01 * s) for s in range(3)},
        "greg": {s: cell(longer, 0.7 + 0.011 * s) for s in range(3)},
    }
    numbers = dict.fromkeys(("accuracy", "calibration_error", "auroc", "fpr"), 0.5)
    numbers |= {"radius_certified": 0.25, "radius_attack": 1.0}
    tried = [{"values": {"lambda_score": v}, **numbers} for v in (0.1, 0.3)]
    tried.append({"values": {"lambda_score": 9.0}, "error": "not finite"})
    chosen = {run: {"candidates": tried, "chosen": {"lambda_score": 0.3}} for run in cells}
    lines = section("cifar10", cells, chosen)
    gain = next(v for v in lines if v.startswith("| a: the penalty") and "near AUROC" in v)
    assert "| greg \N{MINUS SIGN} energy | near AUROC: +0.101 [" in gain
    assert gain.endswith("| confirmed |")
    grown = next(
        v for v in lines if v.startswith("| e: radii grow") and "certified \N{SCRIPT SMALL L}2" in v
    )
    assert "\N{MULTIPLICATION SIGN} 2.00 [2.00, 2.00] | confirmed" in grown
    assert "| greg | lambda_score 0.3 | lambda_grad 0.01, 0.03, 0.1, 0.3, 1 |" in lines
    row = "0.500 | 0.500 | 0.500 | 0.500 | 0.250 | 1.000 |"
    assert f"| greg | lambda_score 0.1 | {row}" in lines
    assert f"| greg | **lambda_score 0.3** | {row}" in lines
    assert (
        "| greg | lambda_score 9 | failed | \u2013 | \u2013 | \u2013 | \u2013 | \u2013 |" in lines
    )


def test_the_overview_gives_each_claim_a_line_and_each_task_a_column() -> None:
    from grid.page import overview

    cells = {
        "energy": {s: cell(ROWS, 0.6 + 0.01 * s) for s in range(3)},
        "greg+": {s: cell(ROWS, 0.7 + 0.011 * s) for s in range(3)},
    }
    own = {"own": {"ood": cell(ROWS, 0.7)["ood"]}, "failed": {"error": "why"}}
    by = {name: {"ood": cell(ROWS, a)["ood"]} for name, a in (("low", 0.6), ("high", 0.9))}
    groups = {"a": "near", "b": "far"}
    on_top = {"greg+": {s: {"groups": groups, "detectors": own | by} for s in range(3)}}
    lines = overview({"mnist": cells, "cifar10": cells}, {"mnist": {}, "cifar10": on_top})
    assert "| claim | runs | MNIST | CIFAR-10 |" in lines
    (line,) = (v for v in lines if v.startswith("| c: accuracy is not harmed"))
    said = "**confirmed**: accuracy +0.00 points"
    assert line.endswith(f"| greg+ \N{MINUS SIGN} energy | {said} | {said} |")
    assert lines[-2] == (
        "| g: post-hoc detectors detect better | on greg+ |  | "
        "near: **1 of 2**, most high (+0.200); far: **0 of 2** |"
    )
