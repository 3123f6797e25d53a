"""OpenMix against its formula written otherwise, and the mixtures that it is about."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.models import Classifier, build_model
from greg_cert.outlier_losses import OUTLIER_LOSSES, Outputs, openmix_loss
from greg_cert.stages import StageConfig
from greg_cert.train.feed.mixing import mixed, mixing_share
from greg_cert.train.objective.step import Batch, Objective, Terms

F64 = torch.float64


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> Classifier:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_classes": 5, "in_channels": 1, "image_size": 4}
    return build_model("mlp", **sizes, mean=[0.5], std=[0.25]).double()


def batch(known: int = 6, other: int = 6, seed: int = 0) -> Batch:
    images, low = (
        torch.rand(n, 1, 4, 4, generator=rng(seed + i), dtype=F64)
        for i, n in enumerate((known, other))
    )
    return Batch(images, torch.randint(4, (known,), generator=rng(seed)), low, low)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_cross_entropy_to_soft_labels(share: float) -> None:
    logits = (4 * torch.randn(7, 5, generator=rng(), dtype=F64)).requires_grad_()
    labels = torch.randint(4, (7,), generator=rng())
    soft = share * F.one_hot(labels, 5) + (1 - share) * F.one_hot(torch.full((7,), 4), 5)
    got = openmix_loss(logits, labels, share)
    torch.testing.assert_close(got, F.cross_entropy(logits, soft.double()))
    # Its slope: softmax less the target, for each row.
    (slope,) = torch.autograd.grad(got, logits)
    torch.testing.assert_close(slope, (logits.softmax(1).detach() - soft) / 7)
    assert openmix_loss(logits[:0], labels[:0], share).item() == 0.0


def test_without_a_mixture_or_with_other_shapes_it_is_refused() -> None:
    scores = torch.zeros(3)
    outputs = Outputs(scores, scores, torch.zeros(3, 4), -1.0, 1.0)
    with pytest.raises(UsageError, match=r"expected a mixture .* openmix, but got None"):
        OUTLIER_LOSSES["openmix"].value(outputs)
    with pytest.raises(UsageError, match=r"ood_logits \(M, K\).*\(3,\)"):
        openmix_loss(scores, torch.zeros(3, dtype=torch.int64), 0.5)


def test_mixtures_are_of_pairs_in_order() -> None:
    given = batch()
    got = mixed(given, 0.25, smoothed=False)
    assert got.low is got.high
    assert got.mixture == (got.mixture.labels, 0.25)
    for i in range(6):
        torch.testing.assert_close(got.low[i], given.low[i].lerp(given.images[i], 0.25))
        assert got.mixture.labels[i] == given.labels[i]
    assert torch.equal(got.images, given.images)
    kept = mixed(given, 0.25, smoothed=True)
    assert kept.high is given.high
    assert len(kept.whole()) == 18
    nothing = Batch(given.images, given.labels)
    assert mixed(nothing, 0.25, smoothed=False) is nothing


@pytest.mark.parametrize("other", [12, 4])
def test_processes_make_the_same_mixtures_as_one(other: int) -> None:
    whole = batch(6, other)
    alone = mixed(whole, 0.6, smoothed=False)
    parts = []
    for rank in range(2):
        mine, others = (slice(rank * n // 2, (rank + 1) * n // 2) for n in (6, other))
        part = Batch(whole.images[mine], whole.labels[mine], whole.low[others])
        parts.append(mixed(part, 0.6, smoothed=False))
    assert torch.equal(torch.cat([p.low for p in parts]), alone.low)
    assert torch.equal(torch.cat([p.mixture.labels for p in parts]), alone.mixture.labels)


@pytest.mark.parametrize("alpha", [0.5, 10.0])
def test_shares_follow_the_key_and_are_beta(alpha: float) -> None:
    shares = [mixing_share(alpha, 3, 0, step) for step in range(800)]
    assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    assert mixing_share(alpha, 3, 0, 7) == shares[7]
    assert abs(stats.pearsonr(shares[1:], shares[:-1]).statistic) < 0.15


def test_a_step_is_the_loss_of_the_authors_code() -> None:
    """There: cross-entropy of ID images, and of mixtures to each of their two classes."""
    model, given = network(), batch()
    step = mixed(given, 0.7, smoothed=False)
    mixtures: Tensor = 0.7 * given.images + 0.3 * given.low
    known, both = model(given.images), model(mixtures)
    rejected = torch.full((6,), 4)
    expected = F.cross_entropy(known, given.labels) + 1.5 * (
        0.7 * F.cross_entropy(both, given.labels) + 0.3 * F.cross_entropy(both, rejected)
    )
    terms = Terms("openmix", gradient=False, lambda_score=1.5, lambda_grad=0, score="absent_class")
    out = Objective(model)(step, terms)
    torch.testing.assert_close(out["loss"], expected)


def test_with_the_gradient_penalty_the_outliers_themselves_are_smoothed() -> None:
    model, given = network(), batch()
    terms = Terms(
        **{"outlier_loss": "openmix", "gradient": True, "lambda_score": 1.0, "lambda_grad": 1.0},
        **{"score": "absent_class", "m_in": -100.0, "m_out": -50.0},
    )  # all outliers are past their margin, and no ID image
    x = given.low.clone().requires_grad_()
    logits = model(x)
    scores = (logits[:, -1].exp() / logits[:, :-1].exp().sum(1)).log()
    (slope,) = torch.autograd.grad(scores.sum(), x)
    out = Objective(model)(mixed(given, 0.7, smoothed=True), terms)
    expected = slope.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(out["grad_loss"], expected)


def test_the_preset_is_that_of_the_paper() -> None:
    stage = StageConfig(method="openmix", epochs=1, lr=0.1)
    assert (stage.score, stage.outlier_loss, stage.lambda_score) == ("absent_class", "openmix", 1)
    assert (stage.strategy, stage.mix_alpha, stage.mixes) == ("random", 10.0, True)
    assert stage.has_absent_class
    assert not stage.uses_margins
    penalised = StageConfig(method="openmix+grad", epochs=1, lr=0.1)
    assert penalised.uses_margins
    assert not penalised.model_copy(update={"scaling": "reference"}).uses_margins
