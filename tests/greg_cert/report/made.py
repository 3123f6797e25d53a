"""Verification folders made up for the tests, with numbers that a test can compute by itself."""

import json
from functools import partial, reduce
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from greg_cert.certificates.certificate_counts import id_side, ood_side
from greg_cert.digests import sealed
from greg_cert.errors import RunError
from greg_cert.frames import frame_bytes
from greg_cert.metrics import detection_metrics
from greg_cert.report import FigureStyle, load_results, summary_table
from greg_cert.report.figures.registry import figure_specs
from greg_cert.report.figures.render import drawn
from greg_cert.report.figures.style import SMALLEST_TYPE
from greg_cert.report.latex.tables import latex_table
from greg_cert.report.page.document import html_page
from greg_cert.report.page.pictures import given_pictures, kept_pictures, png_of
from greg_cert.report.tables.comparison import compare
from greg_cert.report.tables.forms import markdown_table


def frame_of(run, certified, attack, rejected=()):
    """One run's rows; `rejected` lists the positions whose radii become 0."""
    certified = np.array(certified, dtype=float)
    attack = np.array(attack, dtype=float)
    n = len(certified)
    wrong = np.isin(np.arange(n), list(rejected))
    certified[wrong], attack[wrong] = 0.0, 0.0
    status = np.where(wrong, "rejected", np.where(certified > 0, "certified", "undecided"))
    with np.errstate(divide="ignore"):
        norm = np.where(certified > 0, 2.0 / np.maximum(certified, 1e-9), 30.0)
    return pd.DataFrame(
        {
            "run": run,
            "method": "energy",
            "index": np.arange(n) + 100,
            "label": np.arange(n) % 10,
            "predicted": np.arange(n) % 10,
            "correct": True,
            "status": status,
            "score": -15.0 + wrong * 4.0,
            "threshold": -13.7,
            "gradient_norm": norm,
            "lipschitz": 2 * norm,
            "radius_gradient": 2.0 * certified,
            "radius_lipschitz": 0.5 * certified,
            "radius_certified": certified,
            "radius_attack": attack,
            "violation": certified > attack,
        }
    )


def summary_of(frames, *, norm=2.0, baseline=None, minimal=False, **more):
    """A summary that fits the frames; `minimal` keeps only the keys of the contract."""
    runs = {}
    for frame in frames:
        counted = id_side(frame)
        record = {
            "method": "energy",
            "id_accuracy": 0.981,
            "threshold": -13.7,
            "fpr95": 0.0123,
            "auroc": 0.9951,
            "samples": len(frame),
            "certified_radius": counted["certified_radius"],
            **{
                f"{name}_radius": {"median": counted[f"{name}_radius"]["median"]}
                for name in ("attack", "gradient", "lipschitz")
            },
            "violations": counted["violations"],
            "seconds": 4.2,
        }
        if not minimal:
            record["fpr95_ood_recall"] = 0.02
            record["ood"] = {"mnist": {"fpr95": 0.0123, "auroc": 0.9951}}
            record["status"] = counted["status"]
        runs[str(frame["run"].iloc[0])] = record
    summary = {"schema": 1, "norm": norm, "tpr": 0.95, "runs": runs}
    if not minimal:
        summary |= {
            "max_radius": 2.0,
            "side": "id",
            "clip": False,
            "baseline": baseline,
            "provenance": {
                "command": "greg-cert verify runs/greg+ --baseline runs/energy",
                "created": "2025-01-02T03:04:05+00:00",
                "versions": {"torch": "2.15.0", "greg-cert": "0.1.0"},
                "device": "cpu",
                "seed": 0,
                "git_commit": "0123abcd",
                "configs": {name: f"name: {name}\nlambda: 1.0\n" for name in runs},
            },
        }
    return summary | more


def ood_of(run, dataset, certified, attack, accepted=()):
    """One run's rows about one OOD set; `accepted` lists the positions on the wrong side clean."""
    frame = frame_of(run, certified, attack, accepted)
    frame.insert(1, "dataset", dataset)
    wrong = frame["status"] == "rejected"
    frame["score"] = np.where(wrong, -14.0, -8.0 + 0.01 * np.arange(len(frame)))
    return frame.drop(columns=["label", "correct"])


