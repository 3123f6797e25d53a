"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from greg_cert.digests import DIGEST, check_digest, json_digest, tell_unchecked, tensors_digest
from greg_cert.errors import RunError
from greg_cert.files import atomic_path, plain_file
from greg_cert.train.progress import Progress

_MOST_VALUES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Progress):
    """The state after a step."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    journal: str | None = None  # digest of the rows of metrics so far
    lipschitz: dict[str, Tensor] | None = None  # vectors of the Lipschitz penalty


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
        kept = "the one before is kept" if path.exists() else "there is none yet"
        raise RunError(f"checkpoint: cannot write {path} ({kept}): {error!s:.200}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint, on the CPU; only tensors and plain values are read, no code.

    Raises:
        RunError: for a missing or corrupt file, or one that is not as it was written.
    """
    try:
        content = torch.load(plain_file(path), map_location="cpu", weights_only=True)
        told = content.pop(DIGEST, None)
        found = _digest(content)
        state = Checkpoint(**content)
    except Exception as error:  # a corrupt file may raise anything
        raise RunError(
            f"checkpoint: expected a readable file, but got {path}: {error!s:.200}"
        ) from error
    if told is None:
        tell_unchecked(path)
    else:
        check_digest(told, found, path)
    return state


def _digest(content: Mapping[str, Any]) -> str:
    """Of nested plain values and the tensors among them."""
    tensors: dict[str, Tensor] = {}
    left = _MOST_VALUES

    def plain(value: Any, place: str) -> Any:
        nonlocal left
        left -= 1
        if left < 0:  # lists that hold one another many times over
            raise ValueError(f"more than {_MOST_VALUES} values")
        if isinstance(value, Tensor):
            tensors[place] = value
            return "tensor"
        if isinstance(value, Mapping):
            return {str(key): plain(inner, f"{place}/{key}") for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner, f"{place}/{i}") for i, inner in enumerate(value)]
        return value

    return json_digest({"values": plain(content, ""), "tensors": tensors_digest(tensors)})
