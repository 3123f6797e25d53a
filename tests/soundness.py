"""Attacks on everything that is proven over a ball; each raises AssertionError where one succeeds.

Each gives the number of bounds or certificates it attacked, so that a suite can refuse to pass on
nothing. Values are computed without the bounds' own code: logits by the model or by the graph's
forward pass, gradients by autograd. Comparisons allow for the rounding of that computation alone,
measured by the absolute terms that it sums (`magnitudes`) at the largest over the points tried, not
by an absolute number: a layer of 1e-8 hides nothing.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from problems import climb, in_ball
from torch import Tensor, nn

from greg_cert.verify import Certificates, lipschitz_bound
from greg_cert.verify.bounds.engine import Engine
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import (
    Activation,
    Add,
    Concat,
    Conv,
    Graph,
    Linear,
    Op,
    Smooth,
    forward_all,
)

ROUNDING = 1e-13  # of the sum of absolute terms: a few hundred units in the last place
_TARGETS = 2  # neurons a layer, and rows, that are climbed against one by one
_CORNERS = 4  # inputs of up to so many numbers have all their corners tried


def ball_points(x: Tensor, radii: Tensor, norm: float, draws: int = 6) -> Tensor:
    """Points (P, B, ...) of the balls of `radii` (B,) about x (B, ...); the first is the centre.

    Random ones inside and on the border, and the extreme ones: corners for ℓ∞, both ends of axes
    for ℓ2.
    """
    shape = (-1, *[1] * (x.ndim - 1))
    r = radii.reshape(shape)
    size = x[0].numel()
    generator = torch.Generator().manual_seed(size)
    moves = []
    if norm == math.inf:
        signs = list(itertools.product((-1.0, 1.0), repeat=size)) if size <= _CORNERS else []
        moves = [torch.tensor(s, dtype=x.dtype) for s in signs]
        for _ in range(0 if signs else draws):
            moves.append(torch.randn(size, generator=generator, dtype=x.dtype).sign())
    else:
        for i in torch.randperm(size, generator=generator)[:_CORNERS].tolist():
            axis = torch.zeros(size, dtype=x.dtype)
            axis[i] = 1.0
            moves += [axis, -axis]
    points = [x] + [x + r * move.reshape(1, *x.shape[1:]) for move in moves]
    return torch.stack(points + [in_ball(x, radii, norm, seed) for seed in range(draws)])


def magnitudes(graph: Graph, inputs: Tensor) -> list[Tensor]:
    """For every node the sum of absolute terms that its value is made of, (B, *shape) each."""

    def absolute(op: Op, operands: list[Tensor]) -> Tensor:
        match op:
            case Conv():
                bias = op.bias.abs().reshape(-1, 1, 1)
                return op.apply(operands[0], op.weight.abs()) + bias
            case Linear():
                return F.linear(operands[0], op.weight.abs(), op.bias.abs())
            case Activation():
                return operands[0]
            case Smooth():
                return operands[0] + 1
            case MaxPool():
                return op.apply(operands[0])
            case Add():
                return operands[0] + operands[1]
            case Concat():
                return torch.cat(operands, dim=1)
            case _:
                return operands[0].flatten(1)

    values = [inputs.abs()]
    for node in graph.nodes[1:]:
        values.append(absolute(node.op, [values[j] for j in node.inputs]))
    return values


def attack_relaxation(
    graph: Graph,
    engine: str | Engine,
    x: Tensor,
    radii: Tensor,
    norm: float,
    method: str = "crown",
) -> int:
    """Attack pre-activation boxes, bounds of logit rows and linear bounds; how many bounds."""
    made = make_engine(engine, graph) if isinstance(engine, str) else engine
    relaxation = made.relax(x, radii, norm, method)
    generator = torch.Generator().manual_seed(7)
    rows = _rows(graph.num_classes, generator).expand(len(x), -1, -1)
    low = relaxation.lower(rows).detach()
    value, slope = (t.detach() for t in relaxation.linear(rows))
    boxes = relaxation.preactivations
    assert set(boxes) == set(graph.activations)

    def hold(points: Tensor) -> None:
        """Raise where a bound fails at points (P, B, ...)."""
        every = points.flatten(0, 1)
        values, sizes = forward_all(graph, every), magnitudes(graph, every)
        for i in graph.activations:
            source = graph.nodes[i].inputs[0]
            z = values[source].unflatten(0, points.shape[:2])
            slack = ROUNDING * sizes[source].unflatten(0, points.shape[:2]).amax(0)
            below, above = boxes[i]
            assert bool((z >= below - slack).all()), f"lower bound of node {i}"
            assert bool((z <= above + slack).all()), f"upper bound of node {i}"
        f = torch.einsum("brk,pbk->pbr", rows, values[-1].unflatten(0, points.shape[:2]))
        largest = sizes[-1].unflatten(0, points.shape[:2]).amax(0)
        slack = ROUNDING * torch.einsum("brk,bk->br", rows.abs(), largest)
        assert bool((f >= low - slack).all()), "lower bound of logit rows"
        moved = torch.linalg.vector_norm((points - x).flatten(2), ord=norm, dim=2).unsqueeze(2)
        slack = slack + ROUNDING * moved * slope
        assert bool((f >= value - moved * slope - slack).all()), "linear bound of logit rows"

    hold(ball_points(x, radii, norm))
    goals = [(len(graph.nodes) - 1, -row) for row in _some(rows[0], generator)]
    for i in graph.activations:
        units = torch.eye(boxes[i][0][0].numel(), dtype=x.dtype)
        for unit in _some(units, generator):
            goals += [(graph.nodes[i].inputs[0], unit), (graph.nodes[i].inputs[0], -unit)]

    def towards(y: Tensor) -> Tensor:
        values = [v.flatten(1) for v in forward_all(graph, y)]
        copies = [v.split(len(x)) for v in values]
        return torch.cat([copies[i][g] @ weight for g, (i, weight) in enumerate(goals)])

    copies = x.repeat(len(goals), *[1] * (x.ndim - 1))
    found = climb(towards, copies, radii.repeat(len(goals)), norm, steps=4)
    hold(found.unflatten(0, (len(goals), len(x))))
    return 2 * sum(b[0].numel() for b in boxes.values()) + 2 * low.numel()


def _rows(classes: int, generator: torch.Generator) -> Tensor:
    """Unit rows of either sign, random ones and points of the simplex, (R, K)."""
    eye = torch.eye(classes, dtype=torch.float64)
    eye = eye[torch.randperm(classes, generator=generator)[:8]]
    rows = torch.randn(2, classes, generator=generator, dtype=torch.float64)
    simplex = torch.rand(2, classes, generator=generator, dtype=torch.float64)
    return torch.cat([eye, -eye, rows, simplex / simplex.sum(1, keepdim=True)])


def _some(rows: Tensor, generator: torch.Generator) -> list[Tensor]:
    return list(rows[torch.randperm(len(rows), generator=generator)[:_TARGETS]])


def energy_and_slope(model: nn.Module, inputs: Tensor, norm: float) -> tuple[Tensor, Tensor]:
    """S (B,) and the dual norm of its gradient (B,), by autograd on the model itself."""
    leaf = inputs.detach().requires_grad_()
    score = -torch.logsumexp(model(leaf), dim=1)
    (gradient,) = torch.autograd.grad(score.sum(), leaf)
    dual = 2.0 if norm == 2.0 else 1.0
    return score.detach(), torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1)


def attack_lipschitz(
    model: nn.Module, graph: Graph, engine: str, x: Tensor, radius: float, norm: float
) -> int:
    """Attack `lipschitz_bound` with slopes and differences of scores in the ball; how many."""
    bound = lipschitz_bound(model, x, radius, norm=norm, engine=engine)
    radii = torch.full((len(x),), radius, dtype=x.dtype)

    def score(y: Tensor) -> Tensor:
        return -torch.logsumexp(model(y), dim=1)

    points = [*ball_points(x, radii, norm)]
    points += [climb(lambda y, s=sign: s * score(y), x, radii, norm, steps=4) for sign in (1, -1)]
    inner = in_ball(x, radii / 2, norm, 51)
    points.append(climb(score, inner, radii / 2, norm, steps=4))
    stacked = torch.stack(points)
    values, slopes = energy_and_slope(model, stacked.flatten(0, 1), norm)
    values, slopes = values.reshape(len(points), -1), slopes.reshape(len(points), -1)
    size, slope_size = _absolute_score(graph, stacked.flatten(0, 1), norm)
    slack = ROUNDING * slope_size.reshape(slopes.shape)
    assert bool((slopes <= bound + slack).all()), "the score is steeper than its bound"
    moved = torch.linalg.vector_norm((stacked - x).flatten(2), ord=norm, dim=2)
    slack = ROUNDING * 2 * (1 + size.reshape(values.shape))
    changed = (values - values[0]).abs()
    assert bool((changed <= bound * moved + slack).all()), "the score moves more than its bound"
    return len(bound)


def _absolute_score(graph: Graph, inputs: Tensor, norm: float) -> tuple[Tensor, Tensor]:
    """Absolute terms that logits and the score's gradient are made of, (B,) each."""
    leaf = inputs.abs().detach().requires_grad_()
    logits = magnitudes(graph, leaf)[-1]
    (gradient,) = torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
    gradient = torch.zeros_like(leaf) if gradient is None else gradient
    dual = 2.0 if norm == 2.0 else 1.0
    size = logits.detach().amax(1)
    return size, torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1)


