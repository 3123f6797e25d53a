"""AdaSCALE against a computation image by image, in numpy but for gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from greg_cert.detectors import DETECTORS, build_detector
from greg_cert.detectors.features.shaping import sum_ratio
from greg_cert.errors import UsageError

D = 150  # of which 1 % are one feature, and 5 % seven


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, D),
            nn.ReLU(),
            nn.Linear(D, 3),
        )


def images(seed: int, count: int) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


class Slow:
    """One image at a time."""

    def __init__(self, model: nn.Module, eps: float, share: float, weight: float) -> None:
        self.model, self.eps, self.share, self.weight = model.double(), eps, share, weight

    def features(self, x: Tensor) -> np.ndarray:
        with torch.no_grad():
            return self.model[:-1](x[None])[0].numpy()

    def q(self, image: Tensor) -> float:
        x = image.double().requires_grad_()
        self.model(x[None]).max().backward()
        slope = x.grad.flatten().numpy()
        trivial = np.argsort(np.abs(slope))[: int(self.share * slope.size)]
        step = np.zeros(slope.size)
        step[trivial] = self.eps * np.sign(slope[trivial])
        z = self.features(image.double())
        moved = self.features(image.double() + torch.from_numpy(step).view_as(image))
        largest = np.argsort(-z)
        shift = np.abs(moved - z)[largest[:1]].sum()
        return self.weight * shift + np.maximum(moved, 0)[largest[:7]].sum()

    def score(self, image: Tensor, seen: list[float], p_min: float, p_max: float) -> float:
        unlikely = sum(v <= self.q(image) for v in seen) / len(seen)
        p = p_min + (1 - unlikely) * (p_max - p_min)
        z = self.features(image.double())
        largest = np.sort(z)[::-1][: D - round(D * p)]
        last = self.model[-1]
        scaled = z * np.exp(z.sum() / largest.sum())
        return -float(logsumexp(last.weight.detach().numpy() @ scaled + last.bias.detach().numpy()))


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_adascale_is_what_it_is_image_by_image(share: float) -> None:
    train, test = images(1, 23), images(2, 12)
    detector = build_detector("adascale", network(), share=share, eps=0.3, weight=4.0).fit(train)
    slow = Slow(network(), 0.3, share, 4.0)
    seen = [slow.q(x) for x in train]
    for some in (test, train):  # a training image is among those that shift as much as it does
        expected = [slow.score(x, seen, 0.6, 0.85) for x in some]
        assert detector.scores(some).tolist() == pytest.approx(expected, rel=1e-9)
    assert len({sum(v <= slow.q(x) for v in seen) for x in test}) > 3  # percentiles differ


def test_with_one_percentile_adascale_is_scale() -> None:
    test = images(2, 9)
    found = build_detector("adascale:p_min=0.7,p_max=0.7", network()).fit(images(1, 5))
    expected = build_detector("scale:percentile=0.7", network()).scores(test)
    torch.testing.assert_close(found.scores(test), expected)


def test_adascale_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UsageError, match=r"expected p_min <= p_max, 0.5, but got 0.6"):
        build_detector("adascale", network(), p_max=0.5).fit(images(1, 5))
    detector = build_detector("adascale", network())
    with pytest.raises(UsageError, match="expected images, on which it runs the network"):
        detector.fit_outputs(detector.network.outputs(images(1, 5)))
    defaults = {"p_min": 0.6, "p_max": 0.85, "weight": 10.0, "share": 0.05, "eps": 0.113}
    assert DETECTORS["adascale"].defaults == defaults  # the author's


def test_adascale_is_fitted_on_evenly_spaced_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greg_cert.detectors.network.gradients._MOST_IMAGES", 4)
    train, test = images(1, 11), images(2, 6)
    few = build_detector("adascale", network()).fit(train).scores(test)
    chosen = build_detector("adascale", network()).fit(train[[0, 2, 5, 8]]).scores(test)
    assert torch.equal(few, chosen)


def test_the_sum_of_the_largest_goes_by_each_rows_percentile() -> None:
    z = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [5.0, -1.0, 0.0, 0.0]]).double()
    found = sum_ratio(z, torch.tensor([[0.5], [0.75], [0.0]]))
    torch.testing.assert_close(found[:, 0], torch.tensor([10 / 7, 10 / 4, 1.0]).double())
