"""The ladder of `best`: never looser than its rungs, the same in any batch, stopped as it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import build, energy_of, points
from smooth_networks import build_smooth
from torch import Tensor, nn

from greg_cert.certificates.methods import STOPS
from greg_cert.errors import UsageError
from greg_cert.verify import Certificates, certify
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.methods.best import Best
from greg_cert.verify.radius import prices
from greg_cert.verify.radius.best import BestEffort, BestRadius, Stage
from greg_cert.verify.radius.coupled.row_search import CoupledEffort
from greg_cert.verify.radius.goals import Goal, decision_goal
from greg_cert.verify.radius.problem import Batch, Problem
from greg_cert.verify.scorer import Margin

QUICK = {
    "rounds": 8, "cut_rounds": 2, "cuts": 2, "coupled": CoupledEffort(4, 6), "attack_steps": 8,
    "attack_restarts": 1, "attack_polish": 4,
}  # fmt: skip
TOLERANCE = 1.02  # searches end when no more than a per cent is left


def setting(name: str) -> tuple[nn.Module, Tensor, float]:
    model, shape = build_smooth("gelu") if name == "gelu" else build(name)
    model = model.double().eval()
    x = points(shape, 3)
    scores = energy_of(model, x).sort().values
    return model, x, float(scores[1:].mean())  # two on one side, one on the other


def best(name: str, **options: object) -> Certificates:
    model, x, threshold = setting(name)
    return certify(model, x, threshold, method="best", **{**QUICK, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "norm", "side", "score"),
    [
        ("mlp", 2.0, "id", "energy"),
        ("conv", math.inf, "ood", "energy"),
        ("leaky", 2.0, "id", "max_softmax"),
        ("gelu", 2.0, "id", "max_logit"),
    ],
)
def test_it_is_never_looser_than_what_ran(name: str, norm: float, side: str, score: str) -> None:
    model, x, threshold = setting(name)
    if score != "energy":
        values = certify(model, x, 0.0, score=score, method="lipschitz", attack=False).score
        threshold = float(values.sort().values[1:].mean())
    given = {**QUICK, "norm": norm, "side": side, "score": score, "max_radius": 2.0}
    found = certify(model, x, threshold, method="best", budget=8000, until_share=1.0, **given)  # type: ignore[arg-type]
    assert (found.radius_certified > 0).any()
    assert (found.radius_certified <= found.radius_attack).all()
    assert torch.equal(found.radius_certified, found.other["radius_best"])
    for method in ("crown", *(["sdp-crown"] if norm == 2.0 else [])):
        other = certify(model, x, threshold, method=method, lipschitz=False, **given)  # type: ignore[arg-type]
        assert (found.radius_certified * TOLERANCE >= other.radius_certified).all(), method


def test_together_with_another_proof_it_begins_there() -> None:
    model, x, threshold = setting("mlp")
    found = certify(model, x, threshold, method="crown-ibp,best", budget=1, **QUICK)  # type: ignore[arg-type]
    assert (found.radius_certified >= torch.as_tensor(found.other["radius_crown_ibp"])).all()
    assert torch.equal(found.radius_certified, found.other["radius_best"])


def test_a_larger_budget_never_proves_less() -> None:
    radii = []
    for budget in (1, 600, 3000):
        found = best("conv", budget=budget, until_share=1.0)
        radii.append(found.radius_certified)
        assert {*found.other["stopped_by"].tolist()} >= {"budget"}, budget
    for smaller, larger in pairwise(radii):
        assert (larger >= smaller).all()
    assert (radii[-1] > 1.05 * radii[0]).any()


def test_no_sample_depends_on_those_beside_it() -> None:
    whole = best("conv")
    by_two = best("conv", batch=2)
    model, x, threshold = setting("conv")
    alone = certify(model, x[2:3], threshold, method="best", indices=torch.tensor([2]), **QUICK)  # type: ignore[arg-type]
    for part, rows in ((by_two, slice(None)), (alone, slice(2, 3))):
        torch.testing.assert_close(
            part.radius_certified, whole.radius_certified[rows], rtol=1e-6, atol=0
        )
        for column in ("radius_method", "stopped_by"):
            assert part.other[column].tolist() == whole.other[column][rows].tolist()


def test_a_sample_stops_at_the_share() -> None:
    model, x, threshold = setting("mlp")
    given = {**QUICK, "method": "best", "max_radius": 20.0, "budget": 1}
    low = certify(model, x, threshold, until_share=0.05, **given)  # type: ignore[arg-type]
    right = low.status == "certified"
    assert right.any()
    assert (low.other["stopped_by"] == np.where(right, "share", "rejected")).all()
    assert (low.radius_certified >= 0.05 * low.radius_attack).all()
    assert set(low.other["radius_method"][right].tolist()) <= {"lipschitz", "crown"}
    blind = certify(
        model, x, threshold, until_share=0.05, **{**given, "attack": False, "budget": 1}
    )  # type: ignore[arg-type]
    assert "share" not in blind.other["stopped_by"].tolist()


def test_what_stopped_it_is_said() -> None:
    model, x, threshold = setting("mlp")
    given = {**QUICK, "method": "best"}
    capped = certify(model, x, threshold, max_radius=1e-3, **given)  # type: ignore[arg-type]
    right = capped.status == "certified"
    assert right.any()
    assert not right.all()
    assert (capped.other["stopped_by"] == np.where(right, "max_radius", "rejected")).all()
    assert (capped.other["radius_method"][~right] == "none").all()
    affine = nn.Linear(3, 2).double()
    free = certify(
        affine, torch.rand(2, 3).double(), 5.0, max_radius=50.0, until_share=1.0, **given
    )  # type: ignore[arg-type]
    assert set(free.other["stopped_by"].tolist()) <= {"exhausted", "share"}
    hurried = certify(model, x, threshold, seconds_per_sample=1e-9, until_share=1.0, **given)  # type: ignore[arg-type]
    assert (hurried.other["stopped_by"][right] == "seconds").all()
    assert (hurried.radius_certified[torch.from_numpy(right)] > 0).all()


def test_with_labels_it_is_about_the_class_too() -> None:
    model, x, threshold = setting("conv")
    labels = model(x).argmax(1)
    given = {**QUICK, "max_radius": 2.0}
    free = certify(model, x, threshold, method="best", **given)  # type: ignore[arg-type]
    both = certify(model, x, threshold, method="best", labels=labels, **given)  # type: ignore[arg-type]
    crown = certify(model, x, threshold, method="crown", labels=labels, **given)  # type: ignore[arg-type]
    assert (both.radius_certified <= TOLERANCE * free.radius_certified).all()
    assert (both.radius_certified <= both.radius_attack).all()
    enough = torch.minimum(crown.radius_certified, 0.95 * both.radius_attack)
    assert (both.radius_certified * TOLERANCE >= enough).all()
    wrong = certify(model, x, threshold, method="best", labels=(labels + 1) % 3, **given)  # type: ignore[arg-type]
    assert set(wrong.other["stopped_by"].tolist()) == {"rejected"}


def test_auto_lirpa_proves_the_rungs_that_it_can() -> None:
    model, x, threshold = setting("conv")
    found = certify(model, x, threshold, method="best", engine="auto-lirpa", **QUICK)  # type: ignore[arg-type]
    assert (found.radius_certified > 0).any()
    assert set(found.other["radius_method"].tolist()) <= {"crown", "lipschitz", "none"}


Ladder = Callable[..., BestRadius]


@pytest.fixture
def ladder() -> Ladder:
    """A ladder of made-up proofs that note which samples they were given."""

    def make(*stages: tuple[str, float, float, str | None], **effort: float | None) -> BestRadius:
        made: dict[str, Stage] = {}
        for name, price, radius, after in stages:
            calls: list[list[int]] = []

            def prove(
                batch: Batch, goal: Goal, radius: float = radius, calls: list[list[int]] = calls
            ) -> Tensor:
                calls.append(batch.x[:, 0].long().tolist())
                assert batch.known is not None
                found = radius * batch.first_order
                return torch.where(found > batch.known, found, 0.0)

            prove.calls = calls  # type: ignore[attr-defined]
            made[name] = Stage(
                name, prices.Price(price), prove, after=None if after is None else made[after]
            )
        return BestRadius(list(made.values()), BestEffort(**effort), 10.0)  # type: ignore[arg-type]

    return make


def climb(
    radius: BestRadius, known: Tensor | None = None, **given: Tensor
) -> tuple[list[float], list[str], list[str]]:
    x = torch.arange(3.0).unsqueeze(1).double()
    logits = torch.zeros(3, 2).double()
    goal = decision_goal("energy", Margin(5.0, "id"), logits)
    batch = Batch(x, logits, torch.ones(3).double(), known)
    found = radius.climb(batch, goal, **given)  # type: ignore[arg-type]
    return found.radii.tolist(), found.method.tolist(), found.stopped.tolist()


def calls(radius: BestRadius) -> dict[str, list[list[int]]]:
    return {stage.method: stage.prove.calls for stage in radius.stages}  # type: ignore[attr-defined]


def test_the_cheapest_comes_first_and_a_budget_ends_the_rest(ladder: Ladder) -> None:
    rungs = (("costly", 70, 3.0, None), ("cheap", 10, 1.0, None), ("middle", 30, 2.0, None))
    radius = ladder(*rungs, budget=75)  # each by itself would fit
    assert [stage.method for stage in radius.order(1)] == ["cheap", "middle", "costly"]
    assert climb(radius) == ([2.0] * 3, ["middle"] * 3, ["budget"] * 3)
    assert calls(radius) == {"costly": [], "cheap": [[0, 1, 2]], "middle": [[0, 1, 2]]}
    unlimited = ladder(("costly", 70, 3.0, None), ("cheap", 10, 1.0, None), budget=None)
    assert climb(unlimited) == ([3.0] * 3, ["costly"] * 3, ["exhausted"] * 3)
    first_at_least = ladder(("costly", 70, 3.0, None), ("cheap", 10, 1.0, None), budget=1)
    assert climb(first_at_least) == ([1.0] * 3, ["cheap"] * 3, ["budget"] * 3)
    later = ladder(("plain", 30, 1.0, None), ("cuts", 10, 2.0, "plain"), ("other", 20, 1.5, None))
    assert [stage.method for stage in later.order(1)] == ["other", "plain", "cuts"]


def test_only_samples_that_go_on_are_given_to_the_next(ladder: Ladder) -> None:
    radius = ladder(("one", 1, 1.0, None), ("two", 2, 2.0, None), budget=None)
    enough = torch.tensor([0.5, 1.5, math.inf], dtype=torch.float64)
    assert climb(radius, enough=enough)[2] == ["share", "share", "exhausted"]
    assert calls(radius) == {"one": [[0, 1, 2]], "two": [[1, 2]]}


def test_what_builds_on_a_hopeless_proof_is_not_tried(ladder: Ladder) -> None:
    radius = ladder(("plain", 1, 1.0, None), ("cuts", 2, 2.0, "plain"), budget=None)
    known = torch.tensor([0.1, 1.2, 1.9], dtype=torch.float64)
    by = np.array(["lipschitz"] * 3)
    radii, method, _ = climb(radius, known=known, by=by)  # type: ignore[arg-type]
    assert radii == [2.0, 2.0, 1.9]
    assert method == ["cuts", "cuts", "lipschitz"]
    assert calls(radius) == {"plain": [[0, 1, 2]], "cuts": [[0, 1]]}


def test_prices_follow_the_network() -> None:
    def order(width: int) -> list[str]:
        model = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, 3),
        ).double()  # fmt: skip
        graph = trace_model(model, (1, 8, 8))
        found = Best().prepare(Problem(None, graph))
        return [stage.method for stage in found.order(1) if stage.method != "branch"]

    assert order(2)[0] == "crown"
    assert order(32)[0] == "sdp-crown"


def test_effort_is_checked_and_stops_have_names() -> None:
    assert len(set(STOPS)) == len(STOPS)
    with pytest.raises(UsageError, match="until_share in"):
        replace(BestEffort(), until_share=math.nan)
