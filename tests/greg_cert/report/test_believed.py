"""Files of a verification are believed only as they were written, and where their numbers agree."""

import json
import shutil
import warnings
from functools import partial

import flips
import numpy as np
import pandas as pd
import pytest

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import SamplePicture, read_pictures, write_pictures
from greg_cert.errors import UncheckedFileWarning
from greg_cert.report import load_results

OOD = "ood_certificates"
TABLES = ("certificates", OOD, "ood_scores", "scores")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """Two runs with every file and field that the verifier writes."""
    frames = [made.with_methods(f) for f in made.realistic(30)]
    summary = made.summary_of(frames, baseline="energy") | {
        **{"methods": ["branch"], "samples": 30, "wanted": 30, "ood_wanted": {"mnist": 4}},
        "audit": {"attacks": 50, "certificates": 50, "violations": 0, "steps": 9, "restarts": 2},
    }
    folder = made.write(tmp_path_factory.mktemp("written") / "v", frames, summary)
    radii = [0.1, 0.2, 9, 0.3], [1.0] * 4, [2]
    ood = [made.ood_of(f["run"].iloc[0], "mnist", *radii) for f in frames]
    made.write_ood(folder, [made.with_methods(o) for o in ood], [made.scores_of(o) for o in ood])
    all_scores = partial(made.all_scores_of, sets=("mnist",), n=140)
    scores = [all_scores(f, ood=rows) for f, rows in zip(frames, ood, strict=True)]
    return made.write_test_scores(folder, scores)


@pytest.fixture
def folder(written, tmp_path):
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "v")


def everything(folder):
    """All that is believed: the summary and the rows of every table."""
    found = load_results(folder)
    return [found.summary.model_dump(), found.frame, found.ood, found.ood_scores, found.test_scores]


def same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1:], other[1:], strict=True):
        pd.testing.assert_frame_equal(a, b)


@pytest.mark.parametrize("name", ["summary.json", *(f"{name}.parquet" for name in TABLES)])
def test_a_flipped_bit_is_refused_or_changes_nothing(folder, name):
    whole = everything(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedFileWarning)  # the flip is in the word "digest"
        for found in flips.believed(folder / name, lambda: everything(folder), 12):
            same(found, whole)


def test_a_flipped_bit_in_the_pictures_is_refused_or_changes_nothing(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / PICTURES
    write_pictures(
        path,
        [
            SamplePicture(
                *("a", "", k, -13.7, -15.0, rng.random((1, 4, 4), np.float32)),
                *(rng.random((1, 4, 4), np.float32), 0.5, -13.6, 3),
            )
            for k in range(3)
        ],
    )
    whole = read_pictures(path)
    for found in flips.believed(path, lambda: read_pictures(path), 60):
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_equal(vars(one), vars(other))


RUN = "runs__energy__"
OF_A_RUN = {"id_accuracy": 2.0, "fpr95": 7.0, "auroc": -1.0, "threshold": NAN, "test_tpr": 1.5}
OF_A_RUN |= {"aupr_in": 95.0, "seconds": -1.0, "fpr95_ood_recall": -0.1, "ood__mnist__auroc": 9}
OF_A_RUN |= {"certified_radius__mean": -1.0, "gradient_radius__above_attack": 2.0}
OF_A_RUN |= {"status__certified": -1}


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        *((RUN + name, value, None) for name, value in OF_A_RUN.items()),
        (RUN + "threshold", INF, None),
        (RUN + "robust", {"0.1": {"gauc": 3.0}}, "robust.0.1.gauc"),
        (RUN + "status__lost", 0, "runs.energy.status"),
        *(("max_radius", -1.0, None), ("samples", -30, None)),
        *(("audit__attacks", 60, "audit"), ("audit__violations", 51, "audit")),
    ],
)
def test_numbers_out_of_range_are_refused_by_field_and_value(folder, made, path, value, field):
    made.put(folder, **{path: value})
    words = field or f"field {path.replace('__', '.')}"
    made.refused(folder, "summary.json: field", words, "expected", "but got")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda r: r.update(threshold=-13.6), "column threshold: expected -13.6"),
        (lambda r: r.update(method="ce"), "column method: expected ce"),
        (lambda r: r["certified_radius"].update(median=0.5), "certified_radius.median"),
        (lambda r: r["certified_radius"].update(mean=0.5), "certified_radius.mean"),
        (lambda r: r["certified_radius"].update(median=None), "certified_radius.median"),
        (lambda r: r["attack_radius"].update(median=0.01), "attack_radius.median"),
        (lambda r: r["lipschitz_radius"].update(median=0.01), "lipschitz_radius.median"),
        (lambda r: r.update(violations=1), "violations"),
        (lambda r: r.update(auroc=0.5), "auroc: expected"),
        (lambda r: r["ood"]["mnist"].update(auroc=0.5), "ood.mnist.auroc"),
        (lambda r: r.update(test_tpr=0.5), "test_tpr"),
        (lambda r: r["ood_side"]["mnist"]["certified_radius"].update(mean=1.0), "ood_side.mnist"),
        (lambda r: r["ood_side"]["mnist"]["attack_radius"].update(found=9), "attack_radius.found"),
        (lambda r: r["ood_side"].update(svhn=r["ood_side"].pop("mnist")), "ood_side.svhn"),
        (lambda r: r["ood_side"].clear(), "ood_side"),
        (lambda r: r.update(robust={"0.1": {"gauc": 0.5}}), "robust.0.1.gauc"),
    ],
)
def test_numbers_that_the_rows_do_not_give_are_refused(folder, made, change, field):
    made.edit(folder, "summary.json", lambda s: change(s["runs"]["greg+"]))
    made.refused(folder, field, "expected", "greg+")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"samples": 29}, "field samples: expected the 30"),
        ({"wanted": 29, "complete": False}, "field wanted: expected 30"),
        ({"ood_wanted": {}}, "field ood_wanted.mnist: expected 4, as rows, but got 0"),
    ],
)
def test_counts_of_what_was_wanted_are_those_of_the_rows(folder, made, change, field):
    made.edit(folder, "summary.json", lambda s: s.update(change))
    made.refused(folder, field)


