"""Every bound of every engine holds at points of the ball, random ones and those climbed to."""

from __future__ import annotations

import math

import pytest
import torch
from problems import BIG, SMALL, build, exact_cases, points
from soundness import attack_relaxation
from torch import Tensor

from greg_cert.errors import EngineError, UsageError
from greg_cert.verify.bounds import crown, interval, linear_bound, native_engine
from greg_cert.verify.bounds.coupled.engine import CoupledEngine
from greg_cert.verify.bounds.engine import RegionEngine
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.ops import Activation, Graph, forward_all
from greg_cert.verify.graph.trace import trace_model

ENGINES = ("native", "auto-lirpa")
NORMS = (2.0, math.inf)
RADII = torch.tensor([0.02, 0.3, 2.0]).double()


def few(name: str, count: int = 3) -> tuple[Graph, Tensor]:
    model, shape = build(name)
    return trace_model(model, shape), points(shape, count, seed=11)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SMALL)
def test_bounds_hold(name: str, engine: str, norm: float) -> None:
    graph, x = few(name)
    scale = 1.0 if norm == 2.0 else 0.25
    # One radius a sample, from hardly any unstable neuron to nearly all.
    assert attack_relaxation(graph, engine, x, scale * RADII, norm) > 0
    if name in ("conv", "residual", "max_pool_2", "leaky", "max_min"):
        assert attack_relaxation(graph, engine, x, 0.25 * RADII, norm, "crown-ibp") > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BIG)
def test_bounds_hold_for_registry_models(name: str, engine: str) -> None:
    graph, x = few(name, 2)
    assert attack_relaxation(graph, engine, x, torch.tensor([0.05, 0.5]).double(), 2.0) > 0


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", sorted(exact_cases()))
def test_bounds_of_affine_networks_are_exact(case: str, norm: float, engine: str) -> None:
    exact = exact_cases()[case]
    x = exact.inputs
    graph = trace_model(exact.model, tuple(x.shape[1:]))
    radii = torch.linspace(0.1, 2.0, len(x), dtype=torch.float64)
    row = torch.eye(graph.num_classes, dtype=torch.float64)[:1].expand(len(x), 1, -1)
    relaxation = make_engine(engine, graph).relax(x, radii, norm)
    weight = exact.model[0].weight[0]  # type: ignore[index]
    dual = weight.norm() if norm == 2.0 else weight.abs().sum()
    value, slope = relaxation.linear(row)
    truth = forward_all(graph, x)[-1][:, :1]
    # The allowance for rounding is all that may lie between.
    assert bool((value <= truth).all())
    assert torch.allclose(value, truth, rtol=1e-10, atol=1e-11)
    assert torch.allclose(slope, dual.expand_as(slope), rtol=1e-12)
    lower = truth - radii.unsqueeze(1) * dual
    assert torch.allclose(relaxation.lower(row), lower, rtol=1e-10, atol=1e-10)


