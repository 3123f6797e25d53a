"""Projected gradient attacks: the upper end of brackets, and the audit of certificates."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.runs.inference import device_of
from greg_cert.scores import score_of
from greg_cert.seeded import generator_for
from greg_cert.verify.attack.boundary import pull_back, walk_boundary
from greg_cert.verify.attack.plan import AttackPlan, AttackResult
from greg_cert.verify.graph.agreement import check_agreement
from greg_cert.verify.norms import (
    check_norm,
    check_radius,
    dual_norm,
    per_sample,
    project,
    steepest_direction,
    vector_norm,
)
from greg_cert.verify.scorer import (
    Margin,
    ScoreFunction,
    check_inputs,
    logit_function,
    score_and_gradient,
)

_WITHIN, _SMALLEST = 1, 2  # of the keys of random starts


@torch.inference_mode(False)
def attack_radius(
    model: nn.Module,
    inputs: Tensor,
    threshold: float,
    *,
    side: str = "id",
    norm: float = 2.0,
    max_radius: float = 1.0,
    seed: int = 0,
    steps: int = 30,
    rounds: int = 12,
    restarts: int = 2,
    clip: bool = False,
    polish: int = 20,
    score: str = "energy",
    indices: Tensor | None = None,
) -> Tensor:
    """Smallest distance (B,) at which PGD moved each sample across the threshold.

    An upper bound on the true radius: inf where nothing was found within `max_radius`, 0 where the
    clean sample is on the wrong side already.

    Args:
        model: raw images (B, C, H, W) to logits (B, K); evaluated in float64, eval mode.
        inputs: (B, C, H, W) raw pixels.
        threshold: γ; accepted as ID iff S ≤ γ.
        side: `id` attacks accepted samples, `ood` rejected ones.
        norm: 2 or inf.
        max_radius: how far to search, > 0.
        seed: of the random starts.
        steps: gradient steps of one PGD run.
        rounds: PGD runs, each at a radius chosen by bisection.
        restarts: how often the search starts over from a random point.
        clip: keep attacked images inside [0, 1].
        polish: steps along the boundary at the end, towards its nearest point.
        score: one of `greg_cert.scores.SCORES`.
        indices: (B,) names of the samples for their random draws; positions by default.

    Raises:
        UsageError: for a value out of range.
        UnsupportedModelError: for a function of the batch or of chance, or one whose gradients are
            not those of its values.
    """
    x = check_inputs(inputs).to(device_of(model))
    margin = Margin(threshold, side)
    check_norm(norm)
    check_radius("max_radius", max_radius)
    for name, value in (("steps", steps), ("rounds", rounds), ("restarts", restarts)):
        if value < 1:
            raise UsageError(f"expected {name} >= 1, but got {value}")
    if polish < 0:
        raise UsageError(f"expected polish >= 0, but got {polish}")
    plan = AttackPlan(margin, norm, seed, steps, rounds, restarts, clip, polish)
    logits, level = logit_function(model), score_of(score)
    check_agreement(logits, None, x, "the samples")
    found = smallest_attack(lambda x: level(logits(x)), x, max_radius, plan, indices)
    check_agreement(logits, None, x + found.delta, "the end of an attack")
    return found.radius


def smallest_attack(
    score: ScoreFunction,
    x: Tensor,
    max_radius: float,
    plan: AttackPlan,
    indices: Tensor | None = None,
) -> AttackResult:
    """Minimal-norm search: bisection on the radius, PGD at each, then along the boundary.

    `indices` (B,) name the samples for their random draws, so that a sample's result does not
    depend on its batch; positions where they are not given.
    """
    wrong = plan.margin.wrong(score(x))
    best = torch.full_like(wrong, torch.inf, dtype=x.dtype)
    best[wrong] = 0.0
    delta = torch.zeros_like(x)
    names = _names(x, indices)
    for restart in range(plan.restarts):
        active = (best > 0).nonzero().squeeze(1)
        if len(active) == 0:
            break
        own = names[active.cpu()]  # names stay on the CPU, where the draws are made
        so_far = AttackResult(best[active], delta[active])
        searched = _bisect(score, x[active], so_far, max_radius, plan, own, restart)
        best[active], delta[active] = searched.radius, searched.delta
    active = (best.isfinite() & (best > 0)).nonzero().squeeze(1)
    if plan.polish and len(active):
        delta[active], best[active] = walk_boundary(
            score, x[active], delta[active], best[active], plan
        )
    return AttackResult(best, delta)


def attack_within(
    score: ScoreFunction,
    x: Tensor,
    radius: Tensor,
    plan: AttackPlan,
    indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Whether PGD crosses the threshold inside each ball of `radius` (B,), and its point (B, ...).

    `indices` as in `smallest_attack`.
    """
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    delta = torch.zeros_like(x)
    for start in _starts(x, radius, plan, indices):
        hit, point = _pgd(score, x, start, radius, plan)
        better = hit & ~found
        delta[better], found = point[better], found | hit
    return found, delta


