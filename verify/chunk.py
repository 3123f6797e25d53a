"""One chunk of samples under one run: certificates, and an attack on each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from greg_cert.config import VerifyConfig
from greg_cert.data import Images, ImageSet
from greg_cert.inference import logits_of
from greg_cert.verify.asked import asked
from greg_cert.verify.attack import AttackPlan, attack_within
from greg_cert.verify.certify import certify
from greg_cert.verify.norms import vector_norm
from greg_cert.verify.score_bounds import attacked_scores, score_bound
from greg_cert.verify.scorer import (
    Margin,
    ScoreFunction,
    class_margin,
    logit_function,
    score_function,
)

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
    score: str = "energy",
) -> pd.DataFrame:
    """A row for each sample: certificate, prediction, and whether an attack contradicts it.

    `label` is −1 and `correct` False on the side `ood`, where labels are of other classes; there
    rows also have the bounds and attacks of their scores at `settings.auc_radii`.
    """
    start = time.perf_counter()
    pixels = images.pixels(indices)
    known = images.labels[indices] if side == "id" and images.labels is not None else None
    certificates = certify(
        model,
        pixels,
        threshold,
        side=side,
        score=score,
        labels=known if settings.correct else None,
        indices=indices,
        **asked(settings),
    )
    frame = certificates.to_frame()
    logits = logits_of(model, ImageSet(images.name, pixels))
    predicted = (logits[:, :-1] if score == "absent_class" else logits).argmax(1)
    labels = torch.full_like(predicted, -1) if known is None else known
    frame.insert(0, "index", indices.numpy())
    frame.insert(1, "label", labels.numpy())
    frame.insert(2, "predicted", predicted.numpy())
    frame.insert(3, "correct", (labels == predicted).numpy())
    frame["threshold"] = threshold
    if side == "ood":
        frame = frame.join(_scores_in_balls(model, pixels, indices, threshold, settings, score))
    crossed = attack_rows(model, pixels, frame, side, settings, score)
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
    score: str = "energy",
) -> pd.DataFrame:
    """For each of the rows of certificates where a harder attack crossed inside it, or inf."""
    pixels = images.pixels(torch.tensor(rows["index"].tolist()))
    crossed = attack_rows(model, pixels, rows, side, settings, score, harder)
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
    score: str = "energy",
    harder: Harder | None = None,
) -> np.ndarray:
    """Distance (n,) at which an attack crossed γ inside each row's proven ball; inf where none did.

    Without `harder`, the row's own `radius_attack` counts as well. Where certificates are of the
    class too, so are the attacks.
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
    value, logits = score_function(model, score), logit_function(model)
    names, labels = (torch.tensor(rows[c].tolist()) for c in ("index", "label"))
    claimed = torch.from_numpy(np.flatnonzero(radius > 0))
    for members in claimed.split(_AUDIT_BATCH) if len(claimed) else ():
        _attack_members(value, pixels, members, radius, crossed, plan, names)
    if settings.correct and side == "id":
        wrong_class = replace(plan, margin=Margin(0.0, "id"))
        for label in labels[claimed].unique():
            members = claimed[labels[claimed] == label]

            def margin(x: Tensor, label: Tensor = label) -> Tensor:
                return class_margin(logits(x), label.expand(len(x)), score)

            _attack_members(margin, pixels, members, radius, crossed, wrong_class, names)
    return crossed


def _attack_members(
    value: ScoreFunction,
    pixels: Tensor,
    members: Tensor,
    radius: np.ndarray,
    crossed: np.ndarray,
    plan: AttackPlan,
    names: Tensor,
) -> None:
    """Attack some rows inside their proven balls, and note in `crossed` where it succeeded."""
    rows = members.numpy()
    balls = torch.from_numpy(radius[rows])
    hit, delta = attack_within(value, pixels[members].double(), balls, plan, names[members])
    found = torch.where(hit, vector_norm(delta, plan.norm), torch.inf).numpy()
    crossed[rows] = np.minimum(crossed[rows], found)


def score_columns(radius: float) -> tuple[str, str]:
    """The columns of a shard with the proven and the attacked least score at a radius."""
    return f"_score_bound_{radius:g}", f"_score_attack_{radius:g}"


def _scores_in_balls(
    model: nn.Module,
    pixels: Tensor,
    indices: Tensor,
    threshold: float,
    settings: VerifyConfig,
    score: str,
) -> pd.DataFrame:
    """Proven and attacked least scores of OOD samples in balls of `settings.auc_radii`."""
    plan = AttackPlan(Margin(threshold, "ood"), settings.norm_value, settings.seed, AUDIT_STEPS)
    columns = {}
    for radius in settings.auc_radii:
        bound = score_bound(
            model,
            pixels,
            radius,
            norm=settings.norm_value,
            score=score,
            engine=settings.engine,
            memory=settings.memory,
        )
        balls = torch.full_like(bound, radius)
        value = score_function(model, score)
        attacked = attacked_scores(value, pixels.double(), balls, plan, indices)
        proven, found = score_columns(radius)
        columns[proven], columns[found] = bound.numpy(), attacked.numpy()
    return pd.DataFrame(columns, index=range(len(pixels)))
