"""Where a run stands between two steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from greg_cert.errors import RunError
from greg_cert.stages import StageConfig


@dataclass(frozen=True)
class Progress:
    """Where a run stands; random numbers follow from the seed and need no state."""

    stage: int = 0  # index of the one that the next step belongs to
    epoch: int = 0  # of that stage done
    batch: int = 0  # steps of the next epoch done
    step: int = 0  # steps done since the run began
    m_in: float | None = None  # margin of ID scores in that stage, None before it is chosen
    m_out: float | None = None  # margin of auxiliary scores, likewise
    low: Tensor | None = None  # auxiliary images chosen for the epoch, for L_S
    high: Tensor | None = None  # likewise, for L_∇


def check_place(
    state: Progress, plan: Sequence[tuple[StageConfig, int]], aux: int, path: Path
) -> None:
    """Refuse a state, read from `path`, that stands nowhere in the run.

    `plan` has the stages, and the steps in one epoch of each; `aux` counts the auxiliary images.

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
