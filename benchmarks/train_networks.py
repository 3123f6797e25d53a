"""Networks for `verify_images.py`, trained beside a penalty on their Lipschitz constant.

Run: python benchmarks/train_networks.py [NAME …] --data DATA --out OUT
NAME is a key of `RECIPES`, by default all of them in turn; DATA is the folder of `mnist.npz`,
`cifar10-jpeg.tar.xz` and `tinyimagenet32-jpeg.tar.xz`. Each writes OUT/NAME.safetensors and, last,
OUT/NAME.json: recipe, accuracy, AUROC, versions and CPU seconds on one thread. `load(NAME, OUT)`
gives the network back. A network whose JSON is there already is left as it is, and one that was
interrupted goes on after its last epoch.

Loss: cross-entropy + 0.1·(energy margin loss) + λ_L·L̄, with λ_L rising over the first two epochs.
L̄ is `greg_cert.train.lipschitz_penalty`. The recorded runs of `resnet18` were made by an earlier
version of it, which lived here.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from greg_cert.data import DataSplits, load_data
from greg_cert.data.schema import DataConfig
from greg_cert.evaluation import evaluate_model
from greg_cert.files import atomic_path
from greg_cert.models import MaxMin
from greg_cert.models.base import Classifier
from greg_cert.models.resnet import BasicBlock, resnet18_body
from greg_cert.runs.records import environment
from greg_cert.scores import energy
from greg_cert.train import energy_margin_loss, lipschitz_penalty
from greg_cert.train.feed.batches import DeviceImages, Draw, batch_indices, draw_shifts

LAMBDA_SCORE, M_IN, M_OUT = 0.1, -12.0, -4.0
RAMP = 2  # epochs over which λ_L rises
BATCH = 64
SOURCES: dict[str, dict[str, Any]] = {
    "mnist": {
        "id": {"source": "array", "path": "mnist.npz",
               "images": "train_images", "labels": "train_labels"},
        "id_test": {"source": "array", "path": "mnist.npz",
                    "images": "test_images", "labels": "test_labels"},
    },
    "cifar10": {
        "id": {"source": "folder", "path": "cifar10-jpeg.tar.xz", "inside": "cifar10/train"},
        "id_test": {"source": "folder", "path": "cifar10-jpeg.tar.xz", "inside": "cifar10/test"},
    },
}  # fmt: skip
TINY = "tinyimagenet32-jpeg.tar.xz"


@dataclass(frozen=True)
class Recipe:
    """How one network is made.

    Attributes:
        data: key of `SOURCES`.
        network: `cnn` (two 4×4 convolutions of stride 2 and 16, 32 planes, 100 hidden units; twice
            as wide for CIFAR-10) or `resnet18` (BatchNorm, no max pool, 16 planes).
        activation: `relu` or `maxmin`.
        lambda_lipschitz: weight of L̄.
        images: of the training set, before 15 % are kept for the threshold.
        epochs: passes over them.
        lr: Adam's step, which falls to 0 along a cosine.
    """

    data: str
    network: str
    activation: str
    lambda_lipschitz: float
    images: int
    epochs: int
    lr: float = 1e-3


RECIPES = {
    "mnist_lip0.1": Recipe("mnist", "cnn", "relu", 0.1, 7000, 18),
    "mnist_lip0.02": Recipe("mnist", "cnn", "relu", 0.02, 7000, 18),
    "cifar_maxmin_lip0.01": Recipe("cifar10", "cnn", "maxmin", 0.01, 13000, 14),
    "cifar_maxmin_lip0.03": Recipe("cifar10", "cnn", "maxmin", 0.03, 13000, 14),
    "cifar_relu_lip0.01": Recipe("cifar10", "cnn", "relu", 0.01, 13000, 14),
    "resnet18w16_lip0.01": Recipe("cifar10", "resnet18", "relu", 0.01, 9000, 8),
    "resnet18w16_lip0.002": Recipe("cifar10", "resnet18", "relu", 0.002, 9000, 8),
    "resnet18w16": Recipe("cifar10", "resnet18", "relu", 0.0, 9000, 8),
}


def build(recipe: Recipe, mean: Iterable[float], std: Iterable[float]) -> Classifier:
    """The network of a recipe, freshly initialised, from raw pixels to ten logits."""
    size, channels = (28, 1) if recipe.data == "mnist" else (32, 3)
    sizes: dict[str, Any] = {"num_classes": 10, "mean": tuple(mean), "std": tuple(std)}
    if recipe.network == "resnet18":
        body = resnet18_body(channels, width=16)
        return Classifier(body.module, body.num_features, **sizes)
    width = 16 * (1 if recipe.data == "mnist" else 2)
    hidden = 100 if recipe.data == "mnist" else 128

    def act() -> nn.Module:
        return nn.ReLU() if recipe.activation == "relu" else MaxMin()

    layers = nn.Sequential(
        nn.Conv2d(channels, width, 4, 2, 1),
        act(),
        nn.Conv2d(width, 2 * width, 4, 2, 1),
        act(),
        nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, hidden),
        act(),
    )
    return Classifier(layers, hidden, **sizes)


def load(name: str, folder: Path) -> Classifier:
    """A trained network in evaluation mode, by its name in `RECIPES`."""
    made = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    model = build(Recipe(**made["recipe"]), made["mean"], made["std"])
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.eval()


def data_of(recipe: Recipe, folder: Path) -> DataSplits:
    """Its sets: auxiliary outliers are Tiny-ImageNet's, others of it and four kinds are tested."""
    known = SOURCES[recipe.data]
    tiny = {"source": "folder", "path": folder / TINY}
    config = {
        "id": {**known["id"], "limit": recipe.images, "path": folder / known["id"]["path"]},
        "id_test": {**known["id_test"], "limit": 2000, "path": folder / known["id"]["path"]},
        "aux": {**tiny, "inside": "tinyimagenet32/aux", "limit": 20000},
        "ood": [
            {**tiny, "inside": "tinyimagenet32/ood", "name": "tinyimagenet"},
            *({"source": kind, "n": 1000} for kind in ("textures", "text", "uniform", "gaussian")),
        ],
        "calibration": 0.15,
    }  # fmt: skip
    return load_data(DataConfig.model_validate(config))


