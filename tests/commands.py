"""`greg-cert` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The finished process; warnings are errors in it."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "greg_cert", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
