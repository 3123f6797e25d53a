"""Figure `score_distribution`: the OOD score over all test samples, and where the threshold cuts.

A panel a run, because the scores of two networks are not on one scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from greg_cert.certificates.results import Results
from greg_cert.certificates.score_file import OOD, TEST
from greg_cert.errors import UsageError
from greg_cert.report.figures.bars import bars_key, draw_bars
from greg_cert.report.figures.panels import (
    CLOSE,
    legend_columns,
    name_limit,
    new_figure,
    panel_axes,
)
from greg_cert.report.figures.style import FigureStyle, RunStyle, drawable, run_styles
from greg_cert.report.wording import number, short_names

MOST_SETS = 3  # OOD sets that are drawn one by one; more of them are drawn as one
NARROW = 2.2  # inches of a panel below which its heading takes two lines
_TITLE, _SHARE = ": share accepted", ": 100.0 %"
CUT = 2.0  # a bar may be so many times as high as the highest one of ID samples
TAIL = 0.002  # share of the samples at either end that the outermost bins gather


def groups_of(scores: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """ID, and each OOD set or all as one: the scores of their sets, from scores by part."""
    sets = {part.removeprefix(OOD): values for part, values in scores.items() if part != TEST}
    groups = {"ID test": [scores[TEST]]}
    if len(sets) > MOST_SETS:
        return groups | {f"{len(sets)} OOD sets": list(sets.values())}
    return groups | {name: [values] for name, values in sets.items()}


def accepted_share(sets: list[np.ndarray], threshold: float) -> float:
    """Share of scores at or below the threshold, mean over the sets."""
    return float(np.mean([np.mean(values <= threshold) for values in sets]))


def bin_edges(groups: Mapping[str, list[np.ndarray]], threshold: float, bins: int) -> np.ndarray:
    """Edges of equal bins that hold all but the tails of every set, and the threshold."""
    values = [v for sets in groups.values() for v in sets]
    low = min(threshold, *(float(np.quantile(v, TAIL)) for v in values))
    high = max(threshold, *(float(np.quantile(v, 1 - TAIL)) for v in values))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def bin_shares(sets: list[np.ndarray], edges: np.ndarray) -> np.ndarray:
    """Share of samples in each bin, mean over the sets; the outermost hold what lies beyond."""
    inside = [np.clip(values, edges[0], edges[-1]) for values in sets]
    shares = [np.histogram(values, edges)[0] / len(values) for values in inside]
    return np.asarray(np.mean(shares, axis=0))


def draw_scores(results: Results, style: FigureStyle) -> Figure:
    """A panel a run: a histogram of each population, with the share that is accepted."""
    found = {run: scores for run in results.runs if (scores := results.scores_of(run))}
    if not found:
        raise UsageError("score_distribution: expected scores.parquet, but there is none")
    groups = {run: groups_of(scores) for run, scores in found.items()}
    names = list(dict.fromkeys(name for each in groups.values() for name in each))
    across = _across(style, len(found))
    rows = -(-len(found) // across)
    wide = (style.width - 0.3) / across
    heading = _TITLE if wide >= NARROW else _TITLE.replace(": ", "\n")
    looks = run_styles(names, name_limit(style, names, [_SHARE], room=wide - 0.6), style.palette)
    titles = short_names(
        list(found),
        name_limit(style, list(found), [_TITLE] if wide >= NARROW else [], room=0.9 * wide - 0.1),
    )
    thresholds = {run: record.threshold for run, record in results.summary.runs.items()}
    labels = {run: _labels(each, looks, thresholds[run]) for run, each in groups.items()}
    words = [[label for _, label in each] for each in labels.values()]
    columns = min(legend_columns(each, wide, style) for each in words)
    lines = max(-(-len(each) // columns) for each in labels.values())
    above = (1.35 * lines + (1.6 if heading == _TITLE else 2.8)) * style.small / 72
    figure = new_figure(style, rows * (max(0.45 * min(wide, 4.5), 0.8) + above + 0.14) + 0.25)
    for k, (run, title) in enumerate(titles.items()):
        ticks = 3 if wide < NARROW else 6 if wide < 5 else 10
        axes = panel_axes(figure, (rows, across, k + 1), ticks)
        _draw_run(axes, groups[run], looks, thresholds[run], style)
        axes.legend(
            *zip(*labels[run], strict=True),
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=columns,
            **CLOSE,
            title=drawable(title) + heading if len(found) > 1 else _TITLE.removeprefix(": "),
            title_fontsize=style.font_size,
        )
    figure.supxlabel("score $S(x)$, higher is more OOD", fontsize=style.font_size)
    figure.supylabel("share of samples per bin", fontsize=style.font_size)
    return figure


def _across(style: FigureStyle, count: int) -> int:
    if style.width < 4.5:
        return 1 if count <= 2 else 2
    return min(count, 3 if count in (3, 5, 6) and style.width > 6 else 2)


def _labels(
    groups: Mapping[str, list[np.ndarray]], looks: Mapping[str, RunStyle], threshold: float
) -> list[tuple[Patch, str]]:
    """The entries of a panel's legend."""
    shares = {name: accepted_share(sets, threshold) for name, sets in groups.items()}
    return [
        (bars_key(looks[name], fill), f"{looks[name].name}: {100 * share:.1f} %")
        for (name, share), fill in zip(shares.items(), _fills(groups), strict=True)
    ]


