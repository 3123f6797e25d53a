"""The demonstration in the plane as a picture: surfaces, slopes, and a cut through both.

After figure 1 of Sharifi et al., "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

from greg_cert.report.figures.style import DOUBLE_COLUMN, FigureStyle, RunStyle, run_styles

if TYPE_CHECKING:  # torch stays out of the reports
    from greg_cert.train.toy.measures import Toy, ToyRun

NAMES = {"energy": "energy", "greg": "energy + gradient penalty (GReg)"}
TOY_STYLE = FigureStyle(width=DOUBLE_COLUMN)
_SCORE, _SLOPE = "$S(x)$", r"$\|\nabla S(x)\|_2$"
_COLOURS = {"score": "cividis", "slope": "YlOrBr"}
_HALO = [Stroke(linewidth=2.6, foreground="white"), Normal()]
_THIN_HALO = [Stroke(linewidth=1.8, foreground="white"), Normal()]


def draw_toy(toy: Toy, style: FigureStyle = TOY_STYLE) -> Figure:
    """Score and slope over the box for both detectors, and along the cut.

    Each column of maps has one colour scale for both detectors. It saturates at the highest tenth
    of the scores and at the steepest three hundredths, lest a far corner take up all of it. Twice a
    column wide or more, five scales can be read.
    """
    height = style.height or 0.78 * style.width
    figure = Figure(figsize=(style.width, height), dpi=style.dpi, layout="constrained")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.03, h_pad=0.03)
    axes = figure.subplots(2, 3, width_ratios=[1, 1, 1.15])
    styles = run_styles([NAMES[m] for m in toy.runs], 40, style.palette)
    looks = {method: styles[NAMES[method]] for method in toy.runs}
    for k, quantity in enumerate(("score", "slope")):
        both = np.concatenate([getattr(run, quantity).ravel() for run in toy.runs.values()])
        low, high = np.quantile(both, [0.01, (0.9, 0.97)[k]])
        for (method, run), panel in zip(toy.runs.items(), axes[:, k], strict=True):
            picture = _draw_map(panel, toy, run, quantity, (0.0 if k else float(low), float(high)))
            _mark_pair(panel, toy, style)
            if k == 0:
                panel.set_ylabel(method if method == "energy" else "GReg", fontsize=style.font_size)
        label = (_SCORE, _SLOPE)[k]
        axes[0, k].set_title(("score ", "slope ")[k] + label, fontsize=style.font_size)
        figure.colorbar(
            picture,
            ax=list(axes[:, k]),
            location="bottom",
            aspect=28,
            fraction=0.05,
            extend="both" if k == 0 else "max",
        )
    _draw_cut(axes[0, 2], toy, looks, "cut_score")
    _draw_cut(axes[1, 2], toy, looks, "cut_slope")
    axes[0, 2].set_title("along the dashed cut", fontsize=style.font_size)
    axes[0, 2].set_ylabel(_SCORE)
    axes[1, 2].set_ylabel(_SLOPE)
    axes[1, 2].set_xlabel("place on the cut")
    handles = _legend(looks, toy.pair is not None)
    columns = 3 if style.width >= DOUBLE_COLUMN else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, columnspacing=1.5)
    return figure


def _draw_map(axes: Axes, toy: Toy, run: ToyRun, quantity: str, limits: tuple[float, float]) -> Any:
    end = toy.settings.extent
    picture = axes.imshow(
        getattr(run, quantity),
        origin="lower",
        extent=(-end, end, -end, end),
        cmap=_COLOURS[quantity],
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )
    if run.score.min() < run.threshold < run.score.max():
        line = axes.contour(
            toy.axis,
            toy.axis,
            run.score,
            levels=[run.threshold],
            colors="black",
            linewidths=1.1,
            linestyles="solid",
        )
        line.set_path_effects(_HALO)
    axes.plot(toy.cut[:, 0], toy.cut[:, 1], color="0.2", linewidth=0.8, linestyle=(0, (4, 3)))
    for points, marker, size in ((toy.points.outliers, "x", 2.4), (toy.points.test, "o", 1.9)):
        x, y = np.asarray(points).T
        colour = "black" if marker == "x" else "white"
        axes.plot(x, y, marker, color=colour, markersize=size, mec="black", mew=0.35)
    axes.set_xlim(-end, end)
    axes.set_ylim(-end, end)
    axes.set_xticks([])
    axes.set_yticks([])
    return picture


def _mark_pair(axes: Axes, toy: Toy, style: FigureStyle) -> None:
    for letter, row in zip("AB", toy.pair or (), strict=False):
        x, y = (float(value) for value in toy.points.outliers[row])
        end = toy.settings.extent
        ring = axes.plot(x, y, "o", mfc="none", mec="black", markersize=6, mew=1.1)[0]
        ring.set_path_effects(_THIN_HALO)
        text = axes.annotate(
            letter,
            (x, y),
            xytext=(_aside(x, end), _aside(y, end)),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=style.font_size,
            fontweight="bold",
        )
        text.set_path_effects(_THIN_HALO)


def _aside(place: float, end: float) -> float:
    """Points by which a label stands off: outwards, but inwards near the rim."""
    return 7.0 if (place > 0) == (abs(place) < 0.8 * end) else -7.0


def _draw_cut(axes: Axes, toy: Toy, looks: dict[str, RunStyle], quantity: str) -> None:
    middle = toy.cut[len(toy.cut) // 2]
    direction = toy.cut[-1] - toy.cut[0]
    place = (toy.cut - middle) @ direction / np.linalg.norm(direction)
    for method, run in toy.runs.items():
        look = looks[method]
        axes.plot(place, getattr(run, quantity), color=look.colour, linestyle=look.line)
        if quantity == "cut_score":
            axes.axhline(run.threshold, color=look.colour, linestyle=look.line, linewidth=0.7)
    axes.set_xlim(float(place[0]), float(place[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(color="0.9", linewidth=0.5)


def _legend(looks: dict[str, RunStyle], pair: bool) -> list[Line2D]:
    none: dict[str, Any] = {"linestyle": "", "markeredgecolor": "black"}
    boundary = Line2D([], [], color="black", linewidth=1.1, label=r"boundary $S = \gamma$")
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.line, label=f"cut: {NAMES[method]}")
        for method, look in looks.items()
    ]
    handles += [
        boundary,
        Line2D([], [], marker="o", color="white", markersize=3.5, label="ID test points", **none),
        Line2D([], [], marker="x", markersize=3.5, label="outliers, held out", **none),
    ]
    if pair:
        label = "A, B: one energy score, two slopes"
        handles.append(
            Line2D([], [], marker="o", markerfacecolor="none", markersize=6, label=label, **none)
        )
    return handles
