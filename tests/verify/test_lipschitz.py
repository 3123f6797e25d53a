"""The proven Lipschitz constant of the score, and each bound it is made of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from layers import CONVOLUTIONS, LAYERS, conv, dense
from problems import (
    SMALL,
    Cancelling,
    affine_one_logit,
    affine_twin_logits,
    build,
    in_ball,
    one_relu,
    points,
)
from scipy.optimize import linprog
from soundness import attack_lipschitz
from torch import Tensor

from greg_cert.verify import gradient_norm, lipschitz_bound
from greg_cert.verify.bounds import interval
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.bounds.interval import activation_derivative
from greg_cert.verify.graph.ops import Conv, forward_all
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import adjoint_interval, local_lipschitz, score_box
from greg_cert.verify.lipschitz.softmax_box import mixture_box, softmax_box
from greg_cert.verify.operators.layers import as_convolution
from greg_cert.verify.operators.masked_norm import MaskedNorm, spectral_norm_bound

NORMS = (2.0, math.inf)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SMALL)
def test_no_slope_in_the_ball_exceeds_the_bound(name: str, norm: float) -> None:
    model, shape = build(name)
    graph, x = trace_model(model.double(), shape), points(shape, 4, seed=21)
    for radius in (0.1, 1.0):
        attack_lipschitz(model, graph, "native", x, radius, norm)
    if name in ("conv", "residual", "leaky"):
        attack_lipschitz(model, graph, "auto-lirpa", x, 0.2, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_a_preactivation_that_is_always_zero(norm: float) -> None:
    # At low = high = 0 both derivatives of the ReLU are possible; a box [1, 0] is none.
    model, x = Cancelling().double(), torch.tensor([[0.45, 0.45]]).double()
    attack_lipschitz(model, trace_model(model, (2,)), "native", x, 1.0, norm)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_derivative_intervals_are_never_reversed(slope: float) -> None:
    ends = torch.tensor([-2.0, -1.0, -1e-300, -0.0, 0.0, 1e-300, 1.0, 2.0], dtype=torch.float64)
    low, high = torch.meshgrid(ends, ends, indexing="ij")
    low, high = low[low <= high], high[low <= high]
    smallest, largest = activation_derivative(low, high, slope)
    assert bool((smallest <= largest).all())
    assert bool((smallest[low < 0] == slope).all())
    assert bool((largest[high > 0] == 1).all())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", [affine_one_logit, affine_twin_logits])
def test_exact_for_affine_scores(case: object, norm: float) -> None:
    exact = case()  # type: ignore[operator]
    weight = exact.model[0].weight[0].detach()
    dual = float(weight.norm() if norm == 2.0 else weight.abs().sum())
    for radius in (1e-6, 1.0, 1e6):
        bound = lipschitz_bound(exact.model, exact.inputs, radius, norm=norm)
        assert torch.allclose(bound, torch.full_like(bound, dual), rtol=3e-9)
        assert bool((bound >= dual).all())


@pytest.mark.parametrize("norm", NORMS)
def test_exact_for_one_relu_on_either_side_of_its_kink(norm: float) -> None:
    exact = one_relu()
    w = torch.tensor([0.6, -0.8, 0.5], dtype=torch.float64)
    dual = float(w.norm() if norm == 2.0 else w.abs().sum())
    to_kink = (1.0 - exact.inputs @ w) / dual
    row = int(to_kink.argmax())
    x, distance = exact.inputs[row : row + 1], float(to_kink[row])
    assert lipschitz_bound(exact.model, x, 0.99 * distance, norm=norm).item() == 0.0
    beyond = lipschitz_bound(exact.model, x, 1.01 * distance, norm=norm)
    assert beyond.item() == pytest.approx(1.5 * dual, rel=1e-6)


@pytest.mark.parametrize("name", ["mlp", "conv_batchnorm", "residual"])
def test_grows_with_the_ball(name: str) -> None:
    model, shape = build(name)
    x = points(shape, 4, seed=23)
    bounds = [lipschitz_bound(model, x, r) for r in (1e-9, 0.05, 0.5)]
    assert torch.allclose(bounds[0], gradient_norm(model, x), rtol=1e-5)  # exact in a point
    assert bool((bounds[0] <= bounds[1] * (1 + 1e-6)).all())
    assert bool((bounds[1] <= bounds[2] * (1 + 1e-6)).all())


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e20])
def test_scales_with_the_weights(scale: float) -> None:
    # Layer 1 times c and layer 2 divided by c is the same function.
    model, shape = build("one_logit")
    model = model.double()
    x = points(shape, 4, seed=24)
    before = lipschitz_bound(model, x, 0.2, engine="native")
    with torch.no_grad():
        model[0].weight.mul_(scale)  # type: ignore[index, union-attr, operator]
        model[0].bias.mul_(scale)  # type: ignore[index, union-attr, operator]
        model[2].weight.div_(scale)  # type: ignore[index, union-attr, operator]
    after = lipschitz_bound(model, x, 0.2, engine="native")
    assert torch.allclose(after, before, rtol=1e-6)


def test_a_dead_network_has_slope_zero() -> None:
    model, shape = build("conv")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for engine in ("native", "auto-lirpa"):
        bound = lipschitz_bound(model, points(shape, 3), 0.5, engine=engine)
        assert torch.equal(bound, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["leaky", "concatenation", "residual", "max_pool_3"])
def test_the_jacobian_of_every_node_is_bounded(name: str, norm: float) -> None:
    # J = diag(mask)·R with ‖R‖ ≤ constant at every node, as `Slope` says.
    model, shape = build(name)
    graph = trace_model(model, shape)
    x = points(shape, 2, seed=25)
    for radius in (0.02, 0.5):
        radii = torch.full((2,), radius, dtype=torch.float64)
        bounds = make_engine("native", graph).relax(x, radii, norm).preactivations
        slopes = local_lipschitz.NodeSlopes(graph)(bounds, x, norm)
        for y in (x, in_ball(x, radii, norm, 1)):
            for b in range(len(x)):
                jacobians = torch.autograd.functional.jacobian(
                    lambda one: tuple(v.flatten() for v in forward_all(graph, one[None])), y[b]
                )
                for node, jacobian, slope in zip(graph.nodes, jacobians, slopes, strict=True):
                    mask = slope.mask[b].flatten()
                    rows = jacobian.flatten(1)
                    assert bool((rows[mask == 0] == 0).all()), node.name
                    rest = rows[mask > 0] / mask[mask > 0].unsqueeze(1)
                    size = (
                        torch.linalg.matrix_norm(rest, ord=2)
                        if norm == 2.0
                        else rest.abs().sum(1).amax()
                    )
                    assert float(size) <= float(slope.constant[b]) * (1 + 1e-9), node.name


# --- Its parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (6, 1), (5, 5), (12, 4), (3, 20), (40, 40)])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e3, 1e20])
def test_gram_iteration_bounds_the_largest_singular_value(
    shape: tuple[int, int], scale: float
) -> None:
    generator = torch.Generator().manual_seed(shape[0] * 100 + shape[1])
    matrices = scale * torch.randn(5, *shape, generator=generator, dtype=torch.float64)
    matrices[1] = matrices[1, :, :1] * matrices[1, :1] / scale  # rank one: equality
    truth = torch.linalg.matrix_norm(matrices, ord=2)
    bound = spectral_norm_bound(matrices)
    assert bool((bound >= truth).all())
    assert bool((bound <= 1.05 * truth).all())
    assert float(bound[1]) == pytest.approx(float(truth[1]), rel=1e-6)


def test_gram_iteration_with_equal_singular_values_and_zero() -> None:
    matrices = torch.stack([torch.eye(30).double(), torch.zeros(30, 30).double()])
    bound = spectral_norm_bound(matrices)
    assert 1.0 <= float(bound[0]) <= 1.05
    assert 0.0 <= float(bound[1]) <= 1e-300


OPERATORS = {**LAYERS, "large": conv((8, 8, 3, 3), (8, 9, 9), padding=(1, 1))}  # not written out


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_masked_norm_bounds_the_dense_matrix(name: str) -> None:
    op = OPERATORS[name]
    matrix, inputs = dense(op), as_convolution(op).input_shape
    inputs = inputs if isinstance(op, Conv) else inputs[:1]
    generator = torch.Generator().manual_seed(1)
    rows, columns = (
        (torch.rand(4, *shape, generator=generator) * 1.5 - 0.5).clamp(0, 1).double()
        for shape in (op.output_shape, inputs)
    )
    columns[0], rows[0] = 1.0, 1.0
    columns[1] = 0.0
    masked = rows.flatten(1)[:, :, None] * matrix * columns.flatten(1)[:, None]
    bounds = MaskedNorm(op)
    spectral = torch.linalg.matrix_norm(masked, ord=2)
    found = bounds.bound(columns, rows, 2.0)
    assert bool((found >= spectral * (1 - 1e-12)).all())
    assert bool((found <= (5.0 if name == "large" else 1.05) * spectral).all())
    largest_row = masked.abs().sum(2).amax(1)
    assert torch.allclose(bounds.bound(columns, rows, math.inf), largest_row, rtol=1e-12)


@pytest.mark.parametrize("name", ["large", *CONVOLUTIONS])
def test_adjoint_is_the_transpose(name: str) -> None:
    op = OPERATORS[name]
    assert isinstance(op, Conv)
    matrix, inputs = dense(op), op.input_shape
    assert op.apply(torch.zeros(1, *inputs).double()).shape[1:] == op.output_shape
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(3, *op.output_shape, generator=generator, dtype=torch.float64)
    for weight, written in ((None, matrix), (op.weight, matrix), (op.weight.abs(), matrix.abs())):
        expected = (y.flatten(1) @ written).reshape(3, *inputs)
        assert torch.allclose(op.adjoint(y, weight), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 800.0])
def test_softmax_box_holds_and_is_attained(spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    centre = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    width = spread * torch.rand(6, 4, generator=generator, dtype=torch.float64)
    low, high = centre - width, centre + width
    below, above = softmax_box(low, high)
    for _ in range(300):
        share = torch.rand(6, 4, generator=generator, dtype=torch.float64)
        share = torch.where(torch.rand(6, 4, generator=generator) < 0.5, share.round(), share)
        p = (low + share * (high - low)).softmax(1)
        assert bool((p >= below * (1 - 1e-12)).all())
        assert bool((p <= above * (1 + 1e-12)).all())
    for i in range(4):
        corner = high.clone()
        corner[:, i] = low[:, i]
        assert torch.allclose(corner.softmax(1)[:, i], below[:, i], rtol=1e-9)
        corner = low.clone()
        corner[:, i] = high[:, i]
        assert torch.allclose(corner.softmax(1)[:, i], above[:, i], rtol=1e-9)


def test_softmax_box_of_one_class() -> None:
    low, high = softmax_box(torch.tensor([[-5.0]]), torch.tensor([[9.0]]))
    assert low.item() == high.item() == 1.0


def test_mixture_box_is_the_linear_programme() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    width = 2 * torch.rand(5, 1, generator=generator, dtype=torch.float64)
    low, high = softmax_box(logits - width, logits + width)
    rows = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    below, above = mixture_box(low, high, rows)
    for b in range(5):
        box = list(zip(low[b].tolist(), high[b].tolist(), strict=True))
        for d in range(6):
            for sign, bound in ((1, below[b, d]), (-1, above[b, d])):
                cost = sign * rows[:, d].numpy()
                best = linprog(cost, A_eq=np.ones((1, 4)), b_eq=[1.0], bounds=box)
                assert best.status == 0
                assert float(bound) == pytest.approx(sign * best.fun, rel=1e-7, abs=1e-9)


# --- The check above can fail ------------------------------------------------------------------

box_before = score_box.softmax_box
derivative_before = activation_derivative
norm_before = MaskedNorm.bound


def _point_box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    p = ((low + high) / 2).softmax(1)
    return p, p


def _always_dead(low: Tensor, high: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    smallest, largest = derivative_before(low, high, slope)
    unstable = (low < 0) & (high > 0)
    return smallest, torch.where(unstable, smallest, largest)


def _small_norm(self: MaskedNorm, columns: Tensor, rows: Tensor, norm: float) -> Tensor:
    return 0.3 * norm_before(self, columns, rows, norm)


SABOTAGES = [
    ("softmax", score_box, "softmax_box", _point_box),
    ("adjoint derivative", adjoint_interval, "activation_derivative", _always_dead),
    ("forward derivative", interval, "activation_derivative", _always_dead),
    ("operator norm", MaskedNorm, "bound", _small_norm),
]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: s[0])
def test_a_wrong_bound_is_found(
    sabotage: tuple[str, object, str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, owner, attribute, wrong = sabotage
    model, shape = build("mlp")
    graph, x = trace_model(model.double(), shape), points(shape, 6, seed=21)

    def check_all() -> None:
        for radius in (0.05, 0.5, 2.0):
            attack_lipschitz(model, graph, "native", x, radius, 2.0)

    check_all()
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(AssertionError, match="than its bound"):
        check_all()
