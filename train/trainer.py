"""The stages of a run, step by step, through Lightning Fabric."""

from __future__ import annotations

import atexit
import contextlib
import gc
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from greg_cert.config import ExperimentConfig, TrainConfig, dump_config
from greg_cert.data import DataSplits
from greg_cert.digests import tensors_digest
from greg_cert.draws import generator_for
from greg_cert.errors import ConfigError, RunError, TrainingError, UnsupportedModelError, UsageError
from greg_cert.models import Classifier, build_model
from greg_cert.runs.manifest import write_manifest
from greg_cert.runs.records import (
    RunFolder,
    config_digest,
    environment,
    model_sizes,
)
from greg_cert.runs.weights import LoadReport, load_foreign
from greg_cert.scores import score_of
from greg_cert.stages import Margin, StageConfig
from greg_cert.train.checkpoint import (
    Checkpoint,
    check_place,
    load_checkpoint,
    save_checkpoint,
)
from greg_cert.train.feed.batches import DeviceImages
from greg_cert.train.feed.epoch_pool import choose_for_epoch
from greg_cert.train.feed.feed import Feed, Look
from greg_cert.train.journal import Journal, Observer
from greg_cert.train.objective.lipschitz import LipschitzPenalty, lipschitz_penalty
from greg_cert.train.objective.step import Objective, Terms, compile_in_place
from greg_cert.train.outliers.choose import Picks
from greg_cert.train.watch import NEVER, FiniteWatch
from greg_cert.train.world import World

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_EVALUATION_BATCH = 512


