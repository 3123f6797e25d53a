import threading
import time
from collections.abc import Iterator

import pytest
import torch

from greg_cert.data.files.threads import fill, prefetch


def names() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("prefetch")}


@pytest.mark.parametrize("threads", [1, 4])
def test_the_order_is_that_of_the_items(threads: int) -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    found = list(prefetch(range(20), slow_first, ahead=5, threads=threads))
    assert found == [(i, i * i) for i in range(20)]
    assert names() == set()


def test_items_are_drawn_by_the_caller_and_no_further_than_allowed() -> None:
    drawn: list[tuple[int, str]] = []

    def items() -> Iterator[int]:
        for i in range(100):
            drawn.append((i, threading.current_thread().name))
            yield i

    ready = prefetch(items(), lambda i: i, ahead=3)
    for expected in range(5):
        assert next(ready) == (expected, expected)
        assert len(drawn) <= expected + 4
    assert {name for _, name in drawn} == {threading.current_thread().name}
    ready.close()  # type: ignore[attr-defined]
    assert names() == set()
    assert len(drawn) < 10


def test_errors_come_in_their_turn_and_end_the_threads() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise ValueError("the third")
        return item

    ready = prefetch(range(10), read, ahead=4)
    assert [next(ready)[1] for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(ready)
    assert names() == set()
    with pytest.raises(ValueError, match="ahead and threads >= 1, but got 0"):
        prefetch(range(3), read, ahead=0)


@pytest.mark.parametrize("threads", [True, False])
def test_every_position_is_filled_once_and_errors_are_told(threads: bool) -> None:
    made: list[int] = []
    squares = [0] * 1000
    fill(squares, lambda at: made.append(at) or at * at, threads=threads)
    assert squares == [at * at for at in range(1000)]
    assert sorted(made) == list(range(1000))

    def fail(at: int) -> int:
        if at == 700:
            raise OSError("here")
        return at

    with pytest.raises(OSError, match="here"):
        fill(squares, fail, threads=threads)


def test_decoding_threads_leave_torchs_own_alone() -> None:
    before = torch.get_num_threads()
    inside = [0] * 64
    fill(inside, lambda at: torch.get_num_threads())
    assert torch.get_num_threads() == before
    assert set(inside) == {1}
