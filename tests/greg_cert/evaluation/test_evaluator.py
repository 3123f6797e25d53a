"""Evaluating: figures against their definitions, scores kept on disk, runs over seeds, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from greg_cert.config import parse_config
from greg_cert.data import DataSplits
from greg_cert.data.groups import ood_groups
from greg_cert.data.tensors import splits_from_tensors
from greg_cert.detectors import build_detector
from greg_cert.errors import DataError, RunError, UsageError
from greg_cert.evaluation import Evaluator, evaluate_model
from greg_cert.evaluation.leaderboard import openood_table, results_table
from greg_cert.evaluation.seeds import Evaluated, evaluated, family_of, over_seeds
from greg_cert.evaluation.store import ScoreStore
from greg_cert.evaluation.write import record_of, write_evaluation
from greg_cert.metrics import calibration_error
from greg_cert.runs.records import RunFolder
from greg_cert.runs.subjects import open_subject


class Fixed(nn.Module):
    """Logits are the first K pixels times 10."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.head = nn.Linear(16, classes, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.eye(classes, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(x.flatten(1))
        return found


def images(n: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def made(near: bool = True) -> DataSplits:
    labels = torch.arange(60) % 3
    x = images(60, 1)
    x[torch.arange(60), 0, 0, labels] = 1.0
    names = {"close": images(20, 3), "off": images(30, 4, 0.2)}
    if not near:
        names = {"off": names["off"]}
    return splits_from_tensors((x[30:], labels[30:]), (x[:30], labels[:30]), names)


def test_calibration_error_by_hand() -> None:
    confidence = [0.95, 0.93, 0.55, 0.51, 1.0]
    correct = [True, False, True, True, True]
    # Bins of a fifteenth: {0.95, 1.0} (14), {0.93} (13), {0.55, 0.51}: 0.51 is in bin 7, 0.55 in 8.
    expected = (abs(2 - 1.95) + 0.93 + (1 - 0.51) + (1 - 0.55)) / 5
    assert calibration_error(confidence, correct) == pytest.approx(expected)
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([0.5] * 4, [True, False] * 2, bins=1) == 0
    for bad in ([1.1], [-0.1], [np.nan], []):
        with pytest.raises(UsageError):
            calibration_error(bad, [True] * len(bad))


def test_figures_agree_with_their_definitions() -> None:
    model, splits = Fixed(), made()
    found = Evaluator(model, splits, groups={"close": "near", "off": "far"})
    direct = evaluate_model(model, splits)
    table = found.eval_ood()
    assert list(table.index) == ["close", "off", "near OOD", "far OOD", "mean"]
    for name in ("close", "off"):
        assert table.loc[name].to_dict() == pytest.approx(direct.ood[name])
    assert table.loc["mean", "auroc"] == pytest.approx(direct.mean("auroc"))
    assert table.loc["near OOD"].equals(table.loc["close"])
    assert found.threshold() == direct.threshold
    confidence = model(splits.test.pixels().double().float()).softmax(1)
    right = confidence.argmax(1) == splits.test.labels
    assert found.eval_acc() == float(right.double().mean())
    error = calibration_error(confidence.amax(1).detach().double().clamp(max=1), right)
    assert found.predictions.calibration_error == pytest.approx(error, abs=1e-6)


def test_saved_scores_are_read_while_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = made()
    first = Evaluator(Fixed(), splits, scores=tmp_path)
    tables = [first.eval_ood(), first.eval_ood("knn:k=3")]
    accuracy = first.eval_acc()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr("greg_cert.evaluation.evaluator.logits_of", never)
        patched.setattr("greg_cert.evaluation.evaluator.build_detector", never)
        again = Evaluator(Fixed(), splits, scores=tmp_path)
        assert again.eval_ood().equals(tables[0])
        assert again.eval_ood("knn:k=3").equals(tables[1])
        assert again.eval_acc() == accuracy
        other = Fixed()
        with torch.no_grad():
            other.head.weight.mul_(2)
        for changed in (
            Evaluator(other, splits, scores=tmp_path),
            Evaluator(Fixed(), made(near=False), scores=tmp_path),
            Evaluator(Fixed(), splits, scores=False),
        ):
            with pytest.raises(AssertionError, match="computed again"):
                changed.eval_ood()
        with pytest.raises(AssertionError, match="computed again"):
            again.eval_ood("knn:k=4")


def test_what_needs_data_that_the_network_did_not_see_is_fitted_on_the_calibration_split() -> None:
    splits, model = made(), Fixed()
    evaluator = Evaluator(model, splits)  # one, which keeps the outputs of each split
    for name in ("tempscale", "klm", "adascale"):
        seen = splits.calibration if name == "tempscale" else splits.train
        expected = build_detector(name, model).fit(seen).scores(splits.test)
        assert np.array_equal(evaluator.detection(name).scores["test"], expected.numpy())


def test_store_tells_apart_names_that_look_alike(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    names = ["knn", "knn:k=1", "knn_k_1", "knn:k 1", "../knn"]
    for i, name in enumerate(names):
        store.write(name, {"i": i}, {"test": {"score": np.array([float(i)])}})
    assert len({store.path(n) for n in names}) == len(names)
    for i, name in enumerate(names):
        assert store.read(name, {"i": i})["test"]["score"].tolist() == [i]
        assert store.path(name).parent == tmp_path
        assert store.read(name, {"i": -1}) == {}


def test_scores_that_are_not_finite_are_refused() -> None:
    class Broken(Fixed):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) / 0.0

    with pytest.raises(RunError, match=r"finite scores of energy.*calibration"):
        Evaluator(Broken(), made()).eval_ood()


def config(**more: Any) -> Any:
    torchvision = {"source": "torchvision", "root": "d"}
    return parse_config(
        {
            "data": {
                "id": {**torchvision, "dataset": "CIFAR10", "split": "train"},
                "ood": [
                    {**torchvision, "dataset": "CIFAR100", "split": "test"},
                    {**torchvision, "dataset": "SVHN", "split": "test"},
                    {"source": "folder", "path": "x", "name": "Tiny-ImageNet"},
                    {"source": "folder", "path": "y", "name": "mine"},
                    {"source": "folder", "path": "z", "name": "places365", "group": "near"},
                ],
                **more,
            },
            "model": {"name": "mlp"},
            "train": {"stages": [{"method": "ce", "epochs": 1, "lr": 0.1}]},
        }
    )


def test_near_and_far_are_as_openood_has_them_unless_said() -> None:
    assert ood_groups(config().data) == {
        "cifar100": "near",
        "svhn": "far",
        "Tiny-ImageNet": "near",
        "mine": None,
        "places365": "near",
    }
    digits = config(id={"source": "digits"}).data
    assert ood_groups(digits)["svhn"] is None


def row(
    run: str, seed: int, scale: float, family: str = "f", data: DataSplits | None = None
) -> Evaluated:
    model = Fixed()
    with torch.no_grad():
        model.head.weight[:, :2] *= scale
    groups = {"close": "near", "off": "far"} if data is None else {}
    found = Evaluator(model, data or made(), groups=groups)
    return Evaluated(run, seed, family, "method", found.predictions, found.detection())


def test_mean_and_deviation_over_seeds() -> None:
    rows = [row("a", 0, 1.0), row("b", 1, 0.3), row("c", 2, 2.0), row("d", 0, 5.0, "other")]
    (mean,) = over_seeds(rows)
    assert mean.seeds == (0, 1, 2)
    for key in ("id_accuracy", "auroc", "near_fpr95", "ood/off/aupr_out"):
        values = [r.numbers()[key] for r in rows[:3]]
        assert mean.mean[key] == pytest.approx(np.mean(values))
        assert mean.std[key] == pytest.approx(np.std(values, ddof=1))


def test_no_deviation_over_runs_that_may_be_one_training() -> None:
    """Seeds that are unknown, or the same: a deviation over them would not be one over seeds."""
    one, other = row("a", 0, 1.0), row("b", 1, 0.3)
    for seeds in ((0, 0), (None, None), (0, None)):
        rows = [replace(r, seed=s) for r, s in zip((one, other), seeds, strict=True)]
        assert over_seeds(rows) == []
    assert over_seeds([one, other])[0].seeds == (0, 1)


def test_families_are_runs_that_differ_in_seed_and_name(tmp_path: Path) -> None:
    def family(**more: Any) -> str:
        raw = config().model_dump(mode="json") | more
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(raw))
        return family_of(RunFolder(folder))

    assert family() == family(seed=3) == family(name="x", seed=4)
    assert family() != family(model={"name": "cnn_small"})
    train = config().model_dump(mode="json")["train"]

    def begun(weights: str, **more: Any) -> str:
        return family(train=train | {"init": {"weights": weights, **more}})

    assert begun("a.pt") == begun("b.pt") != family()
    assert begun("a.pt") != begun("a.pt", allow_missing=["head.*"])


