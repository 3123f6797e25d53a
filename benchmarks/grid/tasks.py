"""What the grid of `claims.py` trains: the data, the runs, and what may be chosen for each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from greg_cert.config import ExperimentConfig, load_config
from greg_cert.data import load_data

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
SEEDS = (0, 1, 2)

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One method of the grid: the last stage of a training.

    Attributes:
        method: preset of that stage.
        settings: of that stage, beside the preset.
        tries: values from which those of the grid are chosen, all combinations of them.
        follows: the run whose chosen values this one takes, before it chooses its own.
        shared: settings (of `tries` or not) that the first stage has too. A run that has some is
            trained whole; the others begin with the weights of the task's first stage.
        whole: whether it is trained whole in any case, as its network has another output.
    """

    method: str
    settings: Settings = field(default_factory=dict)
    tries: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    follows: str | None = None
    shared: tuple[str, ...] = ()
    whole: bool = False

    def candidates(self) -> Iterator[dict[str, float]]:
        """The combinations of values to choose from; one empty where there is no choice."""
        for values in itertools.product(*self.tries.values()):
            yield dict(zip(self.tries, values, strict=True))

    @property
    def alone(self) -> bool:
        """Whether it is trained whole, from weights of its own."""
        return self.whole or bool(self.shared)


_MARGIN = {"lambda_score": (0.01, 0.03, 0.1, 0.3, 1.0)}
_GRADIENT = {"lambda_grad": (0.01, 0.03, 0.1, 0.3, 1.0)}
# Margins that no ID score reaches, as docs/choosing.md explains.
_FAR = {"m_in": -60.0, "m_out": -4.0, "clip_grad": 5.0, "lambda_lipschitz_ramp": 0.0}
RUNS: dict[str, Run] = {
    "ce": Run("ce"),
    "oe": Run("oe", tries={"lambda_score": (0.15, 0.5, 1.5)}),
    # The slope of a probability is an order of magnitude below that of the energy.
    "oe+grad": Run(
        "oe+grad", tries={"lambda_grad": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)}, follows="oe"
    ),
    "energy": Run("energy", tries=_MARGIN),
    "greg": Run("greg", tries=_GRADIENT, follows="energy"),
    "greg+": Run("greg+", tries=_GRADIENT, follows="energy"),
    "poem": Run("poem", tries=_MARGIN),
    "poem+grad": Run("poem+grad", tries=_GRADIENT, follows="poem"),
    "dos": Run("dos", tries={"lambda_score": (0.3, 1.0, 3.0)}, whole=True),
    "openmix": Run("openmix", tries={"lambda_score": (0.3, 1.0, 3.0)}, whole=True),
    "energy, far margins": Run(
        "energy", {**_FAR}, {"lambda_score": (0.0005, 0.002, 0.008)}, shared=("clip_grad",)
    ),
    "lipschitz": Run(
        "energy",
        {**_FAR},
        {"lambda_lipschitz": (0.003, 0.01, 0.03), "lambda_score": (0.0005, 0.002)},
        shared=("lambda_lipschitz", "clip_grad"),
    ),
    "greg, every k steps": Run("greg", tries={"penalty_every": (2, 4, 8)}, follows="greg"),
    "greg, reference": Run(
        "greg",
        {"scaling": "reference"},
        {"lambda_grad": (1.0, 8.0, 64.0)},
        follows="energy",
    ),
}
# For defaults: measured as candidates alone, on calibration data.
EXTRA = ("greg, every k steps", "greg, reference")


def proof(score: str, norm: str) -> dict[str, Any]:
    """How the radii of a run with this score are proven: settings of `VerifyConfig`.

    The maximum softmax probability is bounded by a row for each class, which `sdp-crown` does no
    better than `crown` and at several times its cost. `lipschitz` beside them took a third of the
    time, and had the larger radius at 4 of 600 balls of the first cell.
    """
    if norm == "inf":
        return {"norm": norm, "method": ("crown",), "max_radius": 0.3, "cuts": 0}
    method = "crown" if score == "max_softmax" else "sdp-crown"
    return {"norm": norm, "method": (method,), "max_radius": 3.0, "cuts": 0}


