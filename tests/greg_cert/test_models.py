from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from greg_cert.errors import UsageError
from greg_cert.models import MODEL_NAMES, Classifier, Normalize, build_model

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
FEATURES = {"mlp": 128, "cnn_small": 64, "resnet18_32x32": 512, "wrn16_2": 128, "wrn40_2": 128}


def build(name: str, *, seed: int = 0, **changes: Any) -> Classifier:
    """A model in eval mode, with BatchNorm statistics and affine terms away from their defaults."""
    fields: dict[str, Any] = {
        "num_classes": 10,
        "in_channels": 3,
        "image_size": 16,
        "mean": MEAN,
        "std": STD,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(name, **{**fields, **changes})
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def images(count: int = 2, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def by_hand(x: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    channels = [(x[:, c].double() - m) / s for c, (m, s) in enumerate(zip(mean, std, strict=True))]
    return torch.stack(channels, dim=1).to(x.dtype)


def test_the_registry_is_the_one_tested_here() -> None:
    assert set(MODEL_NAMES) == set(FEATURES)


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize(
    ("channels", "size", "classes", "count"), [(3, 16, 10, 2), (1, 8, 3, 1), (2, 9, 1, 3)]
)
def test_shapes(name: str, channels: int, size: int, classes: int, count: int) -> None:
    model = build(
        name,
        num_classes=classes,
        in_channels=channels,
        image_size=size,
        mean=MEAN[:channels],
        std=STD[:channels],
    )
    x = images(count, channels, size)
    features = model.features(x)
    assert features.shape == (count, FEATURES[name])
    assert model(x).shape == (count, classes)
    assert torch.equal(model.head(features), model(x))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 28])
def test_the_small_cnn_fits_any_size(size: int) -> None:
    model = build("cnn_small", in_channels=1, image_size=size, mean=[0.1], std=[0.3])
    assert model(images(2, 1, size)).shape == (2, 10)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_samples_do_not_see_each_other_in_eval_mode(name: str) -> None:
    model, x = build(name), images(3)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_normalisation_is_inside(name: str) -> None:
    model, x = build(name), images()
    expected = model.head(model.body(by_hand(x)))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    # On raw pixels the body answers otherwise, so the comparison above has teeth.
    assert (model.head(model.body(x)) - expected).abs().max() > 1e-3


def test_normalise_is_mean_and_std_channel_by_channel() -> None:
    x = images(4, 3, 5)
    torch.testing.assert_close(Normalize(MEAN, STD)(x), by_hand(x), rtol=1e-5, atol=1e-6)
    black = Normalize([0.25, 0.5], [0.5, 0.125])(torch.zeros(1, 2, 1, 1)).flatten()
    assert black.tolist() == [-0.5, -4.0]


def test_normalise_is_a_depthwise_convolution() -> None:
    """Bound propagation is silently unsound where the first operation is none (DESIGN §6.1)."""
    layer = build("cnn_small").normalize
    assert isinstance(layer, nn.Conv2d)
    assert (layer.kernel_size, layer.groups, layer.padding) == ((1, 1), 3, (0, 0))
    x = images(1, 3, 4)
    direct = F.conv2d(x, layer.weight, layer.bias, groups=3)
    assert torch.equal(layer(x), direct)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_normalisation_is_never_trained(name: str) -> None:
    model = build(name)
    assert not [n for n, _ in model.named_parameters() if n.startswith("normalize")]
    assert not list(model.normalize.parameters())
    before = [b.clone() for b in model.normalize.buffers()]
    assert len(before) == 2
    weights = [p.clone() for p in model.parameters()]
    model.train().requires_grad_(True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    model(images(4)).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.normalize.buffers(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_state_round_trip_restores_normalisation_too(name: str, tmp_path: Path) -> None:
    saved, x = build(name), images()
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    other = build(name, seed=1, mean=(0.0, 0.1, 0.9), std=(1.0, 2.0, 0.1))
    assert not torch.allclose(other(x), saved(x))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(x), saved(x))
    assert torch.equal(other.normalize(x), saved.normalize(x))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18_32x32", 11_173_962),  # OpenOOD and kuangliu/pytorch-cifar
        ("wrn40_2", 2_243_546),  # Zagoruyko and Komodakis, table 4: 2.2M
        ("wrn16_2", 691_674),  # 0.7M
        # Weights and biases of 3072-128-128-10, and of two convolutions, 2048-64 and 64-10.
        ("mlp", 3073 * 128 + 129 * 128 + 129 * 10),
        ("cnn_small", 28 * 16 + 145 * 32 + 2049 * 64 + 65 * 10),
    ],
)
def test_parameter_counts(name: str, published: int) -> None:
    assert sum(p.numel() for p in build(name, image_size=32).parameters()) == published


