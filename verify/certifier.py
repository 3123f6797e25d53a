"""All that is computed for one batch of samples: radii by each method, attack and status."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from greg_cert.certificates.certify_methods import (
    LINEAR,
    NO_METHOD,
    RADIUS_METHOD,
    STOPPED_BY,
    column_of,
)
from greg_cert.errors import EngineError, UsageError
from greg_cert.scores import score_of
from greg_cert.verify.attack.audit import RESTARTS, STEPS, Audit
from greg_cert.verify.attack.gradient import first_order_radius
from greg_cert.verify.attack.pgd import AttackPlan, AttackResult, smallest_attack
from greg_cert.verify.best_stages import best_radius
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.certificates import CERTIFIED, REJECTED, UNDECIDED, Certificates
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.graph.ops import Graph
from greg_cert.verify.graph.trace import with_whole_pools
from greg_cert.verify.norms import dual_norm
from greg_cert.verify.options import CertifyOptions
from greg_cert.verify.per_sample import check_rowwise
from greg_cert.verify.radius.best import BestRadius, Climb
from greg_cert.verify.radius.coupled.sdp_crown import SdpCrownRadius
from greg_cert.verify.radius.goals import decision_goals
from greg_cert.verify.radius.linear import LinearRadius
from greg_cert.verify.radius.lipschitz import LipschitzRadius
from greg_cert.verify.radius.sampled.clever import clever_estimate, clever_radius_estimate
from greg_cert.verify.radius.sampled.smoothing import ACCEPTED as SMOOTHED_IN
from greg_cert.verify.radius.sampled.smoothing import REJECTED as SMOOTHED_OUT
from greg_cert.verify.radius.sampled.smoothing import Accept, smoothed_decisions
from greg_cert.verify.scorer import (
    Margin,
    ScoreFunction,
    class_margin,
    logit_function,
    score_and_gradient,
)


class Certifier:
    """Certifies batches of one model by the methods asked for."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph | None,
        engine: str,
        margin: Margin,
        norm: float,
        max_radius: float,
        methods: tuple[str, ...],
        options: CertifyOptions,
    ) -> None:
        self.margin, self.norm, self.max_radius = margin, norm, max_radius
        self.methods, self.options = methods, options
        self.logits, self.graph = logit_function(model), graph
        self.value = score_of(options.score)
        self.graphs: tuple[Graph | None, ...] = (graph,)
        self.linear: dict[str, LinearRadius | SdpCrownRadius] = {}
        self.lipschitz: LipschitzRadius | None = None
        self.best: BestRadius | None = None
        if graph is None:
            return
        memory = options.memory_bytes
        prover, draft = make_engine(engine, graph, memory), graph.to(torch.float32)
        if "branch" in methods and prover.name != "native":
            raise EngineError(
                f"expected engine 'native' for the method branch, but got {engine!r}, which takes "
                "no signs of neurons"
            )
        pooled = graph
        if norm == 2.0 and prover.name == "native" and {"sdp-crown", "best"} & {*methods}:
            pooled = with_whole_pools(model, graph)
            self.graphs = (graph,) if pooled is graph else (graph, pooled)
        for method in LINEAR:
            if method == "sdp-crown" and method in methods:
                if prover.name != "native":
                    raise EngineError(
                        f"expected engine 'native' for the method sdp-crown, but got {engine!r}, "
                        "whose bounds are other ones"
                    )
                self.linear[method] = SdpCrownRadius(
                    pooled,
                    draft if pooled is graph else pooled.to(torch.float32),
                    norm,
                    max_radius,
                    options.ladder(method),
                    options.coupled,
                )
            elif method in methods:
                relaxation = "crown" if method == "branch" else method
                ladder = options.ladder(method)
                self.linear[method] = LinearRadius(
                    graph, draft, prover, relaxation, norm, max_radius, ladder, memory
                )
        if "best" in methods:
            self.best = best_radius(graph, draft, pooled, prover, norm, max_radius, options)
        if options.lipschitz or {"lipschitz", "best"} & {*methods}:
            # The local constant costs more than sdp-crown's radius, and is asked for by its name.
            whole = "lipschitz" in methods or {"best", "sdp-crown"}.isdisjoint(methods)
            self.lipschitz = LipschitzRadius(
                graph,
                draft,
                prover,
                options.score,
                norm,
                max_radius,
                form=options.lipschitz_form,
                # As a rung of `best` the constant of the whole space has to do.
                integrate=options.lipschitz_integrated and whole,
                rounds=options.rounds if whole else 0,
                tolerance=options.tolerance,
                memory=memory,
            )

    @torch.no_grad()
    def check_labels(self, labels: Tensor, x: Tensor) -> None:
        """Raises `UsageError` for a label that is no class of the model, whose logits x gives."""
        classes = self.logits(x).shape[1] - (self.options.score == "absent_class")
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label < classes:
                raise UsageError(f"expected labels in 0 … {classes - 1}, but got {label}")

    def score(self, x: Tensor) -> Tensor:
        """Scores (B,) of the model in float64."""
        return self.value(self.logits(x))

    def __call__(self, x: Tensor, names: Tensor, labels: Tensor | None) -> Certificates:
        """Certificates of one batch; those that an attack contradicts have no radius."""
        for graph in self.graphs:
            check_agreement(self.logits, graph, x, "the samples")
        scores, gradient = score_and_gradient(self.score, x)
        with torch.no_grad():
            logits = self.logits(x)
        slope = dual_norm(gradient, self.norm)
        gap = self.margin.of(scores)
        wrong = self.margin.wrong(scores)
        labels = None if labels is None else labels.to(x.device)
        if labels is not None:
            wrong = wrong | ~self._is_correct(logits, labels)
        first_order = first_order_radius(gap, slope, self.max_radius)
        first_order = torch.where(wrong, 0.0, first_order)
        unknown = torch.full_like(scores, torch.nan)
        attacked = unknown
        if self.options.attack:
            nearest = self.nearest_attack(x, names, labels, wrong)
            attacked = nearest.radius
            for graph in self.graphs:
                check_agreement(self.logits, graph, x + nearest.delta, "the end of an attack")

        radii: dict[str, Tensor] = {}
        constant = unknown.clone()
        right = (~wrong).nonzero().squeeze(1)
        enough = (
            torch.full_like(gap, torch.inf) if self.best is None else self.best.enough(attacked)
        )
        if self.linear or self.lipschitz or self.best:
            in_class = self._in_class(x, logits, labels, right, first_order, enough)
            limit = torch.full_like(gap, self.max_radius)
            classes = limit if in_class is None else in_class.radii
        for method, prove in self.linear.items():
            radii[method] = torch.zeros_like(gap)
            if len(right):
                # Slower methods begin where the fast one ended.
                known = radii["crown"][right] if "crown" in radii and method != "crown" else None
                known = None if method == "crown-ibp" else known
                goal = decision_goals(
                    self.options.score, self.margin.side, self.margin.threshold, logits[right]
                )[0]
                found = prove(x[right], logits[right], goal, first_order[right], known)
                radii[method][right] = torch.minimum(found, classes[right])
        if self.lipschitz is not None:
            radii["lipschitz"] = torch.zeros_like(gap)
            if len(right):
                found, constant[right] = self.lipschitz(x[right], gap[right], first_order[right])
                radii["lipschitz"][right] = torch.minimum(found, classes[right])
        told: dict[str, NDArray[np.str_]] = {}
        if self.best is not None:
            climb = self._climb(self.best, x, logits, first_order, right, radii, in_class, enough)
            radii["best"] = climb.radii
            told = {RADIUS_METHOD: climb.method, STOPPED_BY: climb.stopped}
        proven = torch.zeros_like(gap)
        for method in self.methods:
            if method in radii:
                proven = torch.maximum(proven, radii[method])
        other: dict[str, Tensor | NDArray[np.generic]] = {
            column_of(m): radii[m] for m in radii if m != "lipschitz"
        }
        other |= told
        if "clever" in self.methods:
            other |= self._clever(x, names, gap, wrong, attacked)
        if "smoothing" in self.methods:
            other |= self._smoothing(x, names, labels)
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
        if not self.options.attack or not radii:
            return result
        claimed = torch.stack(list(radii.values())).amax(0)
        plan = self._plan(steps=STEPS, restarts=RESTARTS, polish=0)
        audit = Audit(self.logits, self.graph, self.options.score, plan)
        return result.against(attacked.minimum(audit.crossings(x, claimed, names, labels)))

    def _plan(self, steps: int, restarts: int, polish: int) -> AttackPlan:
        seed = self.options.seed
        return AttackPlan(self.margin, self.norm, seed, steps, restarts=restarts, polish=polish)

    def _is_correct(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether no other class has as large a logit, (B,)."""
        return class_margin(logits, labels, self.options.score) < 0

    def _in_class(
        self,
        x: Tensor,
        logits: Tensor,
        labels: Tensor | None,
        right: Tensor,
        first_order: Tensor,
        enough: Tensor,
    ) -> Climb | None:
        """Radii (B,) within which the class stays right; None where that is not asked for."""
        if labels is None:
            return None
        found = Climb.not_begun(torch.zeros_like(first_order))
        if len(right) == 0:
            return found
        goal = decision_goals(
            self.options.score, "id", self.margin.threshold, logits[right], labels[right]
        )[1]
        given = (x[right], logits[right], goal, first_order[right])
        if self.best is not None:
            return found.put(right, self.best.climb(*given, enough=enough[right]))
        prove = next(iter(self.linear.values()), None)
        if prove is None:
            raise UsageError(
                f"expected one of the methods {', '.join((*LINEAR, 'best'))} beside labels, but "
                f"got {', '.join(self.methods)}"
            )
        found.radii[right] = prove(*given)
        return found

    def _climb(
        self,
        best: BestRadius,
        x: Tensor,
        logits: Tensor,
        first_order: Tensor,
        right: Tensor,
        radii: Mapping[str, Tensor],
        in_class: Climb | None,
        enough: Tensor,
    ) -> Climb:
        """Radii (B,) by `best`, from those that other methods proved; none beyond the class's."""
        found = Climb.not_begun(torch.zeros_like(first_order))
        if len(right) == 0:
            return found
        goal = decision_goals(
            self.options.score, self.margin.side, self.margin.threshold, logits[right]
        )[0]
        names = np.array([NO_METHOD, *radii])
        known, by = torch.stack([found.radii, *radii.values()])[:, right].max(0)
        given = (x[right], logits[right], goal, first_order[right], known, names[by.cpu().numpy()])
        if in_class is None:
            return found.put(right, best.climb(*given, enough[right]))
        limit = in_class.of(right)
        climb = best.climb(*given, torch.minimum(enough[right], limit.radii))
        return found.put(right, climb.within(limit))

    def nearest_attack(
        self, x: Tensor, names: Tensor, labels: Tensor | None, wrong: Tensor
    ) -> AttackResult:
        """Smallest attacks (B,), on the decision and on the class where that counts too.

        Args:
            x: (B, ...) samples in float64.
            names: (B,) names for their random draws.
            labels: (B,) classes that have to stay right, or None.
            wrong: (B,) whether the clean sample is on the wrong side already.
        """
        options = self.options
        plan = self._plan(options.attack_steps, options.attack_restarts, options.attack_polish)
        found = smallest_attack(self.score, x, self.max_radius, plan, names)
        if labels is None:
            return found
        radius, delta = torch.where(wrong, 0.0, found.radius), found.delta.clone()
        delta[wrong] = 0.0
        plan = AttackPlan(**{**vars(plan), "margin": Margin(0.0, "id")})
        for label in labels[~wrong].unique():
            rows = ((labels == label) & ~wrong).nonzero().squeeze(1)
            score = self._class_score(label)
            other = smallest_attack(score, x[rows], self.max_radius, plan, names[rows.cpu()])
            nearer = other.radius < radius[rows]
            radius[rows[nearer]], delta[rows[nearer]] = other.radius[nearer], other.delta[nearer]
        return AttackResult(radius, delta)

    def _class_score(self, label: Tensor) -> ScoreFunction:
        return lambda x: class_margin(self.logits(x), label.expand(len(x)), self.options.score)

    def _clever(
        self, x: Tensor, names: Tensor, gap: Tensor, wrong: Tensor, attacked: Tensor
    ) -> dict[str, Tensor]:
        """The estimate over balls no larger than the attack shows to be needed."""
        ball = torch.where(attacked > 0, attacked, self.max_radius).nan_to_num(
            nan=self.max_radius, posinf=self.max_radius
        )
        found = clever_estimate(
            self.score, x, ball, norm=self.norm, options=self.options.clever, indices=names
        )
        radius = clever_radius_estimate(gap, found, ball)
        return {
            "radius_clever": torch.where(wrong, 0.0, radius),
            "clever_fit_pvalue": found.fit_pvalue,
        }

    def _smoothing(
        self, x: Tensor, names: Tensor, labels: Tensor | None
    ) -> dict[str, Tensor | NDArray[np.generic]]:
        """Decisions of the smoothed detector, and how far the right ones hold."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu")
        check_rowwise(self.logits, x + self.options.smoothing.sigma * noise.to(x), "the model")
        found = [
            smoothed_decisions(
                self._accept(label),
                x[rows],
                self.options.smoothing,
                indices=names[rows.cpu()],
                norm=self.norm,
                max_radius=self.max_radius,
            )
            for label, rows in _by_label(labels, x)
        ]
        order = torch.cat([rows for _, rows in _by_label(labels, x)]).argsort()
        radius = torch.cat([f.radius for f in found])[order]
        decision = np.concatenate([f.decision for f in found])[order.cpu().numpy()]
        wrong = decision == (SMOOTHED_OUT if self.margin.side == "id" else SMOOTHED_IN)
        # How long a decision stays wrong is no radius of this side.
        radius = radius.masked_fill(torch.as_tensor(wrong, device=radius.device), 0.0)
        return {"radius_smoothing": radius, "smoothing_decision": decision}

    def _accept(self, label: Tensor | None) -> Accept:
        """What is smoothed: acceptance, and the class too where labels are given. NaN: rejected."""

        def accept(noisy: Tensor) -> Tensor:
            logits = self.logits(noisy.double())
            accepted = self.value(logits) <= self.margin.threshold
            if label is None:
                return accepted
            return accepted & self._is_correct(logits, label.expand(len(noisy)))

        return accept


def _by_label(labels: Tensor | None, x: Tensor) -> list[tuple[Tensor | None, Tensor]]:
    """Each label, and the rows (R,) that have it; all rows where there are no labels."""
    if labels is None:
        return [(None, torch.arange(len(x), device=x.device))]
    return [(label, (labels == label).nonzero().squeeze(1)) for label in labels.unique()]
