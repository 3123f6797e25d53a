from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flips
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from greg_cert.certificates.frame_file import read_rows
from greg_cert.digests import (
    check_seal,
    frame_digest,
    json_digest,
    sealed,
    tell_unchecked,
    tensors_digest,
)
from greg_cert.errors import RunError, UncheckedFileWarning
from greg_cert.frames import frame_bytes, read_frame
from greg_cert.runs.manifest import write_manifest

DOCUMENT = {"b": [1, 2.5, None], "a": {"x": "é", "y": True, "z": -0.0}, "n": math.nan}


def test_a_seal_survives_the_file_and_the_order_of_its_keys() -> None:
    back = json.loads(json.dumps(sealed({**DOCUMENT, "t": (1, 2), 10: "ten", 9: "nine"})))
    assert list(back)[-1] == "digest"
    assert check_seal(dict(reversed(back.items())), Path("x.json"))
    assert sealed(back) == back or math.isnan(back["n"])
    assert sealed(back)["digest"] == back["digest"]


@pytest.mark.parametrize(
    "change",
    [
        {"b": [1, 2.5000000000000004, None]},
        {"b": [1.0, 2.5, None]},
        {"b": [1, 2.5]},
        {"a": {"x": "e", "y": True, "z": -0.0}},
        {"a": {"x": "é", "y": 1, "z": -0.0}},
        {"a": {"x": "é", "y": True, "z": 0.0}},
        {"n": math.inf},
        {"n": None},
        {"more": 0},
        {"digest": None},
        {"digest": "0" * 64},
    ],
    ids=str,
)
def test_a_seal_finds_every_change(change: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"^some/x\.json: field digest: expected the digest"):
        check_seal({**sealed(DOCUMENT), **change}, Path("some/x.json"))


def test_a_document_of_an_earlier_version_has_no_seal() -> None:
    assert not check_seal(DOCUMENT, Path("x.json"))
    assert json_digest(DOCUMENT) == json_digest(sealed(DOCUMENT))


FRAME = pd.DataFrame(
    {
        "index": np.arange(5),
        "run": ["a", "a", "é", None, ""],
        "radius": [0.5, np.nan, -0.0, np.inf, 1e-300],
        "single": np.float32([1, 2, 3, 4, 5]),
        "violation": [True, False, True, False, True],
        "crossed": pd.array([1, None, 3, 4, 5], dtype="Int64"),
        "mixed": pd.Series([None, 1, 2, 3, 4], dtype=object),
        "sure": pd.Series([None, True, False, True, False], dtype=object),
        "list": [[1.0, 2.0], [], None, [3.0], [4.0]],
    }
)
NOTES = {"key": "value", "other": "é"}


@pytest.mark.parametrize("written", [{}, {"compression": "zstd"}, {"use_dictionary": False}])
def test_a_frames_digest_does_not_depend_on_the_encoding(
    tmp_path: Path, written: dict[str, Any]
) -> None:
    (tmp_path / "a.parquet").write_bytes(frame_bytes(FRAME, NOTES))
    frame, notes, checked = read_frame(tmp_path / "a.parquet")
    assert checked
    assert notes == NOTES
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=2, **written)
    again = read_frame(tmp_path / "b.parquet")
    assert again.checked
    pd.testing.assert_frame_equal(again.frame, frame)


@pytest.mark.parametrize("kind", [object, "str", "string", "category"])
def test_texts_are_the_same_in_every_type_that_pandas_keeps_them_in(kind: Any) -> None:
    texts = pd.DataFrame({"t": pd.Series(["a", None, "é"], dtype=kind)})
    assert frame_digest(texts) == frame_digest(pd.DataFrame({"t": ["a", None, "é"]}))


