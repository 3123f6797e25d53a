"""The stages of a run, step by step, through Lightning Fabric."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from greg_cert.config import ExperimentConfig
from greg_cert.data import DataSplits
from greg_cert.digests import tensors_digest
from greg_cert.errors import ConfigError, RunError
from greg_cert.models.last_layer import pass_with_features
from greg_cert.models.modes import evaluating
from greg_cert.processes import Processes
from greg_cert.runs.manifest import MANIFEST_FILE, write_manifest
from greg_cert.runs.records import RunFolder
from greg_cert.runs.training_log import TrainingLogWriter, read_training_log
from greg_cert.scores import score_of
from greg_cert.seeded import generator_for
from greg_cert.stages import Margin, StageConfig
from greg_cert.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from greg_cert.train.divergence import FirstNonFinite
from greg_cert.train.feed.batches import DeviceImages
from greg_cert.train.feed.feed import Feed, Look
from greg_cert.train.feed.pool import choose_for_epoch
from greg_cert.train.gradient_notes import explained, note_share
from greg_cert.train.initial_model import first_model, lipschitz_of
from greg_cert.train.manifest import continued, first_manifest, session_record
from greg_cert.train.objective.step import Objective, Terms, compile_in_place
from greg_cert.train.observer import Observer
from greg_cert.train.optimizer import load_optimizer, make_optimizer
from greg_cert.train.outliers.choose import Picks
from greg_cert.train.progress import Progress, check_place
from greg_cert.train.schedule import learning_rate, terms_of_step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_EVALUATION_BATCH = 512


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
        self.processes = Processes(fabric.global_rank, fabric.world_size)
        self.device = fabric.device
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
        # Fabric wraps the objective, which holds the model: both share the weights.
        self.objective: Any
        self.optimizer: Any
        objective = Objective(self.model, bf16=train.precision == "bf16")
        self.objective = fabric.setup_module(objective)
        self.feed = Feed(
            train_set=DeviceImages(splits.train, self.device),
            aux_set=None if splits.aux is None else DeviceImages(splits.aux, self.device),
            look=self._look,
            processes=self.processes,
            device=self.device,
            channels_last=train.channels_last,
        )
        self.lipschitz = objective.lipschitz = lipschitz_of(
            config, self.model, splits.train.image_shape
        )
        self.non_finite = FirstNonFinite(self.processes, run.checkpoint_file)
        self.done = 0  # steps
        self.log: TrainingLogWriter | None = None
        # Elsewhere a look at the values waits for the device or for the other processes.
        self._at_once = self.device.type == "cpu" and self.processes.size == 1
        self.session = session_record(self.device, self.processes.size)
        self.manifest = first_manifest(config, splits, loaded, command, self.session)

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
        self.processes.once(lambda: self._open_log(rows))
        try:
            for i in range(progress.stage, len(stages)):
                progress = self._stage(i, progress)
        finally:
            if self.log is not None:
                self.log.close()
        self.processes.once(self._finish)

    def _open_log(self, rows: str | None) -> None:
        files = self.run.metrics_file, self.run.events_folder
        self.log = TrainingLogWriter(*files, self.done, rows)

    def _finish(self) -> None:
        assert self.log is not None
        self.manifest["digests"] |= {
            self.run.metrics_file.name: self.log.digest,
            self.run.weights_file.name: tensors_digest(self.model.state_dict()),
        }
        write_manifest(self.run.path, self.manifest)
        self.run.save_weights(self.model)  # last: its presence says that the run is complete

    def _restore(self) -> tuple[Progress, str | None]:
        """Where to go on, and the digest of the rows of metrics up to there."""
        state = self.processes.once(self._read_state)
        if state is None:
            return Progress(), None
        self.manifest, found = state
        try:
            self.model.load_state_dict(found.model)
            if not all(value.isfinite().all() for value in self.model.state_dict().values()):
                raise ValueError("weights that are not finite")
            if found.epoch or found.batch:  # else its stage makes a new one
                self.optimizer = self._optimizer(self.config.train.stages[found.stage])
                load_optimizer(self.optimizer, found.optimizer)
            if self.lipschitz is not None and found.lipschitz is not None:
                self.lipschitz.load_state_dict(found.lipschitz)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise RunError(
                f"{self.run.checkpoint_file}: expected the state of this model and its optimiser, "
                f"but got: {error!s:.200}"
            ) from error
        return Progress(**{f.name: getattr(found, f.name) for f in fields(Progress)}), found.journal

    def _read_state(self) -> tuple[dict[str, Any], Checkpoint] | None:
        """The manifest and checkpoint to go on from; None for a run that only begins."""
        if not self.run.checkpoint_file.exists():
            write_manifest(self.run.path, self.manifest)
            return None
        before = self.run.manifest
        manifest = continued(before, self.manifest, self.session, self.run.path)
        found = load_checkpoint(self.run.checkpoint_file)
        plan = [(stage, self.feed.steps(stage)) for stage in self.config.train.stages]
        aux = 0 if self.feed.aux_set is None else len(self.feed.aux_set)
        check_place(found, plan, aux, self.run.checkpoint_file)
        begun = found.stage + (found.epoch > 0 or found.batch > 0)
        if len(manifest["stages"]) < begun:
            got = len(manifest["stages"])
            raise RunError(f"resume: expected {begun} stages in {MANIFEST_FILE}, but got {got}")
        return manifest, found

    def _stage(self, index: int, progress: Progress) -> Progress:
        stage = self.config.train.stages[index]
        if self.lipschitz is not None:
            self.lipschitz.norm, self.lipschitz.score = float(stage.lipschitz_norm), stage.score
        if progress.epoch == progress.batch == 0:
            self.optimizer = self._optimizer(stage)  # without the state of the stage before
            progress = self._begin_stage(index, stage, progress)
        while progress.epoch < stage.epochs:
            step = self._epoch(stage, progress)
            progress = replace(
                progress, epoch=progress.epoch + 1, batch=0, step=step, low=None, high=None
            )
            self.processes.once(partial(self._note_penalty, index, stage, progress))
            if progress.epoch < stage.epochs:
                self._save(progress)
        progress = Progress(stage=index + 1, step=progress.step)
        self._save(progress)
        return progress

    def _optimizer(self, stage: StageConfig) -> Any:
        return self.fabric.setup_optimizers(make_optimizer(stage, self.model.parameters()))

    def _note_penalty(self, index: int, stage: StageConfig, progress: Progress) -> None:
        """Once a stage, after its first epoch: what part of the loss its gradient penalty is."""
        noted = self.manifest["stages"][index]
        if stage.gradient and stage.lambda_grad and "penalty_share" not in noted:
            first = progress.step - progress.epoch * self.feed.steps(stage)
            noted |= note_share(index, stage, read_training_log(self.run.path), first)
            write_manifest(self.run.path, self.manifest)

    def _begin_stage(self, index: int, stage: StageConfig, progress: Progress) -> Progress:
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
        chosen |= stage.weights
        self.manifest["stages"] = [*self.manifest["stages"][:index], chosen]
        self.processes.once(lambda: write_manifest(self.run.path, self.manifest))
        return replace(progress, stage=index, epoch=0, m_in=m_in, m_out=m_out)

    @torch.no_grad()
    def _margin(self, configured: Margin, images: DeviceImages, score: str) -> float:
        """The margin as set, or the mean score of the images."""
        if configured != "auto":
            return configured
        look, total = self._look(score), 0.0
        mine = torch.arange(self.processes.rank, len(images), self.processes.size)
        for indices in mine.split(_EVALUATION_BATCH):
            total += float(look(images.pixels(indices))[1].double().sum())
        mean = sum(self.processes.collect(total)) / len(images)
        if not math.isfinite(mean):
            raise self.non_finite.error(self.done, "mean score")
        return mean

    def _look(self, score: str) -> Look:
        """Images to features and scores of the model as it stands; its statistics do not move."""

        @torch.no_grad()
        def look(images: Tensor) -> tuple[Tensor, Tensor]:
            bf16 = self.config.train.precision == "bf16"
            autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=bf16)
            with evaluating(self.model), autocast:
                found = pass_with_features(self.model, images)
                logits = found.logits.float()
            scores = score_of(score)(logits)
            self.non_finite.see(self.done, {"score": scores})
            if self._at_once:
                self.non_finite.check()
            # Without a last linear layer no stage chooses by features (`first_model`).
            features = logits if found.features is None else found.features
            return features.float(), scores

        return look

    def _save(self, progress: Progress) -> None:
        self.non_finite.check()
        for name, weight in self.model.state_dict().items():
            if not weight.isfinite().all():
                raise self.non_finite.error(progress.step, name)
        state = Checkpoint(
            **vars(progress),
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            journal=None if self.log is None else self.log.digest,
            lipschitz=None if self.lipschitz is None else self.lipschitz.state_dict(),
        )
        self.processes.once(lambda: save_checkpoint(self.run.checkpoint_file, state))

    def _epoch(self, stage: StageConfig, progress: Progress) -> int:
        """The steps of an epoch that are left; how many the run has done after them."""
        train, per_epoch, step = self.config.train, self.feed.steps(stage), progress.step
        key = (self.config.seed, progress.stage, progress.epoch)
        picks = None
        if stage.pool is not None and stage.uses_outliers:
            if progress.low is not None and progress.high is not None:
                picks = Picks(progress.low, progress.high)
            else:
                wanted = min(stage.batch_size, len(self.feed.train_set)) * stage.aux_ratio
                picks = choose_for_epoch(stage, self.feed, key, per_epoch * wanted)
            progress = replace(progress, low=picks.low, high=picks.high)
        self.objective.train()
        batches = self.feed.batches(stage, key, start=progress.batch, picks=picks)
        for i, batch in enumerate(batches, progress.batch):
            cpu = torch.device("cpu")
            torch.manual_seed(generator_for(cpu, *key, i, self.processes.rank).initial_seed())
            in_stage = progress.epoch * per_epoch + i
            terms = terms_of_step(stage, progress, in_stage, per_epoch, self.processes.size)
            rate = learning_rate(stage, in_stage, stage.epochs * per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            measure = in_stage % train.log_every == 0
            with self._explained(terms):
                out = self.objective(batch, terms, measure)
            terms_first = {k: v for k, v in out.items() if k != "loss"}
            self.non_finite.see(step, {**terms_first, "loss": out["loss"]})
            if measure or self._at_once:
                self.non_finite.check()
            self._descend(out["loss"], terms, stage)
            self.done = step = step + 1
            values: Mapping[str, float] = {}
            if measure:
                values = self._means(out) | {"lr": rate}
                if self.log is not None:
                    self.log.row(stage.method, progress.epoch + 1, step, values)
            self.observer.step(stage.method, progress.epoch + 1, values)
            every = train.checkpoint_every
            if every is not None and step % every == 0 and i + 1 < per_epoch:
                self._save(replace(progress, batch=i + 1, step=step))
        return step

    def _descend(self, loss: Tensor, terms: Terms, stage: StageConfig) -> None:
        """One step of the optimiser, after which all processes have the same model."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._explained(terms):
            self.fabric.backward(loss)
        if stage.clip_grad is not None:
            self.fabric.clip_gradients(
                self.objective, self.optimizer, max_norm=stage.clip_grad, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.processes.align(self.model)
        if stage.lambda_lipschitz and self.lipschitz is not None:
            self.processes.align(self.lipschitz)  # each saw the variances of its own batch

    def _explained(self, terms: Terms) -> contextlib.AbstractContextManager[None]:
        if not terms.gradient:
            return contextlib.nullcontext()
        return explained(self.config.network, self.config.train.precision)

    def _means(self, out: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over the processes."""
        names = list(out)
        stacked = torch.stack([out[k].detach().double() for k in names]).unsqueeze(0)
        return dict(zip(names, self.processes.gather(stacked).mean(0).tolist(), strict=True))
