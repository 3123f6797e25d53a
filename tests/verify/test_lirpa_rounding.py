"""auto-LiRPA's bounds where digits cancel: its boxes allow for rounding as the native ones do."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from exact_values import exact_values, fractions
from torch import Tensor, nn

from greg_cert.verify import certify
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.bounds.lirpa.rounding import node_rounding
from greg_cert.verify.graph.rounding import interval_rounding
from greg_cert.verify.graph.trace import trace_model

NORMS = (2.0, math.inf)


class Cancelling(nn.Module):
    """Units of one direction whose sum is zero but for rounding, read by a large head."""

    def __init__(self, seed: int, first: float, head: float, kind: str) -> None:
        super().__init__()
        self.kind = kind
        generator = torch.Generator().manual_seed(seed)
        direction, share = (
            torch.rand(*shape, generator=generator, dtype=torch.float64)
            for shape in ((1, 2), (3, 1))
        )
        row = torch.randn(3, generator=generator, dtype=torch.float64)
        row[2] = -(row[:2] * share[:2, 0]).sum() / share[2, 0]
        self.first, self.second = nn.Linear(2, 3).double(), nn.Linear(3, 1).double()
        self.branch, self.head = nn.Linear(2, 1).double(), nn.Linear(1, 1).double()
        with torch.no_grad():
            for layer in (self.first, self.second, self.branch, self.head):
                layer.bias.zero_()
            self.first.weight.copy_(first * share @ direction)
            self.second.weight.copy_(row.unsqueeze(0))
            self.head.weight.fill_(head)
            if kind == "branches":  # the whole again by another way, with the other sign
                self.second.weight[0, 2] = 0.0
                self.branch.weight.copy_(first * row[2] * share[2, 0] * direction)
            elif kind == "bias":  # zero at the diagonal x₀ + x₁ = 1, far from it elsewhere
                self.first.weight.copy_(first * share.expand(3, 2))
                self.first.bias.copy_(-first * share[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        z = self.second(F.relu(h) if self.kind == "relu" else h)
        if self.kind == "branches":
            z = z + self.branch(x)
        return self.head(F.relu(z))


def crossed(model: nn.Module, x: Tensor, radius: Tensor, norm: float, threshold: float) -> int:
    """Samples with a point inside their certified ball that is accepted."""
    found = 0
    for centre, r in zip(x, radius.tolist(), strict=True):
        move = 2 * torch.rand(3000, 2, generator=torch.Generator().manual_seed(1)).double() - 1
        points = centre + r * (1 - 1e-9) * move * (0.7 if norm == 2.0 else 1.0)
        with torch.no_grad():
            scores = -torch.logsumexp(model(points), 1)
        found += r > 0 and bool((scores <= threshold).any())
    return found


@pytest.mark.parametrize("kind", ["plain", "relu", "branches", "bias"])
@pytest.mark.parametrize(("first", "head"), [(1e6, 1e6), (1e8, 1e9)])
def test_rounding_crosses_no_certificate(kind: str, first: float, head: float) -> None:
    threshold = -first * head * 1e-17
    for seed in (5, 6, 7, 8):
        model = Cancelling(seed, first, head, kind).eval()
        x = torch.rand(4, 2, generator=torch.Generator().manual_seed(seed)).double()
        norm = NORMS[seed % 2]
        found = certify(
            model, x, threshold, side="ood", norm=norm, max_radius=0.1, engine="auto-lirpa",
            attack=False, rounds=4,
        )  # fmt: skip
        proven = torch.maximum(found.radius_certified, found.radius_lipschitz)
        assert crossed(model, x, proven, norm, threshold) == 0, (seed, norm)


@pytest.mark.parametrize("method", ["crown", "crown-ibp"])
@pytest.mark.parametrize("kind", ["plain", "relu", "branches", "bias"])
def test_boxes_hold_the_exact_values(kind: str, method: str) -> None:
    for seed in range(4):
        graph = trace_model(Cancelling(seed, 1e6, 1.0, kind), (2,))
        x = torch.rand(2, 2, generator=torch.Generator().manual_seed(seed)).double()
        radii = torch.tensor([1e-9, 0.1], dtype=torch.float64)
        for norm in NORMS:
            boxes = make_engine("auto-lirpa", graph).relax(x, radii, norm, method).preactivations
            for b in range(2):
                move = float(radii[b]) * torch.tensor([[0.0, 0.0], [0.6, 0.6], [-0.6, 0.3]])
                for y in x[b] + move.double():
                    values = exact_values(graph, y)
                    for i, (low, high) in boxes.items():
                        exact = values[graph.nodes[i].inputs[0]]
                        triples = zip(fractions(low[b]), exact, fractions(high[b]), strict=True)
                        assert all(a <= z <= c for a, z, c in triples), (seed, norm, i)


@pytest.mark.parametrize("measure", ["crown", "crown-ibp"])
def test_what_is_allowed_stays_far_below_the_boxes_of_a_tame_network(measure: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(5)]
    model = nn.Sequential(*[m for layer in layers[:-1] for m in (layer, nn.ReLU())], layers[-1])
    graph = trace_model(model, (6,))
    x, radii = torch.rand(2, 6).double(), torch.tensor([0.1, 0.1]).double()
    known = make_engine("auto-lirpa", graph).relax(x, radii, 2.0, measure).preactivations
    for i, (low, high) in known.items():
        source = graph.nodes[i].inputs[0]
        before = {j: box for j, box in known.items() if j < i}
        if measure == "crown":
            allowed = node_rounding(graph, before, source, x, radii)[0]
        else:
            allowed = interval_rounding(graph, before, x, radii)[source]
        assert bool((allowed > 0).all())
        assert bool((allowed < 1e-9 * (high - low)).all())
