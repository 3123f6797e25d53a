"""A held linear region is the affine map that the network is at the recorded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp

from greg_cert.errors import UsageError
from greg_cert.models import MaxMin, build_model
from greg_cert.scores import energy
from greg_cert.train.objective.linear_region import LinearRegion
from greg_cert.train.objective.penalty import Recording, gradient_penalty

F64 = torch.float64


def network(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.LeakyReLU(0.3), nn.Linear(5, 3))
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), *middle, head).double()
    model(torch.zeros(1, 2, 8, 8, dtype=F64))
    return model.eval()


def images(count: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 8, 8, generator=generator, dtype=F64)


LAYERS: dict[str, tuple[nn.Module, ...]] = {
    "relu": (nn.ReLU(),),
    "relu in place": (nn.ReLU(inplace=True),),
    "leaky": (nn.LeakyReLU(0.1, inplace=True),),
    "relu6": (nn.ReLU6(),),
    "max min": (MaxMin(),),
    "max pool": (nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "adaptive max pool": (nn.AdaptiveMaxPool2d(3),),
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_the_held_network_is_affine(layers: tuple[nn.Module, ...]) -> None:
    model, x = network(*layers), images()
    region = LinearRegion()
    with region.record():
        recorded = model(x)
    plain, slope = jvp(model, x, images(seed=1))
    torch.testing.assert_close(recorded, plain)
    for length in (1e-3, 10.0):  # the second leaves every linear region
        moved = x + length * images(seed=1)
        with region.hold():
            held = model(moved)
        torch.testing.assert_close(held, plain + length * slope, rtol=1e-9, atol=1e-9)
    assert (model(moved) - held).norm() > 1e-3 * held.norm(), "the step should leave the region"


def test_dropout_masks_are_kept_and_evaluation_mode_has_none() -> None:
    model, x = network(nn.Dropout(0.4), nn.ReLU(), nn.Dropout2d(0.4)).train(), images()
    region = LinearRegion()
    with region.record():
        out = model(x)
    with region.hold():
        torch.testing.assert_close(model(x), out, rtol=0, atol=0)
    assert not torch.equal(model(x), out)
    model.eval()
    with region.record():
        model(x)
    with region.hold():
        held = model(x)
    torch.testing.assert_close(held, model(x))


def test_chosen_samples_have_their_own_pieces() -> None:
    model, x = network(nn.ReLU(), nn.MaxPool2d(2)), images(5)
    region, chosen, far = LinearRegion(), torch.tensor([3, 1]), 5 * images(5, seed=2)
    with region.record():
        model(x)
    with region.hold():
        whole = model(x + far)
    with region.hold(chosen):
        part = model((x + far)[chosen])
    torch.testing.assert_close(part, whole[chosen])


def test_another_sequence_of_operations_is_refused() -> None:
    region, x = LinearRegion(), images()
    relu, leaky = torch.relu, nn.LeakyReLU()
    with region.record():
        nn.ReLU()(x)
        leaky(x)
    with pytest.raises(UsageError, match="leaky_relu"), region.hold():
        leaky(x)
    with pytest.raises(UsageError, match="fewer"), region.hold():
        relu(x)
    twice = nn.Sequential(nn.ReLU(), leaky, nn.ReLU())
    with pytest.raises(UsageError, match="nothing"), region.hold():
        twice(x)


def test_the_finite_difference_is_quiet_in_float32() -> None:
    """Without the held region this error is above 1 on such a network, whatever the step."""
    torch.manual_seed(0)
    model = build_model(
        "wrn16_2", num_classes=4, in_channels=3, image_size=16, mean=[0.5] * 3, std=[0.2] * 3
    ).eval()
    x = torch.rand(8, 3, 16, 16)

    def weight_gradient(estimator: str, recorded: bool = True) -> Tensor:
        inputs, recording = x.clone().requires_grad_(), Recording(estimator)
        with recording.record():
            scores = energy(model(inputs))
        norms = gradient_penalty(
            lambda z: energy(model(z)),
            inputs,
            scores=scores,
            estimator=estimator,
            recording=recording if recorded else None,
        )
        grads = torch.autograd.grad(norms.sum(), list(model.parameters()))
        return torch.cat([g.flatten() for g in grads])

    exact = weight_gradient("double-backward")
    error = (weight_gradient("finite-difference") - exact).norm() / exact.norm()
    loose = (weight_gradient("finite-difference", recorded=False) - exact).norm() / exact.norm()
    assert error < 2e-3
    assert loose > 30 * error


@pytest.mark.parametrize("estimator", ["finite-difference", "double-backward"])
def test_a_scaled_norm_is_that_of_the_gradient_by_scaled_inputs(estimator: str) -> None:
    """S(μ + σz) by z: chain rule against a network that does the scaling itself."""
    model, z = network(nn.ReLU()), images()
    sigma = torch.tensor([0.5, 3.0], dtype=F64).view(2, 1, 1)

    def gradients(norms: Tensor) -> tuple[Tensor, Tensor]:
        grads = torch.autograd.grad(norms.square().sum(), list(model.parameters()))
        return norms.detach(), torch.cat([g.flatten() for g in grads])

    scaled = gradient_penalty(
        lambda x: energy(model(x)), 0.1 + sigma * z, estimator=estimator, scale=sigma
    )
    inside = gradient_penalty(
        lambda v: energy(model(0.1 + sigma * v)), z, estimator="double-backward"
    )
    for a, b in zip(gradients(scaled), gradients(inside), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
