"""1-Lipschitz layers of two libraries against a penalty on the Lipschitz constant, on one task.

Run: python benchmarks/lipschitz_layers.py --data DATA --out OUT [--set mnist] [--kinds KIND …]
     [--lambdas 0.01 0.03 0.1] [--images 6000] [--epochs 8] [--seed 0]
DATA is as for `train_networks.py`. KIND `plain` is the registry's `lip_cnn` with λ_L·L̄ in its loss;
the others have the same architecture, data, batches, epochs, optimiser and loss, but layers of norm
≤ 1 by construction and a learned scale s of the logits, so that L̄ = s/min std. They need packages
that the project does not depend on, best in an environment of their own:
    pip install deel-torchlip orthogonium
`deel` takes SpectralConv2d, SpectralLinear and rows of norm 1 in the head; `orthogonium` the
adaptive orthogonal convolution, OrthoLinear and UnitNormLinear; `aol` the almost orthogonal
convolution of the same library. Weights are copied into the plain network before anything is
proven: L̄ and (γ − S)/L̄ are `greg_cert.verify`'s.

All figures are of the calibration split (15 % of the training images, not trained on) and of 2,000
held-out auxiliary outliers. A row for each run goes to OUT/lipschitz_layers.jsonl, a run that is
there already is left out, and the table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_networks import (
    BATCH,
    LAMBDA_SCORE,
    M_IN,
    M_OUT,
    RAMP,
    Recipe,
    data_of,
)

from greg_cert.data import DataSplits
from greg_cert.files import atomic_path
from greg_cert.metrics import auroc, threshold_at_tpr
from greg_cert.models import build_model
from greg_cert.models.base import Classifier
from greg_cert.runs.records import environment
from greg_cert.scores import energy
from greg_cert.train import energy_margin_loss, lipschitz_penalty
from greg_cert.train.feed.batches import DeviceImages, Draw, batch_indices, draw_shifts
from greg_cert.verify import attack_radius, global_lipschitz_bound, global_lipschitz_radius

KEPT_OUTLIERS = 2000
ATTACKED = 48
SCALE_STEPS = 10.0  # how much faster than the weights the logarithm of the scale may move


class Layers(NamedTuple):
    """How a library makes layers of norm ≤ 1 in place of given ones.

    Attributes:
        conv: of a convolution.
        linear: of a hidden linear layer.
        head: of the last one: rows of norm 1, since the score's slope is the longest row.
    """

    conv: Callable[[nn.Conv2d], nn.Module]
    linear: Callable[[nn.Linear], nn.Module]
    head: Callable[[nn.Linear], nn.Module]


def _deel() -> Layers:
    from deel.torchlip import FrobeniusLinear, SpectralConv2d, SpectralLinear

    return Layers(
        lambda c: SpectralConv2d(
            c.in_channels, c.out_channels, c.kernel_size, stride=c.stride, padding=c.padding
        ),
        lambda m: SpectralLinear(m.in_features, m.out_features),
        lambda m: FrobeniusLinear(m.in_features, m.out_features, disjoint_neurons=True),
    )


def _orthogonium(almost: bool) -> Layers:
    from orthogonium.layers import AdaptiveOrthoConv2d, OrthoLinear, UnitNormLinear
    from orthogonium.layers.conv.AOL.aol import AOLConv2D

    def conv(c: nn.Conv2d) -> nn.Module:
        kind = AOLConv2D if almost else AdaptiveOrthoConv2d
        made: nn.Module = kind(
            c.in_channels, c.out_channels, c.kernel_size[0], stride=c.stride[0],
            padding=c.padding[0], padding_mode="zeros",
        )  # fmt: skip
        return made

    return Layers(
        conv,
        lambda m: OrthoLinear(m.in_features, m.out_features),
        lambda m: UnitNormLinear(m.in_features, m.out_features),
    )


KINDS: dict[str, Callable[[], Layers] | None] = {
    "plain": None,
    "deel": _deel,
    "orthogonium": lambda: _orthogonium(almost=False),
    "aol": lambda: _orthogonium(almost=True),
}


class OneLipschitz(nn.Module):
    """The network with layers of norm ≤ 1, and its logits scaled by s."""

    def __init__(self, plain: Classifier, layers: Layers) -> None:
        super().__init__()
        self.normalize = plain.normalize
        self.body = nn.Sequential(*[self._made(m, layers) for m in plain.body.children()])
        self.head = layers.head(plain.head)
        self.log_scale = nn.Parameter(torch.zeros(()))

    @staticmethod
    def _made(m: nn.Module, layers: Layers) -> nn.Module:
        if isinstance(m, nn.Conv2d):
            return layers.conv(m)
        return layers.linear(m) if isinstance(m, nn.Linear) else m

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of raw images (B, C, H, W)."""
        logits: Tensor = self.head(self.body(self.normalize(x)))
        return self.log_scale.exp() * logits

    def constant(self) -> Tensor:
        """s/min std, which L̄ is at most, up to what orthogonalisation leaves."""
        return self.log_scale.exp() * self.normalize.weight.max()

    @torch.no_grad()
    def copy_to(self, plain: Classifier) -> None:
        """Put the weights that this network computes with into the plain one."""
        pairs = list(zip(self.body.children(), plain.body.children(), strict=True))
        for mine, theirs in [*pairs, (self.head, plain.head)]:
            if isinstance(theirs, (nn.Conv2d, nn.Linear)):
                scale = self.log_scale.exp() if theirs is plain.head else 1.0
                theirs.weight.copy_(scale * mine.weight)
                theirs.bias.copy_(scale * mine.bias)  # type: ignore[union-attr]


