from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_ood.detector import GEN, Entropy, KLMatching, OpenMax, TemperatureScaling
from scipy.stats import weibull_min
from torch import Tensor

from greg_cert.detectors.logit_methods import (
    ebo,
    entropy,
    gen,
    klm,
    mls,
    msp,
    openmax,
    tempscale,
)
from greg_cert.scores import energy, max_logit, max_softmax


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def logits_and_labels(seed: int, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits that mostly favour the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return normal(seed, count, classes, scale=1.5).scatter_add(
        1, labels[:, None], torch.full((count, 1), 3.0, dtype=torch.float64)
    ), labels


LOGITS = torch.tensor([[math.log(1), math.log(2), math.log(5)], [0.0, 0.0, 0.0]]).double()


def test_msp_mls_ebo_entropy_and_gen_of_probabilities_in_eighths() -> None:
    third = 1 / 3
    log = [math.log(v) for v in (1, 2, 5)]
    torch.testing.assert_close(msp().score(LOGITS), torch.tensor([-5 / 8, -third]).double())
    torch.testing.assert_close(mls().score(LOGITS), torch.tensor([-math.log(5), 0.0]).double())
    expected = torch.tensor([-math.log(8), -math.log(3)]).double()
    torch.testing.assert_close(ebo(temperature=1.0).score(LOGITS), expected)
    halved = -2 * math.log(sum(math.exp(v / 2) for v in log))
    assert ebo(temperature=2.0).score(LOGITS)[0] == pytest.approx(halved, rel=1e-7)
    nats = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    assert entropy().score(LOGITS).tolist() == pytest.approx([nats, math.log(3)], rel=1e-6)
    powers = [(p * (1 - p)) ** 0.1 for p in (5 / 8, 2 / 8, 1 / 8)]
    for top in (1, 2, 3, 100):
        found = float(gen(gamma=0.1, top=top).score(LOGITS)[0])
        assert found == pytest.approx(sum(powers[:top]), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_our_own_scores_are_the_same(scale: float) -> None:
    logits = normal(0, 200, 10, scale=scale)
    for method, own in ((ebo(temperature=1.0), energy), (mls(), max_logit), (msp(), max_softmax)):
        torch.testing.assert_close(method.score(logits), own(logits), rtol=0, atol=1e-9)


def test_pytorch_ood_agrees_where_it_does_not_clip() -> None:
    logits = normal(1, 50, 6)
    torch.testing.assert_close(entropy().score(logits), Entropy.score(logits))
    for top in (3, 6):
        ours = gen(gamma=0.1, top=top).score(logits) / top
        torch.testing.assert_close(ours, GEN.score(logits, M=top))
    train = normal(2, 80, 6)
    theirs = KLMatching(None).fit_logits(train).predict_logits(logits)
    torch.testing.assert_close(klm(train).score(logits), theirs)


def test_tempscale_has_the_least_loss_of_all_temperatures() -> None:
    """By its derivative in 1/T, of which the loss is a convex function, and by pytorch-ood."""
    logits, labels = logits_and_labels(3, 400, 5)
    for scale in (0.3, 1.0, 4.0):
        t = tempscale(scale * logits, labels, temperature=None).options["temperature"]
        inverse = torch.tensor(1 / t, dtype=torch.float64, requires_grad=True)
        loss = F.cross_entropy(scale * logits * inverse, labels)
        (slope,) = torch.autograd.grad(loss, inverse)
        assert abs(float(slope)) < 1e-6 * scale
        theirs = TemperatureScaling(None).fit_logits(scale * logits, labels).t
        assert loss < F.cross_entropy(scale * logits / theirs, labels) + 1e-12
    assert t == pytest.approx(
        tempscale(logits, labels, temperature=None).options["temperature"] * 4
    )


def test_tempscale_is_the_log_odds_of_the_softmax_at_its_temperature() -> None:
    logits, labels = logits_and_labels(4, 60, 5)
    p = torch.softmax(logits / 2.5, 1).amax(1)
    fitted = tempscale(logits, labels, temperature=2.5)
    assert fitted.options == {"temperature": 2.5}
    torch.testing.assert_close(fitted.score(logits), torch.log((1 - p) / p))
    theirs = TemperatureScaling(None)
    theirs.t.data, theirs._is_fitted = torch.tensor(2.5).double(), True
    order = fitted.score(logits).argsort()
    assert torch.equal(theirs.predict_logits(logits).argsort(), order)
    sure = 100 * F.one_hot(torch.arange(3)).double() * torch.tensor([1.0, 2.0, 3.0]).double()
    assert (tempscale(sure, torch.arange(3), temperature=1.0).score(sure).diff() < 0).all()


def test_where_every_label_is_predicted_the_temperature_is_the_least() -> None:
    logits = 3 * F.one_hot(torch.arange(5)).double()
    fitted = tempscale(logits, torch.arange(5), temperature=None)
    assert fitted.options["temperature"] == pytest.approx(0.05, rel=1e-3)
    assert fitted.score(logits).isfinite().all()


def test_confident_samples_do_not_tie() -> None:
    logits = torch.zeros(3, 4).double()
    logits[:, 0] = torch.tensor([40.0, 25.0, 20.0])
    for method in (entropy(), gen(gamma=0.1, top=100)):
        assert (method.score(logits).diff() > 0).all()


def test_klm_is_the_divergence_by_hand_and_finite_at_the_extremes() -> None:
    train = torch.tensor([[3.0, 0.0], [1.0, 0.5], [0.0, 2.0]]).double()
    p = torch.softmax(train, 1)
    means = [(p[0] + p[1]) / 2, p[2]]
    q = torch.softmax(torch.tensor([0.2, 0.1]).double(), 0)
    expected = min(float((q * (q / d).log()).sum()) for d in means)
    assert float(klm(train).score(torch.tensor([[0.2, 0.1]]).double())) == pytest.approx(expected)
    far = torch.tensor([[2000.0, 0.0], [0.0, 2000.0]]).double()
    assert klm(far[:1]).score(far).tolist() == [0.0, 2000.0]


def naive_openmax(train: Tensor, labels: Tensor, x: Tensor, tail: int, alpha: int) -> float:
    """The algorithm one sample at a time, with scipy's own Weibull for the translated tail."""
    order = sorted(range(len(x)), key=lambda k: -float(x[k]))
    revised, unknown = x.clone(), 0.0
    for rank, k in enumerate(order[:alpha]):
        own = [t for t, y in zip(train, labels, strict=True) if y == k and int(t.argmax()) == k]
        center = torch.stack(own).mean(0)
        distances = sorted(float((t - center).norm()) for t in own)[-tail:]
        shifted = [d + 10_000 - distances[0] for d in distances]
        shape, _, scale = weibull_min.fit(shifted, floc=0)
        far = float((x - center).norm()) + 10_000 - distances[0]
        w = float(weibull_min.cdf(far, shape, scale=scale)) * (alpha - rank) / alpha
        revised[k] = x[k] * (1 - w)
        unknown += float(x[k]) * w
    return unknown - float(torch.logsumexp(revised, 0))


def test_openmax_is_the_algorithm_and_does_not_depend_on_the_batch() -> None:
    train, labels = logits_and_labels(3, 200, 4)
    x = normal(4, 12, 4, scale=3.0)
    score = openmax(train, labels, tail=20, alpha=3).score
    for row, found in zip(x, score(x), strict=True):
        expected = naive_openmax(train, labels, row, 20, 3)
        assert float(found) == pytest.approx(expected, rel=1e-3, abs=1e-3)  # two optimisers
    torch.testing.assert_close(torch.cat([score(row[None]) for row in x]), score(x))


def test_openmax_is_pytorch_oods_where_the_batch_has_every_class() -> None:
    train, labels = logits_and_labels(7, 200, 4)
    x = torch.cat([normal(8, 20, 4, scale=3.0), 5 * torch.eye(4).double()])
    correct = train.argmax(1) == labels
    theirs = OpenMax(None, tailsize=20, alpha=3).fit_logits(train[correct], labels[correct])
    score = openmax(train, labels, tail=20, alpha=3).score
    torch.testing.assert_close(torch.sigmoid(score(x)), theirs.predict_logits(x))


def test_openmax_with_classes_of_no_or_one_sample() -> None:
    train, labels = logits_and_labels(5, 60, 3)
    keep = (labels != 2) & ((labels != 1) | (torch.arange(60) == int((labels == 1).nonzero()[0])))
    score = openmax(train[keep], labels[keep], tail=20, alpha=50).score
    assert score(normal(6, 40, 3, scale=10.0)).isfinite().all()
