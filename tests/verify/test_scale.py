"""Runs that are stopped go on, other sides and shares, and the harder audit."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_runs import SETTINGS, start_ranks, start_verify

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import read_pictures
from greg_cert.data import load_data
from greg_cert.errors import RunError, UsageError
from greg_cert.report import load_results, summary_table
from greg_cert.report.tables.notes import notes_of
from greg_cert.runs.manifest import write_manifest
from greg_cert.runs.records import RunFolder
from greg_cert.verify import attack_radius
from greg_cert.verify.certificates import Certificates
from greg_cert.verify.certifier import Certifier
from greg_cert.verify.certify import PreparedCertify
from greg_cert.verify.run.job import Tick
from greg_cert.verify.run.run_certifier import RunCertifier
from greg_cert.verify.run.runs import verify_runs
from greg_cert.verify.run.selection import Selection


@pytest.fixture(scope="module")
def pair(hasty: None, slow_and_fast: list[RunFolder]) -> list[RunFolder]:
    return slow_and_fast


@pytest.fixture(scope="module")
def whole(pair: list[RunFolder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sides in one go."""
    out = tmp_path_factory.mktemp("whole")
    settings = SETTINGS.model_copy(update={"side": "both"})
    assert verify_runs(pair[1:], settings, out, baseline=pair[0]).complete
    return out


