from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commands import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.models import (
    MODEL_NAMES,
    Classifier,
    MaxMin,
    Normalize,
    build_model,
    check_model_name,
    is_model_name,
)
from greg_cert.models.liresnet import LinearResidual
from greg_cert.models.names import CHOOSE_ACTIVATION, default_activation
from greg_cert.verify import global_lipschitz_bound
from greg_cert.verify.graph.max_pool import MaxPool
from greg_cert.verify.graph.ops import Add, Conv, Linear, forward_all
from greg_cert.verify.graph.trace import trace_model

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
FEATURES = {
    "mlp": 128,
    "cnn_small": 64,
    "lip_cnn": 128,
    "liresnet": 128,
    "resnet18_32x32": 512,
    "wrn16_2": 128,
    "wrn40_2": 128,
    "densenet100": 342,
    "densenet121": 1024,
}
LARGER = {"densenet121": 24}  # halves the image five times
# Every family of torchvision, small, at a size that it takes.
TORCHVISION = {
    "torchvision/resnet18": (32, 512),
    "torchvision/mobilenet_v2": (32, 1280),
    "torchvision/mobilenet_v3_small": (32, 1024),
    "torchvision/mnasnet0_5": (32, 1280),
    "torchvision/shufflenet_v2_x0_5": (32, 1024),
    "torchvision/efficientnet_b0": (32, 1280),
    "torchvision/regnet_x_400mf": (32, 400),
    "torchvision/googlenet": (32, 1024),
    "torchvision/inception_v3": (75, 2048),
    "torchvision/densenet121": (32, 1024),
    "torchvision/alexnet": (64, 4096),
    "torchvision/convnext_tiny": (32, 768),
    "torchvision/swin_t": (32, 768),
    "torchvision/vit_b_16": (32, 768),
}


def side(name: str) -> int:
    """Height and width of the images that tests give to a model."""
    return TORCHVISION[name][0] if name in TORCHVISION else 16 + LARGER.get(name, 0)


def build(name: str, *, seed: int = 0, **changes: Any) -> Classifier:
    """A model in eval mode, with BatchNorm statistics and affine terms away from their defaults."""
    fields: dict[str, Any] = {
        "num_classes": 10,
        "in_channels": 3,
        "image_size": side(name),
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


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize(("channels", "size", "classes", "count"), [(1, 8, 3, 1), (2, 9, 1, 3)])
def test_raw_images_become_features_and_logits_each_by_itself(
    name: str, channels: int, size: int, classes: int, count: int
) -> None:
    size += LARGER.get(name, 0)
    mean, std = MEAN[:channels], STD[:channels]
    model = build(
        name, num_classes=classes, in_channels=channels, image_size=size, mean=mean, std=std
    )
    x = images(count, channels, size)
    features, logits = model.features(x), model(x)
    assert features.shape == (count, FEATURES[name])
    assert logits.shape == (count, classes)
    assert torch.equal(model.head(features), logits)
    torch.testing.assert_close(logits[-1:], model(x[-1:]), rtol=1e-4, atol=1e-5)
    expected = model.head(model.body(by_hand(x, mean, std)))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    # On raw pixels the body answers otherwise, so the comparison above has teeth.
    assert (model.head(model.body(x)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cnn_small", (1, 2, 3, 4, 5, 6, 7, 28)),
        ("lip_cnn", (4, 5, 6, 7, 28)),
        ("liresnet", (4, 5, 6, 7, 28)),
        ("densenet100", (4, 5, 7, 28)),
    ],
)
def test_small_images_fit(name: str, sizes: Sequence[int]) -> None:
    for size in sizes:
        model = build(name, in_channels=1, image_size=size, mean=[0.1], std=[0.3])
        assert model(images(2, 1, size)).shape == (2, 10)


def test_normalise_is_a_depthwise_convolution() -> None:
    """Bound propagation is silently unsound where the first operation is none."""
    layer = build("cnn_small").normalize
    assert isinstance(layer, nn.Conv2d)
    assert (layer.kernel_size, layer.groups, layer.padding) == ((1, 1), 3, (0, 0))
    x = images(1, 3, 4)
    direct = F.conv2d(x, layer.weight, layer.bias, groups=3)
    assert torch.equal(layer(x), direct)


@pytest.mark.parametrize("name", ["cnn_small", "wrn16_2"])
def test_normalisation_is_never_trained_but_saved(name: str, tmp_path: Path) -> None:
    model, x = build(name), images(size=side(name))
    assert not [n for n, _ in model.named_parameters() if n.startswith("normalize")]
    before = [b.clone() for b in model.normalize.buffers()]
    assert len(before) == 2
    weights = [p.clone() for p in model.parameters()]
    model.train().requires_grad_(True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    model(images(4, size=side(name))).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.normalize.buffers(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    saved = build(name)
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
        ("densenet100", 769_162),  # Huang et al., table 2: 0.8M
        ("densenet121", 7_978_856 - 1025 * 1000 + 1025 * 10),  # torchvision's, with our head
        ("mlp", 3073 * 128 + 129 * 128 + 129 * 10),
        ("cnn_small", 28 * 16 + 145 * 32 + 2049 * 64 + 65 * 10),
        ("lip_cnn", 49 * 32 + 513 * 64 + 4097 * 128 + 129 * 10),
        ("liresnet", 49 * 16 + 2 * 145 * 16 + 65 * 32 + 2 * 289 * 32 + 2049 * 128 + 129 * 10),
    ],
)
def test_parameter_counts(name: str, published: int) -> None:
    assert sum(p.numel() for p in build(name, image_size=32).parameters()) == published


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


@pytest.mark.parametrize("name", ["liresnet", "torchvision/mnasnet0_5"])
def test_weights_follow_the_seed(name: str) -> None:
    first, again, other = (
        torch.cat([p.flatten() for p in build(name, seed=s).parameters()]) for s in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 0}, "expected num_classes to be an integer >= 1, but got 0"),
        ({"in_channels": -3}, "expected in_channels to be an integer >= 1, but got -3"),
        ({"mean": (0.5,)}, "mean and std of length in_channels = 3, but got 1 and 3"),
        ({"in_channels": 1}, "mean and std of length in_channels = 1, but got 3 and 3"),
        ({"std": (0.2, 0.0, 0.2)}, r"std > 0 in every channel, but got \(0.2, 0.0, 0.2\)"),
        ({"std": (0.2, float("nan"), 0.2)}, "finite mean and std, but got .*nan"),
        ({"mean": (float("inf"), 0.2, 0.2)}, r"finite mean and std, but got \(inf"),
        (
            {"activation": "gelu"},
            r"^model\.activation: expected relu, or with one of mlp, cnn_small, lip_cnn, liresnet "
            r"one of relu, maxmin, but got 'gelu' for mlp",
        ),
    ],
)
def test_values_out_of_range_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("mlp", **changes)


