"""The few collectives of contrastive learning; without a process group each is the identity.

Every function takes the default process group. The gathering ones accept a different number of
rows on every rank and return rows in rank-major order: all of rank 0, then all of rank 1, ...
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iivcl._checks import check_shape

__all__ = ["all_gather_cat", "batch_shuffle", "batch_unshuffle", "rank", "world_size"]


def rank() -> int:
    """Return the rank of this process, 0 without a process group.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if _is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if _is_initialized() else 1


def all_gather_cat(tensor: Tensor, *, sizes: list[int] | None = None) -> Tensor:
    """Concatenate the rows of all ranks, in rank-major order.

    The backward pass sums the gradients that all ranks have for a row and hands them to the rank
    the row came from. With a loss that is a mean over each rank's own rows, and gradients averaged
    over ranks as DistributedDataParallel does, that is the gradient of the single-process loss on
    the concatenated batch.

    Args:
        tensor: (B, ...), the same trailing shape and dtype on every rank; B may differ.
        sizes: B of every rank, when known. Asking the ranks for it costs one small collective and
            makes the host wait for the device.

    Returns:
        (sum of B over ranks, ...); ``tensor`` itself without a process group.

    Example:
        >>> import torch
        >>> all_gather_cat(torch.arange(3))
        tensor([0, 1, 2])
    """
    if world_size() == 1:
        return tensor
    sizes = gather_sizes(tensor) if sizes is None else sizes
    return _AllGatherRows.apply(tensor, sizes)  # type: ignore[no-any-return]


def batch_shuffle(
    tensor: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Deal the rows of all ranks out to the ranks at random, so that batch norm cannot cheat.

    With batch statistics per device, a query and its key that always share a device let the key
    encoder leak which rows belong together. Shuffling the key encoder's input and undoing it on
    its output closes that path. On one device the statistics are those of the whole batch in any
    order; there, `iivcl.backbones.SplitBatchNorm` gives shuffling its effect.

    Args:
        tensor: (B, ...), the same B on every rank.
        generator: Source of the permutation; only rank 0's draw counts.

    Returns:
        The (B, ...) rows dealt to this rank, and the (world x B,) permutation of all rows, which
        `batch_unshuffle` needs.

    Raises:
        ValueError: B differs between ranks; all of them raise.

    Example:
        >>> import torch
        >>> rows, permutation = batch_shuffle(torch.arange(4.0))
        >>> batch_unshuffle(rows, permutation)
        tensor([0., 1., 2., 3.])

    Source: He et al., Momentum Contrast, arXiv 1911.05722, section 3.3.
    """
    rows = _rows_of_each(tensor)
    device = generator.device if generator is not None else tensor.device
    permutation = torch.randperm(rows * world_size(), generator=generator, device=device)
    permutation = permutation.to(tensor.device)
    if world_size() > 1:
        dist.broadcast(permutation, src=0)
    return _deal(tensor, permutation), permutation


def batch_unshuffle(tensor: Tensor, permutation: Tensor) -> Tensor:
    """Undo `batch_shuffle`: return this rank's own rows in their first order.

    Args:
        tensor: (B, ...) rows computed from the shuffled ones.
        permutation: (world x B,) as returned by `batch_shuffle`.

    Returns:
        (B, ...).

    Raises:
        ValueError: B differs between ranks, or is not that of the permutation; all of them raise.

    Example:
        >>> import torch
        >>> rows, permutation = batch_shuffle(torch.arange(4.0))
        >>> batch_unshuffle(2 * rows, permutation)
        tensor([0., 2., 4., 6.])
    """
    rows = _rows_of_each(tensor)
    check_shape("permutation", permutation, "R", R=(rows * world_size(), "tensor"))
    return _deal(tensor, permutation.argsort())


def gather_sizes(tensor: Tensor) -> list[int]:
    """Ask every rank for its number of rows."""
    if world_size() == 1:
        return [tensor.shape[0]]
    # Where the group has a way between CPUs, as by default, no rank waits for its GPU.
    device = "cpu" if "cpu:" in dist.get_backend_config() else tensor.device
    own = torch.tensor([tensor.shape[0]], device=device)
    sizes = own.new_empty(world_size())
    _all_gather(sizes, own)
    return [int(size) for size in sizes.tolist()]


def exchange(blocks: Tensor) -> Tensor:
    """Send ``blocks[r]`` to rank r and return what each rank sent here; (world, ...) both ways.

    Every rank passes a block of the same shape. The backward pass is the same exchange.
    """
    return _Exchange.apply(blocks) if world_size() > 1 else blocks


def blocks_of(rows: Tensor, sizes: list[int]) -> Tensor:
    """Split the rows of all ranks into one padded block per rank, as `exchange` takes them."""
    parts = torch.split_with_sizes(rows, sizes)
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_gather(output: Tensor, tensor: Tensor) -> None:
    # torch 2.14 gave the collective a new name, and warns of the old one.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(output, tensor)


def _rows_of_each(tensor: Tensor) -> int:
    """Ask for B, the same on every rank; where it is not, every rank raises and none waits."""
    sizes = gather_sizes(tensor)
    if min(sizes) != max(sizes):
        raise ValueError(
            f"`tensor` must have the same number of rows on every rank; got {sizes}. Drop the last "
            "batch, with drop_last=True in the DataLoader and the sampler"
        )
    return sizes[0]


def _deal(tensor: Tensor, order: Tensor) -> Tensor:
    """Give this rank its share of the rows of all ranks, (B, ...), in an order (world x B,)."""
    gathered = all_gather_cat(tensor, sizes=[tensor.shape[0]] * world_size())
    return gathered[order.chunk(world_size())[rank()]]


class _AllGatherRows(torch.autograd.Function):
    """Goes through blocks of the largest size, since collectives want equal shapes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes, most = sizes, max(sizes)
        block = tensor.new_zeros((most, *tensor.shape[1:]))
        block[: tensor.shape[0]] = tensor
        blocks = block.new_empty((len(sizes) * most, *tensor.shape[1:]))
        _all_gather(blocks, block)
        if min(sizes) == most:
            return blocks
        return torch.cat([blocks[r * most : r * most + size] for r, size in enumerate(sizes)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return torch.split_with_sizes(total, ctx.sizes)[rank()], None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor) -> Tensor:
        received = torch.empty_like(blocks, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, blocks.contiguous())
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Exchange.apply(grad)  # type: ignore[no-any-return]
