"""Small networks with seeds, and networks whose radii are known by hand.

`ZOO` maps a name to a builder of (model in eval mode, shape of one input); the same name gives the
same weights each time. `exact_cases` holds networks with the true radius of every sample.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.models import MaxMin, build_model
from greg_cert.models.base import Classifier
from greg_cert.models.resnet import BasicBlock
from greg_cert.models.wide_resnet import PreActivationBlock

Shape = tuple[int, ...]
Problem = tuple[nn.Module, Shape]


def _seeded(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(sum(name.encode()))


def randomise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random weights and biases of unit gain and random BatchNorm statistics, in eval mode."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        noise = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * noise).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and type(module).__name__ != "Normalize":
                fan_in = module.weight[0].numel()
                module.weight.copy_(normal(module.weight) * (1.6 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.3 * normal(module.bias))
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(0.3 * normal(module.running_mean))
                module.running_var.copy_(uniform(module.running_var, 0.3, 1.5))
                module.running_var[0] = 1e-4  # one channel that is scaled up a lot
                if module.affine:
                    module.weight.copy_(normal(module.weight))  # of either sign
                    module.bias.copy_(0.3 * normal(module.bias))
                    module.weight[0] *= 0.05
    return model.eval()


class Residual(nn.Module):
    """conv-BN-ReLU-conv-BN plus a strided 1×1 projection, then ReLU."""

    def __init__(self, narrow: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.skip = nn.Conv2d(narrow, wide, 1, stride, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.bn3(self.skip(x))
        return F.relu(out)


class PreActivation(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus the input itself: BN follows an addition, not a conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(torch.relu(self.bn2(out)))


class Branches(nn.Module):
    """Two branches from one input, concatenated along channels."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, wide, 3, padding=1)
        self.right = nn.Conv2d(channels, wide, 1)
        self.norm = nn.BatchNorm2d(2 * wide + channels)

    def forward(self, x: Tensor) -> Tensor:
        together = torch.cat([self.left(x).relu(), self.right(x), x], dim=1)
        return self.norm(together)


class Arithmetic(nn.Module):
    """(x − mean)/std written as arithmetic, the first thing done to the input."""

    def __init__(self, body: nn.Module, channels: int, inplace: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(0.3, 0.6, channels).reshape(1, channels, 1, 1))
        self.register_buffer("std", torch.linspace(0.2, 0.3, channels).reshape(channels, 1, 1))
        self.body = body
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        if self.inplace:
            return self.body(x.sub_(self.mean).div_(self.std))
        return self.body((x - self.mean) / self.std)


class MaxMinResidual(nn.Module):
    """x + conv(MaxMin(conv(x))): the sum is rotated by a layer of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.act = MaxMin()
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x)))


class Absolute(nn.Module):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.abs(x)


def _slopes(*values: float) -> nn.Module:
    layer = nn.PReLU(len(values))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values))
    return layer


class Function(nn.Module):
    """function(x, *layers) as a module."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


class MeanOfImage(nn.Module):
    """The mean over both image axes as a method call."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Steps(nn.Module):
    """2·(1 − x)·0.5 + x − 0.25 and such: subtraction in both orders, of tensors and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.conv(1.0 - x))
        y = 2.0 * z - self.conv(x) * 0.5
        return self.fc(torch.relu(0.25 - y).view(x.size(0), -1)) / 0.7


