"""What a first user may type and hand over: said in one line, or taken as it is meant."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from torch import nn

from greg_cert.cli.evaluate import by_set, evaluate, listed, specs, summary
from greg_cert.cli.predict import read_image, rounded_down, unique_stems
from greg_cert.config import VerifyConfig
from greg_cert.config.overrides import parse_override
from greg_cert.data.tensors import splits_from_tensors
from greg_cert.detectors import DETECTORS, logit_methods
from greg_cert.errors import ConfigError, RunError, UnsupportedModelError, UsageError
from greg_cert.evaluation import Evaluator
from greg_cert.evaluation.decision import Decision
from greg_cert.evaluation.seeds import Evaluated, SeedMean
from greg_cert.runs.own_model import made_by
from greg_cert.runs.subjects import open_subject, unique_names
from greg_cert.verify.run.single_image import verdicts_on

CODE = """
from torch import nn
print("imported")

def talks():
    print("made")
    import lazy_part
    return lazy_part.net()

def leaves():
    raise SystemExit(0)

def net(act="ReLU"):
    import torch
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), getattr(nn, act)(), nn.Linear(8, 10))

def squashed():
    return nn.Sequential(net(), nn.Tanh())  # its logits come from no linear layer
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules of the user's."""
    (tmp_path / "odd_nets.py").write_text(CODE)
    (tmp_path / "lazy_part.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])  # as of a console script
    for name in ("odd_nets", "lazy_part"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def describe(path: Path, factory: str = "odd_nets:net", **more: Any) -> Path:
    data = {"id": {"source": "digits", "limit": 300}, "ood": [{"source": "uniform", "n": 20}]}
    model = {"factory": factory, **more}
    path.write_text(yaml.safe_dump({"data": data, "model": model}))
    return path


def test_a_factory_may_print_and_import_late(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(made_by("odd_nets:talks", {}), nn.Module)
    said = capsys.readouterr()
    assert said.out == ""
    assert "imported\nmade\nimported" in said.err


def test_a_factory_that_leaves_is_an_error(folder: Path) -> None:
    with pytest.raises(RunError, match="SystemExit"):
        made_by("odd_nets:leaves", {})


def test_saved_scores_of_another_function_are_not_read(folder: Path) -> None:
    """The same tensors, and another activation: from the arguments, or in the module itself."""
    described = [
        describe(folder / "a.yaml"),
        describe(folder / "b.yaml", arguments={"act": "Tanh"}),
    ]
    tables = [Evaluator(p, scores=folder / "s").eval_ood() for p in described]
    assert tables[1].equals(Evaluator(described[1], scores=False).eval_ood())
    assert not tables[1].equals(tables[0])
    data = open_subject(described[0]).load_data()
    for path in described:
        model = open_subject(path).load_model()
        found = Evaluator(model, data, scores=folder / "t").eval_ood()
        assert found.equals(Evaluator(model, data).eval_ood())


def test_one_run_by_two_paths_is_one(folder: Path) -> None:
    path = describe(folder / "a.yaml")
    with pytest.raises(RunError, match="different"):
        unique_names([open_subject(path), open_subject(Path("a.yaml"))])


def test_detectors_as_they_are_typed() -> None:
    assert list(specs("knn:k=20, eps=1;ash,msp", ["x"])) == ["knn:k=20,eps=1", "ash", "msp"]
    assert specs(None, ["a"]) == {None: True}
    for text in ("a;all", "all,a"):  # the second is of `all` alone
        assert specs(text, ["a", "b"]) == {"a": True, "b": False}
    for nothing in ("", ",", " ; "):
        with pytest.raises(UsageError, match="--detector"):
            specs(nothing, ["a"])


def test_the_list_of_detectors_says_what_every_option_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit):
        listed(True)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert {"mdspp      Mahalanobis++", "k=10: neighbours, at most all training images"} <= {*lines}
    assert len(lines) == sum(2 + len(info.options) for info in DETECTORS.values())


def test_the_same_detector_is_evaluated_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = describe(folder / "a.yaml", "odd_nets:talks")
    evaluate([path], detector="msp,MSP,knn:k=2;knn:k=2.0", json=True, quiet=True)
    found = json.loads(capsys.readouterr().out)  # nothing else is there
    assert [r["detector"] for r in found["runs"]] == ["msp", "knn:k=2"]
    assert found["means"] == []


def test_of_all_detectors_those_that_fit_are_evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {name: DETECTORS[name] for name in ("msp", "openmax", "ash", "odin")}
    monkeypatch.setattr("greg_cert.detectors.catalogue.DETECTORS", chosen)
    monkeypatch.setattr("greg_cert.detectors.DETECTORS", chosen)
    monkeypatch.setattr(logit_methods, "openmax", lambda *_, **__: {}[0])  # any error at all
    path = describe(folder / "a.yaml", "odd_nets:squashed")
    evaluate([path], detector="all", json=True)
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [r["detector"] for r in found["runs"]] == ["msp", "odin"]
    (name,), (reasons,) = {r["run"] for r in found["runs"]}, found["left_out"].values()
    assert reasons["openmax"] == "KeyError: 0"
    assert "output of an nn.Linear" in reasons["ash"]
    lines = [line for line in said.err.splitlines() if f"{name}: " in line]
    assert re.fullmatch(rf"{name}: msp, \d+\.\d s \(1 of 4\)", lines[0])
    assert lines[1] == f"greg-cert: note: {name}: detector openmax is left out: KeyError: 0"
    assert lines[2] == f"greg-cert: note: {name}: detector ash is left out: {reasons['ash']}"
    assert re.fullmatch(rf"{name}: odin, \d+\.\d s \(4 of 4\)", lines[3])
    for named in ("all,ash", "ash", "msp;ash"):
        with pytest.raises(UnsupportedModelError, match=r"output of an nn\.Linear"):
            evaluate([path], detector=named, quiet=True)
    del chosen["msp"], chosen["odin"]
    with pytest.raises(UnsupportedModelError, match=r"output of an nn\.Linear"):
        evaluate([path], detector="all", quiet=True)  # where none fits


@pytest.mark.parametrize("bad", [0.0, 1.5, float("nan")])
def test_tpr_is_refused_before_anything_is_read(bad: float) -> None:
    with pytest.raises(UsageError, match="--tpr"):
        evaluate([Path("no-such-run")], tpr=bad)


def test_scores_that_cannot_be_kept_count_all_the_same(folder: Path) -> None:
    """In the run folder; a folder that the user named must take them."""
    subject = open_subject(describe(folder / "a.yaml"))
    blocked = folder / "blocked"
    blocked.touch()
    with pytest.raises(RunError, match="cannot write"):
        Evaluator(subject, scores=blocked).eval_ood()

    class Foldered:
        """A subject whose folder takes no scores."""

        path = folder / "run"

        def __getattr__(self, name: str) -> Any:
            return getattr(subject, name)

    Foldered.path.mkdir()
    (Foldered.path / "scores").touch()
    evaluator = Evaluator(Foldered())
    assert evaluator.unsaved is None
    assert evaluator.eval_ood().equals(Evaluator(subject).eval_ood())
    assert evaluator.unsaved is not None
    assert "cannot write" in evaluator.unsaved


def test_names_are_no_markup() -> None:
    from rich.console import Console

    x, y = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    train, test = (x[:20], y[:20]), (x[20:], y[20:])
    found = Evaluator(model, splits_from_tensors(train, test, {"[/o]": 1 - x}))
    row = Evaluated("[/b]", 0, "f", "[/t]", found.predictions, found.detection())
    mean = SeedMean("f", "[/t]", "energy", (0, 1), row.numbers(), row.numbers())
    console = Console(width=200)
    with console.capture() as caught:
        console.print(summary([row], [mean]), by_set(row))
    for name in ("[/b]", "[/t]", "[/o]"):
        assert name in caught.get()


def test_files_of_images_of_one_name_stay_apart() -> None:
    paths = [Path(p) for p in ("a.png", "b/a.png", "a-1.png", "A.jpg", "c.png")]
    names = unique_stems(paths)
    assert len({name.lower() for name in names}) == len(paths)
    assert names[2] == "a-1"
    assert names[4] == "c"


def test_a_proven_radius_is_never_shown_larger() -> None:
    assert rounded_down(0.123459) == "0.1234"
    assert rounded_down(1.99999e-7) == "1.999e-07"
    for radius in np.random.default_rng(0).uniform(0, 2, 200):
        shown = float(rounded_down(float(radius)))
        assert shown <= radius < shown * 1.001 + 1e-12


def test_an_image_is_cropped_as_the_data_were(tmp_path: Path) -> None:
    framed = np.full((8, 8), 255, np.uint8)
    framed[1:7, 1:7] = 0
    Image.fromarray(framed).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 1, 6).max() > 0.2
    assert read_image(tmp_path / "x.png", 1, 6, 0.75).max() == 0


def decision(threshold: float) -> Decision:
    return Decision("energy", 0.95, threshold, 10, 3, None)


def test_verdicts_need_a_proof_about_the_model_itself() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(2, 1, 2, 2)
    with pytest.raises(UsageError, match="another function"):
        verdicts_on(model, x, decision(0.0), VerifyConfig(method="smoothing"))


def test_verdicts_do_not_depend_on_the_batch(hasty: None) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.rand(5, 1, 2, 2, generator=generator)
    scores = -torch.logsumexp(model.double()(x.double()), 1)
    gamma = float(scores.detach().median())
    one, other = (
        verdicts_on(
            model, x, decision(gamma), VerifyConfig(method="crown", batch=batch, max_radius=0.5)
        )
        for batch in (1, None)
    )
    assert {v.accepted for v in one} == {True, False}
    for a, b in zip(one, other, strict=True):
        assert a.accepted == b.accepted
        # A search ends a little elsewhere where a product of matrices rounds by their size.
        assert a.radius_certified == pytest.approx(b.radius_certified, abs=1e-6)
        assert a.radius_attack == pytest.approx(b.radius_attack, abs=1e-6)


def test_an_experiment_is_not_yet_a_model(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("data: {id: {source: digits}}\nmodel: {name: mlp}\ntrain: {stages: []}\n")
    with pytest.raises(ConfigError, match="yet to be trained"):
        _ = open_subject(path).config


def test_digits_that_are_no_numbers() -> None:
    assert parse_override("model.arguments.²=1").path == ("model", "arguments", "²")
