"""The method `lipschitz`: the paper's ε* with a proven L_S."""

from __future__ import annotations

from dataclasses import dataclass

from greg_cert.verify.methods.method import Method, at_least
from greg_cert.verify.radius.lipschitz import LipschitzRadius
from greg_cert.verify.radius.problem import Problem


@dataclass(frozen=True)
class Lipschitz(Method):
    """ε* = min{ε, (γ − S)/L_S} with a proven L_S, of the decision alone and not of the class.

    Source: "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024, with a proven constant
    where the paper has an estimate.

    Attributes:
        lipschitz_form: `hybrid`, `interval` or `spectral`, as in `lipschitz_bound`.
        lipschitz_integrated: let the margin be used up by ∫ L(t) dt where that is further.
        rounds: balls tried with a constant of their own.
        tolerance: a sample is done when its radius cannot grow by more than this share.
    """

    lipschitz_form: str = "hybrid"
    lipschitz_integrated: bool = True
    rounds: int = at_least(1, 12)
    tolerance: float = at_least(0, 0.01)

    def prepare(self, problem: Problem, *, local: bool = True) -> LipschitzRadius:
        """This method for one network.

        Args:
            problem: the network.
            local: whether balls get a constant of their own, or that of the whole space has to do.
        """
        return LipschitzRadius(
            problem,
            self.lipschitz_form,
            self.lipschitz_integrated and local,
            self.rounds if local else 0,
            self.tolerance,
        )