def make_fabric(config: TrainConfig, *, launch: bool = True) -> Fabric:
    """Lightning Fabric as configured, its processes launched unless only they are asked for.

    Raises:
        ConfigError: for an accelerator or a number of devices that is not available.
    """
    from lightning_fabric import Fabric

    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
        )
        if launch:
            fabric.launch()
    except (RuntimeError, ValueError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(
            f"train.accelerator: {config.accelerator!r} with devices = {config.devices!r} and "
            f"nodes = {config.nodes} is not available here: {line}"
        ) from error
    if not launch:
        return fabric
    started = int(os.environ.get("WORLD_SIZE", fabric.world_size))
    if started != fabric.world_size:
        raise ConfigError(
            f"train.devices, train.nodes: expected the {started} processes that were started, "
            f"but got {fabric.world_size}"
        )
    if torch.distributed.is_initialized():
        atexit.register(_leave_the_others)
    return fabric


def _leave_the_others() -> None:
    """Close the process group before the interpreter ends.

    Fabric does it for NCCL alone. With gloo, threads still ran when they were torn down: in 12 of
    45 launches of two processes one aborted after all its work was done, and in none of 60 once
    the group was closed (torch 2.15, CPU).
    """
    if torch.distributed.is_initialized():
        gc.collect()  # a model that is gone may still hold the group in a cycle
        torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class _Progress:
    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    m_in: float | None = None
    m_out: float | None = None
    picks: Picks | None = None


class Trainer:
    """Runs all stages of a configuration and keeps the run folder up to date.

    Raises:
        ConfigError: for a model or an accelerator that is not available.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        splits: DataSplits,
        run: RunFolder,
        fabric: Fabric,
        observer: Observer,
        command: str | None,
    ) -> None:
        self.config, self.run, self.observer, self.fabric = config, run, observer, fabric
        self.world, self.device = World(fabric), fabric.device
        train = config.train
        torch.manual_seed(config.seed)
        self.model, loaded = first_model(
            config, splits, self.device, initialise=not run.checkpoint_file.exists()
        )
        if train.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if train.sync_batchnorm:
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if train.compile:
            compile_in_place(self.model)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        # Fabric wraps the objective, which holds the model: both share the weights.
        self.objective: Any
        self.optimizer: Any
        objective = Objective(self.model, bf16=train.precision == "bf16")
        self.objective, self.optimizer = fabric.setup(objective, optimizer)
        aux = None if splits.aux is None else DeviceImages(splits.aux, self.device)
        self.feed = Feed(
            train_set=DeviceImages(splits.train, self.device),
            aux_set=aux,
            look=self._look,
            world=self.world,
            device=self.device,
            channels_last=train.channels_last,
        )
        self.lipschitz = objective.lipschitz = lipschitz_of(
            config, self.model, splits.train.image_shape
        )
        self.watch = FiniteWatch()
        self.done = 0  # steps
        self.journal: Journal | None = None
        # Elsewhere a look at the values waits for the device or for the other processes.
        self._at_once = self.device.type == "cpu" and self.world.size == 1
        self.session = {
            **environment(_device_name(self.device)),
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
        }
        self.manifest = {
            **self.session,
            "method": config.method,
            "score": config.score,
            "seed": config.seed,
            "model": model_sizes(splits, absent_class=train.absent_class),
            "init": None if loaded is None else loaded.to_dict(),
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
            "digests": {"config.yaml": config_digest(yaml.safe_load(dump_config(config)))},
        }

    def train(self) -> None:
        """All stages, from the last checkpoint where there is one.

        Raises:
            RunError: where the run folder cannot be read or written.
            ConfigError: for automatic margins in the wrong order.
            TrainingError: for a value that is not finite.
        """
        progress, rows = self._restore()
        self.done = progress.step
        stages = self.config.train.stages
        total = sum(s.epochs * self.feed.steps(s) for s in stages)
        self.observer.begin(total, progress.step)
        self.world.once(lambda: self._open_journal(rows))
        try:
            for i in range(progress.stage, len(stages)):
                progress = self._stage(i, progress)
        finally:
            if self.journal is not None:
                self.journal.close()
        self.world.once(self._finish)

    def _open_journal(self, rows: str | None) -> None:
        events = self.run.path / "tensorboard"
        self.journal = Journal(self.run.metrics_file, events, self.done, rows)

    def _finish(self) -> None:
        assert self.journal is not None
        self.manifest["digests"] |= {
            self.run.metrics_file.name: self.journal.digest,
            self.run.weights_file.name: tensors_digest(self.model.state_dict()),
        }
        write_manifest(self.run.path, self.manifest)
        self.run.save_weights(self.model)  # last: its presence says that the run is complete

    def _restore(self) -> tuple[_Progress, str | None]:
        """Where to go on, and the digest of the rows of metrics up to there."""
        state = self.world.once(self._read_state)
        if state is None:
            return _Progress(), None
        self.manifest, found = state
        try:
            self.model.load_state_dict(found.model)
            self.optimizer.load_state_dict(found.optimizer)
            if self.lipschitz is not None and found.lipschitz is not None:
                self.lipschitz.load_state_dict(found.lipschitz)
        except (RuntimeError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())[:200]
            raise RunError(
                f"{self.run.checkpoint_file}: expected the state of this model and its optimiser, "
                f"but got: {line}"
            ) from error
        picks = None
        if found.low is not None and found.high is not None:
            picks = Picks(found.low, found.high)
        return _Progress(
            found.stage, found.epoch, found.batch, found.step, found.m_in, found.m_out, picks
        ), found.journal

    def _read_state(self) -> tuple[dict[str, Any], Checkpoint] | None:
        """The manifest and checkpoint to go on from; None for a run that only begins."""
        if not self.run.checkpoint_file.exists():
            write_manifest(self.run.path, self.manifest)
            return None
        before = self.run.manifest
        for part in ("data", "model"):
            if before.get(part) != self.manifest[part]:
                raise RunError(f"resume: the {part} of {self.run.path} changed since it was begun")
        # Versions and times of every session that had a part in the weights.
        manifest = {
            **before,
            "resumed": [*before.get("resumed", []), self.session],
            "digests": self.manifest["digests"],
        }
        found = load_checkpoint(self.run.checkpoint_file)
        plan = [(stage, self.feed.steps(stage)) for stage in self.config.train.stages]
        aux = 0 if self.feed.aux_set is None else len(self.feed.aux_set)
        check_place(found, plan, aux, self.run.checkpoint_file)
        return manifest, found

    def _stage(self, index: int, progress: _Progress) -> _Progress:
        stage = self.config.train.stages[index]
        for group in self.optimizer.param_groups:
            group["momentum"] = stage.momentum
            group["nesterov"] = stage.momentum > 0
            group["weight_decay"] = stage.weight_decay
        if self.lipschitz is not None:
            self.lipschitz.norm, self.lipschitz.score = float(stage.lipschitz_norm), stage.score
        if progress.epoch == progress.batch == 0:
            self.optimizer.state.clear()  # a stage begins without the momentum of the one before
            progress = self._begin_stage(index, stage, progress)
        while progress.epoch < stage.epochs:
            step = self._epoch(stage, progress)
            progress = replace(progress, epoch=progress.epoch + 1, batch=0, step=step, picks=None)
            if progress.epoch < stage.epochs:
                self._save(progress)
        progress = _Progress(stage=index + 1, step=progress.step)
        self._save(progress)
        return progress

    def _begin_stage(self, index: int, stage: StageConfig, progress: _Progress) -> _Progress:
        """Choose the margins and note them."""
        m_in = m_out = None
        if stage.uses_margins:
            assert self.feed.aux_set is not None
            m_in = self._margin(stage.m_in, self.feed.train_set, stage.score)
            m_out = self._margin(stage.m_out, self.feed.aux_set, stage.score)
            if not m_in < m_out:
                raise ConfigError(
                    f"train.stages[{index}]: expected m_in < m_out, but got {m_in:.4g} and "
                    f"{m_out:.4g}; 'auto' takes mean scores of the model so far, which must tell "
                    "them apart already: train longer before, or set them by hand"
                )
        chosen = {"method": stage.method, "score": stage.score, "m_in": m_in, "m_out": m_out}
        self.manifest["stages"] = [*self.manifest["stages"][:index], chosen]
        self.world.once(lambda: write_manifest(self.run.path, self.manifest))
        return replace(progress, stage=index, epoch=0, m_in=m_in, m_out=m_out)

    def _save(self, progress: _Progress) -> None:
        self._check_finite()
        for name, weight in self.model.state_dict().items():
            if not weight.isfinite().all():
                raise self._diverged(progress.step, name)
        state = Checkpoint(
            stage=progress.stage,
            epoch=progress.epoch,
            batch=progress.batch,
            step=progress.step,
            m_in=progress.m_in,
            m_out=progress.m_out,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            low=None if progress.picks is None else progress.picks.low,
            high=None if progress.picks is None else progress.picks.high,
            journal=None if self.journal is None else self.journal.digest,
            lipschitz=None if self.lipschitz is None else self.lipschitz.state_dict(),
        )
        self.world.once(lambda: save_checkpoint(self.run.checkpoint_file, state))

    def _epoch(self, stage: StageConfig, progress: _Progress) -> int:
        train = self.config.train
        key = (self.config.seed, progress.stage, progress.epoch)
        if stage.pool is not None and stage.uses_outliers and progress.picks is None:
            progress = replace(progress, picks=self._choose_for_epoch(stage, key))
        per_epoch, step = self.feed.steps(stage), progress.step
        self.objective.train()
        batches = self.feed.batches(stage, key, start=progress.batch, picks=progress.picks)
        for i, batch in enumerate(batches, progress.batch):
            cpu = torch.device("cpu")
            torch.manual_seed(generator_for(cpu, *key, i, self.world.rank).initial_seed())
            in_stage = progress.epoch * per_epoch + i
            terms = _terms(stage, progress, in_stage, per_epoch, self.world.size)
            rate = _learning_rate(stage, in_stage, stage.epochs * per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            measure = step % train.log_every == 0
            with self._explained(terms):
                out = self.objective(batch, terms, measure)
            terms_first = {k: v for k, v in out.items() if k != "loss"}
            self.watch.see(step, {**terms_first, "loss": out["loss"]})
            if measure or self._at_once:
                self._check_finite()
            self.optimizer.zero_grad(set_to_none=True)
            with self._explained(terms):
                self.fabric.backward(out["loss"])
            if stage.clip_grad is not None:
                self.fabric.clip_gradients(
                    self.objective,
                    self.optimizer,
                    max_norm=stage.clip_grad,
                    error_if_nonfinite=False,
                )
            self.optimizer.step()
            self.world.align(self.model)
            if stage.lambda_lipschitz and self.lipschitz is not None:
                self.world.align(self.lipschitz)  # each saw the variances of its own batch
            step += 1
            self.done = step
            values: Mapping[str, float] = {}
            if measure:
                values = self._means(out) | {"lr": rate}
                if self.journal is not None:
                    self.journal.row(stage.method, progress.epoch + 1, step, values)
            self.observer.step(stage.method, progress.epoch + 1, values)
            every = train.checkpoint_every
            if every is not None and step % every == 0 and i + 1 < per_epoch:
                self._save(replace(progress, batch=i + 1, step=step))
        return step

    @contextlib.contextmanager
    def _explained(self, terms: Terms) -> Iterator[None]:
        """Say what to do where an operation of the model cannot be differentiated twice."""
        try:
            yield
        except RuntimeError as error:
            if not terms.gradient or "derivative for" not in str(error):
                raise
            raise ConfigError(
                f"train.stages: model {self.config.model.name} cannot be differentiated twice "
                f"({str(error).splitlines()[0]}); set estimator: finite-difference"
                + (" and precision: 32" if self.config.train.precision == "bf16" else "")
            ) from error

    def _means(self, out: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the processes."""
        names = list(out)
        stacked = torch.stack([out[k].detach().double() for k in names]).unsqueeze(0)
        return dict(zip(names, self.world.gather(stacked).mean(0).tolist(), strict=True))

    def _choose_for_epoch(self, stage: StageConfig, key: tuple[int, ...]) -> Picks:
        return choose_for_epoch(
            stage,
            self.feed,
            key,
            folder=self.run.path / "checkpoint" / "pool",
            wanted=self.feed.steps(stage)
            * min(stage.batch_size, len(self.feed.train_set))
            * stage.aux_ratio,
        )

    def _look(self, score: str) -> Look:
        """Images to features and scores of the model as it stands; its statistics do not move."""

        @torch.no_grad()
        def look(images: Tensor) -> tuple[Tensor, Tensor]:
            was_training = self.model.training
            self.model.eval()
            bf16 = self.config.train.precision == "bf16"
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                features = self.model.features(images)
                logits = self.model.head(features).float()
            self.model.train(was_training)
            scores = score_of(score)(logits)
            self.watch.see(self.done, {"score": scores})
            if self._at_once:
                self._check_finite()
            return features.float(), scores

        return look

    @torch.no_grad()
    def _margin(self, configured: Margin, images: DeviceImages, score: str) -> float:
        """The margin as set, or the mean score of the images."""
        if configured != "auto":
            return configured
        look, total = self._look(score), 0.0
        for indices in torch.arange(self.world.rank, len(images), self.world.size).split(
            _EVALUATION_BATCH
        ):
            total += float(look(images.pixels(indices))[1].double().sum())
        mean = self.world.sum(total) / len(images)
        if not math.isfinite(mean):
            raise self._diverged(self.done, "mean score")
        return mean

    def _check_finite(self) -> None:
        earliest, term = self.watch.first() or (NEVER, "")
        first = self.world.smallest(earliest)
        if first != NEVER:
            raise self._diverged(first, term if earliest == first else "a value elsewhere")

    def _diverged(self, step: int, term: str) -> TrainingError:
        """`step` steps were done before."""
        saved = self.run.checkpoint_file
        where = str(saved) if saved.exists() else "none yet"
        return TrainingError(
            f"training stopped at step {step + 1}: {term} is not finite; "
            f"last good checkpoint: {where}"
        )


def first_model(
    config: ExperimentConfig, splits: DataSplits, device: torch.device, *, initialise: bool = True
) -> tuple[Classifier, LoadReport | None]:
    """The model that a run begins with, on the CPU, and what was loaded into it.

    Args:
        config: the experiment.
        splits: its data.
        device: it is to be trained on.
        initialise: whether the weights of `train.init` are loaded, as where a run begins.

    Raises:
        UsageError: for a model that cannot take the images, or that the device cannot train, or
            weights that are missing or do not fit.
    """
    train = config.train
    if train.sync_batchnorm and device.type == "cpu":
        raise ConfigError("train.sync_batchnorm: expected a GPU, but got the CPU")
    sizes = model_sizes(splits, absent_class=train.absent_class)
    model = build_model(config.model.name, activation=config.model.activation, **sizes)
    init = train.init if initialise else None
    if init is None:
        return model, None
    source = init.weights
    if source.is_dir():
        run = RunFolder(source)
        run.read_weights()  # refused where they are not the ones that its manifest tells of
        source = run.weights_file
    return model, load_foreign(model, source, **init.model_dump(exclude={"weights"}))


def lipschitz_of(
    config: ExperimentConfig, model: Classifier, image_shape: tuple[int, ...]
) -> LipschitzPenalty | None:
    """L̄ of the model, or None where it cannot be had and no stage asks for it.

    Raises:
        UsageError: where a stage asks for it.
    """
    try:
        return lipschitz_penalty(model, image_shape, seed=config.seed)
    except (UnsupportedModelError, UsageError) as error:
        for i, stage in enumerate(config.train.stages):
            if stage.lambda_lipschitz:
                raise UsageError(f"train.stages[{i}].lambda_lipschitz: {error}") from error
        return None


def _terms(
    stage: StageConfig, progress: _Progress, step: int, per_epoch: int, processes: int
) -> Terms:
    """Of one step, counted from the stage's beginning, whose epochs have so many."""
    ramp = stage.lambda_lipschitz_ramp * per_epoch
    penalised, weight = step % stage.penalty_every == 0, stage.penalty_every
    risen = min(1.0, (step + 1) / max(1.0, ramp))
    return Terms(
        outlier_loss=stage.outlier_loss,
        gradient=stage.gradient and penalised,
        lambda_score=stage.lambda_score,
        lambda_grad=stage.lambda_grad * weight,
        lambda_lipschitz=stage.lambda_lipschitz * risen * weight if penalised else 0.0,
        score=stage.score,
        m_in=-math.inf if progress.m_in is None else progress.m_in,
        m_out=math.inf if progress.m_out is None else progress.m_out,
        scaling=stage.scaling,
        gradient_space=stage.gradient_space,
        estimator=stage.estimator,
        processes=processes,
    )


def _learning_rate(stage: StageConfig, step: int, steps: int) -> float:
    if stage.schedule == "constant":
        return stage.lr
    return stage.lr * 0.5 * (1 + math.cos(math.pi * step / steps))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
