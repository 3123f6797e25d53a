"""Bands of Gram matrices against the matrices written out, and proofs of what is above them."""

from __future__ import annotations

import math

import pytest
import torch
from layers import CONVOLUTIONS, LAYERS, conv, dense
from torch import Tensor

from greg_cert.verify.graph.ops import Conv
from greg_cert.verify.operators.band import Band, gram_band, is_positive


def setting(name: str) -> tuple[Conv, Tensor, Tensor]:
    """A layer, and factors of its rows and columns."""
    op = LAYERS[name]
    assert isinstance(op, Conv)
    generator = torch.Generator().manual_seed(len(name))
    rows, columns = (
        torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in (op.output_shape, op.input_shape)
    )
    return op, rows, columns


def written_out(op: Conv, band: Band, rows: Tensor, columns: Tensor) -> Tensor:
    """The Gram matrix, coordinates in the order (row, column, channel)."""
    matrix = rows.flatten().unsqueeze(1) * dense(op) * columns.flatten()
    gram = matrix.T @ matrix if band.by_inputs else matrix @ matrix.T
    order = torch.arange(len(gram)).reshape(band.shape).permute(1, 2, 0).flatten()
    return gram[order][:, order]


def unpacked(packed: Tensor) -> Tensor:
    size, diagonals = packed.shape
    found = torch.zeros(size, size, dtype=torch.float64)
    for d in range(diagonals):
        found.diagonal(-d).copy_(packed[: size - d, d])
    return found


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_band_is_the_whole_gram_matrix(name: str) -> None:
    op, rows, columns = setting(name)
    for band in Band.both(op):
        gram = written_out(op, band, rows, columns)
        found = gram_band(op, band, rows, columns)
        assert found.shape == (band.size, band.width + 1)
        torch.testing.assert_close(unpacked(found), gram.tril(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_what_is_above_the_largest_eigenvalue_is_proven_and_nothing_below(name: str) -> None:
    op, rows, columns = setting(name)
    for band in Band.both(op):
        largest = float(torch.linalg.eigvalsh(written_out(op, band, rows, columns))[-1])
        packed = gram_band(op, band, rows, columns)
        assert is_positive(packed, largest * (1 + 1e-6))
        assert not is_positive(packed, largest * (1 - 1e-6))
        assert not is_positive(packed, math.nan)


def test_the_work_is_that_of_a_band() -> None:
    band = Band.of(conv((16, 16, 3, 3), (16, 32, 32), padding=(1, 1)))
    assert band.size == 16384
    assert band.width == (2 * 32 + 2 + 1) * 16 - 1
    assert band.fits
    assert not Band.of(conv((64, 64, 3, 3), (64, 56, 56), padding=(1, 1))).fits
