"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from greg_cert.errors import UsageError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved over it when the block ends without an error.

    A reader sees the old file or the new one, never a part; a failure leaves the old one alone.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)  # os.replace: atomic within one folder
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> Path:
    """The path, once all of its content is in place."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_files(out: Path, contents: Mapping[str, bytes | str]) -> list[Path]:
    """Files by name in the folder of the option `--out`, made if absent; each is written whole.

    Raises:
        UsageError: where they cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [write_atomic(out / name, content) for name, content in contents.items()]
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror or error})") from error
