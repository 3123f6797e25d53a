"""Values that arithmetic in float32 can stand: refused where they are not finite, scaled else."""

from __future__ import annotations

import torch
from torch import Tensor

from greg_cert.errors import UsageError

_LARGEST = 2.0**40  # squares of what lies within 1/_LARGEST ... _LARGEST can be summed in float32
_SCALE = 2.0**88  # takes what lies beyond, down to 2^-128 and up to 2^128, into that range


def check_finite(**tensors: Tensor) -> None:
    """Refuse NaN and infinity, and what float32 cannot hold; the host waits for the device.

    Args:
        tensors: floating, (N, …) each, by the name that errors call it.

    Raises:
        UsageError: naming the tensor, the first such value and its row.
    """
    for name, tensor in tensors.items():
        fine = tensor.detach().float().isfinite()
        if not bool(fine.all()):
            at = (~fine).nonzero()[0].tolist()
            raise UsageError(
                f"{name}: expected finite values in the range of float32, "
                f"but got {float(tensor[tuple(at)]):g} in row {at[0]} of {len(tensor)}"
            )


def range_factor(largest: Tensor) -> Tensor:
    """A power of two (exact) that brings values of this magnitude to where squares are finite.

    1 in the usual range, so that nothing changes there, not even in the last bit.
    """
    factor = torch.where(largest > _LARGEST, 1 / _SCALE, 1.0)
    return torch.where(largest < 1 / _LARGEST, _SCALE, factor)


def unit_rows(features: Tensor) -> Tensor:
    """Rows of length 1 in float32, however long they were: (N, D); a row of zeros stays one."""
    wide = features.detach().float()
    largest = wide.abs().amax(1, keepdim=True)
    return torch.nn.functional.normalize(wide * range_factor(largest), dim=1)
