"""Everything runs where the model is: shown on a device that is not there, and on CUDA if it is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pretend_device import DEVICE, NamesItsDevice, pretend_device
from tiny_runs import SETTINGS, experiment
from torch import Tensor, nn
from typer.testing import CliRunner

import greg_cert.verify.run.runs
import greg_cert.verify.run.single_image
from greg_cert.cli import app
from greg_cert.config import VerifyConfig, parse_config
from greg_cert.data import load_data, splits_from_tensors
from greg_cert.detectors import DETECTORS
from greg_cert.devices import device_title, find_device
from greg_cert.errors import ConfigError, UsageError
from greg_cert.evaluation import Evaluator
from greg_cert.evaluation.decision import Decision
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit
from greg_cert.verify import (
    attack_radius,
    certifier,
    certify,
    gradient_norm,
    lipschitz_bound,
    score_bound,
    score_bounds,
)
from greg_cert.verify.attack import audit
from greg_cert.verify.attack.pgd import smallest_attack
from greg_cert.verify.attack.plan import AttackPlan, AttackResult
from greg_cert.verify.bounds import relax_smooth
from greg_cert.verify.bounds.coupled.engine import CoupledEngine
from greg_cert.verify.certificates import Certificates
from greg_cert.verify.graph.ops import sums_of_products
from greg_cert.verify.lipschitz.global_radius import global_lipschitz_radius
from greg_cert.verify.operators import operator_norms
from greg_cert.verify.options import read_options
from greg_cert.verify.radius import chord
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.radius.sampled.clever import CleverOptions
from greg_cert.verify.radius.sampled.smoothing import SmoothingOptions
from greg_cert.verify.run import method_trials, run_certifier
from greg_cert.verify.run.diagnose import diagnose
from greg_cert.verify.run.run_certifier import HarderAttack
from greg_cert.verify.run.runs import verify_runs
from greg_cert.verify.run.single_image import verdicts_on
from greg_cert.verify.scorer import ScoreFunction

SHORT: dict[str, Any] = {
    "rounds": 1, "mirror_steps": 1, "cuts": 1, "cut_rounds": 1, "splits": 1, "split_rounds": 1,
    "attack_steps": 2, "attack_restarts": 1, "attack_polish": 1, "lipschitz_integrated": False,
    "coupled": CoupledEffort(1, 1), "clever": CleverOptions(batches=10, batch_size=4),
    "smoothing": SmoothingOptions(n0=4, n=20),
}  # fmt: skip


class Mixed(nn.Module):
    """A convolution, paths that are added and joined, a constant, pools, a smooth layer."""

    def __init__(self, smooth: bool) -> None:
        super().__init__()
        self.bend = nn.GELU() if smooth else nn.ReLU()
        self.first, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.second, self.pool = nn.Conv2d(2, 2, 1), nn.AvgPool2d(2)
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(self.first(2 * x - 0.5)))
        z = z + nn.functional.leaky_relu(self.second(z), 0.1)
        z = torch.cat([self.pool(z), self.pool(1 - z)], 1).flatten(1)
        out: Tensor = self.head(self.bend(self.hidden(z)))
        return out


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is where things are computed: a step of each kind is enough."""
    monkeypatch.setattr(certifier, "STEPS", 2)
    monkeypatch.setattr(certifier, "RESTARTS", 2)
    monkeypatch.setattr(chord, "_STEPS", 3)
    monkeypatch.setattr(score_bounds, "CoupledEngine", lambda graph: CoupledEngine(graph, steps=1))
    monkeypatch.setattr(relax_smooth, "_TOUCH_STEPS", 1)
    monkeypatch.setattr(relax_smooth, "_PEAK_STEPS", 2)
    monkeypatch.setattr(greg_cert.verify.run.runs, "HarderAttack", lambda: HarderAttack(2, 2))
    monkeypatch.setattr(method_trials, "_COUNT", 1)
    for module in (method_trials, run_certifier):
        monkeypatch.setattr(
            module, "read_options", lambda *names, **o: read_options(*names, **{**o, **SHORT})
        )
    monkeypatch.setattr(
        greg_cert.verify.run.single_image,
        "certify",
        lambda *given, **o: certify(*given, **{**o, **SHORT}),
    )
    for module in (audit, greg_cert.verify.run.single_image):
        monkeypatch.setattr(module, "smallest_attack", hasty_attack)


def hasty_attack(
    score: ScoreFunction, x: Tensor, radius: float, plan: AttackPlan, names: Tensor
) -> AttackResult:
    hasty = replace(plan, steps=2, restarts=2, polish=1, rounds=1)
    return smallest_attack(score, x, radius, hasty, names)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    config = experiment("one", 0.1)
    return fit(config, load_data(config.data), tmp_path_factory.mktemp("run"))


