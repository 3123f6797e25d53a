"""Samples under one run, a chunk at a time: certificates, and an attack on each of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from greg_cert.certificates.format import CONTRADICTED
from greg_cert.certificates.frame_file import PROVEN, REFUTED
from greg_cert.config import VerifyConfig
from greg_cert.data import Images
from greg_cert.verify.attack.audit import RESTARTS, STEPS, Audit
from greg_cert.verify.attack.pgd import attacked_scores
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.certificates import CLAIMS
from greg_cert.verify.certify import PreparedCertify
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.options import read_options
from greg_cert.verify.score_bounds import ScoreBounds
from greg_cert.verify.scorer import check_inputs
from greg_cert.verify.settings import certify_options

SECONDS, CROSSED = "_seconds", "_crossed"
"""Columns of a shard that no table has: time spent, and where an attack crossed (inf: nowhere)."""


@dataclass(frozen=True)
class HarderAttack:
    """An attack inside the proven ball, harder than the one that every certificate goes through."""

    steps: int = 5 * STEPS
    restarts: int = 4 * RESTARTS
    seed: int = 7919  # added to that of the settings

    @property
    def kind(self) -> str:
        """Name of its shards."""
        return f"audit-{self.steps}x{self.restarts}-{self.seed}"


@dataclass(frozen=True, eq=False)
class RunCertifier:
    """One run's certificates and audits, chunk by chunk; networks and engines are made once."""

    model: nn.Module
    threshold: float
    side: str
    settings: VerifyConfig
    score: str
    image_shape: tuple[int, ...]  # (C, H, W)

    def certify(self, images: Images, indices: Tensor) -> pd.DataFrame:
        """A row for each sample: certificate, prediction, and whether an attack contradicts it.

        `label` is −1 and `correct` False on the side `ood`, where labels are of other classes;
        there rows also have the bounds and attacks of their scores at `settings.auc_radii`.
        """
        start = time.perf_counter()
        x = check_inputs(images.pixels(indices)).to(self._prepared.device)
        known = images.labels[indices] if self.side == "id" and images.labels is not None else None
        # Contradictions are counted as `violations`, and the command ends with an error.
        certificates = self._prepared(
            x, labels=known if self.settings.correct else None, indices=indices
        )
        frame = certificates.to_frame()
        detector = self._prepared.certifier.detector
        with torch.no_grad():
            predicted = detector.predicted(detector.logits(x)).cpu()
        labels = torch.full_like(predicted, -1) if known is None else known
        frame.insert(0, "index", indices.numpy())
        frame.insert(1, "label", labels.numpy())
        frame.insert(2, "predicted", predicted.numpy())
        frame.insert(3, "correct", (labels == predicted).numpy())
        frame["threshold"] = self.threshold
        if self.side == "ood":
            frame = frame.join(self._scores_in_balls(x, indices))
        frame["violation"] = frame["status"] == CONTRADICTED
        frame[CROSSED] = np.where(frame["violation"], frame["radius_attack"], np.inf)
        frame[SECONDS] = (time.perf_counter() - start) / len(frame)
        return frame

    def audit(self, images: Images, rows: pd.DataFrame, attack: HarderAttack) -> pd.DataFrame:
        """For each row of certificates where a harder attack crossed inside it, or inf."""
        prepared, settings = self._prepared, self.settings
        indices = torch.tensor(rows["index"].tolist(), device="cpu")
        x = check_inputs(images.pixels(indices)).to(prepared.device)
        labels = None
        if settings.correct and self.side == "id":
            labels = torch.tensor(rows["label"].tolist(), device=x.device)
        detector = prepared.certifier.detector
        plan = AttackPlan(
            detector.margin,
            settings.norm_value,
            settings.seed + attack.seed,
            attack.steps,
            restarts=attack.restarts,
        )
        audit = Audit(detector, prepared.certifier.graphs, plan)
        radii = torch.as_tensor(claimed_radius(rows), device=x.device)
        crossed = audit.crossings(x, radii, indices, labels).cpu().numpy()
        return pd.DataFrame({"index": rows["index"].to_numpy(), CROSSED: crossed})

    @cached_property
    def _prepared(self) -> PreparedCertify:
        options = read_options(**certify_options(self.settings), side=self.side, score=self.score)
        return PreparedCertify(self.model, self.image_shape, self.threshold, options)

    @cached_property
    def _score_bounds(self) -> ScoreBounds:
        settings = self.settings
        graph = self._prepared.graph or trace_model(self.model, self.image_shape)
        return ScoreBounds(
            graph, settings.engine, "ood", settings.norm_value, self.score, memory=settings.memory
        )

    def _scores_in_balls(self, x: Tensor, indices: Tensor) -> pd.DataFrame:
        """Proven and attacked least scores of OOD samples in balls of `settings.auc_radii`."""
        settings, columns = self.settings, {}
        detector = self._prepared.certifier.detector
        if settings.auc_radii and self._prepared.graph is None:  # else compared with it already
            check_agreement(detector.logits, self._score_bounds.graph, x, "the samples")
        plan = AttackPlan(detector.margin, settings.norm_value, settings.seed, STEPS)
        for radius in settings.auc_radii:
            bound = self._score_bounds(x, radius)
            balls = torch.full_like(bound, radius)
            attacked = attacked_scores(detector.score, x, balls, plan, indices)
            proven, found = score_columns(radius)
            columns[proven], columns[found] = bound.cpu().numpy(), attacked.cpu().numpy()
        return pd.DataFrame(columns, index=range(len(x)))


def claimed_radius(rows: pd.DataFrame) -> np.ndarray:
    """The largest radius (n,) that was proven for each row, refuted or not; 0 where none was."""
    columns = np.stack([rows[n].to_numpy(dtype=float) for n in (*PROVEN, REFUTED)])
    largest: np.ndarray = np.where(np.isnan(columns), 0.0, columns).max(0)
    return largest


def withdraw(rows: pd.DataFrame, crossed: np.ndarray) -> pd.DataFrame:
    """A table of certificates without the radii that an attack contradicts.

    `crossed` (n,) says where one crossed inside the proven radius; inf or NaN: nowhere.
    """
    rows, broken = rows.copy(), np.isfinite(crossed)
    rows["violation"] = broken
    if broken.any():
        rows.loc[broken, REFUTED] = claimed_radius(rows)[broken]
        rows.loc[broken, [name for name in CLAIMS if name in rows]] = 0.0
        rows.loc[broken, "lipschitz"] = np.nan
        rows.loc[broken, "status"] = CONTRADICTED
        rows["radius_attack"] = np.fmin(rows["radius_attack"], np.where(broken, crossed, np.inf))
    return rows


def score_columns(radius: float) -> tuple[str, str]:
    """The columns of a shard with the proven and the attacked least score at a radius."""
    return f"_score_bound_{radius:g}", f"_score_attack_{radius:g}"
