"""Certified radii: exact where the truth is known, never beyond an attack, and consistent."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch
from problems import (
    SMALL,
    Arithmetic,
    Cancelling,
    Exact,
    affine,
    affine_one_logit,
    build,
    energy_of,
    exact_cases,
    in_ball,
    one_relu,
    pairwise_settings,
    points,
)
from torch import Tensor, nn

from greg_cert.errors import UnsupportedModelError, UsageError
from greg_cert.verify import Certificates, attack_radius, certify, gradient_norm, lipschitz_bound
from greg_cert.verify.attack.pgd import attack_within
from greg_cert.verify.attack.plan import AttackPlan
from greg_cert.verify.bounds.engines import make_engine
from greg_cert.verify.certificates import ContradictionWarning
from greg_cert.verify.graph.ops import forward_all
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.radius.duality import entropy, improve_weights, lower_reach
from greg_cert.verify.radius.goals import decision_goal
from greg_cert.verify.radius.linear import LinearRadius
from greg_cert.verify.radius.lipschitz import LipschitzRadius
from greg_cert.verify.scorer import Margin, score_function

NORMS = (2.0, math.inf)
SIDES = ("id", "ood")
RADII = ("radius_certified", "radius_lipschitz")
QUICK: dict[str, Any] = {
    "rounds": 6, "cut_rounds": 2, "split_rounds": 2, "attack_steps": 15, "attack_restarts": 1,
    "attack_polish": 5,
}  # fmt: skip


def setting(name: str, count: int = 5, seed: int = 31) -> tuple[nn.Module, Tensor, float]:
    """Model, inputs and a threshold that leaves samples on both sides."""
    model, shape = build(name)
    x = points(shape, count, seed=seed)
    scores = energy_of(model, x).sort().values
    return model, x, float((scores[count // 2] + scores[count // 2 + 1]) / 2)


def check_no_violation(
    model: nn.Module, x: Tensor, threshold: float, side: str, norm: float, result: Certificates
) -> None:
    """Raise AssertionError where an attack crosses the threshold within a certified radius."""
    score = score_function(model)
    plan = AttackPlan(Margin(threshold, side), norm, seed=5, steps=20, restarts=2)
    for column in RADII:
        radius = getattr(result, column)
        assert not radius.isnan().any()
        rows = (radius > 0).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        found, _ = attack_within(score, x[rows], radius[rows], plan)
        assert not found.any(), f"{column} violated"
        for seed in range(4):
            values = energy_of(model, in_ball(x[rows], radius[rows], norm, seed))
            wrong = values > threshold if side == "id" else values <= threshold
            assert not wrong.any(), f"{column} violated"
        assert bool((result.radius_attack >= radius * (1 - 1e-9)).all()), f"{column} violated"


@pytest.mark.parametrize(("name", "norm", "side"), pairwise_settings(SMALL))
def test_no_attack_within_a_certified_radius(name: str, norm: float, side: str) -> None:
    model, x, threshold = setting(name)
    result = certify(
        model, x, threshold, side=side, norm=norm, max_radius=2.0, method="crown,lipschitz",
        engine="native", **QUICK,
    )  # fmt: skip
    check_no_violation(model, x, threshold, side, norm, result)
    score = energy_of(model, x)
    assert torch.allclose(result.score, score, rtol=1e-10, atol=1e-10)
    wrong = score > threshold if side == "id" else score <= threshold
    assert wrong.any()
    assert not wrong.all()
    assert [s == "rejected" for s in result.status] == wrong.tolist()
    for column in (*RADII, "radius_gradient", "radius_attack"):
        assert bool((getattr(result, column)[wrong] == 0).all()), column
    assert bool((result.radius_certified >= result.radius_lipschitz).all())
    assert bool((result.radius_certified <= 2.0).all())
    for status, radius in zip(result.status, result.radius_certified.tolist(), strict=True):
        assert (status == "certified") == (radius > 0)
    assert "certified" in result.status  # a margin this wide must prove something


@pytest.mark.parametrize(("name", "norm", "side"), pairwise_settings(["conv", "residual"]))
def test_no_attack_within_a_radius_by_auto_lirpa(name: str, norm: float, side: str) -> None:
    model, x, threshold = setting(name)
    result = certify(
        model, x, threshold, side=side, norm=norm, method="crown,crown-ibp,lipschitz",
        engine="auto-lirpa", **QUICK,
    )  # fmt: skip
    check_no_violation(model, x, threshold, side, norm, result)


@pytest.mark.parametrize("norm", NORMS)
def test_no_attack_where_a_preactivation_is_always_zero(norm: float) -> None:
    x = torch.tensor([[0.45, 0.45]], dtype=torch.float64)
    result = certify(Cancelling(), x, 0.5, norm=norm, method="crown,lipschitz", engine="native")
    check_no_violation(Cancelling(), x, 0.5, "id", norm, result)


def test_a_wrong_radius_is_found() -> None:
    exact = affine_one_logit()
    result = certify(exact.model, exact.inputs, exact.threshold, attack=False)
    longer = 1.01 * result.radius_certified
    inf = torch.full_like(longer, math.inf)
    wrong = Certificates(
        result.score, result.gradient_norm, result.lipschitz, longer, longer, longer, inf,
        torch.full_like(longer, math.nan), result.status,
    )  # fmt: skip
    with pytest.raises(AssertionError, match="violated"):
        check_no_violation(exact.model, exact.inputs, exact.threshold, "id", 2.0, wrong)


@pytest.mark.parametrize("engine", ["native", "auto-lirpa"])
@pytest.mark.parametrize(("case", "norm", "side"), pairwise_settings(sorted(exact_cases())))
def test_affine_radii_are_exact(case: str, norm: float, side: str, engine: str) -> None:
    exact = exact_cases()[case]
    truth = exact.radius(side, norm)
    result = certify(
        exact.model, exact.inputs, exact.threshold, side=side, norm=norm, max_radius=5.0,
        method="crown,lipschitz", engine=engine, tolerance=1e-9, rounds=30,
    )  # fmt: skip
    assert float(truth.max()) > 0.05
    assert float(truth.max()) < 5.0
    for column in RADII:
        radius = getattr(result, column)
        assert torch.allclose(radius, truth, rtol=1e-6, atol=1e-12), column
        assert bool((radius <= truth * (1 + 1e-12)).all()), column
    attacked = truth > 0
    ratio = result.radius_attack[attacked] / truth[attacked]
    assert bool((ratio >= 1 - 1e-9).all())
    assert bool((ratio <= 1.01).all())


@pytest.mark.parametrize("norm", NORMS)
def test_one_relu_bracket_holds_the_true_radius(norm: float) -> None:
    exact: Exact = one_relu()
    truth = exact.radius("id", norm)
    result = certify(exact.model, exact.inputs, exact.threshold, norm=norm, max_radius=4.0)
    flat = (truth > 0) & (result.gradient_norm == 0)
    assert flat.any()
    assert bool((result.radius_gradient[flat] == 4.0).all())  # an estimate, and a wrong one
    assert bool((result.radius_certified <= truth * (1 + 1e-9)).all())
    assert bool((result.radius_lipschitz <= truth * (1 + 1e-9)).all())
    assert bool((result.radius_attack >= truth * (1 - 1e-9)).all())
    w = torch.tensor([0.6, -0.8, 0.5], dtype=torch.float64)
    dual = float(w.norm() if norm == 2.0 else w.abs().sum())
    to_kink = ((1.0 - exact.inputs @ w) / dual)[flat]
    # At least the flat part is provable, because the sign of the only neuron is known there.
    assert bool((result.radius_certified[flat] >= 0.98 * to_kink).all())


@pytest.mark.parametrize("side", SIDES)
def test_a_sample_on_the_threshold(side: str) -> None:
    # S = γ exactly: accepted, so there is nothing to prove for ID, and OOD counts as rejected.
    model = affine(torch.tensor([[1.0, 2.0]]), torch.tensor([0.0]))
    x = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    result = certify(model, x, -1.0, side=side, method="crown,lipschitz")
    assert result.radius_certified.item() == 0.0
    assert result.radius_lipschitz.item() == 0.0
    assert result.status.tolist() == ["undecided" if side == "id" else "rejected"]


def test_constant_scores() -> None:
    model = affine(torch.zeros(2, 3), torch.tensor([1.0, 2.0]))
    score = float(energy_of(model, points((3,), 1))[0])
    x = points((3,), 4)
    for side, threshold in (("id", score + 0.1), ("ood", score - 0.1)):
        result = certify(model, x, threshold, side=side, method="crown,lipschitz", max_radius=3.0)
        for column in RADII:  # the search stops within its tolerance of the cap
            assert bool((getattr(result, column) >= 0.98 * 3.0).all()), column
        assert bool(result.radius_attack.isinf().all())


@pytest.mark.parametrize("engine", ["native", "auto-lirpa"])
def test_any_row_of_the_simplex_is_valid_and_improving_never_hurts(engine: str) -> None:
    model, x, threshold = setting("conv")
    graph = trace_model(model, tuple(x.shape[1:]))
    score = score_function(model)
    keep = energy_of(model, x) <= threshold
    x = x[keep]
    radii = torch.full((len(x),), 0.1, dtype=torch.float64)
    relaxation = make_engine(engine, graph).relax(x, radii, 2.0)
    plan = AttackPlan(Margin(threshold, "id"), 2.0, steps=20, restarts=2)
    generator = torch.Generator().manual_seed(0)
    logits = forward_all(graph, x)[-1]
    goal = decision_goal("energy", Margin(threshold, "id"), logits)
    softmax = logits.softmax(1)
    one_hot = torch.eye(4, dtype=torch.float64)[softmax.argmax(1)]
    rows = [softmax, one_hot, (softmax + 1) / 5]
    rows += [torch.rand(len(x), 4, generator=generator).double().softmax(1) for _ in range(4)]
    positive = 0
    for p in rows:
        reach = torch.minimum(radii, lower_reach(relaxation, goal, p.unsqueeze(1)))
        positive += int((reach > 0).sum())
        assert not attack_within(score, x, reach, plan)[0].any()

        def value(q: Tensor) -> Tensor:
            low: Tensor = relaxation.lower(q.unsqueeze(1)).squeeze(1).detach()
            return low + entropy(q)

        better = improve_weights(relaxation, goal, p.unsqueeze(1), 8).squeeze(1)
        assert torch.allclose(better.sum(1), torch.ones(len(x)).double(), rtol=1e-12)
        assert bool((better >= 0).all())
        assert bool((value(better) >= value(p) - 1e-12).all())
        worst = energy_of(model, in_ball(x, radii, 2.0, 3))
        assert bool((-value(better) >= worst - 1e-9).all())
    assert positive > 3


def test_entropy_by_hand() -> None:
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    assert entropy(p).tolist() == pytest.approx([math.log(2.0), 0.0])


# --- Extremes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e6, 1e9, 1e12])
def test_radii_never_exceed_the_truth_at_any_scale_of_the_weights(
    scale: float, norm: float
) -> None:
    # f = scale·(w·x) − c with a score near 0: both terms cancel, so rounding is large beside S.
    w = scale * torch.tensor([1.0, 0.7, 1.3], dtype=torch.float64)
    x = torch.full((4, 3), 0.5, dtype=torch.float64)
    x[:, 0] += torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64) / max(scale, 10.0)
    model = affine(w[None], -scale * torch.tensor([1.5], dtype=torch.float64))
    result = certify(
        model, x, 0.0, norm=norm, method="crown,lipschitz", engine="native", max_radius=2.0,
        attack=False,
    )  # fmt: skip
    layer = model[0]  # type: ignore[index]
    dual = float(w.norm() if norm == 2.0 else w.abs().sum())
    for row in range(4):
        pairs = zip(w.tolist(), x[row].tolist(), strict=True)
        exact = sum(Fraction(a) * Fraction(b) for a, b in pairs) + Fraction(layer.bias[0].item())
        truth = float(exact) / dual
        for column in RADII:
            assert getattr(result, column)[row].item() <= max(truth, 0.0) * (1 + 1e-12), column


@pytest.mark.parametrize("scale", [1e-90, 1e-60, 1e60, 1e90])
def test_extreme_layers_never_give_an_unsound_radius(scale: float) -> None:
    model, x, threshold = setting("mlp")
    model = model.double()
    with torch.no_grad():
        model[0].weight.mul_(scale)  # type: ignore[index, operator, union-attr]
        model[0].bias.mul_(scale)  # type: ignore[index, operator, union-attr]
        model[2].weight.div_(scale)  # type: ignore[index, operator, union-attr]
    for engine in ("native", "auto-lirpa"):
        result = certify(model, x, threshold, method="crown,lipschitz", engine=engine, **QUICK)
        check_no_violation(model, x, threshold, "id", 2.0, result)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("engine", ["native", "auto-lirpa"])
def test_bounds_that_overflow_prove_nothing(norm: float, engine: str) -> None:
    """Products of many huge layers leave float64: NaN must not pass for a dead neuron."""
    layers: list[nn.Module] = [nn.Linear(1, 1)]
    for _ in range(5):
        layers += [nn.ReLU(), nn.Linear(1, 1)]
    layers += [nn.ReLU(), nn.Linear(1, 2)]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.fill_(1e60)
                layer.bias.zero_()
        model[0].bias.fill_(-1e61)  # type: ignore[union-attr, operator]
        model[-1].weight.fill_(-1.0)  # type: ignore[union-attr, operator]
        model[-1].bias.fill_(5.0)  # type: ignore[union-attr, operator]
    x = torch.zeros(1, 1, dtype=torch.float64)
    result = certify(
        model, x, -5.0, norm=norm, max_radius=20.0, method="crown,lipschitz", engine=engine, **QUICK
    )
    # The first neuron wakes at x = 10, and everything after it explodes.
    assert float(result.radius_certified) <= 10.0
    assert float(result.radius_attack) >= 10.0


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_layers_whose_products_leave_float64_are_refused(scale: float) -> None:
    model, x, threshold = setting("mlp")
    model = model.double()
    with torch.no_grad():
        model[0].weight.mul_(scale)  # type: ignore[index, operator, union-attr]
    with pytest.raises(UnsupportedModelError, match=r"0\.weight"):
        certify(model, x, threshold)


def test_a_model_that_works_in_place_does_not_change_the_inputs() -> None:
    model = Arithmetic(nn.Sequential(nn.Flatten(), nn.Linear(18, 3)), 2, inplace=True)
    x = points((2, 3, 3), 4)
    before = x.clone()
    threshold = float(energy_of(model, x).max()) + 1.0
    assert bool((gradient_norm(model, x) > 0).all())
    lipschitz_bound(model, x, 0.1)
    attack_radius(model, x, threshold)
    certify(model, x, threshold)
    assert torch.equal(x, before)


# --- Gradients, attacks, errors, the table -----------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["mlp", "conv_batchnorm", "concatenation"])
def test_gradient_norm_is_that_of_finite_differences(name: str, norm: float) -> None:
    model, shape = build(name)
    x = points(shape, 3, seed=33)
    flat, step = x.flatten(1), 1e-7
    columns = []
    for i in range(flat.shape[1]):
        move = torch.zeros_like(flat)
        move[:, i] = step
        up, down = (energy_of(model, (flat + s * move).reshape(x.shape)) for s in (1, -1))
        columns.append((up - down) / (2 * step))
    gradient = torch.stack(columns, 1)
    expected = gradient.norm(dim=1) if norm == 2.0 else gradient.abs().sum(1)
    found = gradient_norm(model.train(), x, norm=norm)  # the mode of the model does not matter
    assert torch.allclose(found, expected, rtol=1e-5)
    assert model.training


def test_attack_is_deterministic_by_seed() -> None:
    model, x, threshold = setting("leaky")
    first = attack_radius(model, x, threshold, seed=1)
    torch.manual_seed(123)
    assert torch.equal(first, attack_radius(model, x, threshold, seed=1))
    others = [attack_radius(model, x, threshold, seed=s, restarts=3) for s in range(2, 6)]
    assert any(not torch.equal(first, o) for o in others)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("side", SIDES)
def test_attack_finds_nothing_where_there_is_nothing(side: str, norm: float) -> None:
    exact = affine_one_logit()
    truth = exact.radius(side, norm)
    limit = float(truth[truth > 0].median())
    found = attack_radius(
        exact.model, exact.inputs, exact.threshold, side=side, norm=norm, max_radius=limit
    )
    assert torch.equal(found[truth == 0], torch.zeros_like(found[truth == 0]))
    assert bool(found[truth > 1.001 * limit].isinf().all())
    assert bool(found[(truth > 0) & (truth < 0.98 * limit)].isfinite().all())
    assert bool((found[found.isfinite()] <= limit * (1 + 1e-9)).all())


def test_to_frame_has_a_row_for_each_sample() -> None:
    model, x, threshold = setting("mlp")
    result = certify(model, x, threshold, attack=False, lipschitz=False)
    frame = result.to_frame()
    assert len(frame) == len(result) == len(x)
    named = [name for name in Certificates.__dataclass_fields__ if name != "other"]
    assert list(frame.columns) == [*named, "radius_crown"]
    assert frame["score"].tolist() == result.score.tolist()
    assert frame["status"].tolist() == result.status.tolist()
    for column in ("radius_attack", "radius_lipschitz", "lipschitz", "radius_refuted"):
        assert frame[column].isna().all(), column
    assert not frame["radius_certified"].isna().any()
    assert "contradicted" not in result.status  # without an attack nothing is said of that


def test_progress_counts_every_sample() -> None:
    model, x, threshold = setting("mlp")
    seen: list[tuple[int, int]] = []
    certify(
        model, x, threshold, attack=False, batch=2, progress=lambda done, n: seen.append((done, n))
    )
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("name", ["steps", "rounds", "restarts"])
def test_attack_values_out_of_range(name: str) -> None:
    model, x, threshold = setting("mlp")
    with pytest.raises(UsageError, match=f"{name} >= 1, but got 0"):
        attack_radius(model, x, threshold, **{name: 0})  # type: ignore[arg-type]


# What an attack contradicts leaves the library without a radius.


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("method", ["crown", "lipschitz", "branch", "crown-ibp"])
def test_a_contradicted_certificate_has_no_radius(
    method: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, threshold = setting("mlp")
    plain = certify(model, x, threshold, side=side, method=method, **QUICK)
    kind = LipschitzRadius if method == "lipschitz" else LinearRadius
    honest = kind.__call__

    def boastful(self: Any, *given: Any) -> Any:
        found = honest(self, *given)  # type: ignore[arg-type]
        return (10 * found[0], found[1]) if isinstance(found, tuple) else 10 * found

    monkeypatch.setattr(kind, "__call__", boastful)
    with pytest.warns(ContradictionWarning, match="Please report this as a bug"):
        found = certify(model, x, threshold, side=side, method=method, **QUICK)
    broken = torch.from_numpy(found.status == "contradicted")
    assert broken.any()
    claimed = 10 * plain.radius_certified
    assert torch.equal(broken, (claimed > 0) & (found.radius_attack <= claimed))
    assert torch.equal(broken, found.radius_refuted.isfinite())
    for name in ("radius_certified", "radius_lipschitz", f"radius_{method.replace('-', '_')}"):
        column = torch.tensor(found.to_frame()[name].tolist())
        assert (column[broken] == 0).all(), name
    assert (found.radius_attack[broken] <= found.radius_refuted[broken]).all()
    assert torch.equal(found.radius_attack, plain.radius_attack.fmin(found.radius_attack))
    rest = ~broken
    assert torch.equal(found.radius_certified[rest], claimed[rest])


@pytest.mark.parametrize("labelled", [False, True])
def test_a_wrong_class_inside_the_ball_contradicts_where_the_class_counts(
    labelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, _ = setting("mlp")
    with torch.no_grad():
        labels = model(x.to(next(model.parameters()))).argmax(1)
    honest = LinearRadius.__call__
    # γ is far away: only the class can change.
    monkeypatch.setattr(LinearRadius, "__call__", lambda self, *given: 10 * honest(self, *given))
    given = {"labels": labels} if labelled else {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = certify(model, x, 1e4, max_radius=5.0, lipschitz=False, **given)
    assert bool((found.status == "contradicted").any()) == labelled == bool(said)
