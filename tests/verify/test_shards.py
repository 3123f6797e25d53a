"""The shard store alone: whole files or none, settings that must agree, one writer at a time."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import flips
import pandas as pd
import pyarrow.parquet as pq
import pytest

from greg_cert.digests import sealed
from greg_cert.errors import RunError, UncheckedFileWarning
from greg_cert.verify.run.shards import ShardKey, ShardStore, first_difference

Opened = Callable[..., ShardStore]
KEY = ShardKey("certify", "a" * 64, "ood/a b")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Opens the store of `tmp_path`; what a test leaves open is closed after it."""
    stores = []

    def open_store(restart: bool = False) -> ShardStore:
        store = ShardStore(tmp_path / "shards")
        stores.append(store)
        store.open(restart=restart)
        return store

    yield open_store
    for store in stores:
        store.close()


def rows(*indices: int) -> pd.DataFrame:
    return pd.DataFrame({"index": indices, "value": [i / 3 for i in indices]})


def test_rows_come_back_in_order_each_once_and_by_key(opened: Opened, tmp_path: Path) -> None:
    store = opened()
    store.settle({})
    store.append(KEY, rows(7, 2))
    store.append(KEY, rows(5))
    store.append(ShardKey("certify", "a" * 64, "id"), rows(1))
    store.close()
    ranked = ShardStore(tmp_path / "shards", rank=3)
    ranked.append(KEY, rows(5, 9))  # what two processes have both done
    store = opened()
    store.refresh()
    found = store.rows(KEY)
    assert found["index"].tolist() == [2, 5, 7, 9]
    assert found["value"].tolist() == [i / 3 for i in (2, 5, 7, 9)]
    assert store.finished(ShardKey("certify", "b" * 64, "id")) == set()
    assert any("-r3-" in name for name in store.names)


def test_leftovers_of_a_killed_writer_are_no_shards(opened: Opened) -> None:
    store = opened()
    store.settle({})
    whole = store.append(KEY, rows(1, 2))
    store.close()
    leftover = whole.with_name(f".{whole.name}.abc123.tmp")
    leftover.write_bytes(whole.read_bytes()[:40])
    again = opened()
    again.refresh()
    assert again.finished(KEY) == {1, 2}
    assert not leftover.exists()


def test_a_damaged_shard_is_named(opened: Opened) -> None:
    store = opened()
    store.settle({})
    path = store.append(KEY, rows(1, 2))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=rf"{path.name}.*computed again"):
        ShardStore(store.folder).refresh()
    pd.DataFrame({"index": [1]}).to_parquet(path)  # a table of somebody else
    with pytest.raises(RunError, match=path.name):
        ShardStore(store.folder).refresh()


def test_a_flipped_bit_in_a_shard_is_refused_or_changes_nothing(opened: Opened) -> None:
    store = opened()
    store.settle({})
    path = store.append(KEY, rows(3, 1, 2).assign(status=["certified", "rejected", "undecided"]))

    def read() -> pd.DataFrame:
        again = ShardStore(store.folder)
        again.refresh()
        return again.rows(KEY)

    whole = read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedFileWarning)  # a flip in the word "digest"
        for found in flips.believed(path, read, 100):
            pd.testing.assert_frame_equal(found, whole)


def test_a_flipped_bit_in_the_settings_is_refused_or_changes_nothing(opened: Opened) -> None:
    store = opened()
    settings = {"norm": "2", "runs": {"a": {"threshold": -13.712345678}}, "cuts": 3}
    store.settle(settings)
    path = store.folder / "settings.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedFileWarning)
        whole = path.read_bytes()
        for changed in flips.flipped(whole, 60):
            path.write_bytes(changed)
            with contextlib.suppress(RunError):
                store.settle(settings)
                assert path.read_bytes() == whole  # only what is the same goes on
    # An edit that fits what is asked for now, but not what the shards are about.
    path.write_bytes(whole.replace(b"-13.71", b"-12.71"))
    with pytest.raises(RunError, match=r"settings\.json: field digest: .*--restart"):
        store.settle({**settings, "runs": {"a": {"threshold": -12.712345678}}})


