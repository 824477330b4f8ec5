"""Everything that has to be fast on a GPU, beside its peers, in four minutes.

    python benchmarks/gpu.py                          # all parts, one GPU, no network
    python benchmarks/gpu.py --only lookup loss       # some of them
    python benchmarks/gpu.py --device cpu --quick     # does it run at all?

Lookup, loss, augmentation and the training step, each eager and, where that is how it would be
trained, inside a CUDA graph or compiled. The contenders of a row compute the same, which is
compared before the clock starts; they take turns, and fastest and median of the rounds are kept.
Peak memory is that of torch's allocator beyond what the inputs take, in the process. A peer that is
not installed, a graph that cannot be captured and a compilation that takes too long are named with
their reason. JSON and Markdown are written again after every row, to
``benchmarks/results/gpu.<name of the GPU>``, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import augment as augmentation
import losses
import queues
import torch
from _measure import (
    RESULTS,
    both,
    environment,
    number,
    ratios,
    summary,
    table,
    take_turns,
    target_rows,
)
from _steps import Setting
from torch import Tensor
from train_step import COMPILED, IIVCL, OVERHEAD, PLAIN, Parts, make_step, shares, unmarked

from iivcl.queues import exact_topk

GRAPH = ", CUDA graph"
PEERS = ("torchvision", "lightly", "kornia", "pytorch-metric-learning", "inf-cl", "liger-kernel")
Run = Callable[[], Any]


class Target(NamedTuple):
    """What a contender may take, as a share of the time of another, or in MiB."""

    own: str
    other: str
    limit: float


class Row(NamedTuple):
    """Contenders that compute the same, and what is promised of them."""

    part: str
    title: str
    runs: dict[str, Callable[[], Run]]  # each sets its inputs up when it is called
    targets: tuple[Target, ...]
    graphed: tuple[str, ...] = ()  # those that also run in a CUDA graph
    compiled: tuple[str, ...] = ()  # those whose first call compiles
    compare: Callable[[Any, Any], None] | None = None
    other_values: tuple[str, ...] = ()  # those that do the work and give something else


# --- the rows ------------------------------------------------------------------------------------


def lookup_rows(device: str, quick: bool) -> Iterator[Row]:
    ours, topk = queues.OURS, queues.TOPK
    limits = {  # of product + topk eagerly: ours eager, ours in a graph
        (256, 65_536): (0.6, 0.35),
        (32, 65_536): (1.3, 1.0),
        (256, 16_384): (1.3, 1.0),
        (256, 1_048_576): (0.45, 0.45),
        (1024, 1_048_576): (0.35, 0.35),
    }
    for batch, rows in [(16, 4096)] if quick else limits:
        setting = queues.Setting(batch, rows, 128, 5, device)
        query, queue = queues.make_queue(setting)
        ids = torch.full((batch,), -1, device=device)
        targets = []
        if not quick:
            eager, graph = limits[batch, rows]
            targets = [Target(ours, topk, eager), Target(ours + GRAPH, topk, graph)]
        if rows == 1_048_576:
            targets += [Target(name, "MiB", 128.0) for name in (ours, queues.NEAREST)]
        yield Row(
            "lookup",
            f"5 nearest of {rows:,} x 128 for {batch} queries",
            {
                queues.BARE: lambda q=query, b=queue.keys: queues.bare_product(q, b),
                topk: lambda q=query, b=queue.keys: queues.product_topk(q, b, 5),
                ours: lambda q=query, b=queue.keys: lambda: exact_topk(q, b, 5),
                queues.NEAREST: lambda q=query, n=queue, i=ids: lambda: n.nearest(q, 5, ids=i)[:2],
            },
            tuple(targets),
            graphed=(ours, queues.NEAREST),
            compare=same_values,
            other_values=(queues.BARE,),
        )


def loss_rows(device: str, quick: bool) -> Iterator[Row]:
    one = losses.Setting(*((16, 4096) if quick else (512, 65_536)), 128, device)
    two = losses.Setting(*((16, 4096) if quick else (256, 65_536)), 128, device)
    names = (losses.NCE, losses.TORCH, losses.LIGHTLY)
    names += (losses.PML,) if quick else ()
    yield Row(
        "loss",
        f"InfoNCE of {one.batch} x {one.rows:,}, forward and backward",
        {name: functools.partial(losses.contender, name, one) for name in names},
        (
            Target(losses.NCE, losses.TORCH, 0.8),
            Target(losses.NCE + GRAPH, losses.TORCH, 0.5),
        ),
        graphed=(losses.NCE, losses.TORCH),
        compare=same_loss,
    )
    names = (losses.IIVCL, losses.TORCH_BOTH, losses.IIVCL_LOOKUP)
    yield Row(
        "loss",
        f"both terms of {two.batch} x {two.rows:,}, forward and backward",
        {name: functools.partial(losses.contender, name, two) for name in names},
        (
            Target(losses.IIVCL, losses.TORCH_BOTH, 1.0),
            Target(losses.IIVCL + GRAPH, losses.TORCH_BOTH, 0.6),
        ),
        graphed=names,
        compare=same_loss,
    )


def peer_rows(device: str, quick: bool) -> Iterator[Row]:
    """Losses with kernels of their own, last of all: a fault on a GPU ends the process."""
    setting = losses.Setting(*((16, 4096) if quick else (512, 65_536)), 128, device)
    losses.LOSSES |= {"inf-cl": inf_cl, "liger-kernel": liger}
    names = (losses.NCE, losses.TORCH, "liger-kernel", "inf-cl")
    yield Row(
        "peers",
        f"InfoNCE of {setting.batch} x {setting.rows:,} beside kernels of others",
        {name: functools.partial(losses.contender, name, setting) for name in names},
        (),
        other_values=("liger-kernel", "inf-cl"),
        compare=same_loss,
    )


def inf_cl(query: Tensor, key: Tensor, queue: Any, ids: Tensor) -> losses.Loss:
    """Contrast in tiles; the keys of the other videos of the batch are negatives as well."""
    from inf_cl import cal_flash_loss

    candidates = torch.cat([key, queue.keys])
    scale = torch.tensor(1 / losses.TEMPERATURE, device=query.device)
    own = torch.arange(len(query), device=query.device)

    def loss() -> Tensor:
        q = torch.nn.functional.normalize(query, dim=1)
        # Its default of 256 takes two rows of 128 for one.
        return cal_flash_loss(q, candidates, own, scale, head_dim=q.shape[1]).mean()

    return loss


def liger(query: Tensor, key: Tensor, queue: Any, ids: Tensor) -> losses.Loss:
    """Fuse a linear layer, whose weights are all the keys, with its cross-entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    weights = torch.cat([key, queue.keys])
    own = torch.arange(len(query), device=query.device)
    criterion = LigerFusedLinearCrossEntropyLoss()

    def loss() -> Tensor:
        q = torch.nn.functional.normalize(query, dim=1)
        return criterion(weights, q / losses.TEMPERATURE, own)

    return loss