def _fills(groups: Mapping[str, list[np.ndarray]]) -> list[float]:
    """Opacity of each histogram; ID is filled, and OOD where one outline alone would be lost."""
    filled = 2 if len(groups) == 2 else 1
    return [0.2 if k < filled else 0.0 for k in range(len(groups))]


def _draw_run(
    axes: Axes,
    groups: Mapping[str, list[np.ndarray]],
    looks: Mapping[str, RunStyle],
    threshold: float,
    style: FigureStyle,
) -> None:
    fewest = min(len(values) for sets in groups.values() for values in sets)
    edges = bin_edges(groups, threshold, style.bins_of(fewest))
    shares = {name: bin_shares(sets, edges) for name, sets in groups.items()}
    for (name, heights), fill in zip(shares.items(), _fills(groups), strict=True):
        draw_bars(axes, heights, edges, looks[name], fill, linewidth=1.2)
    axes.axvline(threshold, color="0.1", linewidth=1.0)
    left = threshold < (edges[0] + edges[-1]) / 2
    axes.annotate(
        rf"$\gamma$ = {number(threshold, '.4g')}",
        (threshold, 1.0),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3 if left else -3, -2),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top",
        fontsize=style.small,
    )
    margin = 0.01 * (edges[-1] - edges[0])
    axes.set_xlim(edges[0] - margin, edges[-1] + margin)
    tallest = max(float(heights.max()) for heights in shares.values())
    highest = min(tallest, CUT * float(next(iter(shares.values())).max()))
    # Room above the bars for the name of the threshold.
    axes.set_ylim(0, 1.2 * highest)
    _mark_cut(axes, shares.values(), edges, style)


def _mark_cut(
    axes: Axes, shares: Iterable[np.ndarray], edges: np.ndarray, style: FigureStyle
) -> None:
    """Beside each population's tallest bar that leaves the frame, the share it stands for."""
    line = 0
    for heights in shares:
        k = int(heights.argmax())
        if heights[k] <= axes.get_ylim()[1]:
            continue
        line += 1  # below the name of the threshold
        left = k < len(heights) / 2
        text = axes.annotate(
            f"{100 * heights[k]:.0f} %",
            (edges[k + 1] if left else edges[k], 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(2 if left else -2, -2 - 1.25 * line * style.small),
            textcoords="offset points",
            ha="left" if left else "right",
            va="top",
            fontsize=style.small,
            color="0.1",
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
