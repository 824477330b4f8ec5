"""Fixtures shared by every test file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

import iivcl

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


if "OMP_NUM_THREADS" not in os.environ:
    # Shapes are small: a second thread waits for the first, and on a busy machine for long.
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Give ``-n auto`` a worker for every core, up to eight: each needs 3 GiB."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, 8)


def pytest_report_header() -> str:
    return f"iivcl {iivcl.__version__} from {iivcl.__path__[0]}, torch {torch.__version__}"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Start one browser for all tests that look at pages."""
    from headless import find_browser, start_browser

    found = find_browser()
    if found is None:
        missing = "a browser with its driver (apt-get install chromium chromium-driver)"
        if os.environ.get("CI"):
            pytest.fail(f"needs {missing}")
        pytest.skip(f"needs {missing}")
    with start_browser(found, tmp_path_factory.mktemp("profile")) as chrome:
        chrome.get("about:blank")  # the first page of the browser itself loads this and that
        yield chrome


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