@dataclass(frozen=True)
class Task:
    """ID data, outliers, and how long a network is trained on them.

    Attributes:
        title: of its section.
        short: its name in the overview of all verdicts, empty where it is left out of that.
        config: file in configs/ whose auxiliary set, network and verification it takes.
        data: what differs of its data; SHARED and WORK in a path are folders.
        first: settings of the first stage, cross-entropy.
        last: settings of the last stage, the method's.
        runs: names in `RUNS`.
        samples: test samples certified, the same under all runs; 0 for none.
        weights: the task whose chosen weights are taken; None where it chooses its own.
    """

    title: str
    short: str
    config: str
    data: Settings
    first: Settings
    last: Settings
    runs: tuple[str, ...] = tuple(run for run in RUNS if run not in EXTRA)
    samples: int = 300
    weights: str | None = None

    def experiment(
        self, run: str, chosen: Settings, seed: int, work: Path, start: Path | None = None
    ) -> ExperimentConfig:
        """The configuration of a run, from the weights of the run folder `start` where it can.

        `run` is a name in `runs`, or "start" for the first stage alone.
        """
        first: dict[str, Any] = {"method": "ce", **self.first}
        stages, init = [first], None
        if run != "start":
            what = RUNS[run]
            last = {**self.last, "method": what.method, **what.settings, **chosen}
            if what.alone:
                stages = [{**first, **{k: last[k] for k in what.shared}}, last]
            else:
                assert start is not None
                stages, init = [last], str(start.resolve())
        parts = {
            **{f"data.{key}": value for key, value in self.data.items()},
            "train.stages": stages,
            **({} if init is None else {"train.init": init}),
            "seed": seed,
            "name": run,
        }
        sets = [f"{key}={json.dumps(value)}" for key, value in parts.items()]
        sets = [s.replace("SHARED", str(SHARED)).replace("WORK", str(work)) for s in sets]
        return load_config(ROOT / "configs" / self.config, sets)


def make_digit_splits(work: Path) -> None:
    """Files of some digits of MNIST in WORK.

    `mnist-split.npz` has 0 to 7 and `mnist-six.npz` 0 to 5; `unknown.npy` has 8 and 9 of the test
    set, `outliers.npy` 6 and 7 of the training set, `both.npy` as many photographs beside these.
    """
    files = [work / name for name in _DIGIT_FILES]
    if all(file.exists() for file in files):
        return
    stored = np.load(SHARED / "mnist.npz")
    work.mkdir(parents=True, exist_ok=True)
    for file, most in zip(files, (8, 6), strict=False):
        arrays = {}
        for part in ("train", "test"):
            known = stored[f"{part}_labels"] < most
            arrays |= {f"{part}_{k}": stored[f"{part}_{k}"][known] for k in ("images", "labels")}
        np.savez(file, **arrays)
    np.save(files[2], stored["test_images"][stored["test_labels"] >= 8])
    outliers = stored["train_images"][np.isin(stored["train_labels"], (6, 7))]
    np.save(files[3], outliers)
    photographs = load_data(load_config(ROOT / "configs" / "mnist_energy.yaml").data).aux
    assert photographs is not None
    some = np.random.default_rng(0).permutation(len(photographs))[: len(outliers)]
    taken = photographs.stored(some.tolist()).squeeze(1).numpy()
    np.save(files[4], np.concatenate([outliers, taken]))


def _array(file: str, part: str, **more: Any) -> dict[str, Any]:
    return {"source": "array", "path": file, "images": f"{part}_images", **more}


def _cifar(part: str, **more: Any) -> dict[str, Any]:
    archive = {"path": "SHARED/cifar10-jpeg.tar.xz", "inside": f"cifar10/{part}"}
    return {"source": "folder", **archive, **more}


