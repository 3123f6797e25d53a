"""Doing tasks: every process its share, shard by shard, until all is done or the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from greg_cert.certificates.format import CERTIFIED
from greg_cert.config import VerifyConfig
from greg_cert.data import DataSplits
from greg_cert.errors import RunError
from greg_cert.processes import Processes
from greg_cert.verify.run.chunk import CROSSED, ChunkCertifier, Harder, claimed_radius
from greg_cert.verify.run.paired import Candidate, images_of, side_of
from greg_cert.verify.run.shards import ShardKey, ShardStore
from greg_cert.verify.run.tables import CERTIFY, paired_rows
from greg_cert.verify.run.tasks import Task, cut, plan_tasks

AUDIT_CHUNK = 64


class Tick(NamedTuple):
    """How far this process is with one run.

    Attributes:
        step: `certify` or `audit`.
        run: name of the run.
        done: samples done, those of earlier calls among them.
        of: samples in all; of those still to do, only this process's share.
        found: certificates among those done, or contradicted ones in an audit.
    """

    step: str
    run: str
    done: int
    of: int
    found: int


Progress = Callable[[Tick], None]


@dataclass(frozen=True)
class Job:
    """What one call of `verify_runs` works on.

    Attributes:
        runs: in the order of the tables.
        splits: the data.
        settings: how they are verified.
        wanted: for each set of samples the chosen indices, in the order they are done in.
        chunk: samples of a task, at most.
        store: where results go.
        processes: that share the work.
        thresholds: γ of each run.
        deadline: when, by `time.monotonic`, no more tasks are begun; None: never.
        progress: called after each chunk.
    """

    runs: Sequence[Candidate]
    splits: DataSplits
    settings: VerifyConfig
    wanted: Mapping[str, Sequence[int]]
    chunk: int
    store: ShardStore
    processes: Processes
    thresholds: Sequence[float]
    deadline: float | None
    progress: Progress | None
    _made: dict[tuple[int, str], ChunkCertifier] = field(default_factory=dict, init=False)

    def certify(self, limit: int | None) -> None:
        """Certify what is wanted and not finished, or as much of it as limit and time allow."""

        def plan() -> list[Task]:
            self.store.refresh()
            pending = {
                (n, part): set(indices) - self.store.finished(self._key(CERTIFY, n, part))
                for n in range(len(self.runs))
                for part, indices in self.wanted.items()
            }
            # Who names a size has chunks of that size; else pilots of round numbers can grow.
            rounded = self.settings.batch is None
            chunks = {p: cut(i, self.chunk, rounded=rounded) for p, i in self.wanted.items()}
            return plan_tasks(chunks, pending, limit)

        def do(run: int, part: str, indices: tuple[int, ...]) -> int:
            images = images_of(self.splits, part)
            chunk = torch.tensor(indices, device="cpu")
            frame = self._certifier(run, part).certify(images, chunk)
            self.store.append(self._key(CERTIFY, run, part), frame)
            return _certified(frame)

        tasks = self.processes.once(plan)
        self.store.refresh()
        old = [
            [self.store.rows(self._key(CERTIFY, n, p)) for p in self.wanted] for n in self._numbers
        ]
        self._work(
            "certify", tasks, do, [_Tally.of(parts, self.wanted, _certified) for parts in old]
        )

    def audit(self, harder: Harder) -> None:
        """Attack every finished certificate again, where that was not done before."""
        # Only what the tables will hold: samples finished under every run.
        paired = paired_rows(self.store, self.runs, self.wanted)

        def plan() -> list[Task]:
            pending = {
                (n, part): set(rows.loc[claimed_radius(rows) > 0, "index"].tolist())
                - self.store.finished(self._key(harder.kind, n, part))
                for n, parts in enumerate(paired)
                for part, rows in parts.items()
                if len(rows)
            }
            chunks = {p: cut(i, AUDIT_CHUNK, rounded=False) for p, i in self.wanted.items()}
            return plan_tasks(chunks, pending)

        def do(run: int, part: str, indices: tuple[int, ...]) -> int:
            rows, images = paired[run][part], images_of(self.splits, part)
            chosen = rows[rows["index"].isin(indices)]
            found = self._certifier(run, part).audit(images, chosen, harder)
            self.store.append(self._key(harder.kind, run, part), found)
            return _crossed(found)

        tasks = self.processes.once(plan)
        old = [
            [self.store.rows(self._key(harder.kind, n, p)) for p in self.wanted]
            for n in self._numbers
        ]
        self._work("audit", tasks, do, [_Tally.of(parts, self.wanted, _crossed) for parts in old])

    def _certifier(self, run: int, part: str) -> ChunkCertifier:
        """What certifies samples of a part under a run, made for the first of them."""
        key = (run, side_of(part))
        if key not in self._made:
            about = self.runs[run]
            shape = images_of(self.splits, part).image_shape
            self._made[key] = ChunkCertifier(
                about.model, self.thresholds[run], key[1], self.settings, about.score, shape
            )
        return self._made[key]

    @property
    def _numbers(self) -> range:
        return range(len(self.runs))

    def _key(self, kind: str, run: int, part: str) -> ShardKey:
        return ShardKey(kind, self.runs[run].digest, part)

    def _work(
        self,
        step: str,
        tasks: Sequence[Task],
        do: Callable[[int, str, tuple[int, ...]], int],
        tallies: Sequence[_Tally],
    ) -> None:
        """Do this process's share, wait for the others, and see that nothing of theirs is lost."""
        mine = tasks[self.processes.rank :: self.processes.size]
        left = [sum(len(i) for t in mine for n, i in t.work if n == run) for run in self._numbers]
        for run in self._numbers:
            tallies[run].of_all = tallies[run].done + left[run]
            self._tell(step, run, tallies[run])
        before = set(self.store.names)
        for task in mine:
            if self.deadline is not None and time.monotonic() >= self.deadline:
                break
            for run, indices in task.work:
                tallies[run].found += do(run, task.part, indices)
                tallies[run].done += len(indices)
                self._tell(step, run, tallies[run])
        written = self.processes.collect(set(self.store.names) - before)
        if self.processes.size > 1:
            self.store.refresh()
            if lost := set().union(*written) - set(self.store.names):
                raise RunError(
                    f"out: expected the shards of all processes in {self.store.folder}, but "
                    f"{len(lost)} are not there; the processes need the same folder"
                )

    def _tell(self, step: str, run: int, tally: _Tally) -> None:
        if self.progress is not None:
            name = self.runs[run].name
            self.progress(Tick(step, name, tally.done, tally.of_all, tally.found))


@dataclass
class _Tally:
    """Running counts of one run."""

    done: int
    found: int
    of_all: int = field(default=0)

    @classmethod
    def of(
        cls,
        parts: Sequence[pd.DataFrame],
        wanted: Mapping[str, Sequence[int]],
        count: Callable[[pd.DataFrame], int],
    ) -> _Tally:
        """Counts of the rows that are there already."""
        chosen = [
            rows[rows["index"].isin(indices)]
            for rows, indices in zip(parts, wanted.values(), strict=True)
        ]
        return cls(sum(map(len, chosen)), sum(count(rows) for rows in chosen if len(rows)))


def _certified(frame: pd.DataFrame) -> int:
    return int((frame["status"] == CERTIFIED).sum())


def _crossed(frame: pd.DataFrame) -> int:
    return int(np.isfinite(frame[CROSSED]).sum())
