"""WeiPer+KLD against numpy, histogram by histogram."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from feature_data import HEAD, TEST, TRAIN, D, K
from numpy.typing import NDArray

from greg_cert.detectors import DETECTORS
from greg_cert.detectors.features.weiper import histogram, perturbed_head, weiper

Array = NDArray[np.float64]


def shares(values: Array, low: float, high: float) -> Array:
    return np.histogram(values, bins=100, range=(low, high))[0] / len(values)


def smoothed(shares: Array, width: int) -> Array:
    before = (width - 1) // 2
    near = [np.clip(np.arange(100) + i - before, 0, 99) for i in range(width)]
    found: Array = np.mean([shares[i] for i in near], axis=0)
    return found


def divergences(train: Array, test: Array, width: int, floor: float) -> Array:
    low, high = train.min(), train.max()
    p = np.mean([shares(row, low, high) for row in train], axis=0) + floor
    p /= p.sum()
    found = []
    for row in test:
        q = smoothed(shares(row, low, high), width) + floor
        q /= q.sum()
        found.append((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum())
    return np.array(found)


@pytest.mark.parametrize("widths", [(4, 15), (1, 40)])
def test_weiper_is_numpys(widths: tuple[int, int]) -> None:
    wide = perturbed_head(HEAD, 1.8)
    train, test = (z.numpy() @ wide.weight.numpy().T + wide.bias.numpy() for z in (TRAIN, TEST))
    powers = np.exp(test.reshape(len(test), 100, K))
    msp = (powers / powers.sum(2, keepdims=True)).max(2).mean(1)
    expected = divergences(TRAIN.numpy(), TEST.numpy(), widths[0], 0.01)
    expected += 2.5 * divergences(train, test, widths[1], 0.025) - 0.1 * msp
    found = weiper(HEAD, TRAIN, delta=1.8, lambda_1=2.5, lambda_2=0.1,
                   smoothing=widths[0], smoothing_perturbed=widths[1]).score(TEST)  # fmt: skip
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert list(DETECTORS["weiper"].defaults.values()) == [1.8, 2.5, 0.1, 4, 15]  # the authors'


def test_without_weights_only_the_features_count() -> None:
    found = weiper(HEAD, TRAIN, delta=3.0, lambda_1=0, lambda_2=0, smoothing=4,
                   smoothing_perturbed=1).score(TEST)  # fmt: skip
    expected = divergences(TRAIN.numpy(), TEST.numpy(), 4, 0.01)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_each_row_is_perturbed_by_its_own_length_and_always_alike() -> None:
    wide = perturbed_head(HEAD, 1.8)
    steps = wide.weight.view(100, K, D) - HEAD.weight
    lengths = 1.8 * HEAD.weight.norm(dim=1).expand(100, K)
    torch.testing.assert_close(steps.norm(dim=2), lengths)
    directions = (steps / lengths[..., None]).flatten(0, 1)
    alike = (directions @ directions.T).fill_diagonal_(0)
    assert float(alike.abs().max()) < 0.99  # no direction comes twice
    assert float(directions.mean(0).norm()) < 0.15  # and none is favoured
    assert torch.equal(wide.bias.view(100, K), HEAD.bias.expand(100, K))
    assert torch.equal(perturbed_head(HEAD, 1.8).weight, wide.weight)


def test_values_outside_of_the_range_are_in_no_bin() -> None:
    values = torch.tensor([[-1.0, 0.0, 0.005, 1.0, 2.0], [0.5] * 5]).double()
    found = histogram(values, 0.0, 1.0)
    assert found[0].nonzero().flatten().tolist() == [0, 99]  # 0 and 0.005; 1 belongs to the last
    assert found[0, [0, 99]].tolist() == [0.4, 0.2]
    assert found[1, 50] == 1.0
    alike = histogram(torch.full((1, 3), 2.0).double(), 2.0, 2.0)
    assert alike.sum() == 1.0
