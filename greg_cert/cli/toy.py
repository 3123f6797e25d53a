"""`greg-cert demo --toy`: the demonstration in the plane, its files and what is said of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greg_cert.cli import screen

if TYPE_CHECKING:
    from greg_cert.train.toy.measures import Toy


def demonstrate(out: Path) -> None:
    """Train and measure two detectors of points in the plane, draw them, and say what was found.

    Writes `toy.png`, `toy.pdf` and `toy.json` into the folder, made if absent.
    """
    from greg_cert.files import write_files
    from greg_cert.report.figures.render import render
    from greg_cert.runs.records import environment
    from greg_cert.train.toy.measures import run_toy
    from greg_cert.train.toy.picture import TOY_STYLE, draw_toy
    from greg_cert.train.toy.plane import ToySettings

    with screen.training_bars() as bar:
        toy = run_toy(ToySettings(), observe=lambda method: bar(f"train {method}"))
    figure = render(lambda style: draw_toy(toy, style), TOY_STYLE)
    record = {
        "schema": 1,
        "settings": asdict(toy.settings),
        "runs": {method: run.numbers for method, run in toy.runs.items()},
        "pair": _pair_record(toy),
        "provenance": {**environment("cpu"), "command": screen.command_line()},
    }
    contents: dict[str, bytes | str] = {
        "toy.png": figure.png,
        "toy.pdf": figure.pdf,
        "toy.json": json.dumps(record, indent=2, allow_nan=False) + "\n",
    }
    paths = write_files(out, contents)
    screen.record({**record, "files": paths})
    screen.plain(*toy_lines(record), *paths)


def _pair_record(toy: Toy) -> dict[str, Any] | None:
    """The two outliers of one score, under both detectors; None where the energy model has none."""
    from greg_cert.train.toy.measures import score_and_slope

    if toy.pair is None:
        return None
    points = toy.points.outliers[list(toy.pair)]
    record: dict[str, Any] = {name: {"x": points[k].tolist()} for k, name in enumerate("AB")}
    for method, run in toy.runs.items():
        score, slope = score_and_slope(run.model, points)
        for k, name in enumerate("AB"):
            record[name][method] = {"score": float(score[k]), "slope": float(slope[k])}
    return record


def toy_lines(record: dict[str, Any]) -> list[str]:
    """What `toy.json` says, in a few lines of plain text."""
    radius = record["settings"]["radius"]
    lines = []
    for method, n in record["runs"].items():
        share = n["crossing_id_share"]
        crossing = "none accepted" if share is None else f"{share:.1%} of those accepted"
        lines.append(
            f"{method + ':':8}accuracy {n['accuracy']:.3f}; mean slope {n['gradient_id_mean']:.2f} "
            f"at ID test points (largest {n['gradient_id_max']:.2f}), "
            f"{n['gradient_plane_mean']:.2f} over the plane; "
            f"{crossing} have the threshold within {radius:g} (grid search)"
        )
    if record["pair"] is None:
        lines.append("no two held-out outliers of one score differ in slope by a factor of 2")
        return lines
    steep, gentle = (record["pair"][name]["energy"] for name in ("A", "B"))
    after = [record["pair"][name]["greg"]["slope"] for name in ("A", "B")]
    lines.append(
        f"outliers A and B of the energy detector: scores {steep['score']:.2f} and "
        f"{gentle['score']:.2f}, slopes {steep['slope']:.2f} and {gentle['slope']:.2f} "
        f"(with the penalty {after[0]:.2f} and {after[1]:.2f})"
    )
    return lines
