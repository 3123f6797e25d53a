"""Detectors that read the logits alone. Higher = more OOD, for every score.

MSP, MaxLogit, energy and the Weibull fit of OpenMax are pytorch-ood's. Four kernels are our own,
because pytorch-ood's lose digits that confident networks need: it clips probabilities to
[1e-7, 1 − 1e-7] for GEN, so that all samples above that tie, and at 1e-7 for the entropy, and its
KL matching takes logarithms of probabilities that may be 0. Its search for a temperature stops
after fifty small steps, wherever it is. OpenMax's second half is our own too: there, pytorch-ood
leaves the distance to a class at 0 unless some sample of the batch is predicted as it, so that
scores depend on what else is in the batch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_ood.detector import EnergyBased, MaxLogit, MaxSoftmax
from pytorch_ood.detector.openmax.libnotmr import LibNotMR
from scipy.optimize import minimize_scalar
from torch import Tensor

from greg_cert.detectors.fitted import Fitted, Score

_TEMPERATURES = 0.05, 20.0  # among which one is sought


def msp() -> Fitted:
    """Negative maximum softmax probability, −max softmax f(x)."""
    return Fitted(MaxSoftmax.score)


def mls() -> Fitted:
    """Negative maximum logit, −max f(x)."""
    return Fitted(MaxLogit.score)


def ebo(*, temperature: float) -> Fitted:
    """Free energy, −T·logsumexp(f(x)/T)."""
    return Fitted(lambda logits: EnergyBased.score(logits, t=temperature))


def entropy() -> Fitted:
    """Entropy of the softmax in nats, −Σ p·log p, without pytorch-ood's clip of p at 1e-7."""

    def score(logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=1)
        return -(log_p.exp() * log_p).sum(1)

    return Fitted(score)


def gen(*, gamma: float, top: int) -> Fitted:
    """Generalised entropy, Σ over the `top` largest p of (p·(1 − p))^γ.

    The sum is the paper's with its sign turned; pytorch-ood's mean orders the same. It is not
    clipped at p = 1e-7 as there. 1 − p is −expm1(log p), which keeps the digits of a p
    near 1.
    """

    def score(logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=1).topk(min(top, logits.shape[1]), dim=1).values
        return (log_p.exp() * -torch.expm1(log_p)).pow(gamma).sum(1)

    return Fitted(score)


def tempscale(logits: Tensor, labels: Tensor, *, temperature: float | None) -> Fitted:
    """Maximum softmax probability of f/T: log((1 − p)/p) with p = max softmax(f(x)/T).

    T has the least negative log-likelihood of the labels, which have to be of images that the
    network was not trained on: where all are predicted, as often on training data, it falls with T,
    and T is the least of the range sought, 0.05 … 20. The log-odds order as −p does, without ties
    where p rounds to 1.

    Source: Guo et al., ICML 2017, section 4.2; the score of f/T as in ODIN (Liang et al., ICLR
    2018) without its perturbation, and in OpenOOD.
    """

    def loss(log_t: float) -> float:
        return float(F.softplus(odds_against(logits / np.exp(log_t), labels)).mean())

    if temperature is None:
        found = minimize_scalar(
            loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-9}
        )
        temperature = float(np.exp(found.x))
    t = temperature
    return Fitted(lambda f: odds_against(f / t, f.argmax(1)), {"temperature": t})


def odds_against(logits: Tensor, y: Tensor) -> Tensor:
    """Log-odds (B,) of all other classes against y (B,) in the softmax of logits (B, K)."""
    gaps = logits - logits.gather(1, y[:, None])
    return torch.logsumexp(gaps.scatter(1, y[:, None], -torch.inf), dim=1)


def klm(train: Tensor) -> Fitted:
    """KL divergence of the softmax to the nearest mean softmax of a class, min_k KL(p ‖ d_k).

    d_k is the mean over the training samples predicted as k; a class that none is predicted as has
    no d_k. Computed with logarithms throughout, so that it is finite where d_k underflows.
    """
    log_p = torch.log_softmax(train, dim=1)
    predicted = train.argmax(1)
    means = [torch.logsumexp(log_p[predicted == k], 0) for k in predicted.unique()]
    counts = [int((predicted == k).sum()) for k in predicted.unique()]
    log_d = torch.stack(means) - torch.tensor(counts, dtype=train.dtype).log()[:, None]  # (k, K)

    def score(logits: Tensor) -> Tensor:
        log_q = torch.log_softmax(logits, dim=1)
        q = log_q.exp()
        return ((q * log_q).sum(1, keepdim=True) - q @ log_d.T).amin(1)

    return Fitted(score)


def openmax(train: Tensor, labels: Tensor, *, tail: int, alpha: int) -> Fitted:
    """Log-odds of OpenMax's unknown class.

    μ_k is the mean logit vector of the correctly classified training samples of class k, and F_k
    the Weibull distribution of the `tail` largest distances ‖f − μ_k‖₂ of these. The i-th largest
    logit f_k, i = 1 … α, is multiplied by 1 − F_k(‖f(x) − μ_k‖)·(α + 1 − i)/α; what it loses is
    summed into the unknown class's logit v₀. The score is v₀ − logsumexp of the revised logits,
    which orders inputs as the unknown class's probability does, without saturating. A class without
    a correct sample counts as infinitely far, F = 1.

    Source: Bendale and Boult, CVPR 2016, algorithms 1 and 2; the Weibull fit is pytorch-ood's.
    """
    classes = train.shape[1]
    alpha = min(alpha, classes)
    centers, tails = train.new_zeros(classes, classes), []
    for k in range(classes):
        own = train[(labels == k) & (train.argmax(1) == k)]
        if len(own):
            centers[k] = own.mean(0)
        tails.append(_tail_probability((own - centers[k]).norm(dim=1), tail))
    weights = torch.arange(alpha, 0, -1, dtype=train.dtype) / alpha  # 1 for the largest

    def score(logits: Tensor) -> Tensor:
        far = torch.cdist(logits, centers, compute_mode="donot_use_mm_for_euclid_dist")  # (B, K)
        far = torch.stack([tails[k](far[:, k]) for k in range(classes)], dim=1)
        top = logits.topk(alpha, dim=1).indices
        lost = torch.zeros_like(logits).scatter(1, top, far.gather(1, top) * weights) * logits
        return lost.sum(1) - torch.logsumexp(logits - lost, dim=1)

    return Fitted(score)


def _tail_probability(distances: Tensor, tail: int) -> Score:
    """F of a distance, (B,) to (B,), fitted to the `tail` largest distances (N,) of a class."""
    if len(distances) == 0:
        return torch.ones_like
    low, high = (float(v) for v in torch.aminmax(distances.sort().values[-tail:]))
    if high - low <= 1e-12 * high:  # one sample, or all alike: no tail to fit
        return lambda far: (far > high).to(far.dtype)
    fit = LibNotMR(tailsize=tail)
    with np.errstate(all="ignore"):  # the optimiser tries shapes that overflow
        fit.fit_high(distances.numpy())
    return lambda far: torch.from_numpy(np.asarray(fit.w_score(far.numpy())))
