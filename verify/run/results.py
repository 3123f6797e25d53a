"""What a verification leaves: paired tables of what is finished, and `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from greg_cert.certificates.folder import Tables, write_folder
from greg_cert.certificates.methods import chosen_methods
from greg_cert.errors import RunError
from greg_cert.evaluation import Evaluation
from greg_cert.verify.bounds.engines import resolve_engine
from greg_cert.verify.run.candidates import ID, dataset_of
from greg_cert.verify.run.job import Job
from greg_cert.verify.run.run_certifier import HarderAttack
from greg_cert.verify.run.tables import RunTables, paired_rows, run_summary, run_tables, worst_of


@dataclass(frozen=True)
class VerifiedRun:
    """One run's rows and its entry in `summary.json`."""

    name: str
    frame: pd.DataFrame
    summary: dict[str, Any]
    ood_frame: pd.DataFrame
    ood_scores: pd.DataFrame
    scores: pd.DataFrame


@dataclass(frozen=True)
class Verification:
    """What is finished, under every run alike.

    Attributes:
        runs: the baseline first.
        files: tables and summary that were written; empty where nothing is finished.
        samples: finished samples, ID and OOD together.
        wanted: samples that were asked for.
        violations: certificates that an attack contradicts.
        worst: the one contradicted most: run, part, index, radius, and where it was crossed.
        audit: attacks, violations and settings of the harder audit, where one was made.
    """

    runs: tuple[VerifiedRun, ...]
    files: tuple[Path, ...]
    samples: int
    wanted: int
    violations: int
    worst: dict[str, Any] | None
    audit: dict[str, Any] | None

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return self.samples == self.wanted


def assemble(
    job: Job,
    evaluations: Sequence[tuple[Evaluation, float]],
    attack: HarderAttack,
    *,
    audited: bool,
) -> Verification:
    """The tables of what is finished under every run."""
    paired = paired_rows(job.store, job.runs, job.wanted)
    done: list[VerifiedRun] = []
    tables: list[RunTables] = []
    for run, parts, (evaluation, seconds) in zip(job.runs, paired, evaluations, strict=True):
        radii = job.settings.auc_radii if "ood" in job.settings.sides else ()
        table = run_tables(job.store, run, parts, attack.kind, radii)
        summary = run_summary(run, evaluation, table, job.wanted, seconds + table.seconds, radii)
        done.append(
            VerifiedRun(
                run.name,
                table.id_rows,
                summary,
                table.ood_rows,
                table.ood_scores,
                clean_scores(run.name, evaluation),
            )
        )
        tables.append(table)
    attacks = sum(t.audited for t in tables)
    audit = {
        "attacks": attacks,
        "certificates": sum(t.claims for t in tables),
        "violations": sum(t.refuted for t in tables),
        "steps": attack.steps,
        "restarts": attack.restarts,
    }
    return Verification(
        tuple(done),
        (),
        sum(len(rows) for rows in paired[0].values()),
        sum(map(len, job.wanted.values())),
        sum(t.violations for t in tables),
        worst_of(t.worst for t in tables),
        audit if audited or attacks else None,
    )


def clean_scores(run: str, evaluation: Evaluation) -> pd.DataFrame:
    """Unperturbed scores of one run: all samples of the test split (`test`) and of `ood/NAME`."""
    parts = [
        pd.DataFrame({"run": run, "part": part, "index": range(len(values)), "score": values})
        for part, values in evaluation.scores.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summary_of(job: Job, done: Verification, baseline: str | None) -> dict[str, Any]:
    """`summary.json` but for where its numbers come from."""
    settings = job.settings
    return {
        "norm": settings.norm_value if settings.norm == "2" else "inf",
        "tpr": settings.tpr,
        "max_radius": settings.max_radius,
        # Of certificates.parquet where it is there; OOD samples have an entry of their own.
        "side": settings.sides[0],
        "sides": list(settings.sides),
        "score": job.runs[0].score,
        "clip": False,
        "method": settings.method,
        "methods": list(chosen_methods(settings.method)),
        "correct": settings.correct,
        "smoothing": {
            "sigma": settings.smoothing_sigma,
            "n": settings.smoothing_n,
            "alpha": settings.smoothing_alpha,
        }
        if "smoothing" in chosen_methods(settings.method)
        else None,
        "engine": resolve_engine(settings.engine),
        "complete": done.complete,
        "order": "random",  # of the samples, so that what is finished is a random part
        "wanted": len(job.wanted.get(ID, ())),
        "samples": len(done.runs[0].frame),
        "classes": list(job.splits.test.classes or ()),
        "ood_wanted": {dataset_of(p): len(i) for p, i in job.wanted.items() if p != ID},
        "audit": done.audit,
        "baseline": baseline,
        "runs": {run.name: run.summary for run in done.runs},
    }


def write_results(out: Path, done: Verification, summary: Mapping[str, Any]) -> tuple[Path, ...]:
    """Write summary and tables of what is finished.

    Raises:
        RunError: where a file cannot be written.
    """
    tables = [Tables(r.frame, r.ood_frame, r.ood_scores, r.scores) for r in done.runs]
    try:
        return write_folder(out, tables, summary)
    except OSError as error:
        raise RunError(f"out: cannot write {out}: {error}") from error
