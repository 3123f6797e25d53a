"""How tight and how fast certificates of the bundled digits are.

Run: python benchmarks/verify.py RUNS/energy RUNS/greg+ [--parts radii,speed,global,…]
The two run folders are of configs/digits_energy.yaml and configs/digits_gregplus.yaml; one that is
missing is trained first. Times are CPU seconds of this process on one thread, so that other
processes disturb them little, and variants take turns. Sizes: benchmarks/verify_scaling.py;
whether attacks break any: benchmarks/verify_violations.py.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greg_cert.config import load_config
from greg_cert.data import DataSplits, load_data
from greg_cert.evaluation import evaluate_model
from greg_cert.models import Classifier, build_model
from greg_cert.runs.inference import evaluation_copy
from greg_cert.runs.records import RunFolder, environment
from greg_cert.runs.subjects import common_data
from greg_cert.scores import energy
from greg_cert.train import fit
from greg_cert.verify import attack_radius, certify, global_lipschitz_bound, global_lipschitz_radius
from greg_cert.verify.bounds.lirpa.compat import load_auto_lirpa
from greg_cert.verify.bounds.lirpa.engine import _surroundings
from greg_cert.verify.bounds.lirpa.rebuild import RebuiltModule
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius.sampled.clever import CleverOptions, clever_estimate
from greg_cert.verify.run.selection import choose_samples
from greg_cert.verify.scorer import score_function

CONFIGS = ("digits_energy.yaml", "digits_gregplus.yaml")
PARTS = ("radii", "speed", "lipschitz", "global", "estimates")
MAX_RADIUS, TOLERANCE = 1.0, 0.01  # of certify: the most, and when a sample is done
STEPS, RESTARTS, POLISH = 60, 5, 60  # of the attack


@dataclass
class Subject:
    """One run, its accepted test samples, and how near attacks came to them."""

    name: str
    model: Classifier
    splits: DataSplits
    threshold: float
    tested: int
    x: Tensor
    score: Tensor
    attack: Tensor

    def radii(self, **options: Any) -> Tensor:
        """Radii proven in ℓ2, (B,)."""
        given: dict[str, Any] = {"method": "crown", "lipschitz": False, "attack": False, **options}
        found = certify(self.model, self.x, self.threshold, max_radius=MAX_RADIUS, **given)
        return found.radius_certified

    def share(self, radii: Tensor) -> tuple[float, int]:
        """Median of radii / attack where an attack was found, and how many there are."""
        found = self.attack[: len(radii)].isfinite()
        return float((radii / self.attack[: len(radii)])[found].median()), int(found.sum())


def open_runs(folders: list[Path]) -> list[RunFolder]:
    """The run folders, trained first where they are missing."""
    for folder, name in zip(folders, CONFIGS, strict=False):
        if not RunFolder(folder).complete:
            print(f"training {name} into {folder}", flush=True)
            config = load_config(Path(__file__).parents[1] / "configs" / name)
            fit(config, load_data(config.data), folder)
    return [RunFolder(folder) for folder in folders]


def prepare(run: RunFolder, samples: int | None, seed: int, attacked: bool) -> Subject:
    model, splits = run.load_model(), common_data([run])
    threshold = evaluate_model(model, splits).threshold
    x = splits.test.pixels(choose_samples(len(splits.test), samples, seed)).double()
    with torch.no_grad():
        score = score_function(model)(x)
    right = score <= threshold
    attack = torch.full_like(score[right], math.inf)
    if attacked:
        attack = attack_radius(
            model,
            x[right],
            threshold,
            max_radius=MAX_RADIUS,
            seed=seed,
            steps=STEPS,
            restarts=RESTARTS,
            polish=POLISH,
        )
    name = run.config.method
    return Subject(name, model, splits, threshold, len(x), x[right], score[right], attack)


def radii(subject: Subject, alpha: int) -> dict[str, Any]:
    """Certified / attack radius by method; `alpha` samples alone for alpha-CROWN."""
    few = Subject(**{**vars(subject), "x": subject.x[:alpha]})
    found = {
        "crown": subject.radii(),
        "crown, no cuts": subject.radii(cuts=0),
        "crown-ibp": subject.radii(method="crown-ibp"),
        "alpha-crown": few.radii(method="alpha-crown"),
        "branch": few.radii(method="branch"),
    }
    found["crown, same samples"] = found["crown"][:alpha]
    rows = {}
    for name, values in found.items():
        share, n = subject.share(values)
        rows[name] = {"median": float(values.median()), "share": share, "n": n}
    attack = subject.attack
    rows["attack"] = {"median": float(attack.median()), "share": 1.0, "n": len(attack)}
    return rows


def lirpa_bisection(subject: Subject, x: Tensor, steps: int) -> Tensor:
    """Radii (B,) from auto-LiRPA's CROWN bounds of each logit, one sample and one ball a call."""
    lirpa = load_auto_lirpa()
    graph = trace_model(subject.model, tuple(x.shape[1:]))
    found = []
    with _surroundings():
        module = lirpa.BoundedModule(
            RebuiltModule(graph), x[:1], bound_opts={"conv_mode": "matrix", "verbosity": 0}
        )
        for row in x.split(1):
            low, high = 0.0, MAX_RADIUS
            for _ in range(steps):
                middle = (low + high) / 2
                ball = lirpa.PerturbationLpNorm(norm=2.0, eps=middle)
                lower, _ = module.compute_bounds(
                    x=(lirpa.BoundedTensor(row, ball),), method="CROWN", bound_upper=False
                )
                inside = bool(-lower.logsumexp(1) <= subject.threshold)
                low, high = (middle, high) if inside else (low, middle)
            found.append(low)
    return torch.tensor(found, dtype=torch.float64)


