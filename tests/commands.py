"""`greg-cert` in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[1]
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
_PATIENCE = 600.0  # seconds

# Forks of a process that has imported what others wrote, which takes seconds. The package itself
# is imported in each, as the user's command does.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("lightning_fabric", "matplotlib.backends.backend_pdf", "matplotlib.figure", "pandas"),
        *("pyarrow.parquet", "pydantic", "rich.progress", "safetensors.torch", "scipy.stats"),
        *("sklearn.datasets", "torch.utils.tensorboard", "typer", "yaml"),
    ]
)


def run_command(*arguments: str, cwd: Path, anew: bool = False) -> subprocess.CompletedProcess[str]:
    """The finished process; warnings are errors in it.

    Args:
        arguments: of the command.
        cwd: where it runs.
        anew: start an interpreter, which imports everything, instead of a fork.
    """
    if anew:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "greg_cert", *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
            env=_ENVIRONMENT,
        )
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_run, args=(arguments, cwd, files))
        process.start()
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"greg-cert {' '.join(arguments)} does not end")
        code = process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(arguments, code, *(f.read_text("utf-8") for f in files))


def exit_code(*arguments: str) -> int:
    """The exit code of a command that runs in this process, which spares it seconds of imports."""
    import pytest

    from greg_cert.cli import main

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["greg-cert", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def error_of(said: str) -> str:
    """The error in what a command said on standard error, of which there is one."""
    (line,) = [line for line in said.splitlines() if line.startswith("greg-cert: error: ")]
    return line


def speak_into(stdout: Path, stderr: Path) -> None:
    """Let all that this process says from now on go into files."""
    for number, file in enumerate((stdout, stderr), start=1):
        with file.open("w") as stream:
            os.dup2(stream.fileno(), number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)


def launched(processes: int) -> list[dict[str, str]]:
    """The environment of each of several processes as `torchrun` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(processes)
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "TORCHELASTIC_RUN_ID": "none"}
    shared |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(processes)]


def _run(arguments: tuple[str, ...], cwd: Path, files: list[Path]) -> None:
    """Run the command in this process, which has nothing else to do."""
    speak_into(*files)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    sys.argv = ["greg-cert", *arguments]
    warnings.simplefilter("error")
    import torch

    from greg_cert.cli import main

    torch.set_num_threads(1)
    main()
