import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from greg_cert.digests import sealed
from greg_cert.errors import RunError
from greg_cert.report import DOUBLE_COLUMN, FigureStyle, write_report
from greg_cert.report.figures.render import drawn
from greg_cert.report.figures.training import draw_training, running_median
from greg_cert.runs.training_log import TrainingLog, read_training_log

STYLE = FigureStyle(dpi=60)


def log_of(stages, values):
    """A log with so many rows of each stage."""
    names = [name for name, count in stages for _ in range(count)]
    starts = np.cumsum([0, *(count for _, count in stages[:-1])])
    values = {k: np.broadcast_to(np.array(v, dtype=float), len(names)) for k, v in values.items()}
    steps = 1 + 10 * np.arange(len(names))
    return TrainingLog("x", steps, tuple(names), tuple(map(int, starts)), values)


def two():
    grow = np.linspace(1, 4, 30)
    aux = np.where(np.arange(30) < 20, np.nan, 0.5)
    both = {"grad_norm_id": grow, "grad_norm_aux": aux, "ce": 1 / grow}
    return {
        "energy": log_of([("ce", 20), ("energy", 10)], both),
        "greg+": log_of([("ce", 20), ("greg+", 10)], {**both, "grad_loss": aux}),
    }


def figure(logs, style=STYLE):
    return drawn(partial(draw_training, logs, tuple(logs)), style)


def test_the_constant_over_all_inputs_has_a_panel_where_it_was_measured():
    logs = two()
    logs["greg+"].values["lipschitz_estimate"] = np.geomspace(5e4, 20.0, 30)
    with figure(logs, replace(STYLE, width=DOUBLE_COLUMN)) as drawing:
        titles = [a.get_title() for a in drawing.axes]
        assert titles == ["ID batches", "auxiliary batches", "all inputs"]
        assert drawing.axes[2].get_yscale() == "log"
        assert drawing.axes[0].get_yscale() == "linear"
        labels = [a.get_ylabel() for a in drawing.axes]
        assert labels[0] != labels[2] != ""


def test_running_median_is_the_median_of_a_window():
    values = np.array([5.0, 1.0, np.nan, 100.0, 2.0, 3.0])
    expected = [np.nanmedian(values[max(0, k - 1) : k + 2]) for k in range(6)]
    np.testing.assert_array_equal(running_median(values, 3), expected)
    np.testing.assert_array_equal(running_median(values, 2), expected)  # an even one, made odd
    np.testing.assert_array_equal(running_median(values, 1), values)


def test_panels_hold_points_lines_and_stages():
    logs = two()
    with figure(logs) as drawing:
        assert [a.get_title() for a in drawing.axes] == ["ID batches", "auxiliary batches"]
        first = drawing.axes[0]
        points = [x for x in first.lines if x.get_marker() == "."]
        assert len(points) == 2
        np.testing.assert_array_equal(points[0].get_xdata(), logs["energy"].steps)
        np.testing.assert_array_equal(points[0].get_ydata(), logs["energy"].column("grad_norm_id"))
        lines = [x for x in first.lines if x.get_marker() == "None" and len(x.get_xdata()) > 2]
        assert [len(x.get_xdata()) for x in lines] == [20, 10, 20, 10]  # no line spans two stages
        assert len({(x.get_color(), x.get_linestyle()) for x in lines}) == 2
        marks = [x for x in first.lines if len(x.get_xdata()) == 2]
        assert [x.get_xdata()[0] for x in marks] == [(191 + 201) / 2]
        assert [t.get_text() for t in first.texts] == ["ce", "energy | greg+"]
        assert [t.get_text() for t in drawing.legends[0].get_texts()] == ["energy", "greg+"]
        assert first.get_yscale() == "linear"
        assert first.get_ylim() == drawing.axes[1].get_ylim()


@pytest.mark.parametrize("width", [3.25, DOUBLE_COLUMN])
def test_type_lies_inside_and_can_be_read(made, width):
    many = [(f"stage-{k} $x$", 3) for k in range(12)]
    values = {"grad_norm_id": 2.0, "grad_norm_aux": np.nan, "lipschitz_estimate": 2e4}
    logs = {"$a_" + "long " * 9: log_of(many, values), "模型": log_of([("ce", 1)], values)}
    logs["b"] = log_of([("ce", 5)], {"grad_norm_id": np.inf, "grad_norm_aux": -1.0})
    with figure(logs, FigureStyle(width=width, dpi=60)) as drawing:
        made.assert_readable(drawing)
        for axes in drawing.axes:
            made.assert_apart(axes.texts)
        first = drawing.axes[0]
        assert drawing.legends[0].get_window_extent().y0 >= first.title.get_window_extent().y1 - 1


@pytest.fixture
def verified(made, tmp_path, one_figure):
    """A verification beside its runs: one regularised, one not."""
    frames = made.realistic(20)
    summary = made.summary_of(frames, baseline="energy")
    summary["provenance"]["runs"] = {}
    for name in ("energy", "greg+"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        manifest = sealed({"seed": 0, "name": name})
        summary["provenance"]["runs"][name] = manifest
        (folder / "manifest.json").write_text(json.dumps(manifest))
        rows = [
            {"step": k, "stage": name, "epoch": k, "grad_norm_id": 1.0 / k, "grad_norm_aux": 1.0}
            for k in range(1, 9)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return made.write(tmp_path / "v", frames, summary)


def test_a_report_finds_the_runs_beside_it(verified):
    files = write_report(verified, style=STYLE)
    assert list(files.figures)[-1] == "training_gradient"
    assert files.notes == ()
    assert sorted(files) == sorted(files.folder.iterdir())


def test_a_log_that_was_found_but_is_damaged_is_left_out_and_noted(verified):
    log = verified.parent / "runs" / "energy" / "metrics.jsonl"
    log.write_text("oops\n" + log.read_text())
    files = write_report(verified, style=STYLE)
    assert "training_gradient" in files.figures
    (note,) = files.notes
    assert "energy" in note
    assert "line 1" in note
    with pytest.raises(RunError, match="line 1"):
        write_report(verified, style=STYLE, runs=[log.parent])


def test_runs_that_measured_no_gradient_have_no_figure(verified):
    for folder in (verified.parent / "runs").iterdir():
        (folder / "metrics.jsonl").write_text('{"step": 1, "stage": "ce", "epoch": 1, "ce": 2}\n')
        read_training_log(folder)
    assert "training_gradient" not in write_report(verified, style=STYLE).figures


def test_named_runs_must_be_those_verified(verified, tmp_path):
    runs = verified.parent / "runs"
    (tmp_path / "far").mkdir()
    moved = (runs / "greg+").rename(tmp_path / "far" / "moved")
    files = write_report(verified, style=STYLE, runs=[moved])
    assert "training_gradient" in files.figures
    (moved / "manifest.json").write_text("{}")
    for path in (moved, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=path.name):
            write_report(verified, verified / "out", style=STYLE, runs=[runs / "energy", path])
    assert not (verified / "out").exists()
