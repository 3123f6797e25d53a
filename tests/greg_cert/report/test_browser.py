"""The page in a real browser: it fits, asks for nothing, runs nothing, shows names as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import PROGRAM, Browser, Tab

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import SamplePicture, write_pictures
from greg_cert.report import load_results
from greg_cert.report.wording import one_line

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium on PATH")

HOSTILE = {
    "script": "<script>document.title='broken'</script>",
    "quotes": "\"'><img src=x onerror=\"document.title='broken'\">",
    "style": "</style></title></pre><script>document.title='broken'</script>",
    "directions": "safe\u202egnp.exe\u2066 \u200b\u0000\u0007 end",
    "long": "a" * 300 + " " + "b/" * 200,
}
CONFIG = "seed: 5\ndata:\n  seed: 11\n  ood:\n  - seed: 12\n"
OPEN = "document.querySelectorAll('details').forEach(part => part.open = true)"
TEXT = "document.body.innerText.replace(/\\s+/g, ' ')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


def pictures_of(frames: list[Any], dataset: str = "") -> list[SamplePicture]:
    """A picture of every row, the attacked one beyond [0, 1]; no attack where the row has none."""
    pictures = []
    for frame in frames:
        for row in frame.to_dict("records"):
            clean = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
            found = np.isfinite(row["radius_attack"])
            delta = np.full((1, 8, 8), row["radius_attack"] / 8, np.float32) if found else None
            after = (row["threshold"] + 0.01, 7) if found else (float("nan"), -1)
            numbers = (row["threshold"], row["score"])
            key = (row["run"], dataset, row["index"])
            pictures.append(
                SamplePicture(*key, *numbers, clean, delta, row["radius_attack"], *after)
            )
    return pictures


def manifest(seed: int = 5) -> dict[str, Any]:
    return {
        "created": "2025-01-01T00:00:00+00:00",
        "command": f"greg-cert train configs/a.yaml --set seed={seed}",
        "device": "cuda",
        "processes": 4,
        "git_commit": "feedc0de0123",
        "seed": seed,
        "versions": {"torch": "2.14.9"},
        "data": {"train": "ab" * 32, "ood/faces": "cd" * 32},
        "split_sizes": {"train": 1169, "ood/faces": 100},
        "stages": [{"method": "ce", "m_in": None}, {"method": "greg+", "m_in": -16.25}],
    }


@pytest.fixture(scope="module")
def usual(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with an OOD side, pictures, class names and all that is recorded of them."""
    folder = tmp_path_factory.mktemp("usual") / "v"
    frames = made.realistic(40, found=0.9)
    summary = made.summary_of(frames, baseline="energy")
    summary["classes"] = [f"kind {k}" for k in range(10)]
    summary["provenance"] |= {
        "settings": {"samples": 40, "max_radius": 2.0},
        "runs": {"energy": manifest(), "greg+": manifest(6)},
        "weights": {"energy": "ef" * 32},
        "configs": dict.fromkeys(("energy", "greg+"), CONFIG),
    }
    made.write(folder, frames, summary)
    ood = [
        made.ood_of(run, f"set {k}", np.linspace(0.1, 0.3, 8), np.linspace(0.2, 0.5, 8))
        for run in ("energy", "greg+")
        for k in range(9)
    ]
    made.write_ood(folder, ood, [made.scores_of(frame) for frame in ood])
    pictures = pictures_of(frames)
    for frame in ood:
        pictures += pictures_of([frame], frame["dataset"].iloc[0])
    write_pictures(folder / PICTURES, pictures)
    page = folder / "report.html"
    page.write_text(made.html_of(load_results(folder), title="Title"), encoding="utf-8")
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_asks_for_nothing_and_complains_of_nothing(
    usual: Path, browser: Browser, width: int, scheme: str
) -> None:
    tab = Tab(browser, usual, width=width, scheme=scheme)
    assert tab.overflow() == []
    tab.evaluate(OPEN)
    assert tab.overflow() == []
    assert tab.evaluate("innerWidth") == width
    assert tab.requests == []
    assert tab.complaints == []
    broken = "[...document.images].filter(image => !image.naturalWidth).length"
    assert tab.evaluate(broken) == 0
    assert tab.evaluate("document.images.length") > 100
    light = "getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)'"
    assert tab.evaluate(light) == (scheme == "light")
    assert contrast(tab) >= 4.5
    tab.close()


def contrast(tab: Tab) -> float:
    """The least contrast of text with the page, as WCAG 2 defines it."""
    colours = tab.evaluate(
        "[...document.querySelectorAll('p, td, dt, dd, figcaption, h1, h2, summary')]"
        ".map(e => getComputedStyle(e).color)"
    )
    back = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    values = (luminance(colour) for colour in set(colours))
    return min((max(v, back) + 0.05) / (min(v, back) + 0.05) for v in values)


