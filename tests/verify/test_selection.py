"""Which samples are chosen, what is left of them, and what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from greg_cert.certificates.methods import METHODS, PROOFS
from greg_cert.config import VerifyConfig, parse_config
from greg_cert.errors import ConfigError, UnsupportedModelError, UsageError
from greg_cert.models import build_model
from greg_cert.verify.run.selection import (
    Selection,
    choose_samples,
    parse_numbers,
    parse_seconds,
    select_samples,
)
from greg_cert.verify.run.tasks import Task, chunk_size, cut, plan_tasks

LABELS = torch.arange(100) % 10


def select(wanted: int | None = None, seed: int = 0, **choice: Any) -> list[int]:
    return select_samples(Selection(**choice), LABELS, 10, wanted, seed)


def test_indices_are_taken_as_they_are_and_classes_before_the_draw() -> None:
    assert sorted(select(indices=(99, 3, 3), wanted=1)) == [3, 99]
    assert sorted(select(indices=(3, 13, 14), classes=(3,))) == [3, 13]
    of_class = select(classes=(3, 7))
    assert sorted(of_class) == [i for i in range(100) if i % 10 in (3, 7)]
    drawn = select(wanted=6, seed=1, classes=(3, 7))
    assert len(set(drawn)) == 6
    assert set(drawn) < set(of_class)
    assert drawn == select(wanted=6, seed=1, classes=(3, 7)) != select(wanted=6, classes=(3, 7))
    assert select(wanted=12, seed=5) == choose_samples(100, 12, 5).tolist()


def test_fewer_samples_are_the_first_of_more_in_an_order_that_no_sorting_can_bias() -> None:
    for choice in ({}, {"classes": (3, 7)}):
        everything = select(seed=2, **choice)
        for wanted in (1, 4, 15):
            assert select(wanted=wanted, seed=2, **choice) == everything[:wanted]
    # A set sorted by class: a tenth of it has samples of all parts of it.
    order = choose_samples(10_000, 1000, 0)
    share = torch.bincount(order // 1000, minlength=10) / 1000
    assert (share - 0.1).abs().max() < 0.03  # three standard deviations
    assert order.tolist() != sorted(order.tolist())


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"indices": (5, 100)}, "--indices: expected numbers from 0 to 99, but got 100"),
        ({"classes": (10,)}, "--classes: expected numbers from 0 to 9, but got 10"),
        ({"classes": (3,), "indices": (4,)}, "--indices: .*--classes 3, but got none"),
        ({"limit": 0}, "--limit: expected at least 1, but got 0"),
    ],
)
def test_what_there_is_not_is_refused(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        select(**choice)


def test_a_class_without_test_samples_is_refused() -> None:
    with pytest.raises(UsageError, match="--classes: expected classes with test samples"):
        select_samples(Selection(classes=(9,)), torch.arange(5), 10, None, 0)


def test_numbers_and_ranges() -> None:
    assert parse_numbers("--indices", "5,9, 100-103,9") == (5, 9, 100, 101, 102, 103)
    for text in ("", "5,", "-3", "9-5", "1.5", "a", "0-99999999999", "1-2-3"):
        with pytest.raises(UsageError, match="--indices: expected numbers and ranges"):
            parse_numbers("--indices", text)


def test_times() -> None:
    given = {"90": 90, "90s": 90, "1.5m": 90, "20m": 1200, "1h": 3600, "0": 0, " 2 h ": 7200}
    assert {t: parse_seconds("--time-budget", t) for t in given} == given
    for text in ("", "-1", "soon", "1d", "1h30m", "nan", "inf", "m"):
        with pytest.raises(UsageError, match="--time-budget: expected a time such as"):
            parse_seconds("--time-budget", text)


def test_tasks_hold_what_is_pending_once_and_are_cut_alike_after_a_kill() -> None:
    wanted = {"id": [(1, 3), (5, 7), (9,)], "ood/a": [(0, 2)]}
    fresh = {(run, part): set(sum(i, ())) for run in (0, 1) for part, i in wanted.items()}
    tasks = plan_tasks(wanted, fresh)
    assert tasks[0] == Task("id", ((0, (1, 3)), (1, (1, 3))))
    assert [t.part for t in tasks] == ["id", "id", "id", "ood/a"]
    # Killed after run 0 had done the first chunk: the others are as before.
    killed = {**fresh, (0, "id"): {5, 7, 9}}
    again = plan_tasks(wanted, killed)
    assert again == [Task("id", ((1, (1, 3)),)), *tasks[1:]]
    assert plan_tasks(wanted, {}) == []
    limited = plan_tasks(wanted, killed, limit=3)
    assert limited == [again[0], Task("id", ((0, (5,)), (1, (5,))))]
    assert plan_tasks(wanted, {(0, "id"): set(), (1, "ood/a"): {2}}, limit=1) == [
        Task("ood/a", ((1, (2,)),))
    ]


@pytest.mark.parametrize("size", [1, 3, 7, 10, 32, 64])
def test_what_was_verified_of_a_round_number_has_the_chunks_it_has_among_more(size: int) -> None:
    order = choose_samples(2345, None, 0).tolist()
    chunks = cut(order, size, rounded=True)
    assert sum(chunks, ()) == tuple(order)
    assert max(map(len, chunks)) <= size
    for count in (10, 20, 40, 90, 100, 300, 900, 1000, 2000):
        few = cut(order[:count], size, rounded=True)
        assert few == chunks[: len(few)]
    assert len(chunks) <= 1.3 * 2345 / size + 60  # not much smaller than they may be
    few, more = (cut(order[: n * size], size, rounded=False) for n in (3, 8))
    assert few == more[:3]
    assert {len(chunk) for chunk in more} == {size}


def test_a_larger_network_has_smaller_chunks_and_batched_methods_larger_ones() -> None:
    sizes = {
        methods: [
            chunk_size(
                build_model(
                    "cnn_small", num_classes=10, in_channels=1, image_size=n, mean=[0.5], std=[0.5]
                ),
                (1, n, n),
                methods,
            )
            for n in (8, 16, 32, 64)
        ]
        for methods in (("best",), ("sdp-crown", "lipschitz"), ("sdp-crown", "crown"))
    }
    best, batched, mixed = sizes.values()
    assert best == mixed
    assert best[0] == 32
    assert best[0] > best[1] > best[2] >= 1
    assert batched[0] == 64
    assert batched[2] > batched[3] >= 1
    assert all(few <= many for few, many in zip(best, batched, strict=True))


def test_a_network_without_bounds_has_chunks_for_methods_that_need_none() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Hardshrink())
    with pytest.raises(UnsupportedModelError):
        chunk_size(model, (1, 2, 2), ("smoothing", "crown"))
    assert chunk_size(model, (1, 2, 2), ("smoothing", "clever")) >= 1


def test_methods_are_one_name_or_several() -> None:
    assert set(METHODS) == set(PROOFS) | {"clever", "smoothing"}
    assert VerifyConfig(method="lipschitz").method == "lipschitz"
    assert VerifyConfig(method="crown, lipschitz").method == ("crown", "lipschitz")
    assert VerifyConfig.model_validate({"method": ["best"]}).method == "best"
    for wrong in ("gradient", "crown,crown", "", [], 3, "crown,", {"crown": 1}):
        with pytest.raises(ValueError, match="expected different names of crown"):
            VerifyConfig.model_validate({"method": wrong})


def test_new_fields_are_checked_and_named() -> None:
    base = {
        "data": {"id": {"source": "digits"}},
        "model": {"name": "mlp"},
        "train": {"stages": [{"method": "ce", "epochs": 1, "lr": 0.1}]},
    }
    for verify, said in (
        ({"side": "left"}, "verify.side"),
        ({"ood_samples": 0}, "verify.ood_samples"),
        ({"memory": 0}, "verify.memory"),
        ({"batch": -2}, "verify.batch"),
        ({"side": "ood", "correct": True}, "correct"),
        ({"method": ["clever"]}, "verify.method: .*an estimate certifies nothing"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_config({**base, "verify": verify})
    config = parse_config({**base, "verify": {"side": "both", "method": ["crown", "lipschitz"]}})
    assert config.verify.sides == ("id", "ood")
    assert parse_config(config.model_dump(mode="json")) == config
