"""One step of inter-intra pretraining against the plain rho-MoCo step, and the share of each part.

    python benchmarks/train_step.py                              # CPU, small shapes
    python benchmarks/train_step.py --threads 1                  # CPU time: for a busy machine
    python benchmarks/train_step.py --device cuda                # the published shapes
    python benchmarks/train_step.py --device cuda --compile      # and with all compiled

Both begin with the same uint8 clips, two per video, and the same augmentation, and end with the
keys of both views in a queue of 65,536; model, head, optimizer and precision are the same. The
plain step is laid out like PySlowFast's: contiguous memory, a momentum update parameter by
parameter, a pass over each view by each encoder, a product with a clone of the queue, and a write
per view. It has the intra term alone; the step with iivcl also looks up neighbours and computes
the inter term. It keeps channels last and takes both views in one pass, except in float32 on a CPU,
where neither pays. Where both compute the same, they are compared before the clock starts.

Contenders take turns. The shares of the parts come from steps of their own, and the cost of a loss
holds its gradient back to the embeddings. Peak memory is that of a step beyond weights, optimizer
and queue, in a fresh process. The results go to ``benchmarks/results/train_step.<device>.json`` and
``.md``.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _measure import (
    arguments,
    both,
    extra_mebibytes,
    host_clock,
    number,
    publish,
    ratios,
    summary,
    surroundings,
    table,
    take_turns,
    target_rows,
)
from _steps import Scene, Setting, Step, iivcl_step, plain_step
from torch import Tensor

PLAIN, PLAIN_LAST = "plain rho-MoCo", "plain, channels last"
IIVCL, COMPILED = "iivcl", "iivcl, compiled"
PARTS = (
    "augment", "momentum", "key encoder", "query encoder", "lookup", "loss", "backward",
    "optimizer", "enqueue",
)  # fmt: skip
OVERHEAD = ("momentum", "lookup", "loss", "enqueue")  # what is not the network's own work
SHARE_ROUNDS = 7
# The published shapes on a GPU, and small ones on a CPU.
SHAPES = {
    "cuda": [("r2plus1d_18", 32, 16, 112), ("slow_r50", 16, 8, 224)],
    "cpu": [("r2plus1d_18", 4, 24, 32), ("slow_r50", 4, 4, 64)],
}
QUICK = [("slow_r50", 2, 4, 32)]
PRECISIONS = ("bfloat16", "float32")


class Parts:
    """Clock of the parts of a step."""

    def __init__(self, device: str) -> None:
        self.device, self.clock = device, host_clock(device)
        self.times: list[Any] = [self._now()]
        self.names: list[str] = []

    def __call__(self, part: str) -> None:
        """Note that ``part`` has just ended."""
        self.names.append(part)
        self.times.append(self._now())

    def milliseconds(self) -> dict[str, float]:
        """Give the time of every part, summed over its occurrences."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        total = dict.fromkeys(PARTS, 0.0)
        for name, begin, end in zip(self.names, self.times, self.times[1:], strict=False):
            ms = begin.elapsed_time(end) if self.device == "cuda" else 1e3 * (end - begin)
            total[name] = total.get(name, 0.0) + ms
        return total

    def _now(self) -> Any:
        if self.device == "cpu":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def unmarked(part: str) -> None:
    """Leave the parts untimed."""


def make_step(name: str, setting: Setting, *, exact: bool = False) -> tuple[Scene, Step]:
    # In float32 on a CPU the caches decide: contiguous memory and one view at a time are faster.
    cached = setting.device == "cpu" and setting.precision == "float32"
    contiguous = name == PLAIN or (cached and name != PLAIN_LAST)
    memory_format = torch.contiguous_format if contiguous else torch.channels_last_3d
    scene = Scene(setting._replace(precision="float32") if exact else setting, memory_format)
    if name in (PLAIN, PLAIN_LAST):
        return scene, plain_step(scene)
    return scene, iivcl_step(scene, passes=2 if cached else 1, compiled=name == COMPILED)


def contender(name: str, setting: Setting) -> Callable[[], Tensor]:
    return functools.partial(make_step(name, setting)[1], unmarked)


def check(names: list[str], setting: Setting) -> None:
    """In float32, where batch norm does not see how views are batched, all losses are the same."""
    losses = []
    for name in names:
        scene, step = make_step(name, setting, exact=True)
        scene.encoder.eval()
        scene.key_encoder.eval()
        losses.append(step(unmarked))
    tolerance = 1e-3 if setting.device == "cpu" else 1e-2  # convolutions in TF32
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=tolerance, atol=tolerance)


def measure_parts(step: Step, device: str) -> dict[str, float]:
    """Give the median milliseconds of every part over a few steps."""
    rounds = []
    for _ in range(SHARE_ROUNDS):
        mark = Parts(device)
        step(mark)
        rounds.append(mark.milliseconds())
    return {part: statistics.median(ms[part] for ms in rounds) for part in PARTS}


