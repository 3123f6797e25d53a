from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from greg_cert.detectors.features.line import contributions, important, line, line_logits
from greg_cert.detectors.penultimate import Head


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


D, K = 9, 4
HEAD = Head(normal(0, K, D), normal(1, K))
TRAIN = normal(2, 60, D).abs()
LABELS = torch.arange(60) % K
TEST = 2 * normal(3, 25, D).abs()


def naive_score(z: list[float], p_a: float, p_w: float, clip: float) -> float:
    """LINe for one sample, a number at a time."""
    w, b = HEAD.weight.tolist(), HEAD.bias.tolist()
    shares = []
    for k in range(K):
        own = [t for t, y in zip(TRAIN.tolist(), LABELS.tolist(), strict=True) if y == k]
        shares.append([sum(t[i] * w[k][i] for t in own) / len(own) for i in range(D)])
    z = [min(v, clip) for v in z]
    logits = [b[j] + sum(w[j][i] * z[i] for i in range(D)) for j in range(K)]
    y = logits.index(max(logits))
    feature_cut = np.percentile(shares[y], 100 * p_a)
    weighted = [[abs(shares[y][i]) * w[j][i] for i in range(D)] for j in range(K)]
    weight_cut = np.percentile(weighted, 100 * p_w)
    total = 0.0
    for j in range(K):
        logit = b[j]
        for i in range(D):
            if shares[y][i] > feature_cut and weighted[j][i] > weight_cut:
                logit += w[j][i] * z[i]
        total += math.exp(logit)
    return -math.log(total)


@pytest.mark.parametrize(("p_a", "p_w", "clip"), [(0.9, 0.9, 1.0), (0.1, 0.9, 0.7), (0.1, 0.1, 9)])
def test_line_is_the_loop(p_a: float, p_w: float, clip: float) -> None:
    found = line(HEAD, TRAIN, LABELS, p_a=p_a, p_w=p_w, clip=clip)
    for z, score in zip(TEST, found.score(TEST), strict=True):
        assert float(score) == pytest.approx(naive_score(z.tolist(), p_a, p_w, clip), rel=1e-9)


def test_contributions_are_the_shapley_values_of_a_linear_logit() -> None:
    """Each feature's mean marginal contribution over all orders, absent features at 0."""
    from itertools import permutations

    head, z, k = Head(HEAD.weight[:, :4], HEAD.bias), TRAIN[0, :4], int(LABELS[0])
    values = torch.zeros(4).double()
    for order in permutations(range(4)):
        present = torch.zeros(4).double()
        for i in order:
            before = head.logits(present)[k]
            present[i] = z[i]
            values[i] += head.logits(present)[k] - before
    found = contributions(head, z[None], LABELS[:1])
    torch.testing.assert_close(found[k], values / math.factorial(4))
    assert not found[torch.arange(K) != k].any()  # classes without a sample


def test_nothing_pruned_and_nothing_clipped_leaves_the_logits() -> None:
    kept = important(HEAD, contributions(HEAD, TRAIN, LABELS), 0.0, 0.0)
    kept = kept._replace(
        features=torch.ones_like(kept.features), threshold=torch.full_like(kept.threshold, -1e9)
    )
    torch.testing.assert_close(line_logits(HEAD, kept, TEST, 1e9), HEAD.logits(TEST))


def test_the_class_of_the_clipped_sample_decides() -> None:
    """Three features, two classes: by hand."""
    head = Head(torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.5]]).double(), torch.zeros(2).double())
    train = torch.tensor([[4.0, 1.0, 1.0], [1.0, 3.0, 2.0]]).double()
    # C = [[4, 0, 1], [0, 6, 1]]; at 0.5 class 0 keeps feature 0, class 1 keeps feature 1;
    # |C₀|·W = [[4, 0, 1], [0, 0, .5]] has quantile(0.9) 2.5: of W only W₀₀ stays
    found = line(head, train, torch.tensor([0, 1]), p_a=0.5, p_w=0.9, clip=3.0).score
    z = torch.tensor([[5.0, 1.0, 2.0]]).double()  # clipped to (3, 1, 2): logits 5 and 3
    assert float(found(z)) == pytest.approx(-math.log(math.exp(3.0) + 1))


@pytest.mark.parametrize(
    ("classes", "p_a", "p_w"), [(4, 0.9, 0.9), (10, 0.9, 0.9), (100, 0.1, 0.9), (101, 0.1, 0.1)]
)
def test_defaults_are_the_authors_for_that_many_classes(
    classes: int, p_a: float, p_w: float
) -> None:
    head = Head(normal(4, classes, D), normal(5, classes))
    found = line(head, TRAIN, LABELS, p_a=None, p_w=None, clip=None)
    clip = pytest.approx(np.percentile(TRAIN.numpy(), 90))
    assert found.options == {"p_a": p_a, "p_w": p_w, "clip": clip}
    assert found.score(TEST).isfinite().all()
