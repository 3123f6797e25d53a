"""Pictures of verified samples: the attack is the table's, and the file is small and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_runs import SETTINGS as USUAL

import greg_cert.verify.run.pictures as module
from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import SamplePicture, as_floats, read_pictures
from greg_cert.certificates.robust_samples import LISTED, OOD_LISTED, most_and_least_robust
from greg_cert.config import VerifyConfig
from greg_cert.data import load_data
from greg_cert.errors import RunError
from greg_cert.runs.records import RunFolder
from greg_cert.scores import energy
from greg_cert.verify.run.runs import verify_runs
from greg_cert.verify.run.selection import Selection

SETTINGS = USUAL.model_copy(update={"batch": 32})
MANY = SETTINGS.model_copy(
    update={"samples": 22, "side": "both", "ood_samples": 8, "auc_radii": ()}
)


@pytest.fixture(scope="module")
def trained(hasty: None, slow_and_fast: list[RunFolder]) -> list[RunFolder]:
    return slow_and_fast


def verify(trained: list[RunFolder], out: Path, settings: VerifyConfig, **more: Any) -> Path:
    verify_runs(trained[::-1], settings, out, **more)
    return out


def tables(out: Path) -> pd.DataFrame:
    """Rows of both sides, those of the ID side with an empty dataset."""
    frames = [pd.read_parquet(out / "certificates.parquet").assign(dataset="")]
    if (out / "ood_certificates.parquet").exists():
        frames.append(pd.read_parquet(out / "ood_certificates.parquet"))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def both(trained: list[RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return verify(trained, tmp_path_factory.mktemp("both"), MANY)


def test_the_samples_are_the_extremes_of_each_run_and_set(both: Path) -> None:
    pictures = read_pictures(both / PICTURES)
    expected = set()
    for (run, dataset), rows in tables(both).groupby(["run", "dataset"]):
        for part in most_and_least_robust(rows, OOD_LISTED if dataset else LISTED):
            expected |= {(run, dataset, index) for index in part["index"]}
    assert {p.key for p in pictures} == expected
    assert len(pictures) == len(expected) > 2 * LISTED + 4 * OOD_LISTED
    assert (both / PICTURES).stat().st_size < 60_000


def test_each_picture_is_the_attack_of_the_table_and_crosses(
    both: Path, trained: list[RunFolder]
) -> None:
    """Recomputed from the run folders without verify/: pixels, distance, score on the far side."""
    rows = tables(both).set_index(["run", "dataset", "index"])
    splits = load_data(trained[0].config.data)
    models = {run.config.title: run.load_model().double() for run in trained}
    for picture in read_pictures(both / PICTURES):
        row = rows.loc[picture.key]
        images = splits.ood[picture.dataset] if picture.dataset else splits.test
        clean = images.pixels([picture.index])[0].double()
        np.testing.assert_array_equal(as_floats(picture.clean), clean.float().numpy())
        assert picture.radius == pytest.approx(row["radius_attack"], rel=1e-9)
        if picture.difference is None:
            assert np.isinf(row["radius_attack"])
            continue
        delta = torch.from_numpy(picture.difference).double()
        assert float(delta.norm()) == pytest.approx(picture.radius, rel=1e-6)
        with torch.no_grad():
            logits = models[picture.run]((clean + delta)[None])
        assert float(energy(logits)[0]) == pytest.approx(picture.attacked_score, abs=1e-5)
        assert int(logits.argmax()) == picture.attacked_class
        crossed = picture.attacked_score > picture.threshold
        assert crossed == (picture.dataset == "")


@pytest.mark.parametrize(
    "changes", [{"norm": "inf", "max_radius": 0.3}, {"correct": True}, {"max_radius": 0.02}]
)
def test_other_norms_the_class_and_short_searches(
    trained: list[RunFolder], tmp_path: Path, changes: dict[str, Any]
) -> None:
    settings = SETTINGS.model_copy(update={**changes, "samples": 6})
    out = verify(trained[1:], tmp_path, settings)
    pictures = read_pictures(out / PICTURES)
    rows = tables(out).set_index(["run", "index"])
    assert pictures
    for picture in pictures:
        row = rows.loc[(picture.run, picture.index)]
        assert picture.radius == pytest.approx(row["radius_attack"], rel=1e-9)
        if picture.difference is not None:
            size = np.linalg.norm(picture.difference.ravel(), 2 if settings.norm == "2" else np.inf)
            assert size == pytest.approx(picture.radius, rel=1e-6)
            if settings.correct:
                rejected = picture.attacked_score > picture.threshold
                assert rejected or picture.attacked_class != row["label"]
    found = [p.difference is not None for p in pictures]
    assert not all(found) if settings.max_radius == 0.02 else any(found)


def test_what_fits_is_kept_and_only_the_rest_is_attacked(
    trained: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    honest = module.attacked_pictures

    def counted(*given: Any) -> list[SamplePicture]:
        found = honest(*given)
        made.extend(picture.index for picture in found)
        return found

    monkeypatch.setattr(module, "attacked_pictures", counted)
    verify(trained[1:], tmp_path, SETTINGS, selection=Selection(limit=8))
    first = len(read_pictures(tmp_path / PICTURES))
    assert len(made) == first >= 6
    verify(trained[1:], tmp_path, SETTINGS)
    whole = read_pictures(tmp_path / PICTURES)
    assert len(made) == len(whole) > first
    verify(trained[1:], tmp_path, SETTINGS)
    assert len(made) == len(whole)
    (tmp_path / PICTURES).write_bytes((tmp_path / PICTURES).read_bytes()[:-200])
    verify(trained[1:], tmp_path, SETTINGS)
    again = read_pictures(tmp_path / PICTURES)
    assert [p.key for p in again] == [p.key for p in whole]
    assert len(made) == 2 * len(whole)
    made.clear()
    other = SETTINGS.model_copy(update={"max_radius": 0.1})  # the scores fit, the radii do not
    verify(trained[1:], tmp_path, other, restart=True)
    rows = tables(tmp_path).set_index(["run", "index"])
    for picture in read_pictures(tmp_path / PICTURES):
        attack = rows.loc[(picture.run, picture.index)]["radius_attack"]
        assert picture.radius == pytest.approx(attack, rel=1e-9)
    assert made


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("clean", np.zeros((2, 8, 8), np.uint8), "array clean"),
        ("clean", np.full((2, 1, 8, 8), 1.5, np.float32), "array clean"),
        ("clean", np.full((2, 1, 8, 8), np.nan, np.float32), "array clean"),
        ("clean", np.zeros((2, 1, 8, 8)), "array clean"),
        ("difference", np.full((2, 1, 8, 8), np.inf, np.float32), "array difference"),
        ("difference", np.zeros((2, 1, 8, 9), np.float32), "array difference"),
        ("radius", np.array([0.1, 0.2]), "array radius"),
        ("radius", np.array([-0.1, np.inf]), "array radius"),
        ("index", np.array([1.0, 2.0]), "array index"),
        ("score", np.array([np.nan, 0.0]), "array score"),
        ("run", np.array([b"a", b"b"]), "array run"),
        ("run", np.array(["a", {}], dtype=object), "numpy arrays"),
        ("schema", np.array(2), "array schema"),
        ("found", None, "array found: missing"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, name: str, value: np.ndarray | None, words: str
) -> None:
    path = tmp_path / PICTURES
    module.write_pictures(path, two_pictures())
    with np.load(path) as archive:
        arrays = dict(archive)
    assert len(read_pictures(path)) == 2
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    np.savez(path, **arrays)
    with pytest.raises(RunError, match=words):
        read_pictures(path)


def test_a_file_too_large_or_no_archive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / PICTURES
    assert read_pictures(path) == []
    path.write_bytes(b"PK")
    with pytest.raises(RunError, match="truncated"):
        read_pictures(path)
    module.write_pictures(path, two_pictures())
    monkeypatch.setattr("greg_cert.certificates.picture_file.LARGEST", 1000)
    with pytest.raises(RunError, match="at most 1000 bytes"):
        read_pictures(path)


def two_pictures() -> list[SamplePicture]:
    """One with an attack and one without."""
    clean, delta = np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), -0.1, np.float32)
    return [
        SamplePicture("a", "", 3, -1.0, -2.0, clean, delta, 0.8, -0.9, 4),
        SamplePicture("a", "", 5, -1.0, -2.0, clean, None, float("inf"), float("nan"), -1),
    ]
