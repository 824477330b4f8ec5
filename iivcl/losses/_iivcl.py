"""The IIVCL objective: the intra-video term plus the nearest-neighbour inter-video term."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from iivcl._candidates import ChunkSize, check_chunk_size
from iivcl._checks import (
    as_several,
    check_at_least,
    check_choice,
    check_mask,
    check_same_device,
    check_shape,
    check_temperature,
    check_within,
    normalize_alike,
)
from iivcl._precision import without_autocast
from iivcl.losses._forms import FORMS, Form, Held, log_add_exp, row_losses
from iivcl.queues import MoCoQueue, Neighbors, NNSupportQueue

__all__ = ["IIVCLLoss", "IIVCLOutput"]


class IIVCLOutput(NamedTuple):
    """What `IIVCLLoss` returns.

    Attributes:
        loss: () intra + inter_weight x inter.
        intra: () loss of the other clips of the same video.
        inter: () loss of the neighbour videos; exactly 0, with zero gradient, while no query has a
            valid neighbour.
        neighbors: Neighbors (B, k) that served as positives of the inter term.
    """

    loss: Tensor
    intra: Tensor
    inter: Tensor
    neighbors: Neighbors


class IIVCLLoss(nn.Module):
    """Inter-intra video contrastive loss.

    For a query q, the keys k_1..k_P of other clips of its video, and a queue Q of past keys::

        intra    positives k_1..k_P, negatives the rows of Q of other videos
        inter    positives the num_neighbors rows of Q nearest to the key,
                 negatives the other rows of Q of other videos
        loss     intra + inter_weight * inter

    Both are multi-positive InfoNCE losses of one ``form`` (`multi_positive_info_nce` has the
    formulas). A neighbour is never among the negatives of the inter term, and rows of the query's
    own video are neither positive nor negative in either. The queue is read, never written: enqueue
    the keys after the backward pass.

    Under a process group, with a ``"gather"`` or ``"shard"`` queue, the gradient that
    DistributedDataParallel averages is that of the single-process loss on the concatenated batch,
    and the mean of the losses over ranks is the single-process loss.

    Args:
        num_neighbors: k of the inter term; 0 leaves it out.
        temperature: Above 0; a tensor of shape () for one that is learned, such as a parameter.
        inter_weight: Weight of the inter term in ``loss``. For a ramp, leave it and write
            ``out.intra + weight(step) * out.inter``: neighbours are noise until the embedding has
            some order, and training with noise as positives harms it.
        form: ``"per_positive"``, ``"out"`` or ``"in"``, for both terms.
        batch_negatives: Take the keys of the other videos of the batch (of all ranks) as negatives
            of both terms, beside the queue. It keeps a fast-moving key encoder from being told
            apart from its past.
        min_age: Least age, in enqueue calls, of a neighbour.
        chunk_size: Queue rows per step of the streaming form; ``"dense"``; default: by size.

    Example:
        >>> import torch
        >>> from iivcl import NNSupportQueue
        >>> queue = NNSupportQueue(8, 4)
        >>> queue.enqueue(torch.eye(4), torch.arange(4))
        >>> criterion = IIVCLLoss(num_neighbors=2)
        >>> query = torch.eye(4).requires_grad_()
        >>> out = criterion(query, torch.eye(4), queue, ids=torch.arange(10, 14))
        >>> out.loss.backward()
        >>> out.neighbors.indices[:, 0]
        tensor([0, 1, 2, 3])

    Source: Fan et al., arXiv 2303.07317.
    """

    def __init__(
        self,
        *,
        num_neighbors: int = 5,
        temperature: float | Tensor = 0.1,
        inter_weight: float = 1.0,
        form: Form = "out",
        batch_negatives: bool = False,
        min_age: int = 0,
        chunk_size: ChunkSize = None,
    ) -> None:
        super().__init__()
        check_at_least(0, num_neighbors=num_neighbors, min_age=min_age)
        check_temperature(temperature)
        check_within(0, math.inf, inter_weight=inter_weight)
        check_choice("form", form, FORMS)
        check_chunk_size(chunk_size)
        self.num_neighbors, self.min_age = num_neighbors, min_age
        self.temperature, self.form = temperature, form
        self.inter_weight, self.batch_negatives = inter_weight, batch_negatives
        self.chunk_size = chunk_size

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        queue: MoCoQueue,
        *,
        ids: Tensor | None = None,
        inter: tuple[Tensor, Tensor, MoCoQueue] | None = None,
        neighbors: Neighbors | None = None,
    ) -> IIVCLOutput:
        """Compute the loss of a batch.

        Args:
            query: (B, D) float, from the trained encoder; normalised here.
            key: (B, D) or (B, P, D) float, the momentum keys of P other clips of the same videos;
                normalised here. No gradient reaches it.
            queue: Queue of past keys, of dimension D.
            ids: (B,) integer ids of the videos; required when the queue has ids.
            inter: Query, key and queue of the inter term, when it has a head of its own. Default:
                the same three.
            neighbors: Rows of the inter queue found by a lookup of your own, (B, k). Default: the
                rows nearest to the key (to the mean of its P clips).

        Returns:
            IIVCLOutput.

        Raises:
            ValueError: A shape or device does not fit, or ids are missing.
            TypeError: An input is not floating-point, or the inter queue has no lookup.
        """
        check_inputs(query, key, queue, ids)
        if inter is not None:
            check_inputs(*inter, ids)
        inter_query, inter_key, inter_queue = inter or (query, key, queue)
        if neighbors is None:
            found = positives = self._look_up(inter_key, inter_queue, ids)
        else:
            found, positives = neighbors, check_neighbors(neighbors, inter_query, inter_queue, ids)
        if inter is None:
            intra, inter_loss = self._terms(query, key, queue, ids, positives)
        else:
            intra, _ = self._terms(query, key, queue, ids, _no_neighbors(query))
            _, inter_loss = self._terms(inter_query, inter_key, inter_queue, ids, positives)
        return IIVCLOutput(intra + self.inter_weight * inter_loss, intra, inter_loss, found)

    def _look_up(self, key: Tensor, queue: MoCoQueue, ids: Tensor | None) -> Neighbors:
        if self.num_neighbors == 0:
            return _no_neighbors(key)
        if not isinstance(queue, NNSupportQueue):
            raise TypeError(
                f"the inter queue must be an NNSupportQueue to find neighbours; got "
                f"{type(queue).__name__}. Use one, or pass `neighbors`"
            )
        if key.ndim == 3:
            (key,) = normalize_alike(key)
            key = key.mean(1)
        rows = queue.placement.rows * queue.placement.row_ranks
        if self.num_neighbors > rows:
            raise ValueError(
                f"`num_neighbors` must be at most {rows}, the rows of the queue; "
                f"got {self.num_neighbors}"
            )
        return queue.nearest(key, self.num_neighbors, ids=ids, min_age=self.min_age)

    def _terms(
        self, query: Tensor, key: Tensor, queue: MoCoQueue, ids: Tensor | None, found: Neighbors
    ) -> tuple[Tensor, Tensor]:
        """Compute the intra and the inter term of one head; found neighbours may be none."""
        placement = queue.placement
        with without_autocast(query):
            query, keys = normalize_alike(query, as_several(query, key, "key").detach())
            scaled = query / self.temperature
            # One pass over the queue serves both terms: the log-sum-exp of the rows that are no
            # neighbours, to which the intra term adds the neighbours.
            rest, neighbor_logits, is_neighbor = placement.log_sum_exp(
                scaled, queue.candidates(ids), found.indices, found.valid, self.chunk_size
            )
            if self.batch_negatives:
                others = placement.others_of_batch(keys, ids)
                rest = log_add_exp(rest, others.log_sum_exp(scaled, chunk_size=self.chunk_size))
            neighbors, clips = Held(neighbor_logits), Held(torch.einsum("bd,bpd->bp", scaled, keys))
            everything = neighbors.log_sum_exp(is_neighbor, rest)  # of the queue, and of the batch
            is_clip = torch.ones_like(clips.logits, dtype=torch.bool)
            intra = row_losses(self.form, clips, is_clip, everything)
            inter = row_losses(self.form, neighbors, is_neighbor, rest, everything)
            return placement.mean(intra, is_clip.any(1)), placement.mean(inter, is_neighbor.any(1))

    def extra_repr(self) -> str:
        """Describe the options in the repr."""
        names = ("num_neighbors", "temperature", "inter_weight", "form", "batch_negatives")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def check_inputs(query: Tensor, key: Tensor, queue: MoCoQueue, ids: Tensor | None) -> None:
    """Check what goes into one head's loss."""
    if not isinstance(queue, MoCoQueue):
        raise TypeError(f"`queue` must be a MoCoQueue; got {type(queue).__name__}")
    queue.check_rows("query", query)
    check_same_device("key", as_several(query, key, "key"), "queue", queue.keys)
    queue.check_ids(ids, query, "query")


def check_neighbors(
    found: Neighbors, query: Tensor, queue: MoCoQueue, ids: Tensor | None
) -> Neighbors:
    """Check neighbours of another lookup: rows that count, each once however often it is named."""
    batch = query.shape[0], "query"
    check_shape("neighbors.indices", found.indices, "B k", B=batch)
    check_mask(
        "neighbors.valid", found.valid, "B k", B=batch, k=(found.indices.shape[1], "indices")
    )
    if found.indices.dtype != torch.int64:
        raise TypeError(f"`neighbors.indices` must be int64; got {found.indices.dtype}")
    check_same_device("neighbors.indices", found.indices, "query", query)
    rows = found.indices.where(found.valid, -1)
    again = (rows[:, :, None] == rows[:, None, :]).tril(-1).any(2)
    valid = found.valid & ~again
    rows, valid = queue.placement.counting(queue.candidates(ids), found.indices, valid)
    return found._replace(indices=rows, valid=valid)


def _no_neighbors(query: Tensor) -> Neighbors:
    empty = query.new_empty(query.shape[0], 0, dtype=torch.float32)
    return Neighbors(empty, empty.to(torch.int64), empty.to(torch.bool))
