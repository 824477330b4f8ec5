"""The IIVCL objective: the intra-video term plus the nearest-neighbour inter-video term."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from iivcl._candidates import NO_LOGIT, Candidates
from iivcl._checks import (
    as_several,
    check_at_least,
    check_choice,
    check_chunk_size,
    check_mask,
    check_same_device,
    check_shape,
    check_temperature,
    check_within,
    normalize_alike,
    unit_rows,
)
from iivcl._engine import ChunkSize
from iivcl._precision import without_autocast
from iivcl.losses._forms import FORMS, Form, row_losses
from iivcl.losses._fused import Columns, Queries, is_fused
from iivcl.queues import MoCoQueue, Neighbors, NNSupportQueue
from iivcl.queues._placement import Placement, without

__all__ = ["IIVCLLoss", "IIVCLOutput"]


class IIVCLOutput(NamedTuple):
    """What `IIVCLLoss` returns.

    Attributes:
        loss: () intra + inter_weight x inter.
        intra: () loss of the other clips of the same video.
        inter: () loss of the neighbour videos; exactly 0, with zero gradient, while no query has a
            valid neighbour.
        neighbors: Neighbors (B, k) that were found for the inter term, or as they were given to it.
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
        given = [(query, check_inputs(query, key, queue, ids), queue)]
        if inter is not None:
            if len(inter) != 3:
                raise ValueError(f"`inter` must be a query, a key and a queue; got {len(inter)}")
            check_shape("inter[0]", inter[0], "B D", B=(len(query), "query"))
            given.append((inter[0], check_inputs(*inter, ids), inter[2]))
        with without_autocast(query):
            heads = [self._head(*each, ids) for each in given]
            if neighbors is None:
                found = positives = self._look_up(heads[-1], ids)
            else:
                found, positives = neighbors, check_neighbors(neighbors, heads[-1])
            loss, intra, inter_loss = self._terms(heads[-1], ids, positives)
            if inter is not None:
                _, intra, _ = self._terms(heads[0], ids, _no_neighbors(query))
                loss = torch.add(intra, inter_loss, alpha=self.inter_weight)
        return IIVCLOutput(loss, intra, inter_loss, found)

    def _head(self, query: Tensor, keys: Tensor, queue: MoCoQueue, ids: Tensor | None) -> _Head:
        unit: Tensor | Queries
        has_all = keys.shape[1] > 0 and queue.placement.row_ranks == 1
        if has_all and is_fused(query, self.chunk_size):
            unit, keys = Queries.beside(query, keys, self.temperature)
        else:
            unit, keys = normalize_alike(query, keys.detach())
        return _Head(unit, keys, queue, queue.candidates(ids))

    def _look_up(self, head: _Head, ids: Tensor | None) -> Neighbors:
        keys, queue = head.keys, head.queue
        if self.num_neighbors == 0:
            return _no_neighbors(keys)
        if not isinstance(queue, NNSupportQueue):
            raise TypeError(
                f"the inter queue must be an NNSupportQueue to find neighbours; got "
                f"{type(queue).__name__}. Use one, or pass `neighbors`"
            )
        rows = queue.placement.rows * queue.placement.row_ranks
        if self.num_neighbors > rows:
            raise ValueError(
                f"`num_neighbors` must be at most {rows}, the rows of the queue; "
                f"got {self.num_neighbors}"
            )
        unit = keys[:, 0] if keys.shape[1] == 1 else unit_rows(keys.mean(1))
        if queue._has_own_nearest:
            return queue.nearest(unit, self.num_neighbors, ids=ids, min_age=self.min_age)
        old = queue.candidates(ids, min_age=self.min_age) if self.min_age else head.candidates
        return queue._nearest(unit.float(), self.num_neighbors, old)

    def _terms(
        self, head: _Head, ids: Tensor | None, found: Neighbors
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute loss, intra and inter term of one head; found neighbours may be none."""
        query, keys, queue, candidates = head
        placement, clips = queue.placement, keys.shape[1]
        others = [placement.others_of_batch(keys, ids)] if self.batch_negatives else []
        if isinstance(query, Queries):
            return self._fused_terms(query, keys, placement, candidates, others, found)
        scaled = query / self.temperature
        # One pass over the queue serves both terms: the log-sum-exp of the rows that are no
        # neighbours, to which the intra term adds the neighbours.
        rest, neighbor_logits, is_neighbor = placement.log_sum_exp(
            scaled, candidates, found.indices, found.valid, self.chunk_size
        )
        levels = [part.log_sum_exp(scaled, chunk_size=self.chunk_size) for part in others]
        # No product of matrices: inductor of torch 2.11 writes the gradient of one of a single row
        # over its factor, the keys, from which `others` have yet to take theirs.
        clip_logits = (scaled[:, None] * keys).sum(2)
        # Both terms at once, (B, 2, P + k + 1): the positives of the first are the clips, which are
        # absent from the second, whose positives are the neighbours.
        shared = neighbor_logits, torch.stack([rest, *levels], 1)
        absent = torch.full_like(clip_logits, NO_LOGIT)
        both = torch.cat([clip_logits, *shared, absent, *shared], 1)
        logits = both.view(len(keys), 2, both.shape[1] // 2)
        positive = torch.zeros_like(logits, dtype=torch.bool)
        positive[:, 0, :clips] = True
        positive[:, 1, clips : clips + is_neighbor.shape[1]] = is_neighbor
        intra, inter = row_losses(self.form, logits, positive).sum(0).unbind()
        every, some = placement.counts(len(keys), is_neighbor.any(1))
        intra, inter = intra / every, inter / some
        return torch.add(intra, inter, alpha=self.inter_weight), intra, inter

    def _fused_terms(
        self,
        queries: Queries,
        keys: Tensor,
        placement: Placement,
        candidates: Candidates,
        others: list[Candidates],
        found: Neighbors,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the same with derivatives of its own."""
        (clips, k), absent = (keys.shape[1], found.indices.shape[1]), ~found.valid
        rest = without(candidates, found.indices, absent)
        nearest = torch.embedding(candidates.keys, found.indices).to(keys.dtype)  # (B, k, D)
        keys = torch.cat([keys, nearest], 1)
        columns = Columns.of(queries, keys, [rest, *others], self.chunk_size, absent=absent)
        found_each = found.valid.sum(1, keepdim=True)
        has_any = found_each > 0
        every, some = placement.counts(len(keys), has_any)
        row = has_any.to(keys.dtype) / some
        own = found.valid * (row / found_each.clamp_(min=1))
        intra, by_intra = columns.row_losses(self.form, clips, 1 / (every * clips), 1 / every)
        inter, by_inter = columns.after(clips).row_losses(self.form, k, own, row)
        intra, inter = intra.sum(), inter.sum()
        loss = torch.add(intra, inter, alpha=self.inter_weight)
        by_loss = torch.add(by_intra, by_inter, alpha=self.inter_weight)
        losses = queries.differentiable([loss, intra, inter], [by_loss, by_intra, by_inter])
        return losses[0], losses[1], losses[2]

    def extra_repr(self) -> str:
        """Describe the options in the repr."""
        names = ("num_neighbors", "temperature", "inter_weight", "form", "batch_negatives")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class _Head(NamedTuple):
    """What a head gives, of unit length in the widest dtype, and what it is compared with."""

    query: Tensor | Queries  # (B, D)
    keys: Tensor  # (B, P, D)
    queue: MoCoQueue
    candidates: Candidates


def check_inputs(query: Tensor, key: Tensor, queue: MoCoQueue, ids: Tensor | None) -> Tensor:
    """Check what goes into one head's loss, and return the keys as (B, P, D)."""
    if not isinstance(queue, MoCoQueue):
        raise TypeError(f"`queue` must be a MoCoQueue; got {type(queue).__name__}")
    queue.check_rows("query", query)
    keys = as_several(query, key, "key")
    check_same_device("key", keys, "queue", queue.keys)
    queue.check_ids(ids, query, "query")
    return keys


def check_neighbors(found: Neighbors, head: _Head) -> Neighbors:
    """Check neighbours of another lookup: rows that count, each once however often it is named."""
    if not isinstance(found, Neighbors):
        raise TypeError(f"`neighbors` must be Neighbors; got {type(found).__name__}")
    indices, batch = found.indices, (len(head.keys), "query")
    check_shape("neighbors.indices", indices, "B k", B=batch)
    check_mask("neighbors.valid", found.valid, "B k", B=batch, k=(indices.shape[1], "indices"))
    if indices.dtype != torch.int64:
        raise TypeError(f"`neighbors.indices` must be int64; got {indices.dtype}")
    check_same_device("neighbors.indices", indices, "query", head.keys)
    rows = indices.masked_fill(~found.valid, -1)
    again = (rows[:, :, None] == rows[:, None, :]).tril(-1).any(2)
    rows, valid = head.queue.placement.counting(head.candidates, rows)
    return Neighbors(found.similarity, rows, valid & ~again)


def _no_neighbors(query: Tensor) -> Neighbors:
    empty = query.new_empty(len(query), 0, dtype=torch.float32)
    return Neighbors(empty, empty.to(torch.int64), empty.to(torch.bool))
