"""Released names that were renamed: they work, with a warning, until the day in the table."""

from __future__ import annotations

import datetime
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Deprecated(NamedTuple):
    """One name that was released and has another now.

    Args:
        name: Full path of the old name, such as ``"iivcl.queues.SupportQueue"``.
        replacement: Full path of the new one.
        since: First version that warns.
        removal: Day before which no version without the old name is released.
    """

    name: str
    replacement: str
    since: str
    removal: datetime.date


TABLE: tuple[Deprecated, ...] = ()


def deprecated_names(module: str, table: Sequence[Deprecated] = TABLE) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a public module, which Python calls for names that it lacks.

    Type checkers must not see it, or they would take any name to exist:

        if not TYPE_CHECKING:
            __getattr__ = deprecated_names(__name__)

    Args:
        module: Path of the module.
        table: Names to look in.

    Returns:
        A function that gives what a deprecated name stands for, with a ``DeprecationWarning`` that
        points at the line of the user, and raises ``AttributeError`` for any other name.
    """
    renamed = {row.name: row for row in table}

    def __getattr__(name: str) -> Any:
        row = renamed.get(f"{module}.{name}")
        if row is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = row.replacement.rpartition(".")
        warnings.warn(
            f"{row.name} is deprecated since iivcl {row.since} and will go, not before "
            f"{row.removal.isoformat()}; use {row.replacement}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(home), new)

    return __getattr__


def as_markdown(table: Sequence[Deprecated] = TABLE) -> str:
    """Write the table as it stands in the documentation."""
    if not table:
        return "No name is deprecated.\n"
    head = "| name | use instead | deprecated since | removed not before |", "| --- " * 4 + "|"
    rows = (
        f"| `{row.name}` | `{row.replacement}` | {row.since} | {row.removal.isoformat()} |"
        for row in table
    )
    return "".join(f"{line}\n" for line in (*head, *rows))
