"""Certificates of every score, on both sides, against attacks and against radii known by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import affine, points
from score_oracles import (
    QUICK,
    SCORE_NAMES,
    crossings,
    dual,
    middle,
    nearest_below,
    network,
    past,
    score_by_hand,
)
from torch import Tensor, nn

from greg_cert.certificates.format import REJECTED
from greg_cert.certificates.methods import column_of
from greg_cert.errors import UsageError
from greg_cert.scores import score_of
from greg_cert.verify import Certificates, certify
from greg_cert.verify.certificates import ContradictionWarning
from greg_cert.verify.radius import duality, goals

NORMS = (2.0, math.inf)
SIDES = ("id", "ood")
PROOFS = "crown,alpha-crown,lipschitz"


def test_scores_by_hand_are_those_of_the_library() -> None:
    logits = 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double()
    for name in SCORE_NAMES:
        torch.testing.assert_close(score_by_hand(name, logits), score_of(name)(logits))


def attack(name: str, score: str, side: str, norm: float, **options: object) -> Certificates:
    model, x = network(name)
    threshold = middle(model, score, x)
    options = {**QUICK, "method": PROOFS, **options}
    result = certify(model, x, threshold, side=side, norm=norm, score=score, **options)  # type: ignore[arg-type]
    wrong = past(model, score, threshold, side)
    assert bool((result.radius_certified <= result.radius_attack).all())
    assert not bool(crossings(wrong, x, result.radius_certified, norm).any())
    proofs = [result.other[column_of(m)] for m in ("crown", "alpha-crown")]
    best = torch.stack([*map(torch.as_tensor, proofs), result.radius_lipschitz]).amax(0)
    assert bool((result.radius_certified == best).all())
    assert bool((result.radius_certified[torch.from_numpy(result.status == REJECTED)] == 0).all())
    return result


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_no_attack_within_a_certified_radius(score: str, side: str, norm: float) -> None:
    name, seed = ("mlp", 0) if norm == 2.0 else ("leaky", 4)
    result = attack(name, score, side, norm)
    assert bool((result.radius_certified > 0).any())
    attack(str(seed), score, side, norm)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_no_attack_within_a_radius_by_auto_lirpa(score: str, side: str) -> None:
    model, x = network("mlp")
    threshold = middle(model, score, x)
    result = certify(
        model, x, threshold, side=side, score=score, engine="auto-lirpa", method="crown,lipschitz",
        **QUICK,  # type: ignore[arg-type]
    )  # fmt: skip
    proven = torch.maximum(result.radius_certified, result.radius_lipschitz)
    assert bool((proven > 0).any())
    assert bool((proven <= result.radius_attack).all())
    assert not bool(crossings(past(model, score, threshold, side), x, proven, 2.0).any())


def test_a_wrong_entropy_or_level_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacks above would see mistakes in what all scores rest on."""
    true_rows = duality.lower_rows

    def too_large(goal: goals.Goal, p: Tensor) -> tuple[Tensor, Tensor]:
        rows, constant = true_rows(goal, p)
        return rows, constant + 0.5

    for module in ("duality", "row_bounds"):
        monkeypatch.setattr(f"greg_cert.verify.radius.{module}.lower_rows", too_large)
    for score in ("energy", "max_logit", "absent_class"):
        with pytest.raises(ContradictionWarning):
            attack("mlp", score, "id", 2.0, method="crown,alpha-crown", lipschitz=True)


def test_a_wrong_chord_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from greg_cert.verify.radius import ball, chord, row_bounds

    def too_large(*given: object) -> tuple[Tensor, Tensor]:
        rows, constant = chord.chord_rows(*given)  # type: ignore[arg-type]
        return rows, constant + 0.5

    for module in (ball, row_bounds):
        monkeypatch.setattr(module, "chord_rows", too_large)
    for score, side in (("energy", "ood"), ("absent_class", "ood"), ("max_softmax", "id")):
        with pytest.raises(ContradictionWarning):
            attack("mlp", score, side, 2.0)


# Affine networks, whose radii are known otherwise.


