"""Networks that others trained, at 28×28 and 32×32: read as they are, certificates attacked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import climb
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.community_networks import FOLDER, NETWORKS, load
from greg_cert.scores import energy
from greg_cert.verify import certify
from greg_cert.verify.graph.ops import forward_all
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius.coupled.row_search import CoupledEffort

MNIST = FOLDER.parent / "data" / "mnist.npz"
QUICK: dict[str, Any] = {
    "rounds": 2, "mirror_steps": 1, "cuts": 0, "cut_rounds": 1, "splits": 2, "split_rounds": 1,
    "coupled": CoupledEffort(1, 3), "lipschitz": False, "attack_steps": 10, "attack_restarts": 1,
    "attack_polish": 5,
}  # fmt: skip
# Small enough that two rungs find a radius.
LARGEST = {
    ("mnist", 2.0): 0.1,
    ("mnist", math.inf): 0.002,
    ("cifar10", 2.0): 0.02,
    ("cifar10", math.inf): 0.0004,
}

pytestmark = pytest.mark.skipif(
    not all((FOLDER / f"{name}.safetensors").exists() for name in NETWORKS) or not MNIST.exists(),
    reason="needs ../shared/networks and ../shared/data/mnist.npz beside the checkout",
)


def images(name: str, count: int) -> Tensor:
    """Test digits, or smooth random colours."""
    if NETWORKS[name].data == "mnist":
        with np.load(MNIST) as file:
            return torch.from_numpy(file["test_images"][:count]).double().unsqueeze(1) / 255
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(count, 3, 6, 6, generator=generator, dtype=torch.float64)
    return F.interpolate(small, size=32, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_is_the_weights_own_forward(name: str) -> None:
    made, w = NETWORKS[name], load_file(FOLDER / f"{name}.safetensors")
    w = {k: v.double() for k, v in w.items()}
    x = images(name, 3)
    shift, scale = (torch.tensor(v).double().reshape(-1, 1, 1) for v in (made.mean, made.std))
    h = (x - shift) / scale
    for layer in ("0", "2"):
        h = F.conv2d(h, w[f"{layer}.weight"], w[f"{layer}.bias"], 2, made.padding).relu()
    h = F.linear(h.flatten(1), w["5.weight"], w["5.bias"]).relu()
    logits = F.linear(h, w["7.weight"], w["7.bias"])
    graph = trace_model(load(name), made.shape)
    # Normalisation is kept in float32, as everywhere.
    torch.testing.assert_close(forward_all(graph, x)[-1], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "method", "norm"),
    [
        ("mnist_cnn_a_adv", "lipschitz", 2.0),
        ("mnist_cnn_a_adv", "sdp-crown", 2.0),
        ("mnist_conv_small_nat", "crown", math.inf),
        ("mnist_conv_small_nat", "branch", 2.0),
        ("cifar_cnn_a_mix", "crown-ibp", math.inf),
        ("cifar_cnn_a_mix", "sdp-crown", 2.0),
    ],
)
def test_certificates_hold_against_attacks(name: str, method: str, norm: float) -> None:
    model, x = load(name).double(), images(name, 1)
    labels = model(x).argmax(1)
    for classes in (None, labels) if method != "lipschitz" else (None,):
        gamma = float(energy(model(x).detach()).max()) + 1.0
        found = certify(
            model, x, gamma, method=method, norm=norm, labels=classes,
            max_radius=LARGEST[NETWORKS[name].data, norm], **QUICK,
        )  # fmt: skip
        radius = found.radius_certified
        assert (radius > 0).all()
        assert (radius <= found.radius_attack).all()

        def worst(y: Tensor, classes: Tensor | None = classes, gamma: float = gamma) -> Tensor:
            logits = model(y)
            out = energy(logits) - gamma
            if classes is None:
                return out
            own = logits.gather(1, labels.unsqueeze(1))
            others = logits.scatter(1, labels.unsqueeze(1), -math.inf)
            return torch.maximum(out, others.amax(1) - own.squeeze(1))

        y = climb(worst, x, radius, norm, steps=20)
        assert (worst(y) < 0).all()
