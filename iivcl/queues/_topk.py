"""Exact top-k rows of a bank, at about the cost of the matrix product alone.

The k best rows of a chunk lie in its k best blocks, where a block is 16 neighbouring rows and its
rank is that of its best row: were a block with one of the k best rows not among the k best blocks,
k other blocks would each hold a better row. So one pass computes the similarities with their block
maxima, and a second pass looks only into the k best blocks. On the CPU the first pass goes by tiles
that stay in the cache, and of a large chunk nothing is held but the maxima: writing to memory costs
more than computing a few rows again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iivcl import _engine
from iivcl._candidates import Candidates
from iivcl._checks import check_at_least, check_embeddings, check_mask, check_same_device
from iivcl._precision import full_float32
from iivcl.queues._halves import (
    half_product,
    halves_of_keys,
    halves_of_queries,
    has_half_products,
    scale_of,
)
from iivcl.queues._plan import BLOCK, Step, plan_search

__all__ = ["exact_topk"]

_FAR = 1e30  # subtracted from the cosine of an excluded row


def exact_topk(
    query: Tensor,
    bank: Tensor,
    k: int,
    *,
    mask: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k rows of a bank with the largest inner product, exactly.

    ``values[i, j]`` is the j-th largest ``query[i] . bank[m]`` over the rows m that ``mask``
    allows, computed and compared in float32 whatever the inputs' dtype, autocast or TF32 setting.
    Rows that tie within float32 rounding come in any order. The (B, M) similarity matrix is never
    held: memory is O(B x chunk_size).

    Args:
        query: (B, D) float.
        bank: (M, D) float.
        k: Number of rows to find, 1 to M.
        mask: Rows that may be found, (M,) for all queries or (B, M), bool; default: all.
        chunk_size: Bank rows searched between two merges of the running top-k; default: chosen
            for the device.

    Returns:
        ``values`` (B, k) float32, descending, and ``indices`` (B, k) int64. Where fewer than k
        rows are allowed, the values left over are -inf and their indices are meaningless.

    Raises:
        ValueError: Shapes or devices do not match, or ``k`` or ``chunk_size`` is out of range.
        TypeError: ``query`` or ``bank`` is not floating-point, or ``mask`` is not bool.

    Example:
        >>> import torch
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        >>> values, indices = exact_topk(torch.tensor([[0.0, 2.0]]), bank, 2)
        >>> values, indices
        (tensor([[2.0000, 1.6000]]), tensor([[1, 2]]))
    """
    check_embeddings("query", query, "B D")
    check_embeddings("bank", bank, "M D", D=(query.shape[1], "query"))
    check_same_device("bank", bank, "query", query)
    rows = bank.shape[0]
    check_at_least(1, k=k, chunk_size=1 if chunk_size is None else chunk_size)
    if k > rows:
        raise ValueError(f"`k` must be in [1, {rows}], the number of rows of `bank`; got {k}")
    candidates = Candidates(bank)
    if mask is not None:
        of_rows, sizes = mask.ndim == 1, {"M": (rows, "bank"), "B": (query.shape[0], "query")}
        check_mask("mask", mask, "M" if of_rows else "B M", **sizes)
        check_same_device("mask", mask, "query", query)
        candidates = Candidates(bank, mask) if of_rows else Candidates(bank, pairs=mask)
    return search(query, candidates, k, chunk_size=chunk_size)


