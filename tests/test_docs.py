"""The documentation is complete, and all code in it runs. The site has tests of its own."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import iivcl

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MODULES = ["iivcl", *(m.name for m in pkgutil.walk_packages(iivcl.__path__, "iivcl."))]
PUBLIC_MODULES = [name for name in MODULES if "._" not in name]

DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def public_names() -> dict[str, object]:
    """Give every public object under its path; those at the top level have a longer one too."""
    names = {}
    for path in PUBLIC_MODULES[1:]:
        module = importlib.import_module(path)
        for name in module.__all__:
            if not isinstance(getattr(module, name), ModuleType):
                names[f"{path}.{name}"] = getattr(module, name)
    return names


def documented_names() -> Counter[str]:
    return Counter(name for page in PAGES for name in DIRECTIVE.findall(page.read_text()))


def test_every_public_name_is_documented_once_and_nothing_else_is() -> None:
    assert documented_names() == Counter(public_names().keys())


def test_headline_names_are_documented_where_they_live() -> None:
    homes = {id(value) for value in public_names().values()}
    for name in iivcl.__all__:
        value = getattr(iivcl, name)
        assert isinstance(value, ModuleType) or id(value) in homes, name


def test_every_public_name_has_a_runnable_example() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    public = public_names()
    without = {
        name
        for name, value in public.items()
        if not any(test.examples for test in finder.find(value, name))
    }
    classes = {name: public[name] for name in without if isinstance(public[name], type)}
    # Results and errors are shown by what returns or raises them, a base class by its subclasses.
    results = {name for name, value in classes.items() if issubclass(value, tuple | Exception)}
    bases = {name for name, value in classes.items() if value.__subclasses__()}
    assert without - results - bases == set()


@pytest.mark.parametrize(
    "path",
    # Processes take long to start.
    [pytest.param(m, marks=[pytest.mark.slow] if m == "iivcl.testing" else []) for m in MODULES],
)
def test_docstring_examples(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(path)
    # What a reader of the public module has at hand.
    public = importlib.import_module(re.sub(r"\._.*", "", path))
    names = {name: getattr(public, name) for name in public.__all__}
    runner = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF)
    report: list[str] = []
    for test in doctest.DocTestFinder().find(
        module, extraglobs={**names, "torch": torch, "nn": nn, "F": F}
    ):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize(
    "page",
    [page for page in (*ROOT.glob("README.md"), *PAGES) if PYTHON_BLOCK.search(page.read_text())],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_code_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the Python blocks of one page one after the other, as a reader would."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict[str, object] = {"__name__": "__main__"}
    for block in PYTHON_BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        code = "\n" * line + block.group(1)  # so that an error names the line of the page
        exec(compile(code, str(page), "exec"), names)


def test_quickstart_is_one_loop_wherever_it_stands() -> None:
    """The same training loop, to the letter, on the README, the home page and in the tutorial."""
    pages = ("README.md", "docs/index.md", "docs/tutorial/first-run.md")
    loops = []
    for page in pages:
        blocks = PYTHON_BLOCK.findall((ROOT / page).read_text())
        [block] = [b for b in blocks if "queue.enqueue(k, ids)  # the only call that writes" in b]
        loops.append(block[block.index("for epoch in ") :])
    assert loops[0] == loops[1] == loops[2]
    assert "print(" in loops[0]
