"""Which of two sources is taken: the one whose files are there, or the other."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from greg_cert.errors import DataWarning
from greg_cert.files import exists, user_path


def present(source: Any, base: Path, field: str) -> Any:
    """A source of a configuration without `otherwise`, or what stands there if `path` is missing.

    Args:
        source: as it stands in the configuration; anything but a mapping with `otherwise` and a
            path is given back.
        base: where relative paths start.
        field: of the source, for the note that says which one is taken.
    """
    if not isinstance(source, dict) or not isinstance(source.get("otherwise"), dict):
        return source
    path, other = source.get("path"), source["otherwise"]
    if not isinstance(path, (str, Path)):
        return source
    if exists(base / user_path(path)):
        return {key: value for key, value in source.items() if key != "otherwise"}
    what = " ".join(str(other[k]) for k in ("source", "dataset", "path") if k in other)
    warnings.warn(f"{field}: {path} is not there; {what} is taken", DataWarning, stacklevel=2)
    return other
