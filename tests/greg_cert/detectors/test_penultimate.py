from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from greg_cert.data import ImageSet
from greg_cert.detectors import Penultimate, build_detector
from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.models import build_model

X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def seeded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def own() -> nn.Module:
    return seeded(
        build_model("mlp", num_classes=3, in_channels=1, image_size=4, mean=(0.4,), std=(0.3,))
    )


class Foreign(nn.Module):
    """A head that is not the last module registered, and linear layers before it."""

    def __init__(self, bias: bool = True, in_place: bool = False) -> None:
        super().__init__()
        self.classify = nn.Linear(6, 3, bias=bias)
        self.first, self.second = nn.Linear(16, 6), nn.Linear(6, 6)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.second(torch.relu(self.first(x.flatten(1)))))
        logits: Tensor = self.classify(z)
        if self.in_place:
            z.zero_()
        return logits


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_the_last_linear_layer_of_a_foreign_module_is_found(bias: bool, in_place: bool) -> None:
    model = seeded(Foreign(bias, in_place))
    network = Penultimate(model)
    with pytest.raises(UsageError, match="expected a batch before"):
        _ = network.head
    outputs = network.outputs(X)
    assert outputs.features.dtype == torch.float64
    torch.testing.assert_close(network.head.logits(outputs.features), outputs.logits)
    twin = copy.deepcopy(model).double()
    assert torch.equal(network.head.weight, twin.classify.weight)
    torch.testing.assert_close(outputs.logits, twin(X.double()))


def test_our_own_classifiers_give_features_and_head() -> None:
    model = own().double().eval()
    network = Penultimate(model)
    outputs = network.outputs(X)
    assert torch.equal(outputs.features, model.features(X.double()))
    assert torch.equal(network.head.weight, model.head.weight)
    assert torch.equal(outputs.logits, model(X.double()))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1)),
        nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Linear(3, 3), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.LeakyReLU(0.5, inplace=True)),
    ],
)
def test_other_networks_are_refused_for_features_and_served_for_logits(model: nn.Module) -> None:
    model = seeded(model)
    with pytest.raises(UnsupportedModelError, match=r"output of an nn.Linear .* got Sequential"):
        build_detector("scale", model)(X)
    found = build_detector("ebo", model)(X)
    twin = copy.deepcopy(model).double()
    torch.testing.assert_close(found, -torch.logsumexp(twin(X.double()), 1).detach())


def test_logits_of_another_shape_are_refused() -> None:
    for model in (nn.Conv2d(1, 3, 4), nn.Sequential(nn.Flatten(0), nn.Linear(80, 3))):
        with pytest.raises(UnsupportedModelError, match=r"expected logits \(B, K\)"):
            build_detector("msp", model)(X)


@pytest.mark.parametrize("make", [own, lambda: seeded(Foreign())])
def test_an_absent_class_is_left_out(make: object) -> None:
    model = make()  # type: ignore[operator]
    network = Penultimate(model, num_classes=2)
    outputs = network.outputs(X)
    assert outputs.logits.shape == (5, 2)
    assert network.head.weight.shape[0] == len(network.head.bias) == 2
    full = copy.deepcopy(model).double()(X.double())
    torch.testing.assert_close(outputs.logits, full[:, :2])
    found = build_detector("ebo", model, num_classes=2)(X)
    torch.testing.assert_close(found, -torch.logsumexp(full[:, :2], 1).detach())
    odin = build_detector("odin", model, num_classes=2, eps=0.0, temperature=1.0)(X)
    torch.testing.assert_close(odin, -torch.softmax(full[:, :2], 1).amax(1).detach())


def test_odin_steps_in_raw_pixels_towards_the_predicted_class() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    x = torch.rand(8, 1, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    twin = copy.deepcopy(model).double()
    logits = twin(x) / 1000
    loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
    (slope,) = torch.autograd.grad(loss, x)
    expected = -torch.softmax(twin(x - 0.01 * slope.sign()) / 1000, 1).amax(1)
    found = build_detector("odin:eps=0.01", model)(x.detach())
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)


def test_numbers_of_classes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="expected num_classes >= 1, but got 0"):
        Penultimate(own(), 0)
    with pytest.raises(UsageError, match=r"expected num_classes <= 3, .* but got 4"):
        Penultimate(own(), 4).outputs(X)
    with pytest.raises(UsageError, match="num_classes of the network given, 2, but got 3"):
        build_detector("msp", Penultimate(own(), 2), num_classes=3)


def test_a_set_is_its_batches() -> None:
    pixels = torch.randint(256, (1100, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    images = ImageSet("set", pixels.to(torch.uint8))
    network = Penultimate(own())
    whole = network.outputs_of(images)
    expected = network.outputs(images.pixels())
    torch.testing.assert_close(whole.features, expected.features)
    torch.testing.assert_close(network.outputs_of(images.images).logits, expected.logits)
    assert network.outputs_of(images, features=False).features is None


@pytest.mark.parametrize(
    "images", [torch.full((2, 1, 4, 4), 1.5), torch.full((2, 1, 4, 4), torch.nan), X[0], X[:0]]
)
def test_tensors_that_are_no_images_are_refused(images: Tensor) -> None:
    with pytest.raises(UsageError, match="expected"):
        Penultimate(own()).outputs_of(images)


def test_the_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    network = Penultimate(model)
    outputs = network.outputs(X)
    with torch.enable_grad():
        network.logits(X.double().requires_grad_()).sum().backward()
    assert model.training
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32
               for p in model.parameters())  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())
    torch.testing.assert_close(
        outputs.features, F.batch_norm(X.flatten(1).double(), *network_stats())
    )


def network_stats() -> tuple[Tensor, Tensor]:
    """Running mean and variance of a fresh BatchNorm."""
    return torch.zeros(16).double(), torch.ones(16).double()
