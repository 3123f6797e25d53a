"""The settings of randomised smoothing, and its counts, which can be saved and continued."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from greg_cert.digests import check_seal, sealed, tell_unchecked
from greg_cert.errors import UsageError
from greg_cert.verify.radius.sampled.samples import check_count


@dataclass(frozen=True)
class SmoothingOptions:
    """How decisions are smoothed.

    Attributes:
        sigma: standard deviation of the noise, in raw pixels; it defines the smoothed detector.
        n0: draws that select which decision to prove.
        n: further draws that prove it; the radius is at most σ·Φ⁻¹(alpha^(1/n)).
        alpha: how likely, at most, the statement about one sample is false.
        batch: noisy copies a forward pass; memory alone depends on it.
        seed: of all draws.

    Raises:
        UsageError: for a value out of range.
    """

    sigma: float = 0.25
    n0: int = 100
    n: int = 10_000
    alpha: float = 0.001
    batch: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"expected sigma > 0 and finite, but got {self.sigma}")
        if not 0 < self.alpha < 1:
            raise UsageError(f"expected 0 < alpha < 1, but got {self.alpha}")
        check_count("n0", self.n0, 1)
        check_count("n", self.n, 1)
        check_count("batch", self.batch, 1)
        check_count("seed", self.seed, 0)

    def identity(self) -> dict[str, Any]:
        """All that the counts and what they prove depend on: everything but `batch`."""
        return {name: value for name, value in asdict(self).items() if name != "batch"}


class Tally(NamedTuple):
    """How many noisy copies were drawn, and how many of them were accepted."""

    drawn: int = 0
    accepted: int = 0

    def plus(self, decisions: Tensor) -> Tally:
        """With one more decision (M,) bool a draw."""
        return Tally(self.drawn + len(decisions), self.accepted + int(decisions.sum()))


_NONE = Tally()


@dataclass(frozen=True)
class SampleCounts:
    """Counts of one sample: a fingerprint of the sample itself, the selection, the estimation."""

    input: str
    selection: Tally = _NONE
    estimation: Tally = _NONE


@dataclass
class SmoothingState:
    """Counts by sample index, so far. `to_record` and `from_record` carry them through JSON.

    They belong to one detector, which the state cannot recognise: whoever saves it must see to it
    that it is continued with the same weights and threshold. Other settings and other inputs are
    refused. So is a larger `n`: drawing on because of what the counts showed voids the confidence.
    """

    options: SmoothingOptions
    samples: dict[int, SampleCounts] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """Plain values for JSON, with their digest."""
        return sealed(
            {
                "options": self.options.identity(),
                "samples": {
                    str(index): [counts.input, [*counts.selection], [*counts.estimation]]
                    for index, counts in self.samples.items()
                },
            }
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any], options: SmoothingOptions) -> SmoothingState:
        """The state that `to_record` wrote.

        Raises:
            UsageError: if it was made with other options (`batch` may differ) or is damaged.
        """
        where = Path("smoothing state")
        if not check_seal(record, where):
            tell_unchecked(where)
        try:
            made_with, rows = dict(record["options"]), dict(record["samples"])
            samples = {
                int(i): SampleCounts(str(name), Tally(*map(int, first)), Tally(*map(int, second)))
                for i, (name, first, second) in rows.items()
            }
            damaged = [i for i, counts in samples.items() if not _possible(counts, options)]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"expected a saved smoothing state, but found {error!r}") from error
        _same_options(made_with, options)
        if damaged:
            raise UsageError(f"expected possible counts in the state, but not those of {damaged}")
        return cls(options, samples)

    def begin(self, index: int, image: Tensor, options: SmoothingOptions) -> SampleCounts:
        """The counts of sample `index`, which must be `image` as it was before."""
        _same_options(self.options.identity(), options)
        name = _fingerprint(image)
        counts = self.samples.setdefault(index, SampleCounts(name))
        if counts.input != name:
            raise UsageError(f"expected the input that the state counted as sample {index}")
        return counts


def _same_options(made_with: Mapping[str, Any], options: SmoothingOptions) -> None:
    wanted = options.identity()
    for name in sorted(wanted.keys() | made_with.keys()):
        if made_with.get(name) != wanted.get(name):
            raise UsageError(
                f"expected the state's {name} {made_with.get(name)}, but got {wanted.get(name)}"
            )


def _possible(counts: SampleCounts, options: SmoothingOptions) -> bool:
    first, second = counts.selection, counts.estimation
    return (
        0 <= first.accepted <= first.drawn <= options.n0
        and 0 <= second.accepted <= second.drawn <= options.n
        and (second.drawn == 0 or first.drawn == options.n0)
    )


def _fingerprint(image: Tensor) -> str:
    data = image.detach().cpu().contiguous()
    about = f"{data.dtype} {tuple(data.shape)} ".encode()
    return hashlib.sha256(about + data.numpy().tobytes()).hexdigest()[:16]
