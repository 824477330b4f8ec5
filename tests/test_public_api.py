"""No public name or signature changes unnoticed."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

import public_api
import pytest


def test_public_names_are_those_of_the_list() -> None:
    listed, found = public_api.FILE.read_text(), public_api.listing("iivcl")
    changes = difflib.unified_diff(listed.splitlines(), found.splitlines(), "listed", "found", n=0)
    assert listed == found, "\n".join(["after a look, run python tests/public_api.py:", *changes])


SOURCE = '''
from typing import Literal, NamedTuple

from toy._inner import Pair

__all__ = ["Pair", "Part", "Sized", "add"]
Mode = Literal["left", "right"]
_Own = Literal["up"]


class Sized(NamedTuple):
    """Fields keep their order."""

    width: int
    height: int = 2


class Part:
    size: int

    def __init__(self, size: int, /, *values: float, mode: Mode = "left", **options: object):
        self.size, self.hidden = size, mode

    def grow(self, by: "int" = 1) -> None: ...
    def _private(self) -> None: ...

    @property
    def area(self) -> int: ...

    @classmethod
    def read(cls, path: str) -> "Part": ...


def add(a, b: int | None = None, *, c: float = 1e-6) -> int: ...
def _add(): ...
'''
LISTING = """\
Mode = Literal['left', 'right']
class toy.Pair
class toy.Part(size: int, /, *values: float, mode: Mode = 'left', **options: object)
property toy.Part.area -> int
toy.Part.grow(by: int = 1) -> None
classmethod toy.Part.read(path: str) -> Part
toy.Part.size: int
class toy.Sized(width: int, height: int = 2)
toy.add(a, b: int | None = None, *, c: float = 1e-06) -> int
"""


def test_list_of_a_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE)
    (package / "_inner.py").write_text("class Pair: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert public_api.listing("toy") == LISTING
    finally:
        for name in ("toy", "toy._inner"):
            sys.modules.pop(name, None)
