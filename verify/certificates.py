"""The record that `certify` returns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from greg_cert.certificates.format import CONTRADICTED
from greg_cert.certificates.methods import PROOFS, column_of
from greg_cert.errors import GregCertWarning

if TYPE_CHECKING:
    import pandas as pd

CLAIMS = (*(column_of(m) for m in PROOFS), "radius_certified")
"""Columns that hold proven radii, where they are asked for."""


class ContradictionWarning(GregCertWarning):
    """An attack contradicts a certificate, which is a bug of greg-cert."""


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
        radius_refuted: (B,) the largest radius that was proven for a row that an attack
            contradicts; NaN for all others.
        status: (B,) strings. `certified`; `rejected`, when the clean sample is on the wrong side
            already (all radii 0); `undecided`, when nothing could be proven (radius 0);
            `contradicted`, when an attack succeeded inside a proven radius: none is left then.
        other: further columns (B,) by name, those of the methods asked for: `radius_crown` and
            `radius_alpha_crown` (proof), `radius_best` (proof) with `radius_method` and
            `stopped_by`, the method that gave it and what stopped the search,
            `radius_clever` (estimate), `radius_smoothing`
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
    radius_refuted: Tensor
    status: NDArray[np.str_]
    other: Mapping[str, Tensor | NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.score)

    def against(self, attacked: Tensor) -> Certificates:
        """These rows, without the radii that an attack contradicts.

        Args:
            attacked: (B,) distance at which an attack succeeded; inf or NaN where none did.
        """
        claims = {
            name: values
            for name in CLAIMS
            if isinstance(values := getattr(self, name, self.other.get(name)), Tensor)
        }
        claimed = torch.stack(list(claims.values())).nan_to_num(nan=0.0).amax(0)
        broken = (claimed > 0) & (attacked <= claimed)
        if not broken.any():
            return self
        left = {name: torch.where(broken, 0.0, values) for name, values in claims.items()}
        return replace(
            self,
            radius_attack=self.radius_attack.fmin(attacked),
            radius_refuted=torch.where(broken, claimed, self.radius_refuted),
            lipschitz=torch.where(broken, torch.nan, self.lipschitz),
            status=np.where(broken.cpu().numpy(), CONTRADICTED, self.status),
            other={**self.other, **{n: v for n, v in left.items() if n in self.other}},
            **{n: v for n, v in left.items() if n not in self.other},
        )

    def warn(self) -> None:
        """Issue a `ContradictionWarning` where any row is contradicted; says what to report."""
        rows = np.flatnonzero(self.status == CONTRADICTED)
        if len(rows):
            at = int(rows[0])
            warnings.warn(
                f"{len(rows)} of {len(self)} certificates are contradicted by an attack and "
                f"withdrawn, first of all row {at}: certified {self.radius_refuted[at]:.6g}, "
                f"crossed at {self.radius_attack[at]:.6g}. Please report this as a bug, with the "
                "model, the sample, the call and the versions; do not rely on the other rows",
                ContradictionWarning,
                stacklevel=3,
            )

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
