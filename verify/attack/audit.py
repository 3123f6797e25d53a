"""Attacks on certificates: the nearest on the decision or the class, and those inside a ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from greg_cert.verify.attack.pgd import attack_within, smallest_attack
from greg_cert.verify.attack.plan import AttackPlan, AttackResult
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.norms import per_sample, steepest_direction, vector_norm
from greg_cert.verify.scorer import Detector, ScoreFunction, score_and_gradient

STEPS, RESTARTS = 40, 3
_BATCH = 128


def nearest_attack(
    detector: Detector,
    plan: AttackPlan,
    max_radius: float,
    x: Tensor,
    names: Tensor,
    labels: Tensor | None,
    wrong: Tensor,
) -> AttackResult:
    """Smallest attacks (B,), on the decision and on the class where that counts too.

    Of samples x (B, ...) in float64, up to `max_radius`; the margin of `plan` is that of the
    decision. `names` (B,) are for their random draws, `labels` (B,) classes that have to stay
    right, and `wrong` (B,) says which samples are on the wrong side already.
    """
    found = smallest_attack(detector.score, x, max_radius, plan, names)
    if labels is None:
        return found
    radius, delta = torch.where(wrong, 0.0, found.radius), found.delta.clone()
    delta[wrong] = 0.0
    for ahead, margin, rows in detector.class_targets((~wrong).nonzero().squeeze(1), labels):
        other = smallest_attack(
            ahead, x[rows], max_radius, replace(plan, margin=margin), names[rows.cpu()]
        )
        nearer = other.radius < radius[rows]
        radius[rows[nearer]], delta[rows[nearer]] = other.radius[nearer], other.delta[nearer]
    return AttackResult(radius, delta)


@dataclass(frozen=True)
class Audit:
    """What certificates are about, and how hard they are attacked.

    Attributes:
        detector: what is attacked.
        graphs: what the bounds are about; the model is compared with each wherever it is attacked.
        plan: the attack; its margin is that of the decision.
    """

    detector: Detector
    graphs: Sequence[Graph | None]
    plan: AttackPlan

    def crossings(
        self, x: Tensor, radii: Tensor, names: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Distance (B,) at which an attack crossed inside each ball; inf where none did.

        Of centres x (B, ...) in float64 with proven radii (B,), of which those of 0 are not
        attacked; `names` and `labels` as in `nearest_attack`.

        Raises:
            UnsupportedModelError: where the model and its graph part ways on the surface of a ball
                or where an attack ends.
        """
        crossed = torch.full_like(radii, torch.inf)
        claimed = (radii > 0).nonzero().squeeze(1)

        def attack(score: ScoreFunction, plan: AttackPlan, rows: Tensor) -> None:
            hit, delta = attack_within(score, x[rows], radii[rows], plan, names[rows.cpu()])
            if hit.any():
                self.compare((x[rows] + delta)[hit], "the end of an attack")
            found = torch.where(hit, vector_norm(delta, plan.norm), torch.inf)
            crossed[rows] = torch.minimum(crossed[rows], found)

        for rows in claimed.split(_BATCH) if len(claimed) else ():
            # The point of each ball that the slope leads to.
            _, gradient = score_and_gradient(self.detector.score, x[rows])
            move = steepest_direction(self.plan.margin.sign * gradient, self.plan.norm)
            surface = x[rows] + per_sample(radii[rows], x[rows]) * move
            self.compare(surface, "the surface of a proven ball")
            attack(self.detector.score, self.plan, rows)
        for ahead, margin, rows in self.detector.class_targets(claimed, labels):
            attack(ahead, replace(self.plan, margin=margin), rows)
        return crossed

    def compare(self, x: Tensor, where: str) -> None:
        """Raises `UnsupportedModelError` where the model is not each of its graphs at x."""
        for graph in self.graphs:
            check_agreement(self.detector.logits, graph, x, where)
