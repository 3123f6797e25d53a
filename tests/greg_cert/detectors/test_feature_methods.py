"""Methods on features against pytorch-ood, numpy and values by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import pytorch_ood.detector as ood
import torch
from feature_data import CENTERS, HEAD, LABELS, TEST, TRAIN, D, K, normal
from torch import Tensor, nn

from greg_cert.detectors import DETECTORS
from greg_cert.detectors.features.gaussians import mds, mdspp, rmds
from greg_cert.detectors.features.neighbours import knn, nnguide
from greg_cert.detectors.features.prototypes import fdbd, nci, she
from greg_cert.detectors.features.shaping import ash, ash_b, ash_p, lts, react, scale
from greg_cert.detectors.features.subspace import vim
from greg_cert.detectors.features.weights import dice, gradnorm
from greg_cert.detectors.fitted import Fitted
from greg_cert.detectors.penultimate import Head
from greg_cert.errors import UsageError
from greg_cert.scores import energy

ONES = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
PLAIN = Head(ONES, torch.zeros(2).double())  # two features that are the logits


def layer(dtype: torch.dtype = torch.float64) -> nn.Linear:
    """HEAD as a module."""
    made = nn.Linear(D, K, dtype=dtype).requires_grad_(False)
    made.weight.copy_(HEAD.weight)
    made.bias.copy_(HEAD.bias)
    return made


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_react_clips_at_the_percentile_of_all_training_features() -> None:
    train = torch.arange(11).double()[:, None].expand(11, 2)  # each of 0 … 10 twice
    score = react(PLAIN, train, percentile=0.5).score
    expected = energy(rows([5.0, 1.0], [5.0, 5.0], [2.0, 3.0]))
    torch.testing.assert_close(score(rows([9.0, 1.0], [7.0, 6.0], [2.0, 3.0])), expected)
    clip = float(np.percentile(TRAIN.numpy(), 90))
    found = react(HEAD, TRAIN, percentile=0.9).score(TEST)
    torch.testing.assert_close(found, energy(HEAD.logits(TEST.clamp(max=clip))))


def lse(*values: float) -> float:
    return -math.log(sum(math.exp(v) for v in values))


R = 8 / 6  # of (1, 2, 4, 1) half is kept: 2 and 4, of sum 6 out of 8
G = math.exp(R)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ash", lse(0, 2 * G, 4 * G, 0)),
        ("ash-b", lse(0, 4, 4, 0)),
        ("ash-p", lse(0, 2, 4, 0)),
        ("scale", lse(G, 2 * G, 4 * G, G)),
        ("lts", lse(R**2, 2 * R**2, 4 * R**2, R**2)),
    ],
)
def test_shaping_by_hand(name: str, expected: float) -> None:
    head = Head(torch.eye(4).double(), torch.zeros(4).double())
    found = DETECTORS[name].method(head, percentile=0.5).score(rows([1.0, 2.0, 4.0, 1.0]))
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("percentile", [0.0, 0.65, 0.9])
def test_shaping_is_pytorch_oods_where_features_are_positive(percentile: float) -> None:
    maps = TEST[:, :, None, None]

    def after(m: Tensor) -> Tensor:
        return HEAD.logits(m.flatten(1))

    for method, variant in ((ash, "ash-s"), (ash_b, "ash-b"), (ash_p, "ash-p")):
        theirs = ood.ASH(None, after, variant, percentile).predict_feature_maps(maps)
        torch.testing.assert_close(method(HEAD, percentile=percentile).score(TEST), theirs)
    theirs = ood.SCALE(None, after, percentile).predict_feature_maps(maps)
    torch.testing.assert_close(scale(HEAD, percentile=percentile).score(TEST), theirs)
    theirs = ood.LTS(None, layer(), p=1 - percentile).predict_features(TEST)
    torch.testing.assert_close(lts(HEAD, percentile=percentile).score(TEST), theirs)


@pytest.mark.parametrize("method", [ash, ash_b, ash_p, scale, lts])
def test_shaping_is_finite_without_a_positive_feature_and_in_four_dimensions(
    method: Callable[..., Fitted],
) -> None:
    z = torch.cat([torch.zeros(1, 4), -torch.ones(1, 4), torch.full((1, 4), 1e-12)]).double()
    z = torch.cat([z, normal(6, 50, 4)])
    head = Head(normal(7, 3, 4), normal(8, 3))
    found = method(head, percentile=0.9).score(z)
    assert found.isfinite().all()
    assert len(found[3:].unique()) > 40  # the largest feature is left
    torch.testing.assert_close(found[0], energy(head.bias[None])[0])


@pytest.mark.parametrize("p", [0.0, 0.5, 0.9])
def test_dice_keeps_the_weights_above_the_quantile(p: float) -> None:
    contribution = TRAIN.mean(0) * HEAD.weight
    cut = np.quantile(contribution.numpy(), p)
    weight = torch.where(contribution > cut + 1e-6, HEAD.weight, 0.0)
    expected = energy(TEST @ weight.T + HEAD.bias)
    torch.testing.assert_close(dice(HEAD, TRAIN, p=p).score(TEST), expected)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_gradnorm_is_the_gradient_of_the_heads_weight(temperature: float) -> None:
    gap = torch.softmax(HEAD.logits(TEST) / temperature, 1) - 1 / K
    expected = -gap.abs().sum(1) * TEST.abs().sum(1) / temperature
    torch.testing.assert_close(gradnorm(HEAD, temperature=temperature).score(TEST), expected)


def test_she_by_hand() -> None:
    train = rows([2.0, 0.0], [4.0, 2.0], [0.0, 3.0], [0.0, 9.0])
    labels = torch.tensor([0, 0, 1, 0])  # the last is classified as 1
    score = she(PLAIN, train, labels).score  # patterns (3, 1) and (0, 3)
    torch.testing.assert_close(score(rows([5.0, 1.0], [1.0, 2.0])), rows([-16.0, -6.0])[0])
    assert she(PLAIN, train[:2], labels[:2]).score(rows([1.0, 2.0])).item() == 0.0


def test_knn_is_the_distance_to_the_kth_neighbour_at_unit_length() -> None:
    unit = [z / np.linalg.norm(z) for z in TRAIN.numpy()]
    for k in (1, 7, len(TRAIN)):
        found = knn(HEAD, TRAIN, k=k)
        assert found.options == {"k": k}
        for z, score in zip(TEST.numpy(), found.score(TEST), strict=True):
            distances = sorted(np.linalg.norm(z / np.linalg.norm(z) - t) for t in unit)
            assert float(score) == pytest.approx(distances[k - 1], abs=1e-7)


def test_the_number_of_neighbours_goes_by_the_images_a_class() -> None:
    plenty = normal(11, 500, D)  # of K = 4 classes
    for count, expected in ((500, 50), (400, 50), (160, 20), (9, 1), (1, 1)):
        assert knn(HEAD, plenty[:count], k=None).options == {"k": expected}
    with pytest.raises(UsageError, match="expected k <= 5, the number of training images"):
        knn(HEAD, TRAIN[:5], k=6)


def test_nnguides_neighbours_are_at_most_all_training_images() -> None:
    assert DETECTORS["nnguide"].defaults == {"k": 10}  # the authors'
    found = nnguide(HEAD, TRAIN[:7], k=10)
    assert found.options == {"k": 7}
    assert torch.equal(found.score(TEST), nnguide(HEAD, TRAIN[:7], k=7).score(TEST))


def test_nnguide_is_guidance_times_energy() -> None:
    lse = torch.logsumexp(HEAD.logits(TRAIN), 1)
    expected = []
    for z in TEST:
        cosines = torch.cosine_similarity(z[None], TRAIN) * lse
        guidance = cosines.sort(descending=True).values[:5].mean()
        expected.append(-guidance * torch.logsumexp(HEAD.logits(z[None]), 1)[0])
    found = nnguide(HEAD, TRAIN, k=5).score(TEST)
    torch.testing.assert_close(found, torch.stack(expected))
    theirs = ood.NNGuide(None, layer(torch.float32), k=5).fit_features(TRAIN, LABELS)
    torch.testing.assert_close(
        found, theirs.predict_features(TEST.float()).double(), rtol=1e-5, atol=1e-4
    )


def test_mds_and_rmds_are_numpys() -> None:
    x, y = TRAIN.numpy(), LABELS.numpy()
    means = np.stack([x[y == k].mean(0) for k in range(K)])
    precision = np.linalg.inv((x - means[y]).T @ (x - means[y]) / len(x))
    whole = np.linalg.inv(np.cov(x.T, bias=True))
    for z, plain, relative in zip(
        TEST.numpy(),
        mds(HEAD, TRAIN, LABELS).score(TEST),
        rmds(HEAD, TRAIN, LABELS).score(TEST),
        strict=True,
    ):
        distances = [(z - m) @ precision @ (z - m) for m in means]
        background = (z - x.mean(0)) @ whole @ (z - x.mean(0))
        assert float(plain) == pytest.approx(min(distances), rel=1e-9)
        assert float(relative) == pytest.approx(min(distances) - background, rel=1e-9, abs=1e-8)


def test_mdspp_is_numpys_at_unit_length_whatever_the_lengths_are() -> None:
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (TRAIN.numpy(), TEST.numpy()))
    labels = LABELS.numpy()
    means = np.stack([x[labels == k].mean(0) for k in range(K)])
    precision = np.linalg.inv((x - means[labels]).T @ (x - means[labels]) / len(x))
    gaps = y[:, None] - means
    expected = np.einsum("bki,ij,bkj->bk", gaps, precision, gaps).min(1)
    score = mdspp(HEAD, TRAIN, LABELS).score
    np.testing.assert_allclose(score(TEST).numpy(), expected, rtol=1e-9)
    longer = mdspp(HEAD, TRAIN * normal(12, 160, 1).abs(), LABELS).score
    torch.testing.assert_close(longer(TEST * 7), score(TEST))
    assert score(torch.zeros(1, D).double()).isfinite()


def test_mahalanobis_ignores_constant_features_and_absent_classes() -> None:
    turn = torch.linalg.qr(normal(9, D + 5, D + 5)).Q  # so that rounding fills the dead directions

    def padded(z: Tensor) -> Tensor:
        return torch.cat([z, z.new_full((len(z), 3), 7.0), z.new_zeros(len(z), 2)], 1) @ turn

    for method in (mds, rmds):
        expected = method(HEAD, TRAIN, LABELS).score(TEST)
        turned = method(HEAD, padded(TRAIN), LABELS)
        torch.testing.assert_close(turned.score(padded(TEST)), expected)
        off = padded(TEST) + 3.0 * turn[-1]  # into a direction that training features never take
        torch.testing.assert_close(turned.score(off), expected)
        renamed = torch.tensor([0, 3, 7, 9])[LABELS]
        torch.testing.assert_close(method(HEAD, TRAIN, renamed).score(TEST), expected)
        few = method(HEAD, TRAIN[:3], LABELS[:3]).score(TEST)  # every class has one sample
        assert few.isfinite().all()


def test_vim_is_numpys() -> None:
    w, b = HEAD.weight.numpy(), HEAD.bias.numpy()
    origin = -np.linalg.pinv(w) @ b
    x = TRAIN.numpy() - origin
    _, _, directions = np.linalg.svd(x, full_matrices=True)  # largest first
    for dim in (1, 5, 8):
        complement = directions[dim:]
        alpha = (TRAIN.numpy() @ w.T + b).max(1).mean() / np.linalg.norm(
            x @ complement.T, axis=1
        ).mean()
        residual = np.linalg.norm((TEST.numpy() - origin) @ complement.T, axis=1)
        expected = alpha * residual - np.log(np.exp(TEST.numpy() @ w.T + b).sum(1))
        found = vim(HEAD, TRAIN, dim=dim)
        assert found.options == {"dim": dim}
        np.testing.assert_allclose(found.score(TEST).numpy(), expected, rtol=1e-9)


def test_vims_dimension_is_half_the_rank() -> None:
    assert vim(HEAD, TRAIN, dim=None).options == {"dim": D // 2}
    head = Head(torch.cat([HEAD.weight, HEAD.weight.new_zeros(K, 30)], 1), HEAD.bias)
    dead = torch.cat([TRAIN, TRAIN.new_zeros(len(TRAIN), 30)], 1)
    found = vim(head, dead, dim=None)
    assert found.options == {"dim": D // 2}
    test = torch.cat([TEST, TEST.new_zeros(len(TEST), 30)], 1)
    torch.testing.assert_close(found.score(test), vim(HEAD, TRAIN, dim=None).score(TEST))
    with pytest.raises(UsageError, match="expected dim < 12, the rank of the training features"):
        vim(head, dead, dim=20)


def test_fdbd_and_nci_are_pytorch_oods() -> None:
    for ours, theirs in (
        (fdbd(HEAD, TRAIN), ood.fDBD(None, layer(torch.float32))),
        (nci(HEAD, TRAIN, alpha=0.01), ood.NCI(None, layer(torch.float32), alpha=0.01)),
    ):
        found = theirs.fit_features(TRAIN).predict_features(TEST).double()
        torch.testing.assert_close(ours.score(TEST), found, rtol=1e-4, atol=1e-5)


def test_fdbd_and_nci_by_hand() -> None:
    train = rows([0.0, 0.0], [2.0, 2.0])  # mean (1, 1)
    z = rows([4.0, 1.0])  # boundary of the two logits at distance 3/√2, the mean at distance 3
    assert float(fdbd(PLAIN, train).score(z)) == pytest.approx(-1 / math.sqrt(2))
    assert float(nci(PLAIN, train, alpha=0.1).score(z)) == pytest.approx(-1.0 - 0.5)
    alike = Head(torch.ones(2, 2).double(), torch.zeros(2).double())  # no boundary at all
    for method in (fdbd(alike, train), nci(alike, train, alpha=0.0)):
        assert method.score(torch.cat([z, rows([1.0, 1.0])])).isfinite().all()


def test_a_far_outlier_scores_above_every_training_sample() -> None:
    """Off the subspace of W's rows, where logits do not change, and the other way from the mean."""
    away = torch.linalg.svd(HEAD.weight).Vh[-1]
    far = TRAIN.mean(0) + 50 * away * torch.tensor([[1.0], [-1.0]]).double()
    for method in (
        knn(HEAD, TRAIN, k=None),
        nnguide(HEAD, TRAIN, k=10),
        mds(HEAD, TRAIN, LABELS),
        vim(HEAD, TRAIN, dim=None),
    ):
        assert float(method.score(far).min()) > float(method.score(TRAIN).max())
    opposite = -50 * TRAIN.mean(0, keepdim=True)
    for method in (knn(HEAD, TRAIN, k=None), mds(HEAD, TRAIN, LABELS), she(HEAD, TRAIN, LABELS)):
        assert float(method.score(opposite)) > float(method.score(TRAIN).max())


def test_the_relative_distance_grows_between_the_classes() -> None:
    """Where class means differ the background is wider, so that its distance is less."""
    between = CENTERS[0] - CENTERS.mean(0)
    score = rmds(HEAD, TRAIN, LABELS).score
    assert float(score((TRAIN.mean(0) + 50 * between)[None])) > float(score(TRAIN).max())
