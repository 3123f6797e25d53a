"""Files with one bit flipped, at places drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from greg_cert.errors import GregCertError

T = TypeVar("T")


def flipped(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` copies of the content, each with another bit flipped."""
    for bit in random.Random(seed).sample(range(8 * len(content)), count):
        copy = bytearray(content)
        copy[bit // 8] ^= 1 << bit % 8
        yield bytes(copy)


def believed(path: Path, read: Callable[[], T], count: int, seed: int = 0) -> list[T]:
    """What `read` returns of a file with one bit flipped, where it does not refuse it.

    A refusal is one of our own errors, names the file and is one line; the file is whole again
    afterwards.
    """
    whole, found, refusals = path.read_bytes(), [], []
    try:
        for content in flipped(whole, count, seed):
            path.write_bytes(content)
            try:
                found.append(read())
            except GregCertError as error:
                refusals.append(str(error))
    finally:
        path.write_bytes(whole)
    assert [text for text in refusals if path.name not in text or "\n" in text] == []
    return found
