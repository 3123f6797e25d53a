"""The Lipschitz constant of the whole space, and the radii that it gives for a forward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from problems import (
    SMALL,
    affine,
    affine_one_logit,
    affine_twin_logits,
    build,
    climb,
    in_ball,
    pairwise_settings,
    points,
)
from smooth_networks import KINDS, build_smooth
from soundness import attack_certificates, middle_threshold
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.scores import SCORES, score_of
from greg_cert.verify import (
    certify,
    global_lipschitz_bound,
    global_lipschitz_radius,
    lipschitz_bound,
)
from greg_cert.verify.graph.ops import forward_all
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import forward_error, global_bound, global_radius, node_constants
from greg_cert.verify.lipschitz.forward_error import ForwardError
from greg_cert.verify.lipschitz.pieces import affine_pieces
from greg_cert.verify.norms import dual_norm
from greg_cert.verify.scorer import Margin, score_and_gradient

NORMS = (2.0, math.inf)


def steepest(model: nn.Module, shape: tuple[int, ...], norm: float, score: str) -> float:
    """The largest of many sampled ‖∇S‖*, also where S rises and falls steeply."""
    model, value = model.double(), score_of(score)

    def s(x: Tensor) -> Tensor:
        found: Tensor = value(model(x.clone()))
        return found

    x = torch.cat([c * (2 * points(shape, 40, seed=5) - 1) + 0.5 for c in (0.5, 3.0, 30.0)])
    radii = torch.full((len(x),), 2.0, dtype=torch.float64)
    found = 0.0
    for y in (x, climb(s, x, radii, norm, 4), climb(lambda x: -s(x), x, radii, norm, 4)):
        found = max(found, float(dual_norm(score_and_gradient(s, y)[1], norm).max()))
    return found


def check_constant(model: nn.Module, shape: tuple[int, ...], norm: float, score: str) -> None:
    bound = global_lipschitz_bound(model, shape, norm=norm, score=score)
    assert math.isfinite(bound)
    found = steepest(model, shape, norm, score)
    assert found <= bound * (1 + 1e-12), "the score is steeper than its constant"


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SMALL)
def test_no_slope_anywhere_exceeds_the_constant(name: str, norm: float) -> None:
    model, shape = build(name)
    scores = [s for s in SCORES if s != "absent_class" or name != "one_logit"]
    for score in scores if name in ("mlp", "residual", "max_pool_2", "one_logit") else ["energy"]:
        check_constant(model, shape, norm, score)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*KINDS, "relu6", "hardtanh", "prelu", "conv"])
def test_no_slope_of_a_smooth_network_exceeds_the_constant(name: str, norm: float) -> None:
    model, shape = build_smooth(name)
    if name == "softplus":  # torch's jumps at 20
        assert global_lipschitz_bound(model, shape, norm=norm) == math.inf
    else:
        check_constant(model, shape, norm, "energy")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["residual", "concatenation", "max_pool_3", "steps", "leaky"])
def test_every_node_has_a_constant_of_its_own(name: str, norm: float) -> None:
    model, shape = build(name)
    graph = trace_model(model, shape)
    constants = node_constants(graph, norm)
    for x in 4 * points(shape, 4, seed=6) - 2:
        jacobians = torch.func.jacrev(  # type: ignore[no-untyped-call]
            lambda one: tuple(v.flatten() for v in forward_all(graph, one[None]))
        )(x)
        for node, jacobian, constant in zip(graph.nodes, jacobians, constants, strict=True):
            rows = jacobian.flatten(1)
            size = (
                torch.linalg.matrix_norm(rows, ord=2) if norm == 2.0 else rows.abs().sum(1).amax()
            )
            assert float(size) <= constant * (1 + 1e-12), node.name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", [affine_one_logit, affine_twin_logits])
def test_exact_for_affine_scores(case: object, norm: float) -> None:
    exact = case()  # type: ignore[operator]
    dual = float(dual_norm(exact.model[0].weight[:1].detach(), norm))
    bound = global_lipschitz_bound(exact.model, (6,), norm=norm)
    assert dual <= bound <= dual * (1 + 1e-11)


def _factors(weight: Tensor, norm: float) -> dict[str, float]:
    """The constant of each score of W·x by hand."""

    def longest(rows: Tensor) -> float:
        return float(dual_norm(rows, norm).max())

    pairs = torch.stack([a - b for a in weight for b in weight])
    top = longest(weight)
    absent = longest(weight[:-1] - weight[-1])
    return {
        "energy": top, "max_logit": top, "absent_class": absent, "max_softmax": longest(pairs) / 4
    }  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("score", sorted(SCORES))
def test_one_layer_has_the_constant_of_its_rows_and_attains_it(score: str, norm: float) -> None:
    weight = 0.2 * torch.tensor([[3.0, 1.0], [-2.0, 1.0], [0.5, -1.0]], dtype=torch.float64)
    model = affine(weight, torch.zeros(3).double())
    bound = global_lipschitz_bound(model, (2,), norm=norm, score=score)
    assert bound == pytest.approx(_factors(weight, norm)[score], rel=1e-10)
    value = score_of(score)
    grid = torch.cartesian_prod(*[torch.linspace(-40, 40, 161, dtype=torch.float64)] * 2)
    slopes = dual_norm(score_and_gradient(lambda x: value(model(x)), grid)[1], norm)
    assert 0.94 * bound <= float(slopes.max()) <= bound  # at ties torch's gradient is between


def test_affine_layers_at_the_end_are_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 5), nn.Linear(5, 3))
    model.double()
    jacobian = torch.func.jacrev(model)(torch.zeros(1, 2, 6, 6).double())  # type: ignore[no-untyped-call]
    rows = jacobian[0].flatten(1).detach()
    for norm in NORMS:
        bound = global_lipschitz_bound(model, (2, 6, 6), norm=norm)
        assert bound == pytest.approx(float(dual_norm(rows, norm).max()), rel=1e-9)


def test_scales_of_channels_join_the_layer_behind_them() -> None:
    model, shape = build("arithmetic")
    graph = trace_model(model, shape)
    index = next(i for i, n in enumerate(graph.nodes) if n.shape == (3, 3, 3))
    eye = torch.eye(72, dtype=torch.float64).reshape(72, *shape)
    zero = forward_all(graph, torch.zeros(1, *shape).double())[index]
    matrix = (forward_all(graph, eye)[index] - zero).flatten(1)
    truth = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert node_constants(graph)[index] == pytest.approx(truth, rel=1e-5)


class Block(nn.Module):
    """x + W·x, or another pair of linear branches, in one of a few forms."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.second = nn.Conv2d(2, 2, 5, padding=2, groups=2)
        self.wide = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.bn = nn.BatchNorm2d(2, affine=False).eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "identity":
            return x - 0.9 * self.first(x)
        if self.kind == "identity, scaled first":
            return self.first(self.bn(x)) - x
        if self.kind == "two layers":
            return self.first(x) - self.second(x)
        if self.kind == "dilated":
            return self.wide(x) - self.first(x)
        return x + torch.relu(self.first(x) - x)  # the larger of both


