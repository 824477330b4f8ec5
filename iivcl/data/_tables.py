"""Text files as rows with their places: plain lists, CSV, JSON lines and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["check_keys", "csv_rows", "json_entries", "numbered_lines", "parse_json"]
__all__ += ["read_text", "wrong"]


def numbered_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the place of every line that is not blank, for messages, and its text."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            yield f"{file}, line {number}", line.strip()


def csv_rows(
    file: Path, *required: str, optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of every row and its fields; the header must name the required columns."""
    lines = io.StringIO(read_text(file), newline="")
    # Strict: a quote that is never closed would swallow the rest of the file.
    reader = csv.DictReader(lines, restval="", skipinitialspace=True, strict=True)
    try:
        header, where = [name.strip() for name in reader.fieldnames or ()], f"{file}, line 1"
        for column in required:
            if column not in header:
                raise ValueError(f"{where}: the header must name a column `{column}`; got {header}")
        if twice := {name for name in header if name and header.count(name) > 1}:
            raise ValueError(f"{where}: the header names {sorted(twice)} more than once")
        check_keys(where, header, (*required, *optional))
        reader.fieldnames = header
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if any(extra := row.pop(None, [])):
                raise wrong(where, "double quotes around a field that holds a comma", extra)
            yield where, row
    except csv.Error as error:
        where = f"{file}, line {reader.line_num + 1}"  # where the row begins
        raise ValueError(f"{where}: not CSV: {error}") from error


def check_keys(where: str, keys: Iterable[str], known: Sequence[str]) -> None:
    """Refuse a key that is a known one but for its case and spaces, and would be passed over."""
    for key in keys:
        if key not in known and key.strip().lower() in known:
            raise ValueError(f"{where}: {key!r} must be written {key.strip().lower()!r}")


def json_entries(file: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of every object in a list of objects that have ``key``, and the object."""
    entries = parse_json(str(file), read_text(file))
    if not isinstance(entries, list):
        raise ValueError(f"{file}: must hold a list; got {type(entries).__name__}")
    for place, entry in enumerate(entries):
        where = f"{file}, entry {place}"
        if not isinstance(entry, dict) or entry.get(key) is None:
            raise wrong(where, f"`{key}`", entry)
        yield where, entry


def parse_json(where: str, text: str) -> Any:
    """Parse JSON, or say where it is not."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error


def wrong(where: str, wanted: str, got: object) -> ValueError:
    """Make the error of a place that holds something else than it must."""
    return ValueError(f"{where}: needs {wanted}; got {got!r}")


def read_text(file: Path) -> str:
    """Return the text of a file in UTF-8, or say which line is not."""
    try:
        return file.read_bytes().decode("utf-8-sig")  # a byte order mark is no part of the text
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
