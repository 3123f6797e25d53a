"""VRA and OptFS by hand and against loops in numpy; the others are in `test_feature_methods.py`."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import pytorch_ood.detector as ood
import torch
from feature_data import HEAD, LABELS, TEST, TRAIN, D, normal
from torch import Tensor

from greg_cert.detectors import DETECTORS
from greg_cert.detectors.features.shaping import optfs, vra
from greg_cert.detectors.penultimate import Head
from greg_cert.errors import UsageError
from greg_cert.scores import energy

PLAIN = Head(torch.eye(2).double(), torch.zeros(2).double())  # two features that are the logits


def test_vra_by_hand() -> None:
    train = torch.stack([torch.arange(11.0), 10 * torch.arange(11.0)], 1).double()
    score = vra(PLAIN, train, low=0.2, high=0.7).score  # 2 and 7, 20 and 70
    z = torch.tensor([[1.9, 19.0], [2.0, 70.0], [5.0, 90.0], [8.0, 21.0]]).double()
    expected = torch.tensor([[0.0, 0.0], [2.0, 70.0], [5.0, 70.0], [7.0, 21.0]]).double()
    torch.testing.assert_close(score(z), energy(expected))
    assert DETECTORS["vra"].defaults == {"low": 0.6, "high": 0.9}  # the authors' for CIFAR-10
    with pytest.raises(UsageError, match=r"vra: expected low <= high, 0.5, but got 0.6"):
        vra(PLAIN, train, low=0.6, high=0.5)


def test_vra_is_pytorch_oods_above_the_lower_threshold() -> None:
    """Below, theirs lifts a feature to the threshold."""
    above = TEST.maximum(torch.from_numpy(np.quantile(TRAIN.numpy(), 0.3, axis=0)) + 1e-6)
    theirs = ood.VRA(None, lambda z: HEAD.logits(z.double()), 0.3, 0.8)
    expected = theirs.fit_feature_maps(TRAIN, LABELS).predict_feature_maps(above)
    found = vra(HEAD, TRAIN, low=0.3, high=0.8).score(above)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # theirs in float32


def logit_parts(z: Tensor) -> np.ndarray:
    """w_ŷd·z_d (B, D), with ŷ the predicted class."""
    return HEAD.weight.numpy()[HEAD.logits(z).argmax(1).numpy()] * z.numpy()


@pytest.mark.parametrize(("bins", "tail"), [(100, 0.001), (7, 0.1), (1, 0.0)])
def test_optfs_is_the_authors_closed_form(bins: int, tail: float) -> None:
    edges = np.linspace(*np.quantile(TRAIN.numpy(), (tail, 1 - tail)), bins + 1)
    within = list(itertools.pairwise(edges))
    parts, z = logit_parts(TRAIN), TRAIN.numpy()
    theta = np.array([np.where((z >= a) & (z < b), parts, 0).sum(1).mean() for a, b in within])
    theta /= np.sqrt((theta**2).sum())
    parts, z = logit_parts(TEST), TEST.numpy()
    expected = sum(t * np.where((z >= a) & (z < b), parts, 0).sum(1)
                   for t, (a, b) in zip(theta, within, strict=True))  # fmt: skip
    found = optfs(HEAD, TRAIN, bins=bins, tail=tail).score(TEST)
    np.testing.assert_allclose(found.numpy(), -expected, rtol=1e-9, atol=1e-12)


def test_no_other_step_function_gives_training_data_a_larger_mean_logit() -> None:
    bins, (low, high) = 20, np.quantile(TRAIN.numpy(), (0.001, 0.999))
    best = -float(optfs(HEAD, TRAIN, bins=bins, tail=0.001).score(TRAIN).mean())
    z = TRAIN.numpy()
    place = np.clip(((z - low) / (high - low) * bins).astype(int), 0, bins - 1)
    inside = (z >= low) & (z < high)
    for seed in range(20):
        theta = normal(seed, bins).abs().numpy()
        shaped = logit_parts(TRAIN) * (theta / np.linalg.norm(theta))[place] * inside
        assert shaped.sum(1).mean() < best


def test_optfs_of_features_that_are_all_alike_is_finite() -> None:
    same = torch.full((5, D), 2.0).double()
    assert optfs(HEAD, same, bins=100, tail=0.001).score(TEST).isfinite().all()
