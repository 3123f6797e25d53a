"""Trained runs that verify in a second, and processes that verify them."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from commands import FORKS, launched, speak_into
from torch import Tensor

import greg_cert.report
import greg_cert.verify.run.runs
from greg_cert.cli import main
from greg_cert.config import ExperimentConfig, VerifyConfig, parse_config
from greg_cert.data import load_data
from greg_cert.runs.records import RunFolder
from greg_cert.train import fit
from greg_cert.verify.attack import audit
from greg_cert.verify.attack.pgd import smallest_attack
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.run import job

SETTINGS = VerifyConfig(
    method="crown-ibp",
    cuts=0,
    options={"rounds": 3, "lipschitz_integrated": False},
    samples=12,
    engine="native",
    seed=4,
    batch=4,
    ood_samples=5,
)


def experiment(name: str, lr: float, **data: Any) -> ExperimentConfig:
    return parse_config(
        {
            "name": name,
            "data": {
                "id": {"source": "digits", "limit": 400},
                "ood": [{"source": "uniform", "n": 30}, {"source": "gaussian", "n": 30}],
                **data,
            },
            "model": {"name": "mlp"},
            "train": {"stages": [{"method": "ce", "epochs": 3, "lr": lr, "batch_size": 16}]},
            "verify": SETTINGS.model_dump(),
        }
    )


def train_pair(folder: Path) -> list[RunFolder]:
    """The runs `slow` and `fast`."""
    configs = [experiment("slow", 0.02), experiment("fast", 0.1)]
    return [fit(c, load_data(c.data), folder / c.title) for c in configs]


def hasty_attack(score: Any, x: Tensor, radius: float, plan: AttackPlan, names: Any) -> Any:
    """Smallest attacks after a few steps, for what is about rows and not about what they say."""
    return smallest_attack(score, x, radius, replace(plan, steps=5, rounds=4, polish=3), names)


class VerifyProcess:
    """`greg-cert verify ARGUMENTS` in a process of its own.

    Args:
        into: folder for what it writes to its standard streams.
        arguments: of the command.
        slow: seconds that each chunk takes more.
        log: where a line is written for each sample that reaches the disk.
        mortal: RANK of the process that dies at its first chunk.
        environment: variables for the process.
    """

    def __init__(
        self,
        into: Path,
        arguments: tuple[object, ...],
        slow: float = 0.0,
        log: Path | None = None,
        mortal: str = "",
        **environment: str,
    ) -> None:
        number = len(list(into.glob("said-*")))
        self._files = [into / f"shown-{number}", into / f"said-{number}"]
        self._files[1].touch()
        self._process = FORKS.Process(
            target=_verify,
            args=(list(map(str, arguments)), self._files, slow, log, mortal, environment),
        )
        self._process.start()
        self.kill, self.is_alive = self._process.kill, self._process.is_alive

    def wait(self) -> int | None:
        """The exit code."""
        self._process.join(120)
        return self._process.exitcode

    def shown(self) -> str:
        """Standard output."""
        return self._files[0].read_text()

    def said(self) -> str:
        """Standard error."""
        return self._files[1].read_text()


def start_verify(into: Path, *arguments: object, **options: Any) -> VerifyProcess:
    """One process."""
    return VerifyProcess(into, arguments, **options)


def start_ranks(into: Path, *arguments: object, **options: Any) -> list[VerifyProcess]:
    """Two processes that share the work, as `torchrun` would start them."""
    return [VerifyProcess(into, arguments, **options, **rank) for rank in launched(2)]


def _verify(
    arguments: list[str],
    files: list[Path],
    slow: float,
    log: Path | None,
    mortal: str,
    environment: dict[str, str],
) -> None:
    """Runs in the process that `VerifyProcess` starts."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    honest, append = job.RunCertifier.certify, job.ShardStore.append

    def certify_chunk(*given: Any) -> Any:
        if mortal and environment["RANK"] == mortal:
            os._exit(9)
        time.sleep(slow)
        return honest(*given)

    def logged(store: Any, key: Any, frame: Any) -> Path:
        path = append(store, key, frame)
        if log is not None:
            with log.open("a") as stream:
                stream.writelines(f"{key.run} {key.part} {i}\n" for i in frame["index"])
        return path

    def undrawn(folder: Path) -> Any:
        """The figures take seconds, and tests of the command draw them."""
        return SimpleNamespace(html=folder / "report.html")

    greg_cert.report.write_report = undrawn  # type: ignore[assignment]
    audit.smallest_attack = hasty_attack  # type: ignore[attr-defined]
    job.RunCertifier.certify = certify_chunk  # type: ignore[method-assign]
    job.ShardStore.append = logged  # type: ignore[method-assign]
    sys.argv = ["greg-cert", "verify", *arguments]
    speak_into(*files)
    main()
