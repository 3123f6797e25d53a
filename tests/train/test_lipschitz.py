"""The Lipschitz penalty: the formula that certificates prove, its slope, and its part in a run."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import SMALL, build
from smooth_networks import build_smooth
from torch import Tensor, nn
from trained import rows_of

from greg_cert.config import ExperimentConfig, parse_config
from greg_cert.data import DataSplits, load_data
from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.models import MODEL_NAMES, build_model
from greg_cert.models.base import Classifier
from greg_cert.models.resnet import BasicBlock
from greg_cert.runs.networks import make_network
from greg_cert.scores import SCORES
from greg_cert.train import check, fit, initial_model, lipschitz_penalty
from greg_cert.train.initial_model import first_model
from greg_cert.train.objective.lipschitz import _Variance
from greg_cert.verify import global_lipschitz_bound

IMAGE = (2, 6, 6)


def settled(model: nn.Module, shape: tuple[int, ...], calls: int = 40, **options: Any) -> Tensor:
    """L̄ once its vectors have found their directions."""
    penalty = lipschitz_penalty(model, shape, iterations=25, **options)
    for _ in range(calls - 1):
        penalty()
    return penalty()


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("name", SMALL)
def test_it_is_the_constant_that_is_proven_from_below(name: str, norm: float) -> None:
    model, shape = build(name)
    model = model.double()
    for score in SCORES if name == "mlp" else ["energy"]:
        proven = global_lipschitz_bound(model, shape, norm=norm, score=score)
        calls = 1 if norm == math.inf else 6  # that norm is a sum, not a power method
        found = settled(model, shape, calls=calls, norm=norm, score=score).item()
        assert found <= proven * (1 + 1e-9)
        # A pool of a tree of maxima is bounded whole here, and no looser.
        assert found >= proven * (1 - (1e-9 if norm == math.inf else 0.005))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model_of_the_registry_has_one(name: str) -> None:
    torch.manual_seed(0)
    size = 40 if name == "densenet121" else 8
    model = build_model(name, num_classes=4, in_channels=1, image_size=size, mean=[0.4], std=[0.3])
    penalty = lipschitz_penalty(model, (1, size, size))
    value = penalty()
    value.backward()
    assert 0 < value.item() < math.inf
    for parameter_name, parameter in model.named_parameters():
        linear = parameter.ndim > 1  # kernels and matrices, all of which have a say
        assert parameter.grad is None or parameter.grad.isfinite().all()
        assert not linear or bool(parameter.grad.any()), parameter_name


def dense(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of an affine layer, differentiable in its weights."""
    eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    return (layer(eye) - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T


def spectral(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    return torch.linalg.matrix_norm(dense(layer, shape), ord=2)


class Block(nn.Module):
    """Normalisation by channel, a convolution with BatchNorm, and a basic block."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block = BasicBlock(4, 6, 2)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(54, 3)
        self.register_buffer("std", torch.tensor([0.2, 0.5]).reshape(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first((x - 0.5) / self.std)))
        return self.fc(self.drop(self.block(x).flatten(1)))

    def constant(self) -> Tensor:
        """L̄ by matrices and singular values, of the model in evaluation mode."""
        b = self.block
        stem = nn.Sequential(self.first, self.norm)
        scaled = dense(stem, IMAGE) / self.std.expand(IMAGE).flatten()
        half, whole = (4, 6, 6), (6, 3, 3)
        branch = spectral(nn.Sequential(b.conv1, b.bn1), half)
        branch = branch * spectral(nn.Sequential(b.conv2, b.bn2), whole)
        body = torch.linalg.matrix_norm(scaled, ord=2) * (branch + spectral(b.shortcut, half))
        return body * self.fc.weight.norm(dim=1).max()


def small_block() -> Block:
    torch.manual_seed(3)
    model = Block().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.3, 2.0)
            nn.init.normal_(module.weight)
    return model.train()


def test_value_and_gradient_are_those_of_the_singular_values() -> None:
    model = small_block()
    found = settled(model, IMAGE, calls=80)
    found.backward()
    gradients = [(p.grad, p) for p in model.parameters() if p.grad is not None]
    truth = model.eval().constant()
    expected = torch.autograd.grad(truth, [p for _, p in gradients])
    assert found.item() == pytest.approx(truth.item(), rel=1e-9)
    assert len(gradients) == 9  # five kernels and matrices, four BatchNorm scales; no bias
    for (gradient, _), wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_a_watched_pass_gives_the_variances_and_their_slope() -> None:
    model, images = small_block(), torch.randn(8, *IMAGE, dtype=torch.float64)
    penalty = lipschitz_penalty(model, IMAGE, iterations=2000)
    with penalty.watch():
        model(images)
    found = penalty()
    found.backward()
    kernels = [model.first.weight, model.block.conv1.weight, model.norm.weight]
    direction = [torch.randn_like(kernel) for kernel in kernels]
    slope = sum(float((k.grad * d).sum()) for k, d in zip(kernels, direction, strict=True))

    def constant(step: float) -> float:
        """By matrices, of a model whose running variances are those of the batch."""
        twin = copy.deepcopy(model)
        moved = [twin.first.weight, twin.block.conv1.weight, twin.norm.weight]
        with torch.no_grad():
            for kernel, by in zip(moved, direction, strict=True):
                kernel.add_(step * by)
            norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = 1.0
            twin(images)
            for norm, pixels in zip(norms, (36, 9, 9, 9), strict=True):
                norm.running_var.mul_(1 - 1 / (8 * pixels))  # it is the unbiased one
            return float(twin.eval().constant())

    assert found.item() == pytest.approx(constant(0.0), rel=1e-9)
    h = 1e-6  # within one linear region
    assert slope == pytest.approx((constant(h) - constant(-h)) / (2 * h), rel=1e-5)
    model.eval()
    assert penalty().item() == pytest.approx(model.constant().item(), rel=1e-9)  # the running ones


def test_it_follows_the_weights_and_the_running_variance() -> None:
    model = small_block()
    penalty = lipschitz_penalty(model, IMAGE, iterations=300)
    with torch.no_grad():
        model.first.weight.mul_(3.0)
        model.norm.running_var.mul_(4.0)
        model.norm.running_var.add_(3 * model.norm.eps)
    model.eval()
    assert penalty().item() == pytest.approx(model.constant().item(), rel=1e-6)


def test_one_call_is_one_step_of_the_power_method() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    penalty = lipschitz_penalty(model, (6,))
    (name, vector), *_ = penalty.named_buffers()
    before, w = vector.clone().reshape(6), model[0].weight.detach()
    found = penalty()
    head = model[2].weight.detach().norm(dim=1).max()
    torch.testing.assert_close(found.detach(), head * (w @ before).norm())
    after = w.T @ (w @ before)
    moved = penalty.get_buffer(name).reshape(6)
    torch.testing.assert_close(moved, after / after.norm())
    assert name == "vector_0"


def test_layers_of_one_shape_are_each_measured_by_themselves() -> None:
    torch.manual_seed(0)
    alike = [nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False).double() for _ in range(3)]
    head = nn.Linear(36, 2).double()
    with torch.no_grad():
        alike[1].weight.mul_(5.0)
        alike[2].weight[:2].mul_(7.0)  # one group alone
    layers = [module for conv in alike for module in (conv, nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), head)
    norms = [spectral(conv, (4, 3, 3)) for conv in alike]
    truth = torch.stack(norms).prod() * head.weight.norm(dim=1).max()
    found = settled(model, (4, 3, 3))
    assert found.item() == pytest.approx(truth.item(), rel=1e-9)
    weights = [conv.weight for conv in alike]
    expected = torch.autograd.grad(truth, weights)
    for gradient, wanted in zip(torch.autograd.grad(found, weights), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_variances_of_half_precision_are_computed_in_full() -> None:
    x = torch.randn(8, 3, 4, 4).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    found, expected = _Variance.apply(x, torch.float32), wide.var((0, 2, 3), correction=0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    weights = torch.tensor([1.0, -2.0, 3.0])
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), wide)
    torch.testing.assert_close(gradient, wanted.bfloat16(), rtol=1e-2, atol=1e-4)


def test_groups_on_maps_of_one_pixel() -> None:
    torch.manual_seed(0)
    grouped = nn.Conv2d(4, 6, 1, groups=2, bias=False)
    model = nn.Sequential(grouped, nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)).double()
    truth = spectral(grouped, (4, 1, 1)) * model[3].weight.norm(dim=1).max()
    assert settled(model, (4, 1, 1)).item() == pytest.approx(truth.item(), rel=1e-9)


def test_a_layer_of_zeros_keeps_its_vector_and_its_gradient_finite() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    nn.init.zeros_(model[0].weight)
    penalty = lipschitz_penalty(model, (4,))
    value = penalty()
    value.backward()
    assert value.item() == 0.0
    assert all(buffer.isfinite().all() for buffer in penalty.buffers())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_model_is_left_as_it_was() -> None:
    model = small_block()
    before = copy.deepcopy(model.state_dict())
    model.block.eval()
    modes = [m.training for m in model.modules()]
    penalty = lipschitz_penalty(model, IMAGE)
    penalty()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not set(penalty.parameters())


def test_a_product_beyond_float32_is_still_a_number() -> None:
    layers = [m for _ in range(30) for m in (nn.Linear(4, 4), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    for layer in layers[::2]:
        layer.weight.data.copy_(100 * torch.eye(4))  # type: ignore[operator, union-attr]
    assert lipschitz_penalty(model, (4,))().item() > 1e59


def test_parametrised_weights_are_followed_and_hooked_ones_refused() -> None:
    def network(norm: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(norm(nn.Linear(5, 4)), nn.ReLU(), nn.Linear(4, 2)).double()

    model = network(torch.nn.utils.parametrizations.weight_norm)
    settled(model, (5,)).backward()
    scale = model[0].parametrizations.weight.original0
    assert bool(scale.grad.any())
    with pytest.warns(FutureWarning):
        hooked = network(torch.nn.utils.weight_norm)
    with pytest.raises(UnsupportedModelError, match=r"layer '0'.*hook"):
        lipschitz_penalty(hooked, (5,))


def test_what_it_cannot_have_is_refused_by_name() -> None:
    model, shape = build("mlp")
    with pytest.raises(UsageError, match=r"expected score in .*'entropy'"):
        lipschitz_penalty(model, shape, score="entropy")
    with pytest.raises(UsageError, match="expected iterations >= 1, but got 0"):
        lipschitz_penalty(model, shape, iterations=0)
    with pytest.raises(UsageError, match="expected norm 2 or inf, but got 1"):
        lipschitz_penalty(model, shape, norm=1.0)
    with pytest.raises(UnsupportedModelError, match="Softplus"):
        lipschitz_penalty(*build_smooth("softplus"))
    with pytest.raises(UnsupportedModelError, match="layer '1'"):
        lipschitz_penalty(nn.Sequential(nn.Linear(5, 4), nn.Softmax(1)), (5,))


def experiment(**stage: Any) -> ExperimentConfig:
    raw = {
        "data": {
            "id": {"source": "digits", "limit": 300},
            "aux": {"source": "photographs", "n": 200},
        },
        "model": {"name": stage.pop("name", "cnn_small")},
        "train": {
            "log_every": 1,
            "stages": [{"method": "energy", "epochs": 2, "lr": 0.01, "batch_size": 20,
                        "m_in": -4.0, "m_out": 0.0, **stage}],
        },
    }  # fmt: skip
    return parse_config(raw)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data(experiment().data)


@pytest.mark.parametrize(("method", "norm"), [("ce", "2"), ("dos", "inf"), ("oe+grad", "2")])
def test_it_goes_with_methods_scores_and_norms(
    method: str, norm: str, splits: DataSplits, tmp_path: Path
) -> None:
    found = []
    for weight in (0.0, 1.0):
        config = experiment(
            **{"method": method, "lambda_lipschitz": weight, "lipschitz_norm": norm},
            **{"clip_grad": 5.0, "epochs": 3, "lr": 0.05, "name": "mlp"},
        )
        run = fit(config, splits, tmp_path / str(weight))
        shape = splits.train.image_shape
        found.append(
            global_lipschitz_bound(run.load_model(), shape, norm=float(norm), score=config.score)
        )
        last = rows_of(run.path)[-1]["lipschitz_estimate"]
        assert last <= 1.1 * found[-1]
        assert last >= 0.7 * found[-1]
    assert found[1] < 0.7 * found[0]


def test_its_weight_rises_over_the_ramp(splits: DataSplits, tmp_path: Path) -> None:
    shared = {"lambda_lipschitz": 0.5, "lambda_score": 0.25, "clip_grad": 1.0}
    for ramp in (0.0, 1.5):
        run = fit(experiment(lambda_lipschitz_ramp=ramp, **shared), splits, tmp_path / str(ramp))
        found = rows_of(run.path)
        per_epoch = len(found) / 2
        for i, row in enumerate(found):
            extra = row["loss"] - row["ce"] - 0.25 * row["score_loss"]
            share = 1.0 if ramp == 0 else min(1.0, (i + 1) / (1.5 * per_epoch))
            assert extra == pytest.approx(0.5 * share * row["lipschitz_estimate"], rel=1e-4)


def test_a_step_is_no_longer_than_its_limit(splits: DataSplits, tmp_path: Path) -> None:
    moved = []
    for limit in (None, 0.01):
        config = experiment(
            clip_grad=limit, epochs=1, lr=1.0, schedule="constant", momentum=0.0, weight_decay=0.0
        )
        torch.manual_seed(config.seed)
        start, _ = first_model(config, splits, torch.device("cpu"))
        run = fit(config, splits, tmp_path / str(limit))
        pairs = zip(start.parameters(), run.load_model().parameters(), strict=True)
        squares = sum((a - b).detach().square().sum().item() for a, b in pairs)
        moved.append(math.sqrt(squares) / len(rows_of(run.path)))
    assert moved[1] <= 0.01 * (1 + 1e-4) < moved[0]


@pytest.mark.parametrize("every", [1, 3])
def test_penalties_every_few_steps_weigh_as_many_times(
    every: int, splits: DataSplits, tmp_path: Path
) -> None:
    margins = {"m_in": -2.0, "m_out": -1.9}  # which samples are past from the first step on
    weights = {"lambda_grad": 0.25, "lambda_score": 0.5, "lambda_lipschitz": 0.125}
    config = experiment(
        method="greg", penalty_every=every, lambda_lipschitz_ramp=0, **weights, **margins
    )
    found = rows_of(fit(config, splits, tmp_path / "run").path)
    for i, row in enumerate(found):
        assert ("grad_loss" in row) == (i % every == 0)
        extra = row["loss"] - row["ce"] - 0.5 * row["score_loss"]
        wanted = 0.25 * every * row.get("grad_loss", 0.0)
        if i % every == 0:
            wanted += 0.125 * every * row["lipschitz_estimate"]
        assert extra == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert wanted > 0.001 or i % every


def test_a_network_without_a_constant_is_refused_before_anything_is_written(
    splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def jumps(*args: Any) -> nn.Module:
        made = make_network(*args)
        assert isinstance(made, Classifier)
        made.body.append(nn.Softplus())
        return made

    monkeypatch.setattr(initial_model, "make_network", jumps)
    config = experiment(lambda_lipschitz=0.1)
    for attempt in (lambda: check(config, splits), lambda: fit(config, splits, tmp_path / "run")):
        with pytest.raises(UsageError, match=r"stages\[0\].lambda_lipschitz: .*Softplus"):
            attempt()
    assert not (tmp_path / "run").exists()
    run = fit(experiment(), splits, tmp_path / "other")
    assert not any("lipschitz_estimate" in row for row in rows_of(run.path))