def train(
    kind: str, lambda_lipschitz: float, given: argparse.Namespace, splits: DataSplits
) -> tuple[Classifier, float]:
    """A trained plain network in evaluation mode, and its CPU seconds a step."""
    torch.manual_seed(given.seed)
    generator = torch.Generator().manual_seed(given.seed)
    channels, size = splits.train.pixels([0]).shape[1:3]
    plain = build_model(
        "lip_cnn", num_classes=10, in_channels=channels, image_size=size,
        mean=splits.mean, std=splits.std,
    )  # fmt: skip
    layers = KINDS[kind]
    model = plain if layers is None else OneLipschitz(plain, layers())
    constant: Callable[[], Tensor] = (
        model.constant
        if isinstance(model, OneLipschitz)
        else lipschitz_penalty(plain, splits.train.image_shape, seed=given.seed)
    )
    cpu = torch.device("cpu")
    known, outliers = DeviceImages(splits.train, cpu), DeviceImages(splits.aux, cpu)
    draw = Draw(len(outliers) - KEPT_OUTLIERS, generator)
    scale = [p for n, p in model.named_parameters() if n == "log_scale"]
    weights = [p for n, p in model.named_parameters() if n != "log_scale"]
    optimizer = torch.optim.Adam(
        [
            {"params": weights, "weight_decay": 1e-5},
            *([{"params": scale, "lr": given.lr * SCALE_STEPS}] if scale else []),
        ],
        lr=given.lr,
    )
    each = len(known) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, each * given.epochs)
    done, start = 0, time.process_time()
    model.train()
    for _ in range(given.epochs):
        for chosen in batch_indices(len(known), BATCH, generator):
            x = torch.cat([known.pixels(chosen), outliers.pixels(draw.take(BATCH))])
            x = draw_shifts(len(x), known.width, generator, flip=given.set != "mnist").apply(x)
            inside, outside = model(x).split([len(chosen), BATCH])
            loss = F.cross_entropy(inside, known.labels[chosen])
            loss = loss + LAMBDA_SCORE * energy_margin_loss(
                energy(inside), energy(outside), m_in=M_IN, m_out=M_OUT
            )
            ramp = min(1.0, (done + 1) / (each * RAMP))
            loss = loss + lambda_lipschitz * ramp * constant()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            done += 1
    seconds = (time.process_time() - start) / done
    model.eval()
    if isinstance(model, OneLipschitz):
        model.copy_to(plain)
        with torch.no_grad():
            x = known.pixels(torch.arange(8))
            torch.testing.assert_close(plain.eval()(x), model(x), rtol=1e-3, atol=1e-3)
    plain.requires_grad_(False)
    return plain.eval(), seconds


