"""NumPy's numbers in a checkpoint, such as `best_acc`, read without NumPy's own unpickling.

`torch.load(weights_only=True)` refuses them. What stands for NumPy's two functions here makes plain
numbers of a few kinds and nothing else, so that a file has no more to call than without them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch

_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class _Kind:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: object, *_: object) -> None:
        if code not in _KINDS:
            raise ValueError(f"expected one of {', '.join(sorted(_KINDS))}, but got {code!r}")
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|"):
            raise ValueError(f"expected an order of bytes, but got {order!r}")
        self.order = order


def _number(kind: object, data: object) -> bool | int | float:
    """Stands for NumPy's `scalar`."""
    if not isinstance(kind, _Kind) or not isinstance(data, bytes):
        raise ValueError(f"expected the bytes of a number, but got {type(data).__name__}")
    (found,) = np.frombuffer(data, dtype=np.dtype(f"{kind.order}{kind.code}")).tolist()
    return found  # type: ignore[no-any-return]


def numbers_allowed() -> AbstractContextManager[object]:
    """Within it `torch.load(weights_only=True)` reads NumPy's numbers as Python's."""
    return torch.serialization.safe_globals(
        [
            (_Kind, "numpy.dtype"),
            (_number, "numpy.core.multiarray.scalar"),
            (_number, "numpy._core.multiarray.scalar"),  # since NumPy 2
        ]
    )
