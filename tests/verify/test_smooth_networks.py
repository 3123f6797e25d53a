"""Networks of smooth activations: the same checks as for ReLU networks, and who takes them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from problems import Function, energy_of, pairwise_settings, points
from smooth_networks import KINDS, LAYERS, NETWORKS, build_smooth
from soundness import attack_lipschitz, attack_relaxation
from torch import Tensor, nn

from greg_cert.errors import EngineError
from greg_cert.verify import certify, gradient_norm, lipschitz_bound
from greg_cert.verify.bounds import crown, interval
from greg_cert.verify.bounds.engines import make_engine, resolve_engine
from greg_cert.verify.bounds.lirpa.rebuild import RebuiltModule
from greg_cert.verify.graph.ops import Activation, Smooth, forward_all
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import adjoint_interval
from tests.verify.test_certify import QUICK, check_no_violation

NORMS = (2.0, math.inf)


@pytest.mark.parametrize("name", NETWORKS)
def test_graph_equals_the_model(name: str) -> None:
    model, shape = build_smooth(name)
    graph = trace_model(model, shape)
    x = 16 * points(shape, 7, seed=5) - 8
    expected = model.double()(x)
    assert torch.allclose(forward_all(graph, x)[-1], expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(RebuiltModule(graph)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold(name: str, norm: float) -> None:
    model, shape = build_smooth(name)
    graph, x = trace_model(model, shape), points(shape, 3, seed=11)
    radii = torch.tensor([0.02, 0.4, 3.0]).double() * (1.0 if norm == 2.0 else 0.25)
    methods = ("crown", "crown-ibp")
    if name not in ("tanh", "gelu", "mixed", "hardtanh"):
        methods = methods[:1] if norm == 2.0 else methods[1:]
    for method in methods:
        assert attack_relaxation(graph, "native", x, radii, norm, method) > 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["relu6", "hardtanh", "prelu"])
def test_bounds_by_auto_lirpa_hold(name: str, norm: float) -> None:
    model, shape = build_smooth(name)
    graph = trace_model(model, shape)
    radii = torch.tensor([0.02, 0.2, 1.0]).double()
    attack_relaxation(graph, "auto-lirpa", points(shape, 3, seed=11), radii, norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_slope_in_the_ball_exceeds_the_bound(name: str, norm: float) -> None:
    model, shape = build_smooth(name)
    graph, x = trace_model(model.double(), shape), points(shape, 4, seed=21)
    for radius in (0.05, 1.0):
        attack_lipschitz(model, graph, "native", x, radius, norm)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("relu6", "hardtanh", "prelu")])
def test_small_balls_have_nearly_the_slope_at_the_point(name: str) -> None:
    model, shape = build_smooth(name)
    x = points(shape, 4, seed=23)
    for norm in NORMS:
        bound = lipschitz_bound(model, x, 1e-7, norm=norm)
        assert torch.allclose(bound, gradient_norm(model, x, norm=norm), rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_for_one_steep_activation(kind: str) -> None:
    # S = −σ(3z) for one logit; the largest slope of σ within the ball is known from a grid.
    model = nn.Sequential(nn.Linear(1, 1), LAYERS[kind])
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(3.0)
        model.get_parameter("0.bias").zero_()
    x = torch.tensor([[-1.0], [-0.2], [0.4], [2.0]]).double()
    for radius in (0.05, 0.6, 2.0):
        grid = x + radius * torch.linspace(-1, 1, 4001, dtype=torch.float64)
        steep = gradient_norm(model, grid.reshape(-1, 1)).reshape(grid.shape).amax(1)
        bound = lipschitz_bound(model, x, radius)
        assert bool((bound >= steep).all())
        assert torch.allclose(bound, steep, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "norm", "side"),
    pairwise_settings(["sigmoid", "gelu", "conv", "mixed", "softplus-beta", "relu6"]),
)
def test_no_attack_within_a_certified_radius(name: str, norm: float, side: str) -> None:
    model, shape = build_smooth(name)
    x = points(shape, 5, seed=31)
    scores = energy_of(model, x).sort().values
    threshold = float((scores[2] + scores[3]) / 2)
    result = certify(
        model, x, threshold, side=side, norm=norm, max_radius=2.0, method="crown,lipschitz",
        engine="native", **QUICK,
    )  # fmt: skip
    check_no_violation(model, x, threshold, side, norm, result)
    assert "certified" in result.status


@pytest.mark.parametrize("norm", NORMS)
def test_one_tanh_is_certified_up_to_its_crossing(norm: float) -> None:
    # S = −tanh(w·x): with γ = −tanh(c) the decision changes at distance (w·x − c)/‖w‖*.
    model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Tanh())
    w = torch.tensor([[0.6, -0.8, 0.5]])
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(w)
    x = torch.tensor([[1.0, 0.0, 0.2], [0.5, -0.6, 0.9]]).double()
    dual = float(w.norm() if norm == 2.0 else w.abs().sum())
    truth = (x @ w.double().T - 0.3).squeeze(1) / dual
    result = certify(model, x, -math.tanh(0.3), norm=norm, max_radius=5.0, tolerance=1e-3)
    assert bool((result.radius_certified <= truth).all())
    assert bool((result.radius_certified >= 0.97 * truth).all())


def test_a_jump_inside_the_ball_has_no_lipschitz_constant() -> None:
    # Torch's softplus falls by 2e-9 just above 20.
    model = nn.Sequential(nn.Linear(1, 1), nn.Softplus())
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
        model.get_parameter("0.bias").zero_()
    x = torch.tensor([[19.0], [19.95], [21.0]]).double()
    bound = lipschitz_bound(model, x, 0.1)
    assert bound.isinf().tolist() == [False, True, False]
    radii = torch.full((3,), 0.1).double()
    relaxation = make_engine("native", trace_model(model, (1,))).relax(x, radii, 2.0)
    low = relaxation.lower(torch.ones(3, 1, 1).double())
    for share in torch.linspace(-1, 1, 101, dtype=torch.float64):
        assert bool((model.double()(x + 0.1 * share) >= low).all())


def test_pieces_are_written_with_relu() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU6(), nn.Linear(3, 3), nn.Hardtanh(-2.0, 0.5))
    graph = trace_model(model, (3,))
    assert [n.op for n in graph.nodes if isinstance(n.op, (Activation, Smooth))] == 4 * [
        Activation(0.0)
    ]
    x = torch.linspace(-9, 9, 91, dtype=torch.float64).unsqueeze(1).expand(-1, 3)
    alone = trace_model(nn.Sequential(nn.ReLU6()), (3,))
    assert torch.allclose(forward_all(alone, x)[-1], F.relu6(x), rtol=0, atol=1e-14)
    huge = torch.tensor([[-1e20, 1e20, 3e17]]).double()
    assert torch.equal(forward_all(alone, huge)[-1], F.relu6(huge))


@pytest.mark.parametrize(
    "function",
    [
        *(torch.sigmoid, F.sigmoid, torch.special.expit, torch.tanh, F.tanh, F.silu, F.gelu),
        *(F.softplus, F.elu, F.relu6, F.hardtanh),
        lambda x: x.sigmoid(),
        lambda x: x.tanh(),
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.softplus(x, 0.5),
        lambda x: F.softplus(x, beta=2),
        lambda x: F.elu(x, 1.0),
        lambda x: F.hardtanh(x, -0.1, 0.2),
        lambda x: F.hardtanh(x, min_val=0.1, max_val=0.2),
        lambda x: F.prelu(x, torch.full((1,), 0.3, dtype=torch.float64)),
        lambda x: F.leaky_relu_(x + 0.0, 0.1),
    ],
)
def test_functional_forms(function: Callable[[Tensor], Tensor]) -> None:
    model, x = Function(lambda x: function(3 * x).flatten(1)), points((2, 3, 3), 3, seed=2)
    out = forward_all(trace_model(model, (2, 3, 3)), x)[-1]
    assert torch.allclose(out, model(x), rtol=1e-12, atol=1e-12)


def test_auto_lirpa_refuses_by_name_and_auto_takes_the_native_engine() -> None:
    smooth = trace_model(build_smooth("gelu")[0], (5,))
    pieces = trace_model(build_smooth("relu6")[0], (5,))
    with pytest.raises(EngineError, match=r"layer '1' \(GELU\).*engine 'native' takes it"):
        make_engine("auto-lirpa", smooth)
    assert make_engine("auto", smooth).name == "native"
    assert make_engine("auto", pieces).name == resolve_engine("auto")
    assert resolve_engine("auto-lirpa") == "auto-lirpa"


# --- The checks above can fail ------------------------------------------------------------------

lines_before = crown.relax_smooth
range_before = interval.value_range
slopes_before = interval.slope_range

Pair = tuple[Tensor, Tensor]


def _no_lower_intercept(kind: str, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    slope_low, intercept_low, slope_high, intercept_high = lines_before(kind, low, high)
    return slope_low, 0.0 * intercept_low + 0.5, slope_high, intercept_high


def _small_upper_intercept(kind: str, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
    slope_low, intercept_low, slope_high, intercept_high = lines_before(kind, low, high)
    return slope_low, intercept_low, slope_high, intercept_high - 0.1 * (high - low).clamp(max=1)


def _narrow_range(kind: str, low: Tensor, high: Tensor) -> Pair:
    below, above = range_before(kind, low, high)
    return below + 0.3 * (above - below), above - 0.3 * (above - below)


def _ends_only(kind: str, low: Tensor, high: Tensor) -> Pair:
    a, b = slopes_before(kind, low, low), slopes_before(kind, high, high)
    return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])


def _never_negative(kind: str, low: Tensor, high: Tensor) -> Pair:
    smallest, largest = slopes_before(kind, low, high)
    return smallest.clamp(min=0.0), largest.clamp(min=0.0)


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong"),
    [
        (crown, "relax_smooth", _no_lower_intercept),
        (crown, "relax_smooth", _small_upper_intercept),
        (interval, "value_range", _narrow_range),
    ],
    ids=["lower intercept", "upper intercept", "range"],
)
def test_a_wrong_bound_is_found(
    owner: object, attribute: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shape = build_smooth("gelu")
    graph, x = trace_model(model, shape), points(shape, 3, seed=11)
    method = "crown-ibp" if attribute == "value_range" else "crown"
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError, match="bound of"):
        attack_relaxation(graph, "native", x, torch.tensor([0.02, 0.4, 3.0]).double(), 2.0, method)


@pytest.mark.parametrize(
    "wrong", [_ends_only, _never_negative], ids=["ends only", "never negative"]
)
def test_a_wrong_slope_range_is_found(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.GELU())
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
        model.get_parameter("0.bias").zero_()
    graph, x = trace_model(model.double(), (1,)), torch.tensor([[-1.5], [1.5]]).double()
    attack_lipschitz(model, graph, "native", x, 0.4, 2.0)
    monkeypatch.setattr(interval, "slope_range", wrong)
    monkeypatch.setattr(adjoint_interval, "slope_range", wrong)
    with pytest.raises(AssertionError, match="than its bound"):
        attack_lipschitz(model, graph, "native", x, 0.4, 2.0)
