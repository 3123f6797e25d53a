"""Whether verifications can be laid side by side: of the same data, made in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from greg_cert.certificates.format import SUMMARY
from greg_cert.certificates.results import Results
from greg_cert.errors import RunError, UsageError
from greg_cert.files import read_json

MERGED = "merged"  # field of `summary.json` that says a folder was put together
# A row depends on all of these.
_FIELDS = (
    *("norm", "tpr", "max_radius", "side", "sides", "clip", "correct", "method", "methods"),
    *("smoothing", "engine"),
)
# They choose samples, or say how many are done at once; the seed is of the samples and attacks.
_FREE = {"samples", "ood_samples", "side", "batch", "memory", "seed"}
_TRAINED_ON = {"train", "aux"}  # runs may have learnt from different data


def check_target(folders: Sequence[Path], target: Path) -> None:
    """Nothing, if these are folders to put together, and `target` is one to write to.

    Raises:
        UsageError: fewer than two, one given twice, or `target` holds what is not ours.
    """
    if len(folders) < 2:
        raise UsageError(f"folders: expected two verification folders or more, not {len(folders)}")
    places = [Path(folder).resolve() for folder in folders]
    for k, place in enumerate(places):
        if place in places[:k]:
            raise UsageError(f"folders: expected each folder once, but got {folders[k]} twice")
    if target.resolve() in places:
        raise UsageError(f"out {target}: expected another folder than those compared")
    if target.exists() and not target.is_dir():
        raise UsageError(f"out {target}: expected a folder, but it is a file")
    path = target / SUMMARY
    if path.exists() or (target / "shards").exists():
        try:
            ours = MERGED in read_json(path)
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UsageError(
                f"out {target}: expected a new folder or one of greg-cert compare, but it holds a "
                "verification"
            )


def check_alike(parts: Sequence[Results]) -> None:
    """Nothing, if the parts are of the same data and were verified in the same way.

    Raises:
        RunError: naming the field, both folders and both values, else.
    """
    first = parts[0]
    for part in parts[1:]:
        for field in _FIELDS:
            _equal(field, first, first.document.get(field), part, part.document.get(field))
        mine, theirs = (p.summary.provenance.settings or {} for p in (first, part))
        for field in sorted({*mine, *theirs} - _FREE):
            _equal(f"provenance.settings.{field}", first, mine.get(field), part, theirs.get(field))
    reference = _data(first, first.runs[0])
    for part in parts:
        for run in part.runs:
            data = _data(part, run)
            for name in sorted({*reference, *data}):
                field = f"provenance.runs.{run}.data.{name}"
                _equal(field, first, reference.get(name), part, data.get(name))


def _data(part: Results, run: str) -> dict[str, Any]:
    """Fingerprints of the data that a run was calibrated and tested on."""
    data = part.manifest(run).get("data")
    if not isinstance(data, dict) or "test" not in data:
        raise RunError(
            f"{part.folder / SUMMARY}: field provenance.runs.{run}.data: missing, so that "
            "nothing says whether the samples are those of the other folders"
        )
    return {name: value for name, value in data.items() if name not in _TRAINED_ON}


def _equal(field: str, one: Results, expected: Any, other: Results, got: Any) -> None:
    if expected != got:
        here, there = ("nothing" if value is None else repr(value) for value in (expected, got))
        raise RunError(
            f"{field}: expected {here} in {other.folder}, as in {one.folder}, but got {there}"
        )