def train(name: str, recipe: Recipe, splits: DataSplits, out: Path, seed: int) -> None:
    """Trains one network and writes its two files."""
    start = time.process_time()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build(recipe, splits.mean, splits.std)
    for m in model.modules():
        if isinstance(m, BasicBlock):  # so that L̄, a product over blocks, does not begin at 1e9
            nn.init.constant_(m.bn2.weight, 0.1)
    cpu = torch.device("cpu")
    assert splits.aux is not None
    known, outliers = DeviceImages(splits.train, cpu), DeviceImages(splits.aux, cpu)
    draw = Draw(len(outliers), generator)
    constant = lipschitz_penalty(model, splits.train.image_shape, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=1e-5)
    steps = len(known) // BATCH * recipe.epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done, value, first = 0, torch.zeros(()), 0
    kept = out / f"{name}.resume.pt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        draw._left, first, start = state["left"], state["epoch"], start - state["seconds"]
        constant.load_state_dict(state["vectors"])
        done = steps // recipe.epochs * first
    for epoch in range(first, recipe.epochs):
        for chosen in batch_indices(len(known), BATCH, generator):
            x = torch.cat([known.pixels(chosen), outliers.pixels(draw.take(BATCH))])
            flip = recipe.data != "mnist"
            x = draw_shifts(len(x), known.width, generator, flip=flip).apply(x)
            with constant.watch():
                logits = model(x)
            inside, outside = logits.split([len(chosen), BATCH])
            assert known.labels is not None
            loss = F.cross_entropy(inside, known.labels[chosen])
            loss = loss + LAMBDA_SCORE * energy_margin_loss(
                energy(inside), energy(outside), m_in=M_IN, m_out=M_OUT
            )
            if recipe.lambda_lipschitz:
                value = constant()
                ramp = min(1.0, (done + 1) / (steps / recipe.epochs * RAMP))
                loss = loss + recipe.lambda_lipschitz * ramp * value
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            done += 1
        print(f"{name}: epoch {epoch + 1}, loss {loss.item():.3f}, L {value.item():.3f}, "
              f"{time.process_time() - start:.0f} CPU s", flush=True)  # fmt: skip
        with atomic_path(kept) as path:
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "generator": generator.get_state(),
                    "left": draw._left,
                    "epoch": epoch + 1,
                    "seconds": time.process_time() - start,
                    "vectors": constant.state_dict(),
                },
                path,
            )
    fresh = build(recipe, splits.mean, splits.std)
    fresh.load_state_dict(model.state_dict())
    found = evaluate_model(fresh.eval(), splits)
    record = {
        "recipe": asdict(recipe),
        "seed": seed,
        "mean": splits.mean,
        "std": splits.std,
        "accuracy": found.id_accuracy,
        "auroc": found.mean("auroc"),
        "auroc_tinyimagenet": found.ood["tinyimagenet"]["auroc"],
        "lipschitz_estimate": value.item() if recipe.lambda_lipschitz else None,
        "threshold": found.threshold,
        "train_images": len(known),
        "cpu_seconds": time.process_time() - start,
        "environment": environment("cpu"),
    }
    save_file(fresh.state_dict(), out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    kept.unlink(missing_ok=True)
    print(f"{name}: accuracy {found.id_accuracy:.4f}, AUROC {found.mean('auroc'):.4f}, "
          f"of Tiny-ImageNet {found.ood['tinyimagenet']['auroc']:.4f}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if unknown := [n for n in given.names if n not in RECIPES]:
        parser.error(f"expected names of {', '.join(RECIPES)}, but got {unknown[0]}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given.out.mkdir(parents=True, exist_ok=True)
    read: dict[tuple[str, int], DataSplits] = {}
    for name in given.names or RECIPES:
        if (given.out / f"{name}.json").exists():
            print(f"{name}: there already", flush=True)
            continue
        recipe = RECIPES[name]
        key = (recipe.data, recipe.images)
        if key not in read:
            read = {key: data_of(recipe, given.data)}
        train(name, recipe, read[key], given.out, given.seed)


if __name__ == "__main__":
    main()
