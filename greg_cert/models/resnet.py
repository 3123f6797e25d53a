"""ResNet-18 for 32×32 images: a 3×3 stem of stride 1 and no max pool."""

from __future__ import annotations

from torch import Tensor, nn

from greg_cert.models.aliases import HEAD_ALIASES
from greg_cert.models.base import Body


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, added to the (projected) input, then ReLU.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, fig. 2 and 3.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, planes, H/stride, W/stride) of (B, in_planes, H, W)."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        y: Tensor = self.relu2(out + self.shortcut(x))
        return y


def resnet18_body(in_channels: int, image_size: int = 32, *, width: int = 64) -> Body:
    """Stem, four stages of two basic blocks (width, 2×, 4×, 8×), global average pool.

    The aliases are the names of torchvision, whose projection is `downsample`, and of the CIFAR
    code bases, where it is `shortcut`. Images may be of any size.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    aliases = {"conv1": "body.0", "bn1": "body.1", **HEAD_ALIASES}
    planes_in = width
    for stage in range(4):
        planes = width * 2**stage
        for block in range(2):
            theirs, ours = f"layer{stage + 1}.{block}", f"body.{len(layers)}"
            aliases |= {theirs: ours, f"{theirs}.downsample": f"{ours}.shortcut"}
            layers.append(BasicBlock(planes_in, planes, 2 if stage > 0 and block == 0 else 1))
            planes_in = planes
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Body(nn.Sequential(*layers), planes_in, aliases)
