import json

import numpy as np
import pytest

from greg_cert.errors import RunError
from greg_cert.report import load_results
from greg_cert.report.trained_runs import likely_folders, match_runs
from greg_cert.runs.training_log import read_training_log


def row(step, stage="ce", epoch=1, **values):
    return {"step": step, "stage": stage, "epoch": epoch, "loss": 1.0 / step, **values}


def text_of(*rows):
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def put(tmp_path):
    def write(content):
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / "metrics.jsonl").write_bytes(data)
        return tmp_path

    return write


GOOD = (
    row(1, grad_norm_id=3.0),
    row(11, epoch=2),
    row(21, "greg", grad_norm_id=2, grad_norm_aux=0.5),
    row(31, "greg", 2, grad_norm_id=float("nan")),
    row(41, "greg", 1),  # a second stage of the same method
)


def test_rows_come_as_they_were_written(put):
    log = read_training_log(put(text_of(*GOOD)))
    np.testing.assert_array_equal(log.steps, [1, 11, 21, 31, 41])
    assert log.stages == ("ce", "ce", "greg", "greg", "greg")
    assert log.starts == (0, 2, 4)
    assert list(log.pieces()) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    nan = np.nan
    np.testing.assert_array_equal(log.column("grad_norm_id"), [3, nan, 2, nan, nan])
    np.testing.assert_array_equal(log.column("grad_norm_aux"), [nan, nan, 0.5, nan, nan])
    np.testing.assert_array_equal(log.column("other"), [nan] * 5)
    assert log.measured("grad_norm_aux")
    assert not log.measured("other")


def test_every_cut_of_the_last_line_is_survived(put):
    whole = text_of(*GOOD).encode()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole) + 1):
        log = read_training_log(put(whole[:cut]))
        assert len(log.steps) == (5 if cut >= len(whole) - 1 else 4), whole[last:cut]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"step": 11, "sta', ("JSON",)),
        ("", ("JSON",)),
        ("\0\0\0", ("JSON",)),
        ("[1]", ("object", "list")),
        ('{"stage": "ce", "epoch": 1}', ("field step", "missing")),
        (json.dumps(row(2, epoch=0)), ("field epoch", "0")),
        (json.dumps(row(2.5)), ("field step", "2.5")),
        (json.dumps(row(2, stage=3)), ("field stage", "3")),
        (json.dumps(row(2, ce="low")), ("field ce", "low")),
        (json.dumps(row(2, ce=True)), ("field ce", "True")),
        (json.dumps(row(2, ce=None)), ("field ce", "None")),
        (json.dumps(row(1)), ("field step", "more than 1")),
    ],
)
def test_damage_elsewhere_is_an_error_that_names_the_line(put, line, words):
    folder = put(text_of(row(1)) + line + "\n" + text_of(row(21)))
    with pytest.raises(RunError) as error:
        read_training_log(folder)
    message = str(error.value)
    assert "\n" not in message
    for word in ("metrics.jsonl: line 2", *words):
        assert word in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe{}\n", "line 1"),
        # A whole last line with wrong values is no truncation.
        (text_of(row(5)) + json.dumps(row(5)), "line 2"),
        ("", "row"),
        ('{"step": 1', "row"),
    ],
)
def test_no_text_no_truncation_and_no_row(put, content, said):
    with pytest.raises(RunError, match=said):
        read_training_log(put(content))


def test_no_file(tmp_path):
    with pytest.raises(RunError, match="missing"):
        read_training_log(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="missing"):
        read_training_log(tmp_path / "file")
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        read_training_log(tmp_path)


def test_runs_are_known_by_the_manifest_that_was_recorded(made, tmp_path):
    frames = made.realistic(10)
    summary = made.summary_of(frames)
    manifests = {"energy": {"seed": 0, "created": "x"}, "greg+": {"seed": 0, "created": "y"}}
    summary["provenance"]["runs"] = manifests
    results = load_results(made.write(tmp_path / "work" / "v", frames, summary))
    assert match_runs(results, likely_folders(results)) == {}
    for name, manifest in (*manifests.items(), ("later", {"seed": 0, "created": "z"})):
        folder = tmp_path / "work" / "runs" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "work" / "runs" / "none").mkdir()
    found = match_runs(results, likely_folders(results))
    runs = tmp_path / "work" / "runs"
    assert {k: p.resolve() for k, p in found.items()} == {k: runs / k for k in manifests}
    assert match_runs(results, [runs / "later", runs / "nowhere"]) == {}
    (runs / "energy" / "manifest.json").write_text('{"seed": 0, "created": "anew"}')
    assert list(match_runs(results, likely_folders(results))) == ["greg+"]


@pytest.mark.parametrize("recorded", [None, [], {"energy": 3}])
def test_a_verification_that_recorded_no_manifests_has_no_runs(made, tmp_path, recorded):
    frames = made.realistic(10)
    summary = made.summary_of(frames)
    summary["provenance"]["runs"] = recorded
    results = load_results(made.write(tmp_path / "v", frames, summary))
    assert match_runs(results, [tmp_path]) == {}
