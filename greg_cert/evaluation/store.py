"""Scores on disk: one parquet file a detector, which says what it was computed from."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from greg_cert.errors import RunError
from greg_cert.files import write_atomic
from greg_cert.metrics import FloatArray

_KEY = b"greg_cert"


@dataclass(frozen=True)
class ScoreStore:
    """A folder of saved scores.

    A file is read only where what it was computed from (`identity`) is what is asked for.

    Attributes:
        folder: made with the first file.
    """

    folder: Path

    def path(self, name: str) -> Path:
        """File of a detector; the name is kept readable, and told apart from others alike."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
        if plain == name:
            return self.folder / f"{name}.parquet"
        return self.folder / f"{plain}-{sha256(name.encode()).hexdigest()[:8]}.parquet"

    def read(self, name: str, identity: Mapping[str, Any]) -> dict[str, dict[str, FloatArray]]:
        """Columns of each part, by part; empty where there is no file of this identity."""
        try:
            table = pq.read_table(self.path(name))
            told = json.loads((table.schema.metadata or {})[_KEY])
        except (OSError, KeyError, ValueError, pa.ArrowException):
            return {}  # missing or damaged: computed anew, and replaced
        if told != json.loads(json.dumps(identity)):
            return {}
        columns = [c for c in table.column_names if c not in ("part", "index")]
        parts = np.asarray(table["part"].to_pylist())
        return {
            part: {c: table[c].to_numpy().astype(np.float64)[parts == part] for c in columns}
            for part in dict.fromkeys(parts.tolist())
        }

    def write(
        self,
        name: str,
        identity: Mapping[str, Any],
        parts: Mapping[str, Mapping[str, FloatArray]],
    ) -> Path:
        """Replace the file of a detector.

        Args:
            name: of the detector.
            identity: all that the values depend on, as JSON can say it.
            parts: for each part (`calibration`, `test`, `ood/NAME`) columns (N,) by name.

        Raises:
            RunError: where it cannot be written.
        """
        columns = list(next(iter(parts.values())))
        sizes = {part: len(next(iter(values.values()))) for part, values in parts.items()}
        table = pa.table(
            {
                "part": pa.array([p for p, n in sizes.items() for _ in range(n)], pa.string()),
                "index": np.concatenate([np.arange(n) for n in sizes.values()]),
                **{c: np.concatenate([values[c] for values in parts.values()]) for c in columns},
            }
        ).replace_schema_metadata({_KEY: json.dumps(identity).encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        path = self.path(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return write_atomic(path, buffer.getvalue())
        except OSError as error:
            raise RunError(f"scores: cannot write {path}: {error}") from error
