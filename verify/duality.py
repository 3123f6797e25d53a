"""From linear bounds of the logits to radii for the energy score, by convex duality (DESIGN §5).

logsumexp f = max over the simplex of p·f + H(p). So for any fixed p, S(x′) ≤ −p·f(x′) − H(p), and a
linear bound p·f(x′) ≥ c + a·(x′ − x) on the ball of radius ε certifies acceptance within
min{ε, (γ + c + H(p))/‖a‖*}. Rejection needs an upper bound of logsumexp instead, which follows from
one of each logit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.verify.engine import Relaxation

_SLACK = 1e-9  # of the margin, relative to the numbers it is the difference of
_STEPS = 60  # of bisection: down to float64 resolution


def entropy(p: Tensor) -> Tensor:
    """H(p) = −Σ p log p, (B, K) -> (B,), with 0 log 0 = 0."""
    return -torch.xlogy(p, p).sum(1)


@torch.no_grad()
def acceptance_radius(relaxation: Relaxation, p: Tensor, threshold: float) -> Tensor:
    """Radius (B,) within which S ≤ γ follows from one row p (B, K), if the ball is that large.

    Zero where the bound fails at the centre. Valid only up to the radius of the relaxation: the
    caller takes the minimum.
    """
    value, slope = (t.squeeze(1) for t in relaxation.linear(p.unsqueeze(1)))
    slack = _SLACK * (1 + value.abs() + abs(threshold))
    # Rounding leaves Σp off one by some ulps, which moves p·f by that times |f|: inside the slack.
    gap = threshold + value + entropy(p) - slack
    return torch.where(gap > 0, gap / slope, torch.zeros_like(gap))


@torch.no_grad()
def rejection_radius(
    relaxation: Relaxation, num_classes: int, threshold: float, cap: Tensor
) -> Tensor:
    """Radius (B,) ≤ `cap` (B,) within which S > γ follows from linear upper bounds of all logits.

    At distance r every logit is at most u_i + r·‖a_i‖*, and logsumexp of those grows with r; the
    largest r that keeps it below −γ is found by bisection. Zero where the bound fails at once.
    """
    eye = torch.eye(num_classes, dtype=cap.dtype, device=cap.device)
    value, slope = relaxation.linear((-eye).expand(len(cap), -1, -1))
    slack = _SLACK * (1 + value.abs().amax(1) + abs(threshold))

    def holds(r: Tensor) -> Tensor:
        return (r.unsqueeze(1) * slope - value).logsumexp(1) + slack < -threshold

    low, high = torch.zeros_like(cap), cap.clone()
    whole = holds(cap)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        good = holds(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(whole, cap, low)


def improve_row(relaxation: Relaxation, p: Tensor, steps: int, rate: float = 0.5) -> Tensor:
    """Mirror ascent on p (B, K): raise the lower bound of p·f + H(p) over the ball.

    The best p seen is kept for each sample, so the bound at the ball's own radius never falls.
    """
    best = torch.full((len(p),), -torch.inf, dtype=p.dtype, device=p.device)
    kept = p
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = p.detach().requires_grad_()
            low = relaxation.lower(leaf.unsqueeze(1)).squeeze(1)
            (gradient,) = torch.autograd.grad(low.sum(), leaf)
        value = low.detach() + entropy(p)
        better = value > best
        best = torch.where(better, value, best)
        kept = torch.where(better.unsqueeze(1), p, kept)
        if step < steps:
            # ∂H/∂p = −log p − 1; the constant cancels in the normalisation.
            logits = (1 - rate) * p.clamp_min(1e-300).log() + rate * gradient
            p = torch.softmax(logits, dim=1)
    return kept
