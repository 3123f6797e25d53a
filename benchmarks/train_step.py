"""What a GReg training step costs, as multiples of an energy step in the same process.

Variants are timed in turn, round by round, and compared within each round, so that a machine that
slows down meanwhile slows all of them. The authors' formulation is that of their training script: a
first train-mode forward pass for the loss, and a second one inside
`torch.autograd.functional.jacobian`, differentiated twice, for the penalty. With BatchNorm in
training mode the penalty is computed on every sample, whatever the mask.

The lines named "plain" are a user's own loop: the model in PyTorch's default memory format, and of
this project nothing but `gradient_penalty`. They are compared with an energy step and with the
authors' formulation of that same model.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --model wrn40_2 --batch 64 --precision bf16 --compile
    python benchmarks/train_step.py --device cuda --model wrn40_2 --batch 64 --all-settings
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from greg_cert.models import build_model
from greg_cert.runs.records import environment
from greg_cert.scores import energy
from greg_cert.stages import StageConfig
from greg_cert.train.feed.batches import draw_shifts
from greg_cert.train.objective.lipschitz import lipschitz_penalty
from greg_cert.train.objective.penalty import Recording, gradient_penalty
from greg_cert.train.objective.step import Batch, Objective, Terms, compile_in_place
from greg_cert.train.outliers.choose import choose

M_IN, M_OUT = -25.0, -7.0
LAMBDA_SCORE, LAMBDA_GRAD = 0.1, 1.0
CANDIDATES = 6  # for each ID image
PLAIN = "plain: "
FOUR = "greg, penalty every 4th step (mean)"
BASES = ("energy", "authors' formulation")
Step = Callable[[], None]


class Bench:
    """One model, one batch, and the steps that can be taken with them."""

    def __init__(self, options: argparse.Namespace, channels_last: bool) -> None:
        self.device = torch.device(options.device)
        torch.manual_seed(0)
        k = options.batch
        self.model = build_model(
            options.model,
            num_classes=10,
            in_channels=3,
            image_size=options.size,
            mean=[0.5] * 3,
            std=[0.25] * 3,
        ).to(self.device)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.format).train()
        shape = (3, options.size, options.size)
        self.pool = torch.randint(256, (CANDIDATES * k, *shape), dtype=torch.uint8).to(self.device)
        self.known = torch.rand(k, *shape).to(self.device, memory_format=self.format)
        self.other = torch.rand(k, *shape).to(self.device, memory_format=self.format)
        self.labels = torch.randint(10, (k,), device=self.device)
        self.stage = StageConfig(method="greg+", epochs=1, lr=0.1, batch_size=k)
        self.bf16 = options.precision == "bf16"
        if options.compile:
            compile_in_place(self.model)
        self.objective = Objective(self.model, bf16=self.bf16)
        self.objective.lipschitz = lipschitz_penalty(self.model, shape)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=0.9, nesterov=True
        )
        self.generator = torch.Generator(self.device).manual_seed(0)

    def variants(self, compiled: bool) -> dict[str, Step]:
        """Steps by name, each with its `Terms`; double backward cannot be compiled."""
        steps: dict[str, Step] = {"energy": self.value_only}
        steps["energy, Lipschitz penalty"] = lambda: self.value_only(lambda_lipschitz=0.01)
        if not self.bf16:  # its rounding would drown the finite difference
            steps["greg, finite difference"] = lambda: self.ours(estimator="finite-difference")
        if not compiled:
            steps["greg, double backward"] = self.ours
            steps[FOUR] = self.lazy
            steps["greg+, sampling included"] = self.plus
            steps["one forward, PyTorch's double backward"] = self.plain_double_backward
            steps["authors' formulation"] = self.authors
        return steps

    def plain_variants(self) -> dict[str, Step]:
        """Steps of a loop of the user's own."""
        steps = {
            "energy": lambda: self._step(self._value_loss(self._images())[0]),
            "penalty on the pass of the loss": self.recorded,
            "loss on the pass of the penalty": self.kept,
            "penalty with a pass of its own": self.separate,
            "authors' formulation": self.authors,
        }
        return {PLAIN + name: step for name, step in steps.items()}

    def value_only(self, **terms: Any) -> None:
        self.ours(gradient=False, **terms)

    def lazy(self) -> None:
        """As with `penalty_every: 4`."""
        self.ours(lambda_grad=4 * LAMBDA_GRAD)
        for _ in range(3):
            self.value_only()

    def ours(self, **terms: Any) -> None:
        self._step(self._loss(Batch(self.known, self.labels, self.other, self.other), **terms))

    def plus(self) -> None:
        low, high = self.select(*self.look(self.candidates()))
        images = self.shifted
        self._step(self._loss(Batch(self.known, self.labels, images[low], images[high])))

    def candidates(self) -> Tensor:
        images = self.pool.float() / 255
        shifts = draw_shifts(len(images), images.shape[-1], self.generator, flip=True)
        self.shifted = shifts.apply(images).contiguous(memory_format=self.format)
        return self.shifted

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.model.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.model.features(images)
            logits = self.model.head(features)
        self.model.train()
        return features.float(), energy(logits.float())

    def select(self, features: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        return choose(self.stage, features, scores, self.stage.batch_size, generator=self.generator)

    def plain_double_backward(self) -> None:
        inputs = self._images().requires_grad_()
        loss, scores = self._value_loss(inputs)
        (slopes,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
        self._step(loss + self._masked_mean(scores, slopes))

    def recorded(self) -> None:
        inputs = self._images().requires_grad_()
        recording = Recording("double-backward")
        with recording.record():
            loss, scores = self._value_loss(inputs)
        self._step(loss + self._penalty(inputs, self._scores, scores=scores, recording=recording))

    def kept(self) -> None:
        losses = []

        def score(inputs: Tensor) -> Tensor:
            loss, scores = self._value_loss(inputs)
            losses.append(loss)
            return scores

        penalty = self._penalty(self._images(), score)
        self._step(losses[0] + penalty)

    def separate(self) -> None:
        inputs = self._images()
        loss, _ = self._value_loss(inputs)
        self._step(loss + self._penalty(inputs, self._scores))

    def authors(self) -> None:
        data = self._images()
        n = len(self.known)
        loss, _ = self._value_loss(data)

        def hinges(x: Tensor) -> Tensor:
            s = self._scores(x)
            return -F.relu(M_IN - s[:n]).mean() + F.relu(s[n:] - M_OUT).mean()

        slopes = torch.autograd.functional.jacobian(hinges, data, create_graph=True)
        assert isinstance(slopes, Tensor)
        self._step(loss + LAMBDA_GRAD * torch.linalg.vector_norm(slopes.flatten(1), dim=1).mean())

    def _loss(self, batch: Batch, **terms: Any) -> Tensor:
        usual = Terms("margin", True, LAMBDA_SCORE, LAMBDA_GRAD, m_in=M_IN, m_out=M_OUT)
        found: Tensor = self.objective(batch, replace(usual, **terms))["loss"]
        return found

    def _images(self) -> Tensor:
        return torch.cat([self.known, self.other])

    def _scores(self, inputs: Tensor) -> Tensor:
        return energy(self.objective.logits(inputs))

    def _penalty(self, inputs: Tensor, score: Callable[[Tensor], Tensor], **given: Any) -> Tensor:
        norms = gradient_penalty(score, inputs, estimator="double-backward", **given)
        return LAMBDA_GRAD * norms.mean()

    def _value_loss(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        logits, n = self.objective.logits(inputs), len(self.known)
        scores = energy(logits)
        value = (scores[:n] - M_IN).relu().square().mean()
        value = value + (M_OUT - scores[n:]).relu().square().mean()
        return F.cross_entropy(logits[:n], self.labels) + LAMBDA_SCORE * value, scores

    def _masked_mean(self, scores: Tensor, slopes: Tensor) -> Tensor:
        n = len(self.known)
        norms = torch.linalg.vector_norm(slopes.flatten(1), dim=1)
        good = torch.cat([scores[:n] <= M_IN, scores[n:] >= M_OUT])
        return LAMBDA_GRAD * (norms * good).sum() / n

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def timed(self, action: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        action()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_bytes(bench: Bench, step: Callable[[], None]) -> int:
    """Peak memory of tensors in one step, beyond what stood before it."""
    step()
    if bench.device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    events = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    live = peak = 0
    for event in events:  # each one is an allocation, or a negative one
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def breakdown(bench: Bench, rounds: int) -> dict[str, float]:
    """Seconds of each part of a GReg+ step, medians."""
    parts: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        seen: dict[str, float] = {}
        seen["shift candidates"] = bench.timed(bench.candidates)
        seen["features of candidates"] = bench.timed(lambda: bench.look(bench.shifted))
        looked = bench.look(bench.shifted)
        seen["k-means and ends"] = bench.timed(partial(bench.select, *looked))
        seen["energy step"] = bench.timed(bench.value_only)
        for name, value in seen.items():
            parts.setdefault(name, []).append(value)
    return {name: statistics.median(values[1:]) for name, values in parts.items()}


def masked(bench: Bench, rounds: int) -> dict[str, float]:
    """Finite-difference steps / energy step by the share of samples that are penalised, medians.

    Margins are set so that just those samples count; of use where no BatchNorm couples the batch.
    """
    with torch.no_grad():
        ordered = energy(bench.objective.logits(bench.known)).sort().values
    found: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        base = bench.timed(bench.value_only)
        for share in (0.0, 0.25, 0.5):
            correct = int(2 * share * len(ordered))  # ID samples alone: no outlier reaches m_out
            m_in = float(ordered[0]) - 1.0 if correct == 0 else float(ordered[correct - 1])
            step = partial(bench.ours, m_in=m_in, m_out=1e6, estimator="finite-difference")
            taken = bench.timed(step)
            found.setdefault(f"{share:.0%} penalised", []).append(taken / base)
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one precision, compiled or not."""
    bench = Bench(options, options.channels_last)
    variants = bench.variants(options.compile)
    if not options.compile:
        variants |= Bench(options, channels_last=False).plain_variants()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(options.rounds + 2):
        for name, step in variants.items():
            taken = bench.timed(step) / (4 if name == FOUR else 1)
            if i >= 2:
                seconds[name].append(taken)
    peak = {name: peak_bytes(bench, step) for name, step in variants.items()}
    rows = {}
    for name, values in seconds.items():
        kind = PLAIN if name.startswith(PLAIN) else ""
        rows[name] = {
            "seconds": statistics.median(values),
            "images_per_second": 2 * options.batch / statistics.median(values),
            "ratio": {
                base: statistics.median(
                    a / b for a, b in zip(values, seconds[kind + base], strict=True)
                )
                for base in BASES
                if kind + base in seconds
            },
            "peak_bytes": peak[name],
            "peak_ratio": peak[name] / peak[kind + "energy"],
        }
    coupled = any(isinstance(m, torch.nn.BatchNorm2d) for m in bench.model.modules())
    return {
        "precision": options.precision,
        "compile": options.compile,
        "variants": rows,
        "greg+ parts, seconds": {} if options.compile else breakdown(bench, options.rounds),
        "finite difference by share": {}
        if coupled or bench.bf16 or options.compile
        else masked(bench, options.rounds),
    }


def show(found: dict[str, Any]) -> None:
    """Print what `measure` found."""
    print(f"\nprecision {found['precision']}{', compiled' if found['compile'] else ''}")
    print(
        f"{'step':42s} {'ms':>8s} {'/energy':>8s} {'/authors':>9s} {'peak MB':>8s} {'/energy':>8s}"
    )
    for name, row in found["variants"].items():
        authors = row["ratio"].get("authors' formulation")
        print(
            f"{name:42s} {1e3 * row['seconds']:8.1f} {row['ratio']['energy']:8.2f} "
            f"{'' if authors is None else format(authors, '.2f'):>9s} "
            f"{row['peak_bytes'] / 1e6:8.1f} {row['peak_ratio']:8.2f}"
        )
    for name, value in found["greg+ parts, seconds"].items():
        print(f"  part of greg+: {name:27s} {1e3 * value:8.1f} ms")
    for name, value in found["finite difference by share"].items():
        print(f"  finite difference, {name:17s} {value:8.2f} energy steps")


def main() -> None:
    """Print the tables, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="wrn16_2")
    parser.add_argument("--batch", type=int, default=16, help="ID images; as many outliers")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--contiguous", dest="channels_last", action="store_false")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument(
        "--all-settings",
        action="store_true",
        help="both precisions, each as it is and compiled, one table after the other",
    )
    parser.add_argument("--json", help="file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = platform.processor() or platform.machine()
    if options.device != "cpu":
        device = torch.cuda.get_device_name(torch.device(options.device))
    images = f"{options.batch} + {options.batch} images"
    print(f"{options.model}, {images}, {device}, {options.rounds} rounds")
    settings = [(options.precision, options.compile)]
    if options.all_settings:
        settings = [(precision, way) for way in (False, True) for precision in ("32", "bf16")]
    found = []
    for options.precision, options.compile in settings:
        found.append(measure(options))
        show(found[-1])
    if options.json:
        kept = ("precision", "compile", "all_settings", "json")
        result = {
            "options": {k: v for k, v in vars(options).items() if k not in kept},
            "environment": environment(device),
            "settings": found,
        }
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
