"""Exact top-k rows of a bank, at about the cost of the matrix product alone.

The k best rows of a chunk lie in its k best blocks, where a block is a few rows and its rank is
that of its best row: were a block with one of the k best rows not among the k best blocks, k other
blocks would each hold a better row. So one pass computes the similarities with their block maxima,
and a second pass looks only into the k best blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iivcl import _engine
from iivcl._candidates import Candidates
from iivcl._checks import check_at_least, check_embeddings, check_mask, check_same_device
from iivcl._precision import full_float32
from iivcl.queues._halves import has_half_products
from iivcl.queues._plan import plan_search
from iivcl.queues._search_cpu import CPUSearch
from iivcl.queues._search_gpu import GPUSearch

__all__ = ["exact_topk"]


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
    on_cpu, candidates = _engine.on_cpu(query), Candidates(bank, *which)
    halves = not on_cpu and has_half_products(query)
    with torch.no_grad(), full_float32(query):
        sizes = *query.shape, len(bank), k
        plan = plan_search(*sizes, on_cpu=on_cpu, has_halves=halves, chunk_size=chunk_size)
        engine: CPUSearch | GPUSearch
        if on_cpu:
            engine = CPUSearch(query.float(), candidates, k)
        else:
            engine = GPUSearch(query.float(), candidates, k, in_halves=plan.in_halves)
        best = engine.best_of(plan.steps[0])  # a bank has rows
        for step in plan.steps[1:]:
            best = _merge(best, engine.best_of(step), k)
        return engine.finish(*best)


def _merge(
    best: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    values, indices = torch.cat([best[0], found[0]], 1), torch.cat([best[1], found[1]], 1)
    values, order = values.topk(min(k, values.shape[1]))
    return values, indices.gather(1, order)


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
