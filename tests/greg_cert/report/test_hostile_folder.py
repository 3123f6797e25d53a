"""Verification folders of others: each is read and shown, or refused in one line."""

from __future__ import annotations

import io
import json
import shutil

import pandas as pd
import pytest
from hostile import OBSTACLES, VALUES, changed, damaged, examples, put_obstacle, works_or_refuses
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from greg_cert.certificates.results import load_results
from greg_cert.cli import screen
from greg_cert.digests import sealed
from greg_cert.errors import UsageError
from greg_cert.frames import frame_bytes
from greg_cert.report.figures.style import FigureStyle
from greg_cert.report.page.pictures import kept_pictures
from greg_cert.report.tables.comparison import compare
from greg_cert.report.tables.forms import markdown_table, summary_table


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """A folder with every file that is read."""
    frames = made.realistic(n=8)
    sound = made.write(tmp_path_factory.mktemp("hostile") / "sound", frames)
    ood = [made.ood_of(str(f["run"].iloc[0]), "mnist", [0.1, 0.0], [0.2, 0.3]) for f in frames]
    made.write_ood(sound, ood, [made.scores_of(frame) for frame in ood])
    made.write_test_scores(sound, [made.all_scores_of(f, ("mnist",), 20) for f in frames])
    load_results(sound)
    return sound


def shown(folder) -> str:
    """Everything that a terminal is given of a folder."""
    results = load_results(folder)
    kept_pictures(results)
    markdown_table(results, compare(results))
    console = Console(file=io.StringIO(), width=80)
    console.print(screen._Visible(summary_table(results)), soft_wrap=True)
    return console.file.getvalue()


@examples(200)
@given(st.data())
def test_folders_with_odd_files(folder, data):
    odd = folder.parent / "odd"
    shutil.rmtree(odd, ignore_errors=True)
    shutil.copytree(folder, odd)
    names = sorted(path.name for path in folder.iterdir())
    path = odd / data.draw(st.sampled_from([*names, *["summary.json"] * 3]))
    kind = data.draw(st.sampled_from(("damage", "change", "change", "obstacle")))
    if kind == "obstacle":
        put_obstacle(path, data.draw(st.sampled_from(OBSTACLES)))
    elif kind == "change" and path.suffix == ".json":
        document = data.draw(changed(json.loads(path.read_text())))
        path.write_text(json.dumps(sealed(document) if isinstance(document, dict) else document))
    elif kind == "change":
        frame = pd.read_parquet(path)
        column = data.draw(st.sampled_from(list(frame.columns)))
        value, row = data.draw(VALUES), data.draw(st.integers(0, len(frame) - 1))
        cells = frame[column].astype(object)
        cells.iloc[row] = value if not isinstance(value, (list, dict)) else str(value)[:9]
        whole = [cells.iloc[row]] * len(frame) if data.draw(st.booleans()) else cells.tolist()
        try:
            path.write_bytes(frame_bytes(frame.assign(**{column: whole})))
        except (ValueError, TypeError, OverflowError):  # no column of parquet
            return
    else:
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = works_or_refuses(lambda: shown(odd))
    assert found is None or set(found) <= set(filter(str.isprintable, found)) | {"\n"}


@pytest.mark.parametrize(
    ("field", "style"),
    [
        ("width", {"width": float("inf")}),
        ("height", {"height": float("nan")}),
        ("font_size", {"font_size": 1e9}),
        ("dpi", {"dpi": 10**9}),
        ("dpi", {"dpi": 2400, "width": 50.0}),
        ("bins", {"bins": 10**9}),
    ],
)
def test_figures_that_no_page_holds(field, style):
    with pytest.raises(UsageError, match=f"^figure {field}: expected at "):
        FigureStyle(**style)


def test_what_a_terminal_would_obey_is_shown(made, tmp_path):
    frames = [f.assign(run=f["run"] + "\x1b[31m\x07\nx\u202e") for f in made.realistic(n=8)]
    said = shown(made.write(tmp_path / "sound", frames))
    assert set(said) <= set(filter(str.isprintable, said)) | {"\n"}
    assert "[31m" in said
