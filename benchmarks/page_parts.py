"""Figures over seeds, and tables of them, as pages show them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [row(heads), row(["---"] * len(heads)), *map(row, rows)]


def row(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation; the value alone where there is one."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def folder_name(run: str) -> str:
    """Of a run, as part of a path."""
    return run.replace(", ", "-").replace(" ", "-")
