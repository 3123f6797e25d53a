"""Networks of one logit evaluated without rounding, in fractions, and points exactly in a ball.

With K = 1 the score is minus the logit, so that every claim about it can be decided exactly. The
networks here lose digits on purpose: large terms cancel between layers, in coefficients, at biases.
"""

from __future__ import annotations

import math
import random
from fractions import Fraction

import torch
import torch.nn.functional as F
from soundness import ball_points, middle_threshold
from torch import Tensor, nn

from greg_cert.verify import certify
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.graph.ops import Activation, Add, Concat, Conv, Flatten, Graph, Linear
from greg_cert.verify.graph.trace import trace_model

Vector = list[Fraction]


def fractions(values: Tensor) -> Vector:
    """The numbers of a tensor, flattened, as they are."""
    return [Fraction(v) for v in values.detach().flatten().tolist()]


def exact_values(graph: Graph, x: Tensor) -> list[Vector]:
    """Every node's value at one input (*input_shape), flattened, without rounding."""
    values = [fractions(x)]
    for node in graph.nodes[1:]:
        operands = [values[j] for j in node.inputs]
        values.append(_exact_op(node.op, operands, node.shape))
    return values


def exact_score(graph: Graph, x: Tensor) -> Fraction:
    """S = −f of one input (*input_shape) for a graph of one logit, without rounding."""
    assert graph.num_classes == 1
    return -exact_values(graph, x)[-1][0]


def _exact_op(op: object, operands: list[Vector], shape: tuple[int, ...]) -> Vector:
    first = operands[0]
    match op:
        case Linear():
            return _affine(op.weight, op.bias, first)
        case Conv():
            eye = torch.eye(math.prod(op.input_shape), dtype=torch.float64)
            columns = F.conv2d(
                eye.unflatten(1, op.input_shape), op.weight, None, op.stride, op.padding,
                op.dilation, op.groups,
            )  # fmt: skip
            bias = op.bias.reshape(-1, 1, 1).expand(op.output_shape)
            return _affine(columns.flatten(1).T, bias, first)
        case Activation():
            slopes = torch.as_tensor(op.negative_slope, dtype=torch.float64)
            slopes = slopes.expand(shape).flatten().tolist()
            pairs = zip(first, slopes, strict=True)
            return [v if v > 0 else Fraction(slope) * v for v, slope in pairs]
        case Add():
            return [a + b for a, b in zip(first, operands[1], strict=True)]
        case Concat():
            return [v for part in operands for v in part]
        case Flatten():
            return first
        case _:
            raise AssertionError(f"unexpected operation {op}")


def _affine(weight: Tensor, bias: Tensor, x: Vector) -> Vector:
    rows = []
    for row, shift in zip(weight.tolist(), bias.flatten().tolist(), strict=True):
        terms = (Fraction(w) * v for w, v in zip(row, x, strict=True) if w)
        rows.append(sum(terms, Fraction(shift)))
    return rows


def lies_within(y: Tensor, x: Tensor, radius: float, norm: float) -> bool:
    """Whether ‖y − x‖ ≤ radius, decided exactly."""
    moves = [a - b for a, b in zip(fractions(y), fractions(x), strict=True)]
    if norm == math.inf:
        return max(abs(m) for m in moves) <= Fraction(radius)
    return sum(m * m for m in moves) <= Fraction(radius) ** 2


@torch.no_grad()
def cancelling_network(seed: int) -> nn.Module:
    """A network of 2 inputs and one logit in which terms about `scale` times the result cancel."""
    source = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** source.choice((4, 6, 8, 10))

    def layer(rows: Tensor, bias: Tensor) -> nn.Linear:
        made = nn.Linear(rows.shape[1], rows.shape[0], dtype=torch.float64)
        made.weight.copy_(rows)
        made.bias.copy_(bias)
        return made

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    w = normal(1, 2)
    kind = source.choice(("bias", "coefficients", "neuron"))
    between = nn.Identity() if source.random() < 0.5 else nn.LeakyReLU(0.3)
    head = layer(torch.tensor([[-1.0]]), normal(1))
    if kind == "bias":  # scale·w·x − scale·w·x₀
        first = layer(scale * w, -scale * w @ torch.full((2,), 0.5, dtype=torch.float64))
        second = layer(torch.ones(1, 1) / scale, torch.zeros(1))
        layers = [first, between, second, nn.ReLU()]
    elif kind == "coefficients":  # scale·(w + v/scale)·x − scale·w·x
        first = layer(torch.cat([w, w + normal(1, 2) / scale]), torch.zeros(2))
        layers = [first, between, layer(scale * torch.tensor([[-1.0, 1.0]]), torch.zeros(1))]
    else:  # scale·(1 + w·x/scale) − scale − ½, whose sign a ReLU then takes
        first = layer(w / scale, torch.ones(1))
        second = layer(torch.full((1, 1), scale), torch.tensor([-scale - 0.5]))
        layers = [first, nn.ReLU(), second, nn.ReLU()]
        head = layer(torch.tensor([[-1e6]]), torch.zeros(1))
    return nn.Sequential(*layers, head).eval()


def cancelling(seed: int) -> tuple[nn.Module, Graph, Tensor]:
    model = cancelling_network(seed)
    generator = torch.Generator().manual_seed(seed)
    return model, trace_model(model, (2,)), torch.rand(3, 2, generator=generator).double()


def attack_exactly(seed: int, norm: float, side: str, engine: str = "native") -> int:
    """Compare bounds and radii with fractions at points exactly within; how many points."""
    model, graph, x = cancelling(seed)
    radii = torch.tensor([1e-7, 1e-3, 0.3], dtype=torch.float64)
    rows = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(3, -1, -1)
    relaxation = make_engine(engine, graph).relax(x, radii, norm)
    low, value = relaxation.lower(rows).detach(), relaxation.linear(rows)[0].detach()
    threshold = middle_threshold(model, x)
    result = certify(
        model, x, threshold, side=side, norm=norm, engine=engine, method="crown,lipschitz",
        tolerance=1e-12, rounds=40, attack=False,
    )  # fmt: skip
    proven = torch.maximum(result.radius_certified, result.radius_lipschitz)
    tried = 0
    for b in range(len(x)):
        centre = exact_score(graph, x[b])
        assert Fraction(float(value[b, 0])) <= -centre, "bound at the centre"
        assert Fraction(float(value[b, 1])) <= centre, "bound at the centre"
        for radius in (float(radii[b]), float(proven[b])):
            if radius == 0.0:
                continue
            size = torch.tensor([radius * (1 - 1e-13)], dtype=torch.float64)
            for y in ball_points(x[b : b + 1], size, norm, draws=3)[:, 0]:
                if not lies_within(y, x[b], radius, norm):
                    continue
                tried += 1
                values = exact_values(graph, y)
                score = -values[-1][0]
                if radius == float(radii[b]):
                    for i, (below, above) in relaxation.preactivations.items():
                        box = zip(
                            fractions(below[b]), values[graph.nodes[i].inputs[0]],
                            fractions(above[b]), strict=True,
                        )  # fmt: skip
                        assert all(a <= z <= c for a, z, c in box), f"box of node {i}"
                    assert Fraction(float(low[b, 0])) <= -score, "bound over the ball"
                    assert Fraction(float(low[b, 1])) <= score, "bound over the ball"
                else:
                    over = score > Fraction(threshold)
                    assert over == (side == "ood"), "a point inside a certified radius"
    return tried
