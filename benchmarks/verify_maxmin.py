"""Certificates of a MaxMin network on 28x28 images, each attacked inside its own radius.

`python benchmarks/verify_maxmin.py --samples 200`: a plain network of convolutions and MaxMin with
orthogonal weights is trained for a moment on scikit-learn's digits, enlarged; some test digits and
as many pictures of noise are certified by every method that image size allows. Prints one JSON
object: for each method certificates, violations (none may be), median share of the attack radius
and CPU seconds a sample.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from greg_cert.metrics import threshold_at_tpr
from greg_cert.models import MaxMin
from greg_cert.scores import energy
from greg_cert.verify import certify
from greg_cert.verify.attack import AttackPlan, attack_within, smallest_attack
from greg_cert.verify.scorer import Margin, score_function

METHODS = ("lipschitz", "crown-ibp", "sdp-crown")
SIZE = 28
EPOCHS, BATCH = 8, 64
STEPS, RESTARTS = 60, 3  # of the attack in each ball


def network() -> nn.Module:
    """Three layers of pairs: 3136 neurons, half of them the identity."""
    layers = (
        nn.Conv2d(1, 8, 4, stride=2, padding=1), MaxMin(),
        nn.Conv2d(8, 16, 4, stride=2, padding=1), MaxMin(), nn.Flatten(),
        nn.Linear(16 * 7 * 7, 32), MaxMin(), nn.Linear(32, 10),
    )  # fmt: skip
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(layer.weight)
    return nn.Sequential(*layers)


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in random order, (1797, 1, 28, 28) in [0, 1], and their labels."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.images / 16).float().unsqueeze(1)[order]
    x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return x, torch.tensor(found.target)[order]


def trained(x: Tensor, y: Tensor) -> nn.Module:
    """The network after a few epochs of cross entropy."""
    model = network()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
    return model.eval()


def attacked(
    model: nn.Module, x: Tensor, threshold: float, side: str, methods: tuple[str, ...]
) -> dict[str, Any]:
    """By method what is proven, and how often an attack inside it succeeds."""
    score, margin = score_function(model), Margin(threshold, side)
    order = torch.arange(len(x))
    plan = AttackPlan(margin, 2.0, 1000, STEPS, restarts=RESTARTS, polish=40)
    nearest = smallest_attack(score, x, 2.0, plan, order).radius
    found: dict[str, Any] = {}
    for k, method in enumerate(methods):
        begun = time.process_time()
        result = certify(
            model, x, threshold, side=side, method=method, max_radius=2.0, attack=False,
            lipschitz=method == "lipschitz",
        )  # fmt: skip
        seconds = (time.process_time() - begun) / len(x)
        radius = result.radius_lipschitz if method == "lipschitz" else result.radius_certified
        rows = (radius > 0).nonzero().squeeze(1)
        plan = AttackPlan(margin, 2.0, 1001 + k, STEPS, restarts=RESTARTS)
        hit, _ = attack_within(score, x[rows], radius[rows], plan, order[rows])
        hit |= nearest[rows] <= radius[rows]
        share = (radius / nearest)[(nearest > 0) & nearest.isfinite()]
        found[method] = {
            "certificates": len(rows),
            "violations": int(hit.sum()),
            "median_share": round(float(share.median()), 3),
            "largest_share": round(float(share.max()), 3),
            "cpu_seconds_a_sample": round(seconds, 3),
        }
    return found


def main() -> None:
    """Train, certify, attack, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200, help="of each side")
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = digits()
    model = trained(x[:1000], y[:1000])
    with torch.no_grad():
        accuracy = (model(x[1000:]).argmax(1) == y[1000:]).float().mean()
        threshold = threshold_at_tpr(energy(model(x[1000:1200])), 0.95)
    inside = x[1200 : 1200 + options.samples].double()
    noise = torch.rand(len(inside), 1, SIZE, SIZE).double() * torch.rand(len(inside), 1, 1, 1)
    methods = tuple(options.methods.split(","))
    found = {
        side: attacked(model, points, threshold, side, methods)
        for side, points in (("id", inside), ("ood", noise))
    }
    print(json.dumps({"accuracy": round(float(accuracy), 3), **found}, indent=1))


if __name__ == "__main__":
    main()
