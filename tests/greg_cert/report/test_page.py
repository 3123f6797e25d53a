import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from greg_cert.certificates.format import PICTURES
from greg_cert.certificates.picture_file import SamplePicture, write_pictures
from greg_cert.errors import DataError
from greg_cert.report import load_results
from greg_cert.report.figures.registry import FIGURES
from greg_cert.report.latex.figures import full_captions
from greg_cert.report.page.pictures import amplified, kept_pictures, outside, png_of
from greg_cert.report.tables.forms import markdown_table


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that elements close in order."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(raw)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in {"img", "meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def page(made, tmp_path):
    """The page of some frames."""

    def build(frames, summary=None, *, images=None, title="T", **options):
        results = load_results(made.write(tmp_path / "v", frames, summary, **options))
        return Page(made.html_of(results, images=images, title=title))

    return build


def test_page_is_whole_and_needs_nothing_else(made, page):
    found = page(made.realistic(60), baseline="energy")
    assert "http://" not in found.raw
    assert "https://" not in found.raw
    assert "<script" not in found.raw
    assert not {"link", "script", "iframe", "object"} & set(found.tags)
    assert not [a for a in found.attributes if a[1] in {"href", "srcset", "onclick"}]
    sources = [value for tag, key, value in found.attributes if (tag, key) == ("img", "src")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    captions = [value for tag, key, value in found.attributes if (tag, key) == ("img", "alt")]
    assert all("proof" in caption or "proven" in caption for caption in captions)
    for word in ("which is larger", "proof", "upper bound", "estimate", "torch 2.15.0", "0123abcd"):
        assert word in found.text
    for word in ("greg-cert verify runs/greg+", "lambda: 1.0", "sha256", "not clipped"):
        assert word in found.text


def test_names_labels_and_configs_cannot_inject_markup(made, page, tmp_path):
    name = '<script>alert("x")</script>'
    frame = made.frame_of(name, [0.1, 0.2, 0.3], [0.2, 0.4, 0.6])
    frame["label"] = "<img src=x onerror=x>"
    summary = made.summary_of([frame])
    summary["provenance"]["configs"] = {name: "</pre><script>bad()</script>"}
    summary["provenance"]["command"] = "<b>cmd</b>"
    summary["provenance"]["versions"] = {"<i>": "<u>"}
    found = page([frame], summary, title="<h1>T</h1>")
    assert "<script" not in found.raw
    assert not {"script", "b", "i", "u"} & set(found.tags)
    assert found.tags.count("img") == 4
    assert found.tags.count("h1") == 1
    assert name in found.text
    assert "</pre><script>bad()</script>" in found.text
    results = load_results(tmp_path / "v")
    assert "<script" not in markdown_table(results, [])


def test_statement_by_baseline(made, page):
    frames = made.realistic(60)
    text = page(frames, baseline="greg+").text
    assert "which is smaller: 0." in text
    assert "No attack contradicted a certificate." in text
    text = page(frames, minimal=True).text
    assert "no baseline to compare with" in text
    assert "not recorded" in text
    same = [frames[0], frames[0].assign(run="two")]
    assert "no clear difference" in page(same, baseline="energy").text


def test_statement_where_attacks_failed(made, page):
    inf = float("inf")
    frames = [
        made.frame_of("some", [0.1, 0.2, 0.3], [0.2, inf, 0.6]),
        made.frame_of("none", [0.1, 0.2, 0.3], [inf] * 3),
    ]
    text = page(frames).text
    assert "50 % for “some” (where an attack was found: 2 of 3)" in text
    assert "Nothing bounds the radii of “none” from above" in text


def test_contradicted_certificates_raise_an_alarm(made, page):
    found = page([made.frame_of("x", [0.3, 0.1], [0.2, 0.4])])
    assert "must not be relied on" in found.text
    assert ("p", "class", "result alarm") in found.attributes
    assert ("td", "class", "bad") in found.attributes


def test_other_side_and_clipped_ball_are_named(made, page):
    frames = [f.assign(score=2 * f["threshold"] - f["score"]) for f in made.realistic(20)]
    text = page(frames, made.summary_of(frames) | {"side": "ood", "clip": True}).text
    for word in ("OOD test samples", "ball clipped to [0,1]", "accepted as ID"):
        assert word in text


def test_sample_images_are_embedded_pixel_for_pixel(made, page):
    grey = np.linspace(0, 1, 64).reshape(8, 8)
    colour = np.dstack([grey, grey, 1 - grey]).astype(np.float32)
    images = {("a", 100): grey, ("a", 101): (colour, colour + 0.5), ("a", 999): grey}
    found = page([made.frame_of("a", [0.1, 0.2, 0.3], [0.2, 0.4, 0.6])], images=images)
    # Each of the three samples stands in both lists: one without an image, one with one, and one
    # with an attack and the change beside it.
    assert found.tags.count("img") == 4 + 2 * (1 + 3)
    assert "image-rendering: pixelated" in found.raw
    with Image.open(io.BytesIO(png_of(grey))) as image:
        np.testing.assert_array_equal(np.asarray(image), np.rint(255 * grey))
    with Image.open(io.BytesIO(png_of(colour + 0.5))) as image:
        assert image.size == (8, 8)
        assert np.asarray(image).max() == 255


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((8, 8), dtype=np.uint8),
        np.zeros((3, 8, 8)),
        np.zeros(8),
        np.zeros((0, 8)),
        np.full((8, 8), np.nan),
        (np.zeros((8, 8)),),
    ],
)
def test_wrong_images_are_refused(made, page, picture):
    with pytest.raises(DataError, match="image"):
        page([made.frame_of("a", [0.1], [0.2])], images={("a", 100): picture})


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.0, 1), (1e-12, 1), (0.5, 1), (0.3, 1), (0.06, 5), (2.0, 0.2)]
)
def test_a_change_is_amplified_as_far_as_it_can_be_shown(largest, factor):
    delta = np.linspace(-largest, largest, 64).reshape(8, 8)
    shown, found = amplified(delta)
    assert found == pytest.approx(factor)
    np.testing.assert_allclose(shown, 0.5 + found * delta)
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_clipping_is_counted_where_it_can_be_seen():
    assert outside(np.array([[-1e-4, 0.5, 1.001, 1.0]])) == 0
    assert outside(np.array([[-0.01, 0.5, 1.01, 1.0]])) == 2


