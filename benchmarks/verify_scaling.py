"""Time and peak memory of certify against the batch and against the size of the network.

Run: python benchmarks/verify_scaling.py [--run RUNS/greg+] [--plot docs/images/verify_scaling.png]
Every point is a process of its own with one thread. Its memory is the peak of resident memory over
what there was once all was imported and the model built; its time is CPU time, of a second call
where the first took less than 4 s. The batch series uses a run trained on the bundled digits, or,
without --run, random weights; all other networks have random weights, images of uniform noise, and
a threshold 0.05 of a median slope above the highest score.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from greg_cert.models import Classifier
from greg_cert.models.resnet import BasicBlock
from greg_cert.models.small import cnn_small_body, mlp_body
from greg_cert.runs.records import RunFolder, environment
from greg_cert.verify import certify, gradient_norm
from greg_cert.verify.graph.trace import trace_model

METHODS: dict[str, dict[str, Any]] = {
    "crown": {},
    "crown, no cuts": {"cuts": 0},
    "crown-ibp": {"method": "crown-ibp"},
    "lipschitz": {"method": "lipschitz"},
    "crown, one ball": {"cuts": 0, "rounds": 1, "mirror_steps": 0},
}
BATCH_METHODS = ("crown", "crown, no cuts", "crown-ibp", "lipschitz")
BATCHES = (1, 4, 16, 64, 256)
LEAST = 8  # samples of a batch point, so that small batches are repeated
NETWORKS: dict[str, tuple[int, ...]] = {
    "mlp, 8x8": (64, 256, 1024),
    "cnn_small, 8x8": (4, 16, 64),
    "cnn_small, 32x32x3": (4, 8, 16),
    "resnet-8, 32x32x3": (4, 8, 16),
}
SMALL_METHODS = ("crown", "crown-ibp")
RESNET_METHODS = ("crown-ibp", "crown, one ball")  # a whole search of crown takes minutes
NETWORK_BATCH = 2
LONG = 4.0  # seconds, after which a call is not repeated
SLOPES = 0.05
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D")


def resnet8(width: int) -> tuple[nn.Module, int]:
    """Stem and three basic blocks (width, 2×, 2×): seven 3×3 convolutions, average pool."""
    body = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        BasicBlock(width, width, 1),
        BasicBlock(width, 2 * width, 2),
        BasicBlock(2 * width, 2 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return body, 2 * width


def network(name: str, width: int) -> tuple[Classifier, tuple[int, ...]]:
    """A network with random weights in evaluation mode, and the shape of its images."""
    torch.manual_seed(0)
    kind, _, size = name.partition(", ")
    shape = (3, 32, 32) if size.startswith("32") else (1, 8, 8)
    if kind == "resnet-8":
        body, features = resnet8(width)
    else:
        make = mlp_body if kind == "mlp" else cnn_small_body
        body, features, _ = make(shape[0], shape[1], width)
    model = Classifier(body, features, num_classes=10, mean=[0.5] * shape[0], std=[0.3] * shape[0])
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in norms:
        module.momentum = None  # running statistics of what follows
    with torch.no_grad():
        model.train()(torch.rand(64, *shape))
    return model.eval(), shape


def problem(point: dict[str, Any]) -> tuple[nn.Module, Tensor, float]:
    """Model, inputs and threshold of a point."""
    if point.get("run"):
        from greg_cert.evaluation import evaluate_model
        from greg_cert.runs.subjects import common_data

        run = RunFolder(Path(point["run"]))
        splits = common_data([run])
        model = run.load_model()
        x = splits.test.pixels(torch.arange(point["samples"]))
        return model, x, evaluate_model(model, splits).threshold
    model, shape = network(point["network"], point["width"])
    x = torch.rand(point["samples"], *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        highest = float(-model(x).logsumexp(1).min())
    return model, x, highest + SLOPES * float(gradient_norm(model, x).median())


def peak_resident() -> int:
    """High-water mark of resident memory in bytes; ru_maxrss would begin with the parent's."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def measure(point: dict[str, Any]) -> dict[str, Any]:
    """Neurons, CPU seconds a sample, bytes of the peak, and the median radius."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, x, threshold = problem(point)
    graph = trace_model(model, tuple(x.shape[1:]))
    neurons = sum(math.prod(graph.nodes[i].shape) for i in graph.activations)
    options = {"method": "crown", **METHODS[point["method"]]}
    options |= {"lipschitz": False, "attack": False, "batch": point["batch"]}
    ctypes.CDLL(None).malloc_trim(0)  # what loading has freed would hide what is taken next
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again
    before, seconds, found, peak = peak_resident(), [], None, 0
    for _ in range(2):
        begun = time.process_time()
        found = certify(model, x, threshold, **options)
        seconds.append(time.process_time() - begun)
        peak = peak or peak_resident() - before  # of the first call
        if seconds[-1] > LONG:
            break
    assert found is not None
    return {
        **point,
        "neurons": neurons,
        "seconds": seconds[-1] / len(x),
        "peak_bytes": peak,
        "radius": float(found.radius_certified.median()),
        "certified": int((found.radius_certified > 0).sum()),
    }


def points(run: Path | None) -> list[dict[str, Any]]:
    """All points: the batch series, then the networks."""
    small = {"network": "cnn_small, 8x8", "width": 16, "run": None if run is None else str(run)}
    found = [
        {**small, "series": "batch", "method": m, "batch": b, "samples": max(b, LEAST)}
        for m in BATCH_METHODS
        for b in BATCHES
    ]
    common = {"series": "network", "batch": NETWORK_BATCH, "samples": NETWORK_BATCH}
    for name, widths in NETWORKS.items():
        for width in widths:
            for method in RESNET_METHODS if name.startswith("resnet") else SMALL_METHODS:
                found.append({**common, "network": name, "width": width, "method": method})
    return found


def in_process(point: dict[str, Any], limit: float) -> dict[str, Any]:
    """The point measured by a fresh process; with `error` where that fails or takes too long."""
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {**point, "error": f"more than {limit:g} s"}
    except subprocess.CalledProcessError as error:
        return {**point, "error": (error.stderr.strip().splitlines() or ["failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Two rows (time, memory) by two columns (batch, network)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(6.75, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex="col")
    rows = [r for r in rows if "error" not in r]
    for i, method in enumerate(BATCH_METHODS):
        mine = [r for r in rows if r["series"] == "batch" and r["method"] == method]
        style: dict[str, Any] = {"color": COLOURS[i], "marker": MARKERS[i], "label": method}
        _draw(axes[:, 0], "batch", mine, style)
    for i, name in enumerate(NETWORKS):
        for method, line in (("crown", "-"), ("crown, one ball", "--"), ("crown-ibp", ":")):
            mine = [r for r in rows if r["series"] == "network" and r["network"] == name]
            mine = [r for r in mine if r["method"] == method]
            style = {"color": COLOURS[i], "marker": MARKERS[i], "linestyle": line}
            style["label"] = name if method == "crown-ibp" else None
            _draw(axes[:, 1], "neurons", mine, style)
    for ax in axes[0]:
        ax.set_ylabel("CPU s a sample")
    for ax in axes[1]:
        ax.set_ylabel("peak memory, MiB")
    axes[0, 0].set_title("cnn_small on 8x8 digits", fontsize=9)
    axes[0, 1].set_title(f"batch {NETWORK_BATCH}: — crown, - - one ball, ··· crown-ibp", fontsize=9)
    axes[1, 0].set_xlabel("samples a batch")
    axes[1, 0].set_xscale("log", base=2)
    axes[1, 0].set_xticks(BATCHES, [str(b) for b in BATCHES])
    axes[1, 1].set_xlabel("ReLU neurons")
    for ax in axes.flat:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(True, which="major", alpha=0.3, linewidth=0.5)
        ax.tick_params(labelsize=8)
    axes[0, 0].legend(fontsize=7.5)
    axes[0, 1].legend(fontsize=7.5)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=160, metadata={"Software": None})


def _draw(column: Any, key: str, rows: list[dict[str, Any]], style: dict[str, Any]) -> None:
    rows = sorted(rows, key=lambda r: r[key])
    x = [r[key] for r in rows]
    common = {"linewidth": 1.3, "markersize": 4, **style}
    column[0].loglog(x, [r["seconds"] for r in rows], **common)
    column[1].loglog(x, [max(r["peak_bytes"] / 2**20, 0.1) for r in rows], **common)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--run", type=Path, help="run folder trained on digits with cnn_small")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a point may take")
    parser.add_argument("--only", help="series: batch or network")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--from-json", type=Path, help="draw what such a file holds instead")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(json.loads(options.point))))
        return
    if options.from_json:
        rows = json.loads(options.from_json.read_text(encoding="utf-8"))["points"]
        plot(rows, options.plot)
        return
    about = environment(f"cpu ({platform.processor() or platform.machine()}), one thread")
    print(", ".join(f"{k} {v}" for k, v in about["versions"].items()))
    print(f"seed 0, commit {about['git_commit']}, {about['device']}")
    print(f"{'network':20s}{'width':>6s}{'neurons':>9s}  {'method':16s}{'batch':>6s}", end="")
    print(f"{'CPU s a sample':>16s}{'peak MiB':>10s}{'radius':>9s}", flush=True)
    rows = []
    for point in points(options.run):
        if options.only not in (None, point["series"]):
            continue
        row = in_process(point, options.limit)
        rows.append(row)
        start = f"{row['network']:20s}{row['width']:6d}"
        if "error" in row:
            print(f"{start}{'':9s}  {row['method']:16s}{row['batch']:6d}  {row['error']}")
            continue
        print(f"{start}{row['neurons']:9d}  {row['method']:16s}{row['batch']:6d}", end="")
        mib = row["peak_bytes"] / 2**20
        print(f"{row['seconds']:16.4f}{mib:10.1f}{row['radius']:9.3g}", flush=True)
    if options.json:
        for row in rows:
            row.pop("run", None)
        result = {"environment": about, "points": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
