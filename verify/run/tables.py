"""The tables of `greg-cert verify` from its shards, and the numbers of `summary.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from greg_cert.certificates.certificate_counts import id_side, ood_sides, robust
from greg_cert.evaluation import Evaluation
from greg_cert.verify.run.candidates import ID, Candidate, dataset_of
from greg_cert.verify.run.run_certifier import (
    CROSSED,
    SECONDS,
    claimed_radius,
    score_columns,
    withdraw,
)
from greg_cert.verify.run.shards import ShardKey, ShardStore

CERTIFY = "certify"


@dataclass(frozen=True)
class VerifiedRun:
    """What is finished of one run."""

    name: str
    summary: dict[str, Any]  # its entry in `summary.json`
    frame: pd.DataFrame  # rows of `certificates.parquet`
    ood_frame: pd.DataFrame  # rows of `ood_certificates.parquet`; they name their `dataset`
    ood_scores: pd.DataFrame  # rows of `ood_scores.parquet`
    scores: pd.DataFrame  # rows of `scores.parquet`
    claims: int  # certificates with a radius that was proven, refuted or not
    audited: int  # of these the ones that a harder attack was made on
    refuted: int  # of these the ones that it contradicts
    worst: dict[str, Any] | None  # the row an attack contradicts most

    @property
    def violations(self) -> int:
        """Rows that an attack contradicts."""
        return sum(int(f["violation"].sum()) for f in (self.frame, self.ood_frame) if len(f))


def paired_rows(
    store: ShardStore, runs: Sequence[Candidate], wanted: Mapping[str, Sequence[int]]
) -> list[dict[str, pd.DataFrame]]:
    """For each run and set of samples the rows that are wanted and finished under every run."""
    tables: list[dict[str, pd.DataFrame]] = [{} for _ in runs]
    for part, indices in wanted.items():
        rows = [store.rows(ShardKey(CERTIFY, run.digest, part)) for run in runs]
        shared = set(indices).intersection(*(set(r["index"].tolist()) for r in rows))
        for table, found in zip(tables, rows, strict=True):
            table[part] = found[found["index"].isin(shared)].reset_index(drop=True)
    return tables


def verified_run(
    store: ShardStore,
    run: Candidate,
    parts: Mapping[str, pd.DataFrame],
    audit: str,
    radii: Sequence[float],
    evaluated: tuple[Evaluation, float],
) -> VerifiedRun:
    """One run's rows as the tables have them, with what the audit of that kind found.

    Args:
        store: the shards.
        run: the run.
        parts: its paired rows.
        audit: kind of the audit's shards.
        radii: at which OOD scores were bounded.
        evaluated: its clean numbers, and the seconds that they took.
    """
    id_rows, ood_rows, ood_scores = pd.DataFrame(), [], []
    claims, audited, refuted, seconds, worst = 0, 0, 0, 0.0, None
    for part, rows in parts.items():
        if rows.empty:
            continue
        found = store.rows(ShardKey(audit, run.digest, part)).reindex(columns=["index", CROSSED])
        found = rows[["index"]].merge(found, on="index", how="left", validate="one_to_one")
        later = found[CROSSED].to_numpy(dtype=float)  # NaN where none was made
        claims += int((claimed_radius(rows) > 0).sum())
        audited += int((~np.isnan(later)).sum())
        refuted += int(np.isfinite(later).sum())
        crossed = np.fmin(rows[CROSSED].to_numpy(), later)
        seconds += float(rows[SECONDS].sum())
        worst = worst_of((worst, _worst(run.name, part, rows, crossed)))
        table = rows.drop(columns=[c for c in map(str, rows.columns) if c.startswith("_")])
        table = withdraw(table, crossed)
        table.insert(0, "run", run.name)
        if part != ID:
            table.insert(1, "dataset", dataset_of(part))
        table.insert(1 if part == ID else 2, "method", run.folder.config.method)
        if part == ID:
            id_rows = table
        else:
            ood_rows.append(table)
            ood_scores += [_at_radius(table, rows, radius) for radius in radii]
    evaluation, evaluating = evaluated
    tables = id_rows, _joined(ood_rows), _joined(ood_scores)
    summary = _summary(run, evaluation, tables, any(part != ID for part in parts), radii)
    summary["seconds"] = round(evaluating + seconds, 3)
    scores = _clean_scores(run.name, evaluation)
    return VerifiedRun(run.name, summary, *tables, scores, claims, audited, refuted, worst)


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _at_radius(table: pd.DataFrame, rows: pd.DataFrame, radius: float) -> pd.DataFrame:
    """The least scores at one radius, a row a sample."""
    bound, attack = score_columns(radius)
    named = table[["run", "dataset", "index"]].assign(radius=float(radius), score=table["score"])
    return named.assign(score_bound=rows[bound].to_numpy(), score_attack=rows[attack].to_numpy())


def _clean_scores(run: str, evaluation: Evaluation) -> pd.DataFrame:
    """Unperturbed scores of one run: all samples of the test split (`test`) and of `ood/NAME`."""
    return _joined(
        [
            pd.DataFrame({"run": run, "part": part, "index": range(len(values)), "score": values})
            for part, values in evaluation.scores.items()
        ]
    )


def _summary(
    run: Candidate,
    evaluation: Evaluation,
    tables: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
    with_ood: bool,
    radii: Sequence[float],
) -> dict[str, Any]:
    """The run's entry in `summary.json`; medians and means over all samples, rejected ones too."""
    id_rows, ood_rows, _ = tables
    summary: dict[str, Any] = {
        "method": run.folder.config.method,
        "score": run.score,
        "id_accuracy": evaluation.id_accuracy,
        "threshold": evaluation.threshold,
        "fpr95": evaluation.mean("fpr95"),
        "fpr95_ood_recall": evaluation.mean("fpr95_ood_recall"),
        "auroc": evaluation.mean("auroc"),
        "aupr_in": evaluation.mean("aupr_in"),
        "aupr_out": evaluation.mean("aupr_out"),
        "test_tpr": evaluation.test_tpr,
        "ood": evaluation.ood,
    }
    if len(id_rows):
        summary |= id_side(id_rows)
    if with_ood:
        summary["ood_side"] = ood_sides(ood_rows)
    if radii:
        summary["robust"] = {f"{radius:g}": robust(*tables, radius) for radius in radii}
    return summary


def _worst(run: str, part: str, rows: pd.DataFrame, crossed: np.ndarray) -> dict[str, Any] | None:
    """The row whose proven radius exceeds most, as a multiple, where an attack crossed."""
    if not np.isfinite(crossed).any():
        return None
    proven = claimed_radius(rows)
    share = np.where(np.isfinite(crossed), crossed / np.where(proven > 0, proven, 1.0), np.inf)
    at = int(share.argmin())
    return {
        "run": run,
        "part": part,
        "index": int(rows["index"].iloc[at]),
        "radius": float(proven[at]),
        "crossed": float(crossed[at]),
    }


def worst_of(rows: Iterable[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Of several rows the one that an attack contradicts most, or None."""
    broken = [row for row in rows if row is not None]
    return min(broken, key=lambda row: row["crossed"] / row["radius"], default=None)