def luminance(colour: str) -> float:
    parts = [int(c) / 255 for c in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_a_page_that_does_not_fit_or_reaches_out_is_noticed(
    browser: Browser, tmp_path: Path, usual: Path
) -> None:
    """That the checks above can fail: on the same page with something wrong in it."""
    page = usual.read_text(encoding="utf-8")
    wide = page.replace("</h1>", f"</h1><p style='width:2000px'>{'x' * 99}</p>", 1)
    (tmp_path / "wide.html").write_text(wide, encoding="utf-8")
    tab = Tab(browser, tmp_path / "wide.html", width=390)
    assert tab.overflow()
    tab.close()
    more = "</h1><script>document.title='broken'</script><img src='https://invalid.invalid/x'>"
    (tmp_path / "reaching.html").write_text(page.replace("</h1>", more, 1), encoding="utf-8")
    tab = Tab(browser, tmp_path / "reaching.html", width=1280)
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)
    assert tab.evaluate("document.title") == "Title"  # the policy held
    tab.close()


def test_what_made_the_numbers_is_on_the_page(usual: Path, browser: Browser) -> None:
    tab = Tab(browser, usual, width=1280)
    order = tab.evaluate("[...document.querySelectorAll('h2')].map(title => title.innerText)")
    assert order[:3] == ["Runs", "What these numbers prove", "Figures"]
    assert order[-1] == "Provenance"
    tab.evaluate(OPEN)
    words = tab.evaluate(TEXT)
    for said in (
        "greg-cert verify runs/greg+ --baseline runs/energy",
        "greg-cert train configs/a.yaml --set seed=5",
        "greg-cert train configs/a.yaml --set seed=6",
        "seed = 5, data.seed = 11, data.ood.0.seed = 12",
        *("0123abcd", "feedc0de0123", "cuda, 4 processes", "2025-01-01", "torch 2.14.9"),
        *("1169 images", *(two * 32 for two in ("ab", "cd", "ef")), "max_radius: 2.0"),
        "method greg+, m_in -16.25",
        *("kind 3 (3)", "rejected, predicted kind 7 (7)", "No attack found within 2,"),
        *("Clipped for display: ", "change \u00d7"),
    ):
        assert said in words, said
    tab.close()


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_text_and_nothing_else(
    made: Any, browser: Browser, tmp_path: Path, kind: str
) -> None:
    name = HOSTILE[kind]
    runs = (f"{name} one", f"{name} two")
    folder = tmp_path / "v"
    frames = made.realistic(20, names=runs)
    summary = made.summary_of(frames, baseline=runs[0])
    summary["classes"] = [f"{name} {k}" for k in range(10)]
    summary["methods"] = [name]
    summary["provenance"] |= {
        "command": name,
        "device": name,
        "git_commit": name,
        "versions": {name: name},
        "settings": {name: name},
        "configs": {runs[0]: f"{name}\n", runs[1]: json.dumps({"seed": name})},
        "runs": {runs[0]: {**manifest(), "command": name, "data": {name: name}, name: name}},
    }
    made.write(folder, frames, summary)
    ood = [made.ood_of(run, f"{name} set", [0.1, 0.2], [0.2, 0.4]) for run in runs]
    made.write_ood(folder, ood, [made.scores_of(frame) for frame in ood])
    pictures = pictures_of(frames) + pictures_of(ood, f"{name} set")
    write_pictures(folder / PICTURES, pictures)
    page = folder / "report.html"
    page.write_text(made.html_of(load_results(folder), title=f"{name} title"), encoding="utf-8")
    tab = Tab(browser, page, width=390)
    tab.evaluate(OPEN)
    assert tab.evaluate("document.title") == one_line(f"{name} title")  # as written, by no script
    assert tab.requests == []
    assert tab.complaints == []
    assert tab.evaluate("document.querySelectorAll('script, iframe, object, link').length") == 0
    sources = "[...document.images].every(image => image.src.startsWith('data:image/png;base64,'))"
    assert tab.evaluate(sources)
    assert tab.evaluate("document.querySelectorAll('style').length") == 1
    named = "[...document.querySelectorAll('table.runs tbody th')].map(cell => cell.textContent)"
    assert {one_line(run) for run in runs} <= set(tab.evaluate(named))
    titles = "[...document.querySelectorAll('section > h3')].map(title => title.textContent)"
    assert tab.evaluate(titles) == [one_line(run) for run in runs]
    cells = tab.evaluate("[...document.querySelectorAll('.sample dd')].map(e => e.textContent)")
    assert f"{one_line(f'{name} 3')} (3)" in cells
    words = tab.evaluate("document.body.textContent")
    assert not set(words) & set("\u202e\u2066\u0000\u0007\u200b")
    assert tab.overflow() == []
    tab.close()