def test_normalise_wants_one_mean_and_one_std_a_channel() -> None:
    for mean, std in (([], []), ([0.5, 0.5], [0.5])):
        with pytest.raises(UsageError, match="one mean and one std a channel"):
            Normalize(mean, std)


@pytest.mark.parametrize("name", [*MODEL_NAMES, *TORCHVISION])
def test_gradients_reach_the_image_and_every_weight(name: str) -> None:
    model = build(name)
    x = images(2, size=side(name)).requires_grad_(True)
    for mode in (True,) if name in TORCHVISION else (True, False):
        model.train(mode).zero_grad()
        logits = model(x)
        assert isinstance(logits, Tensor)  # no auxiliary heads, in training either
        assert logits.shape == (2, 10)
        (slope,) = torch.autograd.grad(logits.logsumexp(1).sum(), x, retain_graph=True)
        assert slope.isfinite().all()
        assert (slope.flatten(1).norm(dim=1) > 0).all()
        F.cross_entropy(logits, torch.arange(2)).backward()
        without = [n for n, p in model.named_parameters() if p.grad is None]
        assert without == []
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    if name in TORCHVISION:
        features, logits = model.eval().features(x[:2]), model(x[:2])
        assert features.shape == (2, TORCHVISION[name][1])
        torch.testing.assert_close(logits, model.head(features))
        torch.testing.assert_close(logits[:1], model(x[:1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_a_new_first_convolution_keeps_its_settings(name: str) -> None:
    old = first_convolution(build(f"torchvision/{name}"))
    other = build(f"torchvision/{name}", in_channels=5, mean=[0.5] * 5, std=[0.2] * 5)
    new = first_convolution(other)
    assert (old.in_channels, new.in_channels) == (3, 5)
    for field in ("out_channels", "kernel_size", "stride", "padding", "dilation"):
        assert getattr(old, field) == getattr(new, field)
    assert (old.bias is None) == (new.bias is None)
    assert other(images(1, 5, 32)).shape == (1, 10)


def first_convolution(model: Classifier) -> nn.Conv2d:
    return next(m for m in model.body.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("name", ["mlp", "densenet100", "torchvision/mnasnet0_5"])
def test_a_fresh_model_is_in_training_mode(name: str) -> None:
    model = build_model(name, num_classes=2, in_channels=3, image_size=32, mean=MEAN, std=STD)
    assert all(module.training for module in model.modules())
    for module in model.modules():  # and has seen no image yet
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_batches_tracked == 0


def test_a_vision_transformer_is_built_for_its_images() -> None:
    model = build("torchvision/vit_b_16", image_size=48)
    assert model.state_dict()["body.encoder.pos_embedding"].shape == (1, 1 + 3 * 3, 768)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mlp", 8),
        ("cnn_small", 8),
        ("lip_cnn", 8),
        ("liresnet", 9),
        ("wrn16_2", 8),
        ("densenet100", 4),
        ("torchvision/resnet18", 32),  # with its padded pool
    ],
)
def test_the_verifier_sees_the_same_function(name: str, size: int) -> None:
    model = build(name, image_size=size)
    graph = trace_model(model, (3, size, size))
    x = images(2, size=size, seed=5).double()
    expected = model.double()(x)
    torch.testing.assert_close(forward_all(graph, x)[-1], expected, rtol=1e-7, atol=1e-8)
    pools = sum(isinstance(node.op, MaxPool) for node in graph.nodes)
    assert pools == (name == "torchvision/resnet18")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("torchvision/mobilenet_v3_small", r"'body\.features\.0\.2' \(Hardswish\)"),
        ("torchvision/shufflenet_v2_x0_5", r"'view' \(view\)"),  # channels change places
        ("torchvision/efficientnet_b0", r"'mul' \(mul\)"),  # squeeze and excitation
        ("torchvision/convnext_tiny", r"'permute' \(permute\)"),
    ],
)
def test_the_verifier_refuses_by_layer(name: str, layer: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"layer {layer} cannot be bounded"):
        trace_model(build(name), (3, side(name), side(name)))


