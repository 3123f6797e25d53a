"""PRO: the most OOD that an image looks on a short path of ascent, by the score of one's choice.

All take `steps` steps x ← x + `eps`·sign ∇S(x), S higher = more OOD, and give the largest S met, x
itself included: a lower bound of the largest in the l-inf ball of radius `steps`·`eps`. (The paper
minimises a confidence, −S.) Images are not clipped.

The authors step in normalised pixels, and search size and number of steps on OOD validation data.
Defaults are the values that their code starts from, steps multiplied by 0.25, the standard
deviation of CIFAR-10's pixels.

Source: Chen et al., CVPR 2025, section 3 and algorithm 1; the authors' code for the defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.detectors.fitted import Fitted, Score
from greg_cert.detectors.logit_methods import ebo, entropy, gen, msp, odds_against
from greg_cert.detectors.penultimate import Penultimate

_ROWS = 64  # of images whose network is kept until it is differentiated


def pro_msp(network: Penultimate, *, temperature: float, eps: float, steps: int) -> Fitted:
    """PRO-MSP: −max softmax(f/T), the largest on the path; T ≠ 1 makes it PRO-MSP-T.

    Its gradient is 0 where float64 rounds the maximum to 1, so the ascent follows the log-odds
    of the other classes, which grow as it does.
    """

    def odds(logits: Tensor) -> Tensor:
        return odds_against(logits / temperature, logits.argmax(1))

    value = msp().score
    return _ascent(network, lambda logits: value(logits / temperature), odds, eps, steps)


def pro_ent(network: Penultimate, *, eps: float, steps: int) -> Fitted:
    """PRO-ENT: the entropy of the softmax in nats, the largest on the path."""
    value = entropy().score
    return _ascent(network, value, value, eps, steps)


def pro_gen(network: Penultimate, *, gamma: float, top: int, eps: float, steps: int) -> Fitted:
    """PRO-GEN: generalised entropy, the largest on the path."""
    value = gen(gamma=gamma, top=top).score
    return _ascent(network, value, value, eps, steps)


def pro_energy(network: Penultimate, *, temperature: float, eps: float, steps: int) -> Fitted:
    """The free energy −T·logsumexp(f/T), the largest on the path; no row of the paper's tables.

    The authors' `pro_ebo` climbs towards the lower energy and gives that of the last step; here it
    is as the paper's others. `certified-energy` bounds it over the whole ball.
    """
    value = ebo(temperature=temperature).score
    return _ascent(network, value, value, eps, steps)


def _ascent(network: Penultimate, value: Score, climbed: Score, eps: float, steps: int) -> Fitted:
    """The largest `value` on the path that climbs `climbed`, which orders logits as it does."""

    def largest(x: Tensor) -> Tensor:
        x, found = x.to(torch.float64), []
        for _ in range(steps):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                logits = network.logits(leaf)
                (slope,) = torch.autograd.grad(climbed(logits).sum(), leaf)
            found.append(value(logits.detach()))
            x = x + eps * slope.sign()  # 0 of a NaN, as where a probability is 0
        with torch.no_grad():
            found.append(value(network.logits(x)))
        return torch.stack(found).amax(0)

    def score(x: Tensor) -> Tensor:
        return torch.cat([largest(rows) for rows in x.split(_ROWS)]).cpu()

    return Fitted(score)
