"""Random small networks of every supported kind, by seed or by hypothesis.

One builder reads all its choices from a `random.Random`: a seeded one gives the same network each
time, and hypothesis's own one lets it drive, and shrink, shapes and layers. Values are drawn from a
torch generator with a seed of that source. Networks are awkward on purpose: dead neurons, zero
weights, tiny variances, layers of 1e-8 and of 1e6, equal logits, a single logit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import hypothesis.strategies as st
import torch
from torch import Tensor, nn

from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.trace import trace_model

Shape = tuple[int, ...]
SLOPES = (0.0, 0.01, 0.3, 0.99, 1.0)
DEAD = -1e3
_WIDTHS = (1, 1, 2, 3, 4, 6)
_CLASSES = (1, 2, 2, 3, 4, 5)


@dataclass(frozen=True)
class RandomNetwork:
    """A float64 classifier in eval mode and the shape of one input; prints as its layers."""

    model: nn.Module
    shape: Shape
    seed: int  # of the values

    @cached_property
    def graph(self) -> Graph:
        """Its canonical graph."""
        return trace_model(self.model, self.shape)

    def inputs(self, count: int) -> Tensor:
        """(count, *shape) in [0, 1]; one in three on the border, with pixels of exactly 0 or 1."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        x = torch.rand(count, *self.shape, generator=generator, dtype=torch.float64)
        x[1::3] = x[1::3].round()
        return x