def augment_rows(device: str, quick: bool) -> Iterator[Row]:
    ours, compiled = augmentation.OURS, augmentation.COMPILED
    torchvision, kornia, copy = augmentation.TV_UINT8, augmentation.KORNIA, augmentation.COPY
    targets = {
        8: (Target(compiled, torchvision, 0.10), Target(compiled, kornia, 0.15)),
        64: (Target(compiled, copy, 10.0), Target(ours, kornia, 0.15)),
    }
    for batch in (2,) if quick else targets:
        shape = augmentation.QUICK[0] if quick else augmentation.SHAPES[0]
        made = augmentation.contenders(batch, *shape, device)
        keep = [name for name in (copy, ours, compiled, torchvision, kornia) if name in made]
        yield Row(
            "augment",
            f"rho-MoCo's preset, {batch} clips of 8x{shape[0]}x{shape[1]} to {shape[2]}",
            {name: lambda run=made[name]: several_draws(run) for name in keep},
            () if quick else targets[batch],
            compiled=(compiled,),
        )


def several_draws(run: augmentation.Contender) -> Run:
    """Take another draw at every call: the cost of a clip depends on it."""
    seeds = iter(range(10**9))
    return lambda: run(next(seeds))


def step_rows(device: str, quick: bool, names: tuple[str, ...] = (PLAIN, IIVCL)) -> Iterator[Row]:
    shapes = [("slow_r50", 2, 4, 32)] if quick else [("r2plus1d_18", 32, 16, 112)]
    shapes += [] if quick else [("slow_r50", 16, 8, 224)]
    for shape in shapes:
        setting = Setting(*shape, "bfloat16", device)
        own = names[-1]
        yield Row(
            "step",
            f"{shape[0]}, {shape[1]} videos of {shape[2]}x{shape[3]}, bfloat16"
            + (", compiled" if own == COMPILED else ""),
            {name: functools.partial(step_run, name, setting) for name in names},
            (Target(own, PLAIN, 1 / 1.3), Target(own, "overhead", 0.05)),
            compiled=(COMPILED,),
        )


