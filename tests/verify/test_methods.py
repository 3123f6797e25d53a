"""Methods by name, columns, and options out of range."""

from __future__ import annotations

import math

import pytest
import torch
from score_oracles import QUICK, middle, network

from greg_cert.certificates.methods import STATUS, chosen_methods
from greg_cert.errors import UsageError
from greg_cert.verify import certify


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0, 1, 2, 3, 4])}, "labels in 0 … 3, but got 4"),
        ({"labels": torch.tensor([0, -1, 2, 3, 0])}, "labels in 0 … 3, but got -1"),
        ({"labels": torch.tensor([3] * 5), "score": "absent_class"}, "labels in 0 … 2, but got 3"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "labels of 5 integers"),
        ({"labels": torch.zeros(5)}, "labels of 5 integers"),
        ({"labels": torch.ones(5, dtype=torch.bool)}, "labels of 5 integers"),
        ({"labels": torch.zeros(5, dtype=torch.long), "side": "ood"}, "side 'id' beside labels"),
        ({"indices": torch.zeros(5, 1, dtype=torch.long)}, "indices of 5 integers"),
        ({"score": "entropy"}, "score in .*but got 'entropy'"),
        ({"method": "gradient"}, "a method that proves.*'gradient'; an estimate certifies nothing"),
        ({"method": "clever,attack"}, "a method that proves"),
        ({"method": []}, "a method that proves"),
        ({"method": ""}, "method in"),
        ({"method": "crown,magic"}, "but got 'magic'"),
        ({"memory": 0.0}, "memory > 0"),
        ({"memory": math.inf}, "memory > 0"),
        ({"memory": math.nan}, "memory > 0"),
        ({"cuts": -1}, "cuts >= 0"),
        ({"rounds": 0}, "rounds >= 1, but got 0"),
        ({"batch": 0}, "batch >= 1, but got 0"),
        ({"mirror_steps": -1}, "mirror_steps >= 0, but got -1"),
        ({"attack_steps": 0}, "attack_steps >= 1, but got 0"),
        ({"attack_restarts": 0}, "attack_restarts >= 1, but got 0"),
        ({"until_share": 0.0}, r"until_share in \(0, 1\], but got 0.0"),
        ({"until_share": 1.5}, r"until_share in \(0, 1\], but got 1.5"),
        ({"budget": 0}, "budget >= 1 passes or none, but got 0"),
        ({"seconds_per_sample": 0.0}, "seconds_per_sample > 0 and finite, but got 0.0"),
        ({"seconds_per_sample": math.inf}, "seconds_per_sample > 0 and finite, but got inf"),
        ({"cut_rounds": 0}, "cut_rounds >= 1"),
        ({"tolerance": math.nan}, "tolerance >= 0"),
        ({"attack_polish": -1}, "attack_polish >= 0"),
        ({"lipschitz_form": "other"}, "form in hybrid, interval, spectral"),
        ({"labels": torch.zeros(5, dtype=torch.long), "method": "lipschitz"}, "beside labels"),
    ],
)
def test_options_out_of_range(changes: dict[str, object], message: str) -> None:
    model, x = network("mlp")
    given: dict[str, object] = {**QUICK, "attack": False, **changes}
    if given.get("method") == "lipschitz":
        given["labels"] = model(x).argmax(1)
    with pytest.raises(UsageError, match=message):
        certify(model, x, 100.0 if given.get("side") != "ood" else -100.0, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("crown", ("crown",)),
        ("best", ("best",)),
        ("best,crown-ibp", ("crown-ibp", "best")),
        ("best,smoothing", ("best", "smoothing")),
        (" crown , alpha-crown,crown", ("crown", "alpha-crown")),
        (["clever", "lipschitz"], ("lipschitz", "clever")),
        (("smoothing",), ("smoothing",)),
        ("attack,gradient,crown", ("crown", "gradient", "attack")),
    ],
)
def test_methods_by_name(asked: str | list[str], found: tuple[str, ...]) -> None:
    assert chosen_methods(asked) == found
    assert all(name in STATUS for name in found)


def test_only_proofs_that_were_asked_for_count() -> None:
    model, x = network("mlp")
    threshold = middle(model, "energy", x)
    every = certify(model, x, threshold, method="crown-ibp,clever,smoothing", **QUICK)  # type: ignore[arg-type]
    assert bool((every.radius_certified == torch.as_tensor(every.other["radius_crown_ibp"])).all())
    assert {"radius_clever", "radius_smoothing", "smoothing_decision"} <= set(every.other)
    smooth = certify(model, x, threshold, method="smoothing", **QUICK)  # type: ignore[arg-type]
    assert not bool((smooth.radius_certified > 0).any())
    assert "certified" not in smooth.status


@pytest.mark.parametrize("score", ["energy", "max_softmax"])
def test_attacks_depend_on_indices_and_not_on_the_batch(score: str) -> None:
    model, x = network("mlp")
    threshold = middle(model, score, x)
    labels = model(x).argmax(1)
    given = {"score": score, "lipschitz": False, "rounds": 1, "cuts": 0, "attack_steps": 4}
    names = torch.tensor([7, 3, 11, 2, 5])
    whole = certify(model, x, threshold, indices=names, labels=labels, **given)  # type: ignore[arg-type]
    order = torch.tensor([4, 1, 0])
    part = certify(
        model, x[order], threshold, indices=names[order], labels=labels[order], batch=2,
        **given,  # type: ignore[arg-type]
    )  # fmt: skip
    torch.testing.assert_close(part.radius_attack, whole.radius_attack[order], rtol=1e-9, atol=0)
