"""Whether verifications can be laid side by side: of the same data, made in the same way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greg_cert.certificates.format import SUMMARY
from greg_cert.certificates.results import Results, load_results
from greg_cert.certificates.summary_file import read_document
from greg_cert.errors import RunError, UsageError

MERGED = "merged"  # field of `summary.json` that says a folder was put together
# A row depends on all of these.
_FIELDS = ("norm", "tpr", "max_radius", "side", "sides", "clip", "correct", "method", "methods")
_MORE = ("smoothing", "engine")
# They choose samples, or say how many are done at once; the seed is of the samples and attacks.
_FREE = {"samples", "ood_samples", "side", "batch", "memory", "seed"}
_TRAINED_ON = {"train", "aux"}  # runs may have learnt from different data


@dataclass(frozen=True)
class Part:
    """One verification: its folder as it was named, its checked contents, and `summary.json`."""

    folder: Path
    results: Results
    raw: dict[str, Any]

    @property
    def provenance(self) -> dict[str, Any]:
        """Where its numbers come from."""
        return self.raw.get("provenance") or {}

    def manifest(self, run: str) -> dict[str, Any]:
        """What training wrote about a run; empty where that is not recorded."""
        found = (self.provenance.get("runs") or {}).get(run)
        return found if isinstance(found, dict) else {}


def read_part(folder: Path) -> Part:
    """A verification folder, checked as for a report.

    Raises:
        RunError: as `load_results`.
    """
    results = load_results(folder)
    return Part(Path(folder), results, read_document(Path(folder)))


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
            ours = MERGED in json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise UsageError(
                f"out {target}: expected a new folder or one of greg-cert compare, but it holds a "
                "verification"
            )


def check_alike(parts: Sequence[Part]) -> None:
    """Nothing, if the parts are of the same data and were verified in the same way.

    Raises:
        RunError: naming the field, both folders and both values, else.
    """
    first = parts[0]
    for part in parts[1:]:
        for field in (*_FIELDS, *_MORE):
            _equal(field, first, first.raw.get(field), part, part.raw.get(field))
        mine, theirs = (p.provenance.get("settings") or {} for p in (first, part))
        for field in sorted({*mine, *theirs} - _FREE):
            _equal(f"provenance.settings.{field}", first, mine.get(field), part, theirs.get(field))
    one = first.results.runs[0]
    reference = _data(first, one)
    for part in parts:
        for run in part.results.runs:
            data = _data(part, run)
            for name in sorted({*reference, *data}):
                field = f"provenance.runs.{run}.data.{name}"
                _equal(field, first, reference.get(name), part, data.get(name))


def _data(part: Part, run: str) -> dict[str, Any]:
    """Fingerprints of the data that a run was calibrated and tested on."""
    data = part.manifest(run).get("data")
    if not isinstance(data, dict) or "test" not in data:
        raise RunError(
            f"{part.folder / SUMMARY}: field provenance.runs.{run}.data: missing, so that "
            "nothing says whether the samples are those of the other folders"
        )
    return {name: value for name, value in data.items() if name not in _TRAINED_ON}


def _equal(field: str, one: Part, expected: Any, other: Part, got: Any) -> None:
    if expected != got:
        raise RunError(
            f"{field}: expected {_said(expected)} in {other.folder}, as in {one.folder}, but got "
            f"{_said(got)}"
        )


def _said(value: Any) -> str:
    return "nothing" if value is None else repr(value)
