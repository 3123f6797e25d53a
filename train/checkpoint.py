"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from greg_cert.errors import RunError
from greg_cert.files import atomic_path


@dataclass(frozen=True)
class Checkpoint:
    """State at the end of an epoch; random numbers follow from the seed and need no state.

    Attributes:
        stage: index of the stage the next epoch belongs to.
        epoch: epochs of that stage done.
        step: steps done since the run began.
        m_in: margin of ID scores in that stage, None before it is chosen.
        m_out: margin of auxiliary scores, likewise.
        model: state of the model.
        optimizer: state of the optimiser.
    """

    stage: int
    epoch: int
    step: int
    m_in: float | None
    m_out: float | None
    model: dict[str, Any]
    optimizer: dict[str, Any]


def save_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write the checkpoint, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    with atomic_path(path) as temporary:
        torch.save(fields, temporary)


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
