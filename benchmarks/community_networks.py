"""Three networks that the verification community measures its tools on, trained by others.

Weights only, from the example models of α,β-CROWN, as safetensors in a folder beside a checkout;
`load` puts them into the layers they were trained in.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn

from greg_cert.models.normalize import Normalize

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "networks"


class Network(NamedTuple):
    """How a network's layers are sized.

    Attributes:
        data: `mnist` or `cifar10`.
        padding: of its two convolutions.
        flat: inputs of its first linear layer.
        mean: that its inputs are shifted by, a channel each.
        std: that they are divided by.
    """

    data: str
    padding: int
    flat: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (1, 28, 28) if self.data == "mnist" else (3, 32, 32)


NETWORKS = {
    "mnist_cnn_a_adv": Network("mnist", 1, 1568, (0.0,), (1.0,)),
    "mnist_conv_small_nat": Network("mnist", 0, 800, (0.1307,), (0.3081,)),
    "cifar_cnn_a_mix": Network("cifar10", 1, 2048, (0.485, 0.456, 0.406), (0.225,) * 3),
}


def load(name: str, folder: Path = FOLDER) -> nn.Module:
    """A network from raw pixels in [0, 1] to ten logits, in evaluation mode and float32."""
    made = NETWORKS[name]
    layers = nn.Sequential(
        nn.Conv2d(len(made.mean), 16, 4, 2, made.padding),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, made.padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(made.flat, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    layers.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return nn.Sequential(Normalize(made.mean, made.std), layers).eval().to(torch.float32)
