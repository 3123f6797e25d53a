"""Certified radii: how far each sample can move before its OOD decision may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.scores import energy
from greg_cert.verify.attack import AttackPlan, smallest_attack
from greg_cert.verify.ball import BallBounds, first_order_reach, score_rounding
from greg_cert.verify.certificates import CERTIFIED, REJECTED, UNDECIDED, Certificates
from greg_cert.verify.engine import make_engine
from greg_cert.verify.gradient import first_order_radius
from greg_cert.verify.graph import Graph, forward_all
from greg_cert.verify.native_engine import NativeEngine
from greg_cert.verify.norms import check_norm, check_radius, dual_norm
from greg_cert.verify.scorer import Margin, check_inputs, score_and_gradient
from greg_cert.verify.search import RadiusSearch
from greg_cert.verify.trace import trace_model

_CROWN_GUESS = 0.5  # of the first-order radius, where the ladder begins
_LIPSCHITZ_GUESS = 0.25

METHODS = ("crown", "crown-ibp", "lipschitz", "best")

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all)."""


@dataclass(frozen=True)
class CertifyOptions:
    """Options of `certify` beyond its contract.

    Attributes:
        rounds: rungs of the ladder of balls tried for each sample: growing while all of a ball is
            proven, then closing in on the radius that serves it best.
        mirror_steps: mirror-ascent steps on the row p at each rung but the first.
        tolerance: a sample is done when its radius cannot grow by more than this share.
        lipschitz: compute the Lipschitz columns.
        attack: compute the attack column.
        attack_steps: gradient steps of one PGD run.
        attack_restarts: random restarts of the attack.
        batch: samples bounded at once.
        seed: of the attack.
        progress: called after every batch.
    """

    rounds: int = 12
    mirror_steps: int = 5
    tolerance: float = 0.01
    lipschitz: bool = True
    attack: bool = True
    attack_steps: int = 30
    attack_restarts: int = 2
    batch: int = 128
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("rounds", 1),
            ("mirror_steps", 0),
            ("tolerance", 0),
            ("batch", 1),
            ("attack_steps", 1),
            ("attack_restarts", 1),
        ):
            if not getattr(self, name) >= least:  # NaN too
                raise UsageError(f"expected {name} >= {least}, but got {getattr(self, name)}")


def certify(
    model: nn.Module,
    inputs: Tensor,
    threshold: float,
    *,
    side: str = "id",
    norm: float = 2.0,
    max_radius: float = 1.0,
    method: str = "crown",
    engine: str = "auto",
    **options: object,
) -> Certificates:
    """Prove, for each sample, a radius within which its decision at `threshold` cannot change.

    Balls are not clipped to [0, 1]; bounds and attacks run in float64 on the model in eval mode.

    Args:
        model: raw images (B, C, H, W) to logits (B, K).
        inputs: (B, C, H, W) raw pixels.
        threshold: γ from calibration data; accepted as ID iff S(x) ≤ γ.
        side: `id` proves that accepted samples stay accepted, `ood` that rejected ones stay so.
        norm: 2 or inf.
        max_radius: radii are capped here, > 0.
        method: what `radius_certified` holds. `crown`: linear bounds with CROWN bounds of
            the layers between; `crown-ibp`: with interval ones; `lipschitz`: the paper's
            ε* with a proven L_S; `best`: the larger of `crown` and `lipschitz`.
        engine: whose bounds prove the radii: `auto-lirpa`, `native`, or `auto` (the first that is
            installed and takes the model's activations). Where to look for them is always found
            by the native engine.
        **options: fields of `CertifyOptions`.

    Raises:
        UsageError: for a value out of range or an unknown option.
        UnsupportedModelError: for a layer that cannot be bounded soundly; names it.
    """
    x = check_inputs(inputs)
    margin = Margin(float(threshold), side)
    check_norm(norm)
    check_radius("max_radius", max_radius)
    if method not in METHODS:
        raise UsageError(
            f"expected method in {', '.join(METHODS)}, but got {method!r}"
            + ("; an estimate certifies nothing" if method in ("gradient", "clever") else "")
        )
    chosen = _options(options)
    graph = trace_model(model, tuple(x.shape[1:]))
    prover = _Prover(graph, engine, margin, norm, max_radius, method, chosen)
    parts: list[Certificates] = []
    if chosen.progress is not None:
        chosen.progress(0, len(x))
    for chunk in x.split(chosen.batch):
        parts.append(prover.certify(chunk))
        if chosen.progress is not None:
            chosen.progress(sum(len(p) for p in parts), len(x))
    return _join(parts)


def _options(options: dict[str, object]) -> CertifyOptions:
    known = set(CertifyOptions.__dataclass_fields__)
    for name in options:
        if name not in known:
            raise UsageError(f"expected options in {', '.join(sorted(known))}, but got {name!r}")
    return CertifyOptions(**options)  # type: ignore[arg-type]


