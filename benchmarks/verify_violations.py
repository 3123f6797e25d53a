"""Certificates by the thousand, each attacked inside its own radius: none may break.

Run: python benchmarks/verify_violations.py --out FILE [--runs RUN …] [--trained FOLDER]
     [--shared SHARED] [--device cpu|cuda|cuda:N]
RUNs are run folders, FOLDER is one that `train_networks.py` filled, SHARED holds `networks/` and
`data/`. A certificate is one sample at one threshold, on one side, of one score, with its class or
without, in one norm, by one method. Each cell of these, on one network, is one line of FILE,
written when it is done; a cell that is there is not done again, so an interrupted run goes on. The
kinds that are rare come first. Half of a cell's samples are images, the others blends of one image
with another on the other side of the threshold, a step back from it: their radii are small and
bounds tight.

Attacks have seeds, restarts and steps of their own: a minimal-norm attack of every sample, and PGD
in every ball. A violation stops the run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import community_networks
import small_networks
import torch
import train_networks
from torch import Tensor, nn

from greg_cert.data import DataSplits, load_data
from greg_cert.data.schema import DataConfig
from greg_cert.devices import device_title, find_device
from greg_cert.metrics import threshold_at_tpr
from greg_cert.models import MaxMin
from greg_cert.models.resnet import BasicBlock
from greg_cert.runs.records import RunFolder, environment
from greg_cert.runs.subjects import common_data
from greg_cert.scores import score_of
from greg_cert.verify import certify, global_lipschitz_radius
from greg_cert.verify.attack.audit import Audit, nearest_attack
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.scorer import Detector, Margin, class_margin, logit_function

TPRS = (0.3, 0.6, 0.9, 0.95, 0.99)
NORMS = (2.0, math.inf)
SIDES = ("id", "ood")
SCORES = ("energy", "max_logit", "max_softmax")  # in turn
MAX_RADIUS = {2.0: 3.0, math.inf: 1.0}
CLOSE = (0.9, 0.95)  # of the attack's radius
SEED = 1000  # of attacks; certify's own begin at 0
BISECTIONS = 20  # on the way from one image to another
POOL = 600  # samples of a side that are chosen from

GLOBAL, SPLIT = "lipschitz, global", "sdp-crown, split"
# Samples of a cell by method. What is slow at a size gets few; sdp-crown is for ℓ2 alone.
SAMPLES = {
    "tiny": {GLOBAL: 128, "lipschitz": 8, "crown-ibp": 128, "crown": 128, "sdp-crown": 12,
             SPLIT: 3, "best": 3, "alpha-crown": 1, "branch": 1},
    "small": {GLOBAL: 64, "lipschitz": 4, "crown-ibp": 64, "crown": 4, "sdp-crown": 8, SPLIT: 1,
              "best": 1},
    "image": {GLOBAL: 24, "lipschitz": 1, "crown-ibp": 24, "crown": 2, "sdp-crown": 8},
    "deep": {GLOBAL: 24, "sdp-crown": 1},
}  # fmt: skip
# Steps of an attack's run, restarts and steps along the boundary.
ATTACK = {"tiny": (30, 2, 30), "small": (30, 2, 30), "image": (30, 2, 30), "deep": (20, 2, 20)}
CLASSES = 3  # that samples are of where the class counts, since each is attacked by itself


@dataclass(frozen=True)
class Cell:
    """What one line of the file is about."""

    network: str
    side: str
    norm: float
    tpr: float
    score: str
    correct: bool

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.network} {self.side} {self.norm} {self.tpr} {self.score} {self.correct}"


@dataclass(frozen=True)
class Subject:
    """A network, its images and how large it is."""

    name: str
    model: nn.Module
    splits: DataSplits
    size: str

    def cells(self) -> Iterator[Cell]:
        """All of a network: sides, scores and whether classes count, in turn."""
        turn = zlib.crc32(self.name.encode())
        for tpr in TPRS:
            for norm in NORMS:
                side, score = SIDES[turn // 2 % 2], SCORES[turn % 3]
                yield Cell(self.name, side, norm, tpr, score, side == "id" and turn % 4 == 0)
                turn += 1

    @property
    def about(self) -> dict[str, Any]:
        """What the certificates of it count as."""
        layers = list(self.model.modules())
        return {
            "pixels": self.splits.test.pixels([0]).shape[-1],
            "residual": any(isinstance(m, BasicBlock) for m in layers),
            "maxmin": any(isinstance(m, MaxMin) for m in layers),
        }


def images(data: str, folder: Path) -> DataSplits:
    """ID images of a kind, and generated ones as outliers."""
    if data == "digits":
        source: dict[str, Any] = {"id": {"source": "digits"}, "test": 0.3}
    else:
        known = train_networks.SOURCES[data]
        source = {k: {**known[k], "path": folder / known[k]["path"], "limit": 3000} for k in known}
    kinds = ("textures", "text", "uniform", "gaussian")
    ood = [{"source": kind, "n": 100} for kind in kinds]
    config = {**source, "ood": ood, "calibration": 0.3}
    return load_data(DataConfig.model_validate(config))


def subjects(
    runs: list[Path], trained: Path | None, shared: Path
) -> Iterator[tuple[str, Callable[[], Subject]]]:
    """Names of networks and how to get them, the rare kinds first."""
    read: dict[str, DataSplits] = {}

    def data(kind: str) -> DataSplits:
        if kind not in read:
            read[kind] = images(kind, shared / "data")
        return read[kind]

    def small(name: str) -> Subject:
        splits = data("digits" if name.endswith("8") and not name.endswith("28") else "mnist")
        size = "small" if name.endswith("28") else "tiny"
        return Subject(name, small_networks.trained(name, splits), splits, size)

    def other(name: str) -> Subject:
        assert trained is not None
        splits = data(train_networks.RECIPES[name].data)
        size = "deep" if "resnet" in name else "image"
        return Subject(name, train_networks.load(name, trained), splits, size)

    def community(name: str) -> Subject:
        splits = data(community_networks.NETWORKS[name].data)
        model = community_networks.load(name, shared / "networks")
        return Subject(name, model, splits, "image")

    def run(path: Path) -> Subject:
        folder = RunFolder(path)
        splits = common_data([folder])
        size = "tiny" if splits.test.pixels([0]).shape[-1] < 28 else "image"
        return Subject(f"run {path.name}", folder.load_model().eval(), splits, size)

    for name in ("residual28", "maxmin28", "residual8", "maxmin8", "pooled8", "pooled28"):
        yield name, lambda name=name: small(name)  # type: ignore[misc]
    for path in runs:
        yield f"run {path.name}", lambda path=path: run(path)  # type: ignore[misc]
    for name in community_networks.NETWORKS:
        yield name, lambda name=name: community(name)  # type: ignore[misc]
    for name in train_networks.RECIPES if trained is not None else ():
        if trained is not None and (trained / f"{name}.json").exists():
            yield name, lambda name=name: other(name)  # type: ignore[misc]


def chosen(subject: Subject, cell: Cell, count: int) -> tuple[float, Tensor, Tensor | None]:
    """Threshold of a cell, its samples in float64, and their classes where they count."""
    model, splits = subject.model.cpu().double(), subject.splits  # same samples on all devices
    value = score_of(cell.score)
    generator = torch.Generator().manual_seed(zlib.crc32(cell.key.encode()))

    def some(of: Any, most: int) -> Tensor:
        return torch.randperm(len(of), generator=generator)[:most]

    def gap(x: Tensor, labels: Tensor | None) -> Tensor:
        logits = model(x)
        found = Margin(threshold, cell.side).of(value(logits))
        if labels is None:
            return found
        return torch.minimum(found, -class_margin(logits, labels, cell.score))

    with torch.no_grad():
        known = value(model(splits.calibration.pixels(some(splits.calibration, 1000)).double()))
        threshold = threshold_at_tpr(known.numpy(), cell.tpr)
        # A test image that is rejected stays so within its radius as an outlier does.
        sets = {"test": splits.test, **({} if cell.side == "id" else splits.ood)}
        picks = {name: some(of, POOL // len(sets)) for name, of in sets.items()}
        x = torch.cat([sets[name].pixels(rows) for name, rows in picks.items()]).double()
        labels = None
        if cell.correct:
            assert splits.test.labels is not None
            labels = splits.test.labels[picks["test"]]
            x, labels = x[labels < CLASSES], labels[labels < CLASSES]
        known = gap(x, labels)
        right, wrong = x[known > 0], x[known < 0]
        if labels is not None:
            labels = labels[known > 0]
        blends = count // 2 if len(right) and len(wrong) else 0
        order = torch.randperm(len(right), generator=generator)[: count - blends]
        if blends:
            order = torch.cat([torch.randint(len(right), (blends,), generator=generator), order])
            others = wrong[torch.randint(len(wrong), (blends,), generator=generator)]
        x, labels = right[order], None if labels is None else labels[order]
        if blends:
            x[:blends] = blended(
                x[:blends],
                others,
                lambda y: gap(y, None if labels is None else labels[:blends]),
                generator,
            )
        # Methods that get few take some of both.
        rows = torch.randperm(len(x), generator=generator)
        rows = rows[gap(x[rows], None if labels is None else labels[rows]) > 0]
    return threshold, x[rows], None if labels is None else labels[rows]


def blended(
    x: Tensor, others: Tensor, gap: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Tensor:
    """Points between x and `others` (B, ...), a random step back from where the gap ends."""
    low, high = torch.zeros(len(x)).double(), torch.ones(len(x)).double()

    def at(share: Tensor) -> Tensor:
        return x.lerp(others, share.reshape(-1, 1, 1, 1))

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        inside = gap(at(middle)) > 0
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    back = 10 ** (-1.0 - 2 * torch.rand(len(x), generator=generator))
    return at(low * (1 - back))


def proven(
    model: nn.Module, cell: Cell, method: str, x: Tensor, threshold: float, labels: Tensor | None
) -> Tensor:
    """Radii (B,) by one method."""
    given: dict[str, Any] = {
        "side": cell.side,
        "norm": cell.norm,
        "max_radius": MAX_RADIUS[cell.norm],
        "score": cell.score,
    }
    if method == GLOBAL:
        return global_lipschitz_radius(model, x, threshold, **given)
    if method == SPLIT:
        method, given["coupled"] = "sdp-crown", CoupledEffort(splits=7)
    found = certify(
        model, x, threshold, method=method, labels=labels, attack=False,
        lipschitz=method == "lipschitz", **given,
    )  # fmt: skip
    return found.radius_lipschitz if method == "lipschitz" else found.radius_certified


def check(subject: Subject, cell: Cell, device: torch.device) -> dict[str, Any]:
    """Certify the samples of a cell on a device, and attack everything proven there."""
    begun = time.process_time()
    counts = dict(SAMPLES[subject.size])
    if cell.norm != 2.0:
        for method in ("sdp-crown", SPLIT):
            counts.pop(method, None)
    if cell.correct:  # the Lipschitz radius is one of the score alone
        for method in (GLOBAL, "lipschitz"):
            counts.pop(method, None)
    threshold, x, labels = chosen(subject, cell, max(counts.values()))
    model, x = subject.model.to(device), x.to(device)
    labels = None if labels is None else labels.to(device)
    by_method: dict[str, dict[str, float]] = {}
    broken: list[dict[str, Any]] = []
    closest = 0.0
    if len(x):
        names = torch.arange(len(x))
        steps, restarts, polish = ATTACK[subject.size]
        margin = Margin(threshold, cell.side)
        detector = Detector(logit_function(model), cell.score, margin)
        plan = AttackPlan(margin, cell.norm, SEED, steps, restarts=restarts, polish=polish)
        none = torch.zeros(len(x), dtype=torch.bool, device=device)
        most = MAX_RADIUS[cell.norm]
        nearest = nearest_attack(detector, plan, most, x, names, labels, none).radius
        graph = trace_model(model, tuple(x.shape[1:]))
        for k, (method, count) in enumerate(counts.items()):
            rows = slice(min(count, len(x)))
            own = None if labels is None else labels[rows]
            start = time.process_time()
            radii = proven(model, cell, method, x[rows], threshold, own)
            seconds = time.process_time() - start
            plan = AttackPlan(margin, cell.norm, SEED + 1 + k, steps, restarts=restarts)
            audit = Audit(detector, [graph], plan)
            crossed = audit.crossings(x[rows], radii, names[rows], own)
            found = radii > 0
            attack = torch.minimum(crossed, nearest[rows])
            hit = found & (crossed.isfinite() | (nearest[rows] <= radii))
            share = torch.where(found, radii / attack, 0.0)
            closest = max(closest, float(share.max()))
            by_method[method] = {
                "certificates": int(found.sum()),
                **{f"above {level}": int((share > level).sum()) for level in CLOSE},
                "violations": int(hit.sum()),
                "seconds": round(seconds, 3),
            }
            broken += [
                {"method": method, "sample": row, "radius": float(radii[row]),
                 "attack": float(attack[row])}
                for row in hit.nonzero().squeeze(1).tolist()
            ]  # fmt: skip
    return {
        "key": cell.key,
        **asdict(cell),
        "norm": str(cell.norm),
        **subject.about,
        "threshold": threshold,
        "samples": len(x),
        "methods": by_method,
        "closest": closest,
        "broken": broken,
        "cpu_seconds": round(time.process_time() - begun, 2),
    }


def kinds(row: dict[str, Any]) -> list[str]:
    """What the certificates of a cell are counted under, beside their method."""
    found = ["all", f"norm {row['norm']}", f"side {row['side']}", f"score {row['score']}"]
    found += ["28x28 or larger"] if row["pixels"] >= 28 else []
    found += [kind for kind in ("residual", "maxmin") if row[kind]]
    return found + (["with the class"] if row["correct"] else [])


def counted(rows: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Certificates, those close to the attack, and violations, by kind and by method."""
    columns = ("certificates", *(f"above {level}" for level in CLOSE), "violations")
    table: dict[str, Counter[str]] = {}
    for row in rows:
        for method, numbers in row["methods"].items():
            for kind in (*kinds(row), f"method {method}"):
                one = table.setdefault(kind, Counter())
                one.update({k: int(numbers[k]) for k in columns})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--trained", type=Path, help="folder of train_networks.py")
    parser.add_argument("--shared", type=Path, default=community_networks.FOLDER.parent)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--count", action="store_true", help="what FILE holds, and no more")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    if given.out.exists():
        rows = [json.loads(line) for line in given.out.read_text(encoding="utf-8").splitlines()]
    done = {row["key"] for row in rows}
    device = find_device(given.device)
    title = "cpu, one thread" if device.type == "cpu" else device_title(device)
    about = environment(title)
    commit = about["git_commit"]
    made: dict[str, Subject] = {}
    kept = list(subjects(given.runs, given.trained, given.shared))
    kept = [(name, make) for name, make in kept if not given.only or name in given.only]
    for turn in () if given.count else range(len(TPRS) * len(NORMS)):
        for name, make in kept:
            if name not in made:
                made[name] = make()
            subject = made[name]
            cell = list(subject.cells())[turn]
            if cell.key in done:
                continue
            row = {**check(subject, cell, device), "device": title, "commit": commit}
            rows.append(row)
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            certificates = sum(m["certificates"] for m in row["methods"].values())
            print(f"{cell.key}: {certificates} certificates, closest {row['closest']:.4f}, "
                  f"{row['cpu_seconds']:.0f} CPU s", flush=True)  # fmt: skip
            if row["broken"]:
                raise SystemExit(f"violated: {row['broken']}")
    print(", ".join(f"{k} {v}" for k, v in about["versions"].items()))
    for k, (kind, numbers) in enumerate(counted(rows).items()):
        if k == 0:
            print(f"{'':24}" + "".join(f"{column:>14}" for column in numbers))
        print(f"{kind:24}" + "".join(f"{number:14}" for number in numbers.values()))


if __name__ == "__main__":
    main()
