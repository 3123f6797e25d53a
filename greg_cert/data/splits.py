"""Seeded subsets, and stratified splits: each class is dealt out in the same proportions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.data.reject import data_error


def pick(count: int, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Positions of a random subset of at most `limit` out of `count`, ascending."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.default_rng(seed).choice(count, size=limit, replace=False)
    return np.sort(chosen).astype(np.int64)


def stratified_split(
    labels: Tensor, fractions: Mapping[str, float], *, num_classes: int, seed: int, field: str
) -> dict[str, Tensor]:
    """Positions of each split: disjoint, together all of them, ascending, and fixed by the seed.

    Of a class with m images, each split in `fractions` gets m times its fraction, rounded, and
    ``train`` gets the rest. `labels` are (N,) int64, 0..K-1, K = `num_classes`.

    Raises:
        DataError: Some split would be without some class.
    """
    generator = np.random.default_rng(seed)
    classes = labels.numpy()
    parts: dict[str, list[NDArray[np.intp]]] = {name: [] for name in ("train", *fractions)}
    for label in range(num_classes):
        members = generator.permutation(np.flatnonzero(classes == label))
        sizes = {n: math.floor(len(members) * f + 0.5) for n, f in fractions.items()}
        sizes["train"] = len(members) - sum(sizes.values())
        for name, count in sizes.items():
            if count < 1:
                raise data_error(
                    field,
                    f"enough images of every class for each of {', '.join(sizes)}",
                    f"{len(members)} of class {label}, which leaves {name} none",
                )
            parts[name].append(members[:count])
            members = members[count:]
    return {name: torch.from_numpy(np.sort(np.concatenate(p))) for name, p in parts.items()}
