"""Checks to run on your own code, with real processes and no mocks."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iivcl._checks import check_at_least, check_within

__all__ = ["assert_ddp_equivalent", "run_on_ranks"]


def assert_ddp_equivalent(
    loss_fn: Callable[..., Any],
    *,
    world_size: int = 2,
    batch_size: int = 4,
    dim: int = 16,
    seed: int = 0,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> None:
    """Check that a loss means the same on several processes as on one.

    A linear encoder is trained for one step twice: once in this process on all
    ``world_size * batch_size`` rows, once by real gloo processes, each inside
    DistributedDataParallel on its own rows. The averaged gradient must be the gradient of the
    single process, and the mean of the processes' losses its loss. What usually breaks this:
    negatives of the own rank only, a gradient lost or scaled in ``all_gather``, a mean over rows
    of which ranks have different numbers.

    Args:
        loss_fn: Called as ``loss_fn(query, key, ids=ids)`` with query and key (B, D) float64 and
            ids (B,) int64; returns the loss () or a tuple with a field ``loss``. It is sent to the
            processes by pickle, so a function must be defined in a module that they can import;
            queues and modules it holds travel along.
        world_size: Number of processes, at least 2.
        batch_size: B, rows of each process.
        dim: D, size of the embeddings.
        seed: Seed of the inputs and the encoder.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        AssertionError: The loss or the gradient differs; the message says by how much.
        TypeError: ``loss_fn`` cannot be pickled.
        ValueError: ``world_size`` is below 2.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from iivcl import IIVCLLoss, NNSupportQueue
        >>> queue = NNSupportQueue(64, 16)
        >>> queue.enqueue(torch.randn(64, 16), torch.arange(64))
        >>> loss_fn = partial(IIVCLLoss(num_neighbors=3, batch_negatives=True), queue=queue)
        >>> assert_ddp_equivalent(loss_fn, world_size=2)
    """
    check_at_least(2, world_size=world_size)
    check_at_least(1, batch_size=batch_size, dim=dim)
    check_at_least(0, seed=seed)
    check_within(0, math.inf, rtol=rtol, atol=atol)
    rows = world_size * batch_size
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2, rows, dim, dtype=torch.float64, generator=generator)
    weight = torch.randn(dim, dim, dtype=torch.float64, generator=generator) / dim**0.5
    batch = (*inputs, torch.arange(rows), weight)

    of_ranks = run_on_ranks(world_size, _one_step, loss_fn, *batch)
    loss, grad = _one_step(0, 1, loss_fn, *batch)
    mean_loss = torch.stack([rank_loss for rank_loss, _ in of_ranks]).mean()
    for name, found, expected in (
        ("mean of the ranks' losses", mean_loss, loss),
        ("averaged gradient", of_ranks[0][1], grad),
    ):
        if not torch.allclose(found, expected, rtol=rtol, atol=atol):
            raise AssertionError(
                f"the {name} is not that of one process on the concatenated batch: largest "
                f"difference {float((found - expected).abs().max()):.3g}, largest value "
                f"{float(expected.abs().max()):.3g}"
            )


def run_on_ranks(world_size: int, worker: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run ``worker(rank, world_size, *arguments)`` in that many new processes of one gloo group.

    Args:
        world_size: Number of processes.
        worker: Function that the processes can import.
        *arguments: Further arguments, sent by pickle.

    Returns:
        What each rank returned, by rank.

    Raises:
        torch.multiprocessing.ProcessRaisedException: A rank failed; the message has its traceback.
        TypeError: Something cannot be pickled.

    Example:
        >>> import operator
        >>> run_on_ranks(2, operator.add)
        [2, 3]
    """
    check_at_least(1, world_size=world_size)
    try:
        pickle.dumps((worker, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"what runs on the ranks must be picklable: {error}. Define functions at the top level "
            "of a module, not as a lambda or inside another function"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _run_rank, (world_size, folder, worker, arguments), nprocs=world_size
        )
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
            for rank in range(world_size)
        ]


def _run_rank(
    rank: int, world_size: int, folder: str, worker: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    if Path("/sys/class/net/lo").exists():  # whatever the machine's name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        result = worker(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()
    torch.save(result, Path(folder) / f"{rank}.pt")


def _one_step(
    rank: int, world_size: int, loss_fn: Callable[..., Any], *batch: Tensor
) -> tuple[Tensor, Tensor]:
    """Train on this rank's rows of the inputs, keys and ids: give the loss and the gradient."""
    *rows, weight = batch
    inputs, keys, ids = (part.chunk(world_size)[rank] for part in rows)
    encoder = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    encoder.weight = nn.Parameter(weight.clone())
    model = DistributedDataParallel(encoder) if world_size > 1 else encoder
    out = loss_fn(model(inputs), keys, ids=ids)
    loss: Tensor = getattr(out, "loss", out)
    loss.backward()  # type: ignore[no-untyped-call]
    grad = encoder.weight.grad
    if grad is None:
        raise AssertionError("the loss sends no gradient to the query encoder")
    return loss.detach(), grad