class Cancelling(nn.Module):
    """ReLU(y − y) beside ReLU(y): a pre-activation that is exactly 0 over any ball."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 1)
        self.head = nn.Linear(2, 1)
        with torch.no_grad():
            self.fc.weight.fill_(1.0)
            self.fc.bias.fill_(-1.0)
            self.head.weight.copy_(torch.tensor([[-0.5, -1.0]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.head(torch.cat([torch.relu(y - y), torch.relu(y)], 1))


def _sequential(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


def _narrow_resnet() -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        BasicBlock(2, 2, 1),
        BasicBlock(2, 4, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Classifier(body, 4, num_classes=3, mean=[0.4], std=[0.3])


def _narrow_wide_resnet() -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, bias=False),
        PreActivationBlock(2, 2, 1, 0.3),
        PreActivationBlock(2, 4, 2, 0.3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Classifier(body, 4, num_classes=3, mean=[0.4], std=[0.3])


def _registry(name: str) -> nn.Module:
    return build_model(name, num_classes=4, in_channels=1, image_size=6, mean=[0.4], std=[0.3])


_IMAGE = (2, 6, 6)
_BUILDERS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)
        ),
        (5,),
    ),
    "mlp_batchnorm": (
        lambda: nn.Sequential(
            nn.Linear(5, 9, bias=False),
            nn.BatchNorm1d(9),
            nn.ReLU(),
            nn.BatchNorm1d(9, affine=False),
            nn.Linear(9, 3),
        ),
        (5,),
    ),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 2, groups=2, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 4),
        ),
        _IMAGE,
    ),
    "conv_uneven": (
        # Rectangular kernel, stride and padding; the stride leaves a last row unread.
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(0, 1)),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(80, 3),
        ),
        _IMAGE,
    ),
    "conv_dilated": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same", dilation=2),
            nn.ReLU(),
            nn.Conv2d(4, 4, 2, dilation=2, stride=2, groups=4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        _IMAGE,
    ),
    "conv_batchnorm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, stride=2, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
        _IMAGE,
    ),
    "residual": (
        lambda: nn.Sequential(
            Residual(2, 3), Residual(3, 4, stride=2), nn.Flatten(), nn.Linear(36, 3)
        ),
        _IMAGE,
    ),
    "pre_activation": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1),
            PreActivation(3),
            PreActivation(3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, 3),
        ),
        _IMAGE,
    ),
    "concatenation": (
        lambda: nn.Sequential(
            Branches(2, 2), nn.ReLU(), MeanOfImage(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
        ),
        _IMAGE,
    ),
    "average_pools": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(3, 2, 1),
            nn.Conv2d(4, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((1, 2)),
            nn.Flatten(),
            nn.Linear(8, 3),
        ),
        _IMAGE,
    ),
    "max_pool_2": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(27, 3),
        ),
        _IMAGE,
    ),
    "max_pool_3": (
        lambda: nn.Sequential(
            nn.MaxPool2d(3), nn.Conv2d(2, 4, 2), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(4, 3)
        ),
        _IMAGE,
    ),
    "leaky": (
        lambda: nn.Sequential(
            nn.Linear(5, 10),
            nn.LeakyReLU(0.3),
            nn.Linear(10, 8),
            nn.LeakyReLU(0.01),
            nn.Linear(8, 3),
            nn.LeakyReLU(0.5),  # the last operation is no affine layer
        ),
        (5,),
    ),
    "max_min": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.BatchNorm2d(4),
            MaxMin(),
            MaxMinResidual(4),
            MaxMin(),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        _IMAGE,
    ),
    "bent": (  # lines of any slope below zero, of which some are one for each feature
        lambda: nn.Sequential(
            nn.Linear(5, 8),
            Absolute(),
            nn.Linear(8, 6),
            _slopes(0.3, -0.4, 1.0, -1.0, 1.7, -2.5),
            nn.Linear(6, 4),
            nn.LeakyReLU(-0.2),
            nn.Linear(4, 3),
        ),
        (5,),
    ),
    "arithmetic": (
        lambda: Arithmetic(
            nn.Sequential(
                nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)
            ),
            2,
        ),
        _IMAGE,
    ),
    "steps": (Steps, _IMAGE),
    "relu_first": (
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)),
        (5,),
    ),
    "flatten_first": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 3)),
        _IMAGE,
    ),
    "one_logit": (lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1)), (5,)),
    "registry_mlp": (lambda: _registry("mlp"), (1, 6, 6)),
    "registry_cnn_small": (lambda: _registry("cnn_small"), (1, 6, 6)),
    "narrow_resnet": (_narrow_resnet, (1, 6, 6)),
    "narrow_wide_resnet": (_narrow_wide_resnet, (1, 6, 6)),
}

ZOO = tuple(_BUILDERS)
BIG = ("registry_mlp", "registry_cnn_small")  # too slow for every combination
SMALL = tuple(n for n in ZOO if n not in BIG)


def pairwise_settings(names: Iterable[str]) -> list[tuple[str, float, str]]:
    """(name, norm, side): every two of them together, which takes half of all three together.

    A norm is met at the input alone and a side at the score alone, so that a third of the three
    shows no fault that two do not.
    """
    norms, sides = (2.0, math.inf), ("id", "ood")
    return [
        (name, norm, sides[(i + j) % 2])
        for i, name in enumerate(names)
        for j, norm in enumerate(norms)
    ]


def build(name: str) -> Problem:
    """The network of that name, in float32 and eval mode, and the shape of one input."""
    builder, shape = _BUILDERS[name]
    torch.manual_seed(0)  # constructors draw weights that are replaced below
    return randomise(builder(), _seeded(name)), shape


def points(shape: Shape, count: int, seed: int = 0) -> Tensor:
    """`count` inputs uniform in [0, 1], (count, *shape) float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator, dtype=torch.float64)


