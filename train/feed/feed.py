"""The batches of an epoch: which images, in which order, shifted how, and by which process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from greg_cert.data import prefetch
from greg_cert.processes import Processes
from greg_cert.seeded import generator_for
from greg_cert.stages import StageConfig
from greg_cert.train.feed.batches import DeviceImages, Draw, Shifts, batch_indices, draw_shifts
from greg_cert.train.feed.crops import ResizedCrops, draw_crops
from greg_cert.train.feed.mixing import mixed, mixing_share
from greg_cert.train.objective.step import Batch
from greg_cert.train.outliers.choose import Picks, choose

# What each stream of random numbers is for, so that none is used twice.
_ORDER, _AUXILIARY, _SHIFT_ID, _SHIFT_LOW, _SHIFT_HIGH, _CHOICE, _MIX = range(1, 8)


@dataclass(frozen=True)
class _Step:
    """Indices of one step, of all processes: ID images and auxiliary ones."""

    number: int
    known: Tensor
    low: Tensor | None  # candidates where the model is to choose
    high: Tensor | None  # None where `low` serves both ends
    choose: bool


_Stored = tuple[Tensor | None, Tensor | None, Tensor | None]  # of a step's three sets, if read
Look = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (B, C, H, W) to features (B, D) and scores (B,) of the model as it stands."""


