"""Results as JSON, and how two of them differ."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from iivcl.evaluation import topk_accuracy

Report = dict[str, Any]


def accuracy(scores: Tensor, labels: Tensor, ks: list[int]) -> Report:
    """Measure scores (N, classes): over the videos, and the mean of the classes."""
    top = topk_accuracy(scores, labels, ks=ks)
    mean = topk_accuracy(scores, labels, ks=(1,), average="classes")[1]
    return {**{f"top{k}": value for k, value in top.items()}, "mean_of_classes": mean}


def plain(value: Any) -> Any:
    """Give a report as JSON has it: no NaN, which is no number there."""
    if isinstance(value, dict):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Name every entry of two reports that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            name = f"{where}, {key}" if where else key
            yield from differences(before.get(key), now.get(key), name)
    elif before != now:
        yield f"{where}: {before} before, {now} now"


def json_text(report: Report) -> str:
    """Write a report as text, with every row of numbers on one line."""
    text = json.dumps(report, indent=1)
    return re.sub(r"\[\n[\d\s.,]+\]", lambda row: " ".join(row[0].split()), text) + "\n"
