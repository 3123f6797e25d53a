"""Small networks of kinds that the run folders lack, trained for seconds each time they are asked
for: residual, MaxMin, and with an overlapping max pool and a concatenation.

Names end in the size of their images: 8 for scikit-learn's digits, 28 for MNIST.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.data import DataSplits
from greg_cert.models import MaxMin
from greg_cert.models.base import Classifier
from greg_cert.models.resnet import BasicBlock

EPOCHS, BATCH, IMAGES = 4, 64, 1500
NAMES = ("residual8", "maxmin8", "pooled8", "residual28", "maxmin28", "pooled28")


class Branches(nn.Module):
    """A 3×3 convolution beside an overlapping max pool, as channels after each other."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(planes, planes, 3, 2, 1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, planes, H, W) to (B, 2·planes, H/2, W/2)."""
        return torch.cat([self.relu(self.conv(x)), self.pool(x)], 1)


def body(kind: str, size: int) -> tuple[nn.Module, int]:
    """Layers, and their number of features."""
    stride = 1 if size == 8 else (4 if kind == "residual" else 2)
    side = size // stride
    stem: list[nn.Module] = [nn.Conv2d(1, 4, max(3, stride), stride, 1 if stride < 4 else 0)]
    match kind:
        case "residual":
            layers = [*stem, nn.ReLU(), BasicBlock(4, 8, 2), BasicBlock(8, 8, 1)]
            return nn.Sequential(*layers, nn.AvgPool2d(side // 4), nn.Flatten()), (
                8 * (-(-side // 2) // (side // 4)) ** 2
            )
        case "maxmin":
            layers = [*stem, MaxMin(), nn.Conv2d(4, 8, 4, 2, 1), MaxMin(), nn.Flatten()]
            flat = 8 * (side // 2) ** 2
            return nn.Sequential(*layers, nn.Linear(flat, 32), MaxMin()), 32
        case _:
            layers = [*stem, nn.ReLU(), Branches(4), nn.Flatten()]
            flat = 8 * (-(-side // 2)) ** 2
            return nn.Sequential(*layers, nn.Linear(flat, 32), nn.ReLU()), 32


def trained(name: str, splits: DataSplits) -> Classifier:
    """A network of `NAMES` after a few epochs of cross-entropy on the training split, the same
    each time, in evaluation mode."""
    kind, size = name.rstrip("0123456789"), splits.train.pixels([0]).shape[-1]
    torch.manual_seed(0)
    layers, features = body(kind, size)
    sizes: dict[str, Any] = {"num_classes": 10, "mean": splits.mean, "std": splits.std}
    model = Classifier(layers, features, **sizes)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, y = splits.train.pixels()[:IMAGES], splits.train.labels
    assert y is not None
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval()