def speed(subject: Subject, count: int, rounds: int) -> dict[str, Any]:
    """CPU seconds a sample of certify and of bisection to the same resolution, in turns."""
    few = subject.x[:count]
    middle = float(subject.radii(cuts=0).median())
    steps = math.ceil(math.log2(MAX_RADIUS / (TOLERANCE * middle)))
    one = Subject(**{**vars(subject), "x": few})
    variants: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "auto-LiRPA, bisection": (count, lambda: lirpa_bisection(subject, few, steps)),
        "crown": (len(subject.x), subject.radii),
        "crown, no cuts": (len(subject.x), lambda: subject.radii(cuts=0)),
        "crown, batch 1": (count, lambda: one.radii(batch=1)),
        "crown, no cuts, batch 1": (count, lambda: one.radii(cuts=0, batch=1)),
    }
    lirpa_bisection(subject, few[:1], 2)
    one.radii()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    found = {}
    for _ in range(rounds):
        for name, (n, run) in variants.items():
            begun = time.process_time()
            found[name] = run()
            seconds[name].append((time.process_time() - begun) / n)
    base = next(iter(variants))
    rows: dict[str, Any] = {}
    for name in variants:
        ratios = [b / s for b, s in zip(seconds[base], seconds[name], strict=True)]
        rows[name] = {
            "seconds": float(torch.tensor(seconds[name]).median()),
            "faster": float(torch.tensor(ratios).median()),
            "faster_range": [min(ratios), max(ratios)],
            "median": float(found[name][:count].median()),
            "radius_ratio": float((found[name][:count] / found[base]).nanmedian()),
        }
    return {"steps": steps, "samples": count, "all": len(subject.x), "variants": rows}


def lipschitz(subject: Subject) -> dict[str, Any]:
    """Lipschitz radius / crown radius and / attack, by form of the bound."""
    crown = subject.radii()
    rows = {}
    for form in ("interval", "spectral", "hybrid"):
        for integrated in (False, True):
            begun = time.process_time()
            found = subject.radii(
                method="lipschitz", lipschitz_form=form, lipschitz_integrated=integrated
            )
            rows[form + (", integrated" if integrated else "")] = {
                "median": float(found.median()),
                "of_crown": float((found / crown).nanmedian()),
                "share": subject.share(found)[0],
                "seconds": (time.process_time() - begun) / len(found),
            }
    return rows