def search(
    query: Tensor, candidates: Candidates, k: int, *, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Search the keys as they are for those that count; see `exact_topk`.

    Ids are for unit rows only: an equal id moves the similarity out of reach of a cosine.
    """
    arguments = query.detach(), k, chunk_size, candidates.keys.detach(), *candidates[1:]
    # One opaque node in a compiled graph, however many chunks the bank has.
    return _search_op(*arguments) if torch.compiler.is_compiling() else _search(*arguments)


def _search(
    query: Tensor, k: int, chunk_size: int | None, bank: Tensor, *which: Any
) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), full_float32(query):
        sizes, on_cpu = (*query.shape, len(bank), k), _engine.on_cpu(query)
        plan = plan_search(
            *sizes, on_cpu=on_cpu, has_halves=has_half_products(query), chunk_size=chunk_size
        )
        tiles = _Tiles(query.float(), Candidates(bank, *which), plan.in_halves)
        best: tuple[Tensor, Tensor] | None = None
        for step in plan.steps:
            if step.in_blocks:
                found = _search_blocks(tiles, step, k, plan.queries_at_once)
            else:
                found = _search_directly(tiles, step, k)
            best = found if best is None else _merge(best, found, k)
        assert best is not None  # a bank has rows
        is_scored = not on_cpu and all(step.in_blocks for step in plan.steps)
        return best if is_scored else tiles.rescore(*best)


def _merge(
    best: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    values, indices = torch.cat([best[0], found[0]], 1), torch.cat([best[1], found[1]], 1)
    values, order = values.topk(min(k, values.shape[1]))
    return values, indices.gather(1, order)


class _Tiles:
    """Similarities of a range of bank rows to all queries, excluded pairs far below.

    On the CPU, bank rows run down and queries across, so that a maximum over neighbouring rows is a
    vertical, vectorised operation. The masks of whole rows come with the product as its bias.
    """

    def __init__(self, query: Tensor, candidates: Candidates, in_halves: bool) -> None:
        self.query, self.candidates = query, candidates
        self.on_cpu = _engine.on_cpu(query)
        self.query_t = query.T.contiguous() if self.on_cpu else query.T
        rows, self.pairs, ids, query_ids = candidates[1:5]
        self.masked = not (rows is self.pairs is query_ids is None)
        # 0 or -inf. What a mask excludes may hold inf or NaN, unless it comes from a queue.
        by_bias = rows is not None and (self.on_cpu or candidates.normalized)
        self.bias = rows.log()[:, None] if by_bias and rows is not None else None  # (M, 1)
        self.halves = None
        if self.on_cpu and ids is not None and query_ids is not None:
            self.halves = _id_halves(ids), _id_halves(query_ids)
        self.parts = None
        if in_halves:
            scale = query.new_full((), 2.0**14)
            if not candidates.normalized:
                scale = scale_of(candidates.keys.float(), rows)
            self.parts = halves_of_queries(query), scale

    def new(self, rows: int) -> Tensor:
        """Make room for the similarities of ``rows``, as (rows, B)."""
        batch = self.query.shape[0]
        return (
            self.query.new_empty(rows, batch)
            if self.on_cpu
            else self.query.new_empty(batch, rows).T
        )

    def write(self, start: int, stop: int, out: Tensor, *, to_rank: bool = False) -> None:
        """Write the similarities of rows ``start`` to ``stop`` into ``out`` (stop - start, B).

        Those ``to_rank`` rows by may be of another scale.
        """
        span, rows = slice(start, stop), self.candidates.keys[start:stop].float()
        bias = None if self.bias is None else self.bias[span]
        if self.parts is not None and to_rank:
            queries, scale = self.parts
            half_product(queries, halves_of_keys(rows, scale, bias), out.T)
        elif bias is None:
            torch.mm(rows, self.query_t, out=out)
        else:
            if not self.candidates.normalized:
                rows = rows.masked_fill(bias < 0, 0.0)
            torch.addmm(bias, rows, self.query_t, out=out)
        if self.on_cpu:
            self._exclude_on_cpu(span, out)
            return
        others = self.candidates if self.bias is None else self.candidates._replace(rows=None)
        if (dropped := others.dropped(span)) is not None:
            out.masked_fill_(dropped.T, -torch.inf)

    def _exclude_on_cpu(self, span: slice, out: Tensor) -> None:
        """Leave out what the bias of the product has not."""
        if self.halves is not None:
            # Two int32 halves compared straight into float32 take a third of the time of one
            # int64 comparison and a masked fill.
            low, high = (
                torch.eq(keys[span, None], query, out=torch.empty_like(out))
                for keys, query in zip(*self.halves, strict=True)
            )
            out.addcmul_(low, high, value=-_FAR)
        if self.pairs is not None:
            out.masked_fill_(~self.pairs[:, span].T, -torch.inf)

    def pairs_of(self, rows: Tensor, queries: slice) -> Tensor:
        """Compute the similarities (b, R) of a few ``rows`` (B, R) per query to ``queries``."""
        rows = rows[queries]
        similarity = _inner_products(self.query[queries], self.candidates.keys, rows)
        if self.on_cpu:
            similarity.masked_fill_(~self.candidates.allowed(rows, queries), -torch.inf)
        return similarity

    def rescore(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the winners' values one by one: they do not depend on chunks or batch."""
        scores = _inner_products(self.query, self.candidates.keys, rows)
        if self.masked:
            excluded = values <= (-torch.inf if self.halves is None else -_FAR / 2)
            scores.masked_fill_(excluded, -torch.inf)
        values, order = scores.sort(dim=1, descending=True)
        return values, rows.gather(1, order)


def _inner_products(query: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Multiply each query (B, D) with its own ``rows`` (B, R) of the bank, to (B, R)."""
    gathered = bank.index_select(0, rows.flatten()).float().view(*rows.shape, bank.shape[1])
    return gathered.mul_(query[:, None]).sum(2)


def _id_halves(ids: Tensor) -> Tensor:
    return ids.to(torch.int64).contiguous().view(torch.int32).view(-1, 2).T.contiguous()  # (2, M)


def _search_blocks(tiles: _Tiles, step: Step, k: int, at_once: int) -> tuple[Tensor, Tensor]:
    batch, rows = tiles.query.shape[0], step.stop - step.start
    maxima = tiles.new(-(-rows // BLOCK))
    buffer = tiles.new(-(-step.held // BLOCK) * BLOCK)
    for first in range(0, rows, step.tile):
        last = min(first + step.tile, rows)
        place = first % step.held  # a whole number of tiles is held
        part = buffer[place : place + -(-(last - first) // BLOCK) * BLOCK]
        tiles.write(step.start + first, step.start + last, part[: last - first], to_rank=True)
        if len(part) > last - first:  # the rest of the bank's last block
            part[last - first :] = -torch.inf
        blocks = slice(first // BLOCK, -(-last // BLOCK))
        torch.amax(part.view(-1, BLOCK, batch), dim=1, out=maxima[blocks])
    best = maxima.T.contiguous().topk(k, sorted=False).indices  # (B, k) blocks
    offsets = torch.arange(BLOCK, device=best.device)
    candidates = torch.add(offsets, best[:, :, None], alpha=BLOCK).flatten(1)  # (B, k * 16) rows
    if tiles.on_cpu and step.held == rows:
        values, order = buffer.T.gather(1, candidates).topk(k, sorted=False)
    else:
        if tiles.on_cpu:
            excluded = candidates >= rows
        else:  # by the masks, or as the rest of the last block
            excluded = buffer.T.gather(1, candidates) == -torch.inf
        if rows % BLOCK:
            candidates.clamp_(max=rows - 1)
        numbers = candidates + step.start if step.start else candidates
        few = [slice(first, first + at_once) for first in range(0, max(batch, 1), at_once)]
        parts = [tiles.pairs_of(numbers, part) for part in few]
        similarity = parts[0] if len(parts) == 1 else torch.cat(parts)
        values, order = similarity.masked_fill_(excluded, -torch.inf).topk(k)
    found = candidates.gather(1, order)
    if rows % BLOCK:  # where nothing was allowed, the rest of the last block may be named
        found.clamp_(max=rows - 1)
    return values, found + step.start if step.start else found


def _search_directly(tiles: _Tiles, step: Step, k: int) -> tuple[Tensor, Tensor]:
    rows = step.stop - step.start
    similarity = tiles.query.new_empty(tiles.query.shape[0], rows)
    for first in range(0, rows, step.tile):
        last = min(first + step.tile, rows)
        tiles.write(step.start + first, step.start + last, similarity[:, first:last].T)
    values, indices = similarity.topk(min(k, rows), sorted=False)
    return values, indices + step.start


_search_op = torch.library.custom_op(
    "iivcl::search",
    _search,
    mutates_args=(),
    schema="(Tensor query, int k, int? chunk_size, Tensor bank, Tensor? rows, Tensor? pairs, "
    "Tensor? ids, Tensor? query_ids, Tensor? without, bool normalized) -> (Tensor, Tensor)",
)


@_search_op.register_fake
def _(query: Tensor, k: int, *_: object) -> tuple[Tensor, Tensor]:
    values = query.new_empty((query.shape[0], k), dtype=torch.float32)
    return values, torch.empty_like(values, dtype=torch.int64)
