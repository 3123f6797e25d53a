"""Wide residual networks WRN-depth-k with pre-activation blocks."""

from __future__ import annotations

from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.models.aliases import HEAD_ALIASES
from greg_cert.models.base import Body


class PreActivationBlock(nn.Module):
    """BatchNorm–ReLU–convolution twice, added to the (projected) input.

    Where the shape changes, the projection reads the activated input, as in the authors' design.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, fig. 1d.
    """

    def __init__(self, in_planes: int, planes: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU()
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.projection: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.projection = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, planes, H/stride, W/stride) of (B, in_planes, H, W)."""
        activated = self.relu1(self.bn1(x))
        skip = x if self.projection is None else self.projection(activated)
        out = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(activated)))))
        y: Tensor = skip + out
        return y


def wide_resnet_body(
    in_channels: int, image_size: int, depth: int, widen: int, dropout: float = 0.0
) -> Body:
    """Stem of 16 planes, three stages of (depth − 4)/6 blocks at 16k, 32k, 64k planes, pool.

    The aliases are the names of the WRN that outlier-exposure, energy_ood and pytorch-ood share.
    `dropout` is the share of the maps between a block's convolutions that training sets to 0.
    Images may be of any size.

    Raises:
        UsageError: for another depth.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, table 1.
    """
    if depth < 10 or (depth - 4) % 6:
        raise UsageError(f"depth: expected WRN of 6n + 4 with n >= 1, but got {depth}")
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
    aliases = {"conv1": "body.0", **HEAD_ALIASES}
    planes_in = 16
    for stage in range(3):
        planes = 16 * widen * 2**stage
        for block in range((depth - 4) // 6):
            theirs, ours = f"block{stage + 1}.layer.{block}", f"body.{len(layers)}"
            aliases |= {theirs: ours, f"{theirs}.convShortcut": f"{ours}.projection"}
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(PreActivationBlock(planes_in, planes, stride, dropout))
            planes_in = planes
    aliases["bn1"] = f"body.{len(layers)}"
    layers += [nn.BatchNorm2d(planes_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Body(nn.Sequential(*layers), planes_in, aliases)
