"""Writing a file whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path


def write_atomic(path: Path, content: bytes | str) -> Path:
    """The path, once its content is in place: written beside it first, then moved over it.

    A reader sees the old file or the new one, never a part; a failure leaves the old one alone.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
        temporary.replace(path)  # os.replace: atomic within one folder
    finally:
        temporary.unlink(missing_ok=True)
    return path