class Forgetful(dict[bytes, float]):
    """Keeps the norm of a layer no longer than until it is read."""

    def __contains__(self, key: object) -> bool:
        return False


@pytest.fixture(
    params=[
        "pretended",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ]
)
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[torch.device]:
    """A device that is not the CPU, where norms are found anew."""
    monkeypatch.setattr(operator_norms, "_found", Forgetful())
    if request.param == "cuda":
        yield torch.device("cuda", 0)
        return
    with pretend_device() as there, NamesItsDevice("greg_cert.verify"):
        yield there


def problem(smooth: bool = True) -> tuple[nn.Module, Tensor, float]:
    """A model on the CPU, samples, and a threshold that accepts some of them."""
    torch.manual_seed(0)
    model, x = Mixed(smooth).eval().requires_grad_(False), torch.rand(3, 1, 2, 2)
    return model, x, float(-model(x).logsumexp(1).sort().values[1])


def same(found: Any, expected: Any, device: torch.device) -> None:
    """To the bit where values are computed on the CPU all the same."""
    exact = device == DEVICE
    if isinstance(found, Tensor):
        slack = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(found.cpu(), expected, **slack, equal_nan=True)
    else:
        pd.testing.assert_frame_equal(found, expected, check_exact=exact, rtol=1e-3)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (
            "crown,crown-ibp,alpha-crown,branch,sdp-crown,clever,smoothing",
            {"correct": True, "lipschitz": False},
        ),
        ("crown", {"norm": math.inf, "side": "ood"}),
        ("lipschitz,smoothing", {"side": "ood", "lipschitz_form": "spectral"}),
        ("crown-ibp", {"score": "max_softmax", "engine": "auto-lirpa"}),
    ],
)
def test_certificates_are_computed_where_the_model_is(
    device: torch.device, method: str, options: dict[str, Any]
) -> None:
    if device == DEVICE and "engine" in options:
        pytest.skip("auto-LiRPA traces by torch.jit, which cannot be shown a pretended device")
    model, x, gamma = problem(smooth="engine" not in options)
    options = {**SHORT, **options}
    labels = model(x).argmax(1) if options.pop("correct", False) else None
    if options.get("score") == "max_softmax":
        gamma = float(-model(x).softmax(1).amax(1).sort().values[1])

    def run(model: nn.Module, x: Tensor) -> Certificates:
        return certify(model, x, gamma, max_radius=0.5, method=method, labels=labels, **options)

    expected = run(model, x)
    model = model.to(device)
    found = run(model, x)  # from wherever the samples are
    tensors = [v for v in (*vars(found).values(), *found.other.values()) if isinstance(v, Tensor)]
    assert len(tensors) >= 8
    assert all(v.device == device for v in tensors)
    same(found.to_frame(), expected.to_frame(), device)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x, gamma: attack_radius(
            model, x[:1], gamma, max_radius=0.5, steps=3, rounds=3
        ),
        lambda model, x, gamma: gradient_norm(model, x),
        lambda model, x, gamma: lipschitz_bound(model, x, [0.1, 0.3]),
        lambda model, x, gamma: score_bound(model, x, 0.1),
        lambda model, x, gamma: score_bound(model, x[:1], 0.1, method="sdp-crown"),
        lambda model, x, gamma: score_bound(model, x, 0.1, score="max_softmax"),
        lambda model, x, gamma: global_lipschitz_radius(model, x, gamma),
    ],
)
def test_other_bounds_and_estimates_are_too(
    device: torch.device, call: Callable[[nn.Module, Tensor, float], Tensor]
) -> None:
    model, x, gamma = problem()
    expected = call(model, x, gamma)
    found = call(model.to(device), x, gamma)
    assert found.device == device
    same(found, expected, device)


def test_single_images_and_the_look_at_a_model_are_too(device: torch.device) -> None:
    model, x, gamma = problem()
    settings = VerifyConfig(method="crown-ibp", max_radius=0.2, cuts=0)
    decision = Decision("energy", 0.95, gamma, 3, 3, None)
    expected = verdicts_on(model, x[:1], decision, settings)
    norms = diagnose(model, (1, 2, 2)).layers
    model = model.to(device)
    for one, other in zip(verdicts_on(model, x[:1], decision, settings), expected, strict=True):
        assert one.radius_certified == pytest.approx(other.radius_certified, rel=1e-4)
        assert one.radius_attack == pytest.approx(other.radius_attack, rel=1e-2)
        assert (one.accepted, one.label) == (other.accepted, other.label)
        assert one.attacked is None or one.attacked.device.type == "cpu"
    for layer, before in zip(diagnose(model, (1, 2, 2)).layers, norms, strict=True):
        assert layer.norm is None or layer.norm == pytest.approx(before.norm)


