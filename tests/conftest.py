"""Settings of the whole suite, and what many of its files need that takes seconds to make."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Networks here are small: two threads that wait for each other on a busy machine cost far more.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Look no more at what was imported and collected when garbage is: it stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def slow_and_fast(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The runs of `tiny_runs.train_pair`, which tests leave as they are."""
    from tiny_runs import train_pair

    return train_pair(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def hasty() -> Iterator[None]:
    """`certify` searches for the nearest attack by `tiny_runs.hasty_attack`."""
    from tiny_runs import hasty_attack

    from greg_cert.verify.attack import audit

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(audit, "smallest_attack", hasty_attack)
        yield
