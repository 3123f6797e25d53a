"""One chunk of samples under one run: certificates, and an attack on each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from greg_cert.config import VerifyConfig
from greg_cert.data import Images, ImageSet
from greg_cert.inference import logits_of
from greg_cert.verify.attack import AttackPlan, attack_within
from greg_cert.verify.certify import certify
from greg_cert.verify.norms import vector_norm
from greg_cert.verify.scorer import Margin, score_function

PROVEN = ("radius_certified", "radius_lipschitz")
"""Columns that hold proven radii; the largest of them in each row is attacked."""

SECONDS, CROSSED = "_seconds", "_crossed"
"""Columns of a shard that no table has: time spent, and where an attack crossed (inf: nowhere)."""

AUDIT_STEPS = 40
AUDIT_RESTARTS = 3
_AUDIT_BATCH = 128


@dataclass(frozen=True)
class Harder:
    """An attack inside the proven ball, harder than the one that every certificate goes through.

    Attributes:
        steps: gradient steps of one PGD run.
        restarts: starts, the first of them at the centre.
        seed: added to that of the settings.
    """

    steps: int = 5 * AUDIT_STEPS
    restarts: int = 4 * AUDIT_RESTARTS
    seed: int = 7919

    @property
    def kind(self) -> str:
        """Name of its shards."""
        return f"audit-{self.steps}x{self.restarts}-{self.seed}"


def certify_chunk(
    model: nn.Module,
    images: Images,
    indices: Tensor,
    threshold: float,
    side: str,
    settings: VerifyConfig,
) -> pd.DataFrame:
    """A row for each sample: certificate, prediction, and whether an attack contradicts it.

    `label` is −1 and `correct` False on the side `ood`, where labels are of other classes.
    """
    start = time.perf_counter()
    pixels = images.pixels(indices)
    known = images.labels[indices] if side == "id" and images.labels is not None else None
    options: dict[str, object] = {}
    if settings.memory is not None:
        options["memory"] = settings.memory
    if settings.correct and known is not None:
        options["labels"] = known
    certificates = certify(
        model,
        pixels,
        threshold,
        side=side,
        norm=settings.norm_value,
        max_radius=settings.max_radius,
        method=settings.method,  # type: ignore[arg-type]  # several names: as certify takes them
        engine=settings.engine,
        seed=settings.seed,
        lipschitz=True,
        **options,
    )
    frame = certificates.to_frame()
    predicted = logits_of(model, ImageSet(images.name, pixels)).argmax(1)
    labels = torch.full_like(predicted, -1) if known is None else known
    frame.insert(0, "index", indices.numpy())
    frame.insert(1, "label", labels.numpy())
    frame.insert(2, "predicted", predicted.numpy())
    frame.insert(3, "correct", (labels == predicted).numpy())
    frame["threshold"] = threshold
    crossed = attack_rows(model, pixels, frame, side, settings)
    frame["violation"] = np.isfinite(crossed)
    frame[CROSSED] = crossed
    frame[SECONDS] = (time.perf_counter() - start) / len(frame)
    return frame


def audit_chunk(
    model: nn.Module,
    images: Images,
    rows: pd.DataFrame,
    side: str,
    settings: VerifyConfig,
    harder: Harder,
) -> pd.DataFrame:
    """For each of the rows of certificates where a harder attack crossed inside it, or inf."""
    pixels = images.pixels(torch.tensor(rows["index"].tolist()))
    crossed = attack_rows(model, pixels, rows, side, settings, harder)
    return pd.DataFrame({"index": rows["index"].to_numpy(), CROSSED: crossed})


def proven_radius(rows: pd.DataFrame) -> np.ndarray:
    """The largest proven radius (n,) of each row; 0 where nothing is proven."""
    columns = np.stack([rows[name].to_numpy(dtype=float) for name in PROVEN])
    largest: np.ndarray = np.where(np.isnan(columns), 0.0, columns).max(0)
    return largest


def attack_rows(
    model: nn.Module,
    pixels: Tensor,
    rows: pd.DataFrame,
    side: str,
    settings: VerifyConfig,
    harder: Harder | None = None,
) -> np.ndarray:
    """Distance (n,) at which an attack crossed γ inside each row's proven ball; inf where none did.

    Without `harder`, the row's own `radius_attack` counts as well.
    """
    radius = proven_radius(rows)
    crossed = np.full(len(rows), np.inf)
    if harder is None:
        attacked = rows["radius_attack"].to_numpy(dtype=float)
        crossed = np.where((radius > 0) & (attacked <= radius), attacked, np.inf)
    plan = AttackPlan(
        Margin(float(rows["threshold"].iloc[0]), side),
        settings.norm_value,
        settings.seed + (harder.seed if harder else 0),
        harder.steps if harder else AUDIT_STEPS,
        restarts=harder.restarts if harder else AUDIT_RESTARTS,
    )
    score = score_function(model)
    claimed = torch.from_numpy(np.flatnonzero(radius > 0))
    for members in claimed.split(_AUDIT_BATCH) if len(claimed) else ():
        balls = torch.from_numpy(radius[members.numpy()])
        hit, delta = attack_within(score, pixels[members].double(), balls, plan)
        found = torch.where(hit, vector_norm(delta, settings.norm_value), torch.inf).numpy()
        crossed[members.numpy()] = np.minimum(crossed[members.numpy()], found)
    return crossed
