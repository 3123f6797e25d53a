"""Writing a file whole or not at all, and reading one that may be anything."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from greg_cert.errors import UsageError, shown

# `.NAME.MACHINE-PROCESS-RANDOM.tmp`, and with the last part alone as earlier versions wrote it.
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{6})-(\d{1,10})-)?[0-9a-f]{12}\.tmp")
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_LONGEST = 120  # bytes of a name that is made of a text
_OLD = 3600.0  # seconds without a write, after which the writer is taken for dead
_MOST_TEXT = 256 << 20  # bytes of a file that is read as text
_MOST_DEEP = 100  # brackets within brackets of a JSON document
_BITS = 63
_being_written: set[Path] = set()
_swept: set[Path] = set()  # folders


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved over it when the block ends without an error.

    A reader sees the old file or the new one, never a part; a failure leaves the old one alone.
    What killed processes left in the folder is removed.
    """
    folder = path.parent.absolute()
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)
    writer = f"{_MACHINE}-{os.getpid()}-{secrets.token_hex(6)}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    _being_written.add(temporary.absolute())
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)  # os.replace: atomic within one folder
    finally:
        temporary.unlink(missing_ok=True)
        _being_written.discard(temporary.absolute())


def is_vacant(folder: Path) -> bool:
    """Whether there is nothing at a path but perhaps a folder with leftovers of killed writers."""
    if not folder.is_dir():
        return not folder.exists()
    return all(map(_is_left_over, folder.iterdir()))


def sweep(folder: Path) -> None:
    """Remove temporary files of ours whose writers are dead; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _is_left_over(path):
                path.unlink(missing_ok=True)


def _is_left_over(path: Path) -> bool:
    """Whether a path is a temporary file of `atomic_path` whose writer is dead."""
    found = _TEMPORARY.fullmatch(path.name)
    try:
        if found is None or not path.is_file() or path.is_symlink():
            return False
        if time.time() - path.stat().st_mtime > _OLD:
            return True
    except OSError:
        return False
    if found[1] != _MACHINE:  # whose processes are not seen from here
        return False
    writer = int(found[2])
    if writer == os.getpid():
        return path.absolute() not in _being_written
    return not _runs(writer)


def _runs(process: int) -> bool:
    """Whether a process of that number runs on this machine."""
    if os.name == "nt":  # where a signal, even 0, would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def file_name(text: str) -> str:
    """A text as the name of one file or folder: letters and digits of any script, and `_.+=-`."""
    plain = re.sub(r"[^\w.+=-]+", "_", text).encode("utf-8")[:_LONGEST].decode("utf-8", "ignore")
    return plain.lstrip(".") or "_"


def plain_file(path: Path, most: int | None = None) -> Path:
    """The path, if an ordinary file is there, links followed: others may never end, or block.

    Raises:
        OSError: nothing is there, or something else, or a file of more than `most` bytes.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no ordinary file, but a pipe, socket or device", str(path))
    if most is not None and found.st_size > most:
        what = f"larger than the {most} bytes that are read of such a file"
        raise OSError(errno.EFBIG, what, str(path))
    return path


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file, as far as one can tell: none where one may not look."""
    return os.path.isfile(path)  # noqa: PTH113  Path's raises for names too long, and no access


def is_folder(path: Path) -> bool:
    """Whether there is a folder, as far as one can tell."""
    return os.path.isdir(path)  # noqa: PTH112


def user_path(path: str | Path) -> Path:
    """A path with `~` written out, where that is known."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def exists(path: Path) -> bool:
    """Whether there is anything, as far as one can tell."""
    return os.path.exists(path)  # noqa: PTH110


def real_path(path: Path) -> Path:
    """Where a path leads; as far as it can be followed, where links lead in a circle."""
    return Path(os.path.realpath(user_path(path)))


def read_text(path: Path) -> str:
    """The text in a file, UTF-8.

    Raises:
        OSError: as `plain_file`; of text, no larger than 256 MiB.
        UnicodeDecodeError: it is no text.
    """
    return plain_file(path, _MOST_TEXT).read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as `read_text`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_text(path))


def parse_json(text: str | bytes) -> Any:
    """What a JSON document holds.

    Raises:
        ValueError: it is none, or one that other readers of it would fail on: deeply nested, with
            integers beyond 64 bits or with text that is no Unicode.
    """
    try:
        found = json.loads(text, parse_int=_whole_number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_plain(found, _MOST_DEEP)
    return found


_TOO_DEEP = f"expected at most {_MOST_DEEP} levels of nesting, but got more"


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or int(digits).bit_length() > _BITS:
        raise ValueError(f"expected integers of at most 64 bits, but got {shown(digits)}")
    return int(digits)


def _check_plain(value: Any, left: int) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict | list):
        if not left:
            raise ValueError(_TOO_DEEP)
        if isinstance(value, dict):
            for key in value:
                key.encode()
            value = value.values()
        for inner in value:
            _check_plain(inner, left - 1)


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