def shares(parts: dict[str, float]) -> dict[str, float]:
    return {part: ms / sum(parts.values()) for part, ms in parts.items()}


def measure(setting: Setting, names: list[str], seconds: float) -> dict[str, Any]:
    check(names, setting)
    steps = {name: make_step(name, setting)[1] for name in names}
    runs = {name: functools.partial(step, unmarked) for name, step in steps.items()}
    times = take_turns(runs, device=setting.device, seconds=seconds)
    for name, run in runs.items():
        if not run().isfinite():
            raise RuntimeError(f"the loss of {name!r} is not finite: its time means nothing")
    parts = {name: measure_parts(step, setting.device) for name, step in steps.items()}
    del steps, runs
    small = setting._replace(videos=2, frames=8, pixels=32)
    return {
        **setting._asdict(),
        "milliseconds": summary(times),
        "clips_per_second": {n: 2e3 * setting.videos / min(ms) for n, ms in times.items()},
        "ratios": {name: ratios(times, name, PLAIN) for name in names},
        "parts": parts,
        "overhead": {n: sum(shares(ms)[part] for part in OVERHEAD) for n, ms in parts.items()},
        "mebibytes": {n: extra_mebibytes(contender, (n, small), (n, setting)) for n in names},
    }


def find_targets(rows: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = []
    for row in rows:
        if device == "cuda" and row["precision"] != "bfloat16":
            continue
        what = f"{row['model']}, {row['frames']}x{row['pixels']}, {row['precision']}"
        best = COMPILED if COMPILED in row["ratios"] else IIVCL
        targets += [
            {
                "target": f"{kind} time of {name} / {PLAIN}, {what}",
                "limit": 1 / 1.3 if device == "cuda" else 1.0,
                "measured": row["ratios"][name][kind],
            }
            for name in dict.fromkeys((IIVCL, best))
            for kind in ("fastest", "median")
        ]
        if device == "cuda":
            targets.append(
                {
                    "target": f"share of lookup, loss, queue and momentum, {IIVCL}, {what}",
                    "limit": 0.05,
                    "measured": row["overhead"][IIVCL],
                }
            )
    return targets


def to_markdown(report: dict[str, Any], device: str) -> str:
    rows = report["results"]
    setting_header = ["model", "videos", "clip", "precision"]

    def setting_cells(row: dict[str, Any]) -> list[object]:
        clip = f"{row['frames']}x{row['pixels']}"
        return [row["model"], row["videos"], clip, row["precision"]]

    names = list(rows[0]["ratios"])
    speed = [
        [
            *setting_cells(row),
            *(number(row["clips_per_second"][name]) for name in names),
            *(both(row["ratios"][name]) for name in names[1:]),
        ]
        for row in rows
    ]
    parts = [
        [
            *setting_cells(row),
            name,
            *(number(100 * share) for share in shares(row["parts"][name]).values()),
            number(100 * row["overhead"][name]),
        ]
        for row in rows
        for name in names
    ]
    memory = [
        [*setting_cells(row), *(number(row["mebibytes"][name], 0) for name in names)]
        for row in rows
    ]
    text = [
        "# One step of pretraining\n",
        table(["target", "at most", "measured", ""], target_rows(report["targets"])),
    ]
    if device == "cpu":
        text.append(
            "Targets on a GPU, for the published shapes in bfloat16, are not measured here: at "
            "least 1.3 times the clips per second, and at most 5 % for lookup, loss, queue and "
            "momentum.\n"
        )
    text += [
        "## Clips per second\n",
        f"Of the fastest step. Ratios of times to {PLAIN}, fastest / median over the rounds.\n",
        table([*setting_header, *names, *(f"{n} / plain" for n in names[1:])], speed),
        "## Share of each part, in percent\n",
        "The gradient of the loss up to the embeddings counts as loss. The last column is the sum "
        f"of {', '.join(OVERHEAD)}; {PLAIN} has no lookup and no inter term.\n",
        table([*setting_header, "", *PARTS, "sum"], parts),
        "## Peak memory of a step, MiB\n",
        "Beyond weights, optimizer and queue. The plain step takes one view after the other.\n",
        table([*setting_header, *names], memory),
    ]
    return "\n".join(text)


def main() -> None:
    args = arguments(__doc__, compile="also measure with compiled encoders and augmentation")
    torch.backends.cudnn.benchmark = True
    names = [PLAIN, PLAIN_LAST, IIVCL, *([COMPILED] if args.compile else [])]
    results = []
    for shape in QUICK if args.quick else SHAPES[args.device]:
        for precision in PRECISIONS:
            setting = Setting(*shape, precision, args.device)
            results.append(measure(setting, names, args.seconds))
            print(setting, results[-1]["ratios"], flush=True)
    report = {
        **surroundings(args, "torchvision"),
        "targets": find_targets(results, args.device),
        "results": results,
    }
    publish("train_step", args, report, to_markdown(report, args.device))


if __name__ == "__main__":
    main()