BLOCKS = ("identity", "identity, scaled first", "two layers", "dilated", "maximum")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_linear_branches_are_one_operator(kind: str, norm: float) -> None:
    torch.manual_seed(1)
    block = Block(kind).double()
    model = nn.Sequential(block, nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).double().eval()
    graph = trace_model(model, (2, 6, 6))
    index = max(i for i, n in enumerate(graph.nodes) if type(n.op).__name__ == "Add")
    found = node_constants(graph, norm)[index]
    sizes = []
    for x in 2 * points((2, 6, 6), 20, seed=7) - 1:
        jacobian = torch.func.jacrev(block)(x[None])  # type: ignore[no-untyped-call]
        rows = jacobian.reshape(72, 72).detach()
        sizes.append(
            torch.linalg.matrix_norm(rows, ord=2) if norm == 2.0 else rows.abs().sum(1).amax()
        )
    largest = float(torch.stack(sizes).max())
    assert largest <= found * (1 + 1e-12)
    if kind != "maximum":  # affine, so exact
        assert found == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("size", [2, 3, (1, 3), (3, 2)])
def test_a_max_pool_has_the_constant_1(size: int | tuple[int, int]) -> None:
    model = nn.Sequential(nn.MaxPool2d(size), nn.Flatten(), nn.LazyLinear(3)).eval()
    model(torch.zeros(1, 2, 6, 6))
    graph = trace_model(model, (2, 6, 6))
    pool = next(i for i, n in enumerate(graph.nodes) if type(n.op).__name__ == "Flatten") - 1
    for norm in NORMS:
        assert 1.0 <= node_constants(graph, norm)[pool] <= 1 + 1e-5


