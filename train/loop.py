"""The training loop: stages, schedules, checkpoints, through Lightning Fabric."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greg_cert.config import ExperimentConfig, StageConfig, dump_config
from greg_cert.data import DataSplits
from greg_cert.errors import ConfigError, RunError, TrainingError
from greg_cert.models import Classifier, build_model
from greg_cert.records import (
    RunFolder,
    environment,
    load_weights,
    model_sizes,
    write_config,
    write_manifest,
)
from greg_cert.scores import energy
from greg_cert.train.batches import DeviceImages, Draw, batch_indices, generator_for, shifted
from greg_cert.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from greg_cert.train.journal import Journal, Observer, SilentObserver
from greg_cert.train.objective import Batch, Objective, Terms
from greg_cert.train.sampling import two_ended_sample

_EVALUATION_BATCH = 512


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
    the bit (with the same number of threads): it goes on from the last finished epoch, and every
    random draw follows from the seed.

    Args:
        config: the experiment.
        splits: its data.
        folder: where to write; must be new or empty unless `resume` is set.
        resume: go on with an interrupted run; a complete one is left as it is.
        observer: sees every step.
        command: the command line, for the manifest.

    Returns:
        The run folder.

    Raises:
        RunError: for a folder that holds something else, or a corrupt checkpoint.
        ConfigError: for a method without auxiliary data, or margins in the wrong order.
        TrainingError: when a loss is not finite; names the step, the term and the checkpoint.
    """
    run = RunFolder(folder)
    _check_methods(config, splits)
    fresh = _is_fresh(run, config, resume)
    if run.complete:
        return run
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        # Everything that can be wrong with the configuration shows here, before a file is written.
        trainer = _Trainer(config, splits, run, observer or SilentObserver(), command)
        if fresh:
            _make_folder(run, config)
        trainer.train()
    return RunFolder(folder)  # a new one, which has read nothing yet


def _check_methods(config: ExperimentConfig, splits: DataSplits) -> None:
    for i, stage in enumerate(config.train.stages):
        if stage.method != "ce" and splits.aux is None:
            raise ConfigError(
                f"data.aux: required by train.stages[{i}].method = {stage.method!r}, but missing"
            )
        if stage.method == "greg+" and splits.aux is not None:
            wanted = stage.batch_size * stage.candidates
            if len(splits.aux) < wanted:
                raise ConfigError(
                    f"train.stages[{i}]: expected at least batch_size * candidates = {wanted} "
                    f"auxiliary images, but got {len(splits.aux)}"
                )


def _is_fresh(run: RunFolder, config: ExperimentConfig, resume: bool) -> bool:
    """Whether the folder is still to be made; raises where it cannot serve."""
    if run.path.exists() and not run.path.is_dir():
        raise RunError(f"out: expected a folder, but got the file {run.path}")
    if not run.path.is_dir() or not any(run.path.iterdir()):
        return True
    if not resume:
        raise RunError(
            f"out: expected a new or empty folder, but {run.path} has content; "
            "choose another, or go on with --resume"
        )
    if not run.config_file.exists():
        raise RunError(f"resume: expected a run folder, but {run.path} has no config.yaml")
    if dump_config(run.config) != dump_config(config):
        raise RunError(f"resume: {run.path} was begun with another configuration")
    return False


def _make_folder(run: RunFolder, config: ExperimentConfig) -> None:
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        write_config(run, config)
    except OSError as error:
        raise RunError(f"out: cannot write to {run.path}: {error}") from error


@dataclass(frozen=True)
class _Progress:
    stage: int = 0
    epoch: int = 0
    step: int = 0
    m_in: float | None = None
    m_out: float | None = None


