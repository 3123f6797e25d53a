"""The record that `certify` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

CERTIFIED, REJECTED, UNDECIDED = "certified", "rejected", "undecided"


@dataclass(frozen=True)
class Certificates:
    """One row a sample; radii in the norm asked for, of raw pixels in [0, 1].

    Attributes:
        score: (B,) S(x), higher = more OOD.
        gradient_norm: (B,) ‖∇S(x)‖* at the point.
        lipschitz: (B,) proven bound of ‖∇S‖* over the ball that gave `radius_lipschitz`; NaN where
            none was computed.
        radius_gradient: (B,) first-order radius with the one-point slope: an ESTIMATE.
        radius_lipschitz: (B,) min{ε, (γ − S)/L_S(ε)}: proven.
        radius_certified: (B,) the radius proven by the method asked for.
        radius_attack: (B,) smallest distance at which an attack succeeded; inf where none did. The
            true radius lies in [radius_certified, radius_attack].
        status: (B,) strings. `certified`; `rejected`, when the clean sample is on the wrong side
            already (all radii 0); `undecided`, when nothing could be proven (radius 0).
        other: further columns (B,) by name, those of the methods asked for: `radius_crown` and
            `radius_alpha_crown` (proof), `radius_clever` (estimate), `radius_smoothing`
            (probabilistic proof, about the smoothed detector, whatever the status: 0 where
            `smoothing_decision` is the wrong one for the side, NaN where it abstained).

    A column that was not asked for is NaN. No row is ever dropped.
    """

    score: Tensor
    gradient_norm: Tensor
    lipschitz: Tensor
    radius_gradient: Tensor
    radius_lipschitz: Tensor
    radius_certified: Tensor
    radius_attack: Tensor
    status: NDArray[np.str_]
    other: Mapping[str, Tensor | NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.score)

    def to_frame(self) -> pd.DataFrame:
        """The table, a row a sample and a column a field."""
        import pandas as pd

        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "other"}
        return pd.DataFrame(
            {
                name: value.cpu().numpy() if isinstance(value, Tensor) else value
                for name, value in {**named, **self.other}.items()
            }
        )


def join(parts: Sequence[Certificates]) -> Certificates:
    """The rows of several records, one after the other; all have the same columns."""

    def together(values: list[Any]) -> Any:
        return torch.cat(values) if isinstance(values[0], Tensor) else np.concatenate(values)

    named = {
        f.name: together([getattr(p, f.name) for p in parts])
        for f in fields(Certificates)
        if f.name != "other"
    }
    other = {name: together([p.other[name] for p in parts]) for name in parts[0].other}
    return Certificates(**named, other=other)
