"""The trade-off of one setting: what is lost, against the radius that is won, value by value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from greg_cert.report.figures.panels import new_panels, width_of
from greg_cert.report.figures.style import DOUBLE_COLUMN, PALETTES, FigureStyle, drawable
from greg_cert.report.wording import fpr_name, norm_tex, one_line
from greg_cert.runs.tuned_runs import TunedValue

TRADEOFF_STYLE = FigureStyle(width=DOUBLE_COLUMN)
LEAST_SPAN = 0.02  # of a measure's axis, so that noise does not look like a trade-off
_ROOM = 0.35  # of the span, above and below, for labels
_HALO = [Stroke(linewidth=1.6, foreground="white"), Normal()]
_LONGEST = 14  # characters of a value beside its point


def draw_tradeoff(
    setting: str,
    values: Sequence[TunedValue],
    *,
    norm: float,
    tpr: float,
    style: FigureStyle = TRADEOFF_STYLE,
) -> Figure:
    """A panel for each measure that there is; in each a line of proofs and one of attacks.

    Points are joined in the order of the values, and bars are standard deviations over seeds. A
    value without a measure or a finite radius has no point. The threshold accepts `tpr` of the
    calibration split.
    """
    words = {"accuracy": "accuracy", "auroc": "AUROC", "fpr": fpr_name(tpr)}
    words["calibration_error"] = "ECE"
    shown = [k for k in words if any(_point(v, "radius_certified", k) for v in values)]
    shown = shown or ["accuracy"]
    figure, panels = new_panels(
        style, [words[k] for k in shown], aspect=0.55, shared=False, across=min(2, len(shown))
    )
    first, second, *_ = PALETTES[style.palette]
    looks: dict[str, dict[str, Any]] = {
        "radius_certified": {"color": first, "markerfacecolor": first, "linestyle": "-"},
        "radius_attack": {"color": second, "markerfacecolor": "white", "linestyle": (0, (4, 1.5))},
    }
    for axes, measure in zip(panels, shown, strict=True):
        for radius, look in looks.items():
            _draw_line(axes, values, radius, measure, look)
        _set_limits(axes)
    figure.legend(
        [Line2D([], [], marker="o", markersize=4, **look) for look in looks.values()],
        ["certified (proof)", "attack (upper bound)"],
        loc="outside upper center",
        ncols=2,
        title=f"values of {drawable(one_line(setting))}",
        title_fontsize=style.font_size,
    )
    figure.supxlabel(
        f"median {norm_tex(norm)} radius (raw pixels in [0,1])", fontsize=style.font_size
    )
    figure.draw_without_rendering()  # now panels have their size
    for axes, measure in zip(panels, shown, strict=True):
        _label(axes, values, measure, {k: str(look["color"]) for k, look in looks.items()}, style)
    return figure


def _point(value: TunedValue, radius: str, measure: str) -> tuple[float, float] | None:
    x, y = value.mean[radius], value.mean[measure]
    if x is None or y is None or not math.isfinite(x):
        return None
    return x, y


def _draw_line(
    axes: Axes, values: Sequence[TunedValue], radius: str, measure: str, look: Mapping[str, Any]
) -> None:
    found = [(v, point) for v in values if (point := _point(v, radius, measure)) is not None]
    if not found:
        return
    x, y = zip(*(point for _, point in found), strict=True)
    axes.errorbar(
        *(x, y),
        xerr=[v.std[radius] or 0.0 for v, _ in found],
        yerr=[v.std[measure] or 0.0 for v, _ in found],
        marker="o",
        markersize=3.6,
        linewidth=1.0,
        elinewidth=0.5,
        **look,
    )


def _set_limits(axes: Axes) -> None:
    """From radius 0; room above and below for labels."""
    low, high, right = axes.dataLim.y0, axes.dataLim.y1, axes.dataLim.x1
    if not (math.isfinite(low) and math.isfinite(right)):
        return  # nothing is drawn
    short = max(0.0, LEAST_SPAN - (high - low)) / 2
    low, high = low - short, high + short
    axes.set_xlim(0, 1.06 * right or 1.0)
    axes.set_ylim(low - _ROOM * (high - low), high + _ROOM * (high - low))
    low, high = axes.get_ylim()
    ticks = MaxNLocator(5).tick_values(low, high)
    # All measures are shares: there is room beyond 0 and 1, and nothing to be read there.
    axes.set_yticks([t for t in ticks if max(low, -1e-9) <= t <= min(high, 1 + 1e-9)])


def _label(
    axes: Axes,
    values: Sequence[TunedValue],
    measure: str,
    colours: Mapping[str, str],
    style: FigureStyle,
) -> None:
    """Each value above its proof and below its attack, or where else there is room near by.

    One that finds none is left to the table. All places are in inches from the panel's corner.
    """
    box, dots = axes.get_window_extent(), style.dpi
    line, corner = 1.1 * style.small / 72, (box.x0, box.y0)
    points = [
        (radius, value, *((axes.transData.transform(point) - corner) / dots))
        for radius in colours
        for value in values
        if (point := _point(value, radius, measure)) is not None
    ]
    # Centre and half the size of what labels make way for: the points first.
    taken = [(x, y, 0.025, 0.025) for _, _, x, y in points]
    for radius, value, x, y in points:
        text = drawable(one_line(value.value)[:_LONGEST])
        half, up = 0.52 * width_of(text, style), 1 if radius == "radius_certified" else -1
        beside = half + 0.05
        places = [(0.0, 0.8), (-up * beside, 0.0), (-up * beside, 0.8), (0.0, 1.75)]
        for dx, lines in (*places, (0.0, 2.7), (0.0, -0.8)):
            a, c = x + dx, y + up * lines * line
            inside = half < a < box.width / dots - half and line / 2 < c < box.height / dots
            if inside and all(
                abs(a - b) > half + w or abs(c - d) > 0.45 * line + h for b, d, w, h in taken
            ):
                break
        else:
            continue
        taken.append((a, c, half, 0.45 * line))
        drawn = axes.text(
            *(a * dots / box.width, c * dots / box.height, text),
            transform=axes.transAxes,
            ha="center",
            va="center",
            fontsize=style.small,
            color=colours[radius],
        )
        drawn.set_path_effects(_HALO)
