from functools import reduce

import numpy as np
import pandas as pd
import pytest

from greg_cert.certificates.frame_file import COLUMNS
from greg_cert.report import load_results


@pytest.fixture
def folder(made, tmp_path):
    return made.write(tmp_path / "v", made.realistic(40), baseline="energy")


def test_rows_are_paired_whatever_the_order_of_the_file(folder, made):
    made.edit(folder, "certificates.parquet", lambda f: f.sample(frac=1, random_state=0))
    results = load_results(folder)
    assert results.runs == ("energy", "greg+")
    assert results.samples == 40
    for run in results.runs:
        assert results.of(run)["index"].tolist() == list(range(100, 140))


def test_keys_beyond_the_contract_are_optional(made, tmp_path):
    results = load_results(made.write(tmp_path / "v", made.realistic(20), minimal=True))
    assert results.summary.baseline is None
    assert results.summary.max_radius is None
    assert results.summary.provenance.command is None


@pytest.mark.parametrize("norm", ["inf", 2, 2.0, 1])
def test_norms(folder, norm, made):
    made.edit(folder, "summary.json", lambda s: s.update(norm=norm))
    assert load_results(folder).summary.norm == float(norm)


def test_no_folder_and_no_files(made, tmp_path, folder):
    made.refused(tmp_path / "none", "none")
    (folder / "certificates.parquet").unlink()
    made.refused(folder, "certificates.parquet", "missing")
    (folder / "summary.json").unlink()
    made.refused(folder, "summary.json", "missing")


@pytest.mark.parametrize("name", ["summary.json", "certificates.parquet"])
@pytest.mark.parametrize("keep", [0, 0.6])
def test_truncated_files(made, folder, name, keep):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    made.refused(folder, name, "truncated")


def test_summary_that_is_no_text_or_no_object(made, folder):
    (folder / "summary.json").write_bytes(b"\xff\xfe\x00")
    made.refused(folder, "summary.json")
    (folder / "summary.json").write_text("[1]")
    made.refused(folder, "summary.json", "object")


@pytest.mark.parametrize("schema", [2, "1", None, True])
def test_unknown_schema(folder, schema, made):
    made.edit(folder, "summary.json", lambda s: s.update(schema=schema))
    made.refused(folder, "summary.json", "schema", repr(schema))


def test_missing_keys(folder, made):
    names = (
        *("method", "id_accuracy", "threshold", "fpr95", "auroc", "samples", "violations"),
        *("seconds", "certified_radius", "attack_radius", "gradient_radius", "lipschitz_radius"),
    )
    whole = (folder / "summary.json").read_bytes()
    for key in ("schema", "norm", "tpr", "runs", *(f"runs.greg+.{name}" for name in names)):
        *inside, last = key.split(".")
        made.edit(folder, "summary.json", lambda s: reduce(dict.__getitem__, inside, s).pop(last))  # noqa: B023
        made.refused(folder, "summary.json", key, "missing")
        (folder / "summary.json").write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(norm=3), ("norm", "3")),
        (lambda s: s.update(norm=[2]), ("norm",)),
        (lambda s: s.update(side="up"), ("side", "up")),
        (lambda s: s.update(tpr=0), ("tpr",)),
        (lambda s: s.update(runs={}), ("runs",)),
        (lambda s: s.update(baseline="none"), ("baseline", "none")),
        (lambda s: s["runs"]["energy"].update(auroc="high"), ("runs.energy.auroc",)),
        (
            lambda s: s["runs"]["energy"].update(samples=41, status=None),
            ("runs.energy.samples", "expected 40 of certificates.parquet, but got 41"),
        ),
        (
            lambda s: s["runs"]["energy"]["status"].update(rejected=9),
            ("runs.energy.status", "expected 40 in all", "9"),
        ),
        (
            lambda s: s["runs"]["energy"]["status"].update(rejected=1, undecided=2),
            ("runs.energy.status.rejected", "but got 1"),
        ),
        (lambda s: s["runs"].update(more=s["runs"]["energy"]), ("more",)),
        (lambda s: s["runs"].pop("greg+"), ("greg+",)),
    ],
)
def test_wrong_values_in_the_summary(folder, change, words, made):
    made.edit(folder, "summary.json", change)
    made.refused(folder, *words)


def test_missing_columns(folder, made):
    frame = pd.read_parquet(folder / "certificates.parquet")
    for column in COLUMNS:
        made.write_table(folder / "certificates.parquet", [frame.drop(columns=column)])
        made.refused(folder, "certificates.parquet", column)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("radius_certified", -0.1),
        ("radius_certified", np.inf),
        ("radius_certified", np.nan),
        ("radius_lipschitz", np.nan),
        ("radius_attack", np.nan),
        ("radius_attack", -1.0),
        ("radius_gradient", np.nan),
        ("radius_certified", "far"),
        ("status", "fine"),
        ("status", None),
        ("run", None),
        ("index", 0.5),
        ("index", 100),
        ("violation", "no"),
    ],
)
def test_wrong_values_in_a_column(folder, column, value, made):
    one_type = not isinstance(value, str) or column == "status"
    change = made.at(3, **{column: value}) if one_type else lambda f: f.assign(**{column: value})
    made.edit(folder, "certificates.parquet", change)
    made.refused(folder, "certificates.parquet", column)


def test_no_rows_and_unpaired_runs(folder, made):
    made.edit(
        folder,
        "certificates.parquet",
        lambda f: f.assign(index=f["index"] + 1000 * (f["run"] == "greg+")),
    )
    made.refused(folder, "certificates.parquet", "index", "energy", "greg+")
    made.edit(folder, "certificates.parquet", lambda f: f.iloc[:0])
    made.refused(folder, "certificates.parquet", "row")
