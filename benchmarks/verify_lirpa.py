"""One CROWN pass with all intermediate bounds: our time and peak memory beside auto_LiRPA's.

Run: python benchmarks/verify_lirpa.py --lirpa CHECKOUT [--networks FOLDER] [--method crown]
CHECKOUT is a folder that holds the package `auto_LiRPA` (0.7.1 was measured; it imports graphviz);
without one only our figures are printed. FOLDER holds weights of the verification community's
example networks, as safetensors (names below); without it they are random. Inputs are noise.
Every figure is of a process of its own with one thread: the least CPU time of some calls after a
first one, and the peak of resident memory over what there was before. Both sides bound all logits
from below and above in ℓ2 balls; the bounds are compared in their mean width.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.trace import trace_model

# Channels, padding, features behind the convolutions, and the radius of the balls.
NETWORKS: dict[str, tuple[int, int, int, float]] = {
    "mnist_cnn_a_adv": (1, 1, 1568, 0.3),
    "mnist_conv_small_nat": (1, 0, 800, 0.5),
    "cifar_cnn_a_mix": (3, 1, 2048, 0.3),
}
BATCHES = (1, 8, 32)
REPEATS = 5
Bounds = tuple[Tensor, Tensor]


def network(name: str, folder: Path | None) -> nn.Sequential:
    """Two convolutions and two linear layers, with the weights of that name or random ones."""
    channels, padding, features, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, padding),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    if folder is not None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return model.eval()


def ours(model: nn.Module, x: Tensor, radius: float, method: str) -> Callable[[], Bounds]:
    """A call of our engine."""
    graph = trace_model(model, tuple(x.shape[1:])).to(x.dtype)
    eye = torch.eye(graph.num_classes, dtype=x.dtype).expand(len(x), -1, -1)

    def bounds() -> Bounds:
        relaxation = NativeEngine(graph).relax(x, x.new_full((len(x),), radius), 2.0, method)
        low, negative_high = relaxation.lower(torch.cat([eye, -eye], 1)).chunk(2, dim=1)
        return low, -negative_high

    return bounds


def theirs(model: nn.Module, x: Tensor, radius: float, method: str) -> Callable[[], Bounds]:
    """A call of auto_LiRPA."""
    from auto_LiRPA import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        BoundedModule,
        BoundedTensor,
        PerturbationLpNorm,
    )

    module = BoundedModule(model, x[:1], bound_opts={"conv_mode": "patches"}, verbose=False)

    def bounds() -> Bounds:
        centre = BoundedTensor(x, PerturbationLpNorm(norm=2.0, eps=radius))
        with torch.no_grad():
            low, high = module.compute_bounds(x=(centre,), method=method.upper())
        return low, high

    return bounds


def peak_resident() -> int:
    """High-water mark of resident memory in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (s for s in status.splitlines() if s.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def measure(point: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds, bytes of the peak, and the mean width of the bounds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    folder = None if point["networks"] is None else Path(point["networks"])
    dtype = getattr(torch, point["dtype"])
    model = network(point["network"], folder).to(dtype)
    channels, _, _, radius = NETWORKS[point["network"]]
    side = 28 if channels == 1 else 32
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(point["batch"], channels, side, side, generator=generator, dtype=dtype)
    make = ours
    if point["lirpa"] is not None:
        sys.path.insert(0, point["lirpa"])
        make = theirs
    call = make(model, x, radius, point["method"])
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    before, seconds = peak_resident(), []
    for _ in range(REPEATS):
        begun = time.process_time()
        low, high = call()
        seconds.append(time.process_time() - begun)
    peak = peak_resident() - before
    return {"seconds": min(seconds), "peak": peak, "width": float((high - low).mean())}


def in_process(point: dict[str, Any]) -> dict[str, Any]:
    """The point measured by a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--point", json.dumps(point)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit((done.stderr.strip().splitlines() or ["failed"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--lirpa", help="folder that holds the package auto_LiRPA")
    parser.add_argument("--networks", help="folder of weights; random ones where not given")
    parser.add_argument("--method", default="crown", choices=("crown", "crown-ibp"))
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point is not None:
        print(json.dumps(measure(json.loads(given.point))))
        return
    for name in NETWORKS:
        for dtype in ("float32", "float64"):
            for batch in given.batches:
                point = {"network": name, "dtype": dtype, "batch": batch, "method": given.method}
                point |= {"networks": given.networks, "lirpa": None}
                own = in_process(point)
                line = f"{name:>22} {dtype} batch {batch:>3}: {_shown(own)}"
                if given.lirpa is not None:
                    other = in_process({**point, "lirpa": given.lirpa})
                    ratios = {k: own[k] / other[k] for k in ("seconds", "width")}
                    line += f"; auto_LiRPA {_shown(other)}; times {ratios['seconds']:.2f}"
                    line += f", width {ratios['width']:.6f}"
                print(line, flush=True)


def _shown(found: dict[str, Any]) -> str:
    return f"{found['seconds']:.3f} s, {found['peak'] / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
