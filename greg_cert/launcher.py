"""Which of several processes this is, before anything is imported that would know more."""

from __future__ import annotations

import os


def first_process() -> bool:
    """Whether this process is alone, or the first of those that a launcher started."""
    return (os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0") == "0"
