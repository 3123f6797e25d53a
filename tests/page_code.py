"""The code of a documentation page: files and entries of tables that it adds, and uses of them."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(
    r"(?:^In `(?P<file>[^`]+)`(?:, in `(?P<table>\w+)`)?:\n\n)?^```python\n(?P<code>.*?)^```$",
    re.M | re.S,
)


def blocks(page: str) -> list[re.Match[str]]:
    """Blocks of Python of a page, with the groups `file`, `table` (each may be None) and `code`."""
    return list(_BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")))