class _Prover:
    """Certifies batches of one model: a float32 search proposes balls, float64 proves them."""

    def __init__(
        self,
        graph: Graph,
        engine: str,
        margin: Margin,
        norm: float,
        max_radius: float,
        method: str,
        options: CertifyOptions,
    ) -> None:
        self.graph, self.margin, self.norm, self.max_radius = graph, margin, norm, max_radius
        self.method, self.options = method, options
        self.want_crown = method != "lipschitz"
        self.want_lipschitz = options.lipschitz or method in ("lipschitz", "best")
        self.prover = BallBounds(graph, make_engine(engine, graph), margin, norm, method)
        # What the search finds is only where to look, so it may use the faster type and engine.
        draft = graph.to(torch.float32)
        self.scout = BallBounds(draft, NativeEngine(draft), margin, norm, method)
        self.careful_scout = BallBounds(graph, NativeEngine(graph), margin, norm, method)

    def score(self, x: Tensor) -> Tensor:
        """Energy score (B,) of the graph's own logits."""
        return energy(forward_all(self.graph, x)[-1])

    def certify(self, x: Tensor) -> Certificates:
        """Certificates of one batch."""
        scores, gradient = score_and_gradient(self.score, x)
        slope = dual_norm(gradient, self.norm)
        gap = self.margin.of(scores)
        wrong = self.margin.wrong(scores)
        active = (~wrong).nonzero().squeeze(1)
        first_order = first_order_radius(gap, slope, self.max_radius)
        unknown = torch.full_like(scores, torch.nan)

        crown, lipschitz, constant = torch.zeros_like(gap), torch.zeros_like(gap), unknown.clone()
        if len(active):
            near = (x[active], gap[active], first_order[active])
            if self.want_crown:
                crown[active] = self._crown(*near)
            if self.want_lipschitz:
                lipschitz[active], constant[active] = self._lipschitz(*near)
        proven = {"lipschitz": lipschitz, "best": torch.maximum(crown, lipschitz)}.get(
            self.method, crown
        )
        status = np.where(
            wrong.cpu().numpy(),
            REJECTED,
            np.where((proven > 0).cpu().numpy(), CERTIFIED, UNDECIDED),
        )
        return Certificates(
            score=scores,
            gradient_norm=slope,
            lipschitz=constant,
            radius_gradient=first_order,
            radius_lipschitz=lipschitz if self.want_lipschitz else unknown,
            radius_certified=proven,
            radius_attack=self._attack(x) if self.options.attack else unknown,
            status=status,
        )

    def _attack(self, x: Tensor) -> Tensor:
        plan = AttackPlan(
            self.margin,
            self.norm,
            self.options.seed,
            self.options.attack_steps,
            restarts=self.options.attack_restarts,
        )
        return smallest_attack(self.score, x, self.max_radius, plan).radius

    def _crown(self, x: Tensor, gap: Tensor, first_order: Tensor) -> Tensor:
        """CROWN radii (B,), proven."""
        with torch.no_grad():
            rows = forward_all(self.graph, x)[-1].softmax(1)

        def reach(scout: BallBounds, members: Tensor, radii: Tensor, late: bool) -> Tensor:
            steps = self.options.mirror_steps if late else 0
            found, improved = scout.reach(x[members], radii, rows[members], steps)
            rows[members] = improved
            return found

        search = self._look(reach, first_order * _CROWN_GUESS)
        return self._prove(search, lambda i, r: self.prover.reach(x[i], r, rows[i], 0)[0])

    def _lipschitz(self, x: Tensor, gap: Tensor, first_order: Tensor) -> tuple[Tensor, Tensor]:
        """Lipschitz radii (B,) and the L_S that gave them, proven."""
        rounding = score_rounding(self.graph, x)

        def reach(scout: BallBounds, members: Tensor, radii: Tensor, late: bool) -> Tensor:
            return first_order_reach(
                scout.lipschitz(x[members], radii), gap[members], rounding[members]
            )

        search = self._look(reach, first_order * _LIPSCHITZ_GUESS)
        constant = torch.full_like(gap, torch.nan)

        def prove(members: Tensor, radii: Tensor) -> Tensor:
            constant[members] = self.prover.lipschitz(x[members], radii)
            return first_order_reach(constant[members], gap[members], rounding[members])

        return self._prove(search, prove), constant

    def _look(
        self, reach: Callable[[BallBounds, Tensor, Tensor, bool], Tensor], guess: Tensor
    ) -> RadiusSearch:
        search = RadiusSearch(guess, self.max_radius)
        self._climb(search, reach, self.scout, torch.arange(len(guess), device=guess.device))
        lost = (search.best == 0).nonzero().squeeze(1)
        if len(lost):  # a failed draft says nothing: these begin anew, in the proving type
            careful = RadiusSearch(guess, self.max_radius)
            self._climb(careful, reach, self.careful_scout, lost)
            search.best[lost], search.best_at[lost] = careful.best[lost], careful.best_at[lost]
        return search

    def _climb(
        self,
        search: RadiusSearch,
        reach: Callable[[BallBounds, Tensor, Tensor, bool], Tensor],
        scout: BallBounds,
        among: Tensor,
    ) -> None:
        for turn in range(self.options.rounds):
            members = search.open(self.options.tolerance)
            members = members[torch.isin(members, among)]
            if len(members) == 0:
                break
            radii = search.propose(members)
            search.update(members, radii, reach(scout, members, radii, turn > 0))

    def _prove(self, search: RadiusSearch, reach: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Radii (B,) by the proving engine, at the balls the search liked best."""
        radii = torch.zeros_like(search.best)
        members = (search.best > 0).nonzero().squeeze(1)
        if len(members):
            ball = search.best_at[members]
            radii[members] = torch.minimum(ball, reach(members, ball))
        return radii


def _join(parts: list[Certificates]) -> Certificates:
    columns = {
        name: torch.cat([getattr(p, name) for p in parts])
        for name in Certificates.__dataclass_fields__
        if name != "status"
    }
    return Certificates(**columns, status=np.concatenate([p.status for p in parts]))
