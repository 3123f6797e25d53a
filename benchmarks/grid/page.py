"""docs/results.md from the cells."""

from __future__ import annotations

from pathlib import Path


def write_page(results: Path, page: Path) -> None:
    """Write the tables of the page below its mark."""
