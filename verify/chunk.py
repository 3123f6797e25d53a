"""One chunk of samples under one run: certificates, and an attack on each of them."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from greg_cert.certify_methods import PROOFS, chosen_methods
from greg_cert.config import VerifyConfig
from greg_cert.data import Images, ImageSet
from greg_cert.inference import logits_of
from greg_cert.verify.asked import asked
from greg_cert.verify.attack import AttackPlan
from greg_cert.verify.audit import RESTARTS, STEPS, Audit
from greg_cert.verify.certificates import CLAIMS, CONTRADICTED, ContradictionWarning
from greg_cert.verify.certify import certify
from greg_cert.verify.score_bounds import attacked_scores, score_bound
from greg_cert.verify.scorer import Margin, check_inputs, logit_function, score_function
from greg_cert.verify.trace import trace_model

PROVEN = ("radius_certified", "radius_lipschitz")
"""Columns that hold proven radii; the largest of them in each row is attacked."""

SECONDS, CROSSED = "_seconds", "_crossed"
"""Columns of a shard that no table has: time spent, and where an attack crossed (inf: nowhere)."""


@dataclass(frozen=True)
class Harder:
    """An attack inside the proven ball, harder than the one that every certificate goes through.

    Attributes:
        steps: gradient steps of one PGD run.
        restarts: starts, the first of them at the centre.
        seed: added to that of the settings.
    """

    steps: int = 5 * STEPS
    restarts: int = 4 * RESTARTS
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
    with warnings.catch_warnings():  # `violations` counts them, and the command ends with an error
        warnings.simplefilter("ignore", ContradictionWarning)
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
    frame["violation"] = frame["status"] == CONTRADICTED
    frame[CROSSED] = np.where(frame["violation"], frame["radius_attack"], np.inf)
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
    indices = torch.tensor(rows["index"].tolist())
    pixels = check_inputs(images.pixels(indices))
    labels = None
    if settings.correct and side == "id":
        labels = torch.tensor(rows["label"].tolist())
    bounds = any(method in PROOFS for method in chosen_methods(settings.method))
    audit = Audit(
        logit_function(model),
        trace_model(model, tuple(pixels.shape[1:])) if bounds else None,
        score,
        AttackPlan(
            Margin(float(rows["threshold"].iloc[0]), side),
            settings.norm_value,
            settings.seed + harder.seed,
            harder.steps,
            restarts=harder.restarts,
        ),
    )
    radii = torch.from_numpy(claimed_radius(rows))
    crossed = audit.crossings(pixels, radii, indices, labels).numpy()
    return pd.DataFrame({"index": rows["index"].to_numpy(), CROSSED: crossed})


def claimed_radius(rows: pd.DataFrame) -> np.ndarray:
    """The largest radius (n,) that was proven for each row, refuted or not; 0 where none was."""
    columns = np.stack([rows[n].to_numpy(dtype=float) for n in (*PROVEN, "radius_refuted")])
    largest: np.ndarray = np.where(np.isnan(columns), 0.0, columns).max(0)
    return largest


def withdraw(rows: pd.DataFrame, crossed: np.ndarray) -> pd.DataFrame:
    """A table of certificates without the radii that an attack contradicts.

    Args:
        rows: of certificates.
        crossed: (n,) where an attack crossed inside the proven radius; inf or NaN: nowhere.
    """
    rows, broken = rows.copy(), np.isfinite(crossed)
    rows["violation"] = broken
    if broken.any():
        rows.loc[broken, "radius_refuted"] = claimed_radius(rows)[broken]
        rows.loc[broken, [name for name in CLAIMS if name in rows]] = 0.0
        rows.loc[broken, "lipschitz"] = np.nan
        rows.loc[broken, "status"] = CONTRADICTED
        rows["radius_attack"] = np.fmin(rows["radius_attack"], np.where(broken, crossed, np.inf))
    return rows


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
    plan = AttackPlan(Margin(threshold, "ood"), settings.norm_value, settings.seed, STEPS)
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
