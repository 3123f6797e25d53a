"""RankFeat, Gram and NAC-UE, which read the inside of a network, against numpy and pytorch-ood."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_ood.detector as ood
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.detectors import DETECTORS, Penultimate, build_detector
from greg_cert.detectors.network.coverage import edges
from greg_cert.detectors.network.feature_maps import FeatureMaps
from greg_cert.detectors.network.gram import row_sums
from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.models import build_model
from greg_cert.models.normalize import Normalize
from greg_cert.scores import energy


def images(seed: int, count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).double()


TRAIN, TEST = images(0, 43), images(1, 9)


class Residual(nn.Module):
    """relu(conv(x) + x), with the activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.skip, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv(x) + self.skip(x))
        return out


def network(pooled: bool = False) -> nn.Sequential:
    """Normalisation, 8×8 and 4×4 maps, and a head on them or on their means."""
    torch.manual_seed(0)
    after: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)]
    if pooled:
        after = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    stem = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), Residual())
    down = [nn.Conv2d(3, 4, 2, stride=2), nn.Softplus(), nn.Dropout(0.5)]
    made = nn.Sequential(Normalize([0.5], [0.25]), stem, *down, *after).double().eval()
    with torch.no_grad():  # so that images differ by more than a little
        made[-1].weight.mul_(8.0)
        made[-1].bias.sub_(made(TRAIN).mean(0))
    return made.requires_grad_(False)


