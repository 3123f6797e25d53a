"""Picking a seeded subset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pick(count: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Positions of a random subset of at most `limit` out of `count`, ascending."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.default_rng(seed).choice(count, size=limit, replace=False)
    return np.sort(chosen).astype(np.int64)
