"""Digests of what a file holds, so that a file that we wrote is believed only as it was written.

They find damage and slips of an editor, not forgery: whoever changes a file on purpose can write
its digest anew. A file of an earlier version holds none, and is read with a notice.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greg_cert.errors import RunError, UncheckedFileWarning

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

DIGEST = "digest"


def json_digest(document: Mapping[str, object]) -> str:
    """SHA-256 of a document's canonical JSON, without its own entry `digest`.

    It is that of the document as JSON gives it back: keys as text and sorted, tuples as lists,
    floats to the last bit; NaN and infinity have their own words.

    Raises:
        TypeError: for a value that JSON cannot hold.
    """
    plain = json.loads(json.dumps({k: v for k, v in document.items() if k != DIGEST}))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(document: Mapping[str, object]) -> dict[str, object]:
    """The document with its digest as the last entry."""
    content = {k: v for k, v in document.items() if k != DIGEST}
    return {**content, DIGEST: json_digest(content)}


def check_seal(document: Mapping[str, object], path: Path) -> bool:
    """Whether a document read from `path` holds a digest, which then is right.

    Raises:
        RunError: where it is not.
    """
    if DIGEST not in document:
        return False
    check_digest(document[DIGEST], json_digest(document), path)
    return True


def check_digest(told: object, found: str, path: Path, field: str = DIGEST) -> None:
    """Refuse content of `path` that has another digest than `field` tells.

    Raises:
        RunError: names the file and the field.
    """
    if told != found:
        raise RunError(
            f"{path}: field {field}: expected the digest of the content, {found[:12]}…, but got "
            f"{str(told)[:12]}…: the file is not as it was written"
        )


def frame_digest(frame: pd.DataFrame, notes: Mapping[str, str] = {}) -> str:
    """SHA-256 over the columns of a table and the texts kept beside it.

    Names and order of the columns, their types and every value count, numbers to the last bit (a
    NaN is a NaN); the index and how a file encodes it all do not. Texts are the same whatever
    type pandas keeps them in, which its versions do differently.

    Args:
        frame: as it is read: what goes through a file may come back in other types.
        notes: text by name, such as the metadata of a parquet file.
    """
    digest = hashlib.sha256(json.dumps(sorted(notes.items())).encode())
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        kind, content = _column(column)
        digest.update(json.dumps([str(name), kind, len(column)]).encode())
        digest.update(content)
    return digest.hexdigest()


def _column(column: pd.Series[Any]) -> tuple[str, bytes]:
    """Type and values of a column."""
    import numpy as np

    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "biufmM":
        values = np.array(column.to_numpy(), dtype=column.dtype.newbyteorder("<"))
        if column.dtype.kind == "f":
            values[np.isnan(values)] = np.nan
        return column.dtype.name, values.tobytes()
    missing = column.isna().tolist()
    cells = [None if gone else cell for cell, gone in zip(column.tolist(), missing, strict=True)]
    numeric = getattr(column.dtype, "numpy_dtype", None)  # of nullable integers, floats, booleans
    kind = "object" if numeric is None or numeric.kind == "O" else str(column.dtype)
    return kind, json.dumps(cells, default=_plain).encode()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and values of named tensors, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


_told: set[Path] = set()


def tell_unchecked(path: Path) -> None:
    """Warn, once a file, that it was written before files had digests."""
    if path.resolve() not in _told:
        warnings.warn(
            UncheckedFileWarning(
                f"{path} was written by an earlier version and holds no digest: "
                "its content cannot be checked"
            ),
            stacklevel=2,
        )
        _told.add(path.resolve())
