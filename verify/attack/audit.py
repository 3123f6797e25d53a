"""Attacks on certificates themselves: inside each proven ball, on the decision and on the class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.scores import score_of
from greg_cert.verify.attack.pgd import AttackPlan, attack_within
from greg_cert.verify.graph.agreement import Logits, check_agreement
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.norms import per_sample, steepest_direction, vector_norm
from greg_cert.verify.scorer import Margin, ScoreFunction, class_margin, score_and_gradient

STEPS, RESTARTS = 40, 3
_BATCH = 128


@dataclass(frozen=True)
class Audit:
    """What certificates are about, and how hard they are attacked.

    Attributes:
        logits: the model in float64.
        graph: what the bounds are about; the model is compared with it wherever it is attacked.
        score: a key of `greg_cert.scores.SCORES`.
        plan: the attack; its margin is that of the decision.
    """

    logits: Logits
    graph: Graph | None
    score: str
    plan: AttackPlan

    def crossings(
        self, x: Tensor, radii: Tensor, names: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Distance (B,) at which an attack crossed inside each ball; inf where none did.

        Args:
            x: (B, ...) centres in float64.
            radii: (B,) proven; rows of 0 are not attacked.
            names: (B,) of the samples, for their random starts.
            labels: (B,) classes, where certificates are also of the class.

        Raises:
            UnsupportedModelError: where the model and its graph part ways on the surface of a ball
                or where an attack ends.
        """
        crossed = torch.full_like(radii, torch.inf)
        value = score_of(self.score)

        def score(x: Tensor) -> Tensor:
            return value(self.logits(x))

        claimed = (radii > 0).nonzero().squeeze(1)
        for rows in claimed.split(_BATCH) if len(claimed) else ():
            self._check_surface(score, x[rows], radii[rows])
            self._attack(score, self.plan, x, radii, names, rows, crossed)
        if labels is not None:
            wrong_class = replace(self.plan, margin=Margin(0.0, "id"))
            for label in labels[claimed].unique():
                rows = claimed[labels[claimed] == label]

                def margin(x: Tensor, label: Tensor = label) -> Tensor:
                    return class_margin(self.logits(x), label.expand(len(x)), self.score)

                self._attack(margin, wrong_class, x, radii, names, rows, crossed)
        return crossed

    def _check_surface(self, score: ScoreFunction, x: Tensor, radii: Tensor) -> None:
        """Compare model and graph at the point of each ball that the slope leads to."""
        _, gradient = score_and_gradient(score, x)
        uphill = gradient if self.plan.margin.side == "id" else -gradient
        move = steepest_direction(uphill, self.plan.norm)
        surface = x + per_sample(radii, x) * move
        check_agreement(self.logits, self.graph, surface, "the surface of a proven ball")

    def _attack(
        self,
        score: ScoreFunction,
        plan: AttackPlan,
        x: Tensor,
        radii: Tensor,
        names: Tensor,
        rows: Tensor,
        crossed: Tensor,
    ) -> None:
        """Attack some rows inside their balls, and note in `crossed` where it succeeded."""
        hit, delta = attack_within(score, x[rows], radii[rows], plan, names[rows.cpu()])
        if hit.any():
            ends = (x[rows] + delta)[hit]
            check_agreement(self.logits, self.graph, ends, "the end of an attack")
        found = torch.where(hit, vector_norm(delta, plan.norm), torch.inf)
        crossed[rows] = torch.minimum(crossed[rows], found)
