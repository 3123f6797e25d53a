"""Small networks of smooth activations, with seeds; the same name gives the same weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from problems import Shape, randomise
from torch import Tensor, nn

LAYERS: dict[str, nn.Module] = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu-tanh": nn.GELU("tanh"),
    "elu": nn.ELU(),
}
KINDS = tuple(LAYERS)
OTHERS = ("softplus-beta", "relu6", "hardtanh", "prelu")  # by way of other operations
NETWORKS = (*KINDS, *OTHERS, "conv", "mixed", "no-layer-first")


class Mixed(nn.Module):
    """A node that two kinds read, a kind after a sum, a kind after a kind, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 3)."""
        z = self.first(x)
        y = self.bn(self.second(F.silu(z))) + F.relu(z)
        y = torch.cat([torch.sigmoid(F.gelu(y)), torch.tanh(z)], 1)
        return self.head(F.avg_pool2d(y, 2).flatten(1))  # type: ignore[no-any-return]


def mlp(layer: nn.Module) -> nn.Module:
    """Two hidden layers of one activation."""
    return nn.Sequential(nn.Linear(5, 10), layer, nn.Linear(10, 8), layer, nn.Linear(8, 4))


def build_smooth(name: str, gain: float = 1.5) -> tuple[nn.Module, Shape]:
    """The network of that name, in eval mode, and the shape of one input."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    torch.manual_seed(0)
    shape: Shape = (5,)
    if name in LAYERS:
        model = mlp(LAYERS[name])
    elif name in OTHERS:
        # A network of this size seldom reaches 6, hence the narrow limits.
        layers = (nn.Softplus(0.5), nn.ReLU6(), nn.Hardtanh(-0.3, 0.8), nn.PReLU(1, 0.3))
        model = mlp(layers[OTHERS.index(name)])
        gain = 6.0 if name == "relu6" else gain
    elif name == "no-layer-first":
        model = nn.Sequential(nn.Tanh(), nn.Linear(5, 6), nn.GELU(), nn.Tanh(), nn.Linear(6, 3))
    else:
        shape = (2, 4, 4)
        conv = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(4, 3, 2), nn.SiLU(),
            nn.Flatten(), nn.Linear(3, 3),
        )  # fmt: skip
        model = conv if name == "conv" else Mixed()
    randomise(model, generator)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight.mul_(gain)
    return model, shape


def hard_intervals(count: int = 60) -> Tensor:
    """(2, n) ends of intervals of all sizes and places, float64: low ≤ high."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = []
    for width in (0.0, 1e-300, 1e-17, 1e-12, 1e-6, 1e-2, 0.3, 2.0, 10.0, 50.0, 1e3):
        centre = 3 * normal(count)
        parts.append(torch.stack([centre, centre + width * normal(count).abs()]))
    for scale in (1e-300, 1e-20, 1e-5, 1e2, 1e4, 1e9, 1e20):
        parts.append(scale * normal(2, count))
    parts.append(torch.stack([1e20 * normal(count), 10 * normal(count)]))  # very uneven
    named = [0.0, 1.0, -1.0, 20.0, -20.0, 39.9, 40.1, -40.0, 745.0, -800.0, 1e20, -1e20]
    named += [1.4142135623730951, -2.399357280515468, -0.7517915246935645, -1.2784645427610738]
    ends = torch.tensor(named, dtype=torch.float64)
    parts.append(torch.stack([g.flatten() for g in torch.meshgrid(ends, ends, indexing="ij")]))
    both = torch.cat(parts, 1)
    return torch.stack([both.amin(0), both.amax(0)])


def dense(low: Tensor, high: Tensor, count: int = 400) -> Tensor:
    """(m, n) points of each interval: spread evenly, crowded at its ends, and about zero."""
    share = torch.linspace(0, 1, count, dtype=torch.float64).unsqueeze(1)
    near = 10.0 ** torch.linspace(-18, 0, 40, dtype=torch.float64).unsqueeze(1)
    middle = torch.linspace(-45, 45, 2 * count, dtype=torch.float64).unsqueeze(1)
    width = high - low
    z = [low + share * width, low + near * width, high - near * width, middle.expand(-1, len(low))]
    return torch.minimum(torch.maximum(torch.cat(z), low), high)
