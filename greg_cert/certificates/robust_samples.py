"""The most and the least robust samples of a table of certificates: those that reports show."""

from __future__ import annotations

import pandas as pd

from greg_cert.certificates.format import REJECTED

LISTED = 10
"""Samples in each of the two lists of a run's ID samples."""

OOD_LISTED = 3
"""Samples in each of the two lists of one OOD test set."""


def most_and_least_robust(
    rows: pd.DataFrame, count: int = LISTED
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The samples with the largest and those with the smallest certified radius.

    Samples on the wrong side from the start have nothing to certify and are left out; ties are
    broken by the attack radius, then by the index. Each part begins with its most extreme sample.

    Args:
        rows: certificates of one run on one set of samples, with the columns `status`,
            `radius_certified`, `radius_attack` and `index`.
        count: samples of each part, at most; a small table has some in both.
    """
    kept = rows[rows["status"] != REJECTED]
    keys = ["radius_certified", "radius_attack", "index"]
    most = kept.sort_values(keys, ascending=[False, False, True], kind="stable").head(count)
    return most, kept.sort_values(keys, kind="stable").head(count)


def shown_samples(rows: pd.DataFrame, count: int = LISTED) -> pd.DataFrame:
    """The rows of both parts of `most_and_least_robust`, each once, by ascending index."""
    both = pd.concat(most_and_least_robust(rows, count))
    return both.drop_duplicates("index").sort_values("index", kind="stable")
