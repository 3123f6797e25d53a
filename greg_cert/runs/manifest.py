"""`manifest.json` of a run folder: what made the run, and the digests of its other files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from greg_cert.digests import DIGEST, check_digest, check_seal, sealed, tell_unchecked
from greg_cert.errors import RunError
from greg_cert.files import read_json, write_atomic

MANIFEST_FILE = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder, if it is as it was written.

    Raises:
        RunError: where it is missing or cannot be read, or holds something else.
    """
    path = folder / MANIFEST_FILE
    try:
        found: dict[str, Any] = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(
            f"run: expected a readable {MANIFEST_FILE} in {folder}, but got: {error}"
        ) from error
    if not isinstance(found, dict):
        raise RunError(f"run: expected a JSON object in {path}, but got {type(found).__name__}")
    if not check_seal(found, path):
        tell_unchecked(folder)
    return found


def write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    """Write the manifest, with its digest.

    Raises:
        RunError: where it cannot be written.
    """
    path = folder / MANIFEST_FILE
    try:
        write_atomic(path, json.dumps(sealed(manifest), indent=2, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:  # the latter of a NaN, in what a resumed run had
        raise RunError(f"manifest: cannot write {path}: {error}") from error


def check_file(manifest: Mapping[str, Any], file: Path, found: str) -> None:
    """Refuse a file of a run whose content has another digest than the manifest tells.

    A manifest of an earlier version tells of none.

    Raises:
        RunError: names the file.
    """
    told = manifest.get("digests")
    if told is None and DIGEST not in manifest:
        return
    told = told.get(file.name) if isinstance(told, dict) else told
    check_digest(told, found, file, f"digests.{file.name} of {MANIFEST_FILE}")
