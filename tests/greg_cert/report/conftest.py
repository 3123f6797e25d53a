import importlib.util
from pathlib import Path

import pytest

from greg_cert.report.figures.registry import FIGURES


@pytest.fixture(scope="session")
def made():
    """The functions of made.py; `--import-mode=importlib` puts no test folder on the path."""
    spec = importlib.util.spec_from_file_location("made", Path(__file__).with_name("made.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(made, tmp_path):
    """Two runs of five samples, the last one rejected; the baseline is "a"."""
    frames = [
        made.frame_of("a", [0.1, 0.2, 0.3, 0.0, 9], [0.2, 0.5, 0.4, 0.6, 9], [4]),
        made.frame_of("b", [0.2, 0.4, 0.6, 0.1, 9], [0.4, 0.5, float("inf"), 0.2, 9], [4]),
    ]
    return made.write(tmp_path / "small", frames, baseline="a")


@pytest.fixture
def one_figure(monkeypatch):
    """Of the figures that every report has, the first alone; drawing all of them takes seconds."""
    monkeypatch.setattr("greg_cert.report.figures.registry.FIGURES", FIGURES[:1])