class _Trainer:
    def __init__(
        self,
        config: ExperimentConfig,
        splits: DataSplits,
        run: RunFolder,
        observer: Observer,
        command: str | None,
    ) -> None:
        from lightning_fabric import Fabric

        self.config, self.run, self.observer = config, run, observer
        try:
            self.fabric = Fabric(accelerator=config.train.accelerator, devices=1)
        except RuntimeError as error:
            raise ConfigError(
                f"train.accelerator: {config.train.accelerator!r} is not to be had here: {error}"
            ) from error
        self.device = self.fabric.device
        self.train_set = DeviceImages(splits.train, self.device)
        self.aux_set = None if splits.aux is None else DeviceImages(splits.aux, self.device)
        torch.manual_seed(config.seed)
        sizes = model_sizes(splits)
        self.model: Classifier = build_model(config.model.name, **sizes)
        if config.train.init is not None:
            weights = config.train.init
            weights = RunFolder(weights).weights_file if weights.is_dir() else weights
            load_weights(self.model, weights)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        # Fabric wraps the objective, which holds the model: both share the weights.
        self.objective: Any
        self.objective, self.optimizer = self.fabric.setup(Objective(self.model), self.optimizer)
        self.session = environment(_device_name(self.device))
        self.manifest = {
            **self.session,
            "method": config.method,
            "seed": config.seed,
            "model": sizes,
            "data": splits.fingerprints(),
            "split_sizes": {
                "train": len(splits.train),
                "calibration": len(splits.calibration),
                "test": len(splits.test),
                "aux": 0 if splits.aux is None else len(splits.aux),
                **{f"ood/{name}": len(s) for name, s in splits.ood.items()},
            },
            "command": command,
            "stages": [],
        }

    def train(self) -> None:
        """All stages, from the last checkpoint where there is one."""
        progress = self._restore()
        self.step = progress.step
        total = sum(s.epochs * self._steps(s) for s in self.config.train.stages)
        self.observer.begin(total, progress.step)
        journal = Journal(self.run.metrics_file, self.run.path / "tensorboard", progress.step)
        try:
            for i in range(progress.stage, len(self.config.train.stages)):
                progress = self._stage(i, progress, journal)
        finally:
            journal.close()
        write_manifest(self.run, self.manifest)
        self.run.save_weights(self.model)  # last: its presence says that the run is complete

    def _restore(self) -> _Progress:
        if not self.run.checkpoint_file.exists():
            write_manifest(self.run, self.manifest)
            return _Progress()
        before = self.run.manifest
        for part in ("data", "model"):
            if before.get(part) != self.manifest[part]:
                raise RunError(f"resume: the {part} of {self.run.path} changed since it was begun")
        # Versions and times of every session that had a part in the weights.
        self.manifest = {**before, "resumed": [*before.get("resumed", []), self.session]}
        state = load_checkpoint(self.run.checkpoint_file)
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(state.optimizer)
        return _Progress(state.stage, state.epoch, state.step, state.m_in, state.m_out)

    def _steps(self, stage: StageConfig) -> int:
        """Steps in one epoch."""
        return max(1, len(self.train_set) // stage.batch_size)

    def _stage(self, index: int, progress: _Progress, journal: Journal) -> _Progress:
        stage = self.config.train.stages[index]
        for group in self.optimizer.param_groups:
            group["momentum"] = stage.momentum
            group["nesterov"] = stage.momentum > 0
            group["weight_decay"] = stage.weight_decay
        if progress.epoch == 0:
            self.optimizer.state.clear()  # a stage begins without the momentum of the one before
            progress = self._begin_stage(index, stage, progress)
        terms = _terms(stage, progress)
        for epoch in range(progress.epoch, stage.epochs):
            step = self._epoch(index, stage, epoch, progress.step, terms, journal)
            last = epoch + 1 == stage.epochs
            done = replace(progress, stage=index, epoch=epoch + 1, step=step)
            progress = _Progress(index + 1, 0, step) if last else done
            self._save(progress)
        return progress

    def _begin_stage(self, index: int, stage: StageConfig, progress: _Progress) -> _Progress:
        """Choose the margins and note them."""
        m_in = m_out = None
        if stage.method != "ce":
            assert self.aux_set is not None
            m_in = self._mean_score(self.train_set) if stage.m_in == "auto" else stage.m_in
            m_out = self._mean_score(self.aux_set) if stage.m_out == "auto" else stage.m_out
            if not m_in < m_out:
                raise ConfigError(
                    f"train.stages[{index}]: expected m_in < m_out, but got {m_in:.4g} and "
                    f"{m_out:.4g}; 'auto' takes mean scores of the model so far, which must tell "
                    "them apart already: train longer before, or set them by hand"
                )
        chosen = {"method": stage.method, "m_in": m_in, "m_out": m_out}
        self.manifest["stages"] = [*self.manifest["stages"][:index], chosen]
        write_manifest(self.run, self.manifest)
        return replace(progress, stage=index, epoch=0, m_in=m_in, m_out=m_out)

    def _save(self, progress: _Progress) -> None:
        for name, weight in self.model.state_dict().items():
            if not weight.isfinite().all():
                raise self._diverged(progress.step, name)
        save_checkpoint(
            self.run.checkpoint_file,
            Checkpoint(
                stage=progress.stage,
                epoch=progress.epoch,
                step=progress.step,
                m_in=progress.m_in,
                m_out=progress.m_out,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
            ),
        )

    def _epoch(
        self,
        index: int,
        stage: StageConfig,
        epoch: int,
        step: int,
        terms: Terms,
        journal: Journal,
    ) -> int:
        key = (self.config.seed, index, epoch)
        torch.manual_seed(generator_for(torch.device("cpu"), *key, 0).initial_seed())  # dropout
        self.objective.train()
        per_epoch = self._steps(stage)
        for i, batch in enumerate(self._batches(stage, key)):
            rate = _learning_rate(stage, epoch * per_epoch + i, stage.epochs * per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            measure = step % self.config.train.log_every == 0
            out = self.objective(batch, terms, measure)
            self._check_finite(out, step)
            self.optimizer.zero_grad(set_to_none=True)
            self.fabric.backward(out["loss"])
            self.optimizer.step()
            step += 1
            self.step = step
            values: Mapping[str, float] = {}
            if measure:
                values = {**{k: float(v.detach()) for k, v in out.items()}, "lr": rate}
                journal.row(stage.method, epoch + 1, step, values)
            self.observer.step(stage.method, epoch + 1, values)
        return step

    def _batches(self, stage: StageConfig, key: tuple[int, ...]) -> Iterator[Batch]:
        """The batches of one epoch; all draws follow from `key`."""
        cpu = torch.device("cpu")
        order = batch_indices(len(self.train_set), stage.batch_size, generator_for(cpu, *key, 1))
        pool = None
        if stage.method != "ce" and self.aux_set is not None:
            pool = Draw(len(self.aux_set), generator_for(cpu, *key, 2))
        on_device = generator_for(self.device, *key, 3)
        assert self.train_set.labels is not None
        for indices in order:
            images = self._augmented(self.train_set.pixels(indices), stage, on_device)
            labels = self.train_set.labels[indices.to(self.device)]
            if pool is None or self.aux_set is None:
                yield Batch(images, labels)
                continue
            plus = stage.method == "greg+"
            wanted = len(indices) * (stage.candidates if plus else stage.aux_ratio)
            drawn = self._augmented(self.aux_set.pixels(pool.take(wanted)), stage, on_device)
            if plus:
                low, high = self._two_ends(drawn, len(indices), on_device)
                yield Batch(images, labels, drawn[low], drawn[high])
            else:
                yield Batch(images, labels, drawn, drawn)

    def _augmented(self, images: Tensor, stage: StageConfig, generator: torch.Generator) -> Tensor:
        if stage.augment == "none":
            return images
        flip = stage.augment == "shift_flip"
        return shifted(images, generator, flip=flip, share=stage.augment_share)

    @torch.no_grad()
    def _two_ends(
        self, candidates: Tensor, clusters: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Energy-based clustering on the model as it stands, without moving its statistics."""
        self.model.eval()
        with self.fabric.autocast():
            features = self.model.features(candidates)
            scores = energy(self.model.head(features))
        self.model.train()
        if not scores.isfinite().all():
            raise self._diverged(self.step, "score of the auxiliary candidates")
        return two_ended_sample(features, scores, clusters, generator=generator)

    @torch.no_grad()
    def _mean_score(self, images: DeviceImages) -> float:
        self.model.eval()
        total = 0.0
        for indices in torch.arange(len(images)).split(_EVALUATION_BATCH):
            total += float(energy(self.model(images.pixels(indices))).double().sum())
        self.model.train()
        return total / len(images)

    def _check_finite(self, out: Mapping[str, Tensor], step: int) -> None:
        if not math.isfinite(float(out["loss"].detach())):
            term = next((k for k, v in out.items() if k != "loss" and not v.isfinite()), "loss")
            raise self._diverged(step, term)

    def _diverged(self, step: int, term: str) -> TrainingError:
        """`step` steps were done before."""
        saved = self.run.checkpoint_file
        where = str(saved) if saved.exists() else "none yet"
        return TrainingError(
            f"training stopped at step {step + 1}: {term} is not finite; "
            f"last good checkpoint: {where}"
        )


def _terms(stage: StageConfig, progress: _Progress) -> Terms:
    return Terms(
        use_score=stage.method != "ce",
        use_gradient=stage.method in ("greg", "greg+"),
        m_in=progress.m_in if progress.m_in is not None else -math.inf,
        m_out=progress.m_out if progress.m_out is not None else math.inf,
        lambda_score=stage.lambda_score,
        lambda_grad=stage.lambda_grad,
        estimator=stage.estimator,
    )


def _learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    if stage.schedule == "constant":
        return stage.lr
    return stage.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
