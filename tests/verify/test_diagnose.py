"""What `doctor` says of a model agrees with what the engines and `certify` then do."""

from __future__ import annotations

import math

import pytest
import torch
from problems import build, points
from torch import nn

from greg_cert.certify_methods import LINEAR, STATUS
from greg_cert.errors import EngineError, UnsupportedModelError
from greg_cert.verify import certify, global_lipschitz_bound
from greg_cert.verify.diagnose import diagnose
from greg_cert.verify.engine import make_engine
from greg_cert.verify.graph import Conv, Linear
from greg_cert.verify.lipschitz import operator_norm
from greg_cert.verify.trace import trace_model


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 2)).eval()


@pytest.mark.parametrize("name", ["mlp", "residual", "max_pool_2", "average_pools"])
def test_a_relu_network_is_taken_by_both_engines_and_all_methods(name: str) -> None:
    model, shape = build(name)
    found = diagnose(model, shape)
    assert found.provable
    assert found.refusal is None
    assert set(found.engines.values()) == {"ready"}
    assert set(found.methods) == set(STATUS)
    graph = trace_model(model, shape)
    assert [layer.shape for layer in found.layers] == [n.shape for n in graph.nodes]
    assert found.neurons == sum(math.prod(graph.nodes[i].shape) for i in graph.activations)
    assert found.seconds_a_ball > 0
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


def test_a_smooth_network_is_taken_by_the_native_engine_alone() -> None:
    model = network(nn.GELU())
    found = diagnose(model, (4,))
    assert found.provable
    assert found.engines["native"] == "ready"
    assert found.engines["auto-lirpa"].startswith("no: layer '1' (GELU)")
    (smooth,) = (layer for layer in found.layers if layer.kind == "smooth gelu")
    assert (smooth.engines["native"], smooth.engines["auto-lirpa"][:2]) == ("yes", "no")
    assert all(found.methods[m] == "native (proof)" for m in LINEAR)
    with pytest.raises(EngineError, match="GELU"):
        make_engine("auto-lirpa", trace_model(model, (4,)))


def test_a_layer_that_nobody_bounds_is_named_and_smoothing_remains() -> None:
    model = network(nn.Mish())
    found = diagnose(model, (4,))
    assert not found.provable
    assert found.refusal is not None
    assert "layer '1' (Mish)" in found.refusal
    for method in (*LINEAR, "lipschitz"):
        assert found.methods[method].startswith("no: ")
    assert found.methods["smoothing"] == "any model (probabilistic proof)"
    x = points((4,), 2)
    with pytest.raises(UnsupportedModelError, match="Mish"):
        certify(model, x, 5.0)
    result = certify(model, x, 5.0, method="smoothing", attack=False)
    assert result.status.tolist() == ["undecided"] * 2  # nothing is proven of this detector itself
    assert bool((result.radius_certified == 0).all())
    assert result.other["smoothing_decision"].tolist() == ["accepted"] * 2
