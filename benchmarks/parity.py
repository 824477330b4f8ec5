"""Compare the losses with those of other libraries and write ``docs/parity.md``.

    python benchmarks/parity.py

The comparisons are those of ``tests/peers.py`` and ``tests/peer_faults.py``, which the tests run
as well.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import iivcl

ROOT = Path(__file__).parents[1]

PAGE = """\
# Parity with other libraries

Written by `python benchmarks/parity.py`, in a checkout with `pip install -e .[dev]`. The tests run
the same comparisons.

iivcl {iivcl}, torch {torch}, Python {python}, CPU.

## Same value, same gradient

Each function on our side stands in [how to put a loss together](how-to/losses.md). Inputs are
random, in float64; both sides see the same queue. The differences are the largest absolute ones: of
the loss, and of any entry of its gradient. Where no installable library has the loss, its formula
is written out in torch.

{comparisons}

## Different results

Cases in which these versions of the libraries return something else than their users may expect,
each run here on inputs made for it. A test runs every row, so that a row goes when a library
changes.

{faults}
"""


def main() -> None:
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT / "tests"))
    peers, peer_faults = (importlib.import_module(name) for name in ("peers", "peer_faults"))
    page = PAGE.format(
        iivcl=iivcl.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        comparisons=table(
            ["method", "compared with", "version", "their call", "ours", "value, gradient"],
            [comparison_row(comparison) for comparison in peers.COMPARISONS],
        ),
        faults=table(
            ["library", "version", "call", "what is run", "theirs", "iivcl"],
            [fault_row(fault) for fault in peer_faults.FAULTS],
        ),
    )
    (ROOT / "docs" / "parity.md").write_text(page)


def comparison_row(comparison: Any) -> list[str]:
    value, gradient = comparison.differences()
    method, peer, call, ours, _ = comparison
    return [method, peer, version(peer), call, ours, f"{value:.0e}, {gradient:.0e}"]


def fault_row(fault: Any) -> list[str]:
    theirs, ours = fault.measure()
    return [fault.peer, version(fault.peer), fault.call, fault.run, theirs, ours]


def version(peer: str) -> str:
    try:
        return importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError:
        return "-"  # a formula has none


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
