"""Functions of the batch, and of chance, are refused by every method that samples a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from exact_values import cancelling_network
from problems import points
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError
from greg_cert.verify import attack_radius, certify, gradient_norm
from greg_cert.verify.per_sample import check_rowwise, refuse_batch_layers
from greg_cert.verify.radius.sampled.clever import CleverOptions, clever_estimate
from greg_cert.verify.radius.sampled.smoothing import SmoothingOptions
from greg_cert.verify.scorer import logit_function, score_function


class Body(nn.Module):
    """A small network with a step of its own on its features."""

    def __init__(self, step: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.step = nn.Linear(6, 5), nn.Linear(5, 3), step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.step(torch.relu(self.first(x.flatten(1)))))


def sorted_by_batch(h: Tensor) -> Tensor:
    return h + 0.1 * h[h.sum(1).argsort()]


def once_more(h: Tensor) -> Tensor:
    """The value of each row by itself, the gradients of all."""
    every = h.sum(0)
    return h + every - every.detach()


OF_THE_BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda h: h - h.mean(0),
    "norm": lambda h: h / h.norm(),
    "normalised": lambda h: F.batch_norm(h, None, None, training=True),
    "softmax": lambda h: h * F.softmax(h, dim=0),
    "sorted": sorted_by_batch,
    "largest": lambda h: h.clamp(max=h.max() - 0.1),
    "size": lambda h: h * len(h),
    "companion": lambda h: h + 1e-3 * h.roll(1, 0),
    "gradient": once_more,
}
OF_CHANCE: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda h: h + 0.1 * torch.randn_like(h),
    "dropout": lambda h: F.dropout(h, 0.5, training=True),
    "one random number": lambda h: h * (1 + 0.1 * torch.rand((), dtype=h.dtype)),
}
QUICK = {"smoothing": SmoothingOptions(n0=5, n=20), "clever": CleverOptions(10, 5)}
ENTRIES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "smoothing": lambda m, x: certify(m, x, 0.0, method="smoothing", attack=False, **QUICK),  # type: ignore[arg-type]
    "attack": lambda m, x: attack_radius(m, x, 0.0, steps=2, rounds=2),
    "gradient": lambda m, x: gradient_norm(m, x),
    "clever": lambda m, x: clever_estimate(score_function(m), x, 0.1, options=CleverOptions(10, 5)),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", OF_THE_BATCH)
def test_a_function_of_the_batch_is_refused_by_every_entry(name: str, rows: int) -> None:
    model, x = Body(OF_THE_BATCH[name]), points((6,), 3, seed=0)[:rows]
    for entry in ENTRIES.values():
        with pytest.raises(UnsupportedModelError, match=r"to (treat each|take one) sample"):
            entry(model, x)


@pytest.mark.parametrize("name", OF_CHANCE)
def test_a_function_of_chance_is_refused_by_every_entry(name: str) -> None:
    model, x = Body(OF_CHANCE[name]), points((6,), 2, seed=0)
    for entry in ENTRIES.values():
        with pytest.raises(UnsupportedModelError, match="from one call to the next"):
            entry(model, x)


class Stubborn(nn.Dropout):
    """Dropout that stays on, as Monte Carlo dropout is written."""

    def train(self, mode: bool = True) -> Stubborn:
        return super().train(True)


class StubbornNorm(nn.BatchNorm1d):
    """BatchNorm that `eval` does not reach."""

    def train(self, mode: bool = True) -> StubbornNorm:
        return super().train(True)


LAYERS = {
    "no statistics": nn.BatchNorm1d(5, track_running_stats=False),
    "synchronised": nn.SyncBatchNorm(5, track_running_stats=False),
    "training": StubbornNorm(5),
    "dropout": Stubborn(0.5),
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_that_looks_at_the_batch_is_refused_by_name(kind: str, rows: int) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), LAYERS[kind], nn.Linear(5, 3))
    for entry in ENTRIES.values():
        with pytest.raises(UnsupportedModelError, match=r"layer '2' \(.*\): expected"):
            entry(model, points((6,), 3, seed=0)[:rows])


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm([4, 3, 3]),
     nn.LocalResponseNorm(2), nn.Dropout(0.5), nn.Dropout2d(0.0), nn.RReLU()],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_of_one_sample_pass(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 2), layer, nn.Flatten(), nn.Linear(36, 3))
    x = points((1, 4, 4), 3, seed=1)
    for rows in (1, 3):
        for entry in ENTRIES.values():
            entry(model, x[:rows])


def test_a_batch_axis_that_is_squeezed_away_is_told() -> None:
    model = Body(lambda h: h.squeeze())
    with pytest.raises(UnsupportedModelError, match="the model"):
        check_rowwise(logit_function(model), points((6,), 3, seed=0), "the model")


@pytest.mark.parametrize("seed", range(6))
def test_rounding_is_no_function_of_the_batch(seed: int) -> None:
    model = cancelling_network(seed)
    for x in (points((2,), 5, seed=seed), torch.zeros(2, 2).double()):
        check_rowwise(score_function(model), x, "the score")


def test_a_kink_at_the_sample_is_no_function_of_the_batch() -> None:
    def kinked(x: Tensor) -> Tensor:
        # The same value either way, but on the other side of the kink where it is alone.
        shift = 1e-14 if len(x) > 1 else -1e-14
        return torch.relu(x.sum(1) - 1 + shift)

    x = torch.tensor([[0.25, 0.75], [0.5, 0.9]], dtype=torch.float64)
    check_rowwise(kinked, x, "the score")
    with pytest.raises(UnsupportedModelError, match="the gradient of sample 1 moves by 1 when"):
        check_rowwise(lambda y: kinked(y) + (y[:, 0] - y[:, 0].detach()) * (len(y) > 1), x, "it")


def test_a_model_without_gradients_is_compared_by_value() -> None:
    x = points((6,), 2, seed=0)
    check_rowwise(lambda y: (y > 0.5).double().sum(1), x, "the vote")
    with pytest.raises(UnsupportedModelError, match="the value of sample"):
        check_rowwise(lambda y: (y > y.mean(0)).double().sum(1), x, "the vote")


def test_a_subclass_with_a_forward_of_its_own_is_judged_by_its_values() -> None:
    class Fixed(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    refuse_batch_layers(Fixed(5, track_running_stats=False))
    refuse_batch_layers(nn.Dropout(0.0).train())
