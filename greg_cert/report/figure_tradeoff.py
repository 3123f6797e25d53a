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

from greg_cert.report.canvas import new_panels, width_of
from greg_cert.report.style import DOUBLE_COLUMN, PALETTES, FigureStyle, drawable
from greg_cert.report.wording import norm_tex, one_line
from greg_cert.tuned_runs import TunedValue

TRADEOFF_STYLE = FigureStyle(width=DOUBLE_COLUMN)
LEAST_SPAN = 0.02  # of a measure's axis, so that noise does not look like a trade-off
_ROOM = 0.35  # of the span, above and below, for labels
_HALO = [Stroke(linewidth=1.6, foreground="white"), Normal()]
_LONGEST = 14  # characters of a value beside its point
_ASPECT = 0.55
_MOST_LIFTED = 5  # lines by which a label makes way for others


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
    value without a measure or a finite radius has no point.

    Args:
        setting: what the legend calls it.
        values: in order.
        norm: of the radii.
        tpr: share of the calibration split that is accepted.
        style: the settings.
    """
    words = {
        "accuracy": "accuracy",
        "auroc": "AUROC",
        "fpr": f"FPR{100 * tpr:g}",
        "calibration_error": "ECE",
    }
    shown = [k for k in words if any(_point(v, "radius_certified", k) for v in values)]
    shown = shown or ["accuracy"]
    across = min(2, len(shown))
    figure, panels = new_panels(
        style, [words[k] for k in shown], aspect=_ASPECT, shared=False, across=across
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
        for radius, look in looks.items():
            up = 1 if radius == "radius_certified" else -1
            _label(axes, values, radius, measure, up, str(look["color"]), style, across)
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
    low, high = axes.dataLim.y0, axes.dataLim.y1
    right = axes.dataLim.x1
    if not (math.isfinite(low) and math.isfinite(right)):
        return  # nothing is drawn
    short = max(0.0, LEAST_SPAN - (high - low)) / 2
    low, high = low - short, high + short
    axes.set_xlim(0, 1.06 * right or 1.0)
    axes.set_ylim(low - _ROOM * (high - low), high + _ROOM * (high - low))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _label(
    axes: Axes,
    values: Sequence[TunedValue],
    radius: str,
    measure: str,
    up: int,
    colour: str,
    style: FigureStyle,
    across: int,
) -> None:
    """Each value above its point, or below; farther where another label is there already."""
    right, (bottom, top) = axes.get_xlim()[1], axes.get_ylim()
    wide = (style.width - 0.5) / across
    line = style.small / 72 / (wide * _ASPECT)  # of the panel's height
    taken: list[tuple[float, float, float]] = []
    for value in values:
        if (point := _point(value, radius, measure)) is None:
            continue
        text = drawable(one_line(value.value)[:_LONGEST])
        half = 0.55 * width_of(text, style) / wide
        x, y = point[0] / right, (point[1] - bottom) / (top - bottom)
        free = (
            k
            for k in range(_MOST_LIFTED)
            if 0 <= y + up * (k + 1) * line <= 1
            and all(
                abs(x - a) > half + b or abs(y + up * k * line - c) >= 0.99 * line
                for a, b, c in taken
            )
        )
        lifted = next(free, None)
        if lifted is None:
            continue  # the table has it
        taken.append((x, half, y + up * lifted * line))
        drawn = axes.annotate(
            text,
            point,
            xytext=(0, up * (3 + lifted * style.small)),
            textcoords="offset points",
            ha="center",
            va="bottom" if up > 0 else "top",
            fontsize=style.small,
            color=colour,
        )
        drawn.set_path_effects(_HALO)