def scores_of(ood):
    """Score bounds and attacked scores at three radii that fit such frames."""
    known = ood[["run", "dataset", "index", "score"]]
    rows = pd.concat([known.assign(radius=r) for r in (0.05, 0.1, 0.2)], ignore_index=True)
    bound, attack = (rows["score"] - slope * rows["radius"] for slope in (20, 10))
    return rows.assign(score_bound=bound, score_attack=attack)


def write_ood(folder: Path, frames, scores=None) -> Path:
    """The folder with an OOD side beside its ID side, counted in the summary."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    for frame in frames:
        side = summary["runs"][frame["run"].iloc[0]].setdefault("ood_side", {})
        side[frame["dataset"].iloc[0]] = ood_side(frame)
    if frames:
        write_table(folder / "ood_certificates.parquet", frames)
    if scores is not None:
        write_table(folder / "ood_scores.parquet", scores)
    write_summary(folder, summary)
    return folder


def all_scores_of(frame, sets=("mnist", "svhn"), n=300, ood=None):
    """Scores of a whole test split and of OOD sets that fit a frame; gamma accepts most of ID.

    Those of the first OOD set fit its frame too, where there is one.
    """
    rng = np.random.default_rng(0)
    threshold = float(frame["threshold"].iloc[0])
    known = frame.set_index("index")["score"]
    index = np.arange(max(n, int(known.index.max()) + 1))
    scores = pd.Series(threshold - rng.gamma(4.0, 0.7, len(index)) + 0.6, index=index)
    scores[known.index] = known
    parts = [pd.DataFrame({"part": "test", "index": index, "score": scores.to_numpy()})]
    for k, name in enumerate(sets):
        far = threshold - 1.0 + rng.gamma(3.0 + 2 * k, 1.2, n)
        if ood is not None and k == 0:
            far[ood["index"]] = ood["score"]
        parts.append(pd.DataFrame({"part": f"ood/{name}", "index": np.arange(n), "score": far}))
    rows = pd.concat(parts, ignore_index=True)
    rows.insert(0, "run", frame["run"].iloc[0])
    return rows


def write_test_scores(folder: Path, scores) -> Path:
    """The folder, with the scores of all test samples beside its files and in the summary."""
    write_table(folder / "scores.parquet", scores)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    for frame in scores:
        parts = {part: rows["score"].to_numpy() for part, rows in frame.groupby("part")}
        test = parts.pop("test")
        record = summary["runs"][frame["run"].iloc[0]]
        record["test_tpr"] = float(np.mean(test <= record["threshold"]))
        record["ood"] = {
            part.removeprefix("ood/"): detection_metrics(test, values)
            for part, values in parts.items()
        }
        for metric in ("fpr95", "auroc", "fpr95_ood_recall"):
            values = [found[metric] for found in record["ood"].values()]
            record[metric] = float(np.mean(values)) if values else None
    write_summary(folder, summary)
    return folder


def write_summary(folder: Path, summary) -> None:
    """`summary.json` with the digest of what it holds."""
    (folder / "summary.json").write_text(json.dumps(sealed(summary)), encoding="utf-8")


def write_table(path: Path, frames) -> None:
    """One table of some frames, with the digest of what it holds."""
    path.write_bytes(frame_bytes(pd.concat(frames, ignore_index=True)))


def edit(folder: Path, name: str, change) -> None:
    """A file changed by someone who knows of digests: `change` is given what it holds.

    Of a table it returns the one to write; a document it changes in place.
    """
    path = folder / name
    if name.endswith(".parquet"):
        write_table(path, [change(pd.read_parquet(path))])
    else:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        write_summary(folder, content)


def at(row, **values):
    """A change of one row of a table, for `edit`."""
    return lambda frame: frame.assign(
        **{
            name: [value if k == row else old for k, old in enumerate(frame[name])]
            for name, value in values.items()
        }
    )


def put(folder: Path, **fields) -> None:
    """Overwrites fields of `summary.json`; `a__b` is the field b of a."""

    def overwrite(content):
        for name, value in fields.items():
            *inside, last = name.split("__")
            reduce(dict.__getitem__, inside, content)[last] = value

    edit(folder, "summary.json", overwrite)


def refused(folder, *words):
    """That reading the folder fails with one line that has these words."""
    with pytest.raises(RunError) as error:
        load_results(folder)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), str(error.value)


def with_methods(frame, names=("crown", "crown_ibp", "alpha_crown", "branch", "clever")):
    """A frame with the optional radii; the branched proof is the certified radius."""
    rng = np.random.default_rng(0)
    certified, kept = frame["radius_certified"], frame["status"] != "rejected"
    share = {"crown": 0.8, "crown_ibp": 0.4, "alpha_crown": 0.9, "branch": 1.0, "clever": 1.8}
    frame = frame.assign(**{f"radius_{name}": share[name] * certified for name in names})
    if "clever" in names:
        frame["clever_fit_pvalue"] = np.where(kept, rng.random(len(frame)), np.nan)
    return frame


def with_smoothing(frame, decisions, radii):
    """A frame with a smoothed detector's decisions; NaN where it abstained."""
    decisions = np.array(decisions, dtype=object)
    radii = np.where(decisions == "abstained", np.nan, np.array(radii, dtype=float))
    return frame.assign(radius_smoothing=radii, smoothing_decision=decisions)


