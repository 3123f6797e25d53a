"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greg_cert.digests import (
    DIGEST,
    check_digest,
    json_digest,
    tell_unchecked,
    tensors_digest,
)
from greg_cert.errors import RunError
from greg_cert.files import atomic_path
from greg_cert.stages import StageConfig


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
        journal: digest of the rows of metrics so far.
        lipschitz: vectors of the Lipschitz penalty, or None.
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
    journal: str | None = None
    lipschitz: dict[str, Tensor] | None = None


def save_checkpoint(path: Path, state: Checkpoint) -> None:
    """Write the checkpoint, all of it or nothing.

    Raises:
        RunError: where it cannot be written; the one before is kept.
    """
    content = {field.name: getattr(state, field.name) for field in fields(state)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save({**content, DIGEST: _digest(content)}, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter when a disk is full
        line = " ".join(str(error).split())[:200]
        kept = "the one before is kept" if path.exists() else "there is none yet"
        raise RunError(f"checkpoint: cannot write {path} ({kept}): {line}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint, on the CPU; only tensors and plain values are read, no code.

    Raises:
        RunError: for a missing or corrupt file, or one that is not as it was written.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        told = content.pop(DIGEST, None)
        found = _digest(content)
        state = Checkpoint(**content)
    except Exception as error:  # a corrupt file may raise anything
        line = " ".join(str(error).split())[:200]
        raise RunError(f"checkpoint: expected a readable file, but got {path}: {line}") from error
    if told is None:
        tell_unchecked(path)
    else:
        check_digest(told, found, path)
    return state


def _digest(content: Mapping[str, Any]) -> str:
    """Of nested plain values and the tensors among them."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value
            return "tensor"
        if isinstance(value, Mapping):
            return {str(key): plain(inner, f"{place}/{key}") for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner, f"{place}/{i}") for i, inner in enumerate(value)]
        return value

    return json_digest({"values": plain(content, ""), "tensors": tensors_digest(tensors)})


def check_place(
    state: Checkpoint, plan: Sequence[tuple[StageConfig, int]], aux: int, path: Path
) -> None:
    """Refuse a checkpoint that stands nowhere in the run.

    Args:
        state: the checkpoint.
        plan: the stages, and the steps in one epoch of each.
        aux: how many auxiliary images there are.
        path: of the file.

    Raises:
        RunError: names the file and the first field that does not fit.
    """

    def refuse(field: str, expected: object) -> None:
        raise RunError(
            f"{path}: field {field}: expected {expected}, but got {getattr(state, field)!r}"
        )

    def check_range(field: str, most: int) -> None:
        value = getattr(state, field)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            refuse(field, f"an integer from 0 to {most}")

    check_range("stage", len(plan))
    stage, steps = plan[state.stage] if state.stage < len(plan) else (None, 1)
    check_range("epoch", 0 if stage is None else stage.epochs - 1)
    check_range("batch", steps - 1)
    before = sum(one.epochs * each for one, each in plan[: state.stage])
    expected = before + state.epoch * steps + state.batch
    if state.step != expected:
        refuse("step", f"{expected} of stage {state.stage}, epoch {state.epoch}")
    begun = state.epoch > 0 or state.batch > 0
    margins = stage is not None and stage.uses_margins and begun
    for field in ("m_in", "m_out"):
        value, set_ = getattr(state, field), getattr(stage, field, None)
        if not margins and value is not None:
            refuse(field, "none before a stage begins, or where it has no margins")
        good = isinstance(value, float) and math.isfinite(value) and set_ in ("auto", value)
        if margins and not good:
            refuse(field, "a finite number" if set_ == "auto" else set_)
    pooled = stage is not None and stage.pool is not None and state.batch > 0
    for field in ("low", "high"):
        value = getattr(state, field)
        if (value is not None) != pooled:
            refuse(field, f"{'indices' if pooled else 'none'} at batch {state.batch}")
        if value is not None and not _are_indices(value, aux):
            refuse(field, f"indices below {aux}")


def _are_indices(value: object, count: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.int64
        and value.numel() > 0
        and int(value.min()) >= 0
        and int(value.max()) < count
    )