@pytest.mark.parametrize("name", CHOOSE_ACTIVATION)
def test_small_models_may_sort_pairs_in_place_of_relu(name: str) -> None:
    model = build(name, image_size=8, activation="maxmin")
    assert sum(isinstance(m, MaxMin) for m in model.modules()) >= 2
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    plain = build(name, image_size=8, activation="relu")
    assert not any(isinstance(m, MaxMin) for m in plain.modules())
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    graph = trace_model(model.eval(), (3, 8, 8))
    affine = sum(isinstance(n.op, (Conv, Linear)) for n in graph.nodes)
    assert affine == sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    assert not any(isinstance(n.op, Add) for n in graph.nodes)


def test_without_a_choice_a_model_has_its_own_activation() -> None:
    for name in MODEL_NAMES:
        sorts = any(isinstance(m, MaxMin) for m in build(name).modules())
        assert default_activation(name) == ("maxmin" if sorts else "relu")
        assert sorts == (name in ("lip_cnn", "liresnet"))


def dense(operator: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix (outputs, inputs) of a linear map of (B, *shape)."""
    eye = torch.eye(int(torch.Size(shape).numel()), dtype=torch.float64)
    return (
        (operator(eye.unflatten(1, shape)) - operator(torch.zeros(1, *shape).double())).flatten(1).T
    )


def spectral(matrix: Tensor) -> float:
    """The largest singular value."""
    return float(torch.linalg.matrix_norm(matrix.detach(), ord=2))


@pytest.mark.parametrize(("name", "own", "blocks"), [("wrn16_2", 0.0, 6), ("wrn40_2", 0.3, 18)])
def test_dropout_is_as_chosen_and_weights_fit_whatever_it_is(
    name: str, own: float, blocks: int
) -> None:
    def shares(**choice: float) -> list[float]:
        return [m.p for m in build(name, **choice).modules() if isinstance(m, nn.Dropout)]

    assert shares() == ([own] * blocks if own else [])
    assert shares(dropout=0.0) == []
    assert shares(dropout=0.2) == [0.2] * blocks
    build(name, dropout=0.2).load_state_dict(build(name, dropout=0.0).state_dict())


@pytest.mark.parametrize(
    ("name", "dropout"), [("densenet100", 0.0), ("mlp", 0.1), ("wrn16_2", 1.0)]
)
def test_dropout_that_a_model_has_not_is_refused(name: str, dropout: float) -> None:
    expected = rf"^model\.dropout: expected none, or .*wrn40_2.*, but got {dropout} for {name}$"
    with pytest.raises(UsageError, match=expected):
        build(name, dropout=dropout)


@pytest.mark.parametrize("activation", ["relu", "maxmin"])
def test_a_linear_residual_block_counts_as_one_operator(activation: str) -> None:
    """The product of dense norms of stem, I + W, down-sampling, neck and rows of the head."""
    model = build(
        "liresnet", in_channels=1, image_size=8, mean=[0.5], std=[0.25], activation=activation
    ).double()
    generator = torch.Generator().manual_seed(4)
    blocks = [m for m in model.modules() if isinstance(m, LinearResidual)]
    assert len(blocks) == 4
    for block in blocks:  # against the identity, so that ‖I + W‖ is far below 1 + ‖W‖
        weight = block.conv.weight
        with torch.no_grad():
            weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
            weight[..., 1, 1] -= 0.8 * torch.eye(len(weight))
    expected, apart, shape = float(model.head.weight.detach().norm(dim=1).max()), 1.0, (1, 8, 8)
    chain: list[nn.Module] = [model.normalize, *model.body]  # type: ignore[misc]
    x = torch.zeros(1, *shape, dtype=torch.float64)
    for layer in chain:
        if isinstance(layer, (nn.Conv2d, nn.Linear, LinearResidual)):
            norm = spectral(dense(layer, tuple(x.shape[1:])))
            expected *= norm
            if isinstance(layer, LinearResidual):
                apart *= (1 + spectral(dense(layer.conv, tuple(x.shape[1:])))) / norm
        x = layer(x).detach()
    found = global_lipschitz_bound(model, shape)
    assert apart > 3
    assert expected <= found <= expected * (1 + 1e-6)


@pytest.mark.parametrize(("name", "size"), [("lip_cnn", 28), ("liresnet", 8)])
def test_a_fresh_network_for_certificates_has_a_small_constant(name: str, size: int) -> None:
    model = build(name, in_channels=1, image_size=size, mean=[0.13], std=[0.31])
    assert 0.1 < global_lipschitz_bound(model, (1, size, size)) < 10.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", r"expected one of mlp, .* or torchvision/<classifier>, but got 'resnet19'"),
        ("densenet10", r"did you mean 'densenet100'\?\), but got 'densenet10'"),
        ("resnet18", r"did you mean 'resnet18_32x32'\?"),
        ("liresnt", r"did you mean 'liresnet'\?"),
        ("WRN40_2", r"did you mean 'wrn40_2'\?"),
        ("torchvision/ResNet50", r"did you mean 'torchvision/resnet50'\?"),
        ("torchvision/", r"expected one of mlp"),
        ("torchvision/resnet50/x", r"expected one of mlp"),
        ("timm/resnet50", r"expected one of mlp"),
        ("torchvision/resnet5", r"did you mean 'torchvision/resnet50'\?\), but got 'torchvis"),
        ("torchvision/nothing_like_it", r"expected a classifier of torchvision, but got"),
        ("torchvision/squeezenet1_0", r"last layer is linear, but got .* ends in AdaptiveAvg"),
        ("torchvision/ssd300_vgg16", r"classifier of images, but got .* detection models"),
        ("torchvision/fcn_resnet50", r"segmentation models"),
        ("torchvision/quantized_resnet18", r"quantization models"),
        ("torchvision/raft_small", r"optical_flow models"),
        ("torchvision/mc3_18", r"video models"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^model\.name: .*{message}"):
        build_model(name, num_classes=2, in_channels=3, image_size=64, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("densenet100", 3, ">= 4"),
        ("lip_cnn", 3, ">= 4"),
        ("liresnet", 2, ">= 4"),
        ("densenet121", 16, "'torchvision/densenet121' can take"),
        ("torchvision/alexnet", 32, "can take"),
        ("torchvision/inception_v3", 32, "can take"),
        ("torchvision/vit_b_16", 30, "can take, but got 30: .*patch size"),
        ("torchvision/maxvit_t", 32, "can take"),
    ],
)
def test_images_too_small_for_a_network_are_refused(name: str, size: int, why: str) -> None:
    with pytest.raises(UsageError, match=rf"^image_size: expected .*{why}"):
        build_model(name, num_classes=2, in_channels=3, image_size=size, mean=MEAN, std=STD)


def test_names_are_judged() -> None:
    assert all(is_model_name(name) for name in (*MODEL_NAMES, *TORCHVISION))
    assert check_model_name("torchvision/anything_at_all") == "torchvision/anything_at_all"
    for name in ("", "torchvision", "torchvision/", "torchvision/a b", "torchvision/../x", "MLP"):
        assert not is_model_name(name)
        with pytest.raises(UsageError, match=rf"^model\.name: .*{name}"):
            check_model_name(name)


def test_names_need_no_torch_and_the_registry_no_torchvision() -> None:
    code = (
        "import sys; from greg_cert.models.names import check_model_name, is_model_name\n"
        "assert is_model_name('torchvision/resnet50')\n"
        "heavy = {'torch', 'torchvision', 'numpy'} & set(sys.modules); assert not heavy, heavy\n"
        "from greg_cert.models import build_model\n"
        "build_model('mlp', num_classes=2, in_channels=1, image_size=8, mean=[0.5], std=[0.5])\n"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_sizes_are_counted_without_the_compiler() -> None:
    """A run's network is sized on the meta device before it is made; the import takes seconds."""
    code = (
        "import sys, torch\nfrom greg_cert.models import build_model\n"
        "with torch.device('meta'):\n"
        "    for name in ('mlp', 'lip_cnn', 'densenet100'):\n"
        "        build_model(\n"
        "            name, num_classes=9, in_channels=1, image_size=32, mean=[0.5], std=[0.3]\n"
        "        )\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
