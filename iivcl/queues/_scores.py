"""Similarities of a few rows per query, one by one: they do not depend on chunks or batch."""

from __future__ import annotations

import torch
from torch import Tensor

from iivcl import _engine
from iivcl._candidates import Candidates


def inner_products(query: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Multiply each query (B, D) with its own ``rows`` (B, R) of the bank, to (B, R)."""
    gathered = bank.index_select(0, rows.flatten()).float().view(*rows.shape, bank.shape[1])
    if not _engine.on_cpu(query):
        return torch.bmm(gathered, query[:, :, None])[:, :, 0]  # reads what was gathered once
    return gathered.mul_(query[:, None]).sum(2)


def score_rows(
    query: Tensor, candidates: Candidates, rows: Tensor, stop: int, queries: slice
) -> Tensor:
    """Compute the similarities (b, R) of ``rows`` to some of the queries.

    They are -inf for rows that do not count, or reach ``stop``.
    """
    inside = rows.clamp(max=stop - 1)
    excluded = (rows >= stop) | ~candidates.allowed(inside, queries)
    similarity = inner_products(query[queries], candidates.keys, inside)
    return similarity.masked_fill_(excluded, -torch.inf)


def slices(length: int, size: int) -> list[slice]:
    """Cut ``length`` queries into parts, at least one."""
    return [slice(i, min(i + size, length)) for i in range(0, max(length, 1), size)]
