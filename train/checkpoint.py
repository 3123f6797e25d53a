"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greg_cert.errors import RunError
from greg_cert.files import atomic_path


@dataclass(frozen=True)
class Checkpoint:
    """State after a step; random numbers follow from the seed and need no state.

    Attributes:
        stage: index of the stage the next step belongs to.
        epoch: epochs of that stage done.
        batch: steps of the next epoch done.
        step: steps done since the run began.
        m_in: margin of ID scores in that stage, None before it is chosen.
        m_out: margin of auxiliary scores, likewise.
        model: state of the model.
        optimizer: state of the optimiser.
        low: auxiliary images chosen for the epoch, or None.
        high: likewise.
    """

    stage: int
    epoch: int
    batch: int
    step: int
    m_in: float | None
    m_out: float | None
    model: dict[str, Any]
    optimizer: dict[str, Any]
    low: Tensor | None = None
    high: Tensor | None = None


def save_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write the checkpoint, all of it or nothing.

    Raises:
        RunError: where it cannot be written; the one before is kept.
    """
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(fields, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter when a disk is full
        line = " ".join(str(error).split())[:200]
        kept = "the one before is kept" if path.exists() else "there is none yet"
        raise RunError(f"checkpoint: cannot write {path} ({kept}): {line}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint, on the CPU; only tensors and plain values are read, no code.

    Raises:
        RunError: for a missing or corrupt file.
    """
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)
        return Checkpoint(**fields)
    except (OSError, RuntimeError, EOFError, TypeError, pickle.UnpicklingError) as error:
        line = " ".join(str(error).split())[:200]
        raise RunError(f"checkpoint: expected a readable file, but got {path}: {line}") from error
