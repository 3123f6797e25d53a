from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from clusters import NoHostSync, blobs, rng, unit_features
from sklearn.cluster import KMeans
from torch import Tensor

from greg_cert.errors import UsageError
from greg_cert.train.outliers import kmeans as module
from greg_cert.train.outliers.kmeans import kmeans

BACKENDS = ("torch", "faiss")


def inertia(points: Tensor, centres: Tensor, assigned: Tensor) -> float:
    return float(((points - centres[assigned]) ** 2).sum())


def same_partition(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a[:, None] == a[None], b[:, None] == b[None])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(3))
def test_separated_blobs_are_found(backend: str, seed: int) -> None:
    # faiss starts from random points, so it is given fewer blobs to miss.
    points, blob = blobs(8 if backend == "torch" else 2, 12, seed=seed)
    k = int(blob.max()) + 1
    centres, assigned = kmeans(points, k, backend=backend, generator=rng(seed))
    assert same_partition(assigned, blob)
    assert centres.shape == (k, 16)
    for i in range(k):
        mean = points[assigned == i].mean(dim=0)
        torch.testing.assert_close(centres[i], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_point_belongs_to_its_nearest_centre(backend: str) -> None:
    points = unit_features(200, 8)
    centres, assigned = kmeans(points, 20, backend=backend, generator=rng())
    distance = torch.cdist(points.double(), centres.double())
    own = distance.gather(1, assigned.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(own, distance.min(dim=1).values, rtol=1e-5, atol=1e-5)


def test_iterations_never_raise_the_inertia() -> None:
    points = unit_features(300, 6)
    steps = [
        inertia(points, *kmeans(points, 12, backend="torch", iterations=n, generator=rng()))
        for n in (0, 1, 2, 5, 20, 60)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(steps))
    assert steps[-1] < 0.9 * steps[0]


def test_first_centres_are_spread_out() -> None:
    """k-means++ draws by squared distance: with no iterations, still one centre a blob."""
    hits = 0
    for seed in range(20):
        points, blob = blobs(8, 12, seed=seed)
        _, assigned = kmeans(points, 8, backend="torch", iterations=0, generator=rng(seed))
        hits += same_partition(assigned, blob)
    assert hits >= 18  # uniform draws would manage once in four hundred


def test_a_point_far_away_gets_a_centre_of_its_own() -> None:
    points = torch.cat([unit_features(200, 4), torch.full((1, 4), 1e4)])
    for seed in range(10):
        _, assigned = kmeans(points, 2, backend="torch", generator=rng(seed))
        assert (assigned == assigned[-1]).sum() == 1


def test_auto_takes_torch_for_a_batch_and_faiss_for_a_pool() -> None:
    small, large = unit_features(300, 4), unit_features(4200, 2)
    for points, k, expected in ((small, 32, "torch"), (large, 1000, "faiss")):
        got = {
            b: kmeans(points, k, backend=b, iterations=2, generator=rng())[1]
            for b in ("auto", *BACKENDS)
        }
        assert torch.equal(got["auto"], got[expected])
        assert not torch.equal(got["torch"], got["faiss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 0}, r"1 <= n_clusters <= 5 .*but got 0"),
        ({"n_clusters": 6}, r"1 <= n_clusters <= 5 .*but got 6"),
        ({"backend": "sklearn"}, "backend in auto, torch, faiss, but got 'sklearn'"),
        ({"points": torch.zeros(5)}, r"floating points \(N, D\), but got \(5,\)"),
        ({"points": torch.zeros(5, 2, dtype=torch.long)}, r"but got \(5, 2\) of torch.int64"),
        ({"points": torch.zeros(0, 2)}, r"1 <= n_clusters <= 0"),
    ],
)
def test_kmeans_refuses_values_by_name(change: dict[str, object], message: str) -> None:
    call = {"points": torch.zeros(5, 2), "n_clusters": 2, **change}
    with pytest.raises(UsageError, match=message):
        kmeans(**call)  # type: ignore[arg-type]


def on_device(points: Tensor, k: int, iterations: int, seed: int, peek: bool) -> tuple[Tensor, ...]:
    return module._on_device(points, k, iterations, rng(seed), peek=peek)


@pytest.mark.parametrize(("n", "dim", "k"), [(384, 128, 64), (60, 2, 25), (20, 3, 20), (9, 4, 1)])
def test_the_host_never_waits(n: int, dim: int, k: int) -> None:
    points = torch.randn(n, dim, generator=rng())
    with NoHostSync():
        on_device(points, k, 10, 0, False)


def test_the_guard_against_waiting_works() -> None:
    x = torch.arange(4.0)
    for wait in (lambda: x[x > 1], lambda: float(x[0]), lambda: x.nonzero(), lambda: bool(x.any())):
        with pytest.raises(AssertionError), NoHostSync():
            wait()


@pytest.mark.parametrize("k", [2, 25, 60])
@pytest.mark.parametrize("seed", range(4))
def test_looking_at_the_data_changes_nothing(k: int, seed: int) -> None:
    """What the CPU does, which may stop early, is what a GPU would."""
    distinct = torch.randn(60, 2, generator=rng(seed))
    for points in (distinct, torch.cat([distinct[:20]] * 3)):
        for n in (0, 1, 10):
            seen, unseen = (on_device(points, k, n, seed, peek) for peek in (True, False))
            assert torch.equal(seen[0], unseen[0])
            assert torch.equal(seen[1], unseen[1])


@pytest.mark.parametrize("peek", [True, False])
def test_no_cluster_is_empty_where_points_differ(peek: bool) -> None:
    """Half as many clusters as points in a plane: Lloyd's iterations would empty some."""
    for seed in range(40):
        points = torch.randn(60, 2, generator=rng(seed)) ** 3
        _, assigned = on_device(points, 30, 10, seed, peek)
        assert len(assigned.unique()) == 30


@pytest.mark.parametrize("peek", [True, False])
@pytest.mark.parametrize(("distinct", "k"), [(5, 3), (5, 5), (5, 8), (5, 100), (37, 64), (1, 4)])
def test_copies_stay_together_and_fill_as_many_clusters_as_they_can(
    distinct: int, k: int, peek: bool
) -> None:
    for seed in range(5):
        base = torch.randn(distinct, 16, generator=rng(seed))
        name = torch.randint(distinct, (200,), generator=rng(seed + 1))
        name[:distinct] = torch.arange(distinct)
        centres, assigned = on_device(base[name], k, 10, seed, peek)
        assert len(assigned.unique()) == min(k, distinct)
        assert all(len(assigned[name == i].unique()) == 1 for i in range(distinct))
        assert centres.isfinite().all()


def test_nearly_collapsed_features_are_still_told_apart() -> None:
    """A network whose features differ by one part in ten thousand: the mean is taken off first."""
    blob = torch.arange(8).repeat_interleave(12)
    points = F.normalize(torch.ones(96, 16) + 1e-4 * (torch.eye(16)[blob]), dim=1)
    points = points + 1e-6 * torch.randn(96, 16, generator=rng())
    for seed in range(5):
        _, assigned = kmeans(points, 8, backend="torch", generator=rng(seed))
        assert same_partition(assigned, blob)


def test_more_points_than_the_table_holds_give_the_same_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points, blob = blobs(8, 12)
    expected = kmeans(points, 8, backend="torch", generator=rng())
    monkeypatch.setattr(module, "_TABLE_LIMIT", 10)
    assert torch.equal(kmeans(points, 8, backend="torch", generator=rng())[1], expected[1])
    assert same_partition(expected[1], blob)


@pytest.mark.parametrize(("backend", "worse"), [("torch", 1.02), ("faiss", 1.05)])
def test_one_run_matches_the_best_of_three_of_scikit_learn(backend: str, worse: float) -> None:
    """Mean inertia over seeds, on features with clusters and, for torch, without."""
    unclustered, clustered = unit_features, lambda n, dim, s: blobs(40, 5, 48, s)[0]
    for make in (unclustered, clustered)[: 2 if backend == "torch" else 1]:
        ours = reference = 0.0
        for seed in range(4):
            points = make(192, 32, seed)
            fitted = KMeans(32, n_init=3, random_state=seed).fit(points.numpy())
            reference += fitted.inertia_
            ours += inertia(points, *kmeans(points, 32, backend=backend, generator=rng(seed)))
        assert 0.9 * reference < ours < worse * reference


def test_autocast_changes_nothing() -> None:
    points = unit_features(100, 16)
    expected = kmeans(points, 10, backend="torch", generator=rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = kmeans(points, 10, backend="torch", generator=rng())
    assert torch.equal(got[1], expected[1])
    assert got[0].dtype == torch.float32
