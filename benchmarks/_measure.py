"""What the benchmarks share: the clock, the memory, the report."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PAUSE = 0.01  # seconds, in which the threads of the contender before fall asleep
GPU_SAMPLE = 5.0  # milliseconds at least that runs on a GPU are timed together
Times = dict[str, list[float]]  # milliseconds of every contender in every round


def arguments(description: str, *, batches: Sequence[int] = (), **flags: str) -> argparse.Namespace:
    parser = _parser(description)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every contender")
    if batches:
        parser.add_argument("--batches", type=int, nargs="+", default=batches)
    for flag, meaning in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    parser.add_argument("--seconds", type=float, default=10.0, help="to spend on one setting")
    args = parser.parse_args()
    if args.quick:
        args.seconds = 0.5
    torch.set_num_threads(args.threads)
    return args


def arguments_of_files(description: str, *, videos: int, rounds: int) -> argparse.Namespace:
    """Give those of a benchmark that reads files, by one thread of a CPU."""
    parser = _parser(description)
    parser.add_argument("--videos", type=int, default=videos, help="files of each kind")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.set_defaults(device="cpu")
    args = parser.parse_args()
    if args.quick:
        args.videos, args.rounds = 1, 1
    torch.set_num_threads(1)
    return args


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.set_defaults(load=os.getloadavg()[0])  # before anything has run
    return parser


def surroundings(args: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """Give the head of a report, when all has run."""
    load = [args.load, os.getloadavg()[0]]
    return {"environment": environment(args.device, packages), "load": load}


def take_turns(
    runs: dict[str, Callable[[], object]], *, device: str, seconds: float, least: int = 4
) -> Times:
    """Time the contenders one after the other, round after round."""
    time_one = _milliseconds_on_gpu if device == "cuda" else _milliseconds_on_cpu
    times: Times = {name: [] for name in runs}
    started, rounds = time.perf_counter(), 0
    while rounds <= least or (time.perf_counter() - started < seconds and rounds <= 100):
        for name, run in runs.items():
            time.sleep(PAUSE)
            milliseconds = time_one(run)
            if rounds:  # the first one warms up
                times[name].append(milliseconds)
        rounds += 1
    return times


def _milliseconds_on_cpu(run: Callable[[], object]) -> float:
    clock = host_clock("cpu")
    start = clock()
    run()
    return 1e3 * (clock() - start)


def _milliseconds_on_gpu(run: Callable[[], object]) -> float:
    """By the GPU's own clock, which also counts where it waits for the host to launch kernels."""
    once = _between_events(run, 1)  # wakes the GPU up after the pause
    return _between_events(run, max(1, min(100, round(GPU_SAMPLE / once))))


def _between_events(run: Callable[[], object], repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def host_clock(device: str) -> Callable[[], float]:
    """With one CPU thread, CPU time is what counts: other programs hardly disturb it."""
    return time.process_time if _counts_cpu_time(device) else time.perf_counter


def summary(times: Times) -> dict[str, dict[str, float]]:
    return {
        name: {"fastest": min(ms), "median": statistics.median(ms), "rounds": len(ms)}
        for name, ms in times.items()
    }


def ratios(times: Times, name: str, other: str) -> dict[str, float] | None:
    """Give how much longer ``name`` takes: by fastest rounds, and the median over the rounds."""
    if other not in times:
        return None
    paired = [a / b for a, b in zip(times[name], times[other], strict=True)]
    return {
        "fastest": min(times[name]) / min(times[other]),
        "median": statistics.median(paired),
    }


Setup = Callable[..., Callable[[], object]]


def extra_mebibytes(setup: Setup, small: Sequence[Any], large: Sequence[Any]) -> float:
    """Memory that ``setup(*large)()`` takes at its peak, beyond what is there before the call.

    On the CPU it is the growth of the resident memory of a fresh process, whose libraries and
    threads were started by ``setup(*small)()``; on a GPU that of torch's allocator.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        arguments = setup, small, large, torch.get_num_threads()
        return pool.submit(_extra_mebibytes, *arguments).result() / 2**20


def _extra_mebibytes(setup: Setup, small: Sequence[Any], large: Sequence[Any], threads: int) -> int:
    torch.set_num_threads(threads)
    setup(*small)()
    run = setup(*large)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # freed memory would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def environment(device: str, packages: Sequence[str]) -> dict[str, Any]:
    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        **gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", *packages)},
        "clock": _clock_name(device),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(": ")[1]
    return platform.processor() or platform.machine()


def _clock_name(device: str) -> str:
    if device == "cuda":
        return "GPU time between events"
    return "CPU time" if _counts_cpu_time(device) else "wall time"


def _counts_cpu_time(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def both(ratio: dict[str, float] | None) -> str:
    """Write both kinds of a ratio in one cell."""
    return "-" if ratio is None else f"{ratio['fastest']:.2f} / {ratio['median']:.2f}"


def target_rows(targets: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            target["target"],
            number(target["limit"], 2),
            number(target["measured"], 2),
            "met" if target["measured"] <= target["limit"] else "**missed**",
        ]
        for target in targets
    ]


def publish(name: str, args: argparse.Namespace, report: dict[str, Any], markdown: str) -> None:
    """Print the report and, unless it is a quick one, write it as JSON and Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in report["environment"].items())
    load = " before and ".join(f"{load:.1f}" for load in report["load"])
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    title, _, body = markdown.partition("\n")
    note = f"{machine}; load average {load} after."
    text = f"{title}\n\n`{command}`\n\n{note}\n{body}"
    print(text)
    if not args.quick:
        RESULTS.mkdir(exist_ok=True)
        one = ".1-thread" if _counts_cpu_time(args.device) else ""
        path = RESULTS / f"{name}.{args.device}{one}"
        Path(f"{path}.json").write_text(json.dumps({"command": command, **report}, indent=1) + "\n")
        Path(f"{path}.md").write_text(text)
