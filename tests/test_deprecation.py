"""A released name that was renamed works with a warning; the table of those is sound and shown."""

from __future__ import annotations

import datetime
import importlib
import re
import sys
import types
from pathlib import Path

import pytest

import iivcl
from iivcl import queues
from iivcl._deprecation import TABLE, Deprecated, as_markdown, deprecated_names

ROOT = Path(__file__).parents[1]
DAY = datetime.date(2031, 5, 1)
ROWS = (
    Deprecated("renamed.OldQueue", "iivcl.queues.MoCoQueue", "0.3.0", DAY),
    Deprecated("renamed.moved", "iivcl.momentum.momentum_copy", "0.4.0", DAY),
    Deprecated("elsewhere.other", "iivcl.queues.MoCoQueue", "0.3.0", DAY),
)


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Give a module with two names of the table and one that it simply has."""
    module = types.ModuleType("renamed")
    module.__getattr__ = deprecated_names("renamed", ROWS)
    module.present = 1
    monkeypatch.setitem(sys.modules, "renamed", module)
    return module


def test_old_name_is_the_new_object_and_the_warning_names_both(renamed: types.ModuleType) -> None:
    message = (
        "renamed.OldQueue is deprecated since iivcl 0.3.0 and will go, not before 2031-05-01; "
        "use iivcl.queues.MoCoQueue"
    )
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(message)}$") as caught:
        assert renamed.OldQueue is queues.MoCoQueue
    assert [warning.filename for warning in caught] == [__file__]  # the line of the user
    with pytest.warns(DeprecationWarning, match=r"use iivcl\.momentum\.momentum_copy") as caught:
        from renamed import moved
    assert [warning.filename for warning in caught] == [__file__]
    assert moved is iivcl.momentum.momentum_copy


@pytest.mark.parametrize("name", ["unknown", "other", "__path__"])
def test_other_names_are_missing_as_ever(renamed: types.ModuleType, name: str) -> None:
    with pytest.raises(AttributeError, match=f"^module 'renamed' has no attribute '{name}'$"):
        getattr(renamed, name)
    assert renamed.present == 1  # without a warning, which would be an error here


def test_hook_as_it_is_described() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    module = types.ModuleType("described")
    exec(block, vars(module))
    with pytest.raises(AttributeError, match=r"^module 'described' has no attribute 'unknown'$"):
        module.unknown  # noqa: B018


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_row_of_the_table_holds(row: Deprecated) -> None:
    """The hook is in place, the new name public, the old one not, and its version is out."""
    module, _, old = row.name.rpartition(".")
    home, _, new = row.replacement.rpartition(".")
    assert old not in importlib.import_module(module).__all__
    assert new in importlib.import_module(home).__all__
    with pytest.warns(DeprecationWarning, match=re.escape(row.replacement)):
        value = getattr(importlib.import_module(module), old)
    assert value is getattr(importlib.import_module(home), new)
    assert version(row.since) <= version(iivcl.__version__)


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")[:3]))


def test_table_as_markdown() -> None:
    assert as_markdown(()) == "No name is deprecated.\n"
    assert as_markdown(ROWS[:1]).splitlines() == [
        "| name | use instead | deprecated since | removed not before |",
        "| --- | --- | --- | --- |",
        "| `renamed.OldQueue` | `iivcl.queues.MoCoQueue` | 0.3.0 | 2031-05-01 |",
    ]


def test_the_changelog_page_shows_the_table() -> None:
    page = (ROOT / "docs" / "changelog.md").read_text()
    assert page.partition("## Deprecated names\n")[2].endswith(f"\n\n{as_markdown()}")