def write(folder: Path, frames, summary=None, **options) -> Path:
    """The folder, with both files written."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "certificates.parquet", frames)
    write_summary(folder, summary_of(frames, **options) if summary is None else summary)
    return folder


def realistic(n=500, names=("energy", "greg+"), seed=0, found=1.0):
    """Frames such as digits gave: radii near 0.19, larger for each later run, a few rejected."""
    rng = np.random.default_rng(seed)
    ease = rng.gamma(6.0, 1 / 6.0, n)
    frames = []
    for k, name in enumerate(names):
        certified = 0.19 * (1 + 0.37 * k) * ease * rng.gamma(40.0, 1 / 40.0, n)
        attack = certified * (1 + rng.gamma(8.0, 0.1, n))
        attack[rng.random(n) > found] = np.inf
        undecided = rng.choice(n, max(n // 100, 1), replace=False)
        certified[undecided] = 0.0
        frame = frame_of(name, certified, attack, rng.choice(n, n // 20, replace=False))
        frame["gradient_norm"] *= rng.gamma(20.0, 1 / 20.0, n)
        frame["radius_gradient"] *= rng.gamma(20.0, 1 / 20.0, n) * 1.15
        frames.append(frame)
    return frames


def html_of(results, *, images=None, title="T"):
    """The page, with some pixels in place of each figure, whose drawing takes seconds."""
    comparisons = compare(results, resamples=199)
    figures = [(spec, png_of(np.zeros((40, 40)))) for spec in figure_specs(results, {})]
    pictures = kept_pictures(results) if images is None else given_pictures(images)
    return html_page(results, comparisons, figures, pictures, title=title)


def forms_of(folder):
    """The report in every form of text, white space apart, by form."""
    results = load_results(folder)
    comparisons = compare(results, resamples=99)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(results))
    forms = {
        "html": html_of(results),
        "markdown": markdown_table(results, comparisons),
        "latex": latex_table(results, comparisons),
        "terminal": capture.get(),
    }
    return {form: " ".join(text.split()) for form, text in forms.items()}


def figure_of(spec, results, **style):
    """One figure drawn, for a `with` block."""
    return drawn(partial(spec.draw, results), FigureStyle(**style))


def assert_readable(figure):
    """All texts of a figure lie inside it, in type that can be read."""
    figure.draw_without_rendering()
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    texts = [text for legend in legends for text in (legend.get_title(), *legend.get_texts())]
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.texts]
    for text in (*texts, *figure.texts):
        if text.get_text():
            box = text.get_window_extent()
            assert min(box.x0, box.y0) >= -1, text
            assert box.x1 <= figure.bbox.x1 + 1, text
            assert box.y1 <= figure.bbox.y1 + 1, text
            assert text.get_fontsize() >= SMALLEST_TYPE


def assert_apart(texts):
    """No two of these texts overlap."""
    boxes = [text.get_window_extent() for text in texts]
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k]), texts[k]