def compiled_step_rows(device: str, quick: bool) -> Iterator[Row]:
    """The same beside what takes a minute to compile, and therefore late."""
    return iter(()) if quick else step_rows(device, quick, (PLAIN, COMPILED))


def step_run(name: str, setting: Setting) -> Run:
    step = make_step(name, setting)[1]

    def run() -> Tensor:
        return step(unmarked)

    run.parts = functools.partial(step_parts, step, setting.device)  # type: ignore[attr-defined]
    return run


def step_parts(step: Callable[..., Tensor], device: str) -> dict[str, float]:
    rounds = []
    for _ in range(5):
        mark = Parts(device)
        step(mark)
        rounds.append(shares(mark.milliseconds()))
    return {part: sorted(shares[part] for shares in rounds)[2] for part in rounds[0]}


ROWS = {
    "lookup": lookup_rows,
    "loss": loss_rows,
    "step": step_rows,
    "augment": augment_rows,
    "compiled-step": compiled_step_rows,
    "peers": peer_rows,
}


def same_values(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5)


def same_loss(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


# --- one row -------------------------------------------------------------------------------------


def measure(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, Run] = {}
    values: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    seconds_to_compile: dict[str, float] = {}
    for name, setup in row.runs.items():
        wanted = [(name, setup)]
        if name in row.graphed and args.device == "cuda":
            wanted.append((name + GRAPH, lambda setup=setup: captured(setup())))
        for title, make in wanted:
            started = time.perf_counter()
            try:
                with limited(compile_seconds(args) if name in row.compiled else 0):
                    run = make()
                    values[title] = run()  # what is lazy happens here
                runs[title] = run
            except Exception as error:
                lines = str(error).splitlines() or [""]
                skipped[title] = f"{type(error).__name__}: {lines[0]}"
                torch.compiler.reset()
            if name in row.compiled:
                seconds_to_compile[title] = time.perf_counter() - started
    if row.compare is not None:
        reference, *others = (name for name in runs if name not in row.other_values)
        for name in others:
            try:
                row.compare(values[name], values[reference])
            except AssertionError as error:  # a wrong result has no speed
                del runs[name]
                skipped[name] = f"differs from {reference}: {' '.join(str(error).split())[:200]}"
    times = take_turns(runs, device=args.device, seconds=args.seconds)
    compared = {
        own: {other: ratios(times, own, other) for other in runs if other != own} for own in runs
    }
    return {
        "part": row.part,
        "title": row.title,
        "milliseconds": summary(times),
        "ratios": compared,
        "mebibytes": {name: peak_mebibytes(run, args.device) for name, run in runs.items()},
        "shares": {name: run.parts() for name, run in runs.items() if hasattr(run, "parts")},
        "seconds to compile": seconds_to_compile,
        "skipped": skipped,
        "targets": [t._asdict() for t in row.targets],
    }


def compile_seconds(args: argparse.Namespace) -> float:
    """Give a compilation no more than what is left of the minutes for all."""
    left = args.started + 60 * args.minutes - time.perf_counter()
    return min(args.compile_seconds, max(left, 1.0))


def captured(run: Run) -> Run:
    """Record a call into a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay(kept: Run = run) -> Any:  # with the inputs, from whose places the graph reads
        graph.replay()
        return out

    return replay


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer; 0 sets no limit."""

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took longer than {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_mebibytes(run: Run, device: str) -> float | None:
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- the report ----------------------------------------------------------------------------------


def find_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    targets = []
    for row in rows:
        for target in row["targets"]:
            own, other = target["own"], target["other"]
            if other == "MiB":
                text, measured = f"MiB of {own}", row["mebibytes"].get(own)
            elif other == "overhead":
                parts = row["shares"].get(own)
                text = f"share of {', '.join(OVERHEAD)} in {own}"
                measured = parts and sum(parts[part] for part in OVERHEAD)
            else:
                ratio = row["ratios"].get(own, {}).get(other)
                text, measured = f"median time of {own} / {other}", ratio and ratio["median"]
            if measured is not None:
                text = f"{text}: {row['title']}"
                targets.append({"target": text, "limit": target["limit"], "measured": measured})
    return targets


def to_markdown(report: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    load = " before and ".join(f"{load:.1f}" for load in report["load"])
    parts = [
        "# On one GPU\n",
        f"`{report['command']}`\n",
        f"{machine}; load average {load} after; {report['seconds']:.0f} seconds in all.\n",
        table(["target", "at most", "measured", ""], target_rows(report["targets"])),
    ]
    for row in report["results"]:
        own = row["targets"][0]["other"] if row["targets"] else next(iter(row["milliseconds"]))
        lines = [
            [
                name,
                number(times["fastest"], 3),
                number(times["median"], 3),
                "1" if name == own else both(row["ratios"][name].get(own)),
                number(row["mebibytes"][name]),
            ]
            for name, times in row["milliseconds"].items()
        ]
        header = ["", "ms, fastest", "ms, median", f"/ {own}", "MiB"]
        parts += [f"## {row['title']}\n", table(header, lines)]
        notes = [f"{n}: compiled in {s:.0f} s." for n, s in row["seconds to compile"].items()]
        notes += [f"{name}: left out, {reason}." for name, reason in row["skipped"].items()]
        parts += [" ".join(notes) + "\n"] if notes else []
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--seconds", type=float, default=2.0, help="to spend on one row")
    parser.add_argument("--compile-seconds", type=float, default=60.0, help="for one compilation")
    parser.add_argument("--minutes", type=float, default=4.0, help="after which no row begins")
    parser.add_argument("--out", type=Path, help="path of the results, without an ending")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    args = parser.parse_args()
    if args.quick:
        args.seconds = 0.0
    started = args.started = time.perf_counter()
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    short_name = "-".join(name.lower().replace("nvidia", "").split())
    out = args.out or RESULTS / f"gpu.{short_name}"
    torch.backends.cudnn.benchmark = True
    only = "" if len(args.only) == len(ROWS) else " --only " + " ".join(args.only)
    report: dict[str, Any] = {
        "command": f"python benchmarks/gpu.py{only}",
        "environment": environment(args.device, PEERS),
        "load": [os.getloadavg()[0]] * 2,
        "results": [],
    }
    for part in args.only:
        for row in ROWS[part](args.device, args.quick):
            if time.perf_counter() - started > 60 * args.minutes:
                print(f"no time is left for: {row.title}")
                continue
            try:
                report["results"].append(measure(row, args))
            except Exception as error:  # the other rows are wanted all the same
                print(f"failed: {row.title}: {type(error).__name__}: {error}", flush=True)
                continue
            report["seconds"] = time.perf_counter() - started
            report["load"][1] = os.getloadavg()[0]
            report["targets"] = find_targets(report["results"])
            print(f"{report['seconds']:.0f} s: {row.title}", flush=True)
            if args.out or not args.quick:
                out.parent.mkdir(parents=True, exist_ok=True)
                for ending, text in ((".json", json.dumps(report, indent=1) + "\n"),
                                     (".md", to_markdown(report))):  # fmt: skip
                    Path(f"{out}{ending}").write_text(text)
    print(to_markdown(report))


if __name__ == "__main__":
    main()
