import subprocess
import sys

import pytest
from PIL import Image

from greg_cert.errors import DataError, UsageError
from greg_cert.files import write_atomic
from greg_cert.report import FigureStyle, write_report

FIGURES = {"radius_histogram", "certified_fraction", "bracket", "gradient_vs_certified"}


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "v"
    return made.write(path, made.realistic(60), baseline="energy")


@pytest.fixture(scope="module")
def other(folder):
    """Another process that writes the same report, started early and waited for at the end."""
    out = folder.parent / "deep" / "out"
    code = (
        "import sys; from pathlib import Path; from greg_cert.report import write_report\n"
        f"write_report(Path({str(folder)!r}), Path({str(out)!r}))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe) as process:
        yield process, out
        process.kill()


@pytest.fixture(scope="module")
def files(folder, other):
    return write_report(folder)


def test_everything_is_written_and_nothing_else(folder, files):
    assert files.folder == folder / "report"
    assert set(files.figures) == FIGURES
    assert sorted(files) == sorted(files.folder.iterdir())
    for figure in files.figures.values():
        with Image.open(figure.png) as image:
            assert image.width == 975  # 3.25 in at 300 dpi
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert "Software" not in image.info
        data = figure.pdf.read_bytes()
        assert data.startswith(b"%PDF")
        assert b"CreationDate" not in data
        assert b"/Type3" not in data


def test_out_that_is_a_file_is_refused(folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out"):
        write_report(folder, tmp_path / "out", style=FigureStyle(dpi=60))
    assert (tmp_path / "out").read_text() == "mine"


def test_a_wrong_image_is_refused_before_anything_is_written(folder, tmp_path):
    images = {("energy", k): [[0, 1]] for k in range(100, 160)}
    with pytest.raises(DataError, match="image"):
        write_report(folder, tmp_path / "out", images=images)
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "x.txt", "old")

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_process_gives_equal_bytes_without_torch_pyplot_or_print(files, other):
    process, out = other
    assert process.communicate(timeout=120) == (b"", b"")
    assert process.returncode == 0
    for path in files:
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name
