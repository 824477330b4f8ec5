"""Contrastive losses over a queue, forward and backward: iivcl, plain torch, lightly and PML.

    python benchmarks/losses.py                   # CPU, two threads
    python benchmarks/losses.py --threads 1       # CPU time of one thread: for a busy machine
    python benchmarks/losses.py --device cuda

Two tasks. ``one positive``: the key of each query against the queue. ``inter and intra``: the key,
and five given neighbours, each against the queue without rows of the query's own video. Within a
task all values are compared before the clock starts. Contenders take turns; fastest and median
of the rounds are kept, and ratios are given for both, since another program only ever adds time.
Peak memory is that beyond the inputs, in a fresh process for each. The results go to
``benchmarks/results/losses.<device>.json`` and ``.md``.
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
from torch import Tensor

from iivcl import IIVCLLoss, NNSupportQueue
from iivcl.losses import info_nce

TEMPERATURE, NEIGHBORS, ROWS_PER_VIDEO = 0.1, 5, 8
NCE, NCE_DENSE, TORCH = "info_nce", "info_nce, dense", "torch"
LIGHTLY, PML = "lightly NTXentLoss", "PML NTXentLoss"
IIVCL, IIVCL_DENSE, TORCH_BOTH = "IIVCLLoss", "IIVCLLoss, dense", "torch, both terms"
IIVCL_LOOKUP = "IIVCLLoss with lookup"
ONE_POSITIVE, INTER_INTRA = "one positive", "inter and intra"
TASKS = {
    ONE_POSITIVE: (NCE, NCE_DENSE, TORCH, LIGHTLY, PML),
    INTER_INTRA: (IIVCL, IIVCL_DENSE, TORCH_BOTH, IIVCL_LOOKUP),
}
BOUNDED = (NCE, IIVCL, IIVCL_LOOKUP)  # those that never hold a (B, K) matrix
LARGEST_MATRIX = 2**26  # logits that the others are given: they hold several such matrices
LARGEST_PAIRS = 2**24  # of PML, which holds (B, B x K) matrices


class Setting(NamedTuple):
    """One row of the tables."""

    batch: int
    rows: int
    dim: int
    device: str


SMALL = (8, 1024, 128)
SETTINGS = [
    (32, 16_384, 128),
    (256, 65_536, 128),
    (512, 65_536, 128),
    (512, 1_048_576, 128),
]
QUICK = [(8, 4096, 128), (64, 16_384, 128)]


def contender(name: str, setting: Setting) -> Callable[[], Tensor]:
    """Set up the inputs, which are the same for all, and return a forward and backward pass."""
    torch.manual_seed(0)
    batch, rows, dim, device = setting
    queue = NNSupportQueue(rows, dim).to(device)
    queue.enqueue(
        torch.randn(rows, dim, device=device), torch.arange(rows, device=device) // ROWS_PER_VIDEO
    )
    query = F.normalize(torch.randn(batch, dim, device=device), dim=1).requires_grad_()
    key = F.normalize(query.detach() + 0.1 * torch.randn(batch, dim, device=device), dim=1)
    ids = torch.randint(rows // ROWS_PER_VIDEO, (batch,), device=device)
    loss = LOSSES[name](query, key, queue, ids)

    def run() -> Tensor:
        value = loss()
        (query.grad,) = torch.autograd.grad(value, query)
        return value.detach()

    return run


Loss = Callable[[], Tensor]


def ours(chunk_size: str | None) -> Callable[..., Loss]:
    def setup(query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor) -> Loss:
        return lambda: info_nce(
            query, key, queue.keys, temperature=TEMPERATURE, chunk_size=chunk_size
        )

    return setup


def ours_both(chunk_size: str | None, *, lookup: bool = False) -> Callable[..., Loss]:
    def setup(query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor) -> Loss:
        criterion = IIVCLLoss(
            num_neighbors=NEIGHBORS, temperature=TEMPERATURE, chunk_size=chunk_size
        )
        found = None if lookup else queue.nearest(key, NEIGHBORS, ids=ids)
        return lambda: criterion(query, key, queue, ids=ids, neighbors=found).loss

    return setup


def plain_torch(query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor) -> Loss:
    """Concatenate the positive and the queue and take the cross-entropy, as MoCo does."""
    target = torch.zeros(len(query), dtype=torch.int64, device=query.device)

    def loss() -> Tensor:
        q = F.normalize(query, dim=1)
        positive = (q * key).sum(1, keepdim=True)  # (B, 1)
        logits = torch.cat([positive, q @ queue.keys.T], 1) / TEMPERATURE
        return F.cross_entropy(logits, target)

    return loss


def plain_torch_both(query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor) -> Loss:
    """Mask the logits of the queue once, and use them for both terms."""
    found = queue.nearest(key, NEIGHBORS, ids=ids)

    def loss() -> Tensor:
        q = F.normalize(query, dim=1)
        positive = (q * key).sum(1) / TEMPERATURE  # (B,)
        logits = q @ queue.keys.T / TEMPERATURE  # (B, K)
        logits = logits.masked_fill(ids[:, None] == queue.ids, -torch.inf)
        level = logits.logsumexp(1)  # neighbours and negatives
        intra = torch.logaddexp(positive, level) - positive
        inter = level - logits.gather(1, found.indices).mean(1)
        return (intra + inter).mean()

    return loss


def lightly_loss(query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor) -> Loss:
    from lightly.loss import NTXentLoss

    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(queue.size, queue.dim))
    criterion.to(query.device).memory_bank.bank = queue.keys.clone()  # it writes into its bank
    return lambda: criterion(query, key)


def pml_loss(query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor) -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss

    criterion = NTXentLoss(temperature=TEMPERATURE)
    own = torch.arange(len(query), device=query.device)
    others = torch.full((queue.size,), -1, device=query.device)
    candidates, labels = torch.cat([key, queue.keys]), torch.cat([own, others])
    rows = torch.arange(queue.size, device=query.device) + len(query)
    pairs = own, own, own.repeat_interleave(queue.size), rows.repeat(len(query))
    return lambda: criterion(query, own, pairs, ref_emb=candidates, ref_labels=labels)


LOSSES: dict[str, Callable[..., Loss]] = {
    NCE: ours(None),
    NCE_DENSE: ours("dense"),
    TORCH: plain_torch,
    LIGHTLY: lightly_loss,
    PML: pml_loss,
    IIVCL: ours_both(None),
    IIVCL_DENSE: ours_both("dense"),
    TORCH_BOTH: plain_torch_both,
    IIVCL_LOOKUP: ours_both(None, lookup=True),
}


def fits(name: str, setting: Setting) -> bool:
    logits = setting.batch * setting.rows
    if name == PML and setting.batch * logits > LARGEST_PAIRS:
        return False
    return name in BOUNDED or logits <= LARGEST_MATRIX


def measure(setting: Setting, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for task, names in TASKS.items():
        runs: dict[str, Callable[[], Tensor]] = {}
        for name in names:
            if fits(name, setting):
                try:
                    runs[name] = contender(name, setting)
                except ImportError:
                    print(f"{name} is not installed")
        values = [run() for run in runs.values()]
        for value in values:
            torch.testing.assert_close(value, values[0], rtol=1e-4, atol=1e-4)
        times = take_turns(runs, device=setting.device, seconds=seconds)
        own = {ONE_POSITIVE: NCE, INTER_INTRA: IIVCL}[task]
        small = Setting(*SMALL, setting.device)
        rows.append(
            {
                "task": task,
                **setting._asdict(),
                "milliseconds": summary(times),
                "ratios": {
                    other: ratios(times, own, other) for other in names[1:] if other in times
                },
                "mebibytes": {
                    name: extra_mebibytes(contender, (name, small), (name, setting))
                    for name in runs
                },
            }
        )
        print(rows[-1], flush=True)
    return rows


def find_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = []
    for row in rows:
        size = f"B={row['batch']}, K={row['rows']:,}, D={row['dim']}"
        if row["batch"] == 512 and row["rows"] == 65_536:
            own, other = (NCE, TORCH) if row["task"] == ONE_POSITIVE else (IIVCL, TORCH_BOTH)
            targets += [
                {
                    "target": f"{kind} time of {own} / dense {other}, {size}",
                    "limit": 1.5,
                    "measured": row["ratios"][other][kind],
                }
                for kind in ("fastest", "median")
            ]
        if row["rows"] == 1_048_576:
            targets += [
                {
                    "target": f"MiB beyond the inputs of {name}, forward and backward, {size}",
                    "limit": 256.0,
                    "measured": row["mebibytes"][name],
                }
                for name in row["mebibytes"]
            ]
    return targets


def to_markdown(report: dict[str, Any]) -> str:
    def cells(row: dict[str, Any], values: dict[str, float | None]) -> list[str]:
        return [f"{row['batch']}", f"{row['rows']:,}", *map(number, values.values())]

    parts = [
        "# Contrastive losses over a queue (K, D), forward and backward\n",
        table(["target", "at most", "measured", ""], target_rows(report["targets"])),
        "Milliseconds are those of the fastest round; ratios are of the fastest rounds / median "
        "over the rounds. A dash: not installed, or it would hold too large a matrix.\n",
    ]
    for task, names in TASKS.items():
        rows = [row for row in report["results"] if row["task"] == task]
        header = ["B", "K", *names]
        own, others = names[0], names[1:]
        parts += [
            f"## {task.capitalize()}: milliseconds\n",
            table(
                [*header, *(f"{own} / {other}" for other in others)],
                [
                    cells(row, {n: row["milliseconds"].get(n, {}).get("fastest") for n in names})
                    + [both(row["ratios"].get(other)) for other in others]
                    for row in rows
                ],
            ),
            f"## {task.capitalize()}: MiB beyond the inputs, at the peak\n",
            table(
                header, [cells(row, {n: row["mebibytes"].get(n) for n in names}) for row in rows]
            ),
        ]
    return "\n".join(parts)


def main() -> None:
    args = arguments(__doc__, batches=(32, 256, 512))
    results = []
    for sizes in QUICK if args.quick else [s for s in SETTINGS if s[0] in args.batches]:
        results += measure(Setting(*sizes, args.device), args.seconds)
    report = {
        **surroundings(args, "lightly", "pytorch-metric-learning"),
        "targets": find_targets(results),
        "results": results,
    }
    publish("losses", args, report, to_markdown(report))


if __name__ == "__main__":
    main()
