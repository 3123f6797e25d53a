"""Where the numbers of several verifications come from, on one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from greg_cert.certificates.results import Results

_SHOWN = ("device", "git_commit", "python", "platform")
_OF_RUNS = ("configs", "runs", "weights", "folders")


def merged_provenance(
    parts: Sequence[Results], names: Mapping[tuple[Path, str], str], command: str | None
) -> dict[str, Any]:
    """The field `provenance`: what the parts agree on, and under `parts` each one's own record.

    `names` has each run's name in the result by folder and name there; several for one in several.
    """
    by_folder = {part.folder: part.document.get("provenance") or {} for part in parts}
    records = list(by_folder.values())
    commands = [r.get("command") for r in records] + [command]
    versions = {
        name: _joined([(r.get("versions") or {}).get(name) for r in records])
        for name in dict.fromkeys(name for r in records for name in r.get("versions") or {})
    }
    seeds = {r.get("seed") for r in records}

    def of_runs(field: str) -> dict[str, Any]:
        """What the parts recorded under this field, by the runs' new names."""
        return {
            name: found[old]
            for (folder, old), name in names.items()
            if old in (found := by_folder[folder].get(field) or {})
        }

    return {
        "command": " && ".join(dict.fromkeys(c for c in commands if c)) or None,
        "created": max((str(r["created"]) for r in records if r.get("created")), default=None),
        "versions": versions,
        **{k: _joined([r.get(k) for r in records]) for k in _SHOWN},
        "seed": seeds.pop() if len(seeds) == 1 else _joined([r.get("seed") for r in records]),
        "settings": in_common([r.get("settings") or {} for r in records]),
        **{k: of_runs(k) for k in _OF_RUNS},
        "parts": [
            {
                "folder": str(part.folder),
                "fingerprint": part.fingerprint,
                "runs": {
                    run: names[part.folder, run] for run in part.runs if (part.folder, run) in names
                },
                **{k: v for k, v in by_folder[part.folder].items() if k not in _OF_RUNS},
            }
            for part in parts
        ],
    }


def merged_audit(parts: Sequence[Results]) -> dict[str, Any] | None:
    """The audits of all parts together; None where one has none."""
    audits: list[Any] = [part.document.get("audit") for part in parts]
    if not all(isinstance(audit, dict) for audit in audits):
        return None
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for audit in audits for key in audit):
        values = [audit.get(key) for audit in audits]
        if key in ("attacks", "certificates", "violations"):
            if all(isinstance(value, int) for value in values):
                found[key] = sum(values)
        elif all(value == values[0] for value in values):
            found[key] = values[0]
    return found


def _joined(values: Sequence[Any]) -> str | None:
    """The one value, or all different ones."""
    return " / ".join(dict.fromkeys(str(v) for v in values if v is not None)) or None


def in_common(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that all records have, with one value."""
    first = records[0]
    return {k: v for k, v in first.items() if all(r.get(k, ...) == v for r in records)}
