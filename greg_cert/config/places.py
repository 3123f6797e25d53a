"""An experiment apart from where its data stand.

A run is the same wherever its data are; which they are is told by fingerprints in its manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from greg_cert.config.experiment import ExperimentConfig


def without_places(raw: dict[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """The plain values of a configuration, with one word for each path of its data."""
    return {**raw, "data": _without(raw["data"], config.data)}


def _without(raw: Any, value: Any) -> Any:
    if isinstance(value, Path):
        return "path"
    if isinstance(value, BaseModel):
        return {key: _without(part, getattr(value, key)) for key, part in raw.items()}
    if isinstance(value, tuple):
        return [_without(*pair) for pair in zip(raw, value, strict=True)]
    return raw
