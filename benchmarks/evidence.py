"""Does the inter term help, when, and by how much? Runs that anyone can repeat, cell by cell.

    python benchmarks/evidence.py --list                         # what there is to run, in order
    python benchmarks/evidence.py --minutes 30                   # the next cells
    python benchmarks/evidence.py --real my_set/ --sets my_set   # of a folder with a manifest.csv
    python benchmarks/evidence.py --page                         # write the tables of the page

A cell is a set, a number of steps, a method, a fold and a seed; its results and curves are one
file in ``docs/evidence``. A cell that is there is never run again, and several calls share the
work: each takes what no other is at. A fold leaves out some of the people of the training set, so
that methods are chosen without the official test people; those are the set ``<folder>-official``,
which runs only when it is named, once, at the end.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _evidence_cell import BASELINES, run_cell
from _evidence_methods import METHODS
from _evidence_sets import FOLDS, GENERATED, Videos, fold, load, load_generated, official
from _measure import environment, table

ROOT = Path(__file__).parents[1]
CELLS, PAGE = ROOT / "docs" / "evidence", ROOT / "docs" / "explanation" / "evidence.md"
BEGIN, END = "<!-- written by benchmarks/evidence.py -->", "<!-- end -->"
HEADLINE = ("intra", "plain", "oracle", "gate")
FEW, MANY, OFFICIAL = 3, 15, "-official"  # pairs to explore with, and for the headline


class Cell(NamedTuple):
    """One run. Cells of the same set, steps, fold and seed are compared with each other."""

    set: str
    steps: int
    method: str
    fold: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.set}-{self.steps}.{self.method}.fold{self.fold}.seed{self.seed}"


def plan(sets: Sequence[str], steps: int) -> list[Cell]:
    """List the cells by priority: the headline pair first, what explores, then more pairs."""

    def pairs(numbers: range, methods: Sequence[str]) -> list[Cell]:
        return [
            Cell(name, steps, method, number % FOLDS, number // FOLDS)
            for number in numbers
            for name in sets
            for method in methods
        ]

    rest = [method for method in METHODS if method not in HEADLINE]
    baselines = pairs(range(FOLDS), BASELINES)
    few, more = pairs(range(FEW), HEADLINE), pairs(range(FEW, MANY), HEADLINE)
    return baselines + few + pairs(range(FEW), rest) + more


def read_cells(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Hold a lock of ``path``, which ends with this process; False when another holds it."""
    lock = Path(tempfile.gettempdir()) / f"iivcl-{zlib.crc32(str(path.resolve()).encode())}.lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            lock.unlink(missing_ok=True)


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    load_set: Callable[[str], Videos],
    *,
    minutes: float,
    device: str = "cpu",
) -> int:
    """Run the cells that are not there until the time is over; return how many were run."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline, longest, done = time.monotonic() + 60 * minutes, 0.0, 0
    loaded: dict[str, Videos] = {}

    def check() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    for cell in cells:
        path = folder / f"{cell.name}.json"
        if time.monotonic() + longest > deadline:
            break
        if path.exists():
            continue
        with claim(path) as mine:
            if not mine or path.exists() or is_hopeless(cell, read_cells(folder)):
                continue
            if cell.set not in loaded:
                loaded[cell.set] = load_set(cell.set)
            videos, started, computed = loaded[cell.set], time.monotonic(), time.process_time()
            at_end = cell.set.endswith(OFFICIAL)
            split = official(videos) if at_end else fold(videos, cell.fold)
            options = {"steps": cell.steps, "seed": cell.seed, "device": device}
            try:
                result = run_cell(videos, split, cell.method, check=check, **options)
            except TimeoutError:
                break  # nothing is written
            longest = max(longest, time.monotonic() - started)
            report = {
                **cell._asdict(),
                "cpu_seconds": round(time.process_time() - computed, 1),
                "environment": environment(device, []),
                **result,
            }
            unfinished = path.with_suffix(".tmp")
            unfinished.write_text(json.dumps(report, indent=1) + "\n")
            unfinished.replace(path)
            done += 1
            print(f"{cell.name}: {result['results']}", flush=True)
    return done


def is_hopeless(cell: Cell, cells: Sequence[dict[str, Any]]) -> bool:
    """Whether the method is known by its first pairs to be worse than the intra term alone."""
    if cell.method in (*BASELINES, "intra"):
        return False
    alike = [c for c in cells if (c["set"], c["steps"]) == (cell.set, cell.steps)]
    gains = paired(alike, cell.method, "recall_at_1")
    mean, half = interval(gains)
    return len(gains) >= FEW and mean + half < 0


def paired(cells: Sequence[dict[str, Any]], method: str, metric: str) -> list[float]:
    """Subtract from a method's results those of ``intra`` of the same fold and seed."""
    values = {(c["method"], c["fold"], c["seed"]): c["results"][metric] for c in cells}
    return [
        value - values["intra", number, seed]
        for (name, number, seed), value in values.items()
        if name == method and ("intra", number, seed) in values
    ]


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