def in_ball(x: Tensor, radius: Tensor, norm: float, seed: int) -> Tensor:
    """One point a sample in the ball about x, at a share of `radius` (B,) that is 1 half the time.

    For ℓ∞ half of the points are corners.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    if norm == math.inf and seed % 2:
        direction = direction.sign()
    length = torch.linalg.vector_norm(direction.flatten(1), ord=norm, dim=1)
    share = (2 * torch.rand(len(x), generator=generator, dtype=torch.float64)).clamp(max=1.0)
    return x + direction * (radius * share / length).reshape(-1, *[1] * (x.ndim - 1))


def climb(
    value: Callable[[Tensor], Tensor], x: Tensor, radius: Tensor, norm: float, steps: int = 12
) -> Tensor:
    """Points (B, ...) of the balls about x where `value` (B,) is large, by projected gradients."""
    shape = (-1, *[1] * (x.ndim - 1))
    r = radius.reshape(shape)
    delta = torch.zeros_like(x)
    best_value = torch.full((len(x),), -math.inf, dtype=x.dtype)
    best = x.clone()
    for step in range(steps + 1):
        leaf = (x + delta).detach().requires_grad_()
        now = value(leaf)
        better = now.detach() > best_value
        best_value = torch.where(better, now.detach(), best_value)
        best = torch.where(better.reshape(shape), leaf.detach(), best)
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(now.sum(), leaf)
        size = r * (1.0 if step == 0 else 0.6 * (1 - step / steps) + 0.02)
        if norm == math.inf:
            delta = (delta + size * gradient.sign()).clamp(-r, r)
        else:
            length = gradient.flatten(1).norm(dim=1).clamp_min(1e-300).reshape(shape)
            delta = delta + size * gradient / length
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-300).reshape(shape)
            delta = delta * (r / length).clamp(max=1.0)
    return best


def energy_of(model: nn.Module, x: Tensor) -> Tensor:
    """S(x) (B,) computed without any of the library: −logsumexp of the float64 logits."""
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        return -torch.logsumexp(twin(x.clone()), dim=1)


def affine(weight: Tensor, bias: Tensor) -> nn.Module:
    """f(x) = Wx + b in float64."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(layer).eval()


@dataclass(frozen=True)
class Exact:
    """A network, its inputs and threshold, and the true radius of every sample by side and norm."""

    model: nn.Module
    inputs: Tensor
    threshold: float
    radius: Callable[[str, float], Tensor]  # (side, norm) -> (B,)


def _dual(w: Tensor, norm: float) -> float:
    return float(w.norm()) if norm == 2.0 else float(w.abs().sum())


def affine_one_logit(dim: int = 6, seed: int = 1) -> Exact:
    """K = 1: S = −(w·x + b), so the radius is |γ − S|/‖w‖* on either side."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(dim, generator=generator, dtype=torch.float64)
    x = points((dim,), 8, seed)
    score = -(x @ w + 0.3)
    threshold = float(score.sort().values[3:5].mean())  # no sample is close to it

    def radius(side: str, norm: float) -> Tensor:
        gap = threshold - score if side == "id" else score - threshold
        return gap.clamp_min(0.0) / _dual(w, norm)

    return Exact(affine(w[None], torch.tensor([0.3], dtype=torch.float64)), x, threshold, radius)


def affine_twin_logits(dim: int = 6, seed: int = 2) -> Exact:
    """K = 2 with the same logit twice: S = −(w·x + b) − log 2."""
    one = affine_one_logit(dim, seed)
    layer = one.model[0]  # type: ignore[index]
    model = affine(layer.weight.detach().repeat(2, 1), layer.bias.detach().repeat(2))
    return Exact(model, one.inputs, one.threshold - math.log(2.0), one.radius)


def one_relu(slope: float = 1.5) -> Exact:
    """F(x) = c − s·ReLU(w·x − 1): the score is −c + s·ReLU(w·x − 1), flat and then rising.

    S > γ needs w·x > 1 + (γ + c)/s, so the ID radius is the distance to that hyperplane, which lies
    beyond the kink: the gradient at the flat samples is 0 and says nothing of it.
    """
    w = torch.tensor([0.6, -0.8, 0.5], dtype=torch.float64)
    c, threshold = 2.0, -1.5
    model = nn.Sequential(
        affine(w[None], torch.tensor([-1.0])),
        nn.ReLU(),
        affine(torch.tensor([[-slope]]), torch.tensor([c])),
    )
    x = points((3,), 6, 3)
    level = 1.0 + (threshold + c) / slope

    def radius(side: str, norm: float) -> Tensor:
        gap = level - x @ w if side == "id" else x @ w - level
        return gap.clamp_min(0.0) / _dual(w, norm)

    return Exact(model.eval(), x, threshold, radius)


def exact_cases() -> dict[str, Exact]:
    """All networks with a known radius whose score is affine, so that bounds are exact too."""
    return {"one_logit": affine_one_logit(), "twin_logits": affine_twin_logits()}
