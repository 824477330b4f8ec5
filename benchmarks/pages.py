"""Write ``docs/benchmarks.md`` out of ``benchmarks/results``: every number of it was measured.

    python benchmarks/pages.py

Command, machine, versions, load and targets come from the JSON files, the tables from the Markdown
files that were written with them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from _measure import RESULTS, number, table

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
AREAS = {  # in the order of the page; each is the name of its benchmark
    "queues": "Queues",
    "losses": "Losses",
    "augment": "Augmentation",
    "decode": "Decoding",
    "data": "Datasets",
    "backbones": "Encoders",
    "train_step": "Training step",
    "pretrain": "Pretraining from files",
}

HEAD = """\
# Benchmarks

Written by `python benchmarks/pages.py` out of the results in `benchmarks/results`. Each run
compares its contenders side by side, in turns, on one machine, and the command above its tables
repeats it, in a checkout with `pip install -e ".[benchmarks]"`. Look at ratios within a run rather
than at times of different runs. Whether values agree as well is on the page of
[parity](parity.md).

"""


class Result(NamedTuple):
    """One run of one benchmark."""

    area: str
    setting: str  # such as "cpu, 1 thread"
    report: dict[str, Any]
    title: str
    body: str


def main() -> None:
    PAGE.write_text(page(read_results(RESULTS)))


def read_results(folder: Path) -> list[Result]:
    results = [read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(results, key=lambda result: list(AREAS).index(result.area))


def read(path: Path) -> Result:
    area, *setting = path.stem.split(".")
    if area not in AREAS:
        raise ValueError(f"{path.name} has no section yet: add {area!r} to AREAS in {__file__}")
    report = json.loads(path.read_text())
    title, command, _, body = path.with_suffix(".md").read_text().split("\n\n", 3)
    if command != f"`{report['command']}`":
        raise ValueError(f"{path.stem}: .md and .json are of different runs; run {command} again")
    return Result(area, ", ".join(setting).replace("-", " "), report, title[2:], body)


def page(results: list[Result]) -> str:
    overview = table(
        ["area", "run on", "targets met"],
        [
            [f"[{AREAS[result.area]}](#{result.area})", result.setting, targets_met(result)]
            for result in results
        ],
    )
    sections = []
    for i, result in enumerate(results):
        if i == 0 or results[i - 1].area != result.area:
            sections.append(f"## {AREAS[result.area]} {{ #{result.area} }}\n")
        sections.append(section(result))
    return HEAD + overview + "\n" + "\n".join(sections)


def targets_met(result: Result) -> str:
    targets = result.report.get("targets", [])
    met = sum(target["measured"] <= target["limit"] for target in targets)
    return f"{met} of {len(targets)}" if targets else "-"


def section(result: Result) -> str:
    machine = dict(result.report["environment"])
    hardware = f"{machine.pop('cpu')}, {machine.pop('cores')} cores, {machine.pop('threads')} used"
    if "gpu" in machine:
        hardware += f", {machine.pop('gpu')}"
    clock = machine.pop("clock")
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    before, after = (number(load) for load in result.report["load"])
    lines = [line for line in result.body.splitlines() if "--8<--" not in line]
    body = re.sub(r"^#", "###", "\n".join(lines), flags=re.MULTILINE)
    return f"""\
### {result.title}

```sh
{result.report["command"]}
```

{hardware}; {versions}. Times are {clock}; load average {before} before and {after} after.

{body}
"""


if __name__ == "__main__":
    main()
