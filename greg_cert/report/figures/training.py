"""Figure `training_gradient`: the score's input-gradient norm over training, run beside run.

After figure 3 of Sharifi et al., "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from greg_cert.report.figures.clouds import RASTER_ABOVE
from greg_cert.report.figures.panels import name_limit, new_axes, width_of
from greg_cert.report.figures.style import FigureStyle, RunStyle, run_styles
from greg_cert.report.wording import number
from greg_cert.runs.training_log import TrainingLog

SIDE_BY_SIDE = 5.0  # inches of width from which panels stand beside each other
_TICK = 0.36  # inches that a step number and the space beside it take
LOG_ABOVE = 20.0  # ratio of the largest to the smallest value
_NORM = r"mean $\|\nabla S(x)\|_2$"
_PANELS = {  # quantity: what the panel shows, and its unit
    "grad_norm_id": ("ID batches", _NORM),
    "grad_norm_aux": ("auxiliary batches", _NORM),
    "lipschitz_estimate": ("all inputs", r"$\bar{L}$ (estimate)"),
}
SLOPE_TERMS = tuple(_PANELS)


def running_median(values: np.ndarray, window: int) -> np.ndarray:
    """Median of the `window` values (n,) around each place, NaN left out; fewer at the ends."""
    odd = max(1, window) | 1
    smooth = pd.Series(values).rolling(odd, center=True, min_periods=1).median()
    return smooth.to_numpy(dtype=np.float64)


def draw_training(
    logs: Mapping[str, TrainingLog], runs: Sequence[str], style: FigureStyle
) -> Figure:
    """A panel a quantity, in each a smoothed line over faint points for every run.

    Lines are running medians within each stage, over a twentieth of the longest log's rows, 5 at
    least. Vertical lines show where a stage begins; its methods stand above. A logarithmic axis
    begins at the lowest hundredth of the values. `runs` are all of a report, of which `logs` may
    have only some, so that colours agree.
    """
    terms = [t for t in SLOPE_TERMS if any(log.measured(t) for log in logs.values())]
    styles = run_styles(runs, name_limit(style, runs), style.palette)
    span = max(5, max(len(log.steps) for log in logs.values()) // 20)
    entries = [
        (Line2D([], [], color=styles[run].colour, linestyle=styles[run].line), styles[run].name)
        for run in logs
    ]
    beside = style.width >= SIDE_BY_SIDE and len(terms) > 1
    figure, first = new_axes(style, entries, aspect=0.6 if beside else 0.5 * len(terms) + 0.08)
    grid = figure.add_gridspec(1 if beside else len(terms), len(terms) if beside else 1)
    first.set_subplotspec(grid[0])
    units = [_PANELS[term][1] for term in terms]
    panels = [first]
    for k, unit in enumerate(units[1:], start=1):
        same = panels[units.index(unit)] if unit in units[:k] else None
        panels.append(figure.add_subplot(grid[k], sharex=first, sharey=same))
        panels[-1].grid(color="0.9", linewidth=0.5)
    for axes, term in zip(panels, terms, strict=True):
        for run, log in logs.items():
            _draw_run(axes, log, term, span, styles[run])
    end = max(int(log.steps[-1]) for log in logs.values())
    first.set_xlim(0, 1.01 * end)
    for k, (axes, term, unit) in enumerate(zip(panels, terms, units, strict=True)):
        alike = [t for t, u in zip(terms, units, strict=True) if u == unit]
        _scale(axes, [log.column(t) for log in logs.values() for t in alike])
        named = beside or k == 0
        room = style.width / (len(terms) if beside else 1) - 0.6
        axes.xaxis.set_major_locator(MaxNLocator(max(2, int(room / _TICK)), steps=[1, 2, 5, 10]))
        _mark_stages(axes, logs, style, end, room=room if named else 0.0)
        title, _ = _PANELS[term]
        axes.set_title(title, fontsize=style.font_size, pad=style.small + 3 if named else 3)
        if not (beside and k and unit == units[k - 1]):
            axes.set_ylabel(unit)
        if beside or k == len(terms) - 1:
            axes.set_xlabel("training step")
        else:
            axes.tick_params(labelbottom=False)
    if not beside:
        figure.align_ylabels(panels)
    return figure


def _draw_run(axes: Axes, log: TrainingLog, term: str, span: int, look: RunStyle) -> None:
    values = log.column(term)
    axes.plot(
        *(log.steps, values, "."),
        color=look.colour,
        alpha=0.35,
        markersize=2.2,
        markeredgewidth=0,
        rasterized=len(values) > RASTER_ABOVE,
    )
    for piece in log.pieces():
        part = values[piece]
        if np.isfinite(part).any():
            smooth = running_median(np.where(np.isfinite(part), part, np.nan), span)
            axes.plot(log.steps[piece], smooth, color=look.colour, linestyle=look.line)


def _scale(axes: Axes, columns: Sequence[np.ndarray]) -> None:
    """A logarithmic axis where the values ask for one."""
    found = np.concatenate(columns)
    found = found[np.isfinite(found)]
    low, high = (float(np.quantile(found, q)) for q in (0.01, 0.99))
    if found.min() > 0 and high > LOG_ABOVE * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, 1.3 * float(found.max()))  # a wild first step may lie below
        if high < 1000 * low:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif found.min() >= 0:
        axes.set_ylim(0, 1.05 * (float(found.max()) or 1.0))


def _mark_stages(
    axes: Axes, logs: Mapping[str, TrainingLog], style: FigureStyle, end: int, *, room: float
) -> None:
    """A vertical line between the rows of two stages, and the stage's methods above it."""
    marks: dict[float, list[str]] = {}
    for log in logs.values():
        for row in log.starts:
            at = 0.0 if row == 0 else float(log.steps[row - 1] + log.steps[row]) / 2
            methods = marks.setdefault(at, [])
            if log.stages[row] not in methods:
                methods.append(log.stages[row])
    taken = -1.0  # inches from the left that a label fills already
    for at, methods in sorted(marks.items()):
        if at:
            axes.axvline(at, color="0.35", linewidth=0.7, linestyle=(0, (2, 2)))
        label = " | ".join(methods).replace("$", r"\$")
        place = at / end * room
        wide = width_of(label, style)
        if taken < place and place + wide <= room + 0.1:
            across = axes.get_xaxis_transform()
            axes.text(at, 1.02, label, transform=across, fontsize=style.small, color="0.25")
            taken = place + wide + 0.05
