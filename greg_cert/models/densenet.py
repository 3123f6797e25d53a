"""DenseNet-BC for 32×32 images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.models.aliases import HEAD_ALIASES
from greg_cert.models.base import Body, check_halved_twice


class DenseLayer(nn.Module):
    """`growth` new feature maps behind those that came in, by a bottleneck of 4·growth maps.

    BatchNorm–ReLU–1×1 convolution, then BatchNorm–ReLU–3×3 convolution.

    Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, section 3.
    """

    def __init__(self, in_planes: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_planes, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, in_planes + growth, H, W) of (B, in_planes, H, W)."""
        new = self.conv2(self.relu2(self.bn2(self.conv1(self.relu1(self.bn1(x))))))
        return torch.cat([x, new], dim=1)


def _transition(in_planes: int, planes: int) -> nn.Module:
    """Half the resolution and `planes` of the maps."""
    return nn.Sequential(
        OrderedDict(
            bn1=nn.BatchNorm2d(in_planes),
            relu=nn.ReLU(),
            conv1=nn.Conv2d(in_planes, planes, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


def densenet_body(
    in_channels: int, image_size: int, depth: int, growth: int, compression: float = 0.5
) -> Body:
    """Stem of 2·growth planes, three blocks of (depth − 4)/6 dense layers, transitions, pool.

    `compression` is the share of the maps that a transition keeps. The aliases are the names of the
    DenseNet-BC that outlier-exposure and energy_ood train.

    Raises:
        UsageError: for a depth or an image size out of range.

    Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, table 2.
    """
    if depth < 10 or (depth - 4) % 6:
        raise UsageError(f"depth: expected DenseNet-BC of 6n + 4 with n >= 1, but got {depth}")
    check_halved_twice(image_size)
    planes = 2 * growth
    aliases = {"conv1": "body.conv1", "bn1": "body.bn1", **HEAD_ALIASES}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(in_channels, planes, 3, padding=1, bias=False)
    for block in (1, 2, 3):
        dense = []
        for _ in range((depth - 4) // 6):
            dense.append(DenseLayer(planes, growth))
            planes += growth
        layers[f"block{block}"] = nn.Sequential(*dense)
        aliases[f"block{block}.layer"] = f"body.block{block}"
        if block < 3:
            kept = int(planes * compression)
            layers[f"trans{block}"] = _transition(planes, kept)
            aliases[f"trans{block}"] = f"body.trans{block}"
            planes = kept
    layers["bn1"] = nn.BatchNorm2d(planes)
    layers["relu"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return Body(nn.Sequential(layers), planes, aliases)
