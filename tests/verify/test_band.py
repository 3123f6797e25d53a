"""Bands of Gram matrices against the matrices written out, and proofs of what is above them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from greg_cert.verify.graph.ops import Conv
from greg_cert.verify.operators.band import Band, gram_band, is_positive

# (C, O), image, kernel, stride, padding, dilation, groups
CASES = {
    "plain": ((3, 5), (8, 8), (3, 3), 1, 1, 1, 1),
    "stride, not square": ((3, 5), (9, 7), (4, 4), 2, 1, 1, 1),
    "unread rows": ((2, 4), (6, 5), (3, 3), 3, 0, 1, 1),
    "groups": ((4, 4), (6, 6), (3, 3), 2, 1, 1, 2),
    "depthwise": ((4, 4), (5, 5), (3, 3), 1, 1, 1, 4),
    "dilation": ((3, 2), (7, 7), (3, 3), 1, 2, 2, 1),
    "narrow": ((2, 3), (2, 2), (3, 3), 1, 1, 1, 1),
    "one pixel": ((3, 4), (1, 1), (1, 1), 1, 0, 1, 1),
    "a column": ((2, 3), (5, 1), (3, 1), 1, (1, 0), 1, 1),
    "a row": ((2, 3), (1, 6), (1, 3), 1, (0, 1), 1, 1),
    "wide border": ((4, 6), (5, 5), (1, 1), 1, 2, 1, 1),
    "large kernel": ((1, 8), (12, 12), (5, 5), 3, 2, 1, 1),
}


def setting(name: str) -> tuple[Conv, Tensor, Tensor]:
    (inputs, outputs), image, kernel, stride, padding, dilation, groups = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    weight = torch.randn(outputs, inputs // groups, *kernel, generator=generator).double()
    pads = padding if isinstance(padding, tuple) else (padding, padding)
    op = Conv(
        weight,
        torch.zeros(outputs).double(),
        (inputs, *image),
        (stride, stride),
        pads,
        (dilation, dilation),
        groups,
    )
    rows, columns = (
        torch.rand(shape, generator=generator, dtype=torch.float64)
        for shape in (op.output_shape, op.input_shape)
    )
    return op, rows, columns


def written_out(op: Conv, band: Band, rows: Tensor, columns: Tensor) -> Tensor:
    """The Gram matrix, coordinates in the order (row, column, channel)."""
    size = math.prod(op.input_shape)
    units = torch.eye(size, dtype=torch.float64).reshape(size, *op.input_shape)
    settings = (op.stride, op.padding, op.dilation, op.groups)
    matrix = torch.nn.functional.conv2d(units, op.weight, None, *settings).flatten(1).T
    matrix = rows.flatten().unsqueeze(1) * matrix * columns.flatten()
    gram = matrix.T @ matrix if band.by_inputs else matrix @ matrix.T
    order = torch.arange(len(gram)).reshape(band.shape).permute(1, 2, 0).flatten()
    return gram[order][:, order]


def unpacked(packed: Tensor) -> Tensor:
    size, diagonals = packed.shape
    found = torch.zeros(size, size, dtype=torch.float64)
    for d in range(diagonals):
        found.diagonal(-d).copy_(packed[: size - d, d])
    return found


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_band_is_the_whole_gram_matrix(name: str) -> None:
    op, rows, columns = setting(name)
    for band in Band.both(op):
        gram = written_out(op, band, rows, columns)
        found = gram_band(op, band, rows, columns)
        assert found.shape == (band.size, band.width + 1)
        torch.testing.assert_close(unpacked(found), gram.tril(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_is_above_the_largest_eigenvalue_is_proven_and_nothing_below(name: str) -> None:
    op, rows, columns = setting(name)
    for band in Band.both(op):
        largest = float(torch.linalg.eigvalsh(written_out(op, band, rows, columns))[-1])
        packed = gram_band(op, band, rows, columns)
        assert is_positive(packed, largest * (1 + 1e-6))
        assert not is_positive(packed, largest * (1 - 1e-6))
        assert not is_positive(packed, math.nan)


def test_the_work_is_that_of_a_band() -> None:
    op = Conv(
        torch.ones(16, 16, 3, 3).double(), torch.zeros(16).double(), (16, 32, 32), (1, 1), (1, 1)
    )
    band = Band.of(op)
    assert band.size == 16384
    assert band.width == (2 * 32 + 2 + 1) * 16 - 1
    assert band.fits
    wide = Conv(
        torch.ones(64, 64, 3, 3).double(), torch.zeros(64).double(), (64, 56, 56), (1, 1), (1, 1)
    )
    assert not Band.of(wide).fits
