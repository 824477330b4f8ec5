"""Run a function on real gloo ranks and collect what each returns."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_ranks(world: int, worker: Callable[..., Any], *arguments: Any) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_main, (world, folder, worker, arguments), nprocs=world)
        return [torch.load(Path(folder) / str(r), weights_only=False) for r in range(world)]


def _main(
    rank: int, world: int, folder: str, worker: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        result = worker(rank, world, *arguments)
    finally:
        dist.destroy_process_group()
    torch.save(result, Path(folder) / str(rank))