def first(frame, status):
    return int(np.flatnonzero(frame["status"] == status)[0])


@pytest.mark.parametrize(
    ("status", "values", "words"),
    [
        ("certified", {"score": -13.0}, "status: expected rejected for a score beyond"),
        ("certified", {"status": "rejected"}, "radius_certified: expected 0 for status 'rejected'"),
        ("undecided", {"status": "rejected"}, "status: expected another than rejected"),
        ("certified", {"radius_certified": 0.0}, "radius_certified: expected more than 0"),
        ("certified", {"radius_certified": 1e-3}, "radius_certified: expected the largest of"),
        ("certified", {"radius_branch": 2.5}, "radius_branch: expected at most max_radius 2"),
        ("certified", {"radius_lipschitz": 2.5}, "radius_lipschitz: expected at most"),
        ("certified", {"radius_attack": 1e-3}, "violation: expected True"),
        ("certified", {"correct": False}, "correct: expected whether label and predicted"),
        ("certified", {"score": NAN}, "score: expected a finite number"),
        ("certified", {"threshold": INF}, "threshold: expected a finite number"),
        ("certified", {"threshold": -13.6}, "threshold: expected -13.7"),
        ("certified", {"gradient_norm": -1.0}, "gradient_norm: expected a length"),
        ("certified", {"index": -5}, "index: expected a number >= 0"),
        ("certified", {"label": 11, "predicted": 11}, "label: expected one for index"),
        ("rejected", {"radius_lipschitz": 0.1}, "radius_lipschitz: expected 0 for status rejected"),
        ("rejected", {"radius_gradient": 0.1}, "radius_gradient: expected 0 for status rejected"),
        ("rejected", {"radius_branch": 0.1}, "radius_branch: expected 0 for status rejected"),
        ("undecided", {"radius_branch": 0.1}, "radius_certified: expected the largest of"),
        ("undecided", {"status": "certified"}, "radius_certified: expected more than 0"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(folder, made, status, values, words):
    row = first(pd.read_parquet(folder / "certificates.parquet"), status)
    made.edit(folder, "certificates.parquet", made.at(row, **values))
    made.refused(folder, f"certificates.parquet: column {words}", "but got")


@pytest.mark.parametrize(
    ("name", "row", "values", "words"),
    [
        (OOD, "certified", {"score": -14.0}, "expected rejected for a score beyond"),
        (OOD, "certified", {"radius_certified": 2.5, "radius_branch": 2.5}, "at most max_radius 2"),
        (OOD, "rejected", {"radius_gradient": 0.1}, "radius_gradient: expected 0"),
        ("scores", 3, {"score": 5.0}, "test_tpr"),
        ("scores", 200, {"score": -20.0}, "ood.mnist.auroc"),
        ("ood_scores", 2, {"score": 5.0}, "column score: expected"),
    ],
)
def test_rows_of_the_other_tables_too(folder, made, name, row, values, words):
    file = f"{name}.parquet"
    row = first(pd.read_parquet(folder / file), row) if isinstance(row, str) else row
    made.edit(folder, file, made.at(row, **values))
    made.refused(folder, words)


def test_a_contradicted_row_has_no_radius_and_keeps_the_refuted_one(made, tmp_path):
    frame = made.frame_of("a", [0.1, 0.0, 0.3], [0.2, 0.05, 0.4])
    frame = frame.assign(
        status=["certified", "contradicted", "certified"],
        violation=[False, True, False],
        radius_refuted=[NAN, 0.2, NAN],
    )
    found = load_results(made.write(tmp_path / "v", [frame])).summary.runs["a"]
    assert found.status == {"certified": 2, "rejected": 0, "undecided": 0, "contradicted": 1}
    assert found.violations == 1
    for values, words in (
        ({"radius_certified": [0.1, 0.02, 0.3]}, "radius_certified: expected 0 for status"),
        ({"radius_lipschitz": [0.1, 0.02, 0.3]}, "radius_lipschitz: expected 0 for status"),
        ({"radius_refuted": [NAN, NAN, NAN]}, "radius_refuted: expected one beyond the attack"),
        ({"radius_refuted": [NAN, 0.04, NAN]}, "radius_refuted: expected one beyond the attack"),
        ({"radius_refuted": [0.1, 0.2, NAN]}, "radius_refuted: expected one beyond the attack"),
        ({"violation": [False] * 3}, "violation: expected True"),
        ({"radius_refuted": "far"}, "radius_refuted: expected numbers"),
    ):
        made.refused(made.write(tmp_path / "w", [frame.assign(**values)]), words)


@pytest.mark.parametrize("name", ["summary.json", *(f"{name}.parquet" for name in TABLES)])
def test_a_file_without_a_digest_is_read_with_one_line(folder, name):
    path = folder / name
    if name == "summary.json":
        content = json.loads(path.read_text())
        del content["digest"]
        path.write_text(json.dumps(content))
    else:
        pd.read_parquet(path).to_parquet(path)
    with pytest.warns(UncheckedFileWarning, match=rf"{name}.* earlier version") as told:
        results = [load_results(folder) for _ in range(2)]
    assert len(told) == 1
    assert results[0].samples == 30
