"""The page of benchmarks is written out of the results, and the results agree with themselves."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("pages")


def test_page_is_what_the_script_writes(pages: ModuleType) -> None:
    written = pages.page(pages.read_results(pages.RESULTS))
    assert pages.PAGE.read_text() == written, "run python benchmarks/pages.py"


def test_chart_shows_the_ratios_that_were_measured(pages: ModuleType) -> None:
    chart = pages.chart(pages.read_results(pages.RESULTS))
    assert chart.count("<li>") == len(pages.CHART)
    for area, text, label, peer in pages.CHART:
        reports = [json.loads(path.read_text()) for path in RESULTS if path.name.startswith(area)]
        targets = [target for report in reports for target in report.get("targets", [])]
        measured = {target["measured"] for target in targets if target["target"] == text}
        (row,) = (row for row in chart.splitlines() if f"{label} <small>/ {peer}<" in row)
        shown = re.search("<b>(.*)</b>", row)
        assert shown is not None
        assert sorted(shown[1].split(", ")) == sorted(f"{ratio:.2f}" for ratio in measured)


def test_chart_has_an_axis(pages: ModuleType) -> None:
    """The ends of the logarithmic axis, the middle between them, and what lies outside."""
    middle = (pages.LEAST * pages.MOST) ** 0.5
    places = [pages.place(x) for x in (0.0001, pages.LEAST, middle, pages.MOST, 1000)]
    assert places == pytest.approx([0, 0, 50, 100, 100])


def test_a_ratio_that_was_not_measured_is_an_error(
    pages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "CHART", (("queues", "time of nothing", "Nothing", "nobody"),))
    with pytest.raises(ValueError, match="no result of 'queues' has the target 'time of nothing'"):
        pages.chart(pages.read_results(pages.RESULTS))


def test_page_has_every_result_with_its_command_and_machine() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert RESULTS
    for path in RESULTS:
        report = json.loads(path.read_text())
        assert f"\n{report['command']}\n" in page
        for value in (report["environment"][key] for key in ("cpu", "python", "torch")):
            assert str(value) in page
        assert "load average {:.1f} before and {:.1f} after".format(*report["load"]) in page


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_tables_are_of_the_run_of_the_report(path: Path) -> None:
    """What the Markdown says of its run and its targets is what the JSON holds."""
    report, text = json.loads(path.read_text()), path.with_suffix(".md").read_text()
    machine = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    assert f"\n{machine}; load average " in text
    for target in report.get("targets", []):
        measured, limit = (f"{target[key]:,.2f}" for key in ("measured", "limit"))
        verdict = "met" if target["measured"] <= target["limit"] else "**missed**"
        assert f"| {target['target']} | {limit} | {measured} | {verdict} |" in text


def change(folder: Path, name: str, edit: Any) -> None:
    path = folder / f"{name}.json"
    report = json.loads(path.read_text())
    edit(report)
    path.write_text(json.dumps(report))


def test_a_changed_report_changes_the_page(pages: ModuleType, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "results"))
    name, before = RESULTS[0].stem, pages.page(pages.read_results(folder))
    change(folder, name, lambda report: report["environment"].update(torch="0.0.1"))
    after = pages.page(pages.read_results(folder))
    assert "torch 0.0.1" in after
    assert "torch 0.0.1" not in before
    change(folder, name, lambda report: report.update(command="python elsewhere.py"))
    with pytest.raises(ValueError, match=r"\.md and \.json are of different runs"):
        pages.read_results(folder)


def test_a_result_without_a_section_is_an_error(pages: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "new_area.cpu.json").write_text("{}")
    with pytest.raises(ValueError, match="add 'new_area' to AREAS"):
        pages.read_results(tmp_path)
