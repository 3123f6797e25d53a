"""Searching the radius at which a bound is worth most, for a whole batch at once.

A relaxation made for radius ε proves r(ε) = min{ε, q(ε)}. For small ε the first term is the smaller
one, for large ε the second, because bounds loosen; the best radius is near where they meet. Any ε
gives a valid radius, so the search can only cost tightness, never soundness.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_GRID = math.log(1.02)  # engines with one radius a call share it among samples this close
_GROWTH = 1.6

Reach = Callable[[Tensor, Tensor, int], Tensor]


class RadiusSearch:
    """Where each of B samples stands: the best radius and the bracket of the optimum.

    Args:
        guess: (B,) where to begin, > 0; not finite means anywhere.
        max_radius: no ball is larger.
        known: (B,) radii that are proven already: only larger ones are looked for.
    """

    def __init__(self, guess: Tensor, max_radius: float, known: Tensor | None = None) -> None:
        self.max_radius = max_radius
        usable = guess.isfinite() & (guess > 0)
        self._guess = torch.where(usable, guess, max_radius / 8).clamp(max=max_radius)
        self.best = torch.zeros_like(guess) if known is None else known.clone()
        # The ε that gave the best radius, where it was found here.
        self.best_at = torch.full_like(guess, torch.nan)
        self._low = torch.zeros_like(guess)  # largest ε whose whole ball was proven
        self._high = torch.full_like(guess, torch.inf)  # smallest ε whose ball was not
        self._ceiling = torch.full_like(guess, torch.inf)  # q there: the optimum is no further
        self._growth = _GROWTH

    def begin_again(self, growth: float) -> None:
        """Search upwards from the best radii, by better bounds, in steps of `growth`."""
        self._low = self.best.clone()
        self._high = torch.full_like(self._high, torch.inf)
        self._ceiling = torch.full_like(self._ceiling, torch.inf)
        self._growth = growth

    def climb(
        self, reach: Reach, rounds: int, tolerance: float, among: Tensor | None = None
    ) -> None:
        """Try balls until every sample is done, `rounds` of them at most.

        Args:
            reach: q (M,) for some samples (M,), their ε (M,), and the turn.
            rounds: balls a sample.
            tolerance: as of `open`.
            among: (B,) bool, the samples that take part; all by default.
        """
        for turn in range(rounds):
            members = self.open(tolerance)
            if among is not None:
                members = members[among[members]]
            if len(members) == 0:
                break
            radii = self.propose(members)
            self.update(members, radii, reach(members, radii, turn))

    def climb_by_draft(
        self,
        draft: Reach,
        careful: Reach,
        rounds: int,
        tolerance: float,
        among: Tensor | None = None,
    ) -> None:
        """`climb` by a draft; samples of which it proves nothing begin anew, by careful bounds.

        A draft that fails says nothing: it is computed in float32.
        """
        self.climb(draft, rounds, tolerance, among)
        lost = self.best == 0 if among is None else (self.best == 0) & among
        if lost.any():
            again = RadiusSearch(self._guess, self.max_radius)
            again.climb(careful, rounds, tolerance, lost)
            for name in ("best", "best_at", "_low", "_high", "_ceiling"):
                getattr(self, name)[lost] = getattr(again, name)[lost]

    def update(self, members: Tensor, radii: Tensor, reach: Tensor) -> None:
        """Take in q = `reach` at ε = `radii` for the samples `members`."""
        proven = torch.minimum(radii, reach).nan_to_num(nan=0.0)
        better = proven > self.best[members]
        self.best[members[better]] = proven[better]
        self.best_at[members[better]] = radii[better]
        low = (reach >= radii) & (radii > self._low[members])
        high = (reach < radii) & (radii < self._high[members])
        self._low[members[low]], self._ceiling[members[low]] = radii[low], reach[low]
        self._high[members[high]] = radii[high]

    def open(self, tolerance: float) -> Tensor:
        """Indices of samples whose optimum may be over `tolerance` (relative) above the best."""
        ceiling = self._high.clamp(max=self.max_radius)
        return (ceiling > self.best * (1 + tolerance)).nonzero().squeeze(1)

    def propose(self, members: Tensor) -> Tensor:
        """The next ε for some open samples, inside their brackets, rounded to a common grid."""
        # q falls while ε grows, so the crossing q = ε lies above q(high) and below q(low).
        low, high = torch.maximum(self._low, self.best)[members], self._high[members]
        top = torch.minimum(high, self._ceiling[members]).maximum(low)
        untried = (self._low[members] == 0) & high.isinf()
        between = torch.where(low > 0, (low * top).sqrt(), high / 4)
        radius = torch.where(high.isinf(), self._growth * low, between)
        radius = torch.where(untried, self._guess[members], radius).clamp(max=self.max_radius)
        rounded = ((radius.log() / _GRID).round() * _GRID).exp()
        inside = (rounded > low) & (rounded < high) & (rounded < self.max_radius)
        return torch.where(inside, rounded, radius)