class Folded(nn.Module):
    """(1 1)·max(x, −x): rows of (1 1) and (−1 −1) are √2 long, as long as those of (1 −1)."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("scales", scales)
        self.mix = nn.Conv2d(2, 1, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x + torch.relu(self.scales * x - x)).flatten(1)


def test_a_layer_behind_a_maximum_is_not_a_maximum_itself() -> None:
    # (1 1)·(max(x₁, 3x₁), max(x₂, x₂/3)) is 3x₁ + x₂ at x > 0: no row of either map, mixed.
    scales = torch.tensor([3.0, 1 / 3]).reshape(2, 1, 1)
    model = Folded(scales).eval()
    bound = global_lipschitz_bound(model, (2, 1, 1))
    assert math.sqrt(10.0) <= bound * (1 + 1e-12)
    graph = trace_model(model, (2, 1, 1))
    pieces = affine_pieces(graph)
    behind = next(i for i, n in enumerate(graph.nodes) if n.shape == (1, 1, 1))
    before = pieces[graph.nodes[behind].inputs[0]]
    assert before is not None
    assert len(before.maps) == 2
    assert pieces[behind] is not None
    assert len(pieces[behind].maps) == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["mlp", "conv_batchnorm", "max_pool_2", "pre_activation"])
def test_local_constants_are_never_above_the_global_one(name: str, norm: float) -> None:
    model, shape = build(name)
    x = points(shape, 3, seed=8)
    for score in ("energy", "max_softmax"):
        everywhere = global_lipschitz_bound(model, shape, norm=norm, score=score)
        for form in ("hybrid", "interval", "spectral"):
            found = lipschitz_bound(model, x, [0.1, 10.0], norm=norm, score=score, form=form)
            assert bool((found <= everywhere).all())


def test_max_softmax_of_one_class_is_flat_and_the_absent_class_needs_two() -> None:
    model, shape = build("one_logit")
    assert global_lipschitz_bound(model, shape, score="max_softmax") == 0.0
    with pytest.raises(UsageError, match="K >= 2 logits"):
        global_lipschitz_bound(model, shape, score="absent_class")
    with pytest.raises(UsageError, match="expected score in"):
        global_lipschitz_bound(model, shape, score="entropy")
    with pytest.raises(UsageError, match="expected norm 2 or inf"):
        global_lipschitz_bound(model, shape, norm=1.0)


# --- Radii --------------------------------------------------------------------------------------


def penalised(depth: int = 3, width: int = 8) -> nn.Module:
    """A chain whose layers have a norm of about 1, as a Lipschitz penalty leaves them."""
    generator = torch.Generator().manual_seed(depth)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layer = nn.Linear(width, width)
        with torch.no_grad():
            square = torch.randn(width, width, generator=generator)
            layer.weight.copy_(torch.linalg.qr(square)[0])
            layer.bias.copy_(0.3 * torch.randn(width, generator=generator))
        layers += [layer, nn.ReLU()]
    head = nn.Linear(width, 3)
    with torch.no_grad():
        head.weight.copy_(2 * torch.randn(3, width, generator=generator))
        head.bias.zero_()
    return nn.Sequential(*layers, head).eval()


@pytest.mark.parametrize(
    ("name", "norm", "side"), pairwise_settings([*SMALL[:9], "max_pool_2", "leaky", "penalised"])
)
def test_no_attack_within_a_radius(name: str, norm: float, side: str) -> None:
    model, shape = (penalised(), (8,)) if name == "penalised" else build(name)
    x, model = points(shape, 12, seed=9), model.double()
    threshold = middle_threshold(model, x)
    result = certify(
        model, x, threshold, side=side, norm=norm, method="lipschitz", max_radius=2.0,
        attack_steps=5, attack_restarts=1, attack_polish=5, rounds=4,
    )  # fmt: skip
    assert attack_certificates(model, x, threshold, side, norm, result) >= 4
    for dtype in (torch.float64, torch.float32):
        found = global_lipschitz_radius(
            model, x, threshold, side=side, norm=norm, max_radius=2.0, dtype=dtype
        )
        wrong = Margin(threshold, side).wrong(result.score)
        assert bool((found[wrong] == 0).all())
        assert bool((found[~wrong] > 0).all()) == (dtype == torch.float64) or bool(
            (found >= 0).all()
        )
        assert bool((found <= result.radius_lipschitz * (1 + 1e-9) + 1e-12).all())
        for seed in range(4):
            y = in_ball(x, found, norm, seed)
            scores = -torch.logsumexp(model(y), 1).detach()
            assert not Margin(threshold, side).wrong(scores)[found > 0].any()


def test_radii_are_the_gap_by_the_constant_and_capped() -> None:
    model, x = penalised().double(), points((8,), 12, seed=10)
    scores = -torch.logsumexp(model(x), 1).detach()
    threshold = float(scores.max()) + 0.5
    bound = global_lipschitz_bound(model, (8,))
    found = global_lipschitz_radius(model, x, threshold, max_radius=100.0, batch=5)
    torch.testing.assert_close(found, (threshold - scores) / bound, rtol=1e-7, atol=0)
    capped = global_lipschitz_radius(model, x, threshold, max_radius=float(found.median()))
    assert torch.equal(capped, found.clamp(max=float(found.median())))
    single = global_lipschitz_radius(model, x, threshold, max_radius=100.0, dtype=torch.float32)
    assert bool((single < found).all())
    torch.testing.assert_close(single, found, rtol=1e-3, atol=0)
    # `certify` begins with them: the cap is reached without a ball of its own.
    result = certify(model, x, threshold, method="lipschitz", max_radius=0.01, attack=False)
    assert bool((result.radius_lipschitz == 0.01).all())
    assert bool((result.lipschitz == bound).all())


def test_depth_is_no_obstacle() -> None:
    model, x = penalised(depth=60).double(), points((8,), 6, seed=11)
    scores = -torch.logsumexp(model(x), 1).detach()
    threshold = float(scores.max()) + 0.5
    bound = global_lipschitz_bound(model, (8,))
    expected = (threshold - scores) / bound
    found = global_lipschitz_radius(model, x, threshold, max_radius=100.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    result = certify(
        model, x, threshold, method="lipschitz", max_radius=100.0, rounds=2, attack=False
    )
    assert bool((result.radius_lipschitz >= found * (1 - 1e-6)).all())
    assert attack_certificates_of(model, x, threshold, found) == 6


@pytest.mark.parametrize("method", ["sdp-crown", "best", "crown", ("sdp-crown", "lipschitz")])
def test_the_local_constant_is_computed_where_it_is_asked_for(method: Any) -> None:
    model, x = penalised(depth=3).double(), points((8,), 6, seed=11)
    scores = -torch.logsumexp(model(x), 1).detach()
    threshold = float(scores.max()) + 0.5
    whole = global_lipschitz_radius(model, x, threshold, max_radius=100.0)
    options: dict[str, Any] = {"max_radius": 100.0, "attack": False}
    result = certify(model, x, threshold, method=method, **options)
    local = certify(model, x, threshold, method="lipschitz", **options).radius_lipschitz
    assert bool((local > 1.02 * whole).all())
    expected = local if "lipschitz" in method else whole
    torch.testing.assert_close(result.radius_lipschitz, expected, rtol=1e-5, atol=0)


def attack_certificates_of(model: nn.Module, x: Tensor, threshold: float, radius: Tensor) -> int:
    for seed in range(6):
        y = in_ball(x, radius, 2.0, seed)
        assert bool((-torch.logsumexp(model(y), 1) <= threshold).all())
    worst = climb(lambda y: -torch.logsumexp(model(y), 1), x, radius, 2.0, steps=8)
    assert bool((-torch.logsumexp(model(worst), 1) <= threshold).all())
    return int((radius > 0).sum())


def test_a_jump_leaves_no_global_radius() -> None:
    model, shape = build_smooth("softplus")
    found = global_lipschitz_radius(model, points(shape, 3), 100.0)
    assert bool((found == 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "name", ["mlp", "conv", "conv_batchnorm", "residual", "concatenation", "max_pool_3", "leaky",
             "gelu", "tanh", "silu", "elu", "sigmoid", "gelu-tanh"],
)  # fmt: skip
def test_logits_are_no_further_off_than_said(name: str, dtype: torch.dtype) -> None:
    model, shape = build_smooth(name) if name in KINDS else build(name)
    graph = trace_model(model, shape)
    x = torch.cat([c * points(shape, 16, seed=12) for c in (1.0, 1e-3, 30.0)])
    logits, off = ForwardError(graph, dtype)(x)
    if dtype == torch.float64:
        assert bool((off < 1e-9 * (1 + logits.abs().amax(1))).all())
        return
    truth = forward_all(graph, x)[-1]
    apart = (logits - truth).abs().amax(1)
    assert bool((apart <= off).all())
    assert bool((apart > 0).any())
    assert float((off / apart).median()) < 1e6


def test_float32_is_refused_where_nobody_bounds_it() -> None:
    model, shape = build("mlp")
    with pytest.raises(UsageError, match=r"float64 or float32, but got torch\.float16"):
        global_lipschitz_radius(model, points(shape, 2), 0.0, dtype=torch.float16)
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(UsageError, match="matmul precision 'highest'"):
            global_lipschitz_radius(model, points(shape, 2), 0.0, dtype=torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("wrong", [{"side": "up"}, {"norm": 3.0}, {"max_radius": 0.0}])
def test_values_out_of_range(wrong: dict[str, object]) -> None:
    model, shape = build("mlp")
    with pytest.raises(UsageError):
        global_lipschitz_radius(model, points(shape, 2), 0.0, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="finite"):
        global_lipschitz_radius(model, points(shape, 2) * math.nan, 0.0)


def test_a_model_that_differs_from_its_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = build("mlp")
    before = global_radius.evaluation_copy

    def off(model: nn.Module, dtype: torch.dtype) -> nn.Module:
        twin = before(model, dtype)
        twin[-1].bias += 0.01  # type: ignore[index]
        return twin

    monkeypatch.setattr(global_radius, "evaluation_copy", off)
    with pytest.raises(UnsupportedModelError, match=r"differs from the graph.*row 0"):
        global_lipschitz_radius(model, points(shape, 2), 0.0)


# --- The checks above can fail ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "attribute", "wrong"),
    [
        (global_bound, "operator_norm", lambda op, norm=2.0: 0.3),
        (global_bound, "steepest_slope", lambda op: 0.5),
        (global_bound, "_steepest_score", lambda score, rows, lost, norm: 0.2),
        (global_bound, "together", lambda maps: maps[0]),
    ],
)
def test_a_wrong_constant_is_found(
    owner: object, attribute: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_all() -> None:
        for name in ("mlp_batchnorm", "one_logit", "arithmetic", "relu_first"):
            model, shape = build(name)
            check_constant(model, shape, 2.0, "energy")
        for kind in BLOCKS:
            test_linear_branches_are_one_operator(kind, 2.0)
        test_one_layer_has_the_constant_of_its_rows_and_attains_it("energy", 2.0)

    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError):
        check_all()


def test_a_wrong_allowance_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_error._Layer, "of_all", lambda self, carried, size: 0 * size)
    monkeypatch.setattr(forward_error._Layer, "of_rows", lambda self, carried, size: 0 * size)
    with pytest.raises(AssertionError):
        test_logits_are_no_further_off_than_said("mlp", torch.float32)
