"""Scores on disk: one parquet file a detector, which says what it was computed from."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from greg_cert.digests import tell_unchecked
from greg_cert.errors import DamagedFileWarning, RunError
from greg_cert.files import parse_json, write_atomic
from greg_cert.frames import frame_bytes, read_frame
from greg_cert.metrics import FloatArray

_KEY = "greg_cert"
Columns = Mapping[str, Mapping[str, FloatArray]]
"""Values (N,) by name, for each part of the data: `calibration`, `test`, `ood/NAME`."""


@dataclass
class ScoreStore:
    """A folder of saved scores.

    A file is read only where what it was computed from (`identity`) is what is asked for.
    """

    folder: Path  # made with the first file
    required: bool = True  # whether a file that cannot be written is an error
    unsaved: str | None = field(default=None, init=False)  # why a file could not be written

    def kept(
        self,
        name: str,
        identity: Mapping[str, Any],
        fits: Callable[[Columns], bool],
        compute: Callable[[], Columns],
    ) -> Columns:
        """Saved values where they fit, else computed ones, which are saved.

        Raises:
            RunError: where they cannot be, though they must.
        """
        found = self.read(name, identity)
        if fits(found):
            return found
        found = compute()
        try:
            self.write(name, identity, found)
        except RunError as error:
            if self.required:
                raise
            self.unsaved = str(error)
        return found

    def path(self, name: str) -> Path:
        """File of a detector; the name is kept readable, and told apart from others alike."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
        if plain == name:
            return self.folder / f"{name}.parquet"
        return self.folder / f"{plain}-{sha256(name.encode()).hexdigest()[:8]}.parquet"

    def read(self, name: str, identity: Mapping[str, Any]) -> Columns:
        """Columns of each part, by part; empty where there is no file of this identity.

        A file that is not as it was written counts as none: a warning names it and the field, and
        what it should hold is computed anew.
        """
        path = self.path(name)
        try:
            frame, notes, checked = read_frame(path)
            told = parse_json(notes[_KEY])
            values = frame.drop(columns=["part", "index"]).astype(np.float64)
            found = {
                str(part): {str(c): rows[c].to_numpy() for c in rows}
                for part, rows in values.groupby(frame["part"], sort=False)
            }
        except FileNotFoundError:
            return {}
        except RunError as error:
            warnings.warn(DamagedFileWarning(f"{error}; computed anew"), stacklevel=2)
            return {}
        except (KeyError, TypeError, ValueError):  # a table, but of something else
            return {}
        if told != json.loads(json.dumps(identity)):
            return {}
        if not checked:
            tell_unchecked(path)
        return found

    def write(self, name: str, identity: Mapping[str, Any], parts: Columns) -> Path:
        """Replace the file of a detector; `identity` is all that the values depend on.

        Raises:
            RunError: where it cannot be written.
        """
        columns = list(next(iter(parts.values())))
        sizes = {part: len(next(iter(values.values()))) for part, values in parts.items()}
        frame = pd.DataFrame(
            {
                "part": [p for p, n in sizes.items() for _ in range(n)],
                "index": np.concatenate([np.arange(n) for n in sizes.values()]),
                **{c: np.concatenate([values[c] for values in parts.values()]) for c in columns},
            }
        )
        content = frame_bytes(frame, {_KEY: json.dumps(identity)})
        path = self.path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return write_atomic(path, content)
        except OSError as error:
            raise RunError(f"scores: cannot write {path}: {error}") from error
