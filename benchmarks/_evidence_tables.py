"""The tables of the evidence: cells in pairs, and what their differences are worth."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from _evidence_cell import BASELINES
from _evidence_methods import METHODS
from _measure import table

Cells = Sequence[dict[str, Any]]
METRICS = {
    "recall_at_1": "R@1",
    "recall_at_5": "R@5",
    "mean_average_precision": "mAP",  # which older cells lack
    "knn": "kNN",
    "linear": "linear",
}
GAINS = ["against", "R@1 gain", "linear gain", "pairs", "mAP gain (pairs)"]
CURVES = {
    "nearest_purity": "purity of 5 nearest",
    "nearest_same_person": "of the same person",
    "accepted": "accepted",
    "purity": "their purity",
}
ENDS = ["R@1 without", "R@1 with", "gain", "mAP without", "mAP with", "gain"]
WHITENED = ["R@1", "R@1 whitened", "difference", "mAP", "mAP whitened", "difference"]
EXAMPLE = "changes-four-times"  # what examples/train_minimal.py does
HEADER = ["method", "cells", *METRICS.values(), *GAINS, *CURVES.values()]
# What each question compares, in the order of the page.
QUESTIONS = {
    "pure": ("oracle-30", "oracle-50", "oracle-70", "oracle-85", "oracle", "oracle-k1",
             "oracle-k10", "plain"),
    "purer": ("plain", "agreed-people", "mutual", "agreed", "mean", "gate", "second-view",
              "agreed-second-view", "second-view-from-0-twice", "videos", "mutual-videos", "apart",
              "agreed-apart", "second-view-apart", "agreed-second-view-apart",
              "both-views-videos-apart", "queue-2048"),
    "harmless": ("plain", "soft", "own-key", "soft-own", "gate-own", "predictor", "own-head",
                 "spare"),
    "when": ("plain", "nearest-from-0", "gate-from-0", "late", "half", "twice", "four-times",
             "agreed-four-times", "k1", "k10", "k20", "some-of-20", "agreed-k20", "agreed-k40",
             "form-in", "form-per-positive"),
    "sees": ("changes-intra",),
    "adds": ("changes-plain", "changes-twice", "changes-four-times", "changes-four-times-from-0",
             "changes-four-times-ramp", "changes-four-times-late", "changes-four-times-k1",
             "changes-four-times-in", "changes-four-times-warm", "changes-four-times-cold",
             "changes-eight-times", "changes-k20", "changes-k20-twice", "changes-agreed",
             "changes-agreed-four-times", "changes-apart-four-times", "changes-takes",
             "changes-takes-four-times", "changes-again-videos", "changes-oracle"),
    "crops": ("plain", "oracle", "crops-intra", "crops-plain", "crops-oracle"),
    "longer": ("plain", "gate", "oracle", "changes-four-times"),
}  # fmt: skip


def partner(method: str) -> str:
    """Name the method that lacks the neighbours, and is else the same."""
    own = f"{method.split('-')[0]}-intra"
    return own if own in METHODS and own != method else "intra"


def both(cells: Cells, method: str, metric: str) -> list[tuple[float, float]]:
    """Put the results of a method after those of its partner of the same fold, seed and device."""
    of: dict[str, dict[tuple[Any, ...], float]] = {method: {}, partner(method): {}}
    for cell in cells:
        if cell["method"] in of and metric in cell["results"]:
            pair = cell["fold"], cell["seed"], cell["on"]
            of[cell["method"]][pair] = cell["results"][metric]
    without = of[partner(method)]
    return [(without[pair], value) for pair, value in of[method].items() if pair in without]


def paired(cells: Cells, method: str, metric: str) -> list[float]:
    """Subtract from a method's results those of its partner of the same fold, seed and device."""
    return [after - before for before, after in both(cells, method, metric)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval by Student's t; NaN if unknown."""
    n = len(values)
    mean = statistics.fmean(values) if values else float("nan")
    if n < 2:
        return mean, float("nan")
    return mean, t_quantile(n - 1) * statistics.stdev(values) / n**0.5


def t_quantile(freedom: int) -> float:
    """Return t within which 95 % of Student's distribution lies.

    With ``t = sqrt(freedom) tan(a)`` its density becomes ``cos(a) ** (freedom - 1)``.
    """
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    share = np.append(0, np.cumsum(density[1:] + density[:-1]))
    return float(freedom**0.5 * np.tan(np.interp(0.95 * share[-1], share, angle)))


def groups(cells: Cells) -> dict[tuple[str, int], Cells]:
    """Part the cells by set and number of steps; those of a group are compared with each other."""
    parts: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in sorted(cells, key=lambda c: (c["set"], c["steps"])):
        parts.setdefault((cell["set"], cell["steps"]), []).append(cell)
    for (name, _), part in parts.items():
        if len({json.dumps(cell["setting"]) for cell in part}) > 1:
            raise ValueError(f"cells of {name} are of different settings: remove the older ones")
    return parts


def main_groups(cells: Cells) -> dict[tuple[str, int], Cells]:
    """Take of every set the number of steps at which most cells were trained."""
    best: dict[str, tuple[int, int]] = {}
    for (name, steps), part in groups(cells).items():
        rank = sum(bool(cell["curves"]) for cell in part), steps
        best[name] = max(best.get(name, (1, 0)), rank)
    return {key: part for key, part in groups(cells).items() if best[key[0]][1] == key[1]}


def tables(cells: Cells) -> str:
    """Write one table of all methods for every set and number of steps."""
    parts = []
    for (name, steps), chosen in groups(cells).items():
        found = {c["method"] for c in chosen}
        rows = [row(chosen, method) for method in (*BASELINES, *METHODS) if method in found]
        trained = [c["cpu_seconds"] for c in chosen if c["curves"]]
        machines = {c["environment"].get("gpu", "a CPU") for c in chosen if c["curves"]}
        cost = f"{statistics.median(trained):.0f} CPU-seconds" if trained else "-"
        parts.append(
            f"### {name}, {steps:,} steps\n\n{table(HEADER, rows)}\n"
            f"Median cost of a trained cell: {cost}; on {', '.join(sorted(machines)) or '-'}.\n"
        )
    return "\n".join(parts)


def answer(cells: Cells, question: str) -> str:
    """Write the table of one question, or say that it has no pair."""
    methods, chosen = QUESTIONS[question], groups(cells)
    if question not in ("adds", "crops", "longer"):  # which are asked of runs of every length
        most = main_groups([cell for cell in cells if cell["method"] in methods])
        chosen = {key: chosen[key] for key in most}
    rows = []
    for method in methods:
        for (name, steps), part in chosen.items():
            if paired(part, method, "recall_at_1"):
                line = row(part, method)
                rows.append([method, f"{name}, {steps:,}", *line[2 + len(METRICS) :]])
    if not rows:
        return "Not yet measured.\n"
    return table(["method", "set, steps", *GAINS, *CURVES.values()], rows)


def example(cells: Cells) -> str:
    """Write what neighbours add to the encoder of the example, by its settings, on every set."""
    rows = []
    for (name, steps), part in groups(cells).items():
        line = [f"{name}, {steps:,}", str(len(both(part, EXAMPLE, "recall_at_1")))]
        for metric in ("recall_at_1", "mean_average_precision"):
            ends = zip(*both(part, EXAMPLE, metric), strict=True)
            line += [f"{statistics.fmean(values):.3f}" for values in ends] or ["-", "-"]
            line.append(signed(*interval(paired(part, EXAMPLE, metric))))
        rows += [line] * (line[1] != "0")
    if not rows:
        return "Not yet measured.\n"
    return table(["set, steps", "pairs", *ENDS], rows)


def whitened(cells: Cells) -> str:
    """Write what whitening adds to the features of each method, cell by cell."""
    rows = []
    for (name, steps), part in groups(cells).items():
        for method in (*BASELINES, *METHODS):
            found = [c["results"] for c in part if c["method"] == method]
            found = [r for r in found if "whitened_recall_at_1" in r]
            line = [method, f"{name}, {steps:,}", str(len(found))]
            for metric in ("recall_at_1", "mean_average_precision"):
                before, after = ([r[p + metric] for r in found] for p in ("", "whitened_"))
                gains = [b - a for a, b in zip(before, after, strict=True)]
                means = [f"{statistics.fmean(x):.3f}" for x in (before, after) if x]
                line += [*means, signed(*interval(gains))]
            rows += [line] * bool(found)
    if not rows:
        return "Not yet measured.\n"
    return table(["method", "set, steps", "cells", *WHITENED], rows)


def row(cells: Cells, method: str) -> list[str]:
    own = [c for c in cells if c["method"] == method]
    results = [[c["results"][m] for c in own if m in c["results"]] for m in METRICS]
    gains = [paired(cells, method, metric) for metric in ("recall_at_1", "linear")]
    precise = paired(cells, method, "mean_average_precision")
    alone = method == "intra"
    curves = [late(own, name) for name in CURVES]
    return [
        method,
        str(len(own)),
        *(f"{statistics.fmean(values):.3f}" if values else "-" for values in results),
        "-" if alone else partner(method),
        *("-" if alone else signed(*interval(gain)) for gain in gains),
        "-" if alone else str(len(gains[0])),
        f"{signed(*interval(precise))} ({len(precise)})" if precise and not alone else "-",
        *("-" if value is None else f"{value:.2f}" for value in curves),
    ]


def signed(mean: float, half: float) -> str:
    if mean != mean:
        return "-"
    if half != half:
        return f"{mean:+.3f}"
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def late(cells: Cells, name: str) -> float | None:
    """Average a curve over the last quarter of its points and over cells."""
    points = [p.get(name) for c in cells for p in c["curves"][-(len(c["curves"]) // 4) :]]
    values = [value for value in points if value is not None]
    return statistics.fmean(values) if values else None
