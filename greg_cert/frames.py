"""Tables as parquet files, which hold the digest of what they say, and as CSV."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from greg_cert.digests import check_digest, frame_digest
from greg_cert.errors import RunError, one_line
from greg_cert.files import plain_file

_DIGEST = "greg-cert digest"
_OF_ARROW = {b"pandas", b"ARROW:schema"}  # metadata about the encoding alone


MOST_CELLS = 500_000_000


_FORMULA = ("=", "+", "-", "@")  # what spreadsheets begin to compute at
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?( ± \d+(\.\d*)?)?|[-+](inf|nan)", re.I)


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
        with pq.ParquetFile(plain_file(path)) as parquet:  # a few bytes may stand for any number
            cells = parquet.metadata.num_rows * parquet.metadata.num_columns
        if cells > MOST_CELLS:
            raise ValueError(f"{cells} cells, more than the {MOST_CELLS} that are read")
        table = pq.read_table(path, page_checksum_verification=True)
        frame: pd.DataFrame = table.to_pandas()
        metadata = table.schema.metadata or {}
        notes = {k.decode(): v.decode() for k, v in metadata.items() if k not in _OF_ARROW}
        told = notes.pop(_DIGEST, None)
        found = None if told is None else frame_digest(frame, notes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(error)) from error
    except Exception as error:  # damaged files raise anything, deep within pyarrow and pandas
        raise RunError(f"{path}: expected a whole parquet file, but got: {error!s:.200}") from error
    if found is not None:
        check_digest(told, found, path)
    return FrameFile(frame, notes, told is not None)


def frame_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, with its index where that has a name.

    Names come from others, and a spreadsheet takes a text such as `=HYPERLINK(…)` for a formula:
    texts that begin so get an apostrophe in front, as OWASP advises. Numbers stay as they are.
    """
    safe = frame.map(_no_formula)
    named = frame.index.name is not None
    if named:
        safe.index = frame.index.map(_no_formula).rename(_no_formula(frame.index.name))
    safe.columns = frame.columns.map(_no_formula)
    return safe.to_csv(index=named, lineterminator="\n")


def _no_formula(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    text = one_line(cell)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
