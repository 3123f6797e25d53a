"""What a verification leaves: paired tables of what is finished, and `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greg_cert.certificates.folder import Tables, write_folder
from greg_cert.certificates.methods import chosen_methods
from greg_cert.errors import RunError
from greg_cert.evaluation import Evaluation
from greg_cert.verify.bounds.engines import resolve_engine
from greg_cert.verify.run.candidates import ID, dataset_of
from greg_cert.verify.run.job import Job
from greg_cert.verify.run.run_certifier import HarderAttack
from greg_cert.verify.run.tables import VerifiedRun, paired_rows, verified_run, worst_of


@dataclass(frozen=True)
class Verification:
    """What is finished, under every run alike."""

    runs: tuple[VerifiedRun, ...]  # the baseline first
    files: tuple[Path, ...]  # tables and summary that were written; none where nothing is finished
    samples: int  # finished ones, ID and OOD together
    wanted: int  # samples that were asked for
    violations: int  # certificates that an attack contradicts
    worst: dict[str, Any] | None  # the one contradicted most, and where it was crossed
    audit: dict[str, Any] | None  # attacks, violations and settings of the harder audit, if any

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
    radii = job.settings.auc_radii if "ood" in job.settings.sides else ()
    done = tuple(
        verified_run(job.store, run, parts, attack.kind, radii, evaluated)
        for run, parts, evaluated in zip(job.runs, paired, evaluations, strict=True)
    )
    attacks = sum(run.audited for run in done)
    audit = {
        "attacks": attacks,
        "certificates": sum(run.claims for run in done),
        "violations": sum(run.refuted for run in done),
        "steps": attack.steps,
        "restarts": attack.restarts,
    }
    return Verification(
        done,
        (),
        sum(len(rows) for rows in paired[0].values()),
        sum(map(len, job.wanted.values())),
        sum(run.violations for run in done),
        worst_of(run.worst for run in done),
        audit if audited or attacks else None,
    )


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
        "method": asked if isinstance(asked := settings.method, str) else list(asked),
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
