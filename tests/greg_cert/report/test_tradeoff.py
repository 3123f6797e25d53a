"""The table and the picture of a trade-off say what the rows say."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from greg_cert.report.figures.tradeoff import LEAST_SPAN, draw_tradeoff
from greg_cert.report.tables.forms import markdown_sheet
from greg_cert.report.tables.tradeoff import tradeoff_csv, tradeoff_sheet
from greg_cert.report.wording import MISSING
from greg_cert.runs.tuned_runs import TunedRun, TunedValue, over_seeds

ABOUT = {"norm": 2.0, "tpr": 0.95}


def run(value: str, seed: int, radius: float, **more: float | None) -> TunedRun:
    numbers = {
        "accuracy": 0.9 + 0.01 * seed,
        "calibration_error": 0.02,
        "auroc": 0.99,
        "fpr": 0.05 * radius,
        "samples": 50,
        "undecided": 0,
        "capped": 0,
        "radius_certified": radius,
        "radius_attack": 2 * radius,
        "share": 0.5,
        "radius_lipschitz": 0.1 * radius,
        "train_cpu_seconds": 12.0,
        "certify_cpu_seconds": 0.25,
        **more,
    }
    return TunedRun(value, seed, numbers)


RUNS = [
    *(run("0", 0, 0.10), run("0", 2, 0.20)),
    *(run("0.1", 0, 0.40), run("0.1", 2, 0.40)),
    TunedRun("9", 0, {"train_cpu_seconds": 1.0}, "it diverged"),
]


def lines_of(axes: Axes) -> list[np.ndarray]:
    bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    return [np.asarray(c[0].get_xydata()) for c in bars]


def test_each_panel_has_the_means_in_the_order_of_the_values() -> None:
    figure = draw_tradeoff("lambda_grad", over_seeds(RUNS), **ABOUT)
    panels = figure.axes
    assert [a.get_title() for a in panels] == ["accuracy", "AUROC", "FPR95", "ECE"]
    for axes, (first, second) in zip(
        panels, [(0.91, 0.91), (0.99, 0.99), (0.0075, 0.02), (0.02, 0.02)], strict=True
    ):
        proofs, attacks = lines_of(axes)
        assert proofs == pytest.approx(np.array([[0.15, first], [0.4, second]]))
        assert attacks == pytest.approx(np.array([[0.3, first], [0.8, second]]))
        assert [text.get_text() for text in axes.texts] == ["0", "0.1"] * 2
        right = axes.get_xlim()[1]
        places = [text.get_position()[0] * right for text in axes.texts]
        assert places == pytest.approx([0.15, 0.4, 0.3, 0.8])
        low, high = axes.get_ylim()
        assert high - low > LEAST_SPAN
        ticks = axes.get_yticks()  # of shares
        assert len(ticks) >= 2
        assert (ticks >= -1e-9).all()
        assert (ticks <= 1 + 1e-9).all()
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > 0.8


def test_bars_are_deviations_over_seeds() -> None:
    axes = draw_tradeoff("lambda_grad", over_seeds(RUNS), **ABOUT).axes[0]
    across = axes.containers[0][2][0].get_segments()
    half = 0.1 / 2**0.5
    assert across[0][:, 0] == pytest.approx([0.15 - half, 0.15 + half])
    assert across[1][:, 0] == pytest.approx([0.4, 0.4])


def test_what_has_no_point_is_left_out() -> None:
    runs = [
        run("a", 0, 0.1, auroc=None, fpr=None),
        run("b", 0, 0.2, auroc=None, fpr=None, radius_attack=math.inf),
    ]
    panels = draw_tradeoff("x", over_seeds(runs), **ABOUT).axes
    assert [a.get_title() for a in panels] == ["accuracy", "ECE"]
    proofs, attacks = lines_of(panels[0])
    assert (len(proofs), len(attacks)) == (2, 1)
    failed = draw_tradeoff("x", over_seeds(RUNS[-1:]), **ABOUT)
    assert [a.get_title() for a in failed.axes] == ["accuracy"]
    assert lines_of(failed.axes[0]) == []


def test_labels_of_near_points_do_not_lie_on_each_other() -> None:
    runs = [run(f"0.00{k}", 0, 0.3 + 0.001 * k) for k in range(4)]
    axes = draw_tradeoff("x", over_seeds(runs), **ABOUT).axes[0]
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) >= 5
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    points = axes.transData.transform(np.concatenate(lines_of(axes)))
    assert not any(box.contains(*point) for box in boxes for point in points)


def sheet(values: list[TunedValue]) -> str:
    return markdown_sheet(tradeoff_sheet("lambda_grad", values, max_radius=1.0, **ABOUT), "t")


def test_table() -> None:
    lines = sheet(over_seeds(RUNS)).splitlines()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in lines
        if line.startswith(("| 0", "| 9"))
    ]
    assert [row[0] for row in rows] == ["0", "0.1", "9"]
    assert rows[0][1:5] == ["0.910 ± 0.014", "0.9900 ± 0.0000", "0.008 ± 0.004", "0.020 ± 0.000"]
    assert rows[0][5:7] == ["0.150 ± 0.071", "0.300 ± 0.141"]
    assert rows[1][5] == "0.400 ± 0.000"
    assert rows[2][1:7] == [MISSING] * 6
    assert "it diverged" in lines[-1]
    text = sheet(over_seeds([run("0", 0, 1.0, capped=26, undecided=3, auroc=None, fpr=None)]))
    assert "verify.max" in text
    assert "26 radii" in text
    assert "3 accepted samples a run have no certificate" in text
    assert "AUROC (" not in text
    assert "±" not in text


def test_csv_has_a_row_a_run_with_all_digits() -> None:
    first, *rows = tradeoff_csv("lambda_grad", RUNS).splitlines()
    assert first.startswith("lambda_grad,seed,accuracy,auroc,fpr,")
    assert [row.split(",")[:3] for row in rows[:2]] == [["0", "0", "0.9"], ["0", "2", "0.92"]]
    assert rows[-1].startswith("9,0,,")
    assert rows[-1].endswith(",it diverged")