class Sum(nn.Module):
    """x + inner(x), or a projection of x plus inner(x)."""

    def __init__(self, inner: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.inner, self.skip = inner, skip

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.inner(x)


class Side(nn.Module):
    """inner(x) beside x, along channels (or features)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x), x], dim=1)


class Standardise(nn.Module):
    """(x − mean)/std written as arithmetic, with one pair a channel."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        shape = (channels, *[1] * (rank - 1))
        self.register_buffer("mean", torch.linspace(0.3, 0.6, channels).reshape(shape))
        self.register_buffer("std", torch.linspace(0.2, 0.3, channels).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def random_network(seed: int, classes: int | None = None) -> tuple[nn.Module, Shape]:
    """The network of that seed, in float64 and eval mode, and the shape of one input."""
    network = draw_network(random.Random(seed), classes)
    return network.model, network.shape


def networks(classes: int | None = None) -> st.SearchStrategy[RandomNetwork]:
    """Networks whose every choice hypothesis makes."""
    return st.randoms(use_true_random=False).map(lambda source: draw_network(source, classes))


def draw_network(source: random.Random, classes: int | None = None) -> RandomNetwork:
    """A network all of whose choices come from `source`; `classes` fixes the number of logits."""
    outputs = source.choice(_CLASSES) if classes is None else classes
    images = source.random() < 0.6
    shape: Shape = (source.randint(1, 6),)
    if images:
        shape = (source.randint(1, 3), source.randint(2, 6), source.randint(2, 6))
    layers: list[nn.Module] = []
    now = shape
    if source.random() < 0.2:
        layers.append(Standardise(shape[0], len(shape)))
    for _ in range(source.randint(1, 4)):
        added = _image_block(source, now) if len(now) == 3 else _vector_block(source, now)
        layers += added
        now = _shape_after(nn.Sequential(*added), now)
    if len(now) == 3:
        if source.random() < 0.3:
            layers.append(nn.AdaptiveAvgPool2d(1))
            now = (now[0], 1, 1)
        layers.append(nn.Flatten())
    features = int(torch.Size(now).numel())
    if features > 12 and source.random() < 0.7:
        layers += [nn.Linear(features, 6), nn.ReLU()]
        features = 6
    layers.append(nn.Linear(features, outputs))
    seed = source.randrange(2**20)
    model = nn.Sequential(*layers).double().eval()
    _fill(model, source, torch.Generator().manual_seed(seed))
    return RandomNetwork(model, shape, seed)


def _image_block(source: random.Random, shape: Shape) -> list[nn.Module]:
    channels, height, width = shape
    kind = source.choice(("conv", "conv", "conv", "residual", "concat", "pool", "norm", "nothing"))
    if kind == "conv":
        groups = source.choice([g for g in (1, 1, 2, 3) if channels % g == 0])
        wide = groups * source.choice((1, 2, 3) if groups == 1 else (1, 2))
        padding = source.randint(0, 2), source.randint(0, 2)
        dilation = source.randint(1, 2), source.randint(1, 2)
        kernel = [
            source.randint(1, min(3, (n + 2 * p - 1) // d + 1))
            for n, p, d in zip((height, width), padding, dilation, strict=True)
        ]
        stride = source.randint(1, 2), source.randint(1, 2)
        conv = nn.Conv2d(
            channels, wide, (kernel[0], kernel[1]), stride, padding, dilation, groups,
            bias=source.random() < 0.7,
        )  # fmt: skip
        norm = [nn.BatchNorm2d(wide)] if source.random() < 0.4 else []
        return [conv, *norm, _activation(source)]
    if kind == "residual":
        narrow = source.randint(1, 3)
        inner = nn.Sequential(
            nn.BatchNorm2d(channels) if source.random() < 0.5 else nn.Identity(),
            _activation(source),
            nn.Conv2d(channels, narrow, 3, padding=1),
            _activation(source),
            nn.Conv2d(narrow, channels, 1),
        )
        project = source.random() < 0.3
        return [Sum(inner, nn.Conv2d(channels, channels, 1) if project else nn.Identity())]
    if kind == "concat":
        wide = source.randint(1, 2)
        inner = nn.Sequential(nn.Conv2d(channels, wide, 3, padding=1), _activation(source))
        return [Side(inner), _activation(source)]
    if kind == "pool":
        return [_pool(source, height, width)]
    if kind == "norm":
        return [nn.BatchNorm2d(channels, affine=source.random() < 0.7), _activation(source)]
    return [nn.Dropout2d(0.3)]


def _pool(source: random.Random, height: int, width: int) -> nn.Module:
    kind = source.choice(("max", "max", "average", "padded", "adaptive"))
    kernel = source.randint(1, min(3, height)), source.randint(1, min(2, width))
    if kind == "max":
        return nn.MaxPool2d(kernel)
    if kind == "average":
        return nn.AvgPool2d(kernel)
    if kind == "padded":
        return nn.AvgPool2d(2, source.randint(1, 2), 1)
    return nn.AdaptiveAvgPool2d((height, 1) if source.random() < 0.5 else (1, width))


def _vector_block(source: random.Random, shape: Shape) -> list[nn.Module]:
    (size,) = shape
    kind = source.choice(("linear", "linear", "linear", "residual", "concat", "norm", "nothing"))
    if kind == "linear":
        wide = source.choice(_WIDTHS)
        norm = [nn.BatchNorm1d(wide)] if source.random() < 0.4 else []
        return [nn.Linear(size, wide, bias=source.random() < 0.7), *norm, _activation(source)]
    if kind == "residual":
        wide = source.choice(_WIDTHS)
        inner = nn.Sequential(nn.Linear(size, wide), _activation(source), nn.Linear(wide, size))
        return [Sum(inner, nn.Identity()), _activation(source)]
    if kind == "concat":
        wide = source.randint(1, 3)
        return [Side(nn.Sequential(nn.Linear(size, wide), _activation(source)))]
    if kind == "norm":
        return [nn.BatchNorm1d(size, affine=source.random() < 0.7), _activation(source)]
    return [nn.Dropout(0.3)]


def _activation(source: random.Random) -> nn.Module:
    if source.random() < 0.65:
        return nn.ReLU()
    return nn.LeakyReLU(source.choice(SLOPES))


def _shape_after(block: nn.Module, shape: Shape) -> Shape:
    with torch.no_grad():
        return tuple(block.eval()(torch.zeros(2, *shape)).shape[1:])


@torch.no_grad()
def _fill(model: nn.Module, source: random.Random, generator: torch.Generator) -> None:
    """Values of unit gain, and now and then a layer that is dead, zero, sparse, huge or tiny."""

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    affine = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in affine:
        layer.weight.copy_(normal(layer.weight) * (1.6 / layer.weight[0].numel()) ** 0.5)
        if layer.bias is not None:
            layer.bias.copy_(0.3 * normal(layer.bias))
        trouble = source.random()
        if trouble < 0.08:
            layer.weight.mul_(10.0 ** source.choice((-8, -3, 3, 6)))
        elif trouble < 0.16:
            layer.weight.mul_((normal(layer.weight) > 0).double())
        elif trouble < 0.20:
            layer.weight[0] = 0.0
        elif trouble < 0.28 and layer.bias is not None and layer is not affine[-1]:
            layer.bias[0] = DEAD
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(0.3 * normal(module.running_mean))
            module.running_var.copy_(normal(module.running_var).abs() + 0.1)
            if source.random() < 0.2:
                module.running_var[0] = 10.0 ** source.choice((-10, -6, -3))
            if module.affine:
                module.weight.copy_(normal(module.weight))  # of either sign
                module.bias.copy_(0.3 * normal(module.bias))
                if source.random() < 0.2:
                    module.weight[0] = 0.0
    head = affine[-1]
    if len(head.weight) > 1 and source.random() < 0.2:
        head.weight[1], head.bias[1] = head.weight[0], head.bias[0]  # type: ignore[index]
