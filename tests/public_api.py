"""Write ``tests/public_api.txt``: every public name of the library, with its signature.

    python tests/public_api.py

Run it when a name or an argument is added, and commit the difference. A name that was released goes
only a year after it was deprecated. Signatures are read from the source, so that they are the
same under every version of Python and torch.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import griffe

FILE = Path(__file__).with_suffix(".txt")
INIT = "__init__"
STARS = {"variadic positional": "*", "variadic keyword": "**"}


def main() -> None:
    FILE.write_text(listing("iivcl"))


def listing(package: str) -> str:
    """Give one line per public name, per member of a class and per choice of strings, sorted."""
    root = importlib.import_module(package)
    found = pkgutil.walk_packages(root.__path__, f"{package}.")
    modules = [package, *(module.name for module in found if "._" not in module.name)]
    tree = griffe.load(package, search_paths=[Path(root.__path__[0]).parent])
    lines = set(choices(tree))
    for module in modules:
        for name in importlib.import_module(module).__all__:
            path = f"{module}.{name}"
            item = tree[path.removeprefix(f"{package}.")]
            home = item.canonical_path.rpartition(".")[0].partition("._")[0]
            is_headline = module == package != home and not item.is_module
            lines |= {f"{path} is {home}.{name}"} if is_headline else set(describe(path, item))
    return "".join(f"{line}\n" for line in sorted(lines, key=sort_key))


def sort_key(line: str) -> str:
    """By path: what stands before it, as ``class``, does not count."""
    return re.sub(r"^(class|property|classmethod|staticmethod) ", "", line)


def choices(module: griffe.Module) -> Iterator[str]:
    """Give what the names stand for that signatures use for a choice of strings."""
    for member in module.members.values():
        if member.is_alias:  # imported from elsewhere
            continue
        if member.is_module:
            yield from choices(member)
        elif member.name[0] != "_" and str(getattr(member, "value", "")).startswith("Literal["):
            yield f"{member.name} = {member.value}"


def describe(path: str, item: griffe.Object | griffe.Alias) -> Iterator[str]:
    if item.is_module:
        yield f"{path}: module"
    elif item.is_class:
        public = {n: m for n, m in item.all_members.items() if not n.startswith("_")}
        fields = [
            f"{name}: {member.annotation}" + (f" = {member.value}" if member.value else "")
            for name, member in public.items()
            if is_field(member)
        ]
        is_tuple = "NamedTuple" in map(str, item.bases)
        called = f"({', '.join(fields)})" if is_tuple else signature(item.all_members.get(INIT))
        yield f"class {path}{called}"
        for name, member in public.items():
            is_untyped = member.is_attribute and member.annotation is None  # set in __init__
            if not is_untyped and not (is_tuple and is_field(member)):
                yield from describe(f"{path}.{name}", member)
    elif item.is_function:
        kinds = sorted(item.labels & {"classmethod", "staticmethod"})
        yield " ".join([*kinds, f"{path}{signature(item)}{arrow(item.returns)}"])
    elif "property" in item.labels:
        yield f"property {path}{arrow(item.annotation)}"
    else:
        yield f"{path}: {item.annotation}" if item.annotation else f"{path} = {item.value}"


def is_field(member: griffe.Object | griffe.Alias) -> bool:
    return member.is_attribute and member.annotation is not None and "property" not in member.labels


def arrow(returns: object) -> str:
    return f" -> {returns}" if returns is not None else ""


def signature(function: griffe.Object | griffe.Alias | None) -> str:
    if function is None:
        return ""
    written: list[str] = []
    for parameter in function.parameters:
        kind = parameter.kind.value if parameter.kind else ""
        if kind == "keyword-only" and not any(text.startswith("*") for text in written):
            written.append("*")
        text = STARS.get(kind, "") + parameter.name
        if parameter.annotation is not None:
            text += f": {parameter.annotation}"
        if parameter.default is not None and kind not in STARS:
            text += f" = {parameter.default}"
        if parameter.name not in ("self", "cls"):
            written.append(text)
        if kind == "positional-only":
            written = [text for text in written if text != "/"] + ["/"]
    return f"({', '.join(written)})"


if __name__ == "__main__":
    main()
