"""Fixtures shared by every test file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import iivcl


def pytest_report_header() -> str:
    return f"iivcl {iivcl.__version__} from {iivcl.__path__[0]}, torch {torch.__version__}"


@pytest.fixture(autouse=True)
def seeded_and_restored_rng() -> Iterator[None]:
    """Start every test from one seed, and let none leave its random state to the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def subnormal_floats() -> Iterator[None]:
    """Switch subnormal floats on again after a test that has compiled with torch 2.4.

    Its inductor links kernels with ``-ffast-math``, and loading one switches them off for good, in
    the whole process.
    """
    yield
    torch.set_flush_denormal(False)
