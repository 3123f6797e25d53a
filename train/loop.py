"""One training run, from a configuration to a complete run folder."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import torch

from greg_cert.config import ExperimentConfig
from greg_cert.config.fields import difference
from greg_cert.config.places import without_places
from greg_cert.data import DataSplits
from greg_cert.errors import ConfigError, RunError
from greg_cert.files import is_vacant
from greg_cert.processes import Processes
from greg_cert.runs.manifest import write_manifest
from greg_cert.runs.records import RunFolder, config_digest, write_config
from greg_cert.train.fabric import make_fabric
from greg_cert.train.initial_model import first_model, lipschitz_of
from greg_cert.train.manifest import check_same
from greg_cert.train.observer import Observer, SilentObserver
from greg_cert.train.trainer import Trainer


def fit(
    config: ExperimentConfig,
    splits: DataSplits,
    folder: Path,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    command: str | None = None,
) -> RunFolder:
    """Train a model as configured and leave a complete run folder.

    Killed at any moment, the same call with `resume=True` ends with the same weights, on the CPU to
    the bit (with the same number of threads): it goes on from the last checkpoint, and every random
    draw follows from the seed. Under `torchrun` or `fabric run` every process makes the same call.

    Args:
        config: the experiment.
        splits: its data.
        folder: where to write; must be new or empty unless `resume` is set. What fails before its
            first step leaves nothing there.
        resume: go on with an interrupted run; a complete one is left as it is.
        observer: sees every step.
        command: the command line, for the manifest.

    Returns:
        The run folder.

    Raises:
        RunError: for a folder that holds something else or cannot be written, or a corrupt
            checkpoint.
        ConfigError: for a method without auxiliary data, margins in the wrong order, or a batch
            that the processes cannot share.
        TrainingError: when a loss is not finite; names the step, the term and the checkpoint.
    """
    run = RunFolder(folder, config.model.code)
    _check_methods(config, splits)
    fabric = make_fabric(config.train)
    processes = Processes(fabric.global_rank, fabric.world_size)
    _check_shares(config, splits, processes.size)
    fresh, complete = processes.once(lambda: (_is_fresh(run, config, resume), run.complete))
    if not fresh:
        processes.once(lambda: _move(run, config, splits))
        run = RunFolder(folder, config.model.code)  # a new one, which has read nothing yet
    if complete:
        return run
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        # Everything that can be wrong with the configuration shows here, before a file is written.
        watching = observer if observer is not None and processes.first else SilentObserver()
        trainer = Trainer(config, splits, run, fabric, watching, command)
        if fresh:
            processes.once(lambda: _keep_config(run, config))
        try:
            trainer.train()
        except BaseException:
            if fresh and processes.first and not trainer.done:
                _unmake_folder(run)
            raise
    return RunFolder(folder, config.model.code)  # a new one, which has read nothing yet


def check(config: ExperimentConfig, splits: DataSplits) -> None:
    """Refuse what `fit` would refuse before its first step, but for the folder it writes to.

    No process is started and no file is written.

    Raises:
        ConfigError: as `fit`, or for a device that is not available here.
        UsageError: for a model that cannot take the images, or weights to begin with that are
            missing or do not fit.
    """
    _check_methods(config, splits)
    fabric = make_fabric(config.train, launch=False)
    _check_shares(config, splits, fabric.world_size)
    with torch.random.fork_rng([]):
        model, _ = first_model(config, splits, fabric.device)
        if any(stage.lambda_lipschitz for stage in config.train.stages):  # else it may be missing
            lipschitz_of(config, model, splits.train.image_shape)


def _check_methods(config: ExperimentConfig, splits: DataSplits) -> None:
    for i, stage in enumerate(config.train.stages):
        if not stage.uses_outliers:
            continue
        if splits.aux is None:
            raise ConfigError(
                f"data.aux: required by train.stages[{i}].method = {stage.method!r}, but missing"
            )
        wanted = stage.pool or stage.batch_size * stage.candidates
        if (stage.pool or stage.chooses) and len(splits.aux) < wanted:
            what = "pool" if stage.pool else "batch_size * candidates"
            raise ConfigError(
                f"train.stages[{i}]: expected at least {what} = {wanted} auxiliary images, "
                f"but got {len(splits.aux)}"
            )
        step = min(stage.batch_size, len(splits.train)) * stage.candidates
        clustered = stage.strategy in ("dos", "two_ended") and stage.pool is None
        if clustered and stage.clusters is not None and stage.clusters > step:
            raise ConfigError(
                f"train.stages[{i}].clusters: expected at most the {step} candidates of a step, "
                f"but got {stage.clusters}"
            )


def _check_shares(config: ExperimentConfig, splits: DataSplits, processes: int) -> None:
    for i, stage in enumerate(config.train.stages):
        if stage.batch_size % processes or (processes > 1 and len(splits.train) < stage.batch_size):
            raise ConfigError(
                f"train.stages[{i}].batch_size: expected a multiple of the {processes} processes, "
                f"at most the {len(splits.train)} training images, but got {stage.batch_size}"
            )


def _is_fresh(run: RunFolder, config: ExperimentConfig, resume: bool) -> bool:
    """Whether the folder is still to be made; raises where it cannot serve."""
    if run.path.exists() and not run.path.is_dir():
        raise RunError(f"out: expected a folder, but got the file {run.path}")
    if is_vacant(run.path):
        return True
    if not resume:
        raise RunError(
            f"out: expected a new or empty folder, but {run.path} has content; "
            "choose another, or go on with --resume"
        )
    if not run.config_file.exists():
        raise RunError(f"resume: expected a run folder, but {run.path} has no config.yaml")
    # Whether data that stand elsewhere are the same is told by their fingerprints.
    now, then = (without_places(c.model_dump(mode="json"), c) for c in (config, run.config))
    if (what := difference(now, then)) is not None:
        raise RunError(f"resume: {run.path} was begun with another configuration: {what}")
    return False


def _move(run: RunFolder, config: ExperimentConfig, splits: DataSplits) -> None:
    """Write where the data of a run stand now, if they have moved and are the same."""
    if config == run.config:
        return
    if run.manifest_file.exists():  # a run begins with its configuration
        check_same(run.manifest, {"data": splits.fingerprints()}, run.path)
        known = run.manifest.get("digests")
        if isinstance(known, dict):  # an earlier version's told where the data stood
            digests = {**known, "config.yaml": config_digest(config)}
            write_manifest(run.path, {**run.manifest, "digests": digests})
    _keep_config(run, config)


def _keep_config(run: RunFolder, config: ExperimentConfig) -> None:
    """Write the configuration, into a folder that may have to be made."""
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_config(run, config)
    except OSError as error:
        raise RunError(f"out: cannot write to {run.path}: {error}") from error


def _unmake_folder(run: RunFolder) -> None:
    """Remove what a start wrote that failed before its first step, and the folder if empty."""
    for file in (run.config_file, run.manifest_file, run.metrics_file):
        file.unlink(missing_ok=True)
    for folder in (run.events_folder, run.checkpoint_file.parent):
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        run.path.rmdir()
