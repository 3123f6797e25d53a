"""Every public function of verify refuses what it cannot answer, in one line that says why."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from problems import build, points
from torch import Tensor, nn

from greg_cert.errors import GregCertError, UnsupportedModelError, UsageError
from greg_cert.verify import (
    attack_radius,
    certify,
    gradient_norm,
    lipschitz_bound,
    score_bound,
)
from greg_cert.verify.scorer import check_inputs

Function = Callable[..., object]


def on_certify(model: nn.Module, inputs: Tensor, **changes: object) -> object:
    arguments = {"threshold": 0.0, "engine": "native", "attack": False, **changes}
    return certify(model, inputs, **arguments)  # type: ignore[arg-type]


def on_lipschitz(model: nn.Module, inputs: Tensor, **changes: object) -> object:
    return lipschitz_bound(model, inputs, **{"radius": 0.1, "engine": "native", **changes})  # type: ignore[arg-type]


def on_attack(model: nn.Module, inputs: Tensor, **changes: object) -> object:
    return attack_radius(model, inputs, **{"threshold": 0.0, **changes})  # type: ignore[arg-type]


def on_gradient(model: nn.Module, inputs: Tensor, **changes: object) -> object:
    return gradient_norm(model, inputs, **changes)  # type: ignore[arg-type]


def on_score(model: nn.Module, inputs: Tensor, **changes: object) -> object:
    return score_bound(model, inputs, **{"radius": 0.1, **changes})  # type: ignore[arg-type]


ALL = [on_certify, on_lipschitz, on_attack, on_gradient, on_score]
BOUNDING = [on_certify, on_lipschitz]


def refused(
    function: Function, error: type[GregCertError], message: str, *args: object, **changes: object
) -> None:
    """Raise AssertionError unless that error comes, in one line that holds `message`."""
    with pytest.raises(error, match=message) as caught:
        function(*args, **changes)
    assert "\n" not in str(caught.value)


def images() -> tuple[nn.Module, Tensor]:
    model, shape = build("conv")
    return model, points(shape, 3)


def spoiled(value: float) -> Tensor:
    x = images()[1]
    x[1, 0, 2, 3] = value
    return x


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.empty(0, 2, 6, 6), r"B >= 1, but got \(0, 2, 6, 6\)"),
        (torch.ones(2, 2, 6, 6, dtype=torch.uint8), "floating type .*torch.uint8"),
        (torch.ones(2, 2, 6, 6, dtype=torch.bool), "floating type .*torch.bool"),
        (torch.ones(2, 6, 6), r"\(B, C, H, W\) or \(B, D\) .*\(2, 6, 6\)"),
        (torch.tensor(1.0), r"\(B, C, H, W\) or \(B, D\) .*\(\)"),
        (spoiled(math.nan), "finite inputs, but found NaN or infinity"),
        (spoiled(math.inf), "finite inputs, but found NaN or infinity"),
        (spoiled(1.5), r"pixels in \[0, 1\], but got values from .* to 1.5;"),
        (spoiled(-0.25), r"pixels in \[0, 1\], but got values from -0.25 to "),
    ],
)
def test_inputs_that_are_no_images(function: Function, inputs: Tensor, message: str) -> None:
    refused(function, UsageError, message, images()[0], inputs)


def test_rounding_of_pixels_and_feature_vectors_are_accepted() -> None:
    x = spoiled(1.0 + 1e-7)
    assert torch.equal(check_inputs(x), x)
    assert torch.equal(check_inputs(-x + 1.0), -x + 1.0)
    vectors = 7.0 * torch.ones(2, 5)
    assert check_inputs(vectors).dtype == torch.float64


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("norm", [1, 0, 1.0, 3.0, -2.0, -math.inf, math.nan, "2", None])
def test_other_norms(function: Function, norm: object) -> None:
    message = rf"norm 2 or inf, but got {norm!r}$"
    refused(function, UsageError, message, *images(), norm=norm)


@pytest.mark.parametrize("radius", [0.0, -0.1, math.inf, -math.inf, math.nan])
def test_radii_out_of_range(radius: float) -> None:
    message = f"radius > 0 and finite, but got {radius}"
    for function in (on_lipschitz, on_score):
        refused(function, UsageError, message, *images(), radius=radius)
    for function in (on_certify, on_attack):
        refused(function, UsageError, f"max_{message}", *images(), max_radius=radius)


@pytest.mark.parametrize("function", [on_certify, on_attack])
def test_thresholds_and_sides(function: Function) -> None:
    for threshold in (math.nan, math.inf, -math.inf):
        message = f"finite threshold, but got {threshold}"
        refused(function, UsageError, message, *images(), threshold=threshold)
    for side in ("in", "", None):
        refused(function, UsageError, f"but got {side!r}", *images(), side=side)
        refused(on_score, UsageError, f"but got {side!r}", *images(), side=side)


@pytest.mark.parametrize("function", BOUNDING)
def test_unknown_engines_and_methods(function: Function) -> None:
    refused(function, UsageError, "engine in .*, but got 'z3'", *images(), engine="z3")
    refused(function, UsageError, "but got 'no-such'", *images(), method="no-such")


def test_unknown_options_and_scores() -> None:
    refused(on_certify, UsageError, "options in .*, but got 'rouns'", *images(), rouns=3)
    refused(on_score, UsageError, "score in .*, but got 'odin'", *images(), score="odin")


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["1.weight", "0.weight", "1.running_var"])
def test_weights_that_are_not_finite(function: Function, value: float, name: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    model.eval().state_dict()[name].view(-1)[1] = value
    message = rf"finite weights, but '{name}' holds NaN or infinity"
    refused(function, UnsupportedModelError, message, model, images()[1])


@pytest.mark.parametrize("function", ALL)
def test_no_logits_at_all(function: Function) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 1))
    model[1].weight = nn.Parameter(torch.empty(0, 72))
    model[1].bias = nn.Parameter(torch.empty(0))
    refused(function, GregCertError, "K >= 1, but got", model, images()[1])


@pytest.mark.parametrize("function", BOUNDING)
def test_inputs_of_another_shape_name_the_layer(function: Function) -> None:
    message = r"layer '0' fails on inputs of shape \(3, 6, 6\)"
    refused(function, UsageError, message, images()[0], torch.ones(2, 3, 6, 6))


def test_a_refusal_leaves_the_inputs_alone() -> None:
    model, x = images()
    before = x.clone()
    with pytest.raises(UsageError):
        certify(model, x, math.nan)
    assert torch.equal(x, before)
