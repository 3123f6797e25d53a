"""Features and scores of a candidate pool on disk, in shards that are mapped, never all loaded."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from greg_cert.errors import DataError, UsageError
from greg_cert.files import atomic_path, write_atomic

DTYPES = ("float16", "float32")
_INDEX = "index.json"
_SCHEMA = 1

Array = NDArray[Any]


class Chunk(NamedTuple):
    """Rows `start` to `start + len(scores)` of a store, copied out of the map."""

    start: int
    features: Array  # (n, D)
    scores: Array  # (n,) float32


@dataclass(frozen=True)
class FeatureStore:
    """A folder with features (N, D) and scores (N,) in shards of fixed size.

    A shard is a pair of .npy files. Each is moved into place only when whole, so a shard exists
    entirely or not at all: processes may write different shards at once, and work that was cut off
    goes on with `missing()`. Readers copy chunks out of a memory map and drop the map, so that the
    resident memory beyond it is that of one chunk.

    Attributes:
        path: the folder.
        rows: N, over all shards.
        dim: D.
        shard_rows: rows of each shard but the last.
        dtype: of the features, `float16` or `float32`; scores are float32.
    """

    path: Path
    rows: int
    dim: int
    shard_rows: int
    dtype: str

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        rows: int,
        dim: int,
        shard_rows: int = 2**18,
        dtype: str = "float32",
    ) -> FeatureStore:
        """The store in a folder, made if it is not there yet, so that any process may begin.

        Args:
            path: the folder, made with its parents.
            rows: N ≥ 1.
            dim: D ≥ 1.
            shard_rows: rows of each shard but the last, ≥ 1.
            dtype: `float16` or `float32`.

        Returns:
            The store, with the shards it already has.

        Raises:
            UsageError: for a value out of range.
            DataError: where the folder holds a store of another layout.
        """
        for name, value in (("rows", rows), ("dim", dim), ("shard_rows", shard_rows)):
            if value < 1:
                raise UsageError(f"expected {name} >= 1, but got {value}")
        if dtype not in DTYPES:
            raise UsageError(f"expected dtype in {', '.join(DTYPES)}, but got {dtype!r}")
        store = cls(path, rows, dim, shard_rows, dtype)
        if not (path / _INDEX).exists():
            path.mkdir(parents=True, exist_ok=True)
            write_atomic(path / _INDEX, json.dumps(store._layout(), indent=1) + "\n")
        elif (found := cls.open(path)) != store:
            raise DataError(
                f"{path}: expected a store of {store._layout()}, but got {found._layout()}"
            )
        return store

    @classmethod
    def open(cls, path: Path) -> FeatureStore:
        """The store that a folder holds.

        Args:
            path: the folder.

        Returns:
            The store.

        Raises:
            DataError: where there is none, or its index cannot be read.
        """
        try:
            layout = json.loads((path / _INDEX).read_text(encoding="utf-8"))
            schema = layout.pop("schema")
            store = cls(path, **layout)
            whole = all(int(n) >= 1 for n in (store.rows, store.dim, store.shard_rows))
        except FileNotFoundError:
            raise DataError(f"expected a feature store in {path}, but found no {_INDEX}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise DataError(f"expected a store's index in {path / _INDEX}, but got: {e}") from e
        if schema != _SCHEMA or store.dtype not in DTYPES or not whole:
            raise DataError(
                f"{path / _INDEX}: expected schema {_SCHEMA}, dtype in {', '.join(DTYPES)} and "
                f"positive sizes, but got schema {schema} and {store._layout()}"
            )
        return store

    def _layout(self) -> dict[str, Any]:
        fields = {k: v for k, v in asdict(self).items() if k != "path"}
        return {"schema": _SCHEMA, **fields}

    @property
    def shards(self) -> int:
        """Number of shards of the whole store."""
        return -(-self.rows // self.shard_rows)

    def span(self, shard: int) -> tuple[int, int]:
        """First row of a shard and the row after its last.

        Args:
            shard: 0 ≤ shard < `shards`.

        Returns:
            (start, stop).

        Raises:
            UsageError: for a shard that the store does not have.
        """
        if not 0 <= shard < self.shards:
            raise UsageError(f"expected 0 <= shard < {self.shards}, but got {shard}")
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.rows)

    def missing(self) -> list[int]:
        """Shards not written yet, in order."""
        return [i for i in range(self.shards) if not all(f.exists() for f in self._files(i))]

    def write(self, shard: int, features: Array, scores: Array) -> None:
        """Put a whole shard in place, over one of the same number if there is one.

        Args:
            shard: 0 ≤ shard < `shards`.
            features: (n, D) of the store's dtype, n the size of the shard, finite.
            scores: (n,) float32 OOD scores, finite.

        Raises:
            UsageError: for a shard that the store does not have.
            DataError: for another shape or dtype, values not finite, or a full disk.
        """
        start, stop = self.span(shard)
        wanted = (((stop - start, self.dim), self.dtype), ((stop - start,), "float32"))
        for name, array, (shape, dtype) in zip(
            ("features", "scores"), (features, scores), wanted, strict=True
        ):
            if array.shape != shape or array.dtype != dtype:
                raise DataError(
                    f"shard {shard}: expected {name} {shape} of {dtype}, "
                    f"but got {array.shape} of {array.dtype}"
                )
            if not np.isfinite(array).all():
                raise DataError(f"shard {shard}: expected finite {name}, but got NaN or infinity")
        self._files(shard)[1].unlink(missing_ok=True)  # a shard half replaced is a missing one
        try:
            for file, array in zip(self._files(shard), (features, scores), strict=True):
                with atomic_path(file) as temporary, temporary.open("wb") as stream:
                    np.save(stream, array, allow_pickle=False)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataError(
                f"expected {features.nbytes + scores.nbytes:,} bytes free in {self.path} "
                f"for shard {shard}, but the disk is full"
            ) from e

    def chunks(
        self, chunk_rows: int = 2**16, shards: Iterable[int] | None = None
    ) -> Iterator[Chunk]:
        """The rows of the store in order, a chunk at a time; a chunk does not cross shards.

        Args:
            chunk_rows: rows of a chunk at most, ≥ 1.
            shards: which to read; all by default.

        Yields:
            Chunks, each a copy that the caller may keep.

        Raises:
            UsageError: for a value out of range.
            DataError: for a shard that is missing, truncated, of another layout or not finite.
        """
        if chunk_rows < 1:
            raise UsageError(f"expected chunk_rows >= 1, but got {chunk_rows}")
        for shard in range(self.shards) if shards is None else shards:
            start, stop = self.span(shard)
            for a in range(0, stop - start, chunk_rows):
                features, scores = self._maps(shard)  # anew each time, so that its pages go
                rows = slice(a, a + chunk_rows)
                chunk = Chunk(start + a, np.array(features[rows]), np.array(scores[rows]))
                self._check_finite(shard, features=chunk.features, scores=chunk.scores)
                yield chunk

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Features of the rows named (n, D), in the order named.

        Args:
            rows: (n,) with 0 ≤ row < `rows`.

        Returns:
            (n, D) of the store's dtype.

        Raises:
            UsageError: for a row out of range.
            DataError: for a shard that is missing, truncated, of another layout or not finite.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise UsageError(
                f"expected 0 <= row < {self.rows}, but got {rows.min()} to {rows.max()}"
            )
        out = np.empty((len(rows), self.dim), dtype=self.dtype)
        shard = rows // self.shard_rows
        for i in np.unique(shard).tolist():
            mine = shard == i
            out[mine] = self._maps(i)[0][rows[mine] - self.span(i)[0]]
            self._check_finite(i, features=out[mine])
        return out

    def _check_finite(self, shard: int, **read: Array) -> None:
        """A file may have been changed since it was written, and faiss ends the process on NaN."""
        for name, array in read.items():
            if not np.isfinite(array).all():
                raise DataError(
                    f"{self.path}: shard {shard}: expected finite {name}, but got NaN or infinity"
                )

    def _files(self, shard: int) -> tuple[Path, Path]:
        name = f"{shard:06d}.npy"
        return self.path / f"features-{name}", self.path / f"scores-{name}"

    def _maps(self, shard: int) -> tuple[Array, Array]:
        """Read-only maps of a shard's features and scores."""
        start, stop = self.span(shard)
        wanted = (((stop - start, self.dim), self.dtype), ((stop - start,), "float32"))
        maps = []
        for file, (shape, dtype) in zip(self._files(shard), wanted, strict=True):
            try:
                array = np.load(file, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                raise DataError(
                    f"expected shard {shard} of {self.path}, but it is missing"
                ) from None
            except (ValueError, EOFError) as e:
                raise DataError(f"{file}: expected a whole .npy file, but got: {e}") from e
            if array.shape != shape or array.dtype != dtype:
                raise DataError(
                    f"{file}: expected {shape} of {dtype}, but got {array.shape} of {array.dtype}"
                )
            maps.append(array)
        return maps[0], maps[1]
