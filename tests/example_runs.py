"""Examples started within this process, which has imported torch."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


class Done(NamedTuple):
    """How a run ended, and what it printed."""

    status: object
    out: str
    err: str


def load(name: str = "pretrain") -> ModuleType:
    """Import an example as if it were started from its folder."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    return importlib.import_module(name)


def start(name: str, *arguments: object, capsys: pytest.CaptureFixture[str]) -> Done:
    """Run an example as its command line does."""
    status: object = 0
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            load(name).main()
        except SystemExit as ended:
            status = ended.code
        finally:
            torch.set_num_threads(threads)
    return Done(status, *capsys.readouterr())