def _set(column: str, row: int, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].tolist()
        values[row] = value
        return frame.assign(**{column: pd.Series(values, dtype=frame[column].dtype)})

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("index", 0, 7),
        _set("run", 0, "b"),
        _set("run", 3, ""),
        _set("run", 4, None),
        _set("radius", 0, 0.5000000000000001),
        _set("radius", 2, 0.0),
        _set("radius", 1, 0.0),
        _set("single", 4, 4.9999995),
        _set("violation", 1, True),
        _set("crossed", 1, 0),
        _set("crossed", 0, None),
        _set("mixed", 1, True),
        _set("list", 0, [1.0, 2.5]),
        lambda f: f.rename(columns={"radius": "Radius"}),
        lambda f: f[list(reversed(f.columns))],
        lambda f: f.drop(columns="single"),
        lambda f: f.iloc[:4],
        lambda f: f.iloc[::-1],
        lambda f: f.assign(single=f["single"].astype("float64")),
        lambda f: f.assign(index=f["index"].astype("int32")),
    ],
)
def test_a_frames_digest_finds_every_change(
    change: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    assert frame_digest(FRAME) == frame_digest(FRAME.set_index(FRAME["radius"]))
    assert frame_digest(change(FRAME)) != frame_digest(FRAME)


def test_the_notes_beside_a_frame_count() -> None:
    found = {frame_digest(FRAME, n) for n in ({}, {"a": "b"}, {"a": "c"}, {"b": "b"}, NOTES)}
    assert len(found) == 5


def test_a_nan_is_a_nan() -> None:
    odd = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
    assert frame_digest(pd.DataFrame({"x": [odd]})) == frame_digest(pd.DataFrame({"x": [np.nan]}))


def test_a_flipped_bit_in_a_table_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(frame_bytes(FRAME, NOTES))
    whole = read_frame(path).frame
    for frame, notes, checked in flips.believed(path, lambda: read_frame(path), 50):
        if checked:
            pd.testing.assert_frame_equal(frame, whole)
            assert notes == NOTES
        else:  # the bit took the digest's name, or all metadata, away
            assert frame["radius"].equals(whole["radius"])


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    pq.write_table(table, tmp_path / "old.parquet")
    assert not read_frame(tmp_path / "old.parquet").checked
    with pytest.raises(FileNotFoundError):
        read_frame(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("index,run\n")
    with pytest.raises(RunError, match=r"text\.parquet: expected a whole parquet file"):
        read_frame(tmp_path / "text.parquet")


def test_tensors_count_by_name_type_shape_and_bit() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(3), "c": torch.zeros(0, 2)}
    others = [
        {**tensors, "a": tensors["a"].view(2, 3)},
        {**tensors, "a": tensors["a"].double()},
        {**tensors, "a": torch.nextafter(tensors["a"], torch.tensor(9.0))},
        {**tensors, "b": torch.tensor(2)},
        {**tensors, "d": tensors["b"]},
        {"a": tensors["a"], "B": tensors["b"], "c": tensors["c"]},
    ]
    assert tensors_digest(dict(reversed(tensors.items()))) == tensors_digest(tensors)
    assert len({tensors_digest(t) for t in (tensors, *others)}) == 7


def test_an_unchecked_file_is_told_of_once(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for name in ("a", "b", "a", "c/../a"):
            tell_unchecked(tmp_path / name)
    assert {w.category for w in told} == {UncheckedFileWarning}
    assert [str(w.message).partition(" was ")[0] for w in told] == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_unchecked(tmp_path / "a")


def test_the_digests_import_neither_torch_nor_pandas() -> None:
    code = "import sys, greg_cert.digests; print({'torch', 'pandas', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_columns_of_lists_are_no_table_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    pd.DataFrame({"run": [["a"], ["b"]], "radius": [0.1, 0.2]}).to_parquet(path)
    warnings.simplefilter("ignore")  # no digest
    with pytest.raises(RunError, match="expected single values in column run, but got lists"):
        read_rows(path, ("run", "radius"))


def test_a_manifest_with_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="manifest: cannot write"):
        write_manifest(tmp_path, {"seed": float("nan")})
    assert list(tmp_path.iterdir()) == []