def everywhere(count: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of radii by the global constant, and of scoring alike, on 32×32 images."""
    rows = {}
    for name, n in (("cnn_small", count), ("wrn16_2", max(1, count // 20))):
        torch.manual_seed(0)
        statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}
        model = build_model(name, num_classes=10, in_channels=3, image_size=32, **statistics).eval()
        images = torch.rand(n, 3, 32, 32)
        begun = time.process_time()
        constant = global_lipschitz_bound(model, (3, 32, 32))
        norms = time.process_time() - begun
        for dtype in (torch.float64, torch.float32):
            twin, x, seconds = evaluation_copy(model, dtype), images.to(dtype), []
            with torch.no_grad():
                threshold = float(energy(twin(x[:128])).median()) + 1.0
            for _ in range(rounds + 1):
                begun = time.process_time()
                with torch.no_grad():
                    for part in x.split(128):
                        energy(twin(part))
                scored = time.process_time()
                found = global_lipschitz_radius(model, x, threshold, dtype=dtype)
                seconds.append((scored - begun, time.process_time() - scored))
            scoring, radius = torch.tensor(seconds[1:]).unbind(1)  # the first round warms up
            rows[f"{name}, {str(dtype).removeprefix('torch.')}"] = {
                "images": n,
                "score_s": float(scoring.median()),
                "radii_s": float(radius.median()),
                "ratio": float((radius / scoring).median()),
                "norms_s": norms,  # once for a set of weights
                "constant": constant,
                "median": float(found.median()),
            }
    return rows


def estimates(subject: Subject, seed: int) -> dict[str, Any]:
    """How often estimates of the radius exceed an attack, among samples with one."""
    known = subject.attack.isfinite()
    x, attack, gap = subject.x[known], subject.attack[known], subject.threshold - subject.score
    gap = gap[known]
    score = score_function(subject.model)
    first = certify(
        subject.model, x, subject.threshold, method="crown-ibp", lipschitz=False, attack=False
    )
    options = CleverOptions(seed=seed)
    at_attack = gap / clever_estimate(score, x, attack, options=options).lipschitz_estimate
    at_most = gap / clever_estimate(score, x, MAX_RADIUS, options=options).lipschitz_estimate
    found = {
        "first order": first.radius_gradient,
        "CLEVER, ball of the attack's radius": at_attack,
        f"CLEVER, ball of radius {MAX_RADIUS:g}": at_most,
    }
    return {
        name: {
            "above_attack": float((r > attack).double().mean()),
            "share": float((r / attack).median()),
            "n": len(r),
        }
        for name, r in found.items()
    }


def show(title: str, rows: dict[str, Any]) -> None:
    columns = [k for k, v in next(iter(rows.values())).items() if not isinstance(v, list)]
    print(f"\n{title:38s}" + "".join(f"{c:>14s}" for c in columns))
    for name, row in rows.items():
        print(f"  {name:36s}" + "".join(f"{row[c]:14.4g}" for c in columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", type=Path, nargs=2, help="energy and greg+, in this order")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--samples", type=int, help="test samples; all by default")
    parser.add_argument("--alpha-samples", type=int, default=32)
    parser.add_argument("--baseline-samples", type=int, default=24)
    parser.add_argument("--images", type=int, default=10_000, help="of the part `global`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: expected some of {','.join(PARTS)}, but got {','.join(unknown)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = [] if parts == ["global"] else open_runs(options.runs)
    device = platform.processor() or platform.machine()
    about = environment(f"cpu ({device}), one thread a process")
    print(", ".join(f"{k} {v}" for k, v in about["versions"].items()))
    print(f"seed {options.seed}, commit {about['git_commit']}, {about['device']}", flush=True)
    given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    given["runs"] = [run.path.name for run in runs]
    result: dict[str, Any] = {"options": given, "environment": about}
    if "global" in parts:
        result["global"] = everywhere(options.images, options.rounds)
        show("global constant, untrained, CPU s", result["global"])
    for run in runs if parts != ["global"] else []:
        attacked = parts != ["speed"]
        subject = prepare(run, options.samples, options.seed, attacked)
        print(f"\n{subject.name}: {subject.tested} test samples, {len(subject.x)} accepted")
        done: dict[str, Any] = {"tested": subject.tested, "accepted": len(subject.x)}
        if "radii" in parts:
            done["radii"] = radii(subject, options.alpha_samples)
            show("radius, its share of the attack", done["radii"])
        if "speed" in parts:
            done["speed"] = speed(subject, options.baseline_samples, options.rounds)
            steps = done["speed"]["steps"]
            show(f"CPU s a sample; {steps} steps of bisection", done["speed"]["variants"])
        if "lipschitz" in parts:
            done["lipschitz"] = lipschitz(subject)
            show("Lipschitz radius", done["lipschitz"])
        if "estimates" in parts:
            done["estimates"] = estimates(subject, options.seed)
            show("estimates", done["estimates"])
        result[subject.name] = done
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
