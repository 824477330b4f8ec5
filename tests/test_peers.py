"""The losses of other libraries, put together from ours, and the faults that ours do not share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from peer_faults import FAULTS, Fault
from peers import COMPARISONS, Comparison

REPORT = Path(__file__).parents[1] / "docs" / "parity.md"


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda c: c.method)
def test_value_and_gradient_are_those_of_the_peer(comparison: Comparison) -> None:
    value, gradient = comparison.differences()
    assert value < 1e-12
    assert gradient < 1e-12


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda c: c.method)
def test_no_comparison_is_of_zeros(comparison: Comparison) -> None:
    ours, _, inputs = comparison.losses()
    ours.backward()
    assert ours.item() > 0.5
    for tensor in inputs:
        assert tensor.grad is not None
        assert (tensor.grad.norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.measure.__name__)
def test_fault_of_a_peer(fault: Fault) -> None:
    """Should a peer have mended one, take it out of the list and write the report anew."""
    assert fault.measure() == (fault.theirs, fault.ours)


def test_the_report_lists_what_is_run() -> None:
    comparisons, faults = map(table_rows, REPORT.read_text().split("\n## ")[1:])
    assert [(method, peer, call, ours) for method, peer, _, call, ours, _ in comparisons] == [
        (c.method, c.peer, c.call, c.ours) for c in COMPARISONS
    ]
    assert [(peer, call, run, theirs, ours) for peer, _, call, run, theirs, ours in faults] == [
        (f.peer, f.call, f.run, f.theirs, f.ours) for f in FAULTS
    ]


def table_rows(section: str) -> list[list[str]]:
    lines = re.findall(r"^\| (.+) \|$", section, re.MULTILINE)
    return [line.split(" | ") for line in lines[2:]]  # below the head and its rule
