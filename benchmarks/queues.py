"""Exact neighbour lookup against the product alone, product + topk, faiss and lightly.

    python benchmarks/queues.py                              # CPU, two threads
    python benchmarks/queues.py --threads 1 --batches 256    # CPU time: for a busy machine
    python benchmarks/queues.py --device cuda

All search the same bank for the same queries, and their results are compared before the clock
starts. They take turns; fastest and median of the rounds are kept, and ratios are given for both,
since another program only ever adds time. Peak memory is that beyond bank and queries, in a fresh
process for each. The results go to ``benchmarks/results/queues.<device>.json`` and ``.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _measure import (
    arguments,
    both,
    extra_mebibytes,
    number,
    publish,
    ratios,
    summary,
    surroundings,
    table,
    take_turns,
    target_rows,
)

from iivcl.queues import NNSupportQueue, estimate, exact_topk

BARE, TOPK = "bare product", "product + topk"
OURS, NEAREST = "exact_topk", "nearest, ids"
FAISS, LIGHTLY = "faiss", "lightly, k=1"
LARGEST_MATRIX = 2**29  # similarities: 2 GiB; product + topk takes larger ones in slices
ROWS_PER_VIDEO = 8


class Setting(NamedTuple):
    """One row of the tables."""

    batch: int
    rows: int
    dim: int
    k: int
    device: str


SMALL = (32, 4096, 128)
SIZES = ("batch", "rows", "dim", "k")
TARGET = (256, 65_536, 128, 5)
SETTINGS = [
    (batch, rows, 128, k)
    for rows in (16_384, 65_536, 1_048_576)
    for batch in (32, 256, 1024)
    for k in (1, 5, 20)
    if k == 5 or batch == 256 or rows < 1_048_576
]
SETTINGS += [(256, 65_536, 256, 5)]
MEMORY_SETTINGS = [(256, rows, 128, 5) for rows in (16_384, 65_536, 1_048_576)]
QUICK = [(32, 4096, 128, 1), (64, 16_384, 128, 5)]


def make_queue(setting: Setting) -> tuple[torch.Tensor, NNSupportQueue]:
    torch.manual_seed(0)
    queue = NNSupportQueue(setting.rows, setting.dim).to(setting.device)
    keys = torch.randn(setting.rows, setting.dim, device=setting.device)
    videos = torch.arange(setting.rows, device=setting.device) // ROWS_PER_VIDEO
    queue.enqueue(keys, videos)
    query = torch.randn(setting.batch, setting.dim, device=setting.device)
    return F.normalize(query, dim=1), queue


def bare_product(query: torch.Tensor, bank: torch.Tensor) -> Callable[[], object]:
    """Compute every similarity once, in tiles of the size that measured fastest."""
    tile = 2048 if query.device.type == "cpu" else 2**25 // len(query)
    query_t = query.T.contiguous()

    def run() -> None:
        buffer = query.new_empty(min(tile, len(bank)), len(query))
        for start in range(0, len(bank), tile):
            rows = bank[start : start + tile]
            torch.mm(rows, query_t, out=buffer[: len(rows)])

    return run


def product_topk(query: torch.Tensor, bank: torch.Tensor, k: int) -> Callable[[], object]:
    slices = query.split(max(1, LARGEST_MATRIX // len(bank)))

    def run() -> list[torch.Tensor]:
        found = [(part @ bank.T).topk(k) for part in slices]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    return run


def faiss_search(query: torch.Tensor, bank: torch.Tensor, k: int) -> Callable[[], object] | None:
    try:
        import faiss
    except ImportError:
        return None
    if query.device.type != "cpu":
        return None
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank.numpy())
    queries = query.numpy()
    return lambda: [torch.from_numpy(found) for found in index.search(queries, k)]


def lightly_search(query: torch.Tensor, bank: torch.Tensor, k: int) -> Callable[[], object] | None:
    try:
        from lightly.models.modules import NNMemoryBankModule
    except ImportError:
        return None
    if k != 1 or query.shape[0] * bank.shape[0] > LARGEST_MATRIX:
        return None
    module = NNMemoryBankModule(size=tuple(bank.shape)).to(query.device)
    module.bank = bank
    return lambda: module(query)


def contender(name: str, setting: Setting) -> Callable[[], object] | None:
    return contenders(setting, (name,)).get(name)


def contenders(
    setting: Setting, names: tuple[str, ...] = (BARE, OURS, NEAREST, TOPK, FAISS, LIGHTLY)
) -> dict[str, Callable[[], object]]:
    query, queue = make_queue(setting)
    bank, k = queue.keys, setting.k
    # Videos of the queue, so that each query has rows to leave out.
    ids = torch.randint(setting.rows // ROWS_PER_VIDEO, (setting.batch,), device=setting.device)
    make: dict[str, Callable[[], Callable[[], object] | None]] = {
        BARE: lambda: bare_product(query, bank),
        OURS: lambda: lambda: exact_topk(query, bank, k),
        NEAREST: lambda: lambda: queue.nearest(query, k, ids=ids),
        TOPK: lambda: product_topk(query, bank, k),
        FAISS: lambda: faiss_search(query, bank, k),
        LIGHTLY: lambda: lightly_search(query, bank, k),
    }
    made = {name: make[name]() for name in names}
    return {name: run for name, run in made.items() if run is not None}


def check(setting: Setting, runs: dict[str, Callable[[], Any]]) -> None:
    """All searches find rows of the same similarity."""
    expected = runs[TOPK]()[0]
    for name in (OURS, FAISS):
        if name in runs:
            torch.testing.assert_close(runs[name]()[0], expected, rtol=0, atol=1e-5)
    if LIGHTLY in runs:
        query, _ = make_queue(setting)
        found = (query * runs[LIGHTLY]()).sum(1, keepdim=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def measure_time(setting: Setting, seconds: float) -> dict[str, Any]:
    runs = contenders(setting)
    check(setting, runs)
    times = take_turns(runs, device=setting.device, seconds=seconds)
    return {
        **setting._asdict(),
        "milliseconds": summary(times),
        "ratios": {
            other: ratios(times, OURS, other)
            for other in (FAISS, LIGHTLY, TOPK, BARE)
            if other in times
        },
        "milliseconds_per_million_rows": min(times[OURS]) / setting.rows * 1e6,
    }


def measure_memory(setting: Setting) -> dict[str, Any]:
    """Measure at the setting's k, and lightly at its k of 1."""
    mebibytes: dict[str, float] = {}
    for name in (BARE, OURS, NEAREST, TOPK, FAISS, LIGHTLY):
        own = setting._replace(k=1) if name == LIGHTLY else setting
        small = Setting(*SMALL, own.k, own.device)
        if contender(name, small) is not None:
            mebibytes[name] = extra_mebibytes(contender, (name, small), (name, own))
    batch, rows, dim, k, device = setting
    planned = estimate(rows, dim, batch, k, device=device).workspace_bytes / 2**20
    return {**setting._asdict(), "mebibytes": mebibytes, "planned": planned}