@pytest.mark.parametrize("detector", [None, *DETECTORS])
def test_detectors_are_fitted_and_scored_on_any_device(
    device: torch.device, detector: str | None
) -> None:
    model, _, _ = problem()
    x, y = torch.rand(60, 1, 2, 2), torch.arange(60) % 3
    data = splits_from_tensors(
        (x[:40], y[:40]), (x[40:], y[40:]), {"noise": torch.rand(9, 1, 2, 2)}
    )
    expected = Evaluator(model, data).eval_ood(detector)
    evaluator = Evaluator(model, data, device=device)
    assert next(evaluator.model.parameters()).device == device
    found = evaluator.eval_ood(detector)
    np.testing.assert_allclose(found.to_numpy(float), expected.to_numpy(float), atol=1e-9)


def test_a_whole_verification_is_too(
    run: RunFolder, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"samples": 2, "ood_samples": 1, "side": "both", "auc_radii": (0.1,), "batch": None}
    changed |= {"device": "cpu", "correct": True, "method": "crown-ibp"}
    settings = SETTINGS.model_copy(update=changed)
    expected = verify_runs([run], settings, tmp_path / "cpu", audit=True)
    with monkeypatch.context() as patched:
        patched.setattr(greg_cert.verify.run.runs, "find_device", lambda name: device)
        found = verify_runs([run], settings, tmp_path / "there", audit=True)
    for name in ("frame", "ood_frame", "ood_scores"):
        same(getattr(found.runs[0], name), getattr(expected.runs[0], name), device)
    assert {path.name for path in found.files} == {path.name for path in expected.files}
    # The rows of one device go on where those of another ended, and all of them are named.
    more = settings.model_copy(update={"samples": 3})
    verify_runs([run], more, tmp_path / "there")
    told = json.loads((tmp_path / "there" / "summary.json").read_text())
    assert sorted(told["provenance"]["device"].split(", ")) == sorted(["cpu", device_title(device)])


def test_the_pretended_device_refuses_what_a_real_one_does() -> None:
    with pretend_device() as there:
        x = torch.ones(2, 3, device=there)
        assert (x.device, x.cpu().device.type) == (DEVICE, "cpu")
        assert (2 * x + torch.tensor(1.0)).sum().item() == 18.0  # a scalar may come from the CPU
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="one device"):
            nn.Linear(3, 1)(x)
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, generator=torch.Generator(), device=there)
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()
        assert nn.Linear(3, 1).to(there).double()(x.double()).device == DEVICE
    with NamesItsDevice(__name__), pytest.raises(AssertionError, match="zeros without a device"):
        torch.zeros(3)


def test_a_device_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UsageError, match=rf"^--device: expected auto or cpu.*'{name}'$"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda", 0)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UsageError, match="--device: expected cuda:0 to cuda:1, but got 'cuda:2'"):
        find_device("cuda:2")
    for rank, index in (("0", 0), ("1", 1), ("2", 0)):  # processes that a launcher started
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert find_device("auto") == torch.device("cuda", index)
        assert find_device("cuda:1") == torch.device("cuda", 1)
    for name in ("tpu", "cuda:", "cuda:-1", "", "CPU"):
        with pytest.raises(UsageError, match="--device: expected auto, cpu, cuda or cuda:N"):
            find_device(name)
        with pytest.raises(ConfigError, match=r"verify\.device: expected auto, cpu, cuda"):
            parse_config({**experiment("one", 0.1).model_dump(), "verify": {"device": name}})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without")
def test_a_gpu_that_is_not_there_is_one_line_before_anything_is_done(
    run: RunFolder, tmp_path: Path
) -> None:
    for command in (["verify"], ["predict", str(tmp_path / "x.png")], ["evaluate"]):
        arguments = [command[0], str(run.path), *command[1:], "--device"]
        for name, said in (("cuda", "no CUDA device is available"), ("tpu", "cuda or cuda:N")):
            result = CliRunner().invoke(app, [*arguments, name])
            assert isinstance(result.exception, UsageError)
            assert str(result.exception).startswith("--device: expected")
            assert said in str(result.exception)
    assert not (run.path / "verify").exists()


@pytest.mark.parametrize(
    ("cuda", "kernel", "off"),
    [
        (True, (1, 3), True),
        (True, (5, 1), True),
        (True, (3, 3), False),
        (True, (1, 1), False),
        (False, (1, 3), False),
    ],
)
def test_kernels_that_cudnn_would_transform_in_float64_go_without_it(
    cuda: bool, kernel: tuple[int, int], off: bool
) -> None:
    x: Any = SimpleNamespace(is_cuda=cuda)
    with sums_of_products(x, torch.zeros(2, 1, *kernel)):
        assert torch.backends.cudnn.enabled is not off