def test_tables_have_openoods_rows_and_columns(tmp_path: Path) -> None:
    rows = [row("a/b", 0, 1.0), row("c", 1, 0.3)]
    table = openood_table(rows[0])
    assert list(table.index) == ["close", "nearood", "off", "farood"]
    assert list(table.columns) == ["FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
    numbers = rows[0].numbers()
    assert table.loc["off", "FPR@95"] == round(100 * numbers["ood/off/fpr95_ood_recall"], 2)
    long = results_table(rows)
    assert len(long) == 8
    assert set(long["group"].dropna()) == {"near", "far"}
    means = over_seeds(rows)
    record = record_of(rows, means, command="greg-cert evaluate")
    files = write_evaluation(tmp_path / "out", rows, means, record)
    names = {str(p.relative_to(tmp_path / "out")) for p in files}
    assert {"evaluation.json", "results.csv", "table.md", "table.tex"} <= names
    assert {"openood/a_b-energy.csv", "openood/method-energy-mean.csv"} <= names
    again = pd.read_csv(tmp_path / "out/openood/a_b-energy.csv", index_col=0)
    pd.testing.assert_frame_equal(again, table, check_names=False)
    kept = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert kept["runs"][0]["ood"]["off"]["auroc"] == numbers["ood/off/auroc"]
    assert kept["means"][0]["seeds"] == [0, 1]
    assert " ± " in (tmp_path / "out/openood/method-energy-mean.csv").read_text()
    tex = (tmp_path / "out/table.tex").read_text()
    assert tex.count("{") == tex.count("}")
    assert "a/b" in tex
    assert r"$\pm$" in tex


def test_families_of_one_title_keep_their_own_tables(tmp_path: Path) -> None:
    """Titles are methods by default, so that two data sets give two families of one title."""
    rows = [row("a", 0, 1.0), row("b", 1, 0.3)]
    rows += [row(f"c{seed}", seed, 1.0, "g", made(near=False)) for seed in (0, 1)]
    rows += [replace(rows[0], run="x/y", family="h"), replace(rows[1], run="x_y", family="h")]
    means = over_seeds(rows)
    files = write_evaluation(tmp_path, rows, means, record_of(rows, means))
    assert len(set(files)) == len(files) == 4 + len(rows) + len(means)
    first, second = (
        pd.read_csv(tmp_path / f"openood/method-energy-mean{n}.csv", index_col=0)
        for n in ("", "-2")
    )
    assert list(first.index) == ["close", "nearood", "off", "farood"]
    assert list(second.index) == ["off", "mean"]


def test_sets_called_as_means_are(tmp_path: Path) -> None:
    x, y = images(60, 1), torch.arange(60) % 3
    train = (images(60, 2), y)
    names = ("mean", "near OOD", "nearood")
    ood = {n: images(20, 10 + i, 1 - 0.3 * i) for i, n in enumerate(names)}
    found = Evaluator(Fixed(), splits_from_tensors(train, (x, y), ood), groups={"mean": "near"})
    detection = found.detection()
    values = [detection.sets[n]["auroc"] for n in names]
    assert len(set(values)) == 3
    table = found.eval_ood()
    assert list(table.index) == [*names, "near OOD", "mean"]
    assert table["auroc"].tolist() == [*values, values[0], pytest.approx(np.mean(values))]
    one = Evaluated("r", 0, "f", "t", found.predictions, detection)
    table = openood_table(one)
    assert list(table.index) == ["mean", "nearood", "near OOD", "nearood", "mean"]
    assert table["AUROC"].tolist()[:4] == [
        round(100 * v, 2) for v in (values[0], values[0], values[1], values[2])
    ]
    assert results_table([one])["group"].fillna("").tolist() == ["near", "", "", "", ""]


def test_without_ood_sets_accuracy_is_written(tmp_path: Path) -> None:
    x, y = images(60, 1), torch.arange(60) % 3
    bare = splits_from_tensors((images(60, 2), y), (x, y), {})
    rows = [row("r", seed, 1.0, data=bare) for seed in (0, 1)]
    means = over_seeds(rows)
    files = write_evaluation(tmp_path, rows, means, record_of(rows, means))
    assert [p.name for p in files] == ["evaluation.json", "results.csv", "table.md", "table.tex"]
    long = pd.read_csv(tmp_path / "results.csv")
    assert long["ACC"].tolist() == [round(100 * rows[0].predictions.accuracy, 4)] * 2
    assert long["AUROC"].isna().all()
    with pytest.raises(UsageError, match="OOD"):
        Evaluator(Fixed(), bare).eval_ood()
    with pytest.raises(UsageError, match="data"):
        Evaluator(Fixed())


def test_rows_of_subjects(tmp_path: Path) -> None:
    described = {
        "name": "mine",
        "seed": 7,
        "data": {"id": {"source": "digits", "limit": 200}},
        "model": {"factory": "torch.nn:Linear", "arguments": {}},
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(described))
    one = evaluated(Evaluator(Fixed(), made()), open_subject(tmp_path / "m.yaml"), "mine", "msp")
    assert (one.seed, one.title, one.detection.detector) == (7, "mine", "msp")


def test_splits_from_tensors_are_checked() -> None:
    x, y = images(60, 1), torch.arange(60) % 3
    test, outliers, aside = (images(60, seed) for seed in (2, 3, 4))
    splits = splits_from_tensors((x, y), (test, y), {"o": outliers})
    assert len(splits.train) + len(splits.calibration) == 60
    assert splits.num_classes == 3
    kept = (aside[:9], y[:9])
    whole = splits_from_tensors((x, y), (test, y), {"o": outliers}, calibration=kept)
    assert (len(whole.train), len(whole.calibration)) == (60, 9)
    for bad in (
        lambda: splits_from_tensors((x * 2, y), (test, y), {}),
        lambda: splits_from_tensors((x, y.float()), (test, y), {}),
        lambda: splits_from_tensors((x, y), (test[..., :3], y), {}),
        lambda: splits_from_tensors((x, y), (test, y + 1), {}),
        lambda: splits_from_tensors((x[..., :3], y), (test[..., :3], y), {}),
        lambda: splits_from_tensors((x, y), (test, y), {"o": images(3, 1)[0]}),
    ):
        with pytest.raises(DataError):
            bad()


def test_no_image_is_in_two_sets_of_tensors() -> None:
    x, y = images(60, 1), torch.arange(60) % 3
    test, outliers, aside = (images(60, seed) for seed in (2, 3, 4))
    grey = (test[[5]] * 255).round().to(torch.uint8)  # the same to 256 levels, stored otherwise
    calls: list[tuple[str, Any]] = [
        (
            "^o: .* also in test, but got 1 of 1 ",
            lambda: splits_from_tensors((x, y), (test, y), {"o": grey}),
        ),
        (
            "^o: .* also in (train|calibration), but got",
            lambda: splits_from_tensors((x, y), (test, y), {"n": outliers, "o": x.flip(0)}),
        ),
        (
            "^calibration: .* also in test, but got 9 of 9 ",
            lambda: splits_from_tensors((x, y), (test, y), {}, calibration=(test[:9], y[:9])),
        ),
        (
            "^train: .* also in calibration, but got 9 of 60 of 'train' also in 'calibration'$",
            lambda: splits_from_tensors((x, y), (test, y), {}, calibration=(x[:9], y[:9])),
        ),
    ]
    for line, call in calls:
        with pytest.raises(DataError, match=line):
            call()
    splits_from_tensors((x, y), (test, y), {"a": outliers, "b": outliers}, calibration=(aside, y))
