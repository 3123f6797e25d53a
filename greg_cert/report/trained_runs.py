"""The run folders that a verification read, found again beside its results."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from greg_cert.certificates.results import Results
from greg_cert.files import read_json
from greg_cert.runs.manifest import MANIFEST_FILE


def match_runs(results: Results, folders: Sequence[Path]) -> dict[str, Path]:
    """The run folders that a verification read, by its names for them.

    A folder is taken for a run where its `manifest.json` is the one that the verification recorded:
    one trained anew since, or another of the same name, is not. What is no run folder is passed
    over.
    """
    runs = results.summary.provenance.runs
    manifests = runs.items() if isinstance(runs, dict) else ()
    recorded = {name: manifest for name, manifest in manifests if isinstance(manifest, dict)}
    found: dict[str, Path] = {}
    for folder in folders if recorded else ():
        try:
            manifest = read_json(folder / MANIFEST_FILE)
        except (OSError, ValueError):
            continue
        for name, wanted in recorded.items():
            if manifest == wanted:
                found.setdefault(name, folder)
    return {name: found[name] for name in results.runs if name in found}


def likely_folders(results: Results) -> list[Path]:
    """Where the runs of a verification may lie: around it, and what its command names."""
    here = results.folder.resolve().parent
    folders = [here]
    for parent in (here / "runs", here, here.parent):
        with contextlib.suppress(OSError):
            folders += sorted(path for path in parent.iterdir() if path.is_dir())
    with contextlib.suppress(ValueError):
        folders += map(Path, shlex.split(results.summary.provenance.command or ""))
    return folders
