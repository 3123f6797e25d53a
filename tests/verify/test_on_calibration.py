"""Numbers of a run on calibration data, against their definitions written out."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from greg_cert.config import VerifyConfig
from greg_cert.data import DataSplits, Images, ImageSet, splits_from_tensors
from greg_cert.data.withheld import Withheld
from greg_cert.errors import UnsupportedModelError
from greg_cert.verify import certify, global_lipschitz_radius
from greg_cert.verify.run import on_calibration
from greg_cert.verify.run.on_calibration import measure

SETTINGS = VerifyConfig(samples=12, tpr=0.8, method="crown", batch=5, max_radius=2.0, seed=3)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def splits(model: nn.Module) -> DataSplits:
    """Data whose test set nobody may read."""
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(90, 1, 4, 4, generator=draw)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3  # some answers are wrong
    y[:3] = torch.arange(3)
    parts = splits_from_tensors(
        (x[:30], y[:30]), (x[30:50], y[30:50]), {}, calibration=(x[50:], y[50:])
    )
    return replace(parts, test=Withheld("test", None, (1, 4, 4)))


@pytest.fixture(scope="module")
def outliers() -> ImageSet:
    return ImageSet("aside", torch.rand(25, 1, 4, 4, generator=torch.Generator().manual_seed(2)))


def scores_of(model: nn.Module, images: Images) -> np.ndarray:
    with torch.no_grad():
        logits = deepcopy(model).double()(images.pixels().double())
    return -torch.logsumexp(logits, 1).numpy()


def test_classification_and_detection_by_their_definitions(
    model: nn.Module, splits: DataSplits, outliers: ImageSet
) -> None:
    found = measure(model, splits, outliers, SETTINGS, score="energy").numbers
    calibration = splits.calibration
    assert calibration.labels is not None
    with torch.no_grad():
        confidence, predicted = model(calibration.pixels()).double().softmax(1).max(1)
    right = (predicted == calibration.labels).numpy()
    assert 0.7 < right.mean() < 1
    assert found["accuracy"] == right.mean()
    error = 0.0
    for k in range(15):
        inside = (confidence.numpy() > k / 15) & (confidence.numpy() <= (k + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence.numpy()[inside].mean())
    assert found["calibration_error"] == pytest.approx(error, abs=1e-6)
    known, other = scores_of(model, calibration), scores_of(model, outliers)
    gamma = np.sort(known)[int(np.ceil(0.8 * len(known))) - 1]
    assert found["threshold"] == pytest.approx(gamma, abs=1e-5)
    assert found["fpr"] == np.mean(other <= gamma)
    assert found["auroc"] == pytest.approx(np.mean(other[:, None] > known[None, :]))


def test_radii_are_those_of_the_accepted_samples(model: nn.Module, splits: DataSplits) -> None:
    seen: list[tuple[int, int]] = []
    found = measure(
        model, splits, None, SETTINGS, score="energy", progress=lambda *done: seen.append(done)
    ).numbers
    assert seen == [(5, 12), (10, 12), (12, 12)]
    assert "auroc" not in found
    assert "fpr" not in found
    chosen = np.random.default_rng(3).permutation(len(splits.calibration))[:12]
    gamma = found["threshold"]
    assert gamma is not None
    accepted = [i for i in chosen if scores_of(model, splits.calibration)[i] <= gamma + 1e-9]
    assert 0 < len(accepted) < 12
    assert (found["samples"], found["accepted"]) == (12, len(accepted))
    x = splits.calibration.pixels(accepted)
    rows = certify(
        model, x, gamma, method="crown", max_radius=2.0, seed=3, indices=torch.tensor(accepted)
    )
    proven, broken = rows.radius_certified.numpy(), rows.radius_attack.numpy()
    assert found["radius_certified"] == pytest.approx(np.median(proven), rel=0.02)
    assert found["radius_attack"] == pytest.approx(np.median(broken), rel=0.02)
    fine = np.isfinite(broken)
    assert found["share"] == pytest.approx(np.median(proven[fine] / broken[fine]), rel=0.02)
    radii = global_lipschitz_radius(model, x, gamma, max_radius=2.0)
    assert found["radius_lipschitz"] == pytest.approx(np.median(radii.numpy()), rel=1e-9)
    assert found["violations"] == 0
    assert found["certify_cpu_seconds"] > 0  # type: ignore[operator]


def test_each_status_counts_as_it_is_said(
    model: nn.Module, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame(
        [
            ("certified", 0.5, 1.0),
            ("certified", 2.0, np.inf),  # as far as was looked for, and no attack
            ("undecided", 0.0, 0.8),
            ("contradicted", 0.0, 0.4),
            ("rejected", 0.0, 0.0),
            ("rejected", 0.0, 0.0),
        ],
        columns=["status", "radius_certified", "radius_attack"],
    )
    monkeypatch.setattr(on_calibration.RunCertifier, "certify", lambda *_: rows)
    settings = SETTINGS.model_copy(update={"samples": 6, "batch": 6})
    found = measure(model, splits, None, settings, score="energy").numbers
    counts = {"samples": 6, "accepted": 4, "undecided": 1, "capped": 1, "violations": 1}
    assert {name: found[name] for name in counts} == counts
    assert found["radius_certified"] == 0.25  # of 0, 0, 0.5, 2
    assert found["radius_attack"] == pytest.approx(0.9)  # of 0.4, 0.8, 1, inf
    assert found["share"] == 0.0  # of 0, 0, 0.5


def test_a_model_that_cannot_be_bounded_has_no_radius(
    model: nn.Module, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedModelError("layer 3 cannot be bounded")

    monkeypatch.setattr(on_calibration.RunCertifier, "certify", refuse)
    found = measure(model, splits, None, SETTINGS, score="energy")
    assert found.error == "layer 3 cannot be bounded"
    assert {"accuracy", "calibration_error", "threshold"} == set(found.numbers)