def test_a_note_that_is_not_as_written_is_none(opened: Opened) -> None:
    store = opened()
    store.settle({})
    note = {"evaluation": {"threshold": -13.5, "scores": [1.5, 2.25]}, "seconds": 1.0}
    store.write_note("n", note)
    path = store.folder / "note-n.json"
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncheckedFileWarning)
        for changed in flips.flipped(content, 60):
            path.write_bytes(changed)
            found = store.note("n")
            assert found is None or note.items() <= found.items()
    path.write_bytes(content.replace(b"-13.5", b"-13.6"))
    assert store.note("n") is None


def test_a_store_of_an_earlier_version_is_read_with_one_line(opened: Opened) -> None:
    store = opened()
    store.settle({"norm": "2"})
    for path in (store.append(KEY, rows(1)), store.append(KEY, rows(2))):
        table = pq.read_table(path)
        kept = {k: v for k, v in table.schema.metadata.items() if b"digest" not in k}
        pq.write_table(table.replace_schema_metadata(kept), path)
    (store.folder / "settings.json").write_text('{"norm": "2"}')
    again = ShardStore(store.folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        again.refresh()
        again.settle({"norm": "2"})
    (line,) = [str(w.message) for w in told if w.category is UncheckedFileWarning]
    assert line.startswith(f"{store.folder} was written by an earlier version")
    assert again.finished(KEY) == {1, 2}


def test_other_settings_are_refused_by_name_and_both_values(opened: Opened) -> None:
    store = opened()
    first = {"norm": "2", "runs": {"a": {"weights": "x" * 64}}, "versions": {"torch": "1"}}
    store.settle(first, grows=("runs",))
    store.settle(first, grows=("runs",))
    changed = {**first, "norm": "inf", "versions": {"torch": "2"}}
    with pytest.raises(RunError, match=r'norm was "2" and is "inf".*--out.*--restart'):
        store.settle(changed, grows=("runs",))
    with pytest.raises(RunError, match=r'runs\.a\.weights was "x+… and is "y+…'):
        store.settle({**first, "runs": {"a": {"weights": "y" * 64}}}, grows=("runs",))
    with pytest.raises(RunError, match=r"correct was null and is true"):
        store.settle({**first, "correct": True}, grows=("runs",))


def test_runs_may_be_added_and_the_earlier_ones_are_remembered(opened: Opened) -> None:
    store = opened()
    store.settle({"runs": {"a": 1}}, grows=("runs",))
    store.settle({"runs": {"b": 2}}, grows=("runs",))
    with pytest.raises(RunError, match=r"runs\.a was 1 and is 3"):
        store.settle({"runs": {"a": 3}}, grows=("runs",))
    kept = json.loads((store.folder / "settings.json").read_text())
    assert kept == sealed({"runs": {"a": 1, "b": 2}})


def test_a_restart_drops_all_and_shards_without_settings_are_refused(opened: Opened) -> None:
    store = opened()
    store.settle({"norm": "2"})
    store.append(KEY, rows(1))
    store.write_note("n", {"a": 1})
    assert store.note("n") == sealed({"a": 1})
    store.close()
    (store.folder / "settings.json").unlink()
    store = opened()
    with pytest.raises(RunError, match=r"settings\.json"):
        store.settle({"norm": "2"})
    store.close()
    store = opened(restart=True)
    store.refresh()
    assert store.names == []
    assert store.note("n") is None
    store.settle({"norm": "inf"})


def test_unreadable_settings_are_refused(opened: Opened) -> None:
    store = opened()
    (store.folder / "settings.json").write_text('{"norm": ')
    with pytest.raises(RunError, match=r"settings\.json.*--restart"):
        store.settle({"norm": "2"})


def test_two_commands_do_not_share_a_folder(opened: Opened) -> None:
    pytest.importorskip("fcntl")
    first = opened()
    with pytest.raises(RunError, match="no other process"):
        opened()
    first.close()
    opened().close()


def test_a_folder_that_cannot_be_made_is_one_error(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file")
    with pytest.raises(RunError, match="cannot write"):
        opened()


def test_the_first_difference_is_found_at_any_depth() -> None:
    then = {"a": 1, "b": {"c": [1, 2], "d": 3}}
    assert first_difference(then, {"a": 1, "b": {"c": [1, 2], "d": 3}}) is None
    assert first_difference(then, {"a": 1, "b": {"c": [1], "d": 4}}) == ("b.c", [1, 2], [1])
    assert first_difference(then, {"a": 1}) == ("b", {"c": [1, 2], "d": 3}, None)
