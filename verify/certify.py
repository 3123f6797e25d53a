"""Certified radii: how far each sample can move before its OOD decision may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from greg_cert.certificates.methods import PROOFS
from greg_cert.errors import UsageError
from greg_cert.runs.inference import device_of
from greg_cert.scores import SCORES
from greg_cert.verify.certificates import Certificates, join
from greg_cert.verify.certifier import Certifier
from greg_cert.verify.graph.sizes import fitting_batch
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.memory import in_chunks
from greg_cert.verify.options import OF_A_CALL, CertifyOptions, Progress, read_options
from greg_cert.verify.scorer import Margin, check_inputs


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
    **options: Any,
) -> Certificates:
    """Prove, for each sample, a radius within which its decision at `threshold` cannot change.

    Balls are not clipped to [0, 1]; bounds and attacks run in float64 on the model in eval mode, on
    the device where the model is; so are the results.

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
        **options: fields of `CertifyOptions` and of the methods' settings; `labels`, (B,) classes:
            certificates then say that a sample stays accepted **and** correctly classified, side
            `id` alone; `indices`, (B,) names of the samples, which their random draws depend on,
            positions by default; `progress`, called after every batch.

    Warns:
        ContradictionWarning: where an attack contradicts a certificate, which is a bug; the row has
            the status `contradicted` then, and no radius.

    Raises:
        UsageError: for a value out of range or an unknown option.
        UnsupportedModelError: for a layer that cannot be bounded soundly; names it. Not where
            `smoothing` is all that is asked for.
    """
    x = check_inputs(inputs)
    given = {"side": side, "norm": norm, "max_radius": max_radius, "engine": engine, **options}
    of_call = {name: given.pop(name, None) for name in OF_A_CALL}
    prepared = PreparedCertify(model, tuple(x.shape[1:]), threshold, read_options(method, **given))
    found = prepared(x, **of_call)
    found.warn()
    return found


class PreparedCertify:
    """`certify` of one model, called a batch at a time: graph, engines and norms are made once.

    Arguments and errors as of `certify`; samples, their labels, names and progress come with each
    call. `graph` is what bounds are about, None where only `smoothing` is asked for.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],
        threshold: float,
        options: CertifyOptions,
    ) -> None:
        self._options = options
        Margin(float(threshold), options.side)  # what is wrong with them is said first
        self.device = device_of(model)
        self.graph = None
        if any(m in PROOFS for m in options.methods):
            self.graph = trace_model(model, input_shape)
        self.certifier = Certifier(model, self.graph, float(threshold), options)

    @torch.inference_mode(False)
    def __call__(
        self,
        inputs: Tensor,
        *,
        labels: Tensor | None = None,
        indices: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Certificates:
        """Certificates of a batch, on the device of the model; no warning where one is refuted."""
        x = check_inputs(inputs).to(self.device)
        labels = _check_rows("labels", labels, x)
        if labels is not None:
            if self._options.side != "id":
                raise UsageError(
                    "expected side 'id' beside labels, but got 'ood': OOD samples have none"
                )
            self.certifier.check_labels(labels, x[:1])
        names = _check_rows("indices", indices, x)
        names = torch.arange(len(x), device="cpu") if names is None else names.cpu()
        options, batch = self._options, self._options.batch
        if self.graph is not None:
            wide = SCORES[options.score].relative or options.side == "ood"
            rows = self.graph.num_classes if wide else 1
            batch = fitting_batch(self.graph, batch, options.memory_bytes, rows)
        if progress is not None:
            progress(0, len(x))

        def part(rows: slice) -> Certificates:
            return self.certifier(x[rows], names[rows], None if labels is None else labels[rows])

        parts: list[Certificates] = []
        for found in in_chunks(part, len(x), batch):
            parts.append(found)
            if progress is not None:
                progress(sum(map(len, parts)), len(x))
        return join(parts)


def _check_rows(name: str, values: Tensor | None, x: Tensor) -> Tensor | None:
    if values is None:
        return None
    values = torch.as_tensor(values, device=None if isinstance(values, Tensor) else x.device)
    if values.shape != (len(x),) or values.is_floating_point() or values.dtype == torch.bool:
        raise UsageError(
            f"expected {name} of {len(x)} integers, but got {tuple(values.shape)} of {values.dtype}"
        )
    return values.long()
