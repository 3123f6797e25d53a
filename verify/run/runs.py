"""Verifying trained runs: the same test samples for each, one table of certificates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from greg_cert.certificates.methods import chosen_methods
from greg_cert.config import VerifyConfig, dump_config
from greg_cert.data import DataSplits
from greg_cert.devices import device_title, find_device
from greg_cert.errors import RunError, UsageError
from greg_cert.evaluation import Evaluation, evaluate_model
from greg_cert.processes import joined_processes
from greg_cert.runs.inference import device_of
from greg_cert.runs.records import environment, package_versions
from greg_cert.runs.subjects import Subject, common_data
from greg_cert.verify.bounds.engines import resolve_engine
from greg_cert.verify.run.candidates import ID, Candidate, candidates, part_of
from greg_cert.verify.run.job import Job, Progress
from greg_cert.verify.run.pictures import write_sample_pictures
from greg_cert.verify.run.results import Verification, assemble, summary_of, write_results
from greg_cert.verify.run.run_certifier import HarderAttack
from greg_cert.verify.run.selection import Selection, choose_samples, select_samples
from greg_cert.verify.run.shards import ShardStore
from greg_cert.verify.run.tasks import chunk_size

# A row does not depend on these, but for its last bits: they choose rows, or say how many are done
# at once, and where.
_FREE = {"samples", "ood_samples", "side", "batch", "memory", "device", "options"}
_PACKAGES = ("greg-cert", "torch", "auto-LiRPA")


def verify_runs(
    runs: Sequence[Subject],
    settings: VerifyConfig,
    out: Path,
    *,
    baseline: Subject | None = None,
    command: str | None = None,
    progress: Progress | None = None,
    selection: Selection | None = None,
    time_budget: float | None = None,
    audit: bool = False,
    restart: bool = False,
) -> Verification:
    """Certify the same test samples under every run and write the result files.

    Results are kept in `out`/shards chunk by chunk, so a call that was stopped goes on where it
    was. Writes `certificates.parquet` (ID samples), `ood_certificates.parquet` (side `ood`),
    `summary.json` and `pictures.npz` (the samples that the report shows) into `out`, of
    the samples that are finished under every run. Every
    certificate is attacked inside its own radius; successes are counted as `violations`.

    Under `torchrun` the processes share the samples, and the first one writes the files.

    Args:
        runs: complete run folders, or models from elsewhere, all of the same data.
        settings: threshold, norm, samples, method.
        out: folder to write to; made if it is missing.
        baseline: the one of `runs`, or another, that the others are compared with; it comes first.
        command: the command line, for the record.
        progress: called after each chunk.
        selection: which ID samples, and how many now.
        time_budget: seconds after which no more chunks are begun; None for no end.
        audit: attack every certificate again, harder.
        restart: drop what earlier calls left in `out`.

    Raises:
        RunError: for runs of different data, data that changed since training, or an `out` with
            results of other settings.
        UsageError: for samples that there are not.
    """
    begun = time.monotonic()
    selection = selection or Selection()
    device = find_device(settings.device)
    found = candidates(runs, baseline, device)  # what is missing shows before hours are spent
    splits = common_data([run.folder for run in found])
    wanted = _wanted(splits, settings, selection)
    if out.exists() and not out.is_dir():
        raise RunError(f"out: cannot write to {out}: it is a file")
    shape = splits.test.image_shape
    methods = chosen_methods(settings.method)
    chunk = settings.batch or min(chunk_size(r.model, shape, methods) for r in found)
    with joined_processes() as processes:
        store = ShardStore(out / "shards", processes.rank)

        def open_store() -> list[tuple[Evaluation, float]]:
            store.open(restart=restart)
            return _evaluations(store, found, splits, settings)

        try:
            evaluations = processes.once(open_store)
            job = Job(
                found,
                splits,
                settings,
                wanted,
                chunk,
                store,
                processes,
                [evaluation.threshold for evaluation, _ in evaluations],
                None if time_budget is None else begun + time_budget,
                progress,
            )
            job.certify(selection.limit)
            attack = HarderAttack()
            if audit:
                job.audit(attack)
            done = assemble(job, evaluations, attack, audited=audit)
            if processes.first and done.samples:
                provenance = {
                    **environment(", ".join(store.settings["devices"])),
                    "command": command,
                    "seed": settings.seed,
                    "settings": settings.model_dump(mode="json"),
                    "selection": asdict(selection),
                    "processes": processes.size,
                    "configs": {r.name: dump_config(r.folder.config) for r in found},
                    "runs": {r.name: r.folder.manifest for r in found},
                    "weights": {r.name: r.identity["weights"] for r in found},
                    "folders": {r.name: str(r.folder.path.resolve()) for r in found},
                }
                first = found[0].name if baseline is not None else None
                summary = summary_of(job, done, first) | {"provenance": provenance}
                files = write_results(out, done, summary)
                pictures = write_sample_pictures(out, job, done.runs)
                done = replace(done, files=files if pictures is None else (*files, pictures))
            return done
        finally:
            store.close()


def _wanted(
    splits: DataSplits, settings: VerifyConfig, selection: Selection
) -> dict[str, list[int]]:
    """For each set of samples the indices that are asked for."""
    wanted = {}
    if "id" in settings.sides:
        assert splits.test.labels is not None
        wanted[ID] = select_samples(
            selection, splits.test.labels, splits.num_classes, settings.samples, settings.seed
        )
    elif selection.classes is not None or selection.indices is not None:
        raise UsageError("--side: expected id or both beside --classes or --indices, but got ood")
    if "ood" in settings.sides:
        if not splits.ood:
            raise UsageError(
                f"--side: expected id for data without OOD test sets, but got {settings.side}"
            )
        for name, images in splits.ood.items():
            chosen = choose_samples(len(images), settings.ood_samples, settings.seed)
            wanted[part_of(name)] = chosen.tolist()
    return wanted


def _evaluations(
    store: ShardStore, runs: Sequence[Candidate], splits: DataSplits, settings: VerifyConfig
) -> list[tuple[Evaluation, float]]:
    """Evaluation of each run and its seconds, from the store where it is there.

    Also checks the store's settings, of which the thresholds are a part: a rerun takes the very
    numbers that the finished rows are about.
    """
    found = []
    for run in runs:
        start = time.perf_counter()
        if (note := store.note(run.digest)) is not None:
            found.append((Evaluation(**note["evaluation"]), float(note["seconds"])))
            continue
        evaluation = evaluate_model(run.model, splits, score=run.score, tpr=settings.tpr)
        found.append((evaluation, time.perf_counter() - start))
    store.settle(_dependencies(runs, found, settings), grows=("runs", "devices"))
    for run, (evaluation, seconds) in zip(runs, found, strict=True):
        store.write_note(run.digest, {"evaluation": asdict(evaluation), "seconds": seconds})
    return found


def _dependencies(
    runs: Sequence[Candidate],
    evaluations: Sequence[tuple[Evaluation, float]],
    settings: VerifyConfig,
) -> dict[str, Any]:
    """Everything a row depends on."""
    versions, data = package_versions(), runs[0].folder.manifest["data"]
    return {
        **settings.model_dump(mode="json", exclude=_FREE),
        **settings.options,
        "engine": resolve_engine(settings.engine),
        "runs": {
            run.name: {**run.identity, "score": run.score, "threshold": evaluation.threshold}
            for run, (evaluation, _) in zip(runs, evaluations, strict=True)
        },
        "devices": {device_title(device_of(run.model)): True for run in runs},
        "data": {part: data[part] for part in data if part not in ("train", "aux")},
        "versions": {name: versions.get(name) for name in _PACKAGES},
    }