def tables(cells: Sequence[dict[str, Any]]) -> str:
    """Write one table for every set and number of steps."""
    parts = []
    for name, steps in sorted({(c["set"], c["steps"]) for c in cells}):
        chosen = [c for c in cells if (c["set"], c["steps"]) == (name, steps)]
        if len({json.dumps(c["setting"]) for c in chosen}) > 1:
            raise ValueError(f"cells of {name} are of different settings: remove the older ones")
        found = {c["method"] for c in chosen}
        methods = [method for method in (*BASELINES, *METHODS) if method in found]
        trained = [c["cpu_seconds"] for c in chosen if c["curves"]]
        cost = f"{statistics.median(trained):.0f} CPU-seconds" if trained else "-"
        parts.append(
            f"### {name}, {steps} steps\n\n"
            + table(HEADER, [row(chosen, method) for method in methods])
            + f"\nCost of a trained cell (median): {cost}.\n"
        )
    return "\n".join(parts)


METRICS = {"recall_at_1": "R@1", "recall_at_5": "R@5", "knn": "kNN", "linear": "linear"}
HEADER = [
    "method", "cells", *METRICS.values(), "R@1 - intra", "linear - intra", "pairs",
    "purity of 5 nearest", "accepted", "their purity",
]  # fmt: skip


def row(cells: Sequence[dict[str, Any]], method: str) -> list[str]:
    own = [c for c in cells if c["method"] == method]
    means = [statistics.fmean(c["results"][metric] for c in own) for metric in METRICS]
    gains = [paired(cells, method, metric) for metric in ("recall_at_1", "linear")]
    shown = ["-" if method == "intra" else signed(*interval(gain)) for gain in gains]
    curves = [late(own, name) for name in ("nearest_purity", "accepted", "purity")]
    return [
        method,
        str(len(own)),
        *(f"{mean:.3f}" for mean in means),
        *shown,
        str(len(gains[0])),
        *("-" if value is None else f"{value:.2f}" for value in curves),
    ]


def signed(mean: float, half: float) -> str:
    if mean != mean:
        return "-"
    if half != half:
        return f"{mean:+.3f}"
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def late(cells: Sequence[dict[str, Any]], name: str) -> float | None:
    """Average a curve over the last quarter of its points and over cells."""
    points = [p.get(name) for c in cells for p in c["curves"][-(len(c["curves"]) // 4) :]]
    values = [value for value in points if value is not None]
    return statistics.fmean(values) if values else None


def with_tables(page: str, cells: Sequence[dict[str, Any]]) -> str:
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables(cells)}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder with a manifest.csv")
    parser.add_argument("--sets", nargs="+", help="default: all but the official split")
    parser.add_argument("--methods", nargs="+", choices=(*BASELINES, *METHODS))
    parser.add_argument("--pairs", type=int, default=MANY, help="how many at most")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=60.0, help="that this call may take")
    parser.add_argument("--out", type=Path, default=CELLS)
    parser.add_argument(
        "--generated", type=Path, default=Path(tempfile.gettempdir()) / "iivcl-evidence",
        help="folder of the generated sets",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the cells, and run none")
    parser.add_argument("--page", action="store_true", help="write the tables, and run none")
    args = parser.parse_args(arguments)
    if args.page:
        PAGE.write_text(with_tables(PAGE.read_text(), read_cells(args.out)))
        return
    real = [args.real.resolve().name] if args.real else []
    known = [*real, *GENERATED]
    sets = args.sets or known
    if unknown := set(sets) - {*known, *(name + OFFICIAL for name in real)}:
        parser.error(f"unknown sets {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    cells = [
        cell
        for cell in plan(sets, args.steps)
        if cell.method in (args.methods or (*BASELINES, *METHODS))
        and cell.fold + FOLDS * cell.seed < args.pairs
        and (cell.fold == 0 or not cell.set.endswith(OFFICIAL))
    ]
    if args.list:
        for cell in cells:
            print("done" if (args.out / f"{cell.name}.json").exists() else "    ", cell.name)
        return

    def load_set(name: str) -> Videos:
        if name in GENERATED:
            args.generated.mkdir(parents=True, exist_ok=True)
            return load_generated(name, args.generated)
        return load(args.real / "manifest.csv")

    torch.set_num_threads(args.threads)
    run_cells(cells, args.out, load_set, minutes=args.minutes, device=args.device)


if __name__ == "__main__":
    main()
