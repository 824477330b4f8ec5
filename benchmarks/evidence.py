"""Does the inter term help, when, and by how much? Runs that anyone can repeat, cell by cell.

    python benchmarks/evidence.py --list                         # what there is to run, in order
    python benchmarks/evidence.py --minutes 30                   # the next cells
    python benchmarks/evidence.py --real my_set/ --sets my_set   # of a folder with a manifest.csv
    python benchmarks/evidence.py --page                         # write the page's tables and plots

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
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _evidence_cell import BASELINES, run_cell
from _evidence_methods import METHODS
from _evidence_sets import FOLDS, GENERATED, Videos, fold, load_set, official
from _evidence_tables import QUESTIONS, answer, example, interval, paired, tables, whitened
from _measure import environment

DOCS = Path(__file__).parents[1] / "docs"
CELLS, PAGE, PLOTS = DOCS / "evidence", DOCS / "explanation" / "evidence.md", DOCS / "assets"
BEGIN, END = "<!-- {}: written by benchmarks/evidence.py -->", "<!-- end -->"
HEADLINE = ("intra", "plain", "agreed", "oracle")
FEW, MANY, OFFICIAL = 3, 15, "-official"  # pairs to explore with, and for the headline
FAILURES = 5  # after which a call gives up: a GPU that failed once may fail for ever


class Cell(NamedTuple):
    """One run. Cells that differ in the method alone are compared with each other.

    Another kind of device or number rounds differently, from the first step on, which all methods
    share.
    """

    set: str
    steps: int
    method: str
    fold: int
    seed: int
    on: str = "cpu"

    @property
    def name(self) -> str:
        """Name of its file."""
        device = "" if self.on == "cpu" else f".{self.on}"
        return f"{self.set}-{self.steps}.{self.method}.fold{self.fold}.seed{self.seed}{device}"


def place(name: str, number: int) -> tuple[int, int]:
    """Give the fold and the seed of a pair; an official split has seeds alone."""
    return (0, number) if name.endswith(OFFICIAL) else (number % FOLDS, number // FOLDS)


def plan(
    sets: Sequence[str], steps: int, on: str = "cpu", methods: Sequence[str] | None = None
) -> list[Cell]:
    """List the cells by priority: the headline first, what explores, then more pairs.

    Methods that are named come pair by pair, in their order.
    """

    def pairs(numbers: range, methods: Sequence[str]) -> list[Cell]:
        return [
            Cell(name, steps, method, *place(name, number), on)
            for number in numbers
            for name in sets
            for method in methods
        ]

    if methods is not None:
        return pairs(range(MANY), methods)
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
    load: Callable[[str], Videos],
    *,
    minutes: float,
    device: str = "cpu",
    half: bool = False,
) -> list[str]:
    """Run the cells that are not there until the time is over; return the names of the failed."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline, longest = time.monotonic() + 60 * minutes, 0.0
    loaded: dict[str, Videos] = {}
    failed: list[str] = []

    def check() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    for cell in cells:
        path = folder / f"{cell.name}.json"
        if time.monotonic() + longest > deadline or len(failed) >= FAILURES:
            break
        if path.exists():
            continue
        with claim(path) as mine:
            if not mine or path.exists() or is_hopeless(cell, read_cells(folder)):
                continue
            if cell.set not in loaded:
                loaded[cell.set] = load(cell.set)
            videos, started, computed = loaded[cell.set], time.monotonic(), time.process_time()
            at_end = cell.set.endswith(OFFICIAL)
            split = official(videos) if at_end else fold(videos, cell.fold)
            options = {"steps": cell.steps, "seed": cell.seed, "device": device, "half": half}
            try:
                result = run_cell(videos, split, cell.method, check=check, **options)
            except TimeoutError:
                break  # nothing is written
            except Exception:  # whatever it is, it may concern this cell alone
                failed.append(cell.name)
                print(f"{cell.name} FAILED\n{traceback.format_exc()}", file=sys.stderr, flush=True)
                continue
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
            print(f"{cell.name}: {result['results']}", flush=True)
    return failed


def is_hopeless(cell: Cell, cells: Sequence[dict[str, Any]]) -> bool:
    """Whether its first pairs show that the method is worse than the same without neighbours."""
    if cell.method in BASELINES or cell.method.endswith("intra"):
        return False
    alike = [c for c in cells if (c["set"], c["steps"]) == (cell.set, cell.steps)]
    gains = paired(alike, cell.method, "recall_at_1")
    mean, half = interval(gains)
    return len(gains) >= FEW and mean + half < 0


def with_tables(page: str, cells: Sequence[dict[str, Any]]) -> str:
    """Write the tables into the page, between the marks of each."""
    written = {"example": example(cells), "whitened": whitened(cells), "all": tables(cells)}
    written |= {question: answer(cells, question) for question in QUESTIONS}
    for name, text in written.items():
        head, rest = page.split(BEGIN.format(name))
        page = f"{head}{BEGIN.format(name)}\n\n{text}\n{END}{rest.split(END, 1)[1]}"
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder with a manifest.csv")
    parser.add_argument("--sets", nargs="+", help="default: all but the official split")
    parser.add_argument("--methods", nargs="+", choices=(*BASELINES, *METHODS))
    parser.add_argument(
        "--pairs", type=int, default=MANY, help="how many at most, skipped ones too"
    )
    parser.add_argument(
        "--skip", type=int, default=0, help="so many pairs, which another call runs"
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=60.0, help="that this call may take")
    parser.add_argument("--out", type=Path, default=CELLS)
    parser.add_argument(
        "--generated", type=Path, default=Path(tempfile.gettempdir()) / "iivcl-evidence",
        help="folder of generated and decoded sets",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="train in bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the cells, and run none")
    parser.add_argument("--page", action="store_true", help="write tables and plots, and run none")
    args = parser.parse_args(arguments)
    if args.page:
        from _evidence_plots import draw  # which wants matplotlib

        cells = read_cells(args.out)
        PAGE.write_text(with_tables(PAGE.read_text(), cells))
        draw(cells, PLOTS)
        return
    real = [args.real.resolve().name] if args.real else []
    known = [*real, *GENERATED]
    sets = args.sets or known
    if unknown := set(sets) - {*known, *(name + OFFICIAL for name in real)}:
        parser.error(f"unknown sets {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    on = torch.device(args.device).type + "-bf16" * args.half
    cells = [
        cell
        for cell in plan(sets, args.steps, on, args.methods)
        if (cell.fold, cell.seed)
        in [place(cell.set, number) for number in range(args.skip, args.pairs)]
    ]
    if args.list:
        for cell in cells:
            print("done" if (args.out / f"{cell.name}.json").exists() else "    ", cell.name)
        return

    def load(name: str) -> Videos:
        return load_set(name.removesuffix(OFFICIAL), args.generated, args.real or Path())

    torch.set_num_threads(args.threads)
    how = {"minutes": args.minutes, "device": args.device, "half": args.half}
    if failed := run_cells(cells, args.out, load, **how):
        parser.exit(1, f"failed: {', '.join(failed)}\n")


if __name__ == "__main__":
    main()