def find_targets(time: list[dict], memory: list[dict], device: str) -> list[dict[str, Any]]:
    rows = [row for row in time if tuple(row[key] for key in SIZES) == TARGET]
    limits = {FAISS: 0.40, TOPK: 0.75, BARE: 1.5} if device == "cpu" else {TOPK: 0.35, BARE: 2.0}
    targets = [
        {
            "target": f"{kind} time of exact_topk / {other}, B=256, K=65,536, D=128, k=5",
            "limit": limit,
            "measured": row["ratios"][other][kind],
        }
        for row in rows
        for other, limit in limits.items()
        if other in row["ratios"]
        for kind in ("fastest", "median")
    ]
    return targets + [
        {
            "target": f"MiB beyond bank and queries of {name}, B=256, K=1,048,576, k=5",
            "limit": 128.0,
            "measured": row["mebibytes"][name],
        }
        for row in memory
        if row["rows"] == 1_048_576
        for name in (OURS, NEAREST)
    ]


def to_markdown(report: dict[str, Any]) -> str:
    names = [BARE, OURS, NEAREST, TOPK, FAISS, LIGHTLY]
    times = [
        [
            f"{row['batch']}", f"{row['rows']:,}", row["dim"], row["k"],
            *(number(row["milliseconds"].get(name, {}).get("fastest")) for name in names),
            number(row["milliseconds_per_million_rows"]),
            *(both(row["ratios"].get(other)) for other in (FAISS, TOPK, BARE)),
        ]
        for row in report["time"]
    ]  # fmt: skip
    memory = [
        [
            f"{row['batch']}",
            f"{row['rows']:,}",
            *(number(row["mebibytes"].get(n)) for n in names),
            number(row["planned"]),
        ]
        for row in report["memory"]
    ]
    ratio_names = [f"exact_topk / {other}" for other in (FAISS, TOPK, BARE)]
    return "\n".join(
        [
            "# Exact nearest rows of a bank (K, D) for a batch (B, D)\n",
            table(["target", "at most", "measured", ""], target_rows(report["targets"])),
            "## Time\n",
            "Milliseconds, fastest round. Ratios: of the fastest rounds / median over the rounds. "
            "The cost of exact_topk per million rows shows how it grows with K. `nearest, ids` "
            "also leaves out rows of the query's own video.\n",
            table(["B", "K", "D", "k", *names, "ms per million rows", *ratio_names], times),
            "## Peak memory beyond bank and queries\n",
            "MiB at k=5 and D=128 (lightly: k=1) by which the process grows, with what the BLAS "
            "library packs and the allocator keeps; bound is what `estimate` tells of tensors.\n",
            table(["B", "K", *names, "bound"], memory),
        ]
    )


def main() -> None:
    args = arguments(__doc__, batches=(32, 256, 1024))
    time, memory = [], []
    for sizes in QUICK[:1] if args.quick else MEMORY_SETTINGS:
        memory.append(measure_memory(Setting(*sizes, args.device)))
        print(memory[-1], flush=True)
    for sizes in QUICK if args.quick else [s for s in SETTINGS if s[0] in args.batches]:
        seconds = 5 * args.seconds if sizes == TARGET else args.seconds
        time.append(measure_time(Setting(*sizes, args.device), seconds))
        print(sizes, {n: t["fastest"] for n, t in time[-1]["milliseconds"].items()}, flush=True)
    report = {
        **surroundings(args, "faiss-cpu", "lightly"),
        "targets": find_targets(time, memory, args.device),
        "time": time,
        "memory": memory,
    }
    publish("queues", args, report, to_markdown(report))


if __name__ == "__main__":
    main()
