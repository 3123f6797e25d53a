"""Residual and NECO against numpy; ViM is in `test_feature_methods.py`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from feature_data import HEAD, TEST, TRAIN, D, normal

from greg_cert.detectors.features.subspace import neco, residual, vim
from greg_cert.errors import UsageError


@pytest.mark.parametrize("dim", [1, 5, 11])
def test_residual_is_the_distance_from_the_leading_directions(dim: int) -> None:
    """What a least-squares fit by the leading directions leaves."""
    origin = -np.linalg.pinv(HEAD.weight.numpy()) @ HEAD.bias.numpy()
    leading = np.linalg.svd(TRAIN.numpy() - origin, full_matrices=False)[2][:dim]
    found = residual(HEAD, TRAIN, dim=dim)
    assert found.options == {"dim": dim}
    for z, score in zip(TEST.numpy() - origin, found.score(TEST), strict=True):
        fitted = np.linalg.lstsq(leading.T, z, rcond=None)[0] @ leading
        assert float(score) == pytest.approx(np.linalg.norm(z - fitted), rel=1e-9)


def test_residual_takes_vims_dimension() -> None:
    assert residual(HEAD, TRAIN, dim=None).options == vim(HEAD, TRAIN, dim=None).options
    with pytest.raises(UsageError, match="expected dim < 12, the rank of the training features"):
        residual(HEAD, TRAIN, dim=12)


@pytest.mark.parametrize("dim", [1, 4, 12])
def test_neco_is_scikit_learns_share_of_the_principal_space(dim: int) -> None:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(TRAIN.numpy())
    plane = PCA(dim).fit(scaler.transform(TRAIN.numpy()))
    z = scaler.transform(TEST.numpy())
    expected = -np.linalg.norm(plane.transform(z), axis=1) / np.linalg.norm(z, axis=1)
    found = neco(HEAD, TRAIN, dim=dim)
    assert found.options == {"dim": dim}
    np.testing.assert_allclose(found.score(TEST).numpy(), expected, rtol=1e-9)


def test_necos_dimension_is_a_hundred_but_at_most_half_the_rank() -> None:
    assert neco(HEAD, TRAIN, dim=None).options == {"dim": D // 2}
    assert neco(HEAD, normal(1, 300, 250), dim=None).options == {"dim": 100}
    assert neco(HEAD, normal(1, 61, 250), dim=None).options == {"dim": 30}
    assert neco(HEAD, TRAIN[:1], dim=None).options == {"dim": 1}


def test_neco_does_not_depend_on_units_nor_on_dead_features() -> None:
    expected = neco(HEAD, TRAIN, dim=5).score(TEST)
    scale, shift = normal(3, D).abs() + 0.1, 5 * normal(4, D)
    found = neco(HEAD, TRAIN * scale + shift, dim=5).score(TEST * scale + shift)
    torch.testing.assert_close(found, expected)
    rounding = torch.tensor([0.1, math.nextafter(0.1, 1.0)], dtype=torch.float64)
    dead = [torch.cat([z, rounding[torch.arange(len(z)) % 2, None]], 1) for z in (TRAIN, TEST)]
    torch.testing.assert_close(neco(HEAD, dead[0], dim=5).score(dead[1]), expected)