def test_resnet18_is_torchvisions_with_a_small_stem() -> None:
    model, x = build("resnet18_32x32"), images()
    reference = resnet18(num_classes=10)
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    # Both list stem, then blocks with the projection last, then head.
    own = [v for k, v in model.state_dict().items() if not k.startswith("normalize")]
    names = list(reference.state_dict())
    reference.load_state_dict(dict(zip(names, own, strict=True)))
    torch.testing.assert_close(model(x), reference.eval()(by_hand(x)), rtol=1e-3, atol=1e-4)


def wide_resnet(state: dict[str, Tensor], x: Tensor, depth: int) -> Tensor:
    """Penultimate features as in the authors' code, from weights taken in order of use."""

    def bn(v: Tensor, prefix: str) -> Tensor:
        p = {k: state[f"{prefix}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
        return F.batch_norm(v, p["running_mean"], p["running_var"], p["weight"], p["bias"])

    x = F.conv2d(x, state["body.0.weight"], padding=1)
    index = 1
    for stage in range(3):
        for block in range((depth - 4) // 6):
            name, stride = f"body.{index}", 2 if stage and not block else 1
            active = F.relu(bn(x, f"{name}.bn1"))
            out = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(F.relu(bn(out, f"{name}.bn2")), state[f"{name}.conv2.weight"], padding=1)
            projection = state.get(f"{name}.projection.weight")
            assert (projection is not None) == (block == 0)
            if projection is not None:
                x = F.conv2d(active, projection, stride=stride)
            x, index = x + out, index + 1
    return F.relu(bn(x, f"body.{index}")).mean(dim=(2, 3))


@pytest.mark.parametrize(("name", "depth"), [("wrn16_2", 16), ("wrn40_2", 40)])
def test_wide_resnet_is_the_preactivation_design(name: str, depth: int) -> None:
    model, x = build(name).double(), images(size=8).double()
    expected = wide_resnet(model.state_dict(), model.normalize(x), depth)
    torch.testing.assert_close(model.features(x), expected, rtol=1e-10, atol=1e-10)


def test_dropout_acts_in_training_only() -> None:
    model, x = build("wrn40_2"), images()
    assert torch.equal(model(x), model(x))
    drops = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert drops == [0.3] * 18
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    assert not torch.equal(model(x), model(x))
    assert not [m for m in build("wrn16_2").modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_weights_follow_the_seed(name: str) -> None:
    first, again, other = (build(name, seed=s).head.weight for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "expected num_classes to be an integer >= 1, but got 0"),
        ({"in_channels": -3}, "expected in_channels to be an integer >= 1, but got -3"),
        ({"image_size": 0}, "expected image_size to be an integer >= 1, but got 0"),
        ({"mean": (0.5,)}, "mean and std of length in_channels = 3, but got 1 and 3"),
        ({"std": (0.5, 0.5)}, "mean and std of length in_channels = 3, but got 3 and 2"),
        ({"in_channels": 1}, "mean and std of length in_channels = 1, but got 3 and 3"),
        ({"std": (0.2, 0.0, 0.2)}, r"std > 0 in every channel, but got \(0.2, 0.0, 0.2\)"),
        ({"std": (0.2, -1.0, 0.2)}, r"std > 0 in every channel, but got \(0.2, -1.0, 0.2\)"),
        ({"std": (0.2, float("nan"), 0.2)}, "finite mean and std, but got .*nan"),
        ({"mean": (float("inf"), 0.2, 0.2)}, r"finite mean and std, but got \(inf"),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("mlp", **changes)


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match=r"model name in mlp, .*, but got 'resnet19'"):
        build("resnet19")


@pytest.mark.parametrize("call", [lambda: Normalize([], []), lambda: Normalize([0.5, 0.5], [0.5])])
def test_normalise_wants_one_mean_and_one_std_a_channel(call: Callable[[], Normalize]) -> None:
    with pytest.raises(UsageError, match="one mean and one std a channel"):
        call()
