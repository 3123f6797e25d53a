"""Time of `sdp-crown` on a ResNet-18 against its neurons and against a pass of the network.

Run: python benchmarks/verify_widths.py [--widths 4,8,16,32] [--plot docs/images/verify_widths.png]
Images are uniform noise of 32×32. Weights are random, scaled so that every convolution with its
BatchNorm has norm 1, the second of each block 0.3, as a Lipschitz penalty makes them; the threshold
lies half of a median slope above each sample's own score. CPU seconds of one thread, without what
is done once a model, which is shown beside them; a pass is forward and backward in float64.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from verify_images import pass_seconds

from greg_cert.models import Classifier
from greg_cert.models.resnet import BasicBlock, resnet18_body
from greg_cert.runs.records import environment
from greg_cert.scores import energy
from greg_cert.verify import gradient_norm
from greg_cert.verify.certify import PreparedCertify
from greg_cert.verify.graph.ops import Conv
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.lipschitz import norm_from_below
from greg_cert.verify.options import read_options

SHAPE = (3, 32, 32)
GAP, BRANCH = 0.5, 0.3


def network(width: int) -> nn.Module:
    """ResNet-18 with random weights and tame norms, in float64."""
    torch.manual_seed(0)
    body = resnet18_body(3, width=width)
    model = Classifier(
        body.module, body.num_features, num_classes=10, mean=(0.5,) * 3, std=(0.3,) * 3
    ).double()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # running statistics of what follows
    with torch.no_grad():
        model.train()(torch.rand(32, *SHAPE).double())
    model.eval()
    images: dict[nn.Module, torch.Size] = {}
    hooks = [
        m.register_forward_pre_hook(lambda m, args: images.update({m: args[0].shape[1:]}))
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    model(torch.rand(1, *SHAPE).double())
    for hook in hooks:
        hook.remove()
    pairs = [(body.module[0], body.module[1], 1.0)]
    for block in body.module:
        if isinstance(block, BasicBlock):
            pairs += [(block.conv1, block.bn1, 1.0), (block.conv2, block.bn2, BRANCH)]
            if isinstance(block.shortcut, nn.Sequential):
                pairs.append((block.shortcut[0], block.shortcut[1], 1.0))
    with torch.no_grad():
        for conv, norm, target in pairs:
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = conv.weight * factor.reshape(-1, 1, 1, 1)
            bias, shape = torch.zeros_like(factor), tuple(images[conv])
            norm.weight *= target / norm_from_below(
                Conv(weight, bias, shape, conv.stride, conv.padding)
            )
    return model


def measure(width: int, samples: int) -> dict[str, Any]:
    """One network."""
    model = network(width)
    x = torch.rand(samples, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    gap = GAP * float(gradient_norm(model, x).median())
    with torch.no_grad():
        threshold = float(energy(model(x)).max()) + gap
    graph = trace_model(model, SHAPE)
    options = read_options("sdp-crown", max_radius=3.0, attack=False, lipschitz=False)
    begun = time.process_time()
    prepared = PreparedCertify(model, SHAPE, threshold, options)
    once = time.process_time() - begun
    begun = time.process_time()
    found = prepared(x)
    seconds = (time.process_time() - begun) / samples
    one = pass_seconds(model, x)
    return {
        "width": width,
        "neurons": sum(math.prod(graph.nodes[i].shape) for i in graph.activations),
        "pass_seconds": one,
        "seconds": seconds,
        "passes": seconds / one,
        "once_seconds": once,
        "radius": float(found.radius_certified.median()),
        "positive": int((found.radius_certified > 0).sum()),
    }


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Seconds against neurons, and against a pass."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.75, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    seconds = [r["seconds"] for r in rows]
    milliseconds = [1000 * r["pass_seconds"] for r in rows]
    slope, begin = np.polyfit(milliseconds, seconds, 1)
    for axis, at in ((left, [r["neurons"] / 1000 for r in rows]), (right, milliseconds)):
        axis.plot(at, seconds, "o-", color="#0072B2")
        for row, x in zip(rows, at, strict=True):
            place = (x, row["seconds"])
            axis.annotate(
                f"width {row['width']}", place, (5, -10), textcoords="offset points", fontsize=7
            )
        axis.set_ylim(0, 1.15 * max(seconds))
        axis.set_xlim(0, 1.25 * max(at))
    ends = [0, max(milliseconds)]
    label = f"{begin:.0f} s + {1000 * slope:.0f} passes"
    line = [begin + slope * x for x in ends]
    right.plot(ends, line, ":", color="#555555", label=label)
    left.set_xlabel("neurons, thousands")
    left.set_ylabel("CPU s a sample, sdp-crown")
    right.set_xlabel("CPU ms of a forward and backward pass")
    right.legend(fontsize=8, loc="lower right")
    for axis in (left, right):
        axis.grid(True, which="major", alpha=0.3, linewidth=0.5)
        axis.tick_params(labelsize=8)
    figure.savefig(file, dpi=160, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--widths", default="4,8,16,32")
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--from-json", type=Path, help="draw what such a file holds instead")
    given = parser.parse_args()
    if given.from_json:
        plot(json.loads(given.from_json.read_text(encoding="utf-8"))["rows"], given.plot)
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for width in map(int, given.widths.split(",")):
        rows.append(measure(width, given.samples))
        print({k: float(f"{v:.4g}") for k, v in rows[-1].items()}, flush=True)
    if given.json:
        record = {"environment": environment("cpu, one thread"), "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