_TINY = {
    "source": "folder",
    "path": "SHARED/tinyimagenet32-jpeg.tar.xz",
    "inside": "tinyimagenet32/ood",
    "name": "tinyimagenet",
    "group": "near",
}
_TINY_FAR = {**_TINY, "group": "far"}  # photographs, beside digits
_FAR_SETS = [
    {"source": kind, "n": 1000, "group": "far"}
    for kind in ("textures", "text", "uniform", "gaussian")
]
_DIGITS = _array("SHARED/mnist.npz", "test", limit=1000, name="mnist", group="far")
_VEHICLES = ["airplane", "automobile", "ship", "truck"]
_ANIMALS = ["bird", "cat", "deer", "dog", "frog", "horse"]
_DIGIT_FILES = ("mnist-split.npz", "mnist-six.npz", "unknown.npy", "outliers.npy", "both.npy")
_MNIST: tuple[Settings, Settings] = (
    {"epochs": 12, "lr": 0.1, "batch_size": 64, "augment": "shift"},
    {"epochs": 6, "lr": 0.01, "batch_size": 64, "augment": "shift"},
)
_CIFAR: tuple[Settings, Settings] = (
    {"epochs": 30, "lr": 0.05, "batch_size": 64, "augment": "shift_flip"},
    {"epochs": 10, "lr": 0.01, "batch_size": 64, "augment": "shift_flip"},
)
_FEWER = tuple(run for run in RUNS if run not in ("poem", "poem+grad", "openmix", *EXTRA))
_NEARER = ("ce", "energy", "greg", "greg+", "energy, far margins", "lipschitz")


def _unseen(title: str, short: str, file: str, runs: tuple[str, ...], **data: Any) -> Task:
    """Digits of WORK/FILE.npz against 8 and 9, with the weights of MNIST."""
    path = f"WORK/{file}.npz"
    unknown = {"source": "array", "path": "WORK/unknown.npy", "group": "near"}
    parts = {
        "id": _array(path, "train", labels="train_labels", limit=7000),
        "id_test": _array(path, "test", labels="test_labels", limit=2000, name="test"),
        "ood": [{**unknown, "name": "digits 8 and 9"}, _TINY_FAR, *_FAR_SETS],
    }
    return Task(
        title,
        short,
        "mnist_energy.yaml",
        {**parts, **data},
        *_MNIST,
        runs,
        samples=0,
        weights="mnist",
    )


TASKS: dict[str, Task] = {
    "mnist": Task(
        "MNIST (28×28, 10 classes, 5,950 training images)",
        "MNIST",
        "mnist_energy.yaml",
        {"ood": [_TINY_FAR, *_FAR_SETS]},
        *_MNIST,
    ),
    "cifar10": Task(
        "CIFAR-10 (32×32, 10 classes, 10,200 training images)",
        "CIFAR-10",
        "cifar10small_energy.yaml",
        {"id": _cifar("train", limit=12000), "ood": [_TINY, _DIGITS, *_FAR_SETS]},
        *_CIFAR,
        _FEWER,
    ),
    "mnist-split": _unseen(
        "MNIST, digits 0 to 7 against 8 and 9", "digits 0 to 7", "mnist-split", _FEWER
    ),
    "cifar10-split": Task(
        "CIFAR-10, six animals against four vehicles",
        "animals",
        "cifar10small_energy.yaml",
        {
            "id": _cifar("train", classes=_ANIMALS, limit=7200),
            "id_test": _cifar("test", classes=_ANIMALS, name="test"),
            "ood": [
                _cifar("test", classes=_VEHICLES, limit=1000, name="vehicles", group="near"),
                _TINY,
                *_FAR_SETS,
            ],
        },
        *_CIFAR,
        _FEWER,
        samples=0,
        weights="cifar10",
    ),
    "mnist-six": _unseen(
        "MNIST, digits 0 to 5 against 8 and 9, trained beside photographs",
        "",
        "mnist-six",
        _NEARER,
    ),
    "mnist-six-near": _unseen(
        "MNIST, digits 0 to 5 against 8 and 9, trained beside 6 and 7",
        "",
        "mnist-six",
        _NEARER,
        aux={"source": "array", "path": "WORK/outliers.npy", "name": "digits 6 and 7"},
    ),
    "mnist-six-both": _unseen(
        "MNIST, digits 0 to 5 against 8 and 9, trained beside 6, 7 and photographs",
        "",
        "mnist-six",
        _NEARER,
        aux={"source": "array", "path": "WORK/both.npy", "name": "digits and photographs"},
    ),
}
