"""What `doctor` says of a model agrees with what the engines and `certify` then do."""

from __future__ import annotations

import math

import pytest
import torch
from problems import build, points
from torch import nn

from greg_cert.certificates.methods import PROOFS, STATUS
from greg_cert.errors import EngineError, UnsupportedModelError
from greg_cert.scores import score_of
from greg_cert.verify import certify, global_lipschitz_bound
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.ops import Conv, Linear
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import operator_norm
from greg_cert.verify.run import diagnose as module
from greg_cert.verify.run.diagnose import diagnose, diagnosed
from greg_cert.verify.run.method_trials import duration, made_up


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 2)).eval()


@pytest.mark.parametrize("name", ["mlp", "residual", "max_pool_2", "average_pools"])
def test_a_relu_network_is_taken_by_both_engines_and_all_methods(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "tried_methods", lambda *_: iter(()))
    model, shape = build(name)
    found = diagnose(model, shape)
    assert found.refusal is None
    assert set(found.engines.values()) == {"ready"}
    assert set(found.methods) == set(STATUS)
    graph = trace_model(model, shape)
    assert [layer.shape for layer in found.layers] == [n.shape for n in graph.nodes]
    assert found.neurons == sum(math.prod(graph.nodes[i].shape) for i in graph.activations)
    assert found.lipschitz == global_lipschitz_bound(model, shape)
    affine = [isinstance(n.op, (Conv, Linear)) for n in graph.nodes]
    assert [layer.norm is not None for layer in found.layers] == affine
    for layer, node in zip(found.layers, graph.nodes, strict=True):
        if isinstance(node.op, (Conv, Linear)):
            assert layer.norm == operator_norm(node.op)
            assert layer.norm_from_below == pytest.approx(layer.norm, rel=5e-3)
    assert found.methods["alpha-crown"] == "native (proof)"
    for method in ("crown", "crown-ibp", "lipschitz"):
        assert found.methods[method] == "native, auto-lirpa (proof)"


def test_methods_are_tried_and_reach_what_certify_proves() -> None:
    model, shape = network(nn.ReLU()).requires_grad_(False), (4,)
    first, *others = diagnosed(model, shape)
    assert len(first.layers) == len(trace_model(model, shape).nodes)  # before anything slow
    assert all(layer.norm is None for layer in first.layers)
    assert [piece.unfinished for piece in others] == [True] * (len(others) - 1) + [False]
    trials = {trial.method: trial for trial in others[-1].trials}
    assert list(trials)[1:] == ["crown-ibp", "sdp-crown", "crown", "alpha-crown", "branch"]
    samples = made_up(model, shape)
    for name in ("crown-ibp", "crown"):
        expected = certify(model, samples.x, samples.threshold, method=name, max_radius=2.0)
        assert trials[name].radius == pytest.approx(float(expected.radius_certified.median()))
        assert (trials[name].samples, trials[name].why) == (3, None)
    gap = samples.threshold - score_of("energy")(model.double()(samples.x))
    reach = float((gap / others[-1].lipschitz).clamp(max=2.0).median())
    assert trials["lipschitz (global)"].radius == pytest.approx(reach, rel=1e-6)


def test_what_does_not_fit_into_the_time_is_left_out_and_says_so() -> None:
    model, shape = build("residual")
    found = diagnose(model, shape, seconds=0.0)
    assert math.isnan(found.lipschitz)
    assert found.norms_left > 0
    assert len(found.trials) == 6
    for trial in found.trials:
        assert (trial.samples, math.isnan(trial.radius)) == (0, True)
        assert trial.seconds > 0
        assert trial.why is not None
        assert "about" in trial.why


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.5, "0.5 s"), (40.0, "40 s"), (300.0, "5 min"), (9000.0, "2 h"), (1e6, "12 days")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("layer", "change"),
    [
        (nn.LayerNorm([2, 4, 4]), "BatchNorm2d"),
        (nn.Hardswish(), "SiLU"),
        (nn.Identity(), ""),
    ],
)
def test_a_refusal_names_a_way_on(layer: nn.Module, change: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), layer, nn.Softsign(), nn.Flatten(), nn.Linear(32, 2))
    found = diagnose(model, (1, 4, 4))
    assert found.refusal is not None
    assert "A way on: " in found.refusal
    assert change in found.refusal
    assert "smoothing" in found.refusal


def test_a_smooth_network_is_taken_by_the_native_engine_alone() -> None:
    model = network(nn.GELU())
    found = diagnose(model, (4,), seconds=0.0)
    assert found.engines["native"] == "ready"
    assert found.engines["auto-lirpa"].startswith("no: layer '1' (GELU)")
    (smooth,) = (layer for layer in found.layers if layer.kind == "smooth gelu")
    assert (smooth.engines["native"], smooth.engines["auto-lirpa"][:2]) == ("yes", "no")
    assert all(found.methods[m] == "native (proof)" for m in PROOFS)
    with pytest.raises(EngineError, match="GELU"):
        make_engine("auto-lirpa", trace_model(model, (4,)))


def test_a_layer_that_nobody_bounds_is_named_and_smoothing_remains() -> None:
    model = network(nn.Mish())
    found = diagnose(model, (4,))
    assert found.refusal is not None
    assert "layer '1' (Mish)" in found.refusal
    for method in PROOFS[:-1]:
        assert found.methods[method].startswith("no: ")
    assert found.methods["smoothing"] == "any model (probabilistic proof)"
    x = points((4,), 2)
    with pytest.raises(UnsupportedModelError, match="Mish"):
        certify(model, x, 5.0)
    result = certify(model, x, 5.0, method="smoothing", attack=False)
    assert result.status.tolist() == ["undecided"] * 2  # nothing is proven of this detector itself
    assert bool((result.radius_certified == 0).all())
    assert result.other["smoothing_decision"].tolist() == ["accepted"] * 2
