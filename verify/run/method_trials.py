"""What each method costs on a network, and how far it reaches, on a few samples in little time.

A method is begun on one sample where it is expected to be done in time, by the passes through the
network that it takes and by how far the last method was from such a guess; then on the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from greg_cert.scores import score_of
from greg_cert.verify.certifier import Certifier
from greg_cert.verify.graph.ops import NONLINEAR, Conv, Graph, Linear, forward_all
from greg_cert.verify.graph.trace import multiplications
from greg_cert.verify.lipschitz.global_radius import first_order_reach
from greg_cert.verify.options import read_options
from greg_cert.verify.scorer import logit_function

_BALLS = 14  # that a radius takes
_ROWS = 16  # at once, where one alone takes no time
_COUNT = 3
_MAX_RADIUS = 2.0
_SOON = 0.05  # seconds

Tell = Callable[[str], None]


def silent(_: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Samples:
    """Samples that methods are tried on."""

    x: Tensor  # (B, ...) raw pixels
    threshold: float  # of the score, accepted at most
    score: str
    what: str  # where they are from


@dataclass(frozen=True)
class Trial:
    """One method tried, or why it was not."""

    method: str
    samples: int  # on how many it was tried
    seconds: float  # a sample; projected where it was not tried
    radius: float  # the median in ℓ2 that it proved; NaN where it was not tried
    why: str | None = None


def made_up(model: nn.Module, input_shape: tuple[int, ...]) -> Samples:
    """Images of noise, with a threshold of one above the largest of their energies."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.rand(_COUNT, *input_shape, generator=generator, dtype=torch.float64, device="cpu")
    x = x.to(next(iter(model.parameters()), x).device)
    with torch.no_grad():
        scores = score_of("energy")(logit_function(model)(x))
    return Samples(x, float(scores.max()) + 1.0, "energy", "made-up images, 1 below the threshold")


def tried_methods(
    model: nn.Module,
    graph: Graph,
    samples: Samples,
    lipschitz: float,
    norms_left: float,
    deadline: float,
    tell: Tell = silent,
) -> Iterator[Trial]:
    """Each bounding method in turn, the cheapest first, until the monotonic clock's `deadline`.

    `lipschitz` is the constant of the energy everywhere, NaN where it is not known, and
    `norms_left` the seconds that norms would take that are not known.
    """
    x = samples.x.double()
    yield _everywhere(graph, x, samples, lipschitz, norms_left)
    error = 1.0  # of the last guess
    for method, guess in _guesses(graph, x[:1]).items():
        expected = error * guess
        needs = norms_left if method == "sdp-crown" else 0.0
        left = deadline - time.monotonic()
        if needs + expected > left:
            once = f", {duration(needs)} of them once, for norms of layers" if needs else ""
            why = f"about {duration(needs + expected)} for the first sample{once}"
            yield Trial(method, 0, expected, math.nan, why)
            continue
        tell(f"try {method}, about {duration(expected)} a sample")
        radii, spent = _radii(model, graph, method, x[:1], samples)
        error = max(0.1, spent / guess) if spent > 0.1 else min(1.0, error)
        done, seconds = 1, spent
        rest = len(x) - 1
        if rest and rest * spent < deadline - time.monotonic():
            more, again = _radii(model, graph, method, x[1:], samples)
            radii, done, seconds = torch.cat([radii, more]), len(x), (spent + again) / len(x)
        yield Trial(method, done, seconds, float(radii.median()))


def _everywhere(
    graph: Graph, x: Tensor, samples: Samples, lipschitz: float, norms_left: float
) -> Trial:
    """The distance to the threshold by the constant of the whole space."""
    name = "lipschitz (global)"
    if math.isnan(lipschitz) or samples.score != "energy":
        why = f"the constant here is of the energy, not of {samples.score}"
        if norms_left:
            why = f"about {duration(norms_left)} once, for norms of layers"
        return Trial(name, 0, norms_left, math.nan, why)
    start = time.monotonic()
    with torch.no_grad():
        gap = samples.threshold - score_of(samples.score)(forward_all(graph, x)[-1])
    reach = first_order_reach(lipschitz, gap, torch.zeros_like(gap)).clamp(max=_MAX_RADIUS)
    return Trial(name, len(x), (time.monotonic() - start) / len(x), float(reach.median()))


def _radii(
    model: nn.Module, graph: Graph, method: str, x: Tensor, samples: Samples
) -> tuple[Tensor, float]:
    """Proven radii (B,), and the seconds that they took."""
    start = time.monotonic()
    options = read_options(
        method,
        engine="native",
        max_radius=_MAX_RADIUS,
        score=samples.score,
        lipschitz=False,
        attack=False,
    )
    found = Certifier(model, graph, samples.threshold, options)(
        x, torch.arange(len(x), device="cpu"), None
    )
    return found.radius_certified, time.monotonic() - start


def _guesses(graph: Graph, x: Tensor) -> dict[str, float]:
    """Seconds of one sample by each method, about, the cheapest first.

    Intervals take some passes a ball, CROWN a row a neuron besides, the last layers the longest;
    the affine layers before the first activation are read row by row once.
    """
    once = _pass(graph, x)
    row = once if once > _SOON else _pass(graph, x.expand(_ROWS, *x.shape[1:])) / _ROWS
    below, total, rows = 0, max(1, multiplications(graph)), []
    for node in graph.nodes:
        if isinstance(node.op, NONLINEAR):
            rows.append(row * math.prod(node.shape) * below / total)  # of its neurons, back down
        elif isinstance(node.op, (Conv, Linear)):
            below += node.op.weight.numel() * math.prod(node.shape[1:])
    begin, ball = sum(rows[:1]), 8 * once
    crown = ball + sum(rows[1:]) / 2
    return {
        "crown-ibp": begin + _BALLS * ball,
        "sdp-crown": begin + 250 * once + (_BALLS * crown if crown < 5 * ball else 0.0),
        "crown": begin + _BALLS * crown,
        "alpha-crown": begin + 11 * _BALLS * crown,
        "branch": begin + 6 * _BALLS * crown,
    }


def duration(seconds: float) -> str:
    """Seconds as one reads them."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _pass(graph: Graph, x: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.monotonic()
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        forward_all(graph, leaf)[-1].sum().backward()
    return time.monotonic() - start
