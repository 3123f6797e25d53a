"""Chunks that fit: order, halving, budgets, and results that do not depend on them."""

from __future__ import annotations

import itertools

import pytest
import torch
from problems import build, points
from score_oracles import QUICK, middle

from greg_cert.errors import EngineError
from greg_cert.verify import certify
from greg_cert.verify.bounds.native_engine import NativeEngine
from greg_cert.verify.graph.sizes import fitting_batch, sample_bytes
from greg_cert.verify.graph.trace import trace_model
from greg_cert.verify.memory import in_chunks, is_out_of_memory

ENDED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
]


class Machine:
    """Runs slices of up to `room` items; larger ones raise. Notes what it was asked."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.asked: list[int] = []

    def __call__(self, part: slice) -> list[int]:
        items = list(range(20))[part]
        self.asked.append(len(items))
        if len(items) > self.room:
            raise self.error
        return items


@pytest.mark.parametrize("error", ENDED, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("room", [1, 2, 3, 7, 20])
def test_chunks_are_halved_until_they_fit_and_keep_their_order(room: int, error: Exception) -> None:
    assert is_out_of_memory(error)
    machine = Machine(room, error)
    parts = list(in_chunks(machine, 20, 16))
    assert [i for part in parts for i in part] == list(range(20))
    sizes = machine.asked
    for now, then in itertools.pairwise(sizes):
        assert then <= now if now <= room else then == now // 2  # and never grow again


def test_an_item_that_does_not_fit_alone_is_an_error() -> None:
    with pytest.raises(EngineError, match="single sample"):
        list(in_chunks(Machine(0, MemoryError()), 5, 4))


@pytest.mark.parametrize("error", [RuntimeError("a shape"), ValueError("not enough memory")])
def test_other_errors_are_passed_on(error: Exception) -> None:
    machine = Machine(0, error)
    with pytest.raises(type(error), match=str(error)):
        list(in_chunks(machine, 5, 4))
    assert machine.asked == [4]


def test_what_was_done_before_memory_ran_out_is_not_done_again() -> None:
    calls: list[slice] = []

    def run(part: slice) -> slice:
        calls.append(part)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return part

    assert list(in_chunks(run, 10, 4)) == [slice(0, 4), slice(4, 6), slice(6, 8), slice(8, 10)]
    assert len(calls) == 5


def test_a_smaller_budget_means_smaller_chunks() -> None:
    graph = trace_model(*build("conv"))
    assert sample_bytes(graph, 4) > sample_bytes(graph, 1) > 0
    budgets = [1, 10**5, 10**6, 10**7, 10**12]
    batches = [fitting_batch(graph, 128, budget, 1) for budget in budgets]
    assert batches == sorted(batches)
    assert (batches[0], batches[-1]) == (1, 128)
    assert fitting_batch(graph, 128, None, 1) == 128
    elements = [NativeEngine(graph, budget).elements for budget in budgets]
    assert elements == sorted(elements)
    assert elements[0] == 1


CASES = [
    ("crown,lipschitz", "energy", "id"),
    ("crown-ibp", "max_logit", "ood"),
    ("alpha-crown", "absent_class", "id"),
    ("alpha-crown", "max_softmax", "ood"),  # rows with slopes of their own, which are split too
    ("alpha-crown", "max_softmax", "id"),
]


@pytest.mark.parametrize(("method", "score", "side"), CASES)
def test_results_do_not_depend_on_the_budget(method: str, score: str, side: str) -> None:
    model, shape = build("mlp")
    model, x = model.double(), points(shape, 4)
    given = {**QUICK, "method": method, "score": score, "side": side, "attack_steps": 2}
    threshold = middle(model, score, x)
    plenty, tiny = (
        certify(model, x, threshold, memory=memory, **given)  # type: ignore[arg-type]
        for memory in (None, 1e-6)
    )
    assert bool((plenty.radius_certified > 0).any())
    for name in ("radius_certified", "radius_attack", "radius_lipschitz", "lipschitz"):
        torch.testing.assert_close(
            getattr(tiny, name), getattr(plenty, name), rtol=1e-3, atol=1e-12, equal_nan=True
        )


def test_memory_that_runs_out_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = build("mlp")
    model, x = model.double(), points(shape, 5)
    threshold = middle(model, "energy", x)
    whole = certify(model, x, threshold, **QUICK)  # type: ignore[arg-type]
    relax = NativeEngine.relax_region
    refused = []

    def small(self: NativeEngine, region, *given, **named):  # type: ignore[no-untyped-def]
        if len(region.radii) > 1:
            refused.append(len(region.radii))
            raise torch.OutOfMemoryError("out of memory")
        return relax(self, region, *given, **named)

    monkeypatch.setattr(NativeEngine, "relax_region", small)
    seen: list[tuple[int, int]] = []
    parts = certify(
        model, x, threshold, progress=lambda *now: seen.append(now), **QUICK  # type: ignore[arg-type]
    )  # fmt: skip
    assert refused
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    torch.testing.assert_close(parts.radius_certified, whole.radius_certified, rtol=1e-3, atol=0)
    torch.testing.assert_close(parts.radius_attack, whole.radius_attack, rtol=1e-9, atol=0)