def attacked_scores(
    score: ScoreFunction,
    x: Tensor,
    radius: Tensor,
    plan: AttackPlan,
    indices: Tensor | None = None,
) -> Tensor:
    """Furthest scores (B,) towards the wrong side that PGD found in balls of `radius` (B,).

    The clean score is among them. An attack finds no more than there is, so for OOD samples this is
    an upper bound of the least score in the ball.
    """
    with torch.no_grad():
        best = score(x)
    sign = plan.margin.sign
    best = sign * best
    for start in _starts(x, radius, plan, indices):
        delta = start
        for step in range(plan.steps + 1):
            values, gradient = score_and_gradient(score, x + delta)
            if step:  # a start is no step of the attack
                best = torch.maximum(best, sign * values)
            if step < plan.steps:
                delta = _step(x, delta, gradient, radius, plan, step)
    return sign * best


def _starts(
    x: Tensor, radius: Tensor, plan: AttackPlan, indices: Tensor | None
) -> Iterator[Tensor]:
    """Where each restart begins: at the centre first, then at random points of the ball."""
    names = _names(x, indices)
    yield torch.zeros_like(x)
    for restart in range(1, plan.restarts):
        yield _random_in_ball(x, radius, plan, names, _WITHIN, restart)


def _names(x: Tensor, indices: Tensor | None) -> Tensor:
    return torch.arange(len(x), device="cpu") if indices is None else indices.cpu()


def _bisect(
    score: ScoreFunction,
    x: Tensor,
    so_far: AttackResult,
    max_radius: float,
    plan: AttackPlan,
    names: Tensor,
    restart: int,
) -> AttackResult:
    """One search of smaller perturbations than those so far, by bisection on the radius."""
    best, delta = so_far.radius, so_far.delta
    values, gradient = score_and_gradient(score, x)
    first_order = plan.margin.of(values) / dual_norm(gradient, plan.norm)
    low = torch.zeros_like(best)  # largest radius at which PGD failed: a guide, no proof
    radius = (1.2 * first_order).nan_to_num(posinf=max_radius).clamp(max=max_radius)
    radius = torch.where(best.isfinite(), 0.95 * best, radius).clamp_min(1e-12 * max_radius)
    for turn in range(plan.rounds):
        if restart == 0:
            start = project(delta, radius, plan.norm)
        else:
            start = _random_in_ball(x, radius, plan, names, _SMALLEST, restart, turn)
        hit, point = _pgd(score, x, start, radius, plan)
        point, size = pull_back(score, x, point, hit, plan)
        better = hit & (size < best)
        best = torch.where(better, size, best)
        delta = torch.where(per_sample(better, delta), point, delta)
        low = torch.where(hit, low.minimum(best), radius)
        # Without a hit the radius doubles; with one it closes in from the failure below.
        radius = torch.where(best.isfinite(), (low + best) / 2, 2 * radius).clamp(max=max_radius)
    return AttackResult(best, delta)


def _pgd(
    score: ScoreFunction, x: Tensor, start: Tensor, radius: Tensor, plan: AttackPlan
) -> tuple[Tensor, Tensor]:
    """One PGD run with decaying steps; whether it crossed, and the first point that did."""
    delta = plan.clipped(x, start)
    crossed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    point = torch.zeros_like(x)
    for step in range(plan.steps + 1):
        values, gradient = score_and_gradient(score, x + delta)
        new = plan.margin.wrong(values) & ~crossed
        point = torch.where(per_sample(new, point), delta, point)
        crossed = crossed | new
        if step == plan.steps or crossed.all():
            break
        delta = _step(x, delta, gradient, radius, plan, step)
    return crossed, point


def _step(
    x: Tensor, delta: Tensor, gradient: Tensor, radius: Tensor, plan: AttackPlan, step: int
) -> Tensor:
    """The next point of a PGD run, whose steps decay."""
    uphill = plan.margin.sign * gradient
    size = radius * (0.5 * (1 - step / plan.steps) + 0.02)
    move = per_sample(size, delta) * steepest_direction(uphill, plan.norm)
    return plan.clipped(x, project(delta + move, radius, plan.norm))


def _random_in_ball(
    x: Tensor, radius: Tensor, plan: AttackPlan, names: Tensor, *key: int
) -> Tensor:
    """A random point of each ball, by (seed, sample, key) alone."""
    cpu = torch.device("cpu")
    size = x[0].numel()
    draws = []
    for name in names.tolist():
        generator = generator_for(cpu, plan.seed, name, *key)
        draws.append(torch.randn(size + 1, generator=generator, dtype=torch.float64, device=cpu))
    drawn = torch.stack(draws).to(x)
    noise = drawn[:, :-1].reshape(x.shape)
    share = torch.special.ndtr(drawn[:, -1])  # uniform
    return noise * per_sample(radius * share / vector_norm(noise, plan.norm), noise)
