from __future__ import annotations

import errno
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from greg_cert.errors import DataError, UsageError
from greg_cert.train.feed import feature_store
from greg_cert.train.feed.feature_store import FeatureStore

ROWS, DIM = 103, 6


def content(rows: int = ROWS, dim: int = DIM, dtype: str = "float32") -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((rows, dim)).astype(dtype)
    return features, generator.standard_normal(rows).astype(np.float32)


def fill(store: FeatureStore, shards: list[int] | None = None) -> None:
    features, scores = content(dtype=store.dtype)
    for i in store.missing() if shards is None else shards:
        rows = slice(*store.span(i))
        store.write(i, features[rows], scores[rows])


def make(path: Path, shard_rows: int = 20, dtype: str = "float32") -> FeatureStore:
    return FeatureStore.create(path, rows=ROWS, dim=DIM, shard_rows=shard_rows, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shard_rows", [1, 20, 103, 1000])
@pytest.mark.parametrize("chunk_rows", [1, 7, 20, 5000])
def test_what_is_written_is_read(
    tmp_path: Path, dtype: str, shard_rows: int, chunk_rows: int
) -> None:
    fill(make(tmp_path / "a" / "b", shard_rows, dtype))
    store = FeatureStore.open(tmp_path / "a" / "b")
    features, scores = content(dtype=dtype)
    chunks = list(store.chunks(chunk_rows))
    assert max(len(c.scores) for c in chunks) <= chunk_rows
    assert np.array_equal(np.concatenate([c.features for c in chunks]), features)
    assert np.array_equal(np.concatenate([c.scores for c in chunks]), scores)
    assert [c.start for c in chunks] == np.cumsum([0, *(len(c.scores) for c in chunks)])[
        :-1
    ].tolist()
    assert chunks[0].features.dtype == dtype
    assert not any(isinstance(c.features, np.memmap) for c in chunks)
    rows = np.array([102, 0, 57, 57, 20, 19])
    assert np.array_equal(store.take(rows), features[rows])
    assert store.take(rows[:0]).shape == (0, DIM)


def test_a_store_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.missing() == [0, 1, 2, 3, 4, 5]
    fill(store, [4, 1])
    again = make(tmp_path)
    assert again == store
    assert again.missing() == [0, 2, 3, 5]
    assert [c.start for c in again.chunks(shards=[4, 1])] == [80, 20]
    with pytest.raises(DataError, match=r"expected shard 0 .*missing"):
        next(again.chunks())
    with pytest.raises(DataError, match=r"expected shard 0 .*missing"):
        again.take(np.array([25, 3]))
    fill(again)
    assert store.missing() == []


def test_a_shard_half_written_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path)
    fill(store)
    save = np.save

    def fails_on_scores(stream: Any, array: Any, **options: Any) -> None:
        save(stream, array, **options)
        if array.ndim == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", fails_on_scores)
    features, scores = content()
    with pytest.raises(DataError, match=r"bytes free in .* for shard 2, but the disk is full"):
        store.write(2, features[40:60], scores[40:60])
    assert store.missing() == [2]
    assert not [f for f in tmp_path.iterdir() if f.name.endswith(".tmp")]
    monkeypatch.undo()
    fill(store)
    assert store.missing() == []


def test_other_trouble_with_the_disk_is_not_called_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path)

    def fails(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(np, "save", fails)
    with pytest.raises(PermissionError):
        fill(store)


def write_some(path: Path, shards: list[int]) -> None:
    fill(make(path), shards)


def test_processes_write_different_shards(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=write_some, args=(tmp_path, [0, 3, 5]))
    worker.start()
    write_some(tmp_path, [1, 4, 2])
    worker.join()
    assert worker.exitcode == 0
    store = FeatureStore.open(tmp_path)
    assert store.missing() == []
    assert np.array_equal(np.concatenate([c.scores for c in store.chunks()]), content()[1])


@pytest.mark.parametrize("kept", [0, 5, 100, 400])
def test_a_truncated_shard_is_refused(tmp_path: Path, kept: int) -> None:
    store = make(tmp_path)
    fill(store)
    file = tmp_path / "features-000003.npy"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"features-000003.npy: expected a whole .npy file"):
        list(store.chunks())


