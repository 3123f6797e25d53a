"""Tables as parquet files, which hold the digest of what they say."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from greg_cert.digests import check_digest, frame_digest
from greg_cert.errors import RunError

_DIGEST = "greg-cert digest"
_OF_ARROW = {b"pandas", b"ARROW:schema"}  # metadata about the encoding alone


class FrameFile(NamedTuple):
    """What a parquet file holds."""

    frame: pd.DataFrame
    notes: dict[str, str]  # texts kept beside it, by name
    checked: bool  # whether the file holds a digest, which then is right


def frame_bytes(frame: pd.DataFrame, notes: Mapping[str, str] = {}) -> bytes:
    """A parquet file of a table and texts beside it, with their digest; without the index."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    kept = {**notes, _DIGEST: frame_digest(table.to_pandas(), notes)}
    metadata = {**(table.schema.metadata or {}), **kept}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, write_page_checksum=True)
    return buffer.getvalue()


def read_frame(path: Path) -> FrameFile:
    """The table and the texts in a parquet file, if they are as they were written.

    A file without a digest is read as it is: `tell_unchecked` is the caller's.

    Raises:
        FileNotFoundError: where there is none.
        RunError: for a file that cannot be read, or whose content has another digest; names it.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        frame: pd.DataFrame = table.to_pandas()
        metadata = table.schema.metadata or {}
        notes = {k.decode(): v.decode() for k, v in metadata.items() if k not in _OF_ARROW}
        told = notes.pop(_DIGEST, None)
        found = None if told is None else frame_digest(frame, notes)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise anything, deep within pyarrow and pandas
        line = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: expected a whole parquet file, but got: {line}") from error
    if found is not None:
        check_digest(told, found, path)
    return FrameFile(frame, notes, told is not None)
