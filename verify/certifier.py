"""All that is computed for one batch of samples: radii by each method, attack and status."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greg_cert.certificates.format import CERTIFIED, REJECTED, UNDECIDED
from greg_cert.certificates.methods import (
    NO_METHOD,
    PROOFS,
    RADIUS_METHOD,
    STOPPED_BY,
    column_of,
)
from greg_cert.errors import UsageError
from greg_cert.verify.attack.audit import RESTARTS, STEPS, Audit, nearest_attack
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.certificates import Certificates
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.methods.best import Best
from greg_cert.verify.methods.lipschitz import Lipschitz
from greg_cert.verify.methods.method import Proof, Rows, Sampled
from greg_cert.verify.norms import dual_norm
from greg_cert.verify.options import CertifyOptions
from greg_cert.verify.radius.best import BestRadius, Climb
from greg_cert.verify.radius.goals import Goal, class_goal, decision_goal
from greg_cert.verify.radius.lipschitz import LipschitzRadius
from greg_cert.verify.radius.problem import Batch, Problem, Prove
from greg_cert.verify.scorer import Detector, Margin, logit_function, score_and_gradient


class Certifier:
    """Certifies batches of one model; without a graph nothing is proven."""

    def __init__(
        self, model: nn.Module, graph: Graph | None, threshold: float, options: CertifyOptions
    ) -> None:
        self.options = options
        margin = Margin(threshold, options.side)
        self.detector = Detector(logit_function(model), options.score, margin)
        self.graphs: list[Graph | None] = [None]
        self._proofs: dict[str, tuple[Proof, Prove]] = {}
        self._lipschitz: LipschitzRadius | None = None
        self._best: BestRadius | None = None
        if graph is None:
            return
        problem = Problem(
            model,
            graph,
            options.engine,
            options.score,
            options.norm,
            options.max_radius,
            options.memory_bytes,
        )
        for name in options.methods:
            method = options.settings[name]
            if isinstance(method, Best):
                self._best = method.prepare(problem)
            elif isinstance(method, Proof):
                self._proofs[name] = method, method.prepare(problem)
        methods = {*options.methods}
        if options.lipschitz or {"lipschitz", "best"} & methods:
            constant = options.settings["lipschitz"]
            assert isinstance(constant, Lipschitz)
            # The local constant costs as much as a radius by other proofs, so it is asked for by
            # its name; that of the whole space costs a forward pass.
            self._lipschitz = constant.prepare(problem, local="lipschitz" in methods)
        self.graphs = [*problem.graphs]

    @torch.no_grad()
    def check_labels(self, labels: Tensor, x: Tensor) -> None:
        """Raises `UsageError` for a label that is no class of the model, whose logits x gives."""
        classes = self.detector.classes(self.detector.logits(x))
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < classes:
                raise UsageError(f"expected labels in 0 … {classes - 1}, but got {label}")

    def __call__(self, x: Tensor, names: Tensor, labels: Tensor | None) -> Certificates:
        """Certificates of one batch; those that an attack contradicts have no radius."""
        options, detector = self.options, self.detector
        plan = AttackPlan(
            detector.margin,
            options.norm,
            options.seed,
            options.attack_steps,
            restarts=options.attack_restarts,
            polish=options.attack_polish,
        )
        audit = Audit(detector, self.graphs, replace(plan, steps=STEPS, restarts=RESTARTS))
        audit.compare(x, "the samples")
        scores, gradient = score_and_gradient(detector.score, x)
        with torch.no_grad():
            logits = detector.logits(x)
        slope = dual_norm(gradient, options.norm)
        gap, wrong = detector.margin.of(scores), detector.margin.wrong(scores)
        labels = None if labels is None else labels.to(x.device)
        if labels is not None:
            wrong = wrong | ~detector.is_correct(logits, labels)
        # The paper's ε* with the one-point slope, an ESTIMATE; infinite where the score is flat.
        first_order = (gap.clamp_min(0.0) / slope).nan_to_num(nan=0.0, posinf=options.max_radius)
        first_order = torch.where(wrong, 0.0, first_order.clamp(max=options.max_radius))
        unknown = torch.full_like(scores, torch.nan)
        attacked = unknown
        if options.attack:
            nearest = nearest_attack(detector, plan, options.max_radius, x, names, labels, wrong)
            attacked = nearest.radius
            audit.compare(x + nearest.delta, "the end of an attack")

        rows = Rows(x, names, labels, gap, wrong, attacked)
        radii, constant, told = self._prove(rows, Batch(x, logits, first_order))
        proven = torch.zeros_like(gap)
        for method in radii.keys() & {*options.methods}:
            proven = torch.maximum(proven, radii[method])
        other: dict[str, Tensor | NDArray[np.generic]] = {
            column_of(m): r for m, r in radii.items() if m != "lipschitz"
        }
        other |= told
        for method in options.methods:
            if isinstance(sampled := options.settings[method], Sampled):
                other |= sampled.columns(detector, rows, options.norm, options.max_radius)
        status = np.where(
            wrong.cpu().numpy(),
            REJECTED,
            np.where((proven > 0).cpu().numpy(), CERTIFIED, UNDECIDED),
        )
        result = Certificates(
            score=scores,
            gradient_norm=slope,
            lipschitz=constant,
            radius_gradient=first_order,
            radius_lipschitz=radii.get("lipschitz", unknown),
            radius_certified=proven,
            radius_attack=attacked,
            radius_refuted=unknown,
            status=status,
            other=other,
        )
        if not options.attack or not radii:
            return result
        claimed = torch.stack(list(radii.values())).amax(0)
        return result.against(attacked.minimum(audit.crossings(x, claimed, names, labels)))

    def _prove(
        self, rows: Rows, batch: Batch
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, NDArray[np.str_]]]:
        """Proven radii (B,) by method, the Lipschitz constants (B,), and what `best` tells."""
        nothing = torch.zeros_like(rows.gap)
        radii: dict[str, Tensor] = {}
        constant = torch.full_like(rows.gap, torch.nan)
        right = (~rows.wrong).nonzero().squeeze(1)
        some, on_right = batch.of(right), len(right) > 0
        enough = nothing if self._best is None else self._best.enough(rows.attacked)
        in_class = None
        if self._proofs or self._lipschitz or self._best:
            in_class = self._in_class(rows, batch, right, enough)
        limit = torch.full_like(nothing, torch.inf) if in_class is None else in_class.radii
        for name, (method, prove) in self._proofs.items():
            radii[name] = nothing.clone()
            if on_right:
                known = radii.get(method.begins_at or "")
                known = None if known is None else known[right]
                found = prove(some.knowing(known), self._goal(some))
                radii[name][right] = torch.minimum(found, limit[right])
        if self._lipschitz is not None:
            radii["lipschitz"] = nothing.clone()
            if on_right:
                found, constant[right] = self._lipschitz(some, rows.gap[right])
                radii["lipschitz"][right] = torch.minimum(found, limit[right])
        if self._best is None:
            return radii, constant, {}
        climb = Climb.not_begun(nothing)
        if on_right:
            names = np.array([NO_METHOD, *radii])
            known, by = torch.stack([nothing, *radii.values()])[:, right].max(0)
            given = (some.knowing(known), self._goal(some), names[by.cpu().numpy()])
            if in_class is None:
                came = self._best.climb(*given, enough[right])
            else:
                at = in_class.of(right)
                came = self._best.climb(*given, enough[right].minimum(at.radii)).within(at)
            climb = climb.put(right, came)
        radii["best"] = climb.radii
        return radii, constant, {RADIUS_METHOD: climb.method, STOPPED_BY: climb.stopped}

    def _goal(self, batch: Batch) -> Goal:
        """That the decision stays."""
        return decision_goal(self.options.score, self.detector.margin, batch.logits)

    def _in_class(self, rows: Rows, batch: Batch, right: Tensor, enough: Tensor) -> Climb | None:
        """Radii (B,) within which the class stays right; None where that is not asked for."""
        if rows.labels is None:
            return None
        found = Climb.not_begun(torch.zeros_like(rows.gap))
        if len(right) == 0:
            return found
        some = batch.of(right)
        goal = class_goal(self.options.score, some.logits, rows.labels[right])
        if self._best is not None:
            return found.put(right, self._best.climb(some, goal, enough=enough[right]))
        if not self._proofs:
            raise UsageError(
                f"expected one of the methods {', '.join(m for m in PROOFS if m != 'lipschitz')} "
                f"beside labels, but got {', '.join(self.options.methods)}"
            )
        _, prove = next(iter(self._proofs.values()))
        found.radii[right] = prove(some, goal)
        return found
