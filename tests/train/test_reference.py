"""`scaling: reference` is the loss of the authors' script, in training mode, for all models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.models import Classifier, build_model
from greg_cert.models.names import MODELS
from greg_cert.train.objective.step import Batch, Objective, Terms

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
ESTIMATORS = ("double-backward", "finite-difference")
SLOW = ("resnet18_32x32", "wrn40_2", "densenet100", "densenet121")
F64 = torch.float64
WEIGHT = 1e3  # λ_∇, so that its gradient is not a small part of the loss's


def network(name: str, classes: int = 4) -> Classifier:
    torch.manual_seed(0)
    size = {"densenet121": 32, "densenet100": 8}.get(name, 4)
    model = build_model(
        name, num_classes=classes, in_channels=3, image_size=size, mean=MEAN, std=STD
    )
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # layouts of memory would draw different masks
            module.p = 0.0
    return model.double().train()


def case(model: Classifier, name: str, known: int, other: int) -> tuple[Tensor, Tensor, Tensor]:
    """ID images with labels, and others, whose scores are all higher."""
    g = torch.Generator().manual_seed(1)
    size = {"densenet121": 32, "densenet100": 8}.get(name, 4)
    data = torch.rand(known + other, 3, size, size, generator=g, dtype=F64)
    with torch.no_grad():
        data = data[energies(logits_of(model, normalized(data))).argsort()]
    return data[:known], torch.randint(4, (known,), generator=g), data[known:]


def normalized(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=x.dtype).view(3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def logits_of(model: Classifier, z: Tensor) -> Tensor:
    """The network behind its normalisation."""
    out: Tensor = model.head(model.body(z))
    return out


def energies(logits: Tensor) -> Tensor:
    top = logits.amax(1)
    return -(top + (logits - top.unsqueeze(1)).exp().sum(1).log())


def margins(model: Classifier, known: Tensor, other: Tensor, share: float) -> tuple[float, float]:
    """Margins that this share of ID samples and of the others are past, in training mode."""
    with torch.no_grad():
        scores = energies(logits_of(model, normalized(torch.cat([known, other]))))
    low = scores[: len(known)].sort().values
    high = scores[len(known) :].sort(descending=True).values
    gap = (high[-1] - low[-1]) / 3

    def between(ordered: Tensor, step: Tensor) -> float:
        ends = torch.cat([ordered[:1] - step, ordered, ordered[-1:] + step])
        count = round(share * len(ordered))
        return float(ends[count : count + 2].mean())

    return between(low, gap), between(high, -gap)


def their_slopes(model: Classifier, n: int, z: Tensor, m_in: float, m_out: float) -> Tensor:
    """Row norms of the jacobian of mean hinges, by normalised pixels, in a pass of its own."""

    def hinges(data: Tensor) -> Tensor:
        s = energies(logits_of(model, data))
        return -F.relu(m_in - s[:n]).mean() + F.relu(s[n:] - m_out).mean()

    slopes = torch.autograd.functional.jacobian(hinges, z, create_graph=True)
    return slopes.flatten(1).norm(dim=1)


def their_loss(
    model: Classifier, known: Tensor, labels: Tensor, other: Tensor, m_in: float, m_out: float
) -> tuple[Tensor, Tensor]:
    """The loss as a whole, and its penalty."""
    n, z = len(known), normalized(torch.cat([known, other]))
    logits = logits_of(model, z)
    s = energies(logits)
    value = F.relu(s[:n] - m_in).square().mean() + F.relu(m_out - s[n:]).square().mean()
    penalty = their_slopes(model, n, z, m_in, m_out).mean()
    return F.cross_entropy(logits[:n], labels) + 0.1 * value + WEIGHT * penalty, penalty


TERMS = Terms(
    outlier_loss="margin",
    gradient=True,
    lambda_score=0.1,
    lambda_grad=WEIGHT,
    scaling="reference",
    gradient_space="normalized",
)


def weight_gradient(model: Classifier, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def check(model: Classifier, batch: Batch, terms: Terms, loss: Tensor, penalty: Tensor) -> None:
    """Values and weight gradients of both estimators are those of a loss and its penalty."""
    want = weight_gradient(model, loss)
    for estimator in ESTIMATORS:
        out = Objective(model)(batch, replace(terms, estimator=estimator))
        torch.testing.assert_close(out["grad_loss"], penalty.detach(), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(out["loss"], loss, rtol=1e-6, atol=0.0)
        got = weight_gradient(model, out["loss"])
        ratio, cosine = float(got.norm() / want.norm()), float(F.cosine_similarity(got, want, 0))
        assert ratio == pytest.approx(1, abs=1e-5), estimator
        assert cosine == pytest.approx(1, abs=1e-8), estimator


@pytest.mark.parametrize(
    ("name", "count", "share"),
    [
        *((n, 10, share) for n in MODELS if n not in SLOW for share in (1.0, 0.5, 0.1, 0.0)),
        *((n, 4, 0.5) for n in SLOW),  # all shares: see docs/training.md
    ],
)
def test_the_loss_and_its_weight_gradient_are_those_of_the_authors_code(
    name: str, count: int, share: float
) -> None:
    model = network(name)
    known, labels, other = case(model, name, count, count)
    m_in, m_out = margins(model, known, other, share)
    loss, penalty = their_loss(model, known, labels, other, m_in, m_out)
    assert (float(penalty.detach()) > 0) == (share > 0)
    terms = replace(TERMS, m_in=m_in, m_out=m_out)
    check(model, Batch(known, labels, other, other), terms, loss, penalty)


def test_twice_as_many_outliers_as_id_samples() -> None:
    """As in GReg+ there, where both ends of a cluster serve both losses."""
    model = network("wrn16_2")
    known, labels, other = case(model, "wrn16_2", 5, 10)
    m_in, m_out = margins(model, known, other, 0.4)
    loss, penalty = their_loss(model, known, labels, other, m_in, m_out)
    terms = replace(TERMS, m_in=m_in, m_out=m_out)
    check(model, Batch(known, labels, other, other), terms, loss, penalty)


def test_with_an_absent_class_the_gradient_of_the_loss_itself_is_penalised() -> None:
    """As there: cross-entropy of ID samples and, by its weight, of outliers; and no mask."""
    model = network("wrn16_2", classes=5)
    known, labels, other = case(model, "wrn16_2", 6, 4)
    everything = torch.cat([labels, torch.full((4,), 4)])

    def value(z: Tensor) -> Tensor:
        each = F.nll_loss(logits_of(model, z).log_softmax(1), everything, reduction="none")
        return each[:6].mean() + 0.7 * each[6:].mean()

    z = normalized(torch.cat([known, other]))
    slopes = torch.autograd.functional.jacobian(value, z, create_graph=True)
    penalty = slopes.flatten(1).norm(dim=1).mean()
    absent = replace(TERMS, score="absent_class", outlier_loss="absent_class", lambda_score=0.7)
    batch = Batch(known, labels, other, other)
    check(model, batch, absent, value(z) + WEIGHT * penalty, penalty)


@pytest.mark.parametrize("name", ["cnn_small", "liresnet", "wrn16_2"])
def test_in_float32_it_is_theirs_in_float64(name: str) -> None:
    model = network(name)
    known, labels, other = case(model, name, 10, 10)
    m_in, m_out = margins(model, known, other, 0.5)
    loss, penalty = their_loss(model, known, labels, other, m_in, m_out)
    want = weight_gradient(model, loss)
    single, other = model.float(), other.float()
    terms = replace(TERMS, m_in=m_in, m_out=m_out)
    for estimator, tolerance in zip(ESTIMATORS, (1e-3, 1e-2), strict=True):
        batch = Batch(known.float(), labels, other, other)
        out = Objective(single)(batch, replace(terms, estimator=estimator))
        assert float(out["grad_loss"]) == pytest.approx(float(penalty.detach()), rel=1e-5)
        got = weight_gradient(single, out["loss"]).double()
        assert (got - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("name", ["cnn_small", "wrn16_2"])
def test_without_shared_statistics_it_is_the_papers_by_the_number_of_samples(name: str) -> None:
    model = network(name)
    known, labels, other = case(model, name, 6, 6)
    m_in, m_out = margins(model, known, other, 0.5)
    terms = replace(TERMS, m_in=m_in, m_out=m_out, lambda_grad=1.0)
    batch = Batch(known, labels, other, other)
    one, two = (
        float(Objective(model)(batch, replace(terms, scaling=s))["grad_loss"])
        for s in ("paper", "reference")
    )
    assert (one / two == pytest.approx(12, rel=1e-9)) == (name == "cnn_small")


@pytest.mark.parametrize("scaling", ["paper", "reference"])
def test_two_processes_have_the_loss_of_their_joined_batch(scaling: str) -> None:
    model = network("cnn_small")
    known, labels, other = case(model, "cnn_small", 6, 6)
    m_in, m_out = margins(model, known, other, 0.5)
    terms = replace(TERMS, m_in=m_in, m_out=m_out, scaling=scaling)
    whole = Objective(model)(Batch(known, labels, other, other), terms)["grad_loss"]
    shared = []
    for rows in (slice(0, 3), slice(3, 6)):
        batch = Batch(known[rows], labels[rows], other[rows].clone(), None)
        batch = replace(batch, high=batch.low)
        shared.append(Objective(model)(batch, replace(terms, processes=2))["grad_loss"])
    torch.testing.assert_close(torch.stack(shared).mean(), whole)
