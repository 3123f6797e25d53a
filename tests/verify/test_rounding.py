"""What float64 loses is bounded: against fractions, and by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from exact_values import cancelling_network, exact_score
from problems import build, points
from torch import nn

from greg_cert.verify.bounds.coupled.ball_boxes import layer_norms
from greg_cert.verify.graph.ops import Conv, Linear, forward_all
from greg_cert.verify.graph.rounding import (
    absolute_terms,
    forward_errors,
    score_rounding,
    sum_rounding,
)
from greg_cert.verify.graph.trace import trace_model


def test_the_score_is_off_by_no_more_than_its_allowance() -> None:
    largest = Fraction(0)
    for seed in range(40):
        graph = trace_model(cancelling_network(seed), (2,))
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(5, 2, generator=generator, dtype=torch.float64)
        allowance = score_rounding(graph, x)
        scores = -forward_all(graph, x)[-1][:, 0]
        for b in range(len(x)):
            off = abs(Fraction(float(scores[b])) - exact_score(graph, x[b]))
            assert off <= Fraction(float(allowance[b])), seed
            largest = max(largest, off / Fraction(float(allowance[b])))
    assert largest > Fraction(1, 200)  # and not by far too much


def test_absolute_terms_by_hand() -> None:
    first, second = nn.Linear(2, 1).double(), nn.Linear(1, 1).double()
    first.weight.data, first.bias.data = (
        torch.tensor([[3.0, -2.0]]).double(),
        torch.ones(1).double(),
    )
    second.weight.data.fill_(-5.0)
    second.bias.data.zero_()
    graph = trace_model(nn.Sequential(first, nn.ReLU(), second), (2,))
    x, radii = torch.tensor([[1.0, -1.0]]).double(), torch.tensor([0.5]).double()
    box = (torch.tensor([[-1.0]]).double(), torch.tensor([[4.0]]).double())
    activation = graph.activations[0]
    terms = absolute_terms(graph, {activation: box}, x, radii)
    assert [t.tolist() for t in terms.values()] == [[[3 * 1.5 + 2 * 1.5 + 1]], [[5 * 4.0]]]
    # What lies behind an unknown activation is left out.
    assert len(absolute_terms(graph, {}, x, radii)) == 1


@pytest.mark.parametrize("backwards", [False, True])
def test_rounding_grows_with_the_length_of_the_sum(backwards: bool) -> None:
    wide = Linear(torch.ones(3, 100).double(), torch.zeros(3).double())
    length = 3 if backwards else 100
    assert sum_rounding(wide, backwards=backwards) == 2.0 * (length + 4) * 2.0**-52
    draft = Linear(torch.ones(3, 100), torch.zeros(3))
    assert sum_rounding(draft, backwards=backwards) == 0.0


@pytest.mark.parametrize("name", ["mlp", "conv", "residual", "leaky", "concatenation"])
def test_lengths_hold_what_float32_is_off_by(name: str) -> None:
    model, shape = build(name)
    exact = trace_model(model.double().eval(), shape)
    rough = exact.to(torch.float32)
    # The same weights in both, as float32 has them.
    nodes = [
        replace(node, op=replace(node.op, weight=op.weight.double(), bias=op.bias.double()))
        if isinstance(op := other.op, (Conv, Linear)) and isinstance(node.op, (Conv, Linear))
        else node
        for node, other in zip(exact.nodes, rough.nodes, strict=True)
    ]
    exact = replace(exact, nodes=tuple(nodes))
    x = points(shape, 4, seed=1).float()
    found = forward_all(rough, x)
    without = forward_errors(rough, found)
    with_norms = forward_errors(rough, found, layer_norms(exact))
    truth = forward_all(exact, x.double())
    for value, true, error, more in zip(found, truth, with_norms, without, strict=True):
        assert bool((error <= more).all())
        assert bool(((value.double() - true).abs() <= error.double()).all())


def test_lengths_do_not_grow_as_absolute_weights_do() -> None:
    """Forty orthogonal layers: errors by absolute weights grow a thousandfold every few of them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(40):
        layer = nn.Linear(32, 32)
        nn.init.orthogonal_(layer.weight)
        layers += [layer, nn.ReLU()]
    graph = trace_model(nn.Sequential(*layers, nn.Linear(32, 3)).double(), (32,))
    values = forward_all(graph, points((32,), 2, seed=1))
    assert float(forward_errors(graph, values)[-1].amin()) > 1.0
    assert float(forward_errors(graph, values, layer_norms(graph))[-1].amax()) < 1e-10


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_lengths_hold_what_an_earlier_layer_rounded_off(share: float) -> None:
    """A sum that cancels, handed on: without the norm of the next layer its error is forgotten."""
    generator = torch.Generator().manual_seed(0)
    weight = 1000 * torch.randn(8, 64, generator=generator)
    x = torch.rand(1, 64, generator=generator)
    weight[:, -1] = -(weight[:, :-1] @ x[0, :-1]) / x[0, -1]
    first, second = nn.Linear(64, 8, bias=False), nn.Linear(8, 8, bias=False)
    first.weight.data, second.weight.data = weight, torch.eye(8)
    exact = trace_model(nn.Sequential(first, nn.ReLU(), second).double(), (64,))
    norms = {i: share * norm for i, norm in layer_norms(exact).items()}
    rough = exact.to(torch.float32)
    found = forward_all(rough, x)
    error = forward_errors(rough, found, norms)[-1]
    off = (found[-1].double() - forward_all(exact, x.double())[-1]).abs()
    assert bool((off <= error).all()) == (share == 1.0)