def test_relu_relaxation_by_hand() -> None:
    # On [-1, 3] the chord is (z + 1)·3/4 and the lower slope 1; on [-3, 1] it is 0.
    low = torch.tensor([-1.0, -3.0, 1.0, -2.0, 0.0], dtype=torch.float64)
    high = torch.tensor([3.0, 1.0, 2.0, -1.0, 0.0], dtype=torch.float64)
    slope_low, slope_high, intercept = crown.relax_activation(low, high, 0.0)
    assert slope_low.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert slope_high.tolist() == [0.75, 0.25, 1.0, 0.0, 1.0]
    assert intercept.tolist() == [0.75, 0.75, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("negative_slope", [0.0, 0.01, 0.5, 0.99, 1.0, -0.4, -1.0])
@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1.0, 1e20])
def test_relaxed_lines_enclose_the_activation(negative_slope: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = scale * torch.randn(2, 500, generator=generator, dtype=torch.float64)
    ends[0, :20] *= 1e-12  # very uneven intervals
    low, high = ends.amin(0), ends.amax(0)
    slope_low, slope_high, intercept = crown.relax_activation(low, high, negative_slope)
    for share in torch.linspace(0, 1, 21, dtype=torch.float64):
        z = low + share * (high - low)
        truth = torch.nn.functional.leaky_relu(z, negative_slope)
        slack = 1e-14 * torch.maximum(low.abs(), high.abs())
        assert bool((slope_low * z <= truth + slack).all())
        assert bool((slope_high * z + intercept >= truth - slack).all())


@pytest.mark.parametrize("name", ["mlp", "conv", "conv_dilated", "conv_batchnorm", "steps"])
def test_first_layer_is_exact_in_l2(name: str) -> None:
    # An affine function of the ball: its value at the centre ± r·‖its gradient‖, by autograd.
    graph, x = few(name)
    radii = torch.tensor([0.1, 0.1, 0.7]).double()
    first = graph.activations[0]
    source = graph.nodes[first].inputs[0]

    def preactivation(one: Tensor) -> Tensor:
        return forward_all(graph, one[None])[source].flatten()

    jacobian = torch.autograd.functional.jacobian(preactivation, x[0])
    spread = radii[:, None] * jacobian.flatten(1).norm(dim=1)
    centre = forward_all(graph, x)[source].flatten(1)
    truth = (centre - spread, centre + spread)
    unstable = (truth[0] < 0) & (truth[1] > 0)
    assert unstable.any()
    ours = make_engine("native", graph).relax(x, radii, 2.0).preactivations[first]
    theirs = make_engine("auto-lirpa", graph).relax(x, radii, 2.0).preactivations[first]
    for a, b, t, sign in zip(ours, theirs, truth, (-1, 1), strict=True):
        assert torch.allclose(a.flatten(1)[unstable], t[unstable], rtol=1e-9, atol=1e-9)
        # auto-LiRPA leaves padding out of account: equal inside, looser at the border.
        assert bool((sign * (b.flatten(1) - t) >= -1e-9).all())
        if name == "mlp":
            assert torch.allclose(b.flatten(1), t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("engine", ENGINES)
def test_larger_balls_never_have_tighter_preactivations(engine: str, norm: float) -> None:
    graph, x = few("conv")
    made = make_engine(engine, graph)
    small = made.relax(x, torch.full((3,), 0.1).double(), norm).preactivations
    first = graph.activations[0]
    large = made.relax(x, torch.full((3,), 0.2).double(), norm).preactivations
    # Where a sign is known already the native engine leaves the looser interval.
    unknown = (small[first][0] < 0) & (small[first][1] > 0)
    assert unknown.any()
    assert bool((large[first][0] <= small[first][0])[unknown].all())
    assert bool((large[first][1] >= small[first][1])[unknown].all())


@pytest.mark.parametrize("engine", ENGINES)
def test_samples_of_a_batch_do_not_mix(engine: str) -> None:
    graph, x = few("conv", 5)
    radii = torch.tensor([0.1, 0.4, 0.1, 0.2, 0.4]).double()
    made = make_engine(engine, graph)
    rows = torch.eye(4, dtype=torch.float64).expand(5, -1, -1)
    together = made.relax(x, radii, 2.0).lower(rows)
    for i in range(5):
        alone = made.relax(x[i : i + 1], radii[i : i + 1], 2.0).lower(rows[:1])
        # Tightening a neuron for one sample tightens it for all, hence no exact equality.
        assert torch.allclose(alone[0], together[i], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_lower_is_differentiable_in_its_rows(engine: str) -> None:
    graph, x = few("conv")
    relaxation = make_engine(engine, graph).relax(x, torch.full((3,), 0.2).double(), 2.0)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(3, 1, 4, generator=generator, dtype=torch.float64)
    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(relaxation.lower(leaf).sum(), leaf)
    step = 1e-6
    for k in range(4):
        move = torch.zeros_like(rows)
        move[..., k] = step
        difference = (relaxation.lower(rows + move) - relaxation.lower(rows - move)) / (2 * step)
        assert torch.allclose(difference.squeeze(1), gradient[:, 0, k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_relaxation(engine: str) -> None:
    graph, x = few("mlp")
    with pytest.raises(UsageError, match="'beta-crown'"):
        make_engine(engine, graph).relax(x, torch.ones(3).double(), 2.0, "beta-crown")


def test_alpha_crown_is_refused_where_it_would_not_optimise() -> None:
    graph, x = few("mlp")
    with pytest.raises(EngineError, match="engine 'native'"):
        make_engine("auto-lirpa", graph).relax(x, torch.ones(3).double(), 2.0, "alpha-crown")


def test_only_the_native_engine_bounds_parts_of_balls() -> None:
    graph, _ = few("mlp")
    assert isinstance(make_engine("native", graph), RegionEngine)
    assert not isinstance(make_engine("auto-lirpa", graph), RegionEngine)
    assert not isinstance(CoupledEngine(graph), RegionEngine)


# --- The check above can fail: each deliberately wrong bound is found -------------------------


def _flat_chord(low: Tensor, high: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    slope_low, slope_high, intercept = crown_relax(low, high, slope)
    return slope_low, 0.9 * slope_high, intercept


def _short_slopes(slope: Tensor, norm: float) -> Tensor:
    return 0.97 * dual_norm(slope, norm)


def _wrong_norm(slope: Tensor, norm: float) -> Tensor:
    return dual_norm(slope, 2.0)  # ℓ2 where ℓ1 is the dual


def _narrow_interval(op: object, operands: object) -> interval.Interval:
    low, high = forward_interval(op, operands)  # type: ignore[arg-type]
    if isinstance(op, Activation):
        return low, high
    centre, spread = (low + high) / 2, 0.5 * (high - low) / 2
    return centre - spread, centre + spread


crown_relax = crown.relax_activation
dual_norm = linear_bound.dual_norm
forward_interval = interval.forward_interval

SABOTAGES: list[tuple[str, object, str, object, float]] = [
    ("chord", crown, "relax_activation", _flat_chord, 2.0),
    ("slope norm", linear_bound, "dual_norm", _short_slopes, 2.0),
    ("dual norm", linear_bound, "dual_norm", _wrong_norm, math.inf),
    ("interval", native_engine, "forward_interval", _narrow_interval, math.inf),
]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s[0])
def test_a_wrong_bound_is_found(
    sabotage: tuple[str, object, str, object, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module, attribute, wrong, norm = sabotage
    graph, x = few("mlp")
    attack_relaxation(graph, "native", x, RADII, norm)
    monkeypatch.setattr(module, attribute, wrong)
    with pytest.raises(AssertionError, match="bound of"):
        attack_relaxation(graph, "native", x, RADII, norm)