def parts(model: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """Up to the 8×8 maps, from there to the 4×4 maps, and the rest."""
    return model[:2], model[2:5], model[5:]


def test_maps_are_those_of_modules_with_weights_before_them_each_once() -> None:
    model = network()
    maps, seen = FeatureMaps(Penultimate(model)), {}
    logits = maps.run(TEST, lambda n, m: seen.update({n: m.clone()}))
    torch.testing.assert_close(logits, model(TEST))
    conv = model[1][0](model[0](TEST))
    first = F.relu(conv)
    inner = model[1][2].conv(first)
    small = model[2](F.relu(inner + first))
    # The block, the stem and the dropout give tensors that were seen.
    expected = [conv, first, inner, F.relu(inner + first), small, F.softplus(small)]
    assert list(seen) == list(range(6))
    for found, by_hand in zip(seen.values(), expected, strict=True):
        torch.testing.assert_close(found, by_hand)
    assert maps.sizes(TEST) == [(8, 8)] * 4 + [(4, 4)] * 2
    assert maps.stages(TEST) == [3, 5]


def test_a_map_can_be_replaced_and_the_network_is_left_as_it_was() -> None:
    model = network()
    maps = FeatureMaps(Penultimate(model))
    _, second, last = parts(model)
    found = maps.run(TEST, lambda n, m: 2 * m if n == 3 else None)
    torch.testing.assert_close(found, last(second(2 * parts(model)[0](TEST))))
    torch.testing.assert_close(maps.run(TEST, lambda n, m: None), model(TEST))


@pytest.mark.parametrize(
    ("name", "stages"),
    [("resnet18_32x32", [32, 16, 8, 4]), ("wrn16_2", [32, 16, 8]), ("lip_cnn", [16, 8])],
)
def test_stages_of_the_registry(name: str, stages: list[int]) -> None:
    made = build_model(
        name, num_classes=2, in_channels=1, image_size=32, mean=[0.5], std=[0.2]
    ).eval()
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    network = Penultimate(made)
    maps = FeatureMaps(network)
    sizes, found = maps.sizes(x), maps.stages(x)
    assert [sizes[n] for n in found] == [(side, side) for side in stages]
    last: list[Tensor] = []
    maps.run(x, lambda n, m: last.append(m) if n == found[-1] else None)
    if name != "lip_cnn":  # what is pooled to the features is the last stage
        torch.testing.assert_close(last[0].mean((2, 3)), network.outputs(x).features)


def without_first_direction(maps: Tensor) -> Tensor:
    u, s, v = np.linalg.svd(maps.flatten(2).numpy(), full_matrices=False)
    s[:, 0] = 0.0
    return torch.from_numpy((u * s[:, None]) @ v).view(maps.shape)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_rankfeat_is_numpys(temperature: float) -> None:
    model = network()
    first, second, last = parts(model)
    logits = last(without_first_direction(second(first(TEST))))
    logits = (logits + last(second(without_first_direction(first(TEST))))) / 2
    expected = temperature * energy(logits / temperature)
    found = build_detector("rankfeat", model, temperature=temperature)(TEST)
    torch.testing.assert_close(found, expected)


def test_rankfeat_of_one_stage_is_pytorch_oods() -> None:
    model = network(pooled=True)[2:]
    maps = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    theirs = ood.RankFeat(model[:3], model[3:])
    torch.testing.assert_close(build_detector("rankfeat", model)(maps), theirs.predict(maps))
    # A map of rank one is gone altogether.
    alike = maps[:, :, :1, :1].expand(5, 3, 8, 8).contiguous()
    found = build_detector("rankfeat", model)(alike)
    torch.testing.assert_close(found, energy(model[-1].bias[None]).expand(5))


def all_maps(model: nn.Module, x: Tensor) -> list[np.ndarray]:
    seen: list[Tensor] = []
    FeatureMaps(Penultimate(model)).run(x, lambda _, m: seen.append(m.clone()))
    return [m.flatten(2).numpy() for m in seen]


def grams(maps: np.ndarray, p: int) -> np.ndarray:
    """By the whole matrices, (B, C)."""
    sums = np.stack([((f**p) @ (f**p).T).sum(1) for f in maps])
    return np.sign(sums) * np.abs(sums) ** (1 / p)


def test_gram_is_numpys_and_pytorch_oods() -> None:
    model, powers = network(), (1, 2, 3)
    held = np.arange(len(TRAIN)) % 10 == 9
    predicted = model(TRAIN).argmax(1).numpy()
    assert len(np.unique(predicted[~held])) > 1
    deltas, low, high = [], [], []
    for f in all_maps(model, TRAIN):
        g = np.stack([grams(f, p) for p in powers], 1)  # (N, P, C)
        groups = [g[~held & (predicted == k)] for k in range(3)]
        groups = [own if len(own) else g[~held] for own in groups]
        low.append(np.stack([own.min(0) for own in groups]))
        high.append(np.stack([own.max(0) for own in groups]))

    def outside(x: Tensor) -> np.ndarray:
        k, found = model(x).argmax(1).numpy(), []
        for f, a, b in zip(all_maps(model, x), low, high, strict=True):
            g = np.stack([grams(f, p) for p in powers], 1)
            below = np.where(g < a[k], (a[k] - g) / np.abs(a[k] + 1e-6), 0.0)
            above = np.where(g > b[k], (g - b[k]) / np.abs(b[k] + 1e-6), 0.0)
            found.append((below + above).sum((1, 2)) / model(x).softmax(1).amax(1).numpy())
        return np.stack(found, 1)

    deltas = outside(TRAIN[torch.from_numpy(held)]).mean(0)
    assert (deltas > 0).all()
    far = 2 * images(2, 9) - 0.5
    expected = (outside(far) / deltas).sum(1)
    found = build_detector("gram", model, powers=3).fit(TRAIN)(far)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    theirs = ood.Gram(None, [None] * len(low), 3, list(powers))
    theirs.feature_min = [[torch.from_numpy(a[:, p]) for p in range(3)] for a in low]
    theirs.feature_max = [[torch.from_numpy(b[:, p]) for p in range(3)] for b in high]
    theirs.layer_norm = torch.from_numpy(deltas)
    maps = [torch.from_numpy(f) for f in all_maps(model, far)]
    logits = model(far)
    scaled = theirs.predict_structured(logits, maps).double() / logits.softmax(1).amax(1)
    torch.testing.assert_close(found, scaled, rtol=1e-5, atol=1e-6)


def test_gram_is_zero_inside_the_ranges_and_reads_signs() -> None:
    few = TRAIN[:9]  # none is held out
    detector = build_detector("gram", network()).fit(few)
    assert torch.equal(detector(few), torch.zeros(9).double())
    assert float(detector(1 - 4 * few).min()) > 0
    predicted = network()(TRAIN).argmax(1)
    of_one_class = build_detector("gram", network()).fit(TRAIN[predicted == 0][:5])
    assert of_one_class(TRAIN[predicted != 0]).isfinite().all()  # the range of all
    maps = torch.tensor([[[[-1.0, 2.0]], [[-3.0, 1.0]]]]).double()  # (1, 2, 1, 2)
    expected = [[10.0, 15.0], [math.sqrt(30), math.sqrt(95)], [91 ** (1 / 3), 763 ** (1 / 3)]]
    expected[1] = [math.sqrt(1 + 16 + 9 + 4), math.sqrt(9 + 4 + 81 + 1)]
    expected[2] = [(1 + 64 + 27 + 8) ** (1 / 3), (27 + 8 + 729 + 1) ** (1 / 3)]
    torch.testing.assert_close(row_sums(maps, 3)[0], torch.tensor(expected).double())
    torch.testing.assert_close(  # −1·2 + 1·1 < 0 beside 1: −(1/3)
        row_sums(torch.tensor([[[[1.0]], [[-2.0]]]]).double(), 3)[0, :, 0],
        torch.tensor([-1.0, math.sqrt(5), -(7 ** (1 / 3))]).double(),
    )


def test_edges_are_those_of_the_authors() -> None:
    """Of M = 52 thresholds, which make 50 intervals."""
    left = np.emath.logn(1e3, np.linspace(1, np.sqrt(1e3), 26))
    both = np.concatenate([left, 1 - left[-2::-1]])
    np.testing.assert_allclose(edges(50).numpy(), both[1:-1], atol=1e-15)
    assert edges(1).tolist() == edges(2).tolist() == [0.5]
    assert len(edges(49)) == 49


def states(model: nn.Sequential, x: Tensor, at: list[int], pool: bool) -> list[Tensor]:
    """z·∂KL(u ‖ softmax f)/∂z behind some modules, (B, D), by autograd an image at a time."""
    found = []
    for i in at:
        rows = []
        for image in x:
            z = model[: i + 1](image[None]).requires_grad_()
            p = model[i + 1 :](z).softmax(1)
            divergence = (torch.log(1 / 3 / p) / 3).sum()
            (slope,) = torch.autograd.grad(divergence, z)
            z = z.detach()
            rows.append((z.mean((2, 3)) * slope.sum((2, 3)) if z.ndim == 4 else z * slope)[0])
        found.append(torch.stack(rows))
    return found


@pytest.mark.parametrize(
    ("pooled", "layers", "at"),
    [
        *((False, 1, [7]), (False, 2, [7, 4]), (False, 3, [7, 4, 1]), (False, None, [7, 4, 1])),
        *((True, 1, [6]), (True, 2, [6, 1]), (True, None, [6, 1])),
    ],
)
def test_nac_is_numpys(pooled: bool, layers: int | None, at: list[int]) -> None:
    """Behind these modules; where 4×4 maps are pooled to the features, they count once."""
    model, alpha, full = network(pooled), 30.0, 3
    cuts = np.concatenate([[-1.0], edges(8).numpy(), [2.0]])
    expected = np.zeros(len(TEST))
    for seen, asked in zip(
        states(model, TRAIN, at, pooled), states(model, TEST, at, pooled), strict=True
    ):
        share = []
        for neuron in range(seen.shape[1]):
            train, test = (1 / (1 + np.exp(-alpha * s[:, neuron].numpy())) for s in (seen, asked))
            count, _ = np.histogram(train, cuts)
            share.append(np.minimum(count[np.searchsorted(cuts, test, side="right") - 1] / full, 1))
        expected -= np.mean(share, 0)
    detector = build_detector("nac", model, alpha=alpha, bins=8, full=full, layers=layers)
    found = detector.fit(TRAIN)(TEST)
    assert detector.options["layers"] == len(at)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    assert len(np.unique(expected)) > 3


def test_nac_counts_images_that_are_evenly_spaced() -> None:
    model, order = network(), torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))
    all_of_them = build_detector("nac", model, bins=8, full=3)
    expected = all_of_them.fit(TRAIN)(TEST)
    torch.testing.assert_close(all_of_them.fit(TRAIN[order])(TEST), expected)
    few = build_detector("nac", model, bins=8, full=3, images=4).fit(TRAIN)
    torch.testing.assert_close(few(TEST), all_of_them.fit(TRAIN[[0, 14, 28, 42]])(TEST))
    assert not torch.equal(few(TEST), expected)


def test_networks_without_maps_and_more_layers_than_there_are_are_refused() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3))
    for name in ("rankfeat", "gram"):
        with pytest.raises(UnsupportedModelError, match=r"whose modules give feature maps .* none"):
            build_detector(name, flat).fit(TRAIN)(TEST)
    assert build_detector("nac", flat).fit(TRAIN)(TEST).isfinite().all()
    with pytest.raises(UsageError, match="detector nac: expected layers <= 1, but got 2"):
        build_detector("nac", flat, layers=2).fit(TRAIN)
    with pytest.raises(UsageError, match="detector nac: expected layers <= 3, but got 4"):
        build_detector("nac", network(), layers=4).fit(TRAIN)


@pytest.mark.parametrize("name", ["rankfeat", "gram", "nac"])
def test_an_absent_class_is_no_class(name: str) -> None:
    """Scores do not depend on the output that is left out."""
    model, other = network(), network()
    other[-1].weight[-1] += 5.0
    assert DETECTORS[name].needs == "network"
    two = [build_detector(name, m, num_classes=2).fit(TRAIN)(TEST) for m in (model, other)]
    assert torch.equal(*two)
    assert not torch.equal(two[0], build_detector(name, model).fit(TRAIN)(TEST))
