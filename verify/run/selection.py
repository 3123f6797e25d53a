"""Which samples are verified, and when to stop: what may differ between one run and its rerun."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from greg_cert.errors import UsageError

_LONGEST = 10**7  # of a range, which is written out
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Selection:
    """A choice among the ID test samples, and how much of it to do now."""

    classes: tuple[int, ...] | None = None  # only samples with these labels
    indices: tuple[int, ...] | None = None  # all of these; None: drawn by the seed
    limit: int | None = None  # of samples to verify now, beside those that are finished already

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit: expected at least 1, but got {self.limit}")


def choose_samples(count: int, wanted: int | None, seed: int) -> Tensor:
    """Indices of `wanted` of `count` samples in random order, by seed alone; None for all.

    Fewer samples are the first of more: what was verified of ten is a part of forty.
    """
    return torch.as_tensor(np.random.default_rng(seed).permutation(count)[:wanted], device="cpu")


def select_samples(
    selection: Selection, labels: Tensor, num_classes: int, wanted: int | None, seed: int
) -> list[int]:
    """Indices of the ID test samples that are chosen, in the random order they are verified in.

    `wanted` of those with labels (N,) are drawn where `selection` names no indices; None for all.

    Raises:
        UsageError: for an index or class that there is not, and where nothing is left.
    """
    among = torch.ones(len(labels), dtype=torch.bool, device="cpu")
    if selection.classes is not None:
        _check_range("--classes", selection.classes, num_classes)
        among &= torch.isin(labels, torch.tensor(selection.classes, device="cpu"))
        if not among.any():
            raise UsageError(
                f"--classes: expected classes with test samples, but got {_joined(selection)}"
            )
    if selection.indices is not None:
        _check_range("--indices", selection.indices, len(labels))
        chosen, wanted = torch.zeros_like(among), None
        chosen[torch.tensor(selection.indices, device="cpu")] = True
        among &= chosen
        if not among.any():
            raise UsageError(
                f"--indices: expected samples of --classes {_joined(selection)}, but got none"
            )
    candidates = among.nonzero().squeeze(1)
    return candidates[choose_samples(len(candidates), wanted, seed)].tolist()


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Numbers and ranges such as `5,9,100-120`, sorted, each once; a range includes its ends.

    Raises:
        UsageError: for anything else; names the option.
    """
    numbers: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high - low > _LONGEST:
            raise UsageError(
                f"{option}: expected numbers and ranges such as 5,9,100-120, but got {text!r}"
            )
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))


def parse_seconds(option: str, text: str) -> float:
    """Seconds of `90`, `90s`, `20m` or `1h`.

    Raises:
        UsageError: for anything else; names the option.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)\s*", text)
    if not match:
        raise UsageError(f"{option}: expected a time such as 90, 90s, 20m or 1h, but got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def _check_range(option: str, numbers: tuple[int, ...], count: int) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise UsageError(f"{option}: expected numbers from 0 to {count - 1}, but got {number}")


def _joined(selection: Selection) -> str:
    return ",".join(map(str, selection.classes or ()))
