"""Results that survive a kill: a folder of small files, each whole or absent."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd

from greg_cert.digests import DIGEST, check_seal, sealed, tell_unchecked
from greg_cert.errors import RunError
from greg_cert.files import parse_json, read_json, write_atomic
from greg_cert.frames import frame_bytes, read_frame

SETTINGS_FILE = "settings.json"
_KEY = "greg-cert shard"
_START_OVER = "name another folder with --out, or drop these results with --restart"


@dataclass(frozen=True)
class ShardKey:
    """What the rows of a shard are about."""

    kind: str  # what was done, such as `certify`
    run: str  # digest of the run it was done for
    part: str  # of which set of samples, such as `id` or `ood/NAME`


class ShardStore:
    """Tables with a column `index`, appended shard by shard; it knows nothing of what they mean.

    A shard is a parquet file written under a temporary name, flushed to the disk and renamed, with
    its key in the file's metadata and the digest of both. So a process that is killed loses the
    shard it was working on and nothing else. Several processes may append at once: every file name
    is new.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        self.settings: dict[str, Any] = {}  # of all rows, once `settle` was called
        self._seen: dict[str, tuple[ShardKey, pd.DataFrame]] = {}
        self._lock: IO[str] | None = None

    def open(self, *, restart: bool = False) -> None:
        """Make the folder, take its lock, and tidy: leftovers of killed writers, or everything.

        Raises:
            RunError: where it cannot be written, or another process holds the lock.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            for leftover in self.folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            if restart:
                # The settings last: whatever is left by a kill still has them beside it.
                for path in (*self._files(), *self.folder.glob("note-*.json")):
                    path.unlink(missing_ok=True)
                (self.folder / SETTINGS_FILE).unlink(missing_ok=True)
        except OSError as error:
            self.close()
            raise RunError(f"out: cannot write to {self.folder}: {error}") from error

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def settle(self, settings: dict[str, Any], grows: tuple[str, ...] = ()) -> None:
        """Record what the rows depend on, or check it against the record.

        Args:
            settings: plain values, as JSON has them.
            grows: entries, mappings themselves, that may gain keys from one call to the next.

        Raises:
            RunError: where they differ; names the first field that does, and both values.
        """
        path = self.folder / SETTINGS_FILE
        now: dict[str, Any] = json.loads(json.dumps(settings))
        if path.is_file():
            try:
                then = self._read(path)
            except (OSError, ValueError) as error:
                raise RunError(f"out: cannot read {path}: {error}; {_START_OVER}") from error
            then.pop(DIGEST, None)
            for entry in grows:
                older, newer = then.get(entry, {}), now.setdefault(entry, {})
                then[entry] = {**newer, **older}
                now[entry] = {**older, **newer}
            if (found := first_difference(then, now)) is not None:
                field, before, after = found
                raise RunError(
                    f"out: {self.folder.parent} holds results of other settings: {field} was "
                    f"{_shown(before)} and is {_shown(after)}; {_START_OVER}"
                )
        elif next(self._files(), None) is not None:
            raise RunError(f"out: expected {path} beside the shards, but got none; {_START_OVER}")
        self.settings = now
        self._write(path, json.dumps(sealed(now), indent=2) + "\n")

    def note(self, name: str) -> dict[str, Any] | None:
        """What `write_note` wrote under this name; None where it is missing or damaged."""
        try:
            return self._read(self.folder / f"note-{name}.json")
        except (OSError, ValueError):
            return None

    def write_note(self, name: str, content: dict[str, Any]) -> None:
        """Keep a small record beside the shards; call `settle` first."""
        text = json.dumps(sealed(content), indent=2) + "\n"
        self._write(self.folder / f"note-{name}.json", text)

    def append(self, key: ShardKey, frame: pd.DataFrame) -> Path:
        """The file of a new shard, once it is on the disk."""
        part = re.sub(r"[^A-Za-z0-9]+", "-", key.part)[:24]
        first = int(frame["index"].iloc[0])
        name = f"{key.kind}-{key.run[:8]}-{part}-{first:06d}-r{self.rank}-{secrets.token_hex(4)}"
        path = self.folder / f"{name}.parquet"
        self._write(path, frame_bytes(frame, {_KEY: json.dumps(asdict(key))}))
        self._seen[path.name] = (key, frame)
        return path

    def refresh(self) -> None:
        """Read what other processes, or earlier ones, have appended.

        Raises:
            RunError: for a damaged shard; names the file.
        """
        for path in self._files():
            if path.name not in self._seen:
                self._seen[path.name] = self._read_shard(path)

    @property
    def names(self) -> list[str]:
        """File names of the shards that have been read or appended."""
        return list(self._seen)

    def rows(self, key: ShardKey) -> pd.DataFrame:
        """All rows of a key, by ascending `index`, each index once; empty where there are none."""
        frames = [frame for at, frame in self._seen.values() if at == key]
        if not frames:
            return pd.DataFrame({"index": pd.Series(dtype="int64")})
        joined = pd.concat(frames, ignore_index=True)
        return joined.drop_duplicates("index").sort_values("index", ignore_index=True)

    def finished(self, key: ShardKey) -> set[int]:
        """Indices of all rows of a key."""
        return set(self.rows(key)["index"].tolist())

    def _files(self) -> Any:
        # Temporary names begin with a dot.
        return (p for p in sorted(self.folder.glob("*.parquet")) if not p.name.startswith("."))

    def _read(self, path: Path) -> dict[str, Any]:
        """The JSON object in a file, if it is as it was written."""
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError("expected a JSON object")
        if not check_seal(found, path):
            tell_unchecked(self.folder)  # once for all that is in it
        return found

    def _read_shard(self, path: Path) -> tuple[ShardKey, pd.DataFrame]:
        try:
            frame, notes, checked = read_frame(path)
            key = ShardKey(**parse_json(notes[_KEY]))
            frame["index"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"out: cannot read {path}: {error}; delete it, and its samples are computed again"
            ) from error
        if not checked:
            tell_unchecked(self.folder)
        return key, frame

    def _write(self, path: Path, content: bytes | str) -> None:
        try:
            write_atomic(path, content)
        except OSError as error:
            raise RunError(f"out: cannot write {path}: {error}") from error

    def _take_lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows: two commands there must not share a folder
            return
        stream = (self.folder / "lock").open("w")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            raise RunError(
                f"out: expected a folder that no other process works in, but one does: "
                f"{self.folder.parent}"
            ) from None
        except OSError:  # a file system without locks
            stream.close()
            return
        self._lock = stream


def first_difference(then: Any, now: Any, field: str = "") -> tuple[str, Any, Any] | None:
    """Name and both values of the first field in which two nested records differ, or None.

    A field that only one of them has counts, with None for the other.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        for name in (*now, *(k for k in then if k not in now)):
            inner = f"{field}.{name}" if field else str(name)
            found = first_difference(then.get(name), now.get(name), inner)
            if found is not None:
                return found
        return None
    return None if then == now else (field, then, now)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 42 else f"{text[:20]}…"