@torch.no_grad()
def scores_of(model: nn.Module, images: DeviceImages, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (n,) and predictions (n,) of some images."""
    logits = torch.cat([model(images.pixels(part)) for part in indices.split(500)])
    return energy(logits), logits.argmax(1)


def measure(model: Classifier, splits: DataSplits) -> dict[str, float]:
    """Figures of the calibration split and of the outliers that were kept."""
    cpu = torch.device("cpu")
    known, outliers = DeviceImages(splits.calibration, cpu), DeviceImages(splits.aux, cpu)
    inside, predicted = scores_of(model, known, torch.arange(len(known)))
    last = torch.arange(len(outliers) - KEPT_OUTLIERS, len(outliers))
    outside, _ = scores_of(model, outliers, last)
    gamma = threshold_at_tpr(inside.double().numpy(), 0.95)
    x = known.pixels(torch.arange(ATTACKED))
    most = known.pixels(torch.arange(min(500, len(known))))
    proven = global_lipschitz_radius(model, most, gamma, max_radius=50.0)
    attacked = attack_radius(
        model, x, gamma, max_radius=8.0, steps=15, rounds=8, restarts=1, polish=10
    )
    if bool((attacked < proven[:ATTACKED] * (1 - 1e-9)).any()):
        raise AssertionError("an attack contradicts a proven radius")
    return {
        "accuracy": float((predicted == known.labels).float().mean()),
        "auroc": float(auroc(inside.double().numpy(), outside.double().numpy())),
        "lipschitz_bound": global_lipschitz_bound(model, tuple(x.shape[1:])),
        "gap": float((gamma - inside).median()),
        "radius_proven": float(proven.median()),
        "radius_attack": float(attacked.median()),
        "share": float(proven[:ATTACKED].median() / attacked.median()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", choices=("mnist", "cifar10"), default="mnist")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--lambdas", nargs="+", type=float, default=[0.01, 0.03, 0.1])
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "lipschitz_layers.jsonl"
    rows: list[dict[str, Any]] = []
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    images = math.ceil(given.images / 0.85)  # 15 % of them are kept for the threshold
    recipe = Recipe(given.set, "cnn", "maxmin", 0.0, images, given.epochs)
    splits = data_of(recipe, given.data)
    for weight in given.lambdas:
        for kind in given.kinds:
            told = {"set": given.set, "kind": kind, "lambda_lipschitz": weight,
                    "images": given.images, "epochs": given.epochs, "lr": given.lr,
                    "seed": given.seed}  # fmt: skip
            if any(told.items() <= row.items() for row in rows):
                continue
            model, seconds = train(kind, weight, given, splits)
            row = {**told, **measure(model, splits), "step_seconds": seconds}
            rows.append({**row, "environment": environment("cpu")})
            with atomic_path(path) as part:
                part.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()},
                  flush=True)  # fmt: skip
    print("\n| set | layers | λ_L | accuracy | AUROC | L̄ | proven | attack | share | ms a step |")
    print("|" + " --- |" * 10)
    for r in rows:
        print(
            f"| {r['set']} | {r['kind']} | {r['lambda_lipschitz']} | {r['accuracy']:.3f} | "
            f"{r['auroc']:.3f} | {r['lipschitz_bound']:.2f} | {r['radius_proven']:.3f} | "
            f"{r['radius_attack']:.2f} | {r['share']:.2f} | {1e3 * r['step_seconds']:.0f} |"
        )


if __name__ == "__main__":
    main()