@pytest.mark.parametrize(
    "array",
    [np.zeros((20, 5), np.float32), np.zeros((20, 6), np.float64), np.zeros((19, 6), np.float32)],
)
def test_a_shard_of_another_layout_is_refused(tmp_path: Path, array: Any) -> None:
    store = make(tmp_path)
    fill(store)
    np.save(tmp_path / "features-000001.npy", array)
    with pytest.raises(DataError, match=r"expected \(20, 6\) of float32, but got"):
        list(store.chunks())


def test_pickles_are_not_read(tmp_path: Path) -> None:
    store = make(tmp_path)
    fill(store)
    np.save(tmp_path / "scores-000001.npy", np.array([{}] * 20), allow_pickle=True)
    with pytest.raises(DataError, match="scores-000001"):
        list(store.chunks())


@pytest.mark.parametrize(
    ("features", "scores", "message"),
    [
        ((20, 5), (20,), r"features \(20, 6\) of float32, but got \(20, 5\)"),
        ((19, 6), (19,), r"features \(20, 6\) of float32, but got \(19, 6\)"),
        ((20, 6), (20, 1), r"scores \(20,\) of float32, but got \(20, 1\)"),
    ],
)
def test_shapes_are_refused(
    tmp_path: Path, features: tuple[int, ...], scores: tuple[int, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(tmp_path).write(0, np.zeros(features, np.float32), np.zeros(scores, np.float32))


def test_types_and_values_are_refused(tmp_path: Path) -> None:
    store = make(tmp_path)
    good, scores = np.zeros((20, 6), np.float32), np.zeros(20, np.float32)
    with pytest.raises(DataError, match=r"features .* of float32, but got .* of float16"):
        store.write(0, good.astype(np.float16), scores)
    with pytest.raises(DataError, match=r"scores .* of float32, but got .* of float64"):
        store.write(0, good, scores.astype(np.float64))
    with pytest.raises(DataError, match="shard 0: expected finite features"):
        store.write(0, good + np.float32(np.inf), scores)
    with pytest.raises(DataError, match="shard 0: expected finite scores"):
        store.write(0, good, scores + np.float32(np.nan))
    with pytest.raises(UsageError, match="0 <= shard < 6, but got 6"):
        store.write(6, good, scores)
    assert store.missing() == list(range(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 0}, "rows >= 1, but got 0"),
        ({"dim": 0}, "dim >= 1, but got 0"),
        ({"shard_rows": -1}, "shard_rows >= 1, but got -1"),
        ({"dtype": "float64"}, "dtype in float16, float32, but got 'float64'"),
    ],
)
def test_layouts_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FeatureStore.create(tmp_path, **{"rows": 3, "dim": 2, **change})
    assert not list(tmp_path.iterdir())


def test_a_store_of_another_layout_is_not_written_over(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=r"'shard_rows': 30.*but got .*'shard_rows': 20"):
        make(tmp_path, 30)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 1, "rows": "many", "dim": 1}'],
)
def test_a_bad_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match="expected a store's index in"):
        FeatureStore.open(tmp_path)


def test_an_index_of_another_version_and_none_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no index.json"):
        FeatureStore.open(tmp_path)
    store = make(tmp_path)
    layout = json.loads((tmp_path / "index.json").read_text())
    for change in ({"schema": 2}, {"dtype": "int8"}, {"rows": 0}):
        (tmp_path / "index.json").write_text(json.dumps({**layout, **change}))
        with pytest.raises(DataError, match="expected schema 1"):
            FeatureStore.open(tmp_path)
    assert store.shards == 6


def test_ranges_are_refused(tmp_path: Path) -> None:
    store = make(tmp_path)
    fill(store)
    with pytest.raises(UsageError, match="chunk_rows >= 1, but got 0"):
        next(store.chunks(0))
    with pytest.raises(UsageError, match="0 <= shard < 6, but got -1"):
        next(store.chunks(shards=[-1]))
    for row in (-1, ROWS):
        with pytest.raises(UsageError, match=f"0 <= row < {ROWS}, but got"):
            store.take(np.array([0, row]))


def test_a_map_is_dropped_after_each_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make(tmp_path, 60)
    fill(store)
    load, opened = np.load, []

    def counted(*args: Any, **options: Any) -> Any:
        assert options == {"mmap_mode": "r", "allow_pickle": False}
        opened.append(args[0])
        return load(*args, **options)

    monkeypatch.setattr(feature_store.np, "load", counted)
    assert len(list(store.chunks(20))) == 6
    assert len(opened) == 12
