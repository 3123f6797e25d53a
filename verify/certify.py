"""Certified radii: how far each sample can move before its OOD decision may change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from greg_cert.certify_methods import PROOFS, chosen_methods
from greg_cert.errors import UsageError
from greg_cert.verify.certificates import Certificates, join
from greg_cert.verify.certifier import Certifier
from greg_cert.verify.memory import fitting_batch, in_chunks
from greg_cert.verify.norms import check_norm, check_radius
from greg_cert.verify.options import read_options
from greg_cert.verify.scorer import (
    Margin,
    check_inputs,
)
from greg_cert.verify.trace import trace_model


@torch.inference_mode(False)
def certify(
    model: nn.Module,
    inputs: Tensor,
    threshold: float,
    *,
    side: str = "id",
    norm: float = 2.0,
    max_radius: float = 1.0,
    method: str | Sequence[str] = "crown",
    engine: str = "auto",
    **options: object,
) -> Certificates:
    """Prove, for each sample, a radius within which its decision at `threshold` cannot change.

    Balls are not clipped to [0, 1]; bounds and attacks run in float64 on the model in eval mode.

    Args:
        model: raw images (B, C, H, W) to logits (B, K).
        inputs: (B, C, H, W) raw pixels.
        threshold: γ from calibration data; accepted as ID iff S(x) ≤ γ.
        side: `id` proves that accepted samples stay accepted, `ood` that rejected ones stay so.
        norm: 2 or inf.
        max_radius: radii are capped here, > 0.
        method: one, or several in a list or separated by commas; `radius_certified` is the largest
            of the proofs among them. `crown`: linear bounds with CROWN bounds of the layers
            between; `crown-ibp`: with interval ones; `alpha-crown`: with slopes that are optimised;
            `branch`: CROWN, with balls split by the signs of neurons, slow and tight;
            `sdp-crown`: bounds that know an ℓ2 ball, the tightest at image size;
            `lipschitz`: the paper's ε* with a proven L_S; `best`: a ladder of these, the cheapest
            first, until `until_share`, `budget` or `seconds_per_sample` ends it.
            `smoothing` is a probabilistic proof about another, smoothed detector, and
            `clever` an estimate: they have columns of their own and prove nothing here.
        engine: whose bounds prove the radii: `native`, `auto-lirpa`, or `auto`, which is native.
            Where to look for them is always found by the native engine.
        **options: fields of `CertifyOptions`.

    Warns:
        ContradictionWarning: where an attack contradicts a certificate, which is a bug; the row has
            the status `contradicted` then, and no radius.

    Raises:
        UsageError: for a value out of range or an unknown option.
        UnsupportedModelError: for a layer that cannot be bounded soundly; names it. Not where
            `smoothing` is all that is asked for.
    """
    x = check_inputs(inputs)
    margin = Margin(float(threshold), side)
    check_norm(norm)
    check_radius("max_radius", max_radius)
    methods = chosen_methods(method)
    chosen = read_options(options)
    labels = _check_rows("labels", chosen.labels, x)
    if labels is not None and side != "id":
        raise UsageError("expected side 'id' beside labels, but got 'ood': OOD samples have none")
    names = _check_rows("indices", chosen.indices, x)
    names = torch.arange(len(x)) if names is None else names
    graph = None
    if any(m in PROOFS for m in methods):
        graph = trace_model(model, tuple(x.shape[1:]))
    certifier = Certifier(model, graph, engine, margin, norm, max_radius, methods, chosen)
    if labels is not None:
        certifier.check_labels(labels, x[:1])
    total, done = len(x), 0
    batch = chosen.batch
    if graph is not None:
        rows = graph.num_classes if chosen.score == "max_softmax" or side == "ood" else 1
        batch = fitting_batch(graph, batch, chosen.memory_bytes, rows)
    if chosen.progress is not None:
        chosen.progress(0, total)

    def part(rows: slice) -> Certificates:
        return certifier(x[rows], names[rows], None if labels is None else labels[rows])

    parts = []
    for found in in_chunks(part, total, batch):
        parts.append(found)
        done += len(found)
        if chosen.progress is not None:
            chosen.progress(done, total)
    found = join(parts)
    found.warn()
    return found


def _check_rows(name: str, values: Tensor | None, x: Tensor) -> Tensor | None:
    if values is None:
        return None
    values = torch.as_tensor(values)
    if values.shape != (len(x),) or values.is_floating_point() or values.dtype == torch.bool:
        raise UsageError(
            f"expected {name} of {len(x)} integers, but got {tuple(values.shape)} of {values.dtype}"
        )
    return values.long()
