"""The shard store alone: whole files or none, settings that must agree, one writer at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from greg_cert.errors import RunError
from greg_cert.verify.shards import ShardKey, ShardStore, first_difference

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
    assert json.loads((store.folder / "settings.json").read_text()) == {"runs": {"a": 1, "b": 2}}


def test_a_restart_drops_all_and_shards_without_settings_are_refused(opened: Opened) -> None:
    store = opened()
    store.settle({"norm": "2"})
    store.append(KEY, rows(1))
    store.write_note("n", {"a": 1})
    assert store.note("n") == {"a": 1}
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
