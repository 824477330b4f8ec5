"""The plots of the evidence: what the curves and the differences of the cells look like."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from _evidence_methods import METHODS
from _evidence_tables import Cells, interval, late, main_groups, paired

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GRAY, BLUE = "#888", "#2f6fd8"  # readable on white and on black
COLOURS = {
    "intra": GRAY, "plain": BLUE, "agreed": "#d9822b", "second-view": "#a45bd0",
    "changes-intra": "#7fb8a4", "changes-four-times": "#17805a", "oracle": "#d64550",
}  # fmt: skip
MIXES = ("oracle-30", "oracle-50", "oracle-70", "oracle-85", "oracle")
STYLE = {
    "svg.hashsalt": "iivcl", "svg.fonttype": "none", "font.size": 9, "text.color": GRAY,
    "axes.edgecolor": GRAY, "axes.labelcolor": GRAY, "axes.titlecolor": GRAY,
    "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": GRAY, "ytick.color": GRAY, "legend.frameon": False,
}  # fmt: skip
Sets = dict[tuple[str, int], Cells]
Gains = dict[str, tuple[float, float]]  # mean and half an interval of every method


def draw(cells: Cells, folder: Path) -> None:
    """Write all plots, of which equal cells give equal bytes."""
    sets = trained(cells)
    of_frames = trained([cell for cell in cells if not cell["method"].startswith("changes-")])
    with plt.rc_context(STYLE):
        plots = {
            "pure": against_purity(of_frames),
            "purity": curves(sets, "nearest_purity", "purity of the 5 nearest"),
            "gains": forest(sets),
            "rank": curves(sets, "effective_rank", "effective rank"),
        }
        for name, figure in plots.items():
            without = {"Date": None, "Creator": None}  # which names a version
            figure.savefig(folder / f"evidence-{name}.svg", transparent=True, metadata=without)
            plt.close(figure)


def trained(cells: Cells) -> Sets:
    return {key: part for key, part in main_groups(cells).items() if any(c["curves"] for c in part)}


def panels(sets: Sets, height: float) -> tuple[Figure, Sequence[Axes]]:
    """Make one panel for every set."""
    size = (1 + 2.7 * len(sets), height)
    figure, axes = plt.subplots(1, len(sets), figsize=size, layout="constrained", squeeze=False)
    for axis, (name, steps) in zip(axes[0], sets, strict=True):
        axis.set_title(f"{name}, {steps:,} steps")
    return figure, axes[0]


def curves(sets: Sets, what: str, label: str) -> Figure:
    """Draw a curve over the steps, averaged over the cells of each method.

    Where a method rejects rows, the purity of those it accepts is dashed.
    """
    figure, axes = panels(sets, 2.6)
    drawn = {cell["method"] for cells in sets.values() for cell in cells}
    for axis, cells in zip(axes, sets.values(), strict=True):
        for method, colour in COLOURS.items():
            if method not in drawn:
                continue
            own = [c["curves"] for c in cells if c["method"] == method]
            axis.plot(*mean_curve(own, what), color=colour, label=method, linewidth=1.8)
            if what == "nearest_purity" and method == "agreed":
                axis.plot(*mean_curve(own, "purity"), color=colour, linestyle=":", linewidth=1.8)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1 if what == "nearest_purity" else None)
    axes[0].set_ylabel(label)
    axes[0].legend(fontsize=8)
    return figure


def mean_curve(cells: Sequence[Any], what: str) -> tuple[list[int], list[float]]:
    points: dict[int, list[float]] = {}
    for curve in cells:
        for point in curve:
            if point.get(what) is not None:
                points.setdefault(point["step"], []).append(point[what])
    steps = sorted(points)
    return steps, [statistics.fmean(points[step]) for step in steps]


def gains(cells: Cells, metric: str = "recall_at_1") -> Gains:
    """Give what every method with neighbours adds to its partner, where there is a pair."""
    methods = [method for method in METHODS if METHODS[method].find is not None]
    found = {method: paired(cells, method, metric) for method in methods}
    return {method: interval(gain) for method, gain in found.items() if gain}


def edge(every: Sequence[Gains]) -> float:
    """Give how far an axis of gains reaches; longer intervals end there."""
    return 0.1 + max((abs(mean) for found in every for mean, _ in found.values()), default=0.0)


def forest(sets: Sets) -> Figure:
    """Draw the gains of every method with their intervals; hollow where there is one pair only."""
    every = [gains(cells) for cells in sets.values()]
    precise = [gains(cells, "mean_average_precision") for cells in sets.values()]
    methods = [m for m in METHODS if any(m in found for found in every)]
    figure, axes = panels(sets, 1.0 + 0.17 * len(methods))
    for axis, found, beside in zip(axes, every, precise, strict=True):
        axis.axvline(0, color=GRAY, linewidth=0.8)
        for place, method in enumerate(methods):
            if method in found:
                mean, half = found[method]
                dot(axis, mean, -place + 0.15, xerr=half, label="R@1")
            if method in beside:
                mean, half = beside[method]
                dot(axis, mean, -place - 0.2, xerr=half, colour=COLOURS["agreed"], label="mAP")
        axis.set_yticks([-place for place in range(len(methods))], [""] * len(methods))
        axis.set(xlabel="gain", xlim=(-edge(every), edge(every)))
        axis.set_ylim(0.7 - len(methods), 0.7)
    axes[0].set_yticklabels(methods, fontsize=8)
    named = {n: d for axis in axes for d, n in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper right", ncols=2, fontsize=8)
    return figure


def against_purity(sets: Sets) -> Figure:
    """Draw the gain of every method over how many of its neighbours have the right class."""
    figure, axes = panels(sets, 2.9)
    every = [gains(cells) for cells in sets.values()]
    for axis, cells, found in zip(axes, sets.values(), every, strict=True):
        axis.axhline(0, color=GRAY, linewidth=0.8)
        places = {}
        for method in [m for m in found if not m.startswith("crops-")]:
            purity, (mean, half) = purity_of(cells, method), found[method]
            if purity is None:
                continue
            if method in MIXES:
                places[method] = purity, mean
                dot(axis, purity, mean, yerr=half, colour=COLOURS["oracle"])
            elif method in COLOURS:
                dot(axis, purity, mean, yerr=half, colour=COLOURS[method], label=method)
            else:
                axis.plot(purity, mean, "o", color=GRAY, markersize=3)
        line = [places[method] for method in MIXES if method in places]
        if line:
            axis.plot(*zip(*line, strict=True), color=COLOURS["oracle"], label="oracle")
        axis.set(xlabel="purity of the accepted neighbours", xlim=(0, 1.05))
        axis.set_ylim(-edge(every), edge(every))
    axes[0].set_ylabel("gain in R@1")
    axes[0].legend(fontsize=8)
    return figure


def purity_of(cells: Cells, method: str) -> float | None:
    return late([c for c in cells if c["method"] == method], "purity")


def dot(
    axis: Axes, x: float, y: float, *, colour: str = BLUE, label: str = "", **half: float
) -> None:
    """Draw a mean with its interval, or hollow where that is not known."""
    known = {name: value for name, value in half.items() if value == value}
    face = {} if known else {"markerfacecolor": "none"}
    style = {"fmt": "o", "color": colour, "markersize": 4, "linewidth": 1}
    axis.errorbar(x, y, **style, **known, **face, label=label)
