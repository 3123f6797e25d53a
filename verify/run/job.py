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
from greg_cert.verify.run.candidates import Candidate, images_of, side_of
from greg_cert.verify.run.run_certifier import CROSSED, HarderAttack, RunCertifier, claimed_radius
from greg_cert.verify.run.shards import ShardKey, ShardStore
from greg_cert.verify.run.tables import CERTIFY, paired_rows
from greg_cert.verify.run.tasks import Task, cut, plan_tasks

AUDIT_CHUNK = 64


class Tick(NamedTuple):
    """How far this process is with one run."""

    step: str  # `certify` or `audit`
    run: str  # its name
    done: int  # samples, those of earlier calls among them
    of: int  # samples in all; of those still to do, only this process's share
    found: int  # certificates among those done, or contradicted ones in an audit


Progress = Callable[[Tick], None]


@dataclass(frozen=True)
class Job:
    """What one call of `verify_runs` works on."""

    runs: Sequence[Candidate]  # in the order of the tables
    splits: DataSplits
    settings: VerifyConfig
    wanted: Mapping[str, Sequence[int]]  # of each set of samples, in the order they are done in
    chunk: int  # samples of a task, at most
    store: ShardStore
    processes: Processes
    thresholds: Sequence[float]  # γ of each run
    deadline: float | None  # by `time.monotonic`, after which no task is begun
    progress: Progress | None  # called after each chunk
    _made: dict[tuple[int, str], RunCertifier] = field(default_factory=dict, init=False)

    def certify(self, limit: int | None) -> None:
        """Certify what is wanted and not finished, or as much of it as limit and time allow."""

        def plan() -> list[Task]:
            pending = {
                (n, part): set(indices) - self.store.finished(self._key(CERTIFY, n, part))
                for n in range(len(self.runs))
                for part, indices in self.wanted.items()
            }
            # Who names a size has chunks of that size; else pilots of round numbers can grow.
            rounded = self.settings.batch is None
            chunks = {p: cut(i, self.chunk, rounded=rounded) for p, i in self.wanted.items()}
            return plan_tasks(chunks, pending, limit)

        def do(run: int, part: str, indices: tuple[int, ...]) -> pd.DataFrame:
            chunk = torch.tensor(indices, device="cpu")
            return self._certifier(run, part).certify(images_of(self.splits, part), chunk)

        self._work("certify", CERTIFY, plan, do, lambda f: int((f["status"] == CERTIFIED).sum()))

    def audit(self, attack: HarderAttack) -> None:
        """Attack every finished certificate again, where that was not done before."""
        # Only what the tables will hold: samples finished under every run.
        paired = paired_rows(self.store, self.runs, self.wanted)

        def plan() -> list[Task]:
            pending = {
                (n, part): set(rows.loc[claimed_radius(rows) > 0, "index"].tolist())
                - self.store.finished(self._key(attack.kind, n, part))
                for n, parts in enumerate(paired)
                for part, rows in parts.items()
                if len(rows)
            }
            chunks = {p: cut(i, AUDIT_CHUNK, rounded=False) for p, i in self.wanted.items()}
            return plan_tasks(chunks, pending)

        def do(run: int, part: str, indices: tuple[int, ...]) -> pd.DataFrame:
            rows = paired[run][part]
            chosen = rows[rows["index"].isin(indices)]
            return self._certifier(run, part).audit(images_of(self.splits, part), chosen, attack)

        self._work("audit", attack.kind, plan, do, lambda f: int(np.isfinite(f[CROSSED]).sum()))

    def _certifier(self, run: int, part: str) -> RunCertifier:
        """What certifies samples of a part under a run, made for the first of them."""
        key = (run, side_of(part))
        if key not in self._made:
            about = self.runs[run]
            shape = images_of(self.splits, part).image_shape
            self._made[key] = RunCertifier(
                about.model, self.thresholds[run], key[1], self.settings, about.score, shape
            )
        return self._made[key]

    def _key(self, kind: str, run: int, part: str) -> ShardKey:
        return ShardKey(kind, self.runs[run].digest, part)

    def _work(
        self,
        step: str,
        kind: str,
        plan: Callable[[], list[Task]],
        do: Callable[[int, str, tuple[int, ...]], pd.DataFrame],
        count: Callable[[pd.DataFrame], int],
    ) -> None:
        """Do this process's share, wait for the others, and see that nothing of theirs is lost.

        The first process makes the plan of all; `do` gives rows of a run, a part and indices, for
        shards of a kind, and `count` says how many of them are told as `found`.
        """

        def plan_anew() -> list[Task]:
            self.store.refresh()
            return plan()

        mine = self.processes.once(plan_anew)[self.processes.rank :: self.processes.size]
        self.store.refresh()
        ticks = []
        for run, about in enumerate(self.runs):
            done, found = self._finished(kind, run, count)
            left = sum(len(i) for task in mine for n, i in task.work if n == run)
            ticks.append(Tick(step, about.name, done, done + left, found))
            self._tell(ticks[run])
        before = set(self.store.names)
        for task in mine:
            if self.deadline is not None and time.monotonic() >= self.deadline:
                break
            for run, indices in task.work:
                rows = do(run, task.part, indices)
                self.store.append(self._key(kind, run, task.part), rows)
                done, found = ticks[run].done + len(indices), ticks[run].found + count(rows)
                ticks[run] = ticks[run]._replace(done=done, found=found)
                self._tell(ticks[run])
        written = self.processes.collect(set(self.store.names) - before)
        if self.processes.size > 1:
            self.store.refresh()
            if lost := set().union(*written) - set(self.store.names):
                raise RunError(
                    f"out: expected the shards of all processes in {self.store.folder}, but "
                    f"{len(lost)} are not there; the processes need the same folder"
                )

    def _finished(
        self, kind: str, run: int, count: Callable[[pd.DataFrame], int]
    ) -> tuple[int, int]:
        """How many rows of what is wanted are there already, and what `count` finds in them."""
        done = found = 0
        for part, indices in self.wanted.items():
            rows = self.store.rows(self._key(kind, run, part))
            rows = rows[rows["index"].isin(indices)]
            done += len(rows)
            found += count(rows) if len(rows) else 0
        return done, found

    def _tell(self, tick: Tick) -> None:
        if self.progress is not None:
            self.progress(tick)
