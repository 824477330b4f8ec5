"""Write ``docs/benchmarks.md`` out of ``benchmarks/results``: every number of it was measured.

    python benchmarks/pages.py

Command, machine, versions, load and targets come from the JSON files, the tables from the Markdown
files that were written with them.
"""

from __future__ import annotations

import json
import math
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
    "gpu": "All on one GPU",
    "pretrain": "Pretraining from files",
}

# What the chart at the top shows: area, text of a target, what is timed and its peer.
CHART = (
    (
        "decode",
        "H.264, GOP 12: time of iivcl / torchcodec",
        "Two clips of an H.264 file",
        "torchcodec",
    ),
    ("decode", "MPEG-4, AVI: time of iivcl / torchcodec", "Two clips of an AVI file", "torchcodec"),
    (
        "augment",
        "median time / torchvision v2, 64 of 8x128x170 to 112",
        "rho-MoCo's augmentation, 64 clips",
        "torchvision",
    ),
    (
        "augment",
        "median time / kornia, 64 of 8x128x170 to 112",
        "rho-MoCo's augmentation, 64 clips",
        "kornia",
    ),
    (
        "queues",
        "median time of exact_topk / faiss, B=256, K=65,536, D=128, k=5",
        "5 nearest of 65,536 rows",
        "faiss",
    ),
    (
        "queues",
        "median time of exact_topk / product + topk, B=256, K=65,536, D=128, k=5",
        "5 nearest of 65,536 rows",
        "torch",
    ),
    (
        "losses",
        "median time of info_nce / dense torch, B=512, K=65,536, D=128",
        "InfoNCE over 65,536 rows",
        "torch",
    ),
    (
        "losses",
        "median time of IIVCLLoss / dense torch, both terms, B=512, K=65,536, D=128",
        "Both terms over 65,536 rows",
        "torch",
    ),
    (
        "train_step",
        "median time of iivcl / plain rho-MoCo, slow_r50, 4x64, bfloat16",
        "A step of Slow R50",
        "plain torch",
    ),
)
LEAST, MOST = 0.04, 4.0  # ends of its axis, which is logarithmic

HEAD = """\
# Benchmarks

Time of iivcl divided by that of others, so left of the line is faster.

{chart}

Written by `python benchmarks/pages.py` out of the results in `benchmarks/results`. Each run
compares its contenders side by side, in turns, on one machine; the command above its tables repeats
it, in a checkout with `pip install -e ".[benchmarks]"`. Look at ratios within a run rather than at
times of different runs. Whether values agree as well is on the page of [parity](parity.md). The
titles below open their tables.

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
    return HEAD.format(chart=chart(results)) + overview + "\n" + "\n".join(sections)


def chart(results: list[Result]) -> str:
    """Draw one line per ratio with a dot per setting, in HTML, whose text a phone can read."""
    seen: list[str] = []
    rows = []
    for area, text, label, peer in CHART:
        dots = []
        for result in (result for result in results if result.area == area):
            for target in result.report.get("targets", []):
                if target["target"] == text:
                    seen += [result.setting] * (result.setting not in seen)
                    dots.append((seen.index(result.setting), target["measured"]))
        if not dots:
            raise ValueError(f"no result of {area!r} has the target {text!r}: change CHART")
        marks = "".join(f'<i class="s{n}" style="left: {place(x):.1f}%"></i>' for n, x in dots)
        values = ", ".join(f"{x:.2f}" for _, x in dots)
        rows.append(
            f"<li><span>{label} <small>/ {peer}</small></span>"
            f'<span class="track">{marks}</span><b>{values}</b></li>'
        )
    legend = " ".join(f'<span><i class="s{n}"></i> {name}</span>' for n, name in enumerate(seen))
    top = f'<div class="ratios" style="--one: {place(1.0):.1f}%">'
    return "\n".join([top, f"<p>{legend}</p>", "<ul>", *rows, "</ul>", "</div>"])


def place(ratio: float) -> float:
    """Return where on the axis a ratio lies, in percent."""
    return 100 * math.log(min(max(ratio, LEAST), MOST) / LEAST) / math.log(MOST / LEAST)


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
<details markdown="1">
<summary>{result.title} ({result.setting})</summary>

```sh
{result.report["command"]}
```

{hardware}; {versions}. Times are {clock}; load average {before} before and {after} after.

{body}

</details>
"""


if __name__ == "__main__":
    main()
