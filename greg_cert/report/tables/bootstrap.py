"""Medians of bootstrap resamples, for the price of counting how often each sample was drawn."""

from __future__ import annotations

import math

import numpy as np

_ELEMENTS = 2**17  # of a block of resamples, so that it stays in the processor's cache
_WIDE = 8  # standard deviations of the rank of a resampled median that are looked at first


def resampled_medians(series: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Medians of several series over paired resamples.

    A resample draws n of the n samples with replacement, the same ones for every series. Equal
    seeds give the resamples, and so the medians, of `scipy.stats.bootstrap`, which sorts each of
    them; here the series are sorted once, and only the samples near their medians are looked at.

    Args:
        series: (S, n), without NaN.
        resamples: how many, B.
        seed: of numpy's generator.

    Returns:
        (B, S) medians.
    """
    count, n = series.shape
    order = series.argsort(axis=1, kind="stable")
    sorted_series = np.take_along_axis(series, order, axis=1)
    rng = np.random.default_rng(seed)
    # The number drawn below the median has deviation √n/2.
    half = math.ceil(_WIDE * math.sqrt(n) / 2) + 1
    window = max(0, n // 2 - half), min(n, n // 2 + half)
    below = np.zeros((n, count), dtype=np.float32)
    for s in range(count):
        below[order[s, : window[0]], s] = 1
    block = max(1, _ELEMENTS // n)
    found = []
    for begin in range(0, resamples, block):
        rows = min(block, resamples - begin)
        drawn = rng.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        less = (counts.astype(np.float32) @ below).astype(np.int64)  # exact below 2^24
        medians = np.empty((rows, count))
        for s in range(count):
            medians[:, s] = _medians(sorted_series[s], order[s], counts, less[:, s], window)
        found.append(medians)
    return np.concatenate(found)


def _medians(
    values: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    less: np.ndarray,
    window: tuple[int, int],
) -> np.ndarray:
    """Median of each resample of one series, (B,).

    Args:
        values: (n,) the series, rising.
        order: (n,) the samples in that order.
        counts: (B, n) how often each sample was drawn.
        less: (B,) how many of those drawn come before the window.
        window: ranks that the median most likely lies between.
    """
    low, high = window
    upto = less[:, None] + counts[:, order[low:high]].cumsum(axis=1)
    middle = (len(order) - 1) // 2, len(order) // 2  # ranks within a resample
    if low > 0 and ((less > middle[0]) | (upto[:, -1] <= middle[1])).any():
        return _medians(values, order, counts, np.zeros_like(less), (0, len(order)))
    ends = [values[low + (upto > rank).argmax(axis=1)] for rank in middle]
    found: np.ndarray = np.mean(ends, axis=0)
    return found