def attack_certificates(
    model: nn.Module, x: Tensor, threshold: float, side: str, norm: float, result: Certificates
) -> int:
    """Look for points inside certified radii on the wrong side of γ; how many radii > 0.

    No slack at all: what is certified may not be crossed, even by the rounding of the model.
    """
    radius = result.radius_certified
    if not bool(result.radius_lipschitz.isnan().all()):
        radius = torch.maximum(radius, result.radius_lipschitz)
    assert not radius.isnan().any()
    assert bool((radius <= result.radius_attack).all()), "an attack is nearer than its certificate"
    rows = (radius > 0).nonzero().squeeze(1)
    assert not wrong_side(-torch.logsumexp(model(x[rows]), 1), threshold, side).any()
    if len(rows) == 0:
        return 0
    centre, inside = x[rows], radius[rows] * (1 - 1e-12)  # of what rounding of the points may add
    sign = 1.0 if side == "id" else -1.0

    def uphill(y: Tensor) -> Tensor:
        return -sign * torch.logsumexp(model(y), dim=1)

    points = [*ball_points(centre, inside, norm), climb(uphill, centre, inside, norm, steps=8)]
    start = in_ball(centre, inside / 2, norm, 52)
    points.append(climb(uphill, start, inside / 2, norm, steps=4))
    with torch.no_grad():
        scores = -torch.logsumexp(model(torch.cat(points)), dim=1)
    assert not wrong_side(scores, threshold, side).any(), "a point inside a certified radius"
    return len(rows)


def wrong_side(scores: Tensor, threshold: float, side: str) -> Tensor:
    """Whether each score is rejected (for ID samples) or accepted (for OOD ones)."""
    return scores > threshold if side == "id" else scores <= threshold


def middle_threshold(model: nn.Module, x: Tensor) -> float:
    """A threshold with half of the samples on either side."""
    with torch.no_grad():
        scores = -torch.logsumexp(model(x), dim=1).sort().values
    half = len(scores) // 2
    return float((scores[half - 1] + scores[half]) / 2)