@dataclass(frozen=True)
class Feed:
    """Makes batches; every draw follows from (seed, stage, epoch, step), so any step can be first.

    A batch is the same however many processes share it: each takes its rows of the whole.
    """

    train_set: DeviceImages  # ID images with labels
    aux_set: DeviceImages | None  # auxiliary images, where a stage needs them
    look: Callable[[str], Look]  # by a score's name
    processes: Processes  # that share each step
    device: torch.device  # where batches go
    channels_last: bool  # memory format of the batches

    def steps(self, stage: StageConfig) -> int:
        """Steps in one epoch."""
        return max(1, len(self.train_set) // stage.batch_size)

    def batches(
        self,
        stage: StageConfig,
        key: tuple[int, ...],
        *,
        start: int = 0,
        picks: Picks | None = None,
    ) -> Iterator[Batch]:
        """The batches of the epoch of `key` (seed, stage, epoch), from step `start` on.

        `picks` are the auxiliary images of the whole epoch, where the stage has a pool.
        """

        def finished(step: _Step, stored: _Stored) -> Batch:
            batch = self._batch(stage, key, step, stored)
            if not stage.mixes:
                return batch
            share = mixing_share(stage.mix_alpha, *key, step.number, _MIX)
            return mixed(batch, share, smoothed=stage.uses_margins)

        plan = self._plan(stage, key, start, picks)
        if self.train_set.resident and (self.aux_set is None or self.aux_set.resident):
            for step in plan:
                yield finished(step, (None, None, None))
            return
        with contextlib.closing(prefetch(plan, partial(self._read, stage, key))) as ready:
            for step, stored in ready:
                yield finished(step, stored)

    def _plan(
        self, stage: StageConfig, key: tuple[int, ...], start: int, picks: Picks | None
    ) -> Iterator[_Step]:
        """What each step takes, before anything of it is read."""
        cpu = torch.device("cpu")
        pool = None
        if stage.uses_outliers and picks is None:
            assert self.aux_set is not None
            pool = Draw(len(self.aux_set), generator_for(cpu, *key, _AUXILIARY))
        order = generator_for(cpu, *key, _ORDER)
        each = stage.candidates if stage.chooses else stage.aux_ratio
        for number, indices in enumerate(
            batch_indices(len(self.train_set), stage.batch_size, order)
        ):
            low = high = None
            if picks is not None:
                ends = 2 if stage.share_ends else 1
                low, high = picks.step(number, len(indices) * stage.aux_ratio * ends)
            elif pool is not None:
                low = pool.take(len(indices) * each)
            if number >= start:
                chosen = pool is not None and stage.chooses
                yield _Step(number, indices, low, None if stage.one_list else high, chosen)

    def _read(self, stage: StageConfig, key: tuple[int, ...], step: _Step) -> _Stored:
        """What is read from disk for this process's share of a step."""

        def read(images: DeviceImages | None, indices: Tensor | None, use: int) -> Tensor | None:
            if images is None or indices is None:
                return None
            mine = self.processes.share(len(indices))
            crops = _crops(len(indices), stage, (*key, step.number, use))
            return images.read(indices[mine], None if crops is None else crops.of(mine))

        return (
            read(self.train_set, step.known, _SHIFT_ID),
            read(self.aux_set, step.low, _SHIFT_LOW),
            read(self.aux_set, step.high, _SHIFT_HIGH),
        )

    def _batch(
        self,
        stage: StageConfig,
        key: tuple[int, ...],
        step: _Step,
        stored: _Stored,
    ) -> Batch:
        at = (*key, step.number)
        mine = self.processes.share(len(step.known))
        known = self._augmented(self.train_set, step.known, stage, (*at, _SHIFT_ID), stored[0])(
            mine
        )
        assert self.train_set.labels is not None
        labels = self.train_set.labels[step.known[mine].to(self.device)]
        if step.low is None or self.aux_set is None:
            return Batch(known, labels)
        some = self._augmented(self.aux_set, step.low, stage, (*at, _SHIFT_LOW), stored[1])
        low = some(self.processes.share(len(step.low)))
        if step.choose:
            wanted = len(step.known) * stage.aux_ratio
            return Batch(known, labels, *self._chosen(stage, low, some, known, wanted, at))
        if step.high is None:
            return Batch(known, labels, low, low)
        others = self._augmented(self.aux_set, step.high, stage, (*at, _SHIFT_HIGH), stored[2])
        return Batch(known, labels, low, others(self.processes.share(len(step.high))))

    def _chosen(
        self,
        stage: StageConfig,
        candidates: Tensor,
        some: Callable[[Tensor | slice], Tensor],
        known: Tensor,
        wanted: int,
        at: tuple[int, ...],
    ) -> tuple[Tensor, Tensor]:
        """This process's share of what the model chooses among the step's candidates."""
        look, gather = self.look(stage.score), self.processes.gather
        features, scores = (gather(v) for v in look(candidates))
        id_features = gather(look(known)[0]) if stage.strategy == "posterior" else None
        generator = generator_for(self.device, *at, _CHOICE)
        low, high = choose(
            stage, features, scores, wanted, id_features=id_features, generator=generator
        )
        if self.processes.size == 1:
            first = candidates[low]
            return first, first if stage.one_list else candidates[high]
        # The same on all processes: devices may round differently.
        low, high = (v.to(self.device) for v in self.processes.agree((low.cpu(), high.cpu())))
        first = some(self._even(low))
        return first, first if stage.one_list else some(self._even(high))

    def _even(self, places: Tensor) -> Tensor:
        """This process's share of `places`, some of them twice where they do not divide evenly."""
        count = -(-len(places) // self.processes.size) * self.processes.size
        whole = places[torch.arange(count, device=places.device) % len(places)]
        return whole[self.processes.share(count)]

    def _augmented(
        self,
        images: DeviceImages,
        indices: Tensor,
        stage: StageConfig,
        key: tuple[int, ...],
        stored: Tensor | None,
    ) -> Callable[[Tensor | slice], Tensor]:
        """A function from places among `indices` to those images, augmented as drawn for all.

        What was `stored` is of this process's share, the only slice that is ever asked for.
        """
        moves: Shifts | ResizedCrops | None = _crops(len(indices), stage, key)
        if stage.augment in ("shift", "shift_flip"):
            moves = draw_shifts(
                len(indices),
                images.width,
                generator_for(self.device, *key),
                flip=stage.augment == "shift_flip",
                share=stage.augment_share,
            )

        def load(places: Tensor | slice) -> Tensor:
            on_cpu = places.cpu() if isinstance(places, Tensor) else places
            ready = stored if isinstance(places, slice) else None
            found = images.pixels(
                indices[on_cpu], ready, None if moves is None else moves.of(places)
            )
            return found.contiguous(
                memory_format=torch.channels_last if self.channels_last else torch.contiguous_format
            )

        return load


def _crops(count: int, stage: StageConfig, key: tuple[int, ...]) -> ResizedCrops | None:
    """The crops of some images, where the stage takes such; the same whenever they are drawn."""
    if stage.augment != "resized_crop_flip":
        return None
    generator = generator_for(torch.device("cpu"), *key)
    return draw_crops(count, generator, share=stage.augment_share)
