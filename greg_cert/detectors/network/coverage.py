"""NAC-UE: how often training images bring each neuron into the state that an image does."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.data import Images
from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.network.feature_maps import FeatureMaps
from greg_cert.detectors.penultimate import Penultimate, batches, rows_of
from greg_cert.errors import UsageError

_SPREAD = 1000.0  # base of the logarithm that spaces the edges
_MOST_LAYERS = 4
_ROWS = 64  # of images whose maps are kept until their slopes are known


def nac(
    network: Penultimate,
    train: Images | Tensor,
    *,
    alpha: float,
    bins: int,
    full: int,
    images: int,
    layers: int | None,
) -> Fitted:
    """−mean over neurons of min(n/`full`, 1), summed over layers.

    A neuron's state is σ(`alpha`·z·∂KL(u‖softmax f)/∂z), u uniform; n counts the training images,
    `images` of them evenly spaced, whose state lies in the same of `bins` intervals. The layers are
    the penultimate features and the last stages of feature maps, `layers` together, at most 4
    unless given. A channel of a map is a neuron whose z is its mean and whose slope is summed over
    places, so that a last stage that is pooled into the features has their states, and is left out.

    The authors read four layers too, but search `alpha`, `bins` and `full` of each on OOD
    validation data; the defaults are theirs for CIFAR-10 and the penultimate layer. Their code
    spaces the edges by a logarithm, so that intervals are narrow about 1/2, the state of a neuron
    without influence (and makes `bins` − 2 of them); pytorch-ood's are narrow at 0 and 1, and it
    adds 1e-12 to probabilities.

    Source: Liu et al., ICLR 2024, section 3; the edges are those of the authors' code.

    Raises:
        UsageError: for more layers than there are.
    """
    maps, inner = FeatureMaps(network), edges(bins)
    stages: list[int] = []
    counts: list[Tensor] = []  # (D, bins) of each layer

    def intervals(x: Tensor) -> list[Tensor]:
        """Interval of each neuron, (B, D) of each layer."""
        states = [_penultimate_slopes(network, x), *_map_slopes(network, maps, stages, x)]
        return [torch.bucketize((alpha * s).sigmoid(), inner, right=True) for s in states]

    order = torch.linspace(0, len(train) - 1, min(images, len(train))).long()
    for x in batches(rows_of(train, order)):
        if not counts and layers != 1:
            stages += _stages(network, maps, x, layers)
        found = intervals(x)
        counts = counts or [inner.new_zeros(f.shape[1], len(inner) + 1) for f in found]
        for places, count in zip(found, counts, strict=True):
            count.scatter_add_(1, places.T, count.new_ones(places.T.shape))
    covered = [(count / full).clamp(max=1.0) for count in counts]

    def score(x: Tensor) -> Tensor:
        parts = [c.gather(1, p.T).mean(0) for p, c in zip(intervals(x), covered, strict=True)]
        return -torch.stack(parts).sum(0)

    return Fitted(score, {"layers": len(counts)})


def edges(bins: int) -> Tensor:
    """The 2h − 1 edges inside (0, 1) of 2h intervals, h = ⌈`bins`/2⌉.

    log₁₀₀₀(1 + i·(√1000 − 1)/h) for i = 1 … h, the last of which is 1/2, and their mirror images.
    """
    half = (bins + 1) // 2
    steps = torch.arange(1, half + 1, dtype=torch.float64) / half
    left = (1 + steps * (_SPREAD**0.5 - 1)).log() / torch.tensor(_SPREAD).double().log()
    left[-1] = 0.5
    return torch.cat([left, 1 - left[:-1].flip(0)])


def _penultimate_slopes(network: Penultimate, x: Tensor) -> Tensor:
    """z·∂KL(u‖softmax f)/∂z of the penultimate features, (B, D) on the CPU."""
    logits, features = network.outputs(x)
    assert features is not None
    gap = logits.softmax(1) - 1 / logits.shape[1]
    return features * (gap @ network.head.weight)


def _map_slopes(
    network: Penultimate, maps: FeatureMaps, stages: list[int], x: Tensor
) -> list[Tensor]:
    """Mean z times Σ∂KL(u‖softmax f)/∂z over the places of some maps, (B, C) each, on the CPU."""
    if not stages:
        return []
    parts = [_some_map_slopes(maps, stages, rows) for rows in x.split(_ROWS)]
    return [torch.cat(of_a_map) for of_a_map in zip(*parts, strict=True)]


def _some_map_slopes(maps: FeatureMaps, stages: list[int], x: Tensor) -> list[Tensor]:
    kept: dict[int, Tensor] = {}

    def look(number: int, found: Tensor) -> Tensor | None:
        if number not in stages:
            return None
        kept[number] = found
        return found.clone()  # what follows may write in place

    with torch.enable_grad():
        logits = maps.run(x.detach().to(torch.float64).requires_grad_(), look)
        divergence = -logits.log_softmax(1).mean(1).sum()
        found = [kept[number] for number in stages]
        slopes = torch.autograd.grad(divergence, found)
    return [
        (z.mean((2, 3)) * slope.sum((2, 3))).detach().cpu()
        for z, slope in zip(found, slopes, strict=True)
    ]


@torch.no_grad()
def _stages(network: Penultimate, maps: FeatureMaps, x: Tensor, layers: int | None) -> list[int]:
    """Which stages are read beside the penultimate features, none that is pooled into these."""
    stages, last = maps.stages(x), torch.empty(0)

    def look(number: int, found: Tensor) -> None:
        nonlocal last
        last = found.mean((2, 3)).cpu()  # of the last map, which is the last stage

    maps.run(x, look)
    features = network.outputs(x).features
    assert features is not None
    if last.shape == features.shape and torch.allclose(last, features):
        stages = stages[:-1]
    if layers is not None and layers > len(stages) + 1:
        raise UsageError(f"detector nac: expected layers <= {len(stages) + 1}, but got {layers}")
    return stages[1 - (layers or _MOST_LAYERS) :]