def test_a_large_image_is_reduced_and_a_small_one_is_not():
    for side, shown in ((192, 192), (224, 192)):
        with Image.open(io.BytesIO(png_of(np.full((side, side, 3), 0.5)))) as image:
            assert image.size == (shown, shown)
            assert image.getextrema() == ((128, 128),) * 3


def test_pictures_of_other_results_are_left_out(made, tmp_path):
    """Those of another threshold, score or attack than the table's, or of a sample it lacks."""
    frame = made.frame_of("a", [0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.6, 0.8])
    results = load_results(made.write(tmp_path / "v", [frame]))
    clean, delta = np.zeros((1, 8, 8), np.uint8), np.full((1, 8, 8), 0.2, np.float32)
    right = {"run": "a", "dataset": "", "threshold": -13.7, "score": -15.0, "clean": clean}
    right |= {"difference": delta, "attacked_score": -13.6, "attacked_class": 3}
    pictures = [
        SamplePicture(**right, index=100, radius=0.2),
        SamplePicture(**right | {"score": -15.1}, index=101, radius=0.4),
        SamplePicture(**right | {"threshold": -13.0}, index=102, radius=0.6),
        SamplePicture(**right, index=103, radius=0.7),
        SamplePicture(**right, index=104, radius=0.2),
        SamplePicture(**right | {"dataset": "faces"}, index=100, radius=0.2),
    ]
    write_pictures(results.folder / PICTURES, pictures)
    kept = kept_pictures(results)
    assert list(kept) == [("a", "", 100)]
    np.testing.assert_allclose(kept["a", "", 100].attacked, 0.2)


def provenance(found):
    return found.text.partition("Provenance")[2]


def test_the_provenance_names_every_method_that_the_tables_hold(made, page):
    summary = {"method": "crown", "methods": ["crown"], "engine": "native"}
    found = provenance(page(made.realistic(20), **summary))
    held = "crown (proof), lipschitz (proof), gradient (estimate), attack (upper bound)"
    assert f"Methods {held}" in found
    assert "Certified radius the largest of crown" in found
    assert "Engine native" in found


def test_the_provenance_names_nothing_that_no_table_holds(made, page):
    frames = [f.assign(radius_lipschitz=np.nan) for f in made.realistic(20)]
    asked = {"methods": ["crown", "clever"], "engine": "native"}
    found = provenance(page(frames, **asked))
    assert "Methods crown (proof), gradient (estimate), attack (upper bound)" in found
    nothing = [made.frame_of("a", [0.0] * 4, [1.0] * 4).assign(radius_lipschitz=np.nan)]
    decided = [made.with_smoothing(nothing[0], ["accepted"] * 4, [0.1] * 4)]
    settings = {"sigma": 0.25, "n": 100, "alpha": 0.01}
    asked = {"methods": ["smoothing"], "engine": "native", "smoothing": settings}
    found = provenance(page(decided, **asked))
    assert "smoothing (probabilistic proof)" in found
    assert "Certified radius" not in found
    assert "Engine" not in found  # no bounds were computed


def test_each_score_is_named_where_runs_have_several(made, page, tmp_path):
    frames = made.realistic(20)
    summary = made.summary_of(frames)
    summary["runs"]["greg+"]["score"] = "max_logit"
    found = provenance(page(frames, summary))
    assert "Score energy: energy, greg+: maximum logit" in found
    results = load_results(tmp_path / "v")
    assert "scores: energy: energy, greg+: maximum logit;" in full_captions(results, FIGURES[:1])[0]
    for run in summary["runs"].values():  # none of them has that of the whole
        run["score"] = "max_logit"
    found = page(frames, summary).text
    assert "The score is the maximum logit, not the energy" in found
    assert "Score maximum logit" in provenance(page(frames, summary))


def test_what_a_merge_recorded_is_shown(made, page):
    summary = made.summary_of(made.realistic(20))
    summary["provenance"] |= {"seed": "0 / 3", "folders": {"energy": "/r/energy2"}}
    found = provenance(page(made.realistic(20), summary))
    assert "Seed 0 / 3" in found
    assert "Folder /r/energy2" in found