def tables(folder: Path) -> list[pd.DataFrame]:
    names = ("certificates.parquet", "ood_certificates.parquet")
    return [pd.read_parquet(folder / name) for name in names]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def same(one: Path, other: Path) -> None:
    for a, b in zip(tables(one), tables(other), strict=True):
        pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_a_killed_run_goes_on_and_no_finished_sample_is_done_twice(
    pair: list[RunFolder], whole: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = (pair[1].path, "--baseline", pair[0].path, "--out", out, "--side", "both")
    process = start_verify(tmp_path, *arguments, slow=0.3, log=log)
    give_up = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 12:
        assert process.is_alive(), process.said()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = log.read_text().splitlines()
    assert 0 < len(before) < 44
    assert not (out / "summary.json").exists()
    shards = list((out / "shards").glob("*.parquet"))
    shards[0].with_name(f".{shards[0].name}.dead00.tmp").write_bytes(b"PAR1 cut")
    # The kill may have come between the rename and the line in the log, so count the rows.
    kept = sum(len(pd.read_parquet(path)) for path in shards)
    process = start_verify(tmp_path, *arguments, log=log)
    assert process.wait() == 0, process.said()
    assert "incomplete" not in process.shown()
    done = Counter(log.read_text().splitlines())
    assert set(done.values()) == {1}
    assert sum(done.values()) - len(before) == 44 - kept  # 2 runs of 12 ID and 2·5 OOD samples
    same(out, whole)
    assert summary(out)["complete"]


def test_two_processes_write_what_one_does(
    pair: list[RunFolder], whole: Path, tmp_path: Path
) -> None:
    out, runs = tmp_path / "out", (pair[1].path, "--baseline", pair[0].path)
    processes = start_ranks(tmp_path, *runs, "--out", out, "--side", "both")
    assert [p.wait() for p in processes] == [0, 0], [p.said() for p in processes]
    assert "results:" in processes[0].shown()
    assert processes[1].shown() == ""
    same(out, whole)
    pictures = [read_pictures(folder / PICTURES) for folder in (out, whole)]
    assert [p.key for p in pictures[0]] == [p.key for p in pictures[1]]
    shares: Counter[str] = Counter()
    for path in (out / "shards").glob("*.parquet"):
        shares[path.stem.split("-")[-2]] += len(pd.read_parquet(path))
    assert set(shares) == {"r0", "r1"}
    assert sum(shares.values()) == 44  # none of them twice
    assert summary(out)["provenance"]["processes"] == 2


def test_the_death_of_a_process_is_told_and_its_finished_samples_are_kept(
    pair: list[RunFolder], tmp_path: Path
) -> None:
    processes = start_ranks(tmp_path, pair[0].path, "--out", tmp_path, mortal="1")
    codes = [p.wait() for p in processes]
    assert codes == [2, 9], [p.said() for p in processes]
    assert "another process stopped before its share was done" in processes[0].said()
    done = verify_runs(pair[:1], SETTINGS, tmp_path, time_budget=0)
    assert 0 < done.samples < done.wanted == 12


def test_limits_lead_to_the_same_rows_and_partial_results_can_be_reported(
    pair: list[RunFolder], whole: Path, tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", SETTINGS.model_copy(update={"side": "both"})
    ticks: list[Tick] = []

    def step(**options: Any) -> tuple[int, bool]:
        done = verify_runs(
            pair[1:], settings, out, baseline=pair[0], progress=ticks.append, **options
        )
        return done.samples, done.complete

    assert step(time_budget=0) == (0, False)
    assert not (out / "summary.json").exists()
    assert step(selection=Selection(limit=8)) == (8, False)
    found = summary(out)
    assert (found["complete"], found["samples"], found["wanted"]) == (False, 8, 12)
    assert found["ood_wanted"] == {"uniform": 5, "gaussian": 5}
    assert "gaussian" not in found["runs"]["fast"]["ood_side"]  # nothing of it is finished
    assert load_results(out).samples == 8
    assert "8 of 12 samples are verified so far, a random part" in notes_of(load_results(out))[0]
    assert summary_table(load_results(out)) is not None
    assert step(time_budget=0) == (8, False)
    assert step(selection=Selection(limit=8)) == (16, False)
    ticks.clear()
    assert step() == (22, True)
    assert ticks[0] == Tick("certify", "slow", 16, 22, ticks[0].found)
    assert ticks[-1][1:4] == ("fast", 22, 22)
    rows = pd.concat(tables(out))
    assert ticks[-1].found == sum((rows["run"] == "fast") & (rows["status"] == "certified"))
    same(out, whole)


def test_a_pilot_grows_to_what_all_at_once_gives_and_is_built_once(
    pair: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, at a round number of samples: they are the chunks of the larger run."""
    certify, build = RunCertifier.certify, Certifier.__init__
    chunks: list[list[int]] = []
    built: list[Any] = []

    def counted(self: RunCertifier, images: Any, indices: torch.Tensor) -> pd.DataFrame:
        chunks.append(indices.tolist())
        return certify(self, images, indices)

    def noted(self: Certifier, model: Any, graph: Any, *given: Any) -> None:
        built.extend([] if graph is None else [graph])  # those of pictures bound nothing
        build(self, model, graph, *given)

    monkeypatch.setattr(RunCertifier, "certify", counted)
    monkeypatch.setattr(Certifier, "__init__", noted)
    settings = SETTINGS.model_copy(update={"side": "both", "ood_samples": 1, "batch": None})

    def verify(folder: str, samples: int, sides: int = 2) -> list[int]:
        changed = settings.model_copy(update={"samples": samples})
        chunks.clear()
        built.clear()
        assert verify_runs(pair[1:], changed, tmp_path / folder).complete
        assert len(built) == sides  # however many chunks and sets
        return [i for chunk in chunks for i in chunk]

    pilot = verify("grown", 10)
    assert len(pilot) == 12
    rows = tables(tmp_path / "grown")[0]
    assert pilot[:10] != sorted(pilot[:10])  # a random order
    grown = verify("grown", 24, sides=1)
    assert len(grown) == 14
    assert not set(grown) & set(pilot[:10])
    assert len(verify("once", 24)) == 26
    assert [len(chunk) for chunk in chunks] == [10, 10, 4, 1, 1]
    same(tmp_path / "grown", tmp_path / "once")
    kept = tables(tmp_path / "grown")[0]
    kept = kept[kept["index"].isin(rows["index"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, rows, check_exact=True)


def test_rows_are_paired_where_one_run_is_ahead(pair: list[RunFolder], tmp_path: Path) -> None:
    verify_runs(pair[:1], SETTINGS, tmp_path)
    done = verify_runs(pair, SETTINGS, tmp_path, selection=Selection(limit=4))
    assert [len(run.frame) for run in done.runs] == [4, 4]
    assert done.runs[0].frame["index"].tolist() == done.runs[1].frame["index"].tolist()
    assert (done.samples, done.wanted, done.complete) == (4, 12, False)


def test_chosen_samples_have_the_rows_they_have_among_all(
    pair: list[RunFolder], whole: Path, tmp_path: Path
) -> None:
    everything = tables(whole)[0].query("run == 'fast'")
    label = int(everything["label"].mode()[0])
    settings = SETTINGS.model_copy(update={"samples": None})
    chosen = tuple(everything["index"][:5])
    done = verify_runs(
        pair[1:], settings, tmp_path, selection=Selection(indices=chosen, classes=(label,))
    )
    rows = everything[everything["index"].isin(chosen) & (everything["label"] == label)]
    found = done.runs[0].frame
    assert found["index"].tolist() == rows["index"].tolist()
    np.testing.assert_allclose(found["score"], rows["score"])
    np.testing.assert_allclose(found["radius_lipschitz"], rows["radius_lipschitz"], rtol=1e-6)


def test_the_ood_side_is_about_rejected_samples_that_stay_so(
    pair: list[RunFolder], whole: Path
) -> None:
    """Every certificate against an attack written for that side, with other seeds."""
    rows, found = tables(whole)[1], summary(whole)
    assert list(rows.columns)[:3] == ["run", "dataset", "method"]
    assert set(rows.columns) - {"dataset"} == set(tables(whole)[0].columns)
    assert (rows["label"] == -1).all()
    assert not rows["correct"].any()
    assert found["sides"] == ["id", "ood"]
    splits = load_data(pair[0].config.data)
    for name, run in zip(("slow", "fast"), pair, strict=True):
        gamma = found["runs"][name]["threshold"]
        for dataset, images in splits.ood.items():
            mine = rows[(rows["run"] == name) & (rows["dataset"] == dataset)]
            assert len(mine) == 5
            assert ((mine["status"] == "rejected") == (mine["score"] <= gamma)).all()
            told = found["runs"][name]["ood_side"][dataset]
            assert told["samples"] == 5
            assert sum(told["status"].values()) == 5
            assert told["violations"] == 0
            assert told["certified_radius"]["median"] == mine["radius_certified"].median()
            x = images.pixels(mine["index"].tolist())
            attacked = attack_radius(run.load_model(), x, gamma, side="ood", seed=77)
            proven = torch.tensor(mine["radius_certified"].to_numpy())
            assert ((attacked > proven) | (proven == 0)).all()
    assert (rows["status"] == "certified").sum() > 5


def test_one_side_alone_and_data_without_the_other(
    pair: list[RunFolder], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(update={"side": "ood", "ood_samples": 2})
    done = verify_runs(pair[:1], settings, tmp_path)
    assert [p.name for p in done.files] == [
        "summary.json",
        "ood_certificates.parquet",
        "scores.parquet",
        "pictures.npz",
    ]
    assert summary(tmp_path)["side"] == "ood"
    assert done.samples == 4
    with pytest.raises(UsageError, match="--side: expected id or both beside"):
        verify_runs(pair[:1], settings, tmp_path, selection=Selection(classes=(1,)))
    without = replace(load_data(pair[0].config.data), ood={})
    monkeypatch.setattr("greg_cert.verify.run.runs.common_data", lambda runs: without)
    with pytest.raises(UsageError, match="--side: expected id for data without OOD test sets"):
        verify_runs(pair[:1], settings, tmp_path)


def test_other_settings_in_the_same_folder_are_refused_until_a_restart(
    pair: list[RunFolder], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    few = SETTINGS.model_copy(update={"samples": 2})
    verify_runs(pair[:1], few, out)
    for change, said in (
        ({"max_radius": 0.5}, r"max_radius was 1\.0 and is 0\.5"),
        ({"norm": "inf"}, r'norm was "2" and is "inf"'),
        ({"method": "lipschitz"}, r'method was "crown-ibp" and is "lipschitz"'),
        ({"seed": 5}, r"seed was 4 and is 5"),
        ({"tpr": 0.9}, r"tpr was 0\.95 and is 0\.9"),
    ):
        with pytest.raises(RunError, match=rf"{said}; name another folder with --out"):
            verify_runs(pair[:1], few.model_copy(update=change), out)
    # The same name, other weights.
    other = RunFolder(tmp_path / "slow")
    other.path.mkdir()
    other.config_file.write_bytes(pair[0].config_file.read_bytes())
    other.weights_file.write_bytes(pair[1].weights_file.read_bytes())
    own = {"config.yaml": pair[0].manifest["digests"]["config.yaml"]}
    digests = {**pair[1].manifest["digests"], **own}
    write_manifest(other.path, {**pair[0].manifest, "digests": digests})
    with pytest.raises(RunError, match=r"runs\.slow\.weights was .* and is "):
        verify_runs([other], few, out)
    # What chooses rows may change, and --restart lifts the rest.
    more = few.model_copy(update={"samples": 3, "batch": 2, "memory": None})
    assert verify_runs(pair[:1], more, out).complete
    changed = few.model_copy(update={"max_radius": 0.05})
    (run,) = verify_runs(pair[:1], changed, out, restart=True).runs
    assert run.frame["radius_certified"].max() <= 0.05


def test_the_audit_finds_a_boastful_certificate_in_finished_results(
    pair: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, lies = PreparedCertify.__call__, list[int]()

    def boastful(self: PreparedCertify, *args: Any, **kwargs: Any) -> Certificates:
        found = honest(self, *args, **kwargs)
        values = {n: getattr(found, n) for n in Certificates.__dataclass_fields__}
        radius = found.radius_certified.clone()
        at = int(torch.where(found.radius_attack < 1, radius, 0.0).argmax())
        lies.append(int(kwargs["indices"][at]))  # one of them, just past the attack
        radius[at] = 1.02 * found.radius_attack[at]
        hidden = torch.full_like(radius, torch.inf)
        return Certificates(**{**values, "radius_certified": radius, "radius_attack": hidden})

    settings = SETTINGS.model_copy(update={"samples": 4})
    with monkeypatch.context() as patched:
        patched.setattr(PreparedCertify, "__call__", boastful)
        assert verify_runs(pair[1:], settings, tmp_path).violations == 0

    def never(*args: Any) -> pd.DataFrame:
        raise AssertionError("certified again")

    monkeypatch.setattr(RunCertifier, "certify", never)
    ticks: list[Tick] = []
    done = verify_runs(pair[1:], settings, tmp_path, audit=True, progress=ticks.append)
    (run,) = done.runs
    (lie,) = lies
    assert (done.violations, run.summary["violations"]) == (1, 1)
    assert done.worst is not None
    assert (done.worst["run"], done.worst["part"], done.worst["index"]) == ("fast", "id", lie)
    assert 0 < done.worst["crossed"] <= done.worst["radius"] * (1 + 1e-12)
    row = run.frame.set_index("index").loc[lie]
    assert (row["status"], row["radius_certified"]) == ("contradicted", 0.0)
    assert row["radius_refuted"] == done.worst["radius"]
    assert ticks[-1].step == "audit"
    assert ticks[-1].found == 1
    told = summary(tmp_path)["audit"]
    claims = int((run.frame["radius_certified"] > 0).sum()) + 1
    assert (told["attacks"], told["certificates"], told["violations"]) == (claims, claims, 1)
    assert (told["steps"], told["restarts"]) == (200, 12)
    # Found once, it stays in the results, whether or not it is looked for again.
    again = verify_runs(pair[1:], settings, tmp_path)
    assert again.violations == 1
    assert load_results(tmp_path).frame["violation"].sum() == 1
    process = start_verify(tmp_path, pair[1].path, "--out", tmp_path, "--samples", 4, "--audit")
    assert process.wait() == 1
    assert f"ID sample {lie} under run fast" in process.said()
    assert f"{claims} of {claims} certificates attacked again" in process.shown()


def test_an_audit_without_time_says_what_it_did_not_do(
    pair: list[RunFolder], tmp_path: Path
) -> None:
    few = SETTINGS.model_copy(update={"samples": 3})
    verify_runs(pair[:1], few, tmp_path)
    done = verify_runs(pair[:1], few, tmp_path, audit=True, time_budget=0)
    assert done.complete
    assert done.audit is not None
    assert done.audit["attacks"] == 0 < done.audit["certificates"]