def affine_case(classes: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(classes, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(classes, generator=generator, dtype=torch.float64)
    return affine(w, b), w, b, points((4,), 6, seed)


def exact(
    model: nn.Module, x: Tensor, threshold: float, truth: Tensor, least: float = 0.995,
    **options: object,
) -> Certificates:  # fmt: skip
    """Certified at most the true radii, and close to them; attacks at least, and close too."""
    known = {"max_radius": 9.0, "tolerance": 1e-3, "rounds": 20, "mirror_steps": 20}
    known |= {"attack_restarts": 1, "attack_steps": 15, "lipschitz": False}  # a proof by name is
    result = certify(model, x, threshold, **known, **options)  # type: ignore[arg-type]
    radius, truth = result.radius_certified, truth.clamp(max=9.0)
    assert bool((truth > 0).any())
    assert bool((radius <= truth * (1 + 1e-12)).all()), (radius, truth)
    assert bool((radius >= least * truth - 1e-6).all()), (radius, truth)
    assert bool((result.radius_attack >= truth * (1 - 1e-7)).all())
    near = truth < 8.0
    assert bool((result.radius_attack[near] <= 1.6 * truth[near] + 1e-9).all())
    return result


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", SIDES)
def test_max_logit_of_an_affine_network(side: str, norm: float) -> None:
    """Accepted: the distance to a polyhedron. Rejected: to the nearest of K half-spaces."""
    model, w, b, x = affine_case(3)
    threshold = middle(model, "max_logit", x)
    f = x @ w.T + b
    if side == "ood":
        truth = ((-threshold - f) / dual(w, norm)).amin(1).clamp_min(0.0)
    else:
        rows = [nearest_below(w, b, row, -threshold, norm) for row in x]
        truth = torch.tensor(rows, dtype=torch.float64)
        truth = torch.where(f.amax(1) >= -threshold, truth, 0.0)
    least = 0.995 if side == "ood" else 0.75  # the mirror ascent stops short of a corner
    exact(model, x, threshold, truth * (1 + 1e-7 * (side == "id")), least, side=side, norm=norm,
          score="max_logit")  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", SIDES)
def test_an_absent_class_beside_a_single_one_is_affine(side: str, norm: float) -> None:
    model, w, b, x = affine_case(2)
    scores = (x @ (w[1] - w[0])) + b[1] - b[0]
    threshold = middle(model, "absent_class", x)
    gap = (threshold - scores) * (1.0 if side == "id" else -1.0)
    truth = gap.clamp_min(0.0) / dual(w[1] - w[0], norm)
    exact(
        model, x, threshold, truth, 1 - 1e-6, side=side, norm=norm, score="absent_class",
        method=PROOFS,
    )  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", SIDES)
def test_max_softmax_of_two_classes(side: str, norm: float) -> None:
    """It is the logistic function of |f₁ − f₂|, whatever the winner."""
    model, w, b, x = affine_case(2, 3)
    threshold = middle(model, "max_softmax", x)
    apart = ((x @ (w[1] - w[0])) + b[1] - b[0]).abs()
    level = math.log(-threshold / (1 + threshold))
    gap = (apart - level) * (1.0 if side == "id" else -1.0)
    truth = gap.clamp_min(0.0) / dual(w[1] - w[0], norm)
    exact(model, x, threshold, truth, 0.99, side=side, norm=norm, score="max_softmax")


def test_energy_of_an_affine_network_against_a_convex_solver() -> None:
    """{logsumexp ≤ −γ} is convex, so the distance to it is found by any solver."""
    from scipy.optimize import minimize

    model, w, b, x = affine_case(3, 5)
    threshold = middle(model, "energy", x)
    truth = torch.zeros(len(x), dtype=torch.float64)
    for i, row in enumerate(x):
        f = (w @ row + b).numpy()

        def room(d: np.ndarray, f: np.ndarray = f) -> float:
            return float(-threshold - np.logaddexp.reduce(f + w.numpy() @ d))

        if room(np.zeros(4)) > 0:
            continue  # rejected already
        start = -np.linalg.lstsq(w.numpy(), f + threshold + 5.0, rcond=None)[0]
        found = minimize(
            lambda d: d @ d, start, method="SLSQP", constraints={"type": "ineq", "fun": room},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        assert found.success
        truth[i] = math.sqrt(found.fun) * (1 + 1e-6)  # its own tolerance
    exact(model, x, threshold, truth, 0.97, score="energy")


def test_thresholds_at_the_ends_of_max_softmax() -> None:
    model, x = network("mlp")
    for threshold in (0.0, -0.0, 1e300):  # every input is accepted
        accepted = certify(model, x, threshold, score="max_softmax", **QUICK)  # type: ignore[arg-type]
        assert bool((accepted.radius_certified == 1.0).all())
        assert bool(accepted.radius_attack.isinf().all())
        other = certify(model, x, threshold, score="max_softmax", side="ood", **QUICK)  # type: ignore[arg-type]
        assert set(other.status) == {REJECTED}
        assert not bool(other.radius_certified.any())
    for threshold in (-1.0 - 1e-6, -1e300):  # none is
        rejected = certify(model, x, threshold, score="max_softmax", side="ood", **QUICK)  # type: ignore[arg-type]
        assert bool((rejected.radius_certified == 1.0).all())
        assert bool(rejected.radius_attack.isinf().all())
        other = certify(model, x, threshold, score="max_softmax", **QUICK)  # type: ignore[arg-type]
        assert set(other.status) == {REJECTED}
    uniform = -1 / 4  # no largest probability is smaller, but only the predicted class is followed
    accepted = certify(model, x, uniform, score="max_softmax", **QUICK)  # type: ignore[arg-type]
    assert bool(accepted.radius_attack.isinf().all())
    assert bool((accepted.radius_certified > 0).all())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("threshold", [-1.0, -1.0 + 1e-15, -1.0 + 1e-12])
def test_a_saturated_softmax_is_not_certified(threshold: float, side: str) -> None:
    """Where the softmax rounds to 1, no margin is left that a proof could rest on."""
    model = affine(torch.tensor([[90.0, 0.0], [0.0, 0.0]]), torch.zeros(2))
    x = torch.tensor([[1.0, 0.5], [0.9, 0.1]], dtype=torch.float64)
    result = certify(model, x, threshold, side=side, score="max_softmax", method="crown,lipschitz")
    assert not bool((result.radius_certified > 0).any())


def test_a_single_logit() -> None:
    model, w, b, x = affine_case(1)
    sure = certify(model, x, -0.5, score="max_softmax", **QUICK)  # type: ignore[arg-type]
    assert bool((sure.radius_certified == 1.0).all())  # its probability is 1 everywhere
    threshold = middle(model, "max_logit", x)
    truth = (threshold + (x @ w.T + b).squeeze(1)).clamp_min(0.0) / w.norm()
    exact(model, x, threshold, truth, 1 - 1e-6, score="max_logit")
    labels = torch.zeros(len(x), dtype=torch.long)
    exact(model, x, threshold, truth, 1 - 1e-6, score="max_logit", labels=labels)
    with pytest.raises(UsageError, match="K >= 2"):
        certify(model, x, 0.0, score="absent_class")


# Accepted and correctly classified.


def classes_of(score: str, f: Tensor) -> Tensor:
    return (f[:, :-1] if score == "absent_class" else f).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_labels_ask_for_the_class_too(score: str, norm: float) -> None:
    model, x = network("mlp")
    threshold = middle(model, score, x)
    kept = classes_of(score, model(x))
    labels = kept.clone()
    labels[0] = (kept[0] + 1) % 3
    given = {"score": score, "norm": norm, "lipschitz": False, **QUICK}
    without = certify(model, x, threshold, **given)  # type: ignore[arg-type]
    result = certify(model, x, threshold, labels=labels, **given)  # type: ignore[arg-type]
    radius = result.radius_certified
    assert bool((radius <= without.radius_certified * (1 + 1e-12)).all())
    assert bool((result.radius_attack <= without.radius_attack).all())
    assert bool((radius <= result.radius_attack).all())
    assert result.status[0] == REJECTED
    assert float(radius[0]) == 0.0 == float(result.radius_attack[0])
    assert not bool(crossings(past(model, score, threshold, "id"), x, radius, norm).any())

    def lead(y: Tensor) -> Tensor:
        f = model(y)[:, :-1] if score == "absent_class" else model(y)
        others = f.scatter(1, labels.unsqueeze(1), -math.inf).amax(1)
        return others - f.gather(1, labels.unsqueeze(1)).squeeze(1)

    assert not bool(crossings(lead, x, radius, norm).any())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_the_class_alone_on_an_affine_network(score: str, norm: float) -> None:
    """At a threshold that accepts everything it is the distance to the nearest other class."""
    model, w, b, x = affine_case(4, 7)
    f = x @ w.T + b
    labels = classes_of(score, f)
    count = 3 if score == "absent_class" else 4
    truth = torch.full((len(x),), math.inf, dtype=torch.float64)
    for j in range(count):
        apart = (f.gather(1, labels.unsqueeze(1)).squeeze(1) - f[:, j]) / dual(
            w[labels] - w[j], norm
        )
        truth = torch.where(labels == j, truth, torch.minimum(truth, apart))
    threshold = 1.0 if score == "max_softmax" else 500.0
    exact(model, x, threshold, truth, 1 - 1e-5, norm=norm, score=score, labels=labels)
