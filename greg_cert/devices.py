"""Where models run: the device that is asked for, by name."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from greg_cert.errors import UsageError

if TYPE_CHECKING:
    import torch

DEVICES = "auto, cpu, cuda or cuda:N"
_NAME = re.compile(r"auto|cpu|cuda(?::(\d+))?")


def check_device(name: str) -> str:
    """The name of a device, which need not be there.

    Raises:
        UsageError: for any other name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"expected {DEVICES}, but got {name!r}")
    return name


def find_device(name: str) -> torch.device:
    """The device of that name; `auto` is a CUDA device where there is one, else the CPU.

    Where a launcher has started several processes on a machine, `auto` and `cuda` give each of them
    a device of its own in turn, by LOCAL_RANK.

    Raises:
        UsageError: for a device that is not available; names the option.
    """
    import torch

    found = _NAME.fullmatch(name)
    if not found:
        raise UsageError(f"--device: expected {DEVICES}, but got {name!r}")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    if not there:
        raise UsageError(
            f"--device: expected auto or cpu, as no CUDA device is available here, but got {name!r}"
        )
    index = int(found[1] or 0)
    if found[1] is None and os.environ.get("LOCAL_RANK", "").isdecimal():
        index = int(os.environ["LOCAL_RANK"]) % there
    if index >= there:
        raise UsageError(f"--device: expected cuda:0 to cuda:{there - 1}, but got {name!r}")
    return torch.device("cuda", index)


def device_title(device: torch.device) -> str:
    """What records call a device: `cpu`, or the name of the GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
