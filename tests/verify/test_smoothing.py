"""Randomised smoothing against detectors whose probabilities are known, and its bookkeeping."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import points
from scipy import optimize, stats
from torch import Tensor, nn

from greg_cert.errors import UsageError
from greg_cert.verify import Certificates, certify
from greg_cert.verify.radius.sampled.smoothing import (
    ABSTAINED,
    ACCEPTED,
    REJECTED,
    Accept,
    SmoothedDecisions,
    SmoothingOptions,
    smoothed_decisions,
)
from greg_cert.verify.radius.sampled.smoothing_bounds import (
    clopper_pearson_lower,
    linf_radius,
    smoothing_radius,
)

W = torch.tensor([0.6, -0.8], dtype=torch.float64)  # of length 1
FAST = SmoothingOptions(sigma=0.5, n0=30, n=300, alpha=0.01, batch=64)


def halfspace(x: Tensor) -> Tensor:
    """Accepts W·x ≤ 0: the probability is Φ(distance/σ), so the smoothed radius is the distance."""
    return x @ W.to(x.dtype) <= 0


def at(*distances: float) -> Tensor:
    """Points so far inside the half-space of accepted ones; negative is outside."""
    return -torch.tensor(distances, dtype=torch.float64)[:, None] * W


def recorder(seen: list[Tensor], accept: Accept = halfspace) -> Accept:
    def record(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return accept(x)

    return record


def same(one: SmoothedDecisions, other: SmoothedDecisions, rows: slice = slice(None)) -> None:
    assert one.decision[rows].tolist() == other.decision.tolist()
    for name in ("radius", "p_lower", "count", "n"):
        a, b = getattr(one, name)[rows], getattr(other, name)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.6])
@pytest.mark.parametrize("n", [1, 7, 1000, 100_000])
def test_clopper_pearson_is_the_exact_binomial_bound(n: int, alpha: float) -> None:
    counts = sorted({0, 1, n // 3, n // 2, n - 1, n})
    lower = clopper_pearson_lower(torch.tensor(counts), n, alpha).tolist()
    for k, p in zip(counts, lower, strict=True):
        test = stats.binomtest(k, n, alternative="greater")
        assert p == pytest.approx(test.proportion_ci(1 - alpha, method="exact").low, rel=1e-9)
        tail = stats.binom.sf(k - 1, n, p)  # the chance of k or more
        assert (p, tail) == (0.0, 1.0) if k == 0 else tail == pytest.approx(alpha, rel=1e-9)
    assert lower[-1] == pytest.approx(alpha ** (1 / n), rel=1e-12)


def test_the_radius_of_a_probability() -> None:
    p = torch.tensor([0.2, 0.5, stats.norm.cdf(1.0), stats.norm.cdf(2.5)], dtype=torch.float64)
    radius = smoothing_radius(p, 0.3)
    assert radius[:2].isnan().all()
    assert radius[2:].tolist() == pytest.approx([0.3, 0.75], rel=1e-9)


def test_the_cube_fits_into_the_ball() -> None:
    radius = torch.tensor([0.7, math.nan])
    side = linf_radius(radius, 12)
    assert float(torch.full((12,), float(side[0])).norm()) == pytest.approx(0.7)
    assert side[1].isnan()
    with pytest.raises(UsageError, match="expected an integer dimension >= 1, but got 0"):
        linf_radius(radius, 0)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_radius_exceeds_the_truth_as_rarely_as_promised(side: float) -> None:
    # 600 samples at one place with draws of their own, each wrong with probability ≤ 0.05.
    options = SmoothingOptions(sigma=0.5, n0=20, n=200, alpha=0.05, seed=3)
    distance = 0.6
    result = smoothed_decisions(halfspace, at(*[side * distance] * 600), options)
    right = result.decision == (ACCEPTED if side > 0 else REJECTED)
    unsure = result.decision == ABSTAINED
    wrong = int(((result.radius > distance).numpy() | ~(right | unsure)).sum())
    assert stats.binomtest(wrong, 600, 0.05, alternative="greater").pvalue > 0.001
    assert wrong >= 10  # Clopper-Pearson is exact: far fewer would be waste
    assert right.mean() > 0.95


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_radius_nears_the_distance_as_draws_are_added(side: float) -> None:
    distances = torch.tensor([0.2, 0.4, 0.8], dtype=torch.float64)
    shares = []
    for n in (100, 1000, 20_000):
        options = SmoothingOptions(sigma=0.5, n=n, batch=4096)
        result = smoothed_decisions(halfspace, at(*(side * distances).tolist()), options)
        assert bool((result.radius.nan_to_num(0.0) <= distances).all())
        shares.append(float((result.radius.nan_to_num(0.0) / distances).mean()))
    assert shares == sorted(shares)
    assert shares[-1] > 0.92
    assert set(result.decision) == {ACCEPTED if side > 0 else REJECTED}


def test_it_abstains_at_the_boundary() -> None:
    result = smoothed_decisions(halfspace, at(*[0.0] * 30), FAST)
    unsure = result.decision == ABSTAINED
    assert unsure.mean() > 0.9
    assert np.array_equal(result.radius.isnan().numpy(), unsure)
    assert np.array_equal((result.p_lower <= 0.5).numpy(), unsure)
    assert bool((result.count > 100).all())  # about half of 300: abstention hides no count
    assert result.n.tolist() == [300] * 30


def test_at_the_boundary_any_decision_is_as_rare_as_promised() -> None:
    # Selecting by the draws that also prove would double this rate.
    options = SmoothingOptions(sigma=0.5, n0=51, n=201, alpha=0.05, seed=8)
    result = smoothed_decisions(halfspace, at(*[0.0] * 800), options)
    decided = int((result.decision != ABSTAINED).sum())
    assert stats.binomtest(decided, 800, 0.05, alternative="greater").pvalue > 0.01


def test_the_proof_is_about_the_smoothed_detector() -> None:
    # A disc of radius R in the plane, where probabilities are those of a non-central χ².
    sigma, size = 0.5, 1.0

    def disc(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=1) <= size

    def probability(at_distance: float) -> float:
        return float(stats.ncx2.cdf((size / sigma) ** 2, 2, (at_distance / sigma) ** 2))

    edge = optimize.brentq(lambda m: probability(m) - 0.5, 0.01, size)  # of the smoothed detector
    assert edge < 0.9 * size
    away = torch.tensor([0.0, 0.3, 0.95, 2.0], dtype=torch.float64)
    x = torch.stack([away, torch.zeros(4, dtype=torch.float64)], 1)
    options = SmoothingOptions(sigma=sigma, n=5000, seed=1)
    result = smoothed_decisions(disc, x, options)
    # At 0.95 the base detector accepts and the smoothed one rejects.
    assert result.decision.tolist() == [ACCEPTED, ACCEPTED, REJECTED, REJECTED]
    assert bool((result.radius <= (edge - away).abs()).all())
    assert bool((result.radius > 0.1 * (edge - away).abs()).all())
    expected = [probability(m) if m < edge else 1 - probability(m) for m in away.tolist()]
    assert (result.count / result.n).tolist() == pytest.approx(expected, abs=0.03)


def test_the_noise_is_normal_and_independent() -> None:
    seen: list[Tensor] = []
    options = SmoothingOptions(sigma=0.3, n0=400, n=400, batch=400)
    x = points((5,), 2, seed=1)
    smoothed_decisions(recorder(seen, lambda y: y[:, 0] > 0), x, options)
    noise = torch.stack([(s - x[i // 2]) / 0.3 for i, s in enumerate(seen)])  # (4, 400, 5)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    # Selection and estimation of either sample share no draws, nor do coordinates.
    correlation = np.corrcoef(noise.permute(0, 2, 1).reshape(20, 400).numpy())
    assert np.abs(correlation - np.eye(20)).max() < 5 / math.sqrt(400)


@pytest.mark.parametrize("batch", [1, 13, 128, 4096])
def test_the_batch_size_changes_nothing(batch: int) -> None:
    one: list[Tensor] = []
    other: list[Tensor] = []
    x = at(0.1, -0.5)
    first = smoothed_decisions(recorder(one), x, FAST)
    second = smoothed_decisions(recorder(other), x, replace(FAST, batch=batch))
    same(first, second)
    assert torch.equal(torch.cat(one), torch.cat(other))
    assert max(len(part) for part in other) == min(batch, 300)


def test_a_sample_does_not_depend_on_its_companions() -> None:
    x, names = at(0.1, 0.1, -0.3), torch.tensor([40, 7, 1_000_000])
    together = smoothed_decisions(halfspace, x, FAST, indices=names)
    for i in range(3):
        row = slice(i, i + 1)
        same(together, smoothed_decisions(halfspace, x[row], FAST, indices=names[row]), row)
    assert together.count[0] != together.count[1]
    reseeded = smoothed_decisions(halfspace, x, replace(FAST, seed=1), indices=names)
    assert not torch.equal(reseeded.count, together.count)


def test_max_radius_caps_and_keeps_abstention() -> None:
    x = at(2.0, 0.0)
    free = smoothed_decisions(halfspace, x, FAST)
    capped = smoothed_decisions(halfspace, x, FAST, max_radius=0.1)
    assert free.decision.tolist() == capped.decision.tolist() == [ACCEPTED, ABSTAINED]
    assert float(free.radius[0]) > 0.1
    assert capped.radius[0] == 0.1
    assert capped.radius[1].isnan()


def test_images_keep_their_type_and_gradients_stay_off() -> None:
    seen: list[Tensor] = []
    weight = torch.ones(3, requires_grad=True)

    def accept(x: Tensor) -> Tensor:
        return (x.mean((2, 3)) * weight).sum(1) > 0

    x = torch.full((2, 3, 4, 4), 0.5)
    single = smoothed_decisions(recorder(seen, accept), x, FAST)
    assert {(s.dtype, s.shape[1:]) for s in seen} == {(torch.float32, (3, 4, 4))}
    assert single.decision.tolist() == [ACCEPTED] * 2
    assert single.radius.dtype == torch.float64


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sigma", 0.0, "expected sigma > 0 and finite, but got 0.0"),
        ("sigma", -0.1, "expected sigma > 0 and finite, but got -0.1"),
        ("sigma", math.inf, "expected sigma > 0 and finite, but got inf"),
        ("n", 0, "expected an integer n >= 1, but got 0"),
        ("n0", 0, "expected an integer n0 >= 1, but got 0"),
        ("n", 10.5, "expected an integer n >= 1, but got 10.5"),
        ("alpha", 0.0, "expected 0 < alpha < 1, but got 0.0"),
        ("alpha", 1.0, "expected 0 < alpha < 1, but got 1.0"),
        ("alpha", math.nan, "expected 0 < alpha < 1, but got nan"),
        ("batch", 0, "expected an integer batch >= 1, but got 0"),
        ("seed", -1, "expected an integer seed >= 0, but got -1"),
    ],
)
def test_bad_options_are_named(field: str, value: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SmoothingOptions(**{field: value})  # type: ignore[arg-type]


def test_other_bad_arguments_are_named() -> None:
    x = at(0.1, 0.2)
    with pytest.raises(UsageError, match=r"expected accept to return \(30,\) bool, but got"):
        smoothed_decisions(lambda y: y @ W, x, FAST)
    with pytest.raises(UsageError, match=r"but got \(30, 1\) of torch.bool"):
        smoothed_decisions(lambda y: (y @ W <= 0)[:, None], x, FAST)
    with pytest.raises(UsageError, match="expected distinct indices"):
        smoothed_decisions(halfspace, x, FAST, indices=torch.tensor([3, 3]))
    with pytest.raises(UsageError, match="expected finite inputs"):
        smoothed_decisions(halfspace, x * math.nan, FAST)
    with pytest.raises(UsageError, match="expected norm 2 or inf, but got 1"):
        smoothed_decisions(halfspace, x, FAST, norm=1)
    with pytest.raises(UsageError, match="expected max_radius > 0"):
        smoothed_decisions(halfspace, x, FAST, max_radius=0.0)
    with pytest.raises(UsageError, match="expected counts from 0 to n = 3"):
        clopper_pearson_lower(torch.tensor([4]), 3, 0.1)
    with pytest.raises(UsageError, match=r"expected 0 < alpha < 1, but got 1\.5"):
        clopper_pearson_lower(torch.tensor([2]), 3, 1.5)


def test_a_cap_holds_in_the_norm_asked_for() -> None:
    x = torch.zeros(1, 1, 8, 8)
    far = smoothed_decisions(lambda y: y.flatten(1)[:, 0] < 9, x, FAST)
    r = float(far.radius[0])
    for cap, expected in ((8 / 255, 8 / 255), (1.0, r / 8), (r, r / 8), (None, r / 8)):
        found = smoothed_decisions(
            lambda y: y.flatten(1)[:, 0] < 9, x, FAST, norm=math.inf, max_radius=cap
        )
        assert float(found.radius[0]) == pytest.approx(expected, rel=1e-12)


class Ramp(nn.Module):
    """Two logits whose energy score is their common value, −w·x, so that γ cuts a half-space."""

    def __init__(self, classes: float = 0.0) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2).double()
        with torch.no_grad():
            self.head.weight.copy_(torch.stack([W, W]))
            self.head.bias.copy_(torch.tensor([0.0, -classes]))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


def smooth(model: nn.Module, x: Tensor, threshold: float, **options: object) -> Certificates:
    return certify(model, x, threshold, method="smoothing", smoothing=FAST, attack=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("side", ["id", "ood"])
def test_a_wrong_decision_has_no_radius_on_either_side(side: str, norm: float) -> None:
    # S = −W·x − log 2, so points on the far side of γ are accepted.
    x = at(0.8, -0.8, 0.0)
    found = smooth(Ramp(), x, -math.log(2), side=side, norm=norm)
    right = REJECTED if side == "ood" else ACCEPTED
    radius = found.other["radius_smoothing"]
    assert found.other["smoothing_decision"].tolist() == [REJECTED, ACCEPTED, ABSTAINED]
    for decision, r in zip([REJECTED, ACCEPTED], radius.tolist(), strict=False):
        assert (r > 0.3 / math.sqrt(2)) if decision == right else (r == 0)
    assert radius[2].isnan()
    wrong = found.status == "rejected"
    assert bool((radius[torch.from_numpy(wrong)].nan_to_num(0.0) == 0).all())


def test_the_cap_of_certify_is_in_its_norm() -> None:
    found = smooth(Ramp(), at(-2.0), -math.log(2), norm=math.inf, max_radius=0.3)
    assert found.other["radius_smoothing"].tolist() == [0.3]  # not 0.3/√2


def test_labels_are_part_of_what_is_smoothed() -> None:
    # Class 0 is ahead by 0.1 everywhere: with label 1 nothing is right, with label 0 acceptance is.
    x, gamma = at(-0.8, -0.8, 0.8), -math.log(2)
    labels = torch.tensor([1, 0, 0])
    found = smooth(Ramp(0.1), x, gamma, labels=labels)
    plain = smooth(Ramp(0.1), x, gamma)
    assert plain.other["smoothing_decision"].tolist() == [ACCEPTED, ACCEPTED, REJECTED]
    assert found.other["smoothing_decision"].tolist() == [REJECTED, ACCEPTED, REJECTED]
    radius, free = found.other["radius_smoothing"], plain.other["radius_smoothing"]
    assert radius[[0, 2]].tolist() == [0.0, 0.0]
    assert float(radius[1]) == float(free[1]) > 0  # the same draws, in whatever group they are
    assert found.status.tolist() == ["rejected", "undecided", "rejected"]


def test_half_precision_pixels_get_noise_of_full_precision() -> None:
    seen: list[Tensor] = []
    x = at(0.2, -0.1).half()
    for kind in (torch.half, torch.bfloat16):
        result = smoothed_decisions(recorder(seen), x.to(kind), FAST)
        same(result, smoothed_decisions(halfspace, x.to(kind).float(), FAST))
    assert {s.dtype for s in seen} == {torch.float32}
