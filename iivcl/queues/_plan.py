"""How a search goes through a bank: computed once, executed by the search, added up by `estimate`.

Sizes decide, and whether the CPU does the work, whose caches are small and whose topk is slow.
"""

from __future__ import annotations

from typing import NamedTuple

BLOCK = 16  # rows that share one maximum
_TILE_BYTES = 2**21  # similarities computed at once on the CPU: they stay in its cache
_HELD_BYTES = 2**24  # similarities of a chunk that the CPU holds until the second pass
_FEW_QUERIES = 8  # the CPU multiplies so few with the bank faster as rows than as columns
_CANDIDATE_BYTES = 2**20  # rows of the best blocks gathered at once in the second pass: the cache
_MANY_CANDIDATE_BYTES = 2**25  # the same of an accelerator
_CHUNK_ROWS = 65_536  # of the CPU
_CHUNK_BYTES = 2**27  # similarities and halves of a chunk on an accelerator
_HALVES_PAY = 256, 2**24  # queries, and similarities, from which on the halves are worth making


class Step(NamedTuple):
    """One chunk of the bank.

    Attributes:
        start: First row.
        stop: Row after the last.
        in_blocks: Whether the two passes pay.
        held: Rows whose similarities are held at once; fewer than all: their blocks are computed
            again in the second pass.
        tile: Rows that are multiplied at once.
    """

    start: int
    stop: int
    in_blocks: bool
    held: int
    tile: int


class SearchPlan(NamedTuple):
    """The chunks in their order, and how many queries look into their best blocks at once.

    The first pass may run ``in_halves``: on tensor cores, with numbers in two parts of float16.
    """

    steps: list[Step]
    queries_at_once: int
    in_halves: bool


def half_bytes(dim: int) -> int:
    """Bytes of a bank row in two parts of float16, of which one stands twice, and its bias."""
    return 2 * (3 * dim + 8)


def plan_search(
    batch: int,
    dim: int,
    rows: int,
    k: int,
    *,
    on_cpu: bool,
    has_halves: bool = False,
    chunk_size: int | None = None,
) -> SearchPlan:
    """Plan a search for ``batch`` queries (B, D) among the ``rows`` of a bank (M, D)."""
    in_halves = has_halves and batch >= _HALVES_PAY[0] and batch * rows >= _HALVES_PAY[1]
    few = batch <= _FEW_QUERIES and on_cpu
    fitting = _TILE_BYTES // (4 * max(batch, 1)) // BLOCK * BLOCK
    tile = min(4096, max(256, fitting)) if on_cpu else rows
    row_bytes = half_bytes(dim) if in_halves else 0
    chunk = chunk_size or (
        _CHUNK_ROWS if on_cpu else max(2048, _CHUNK_BYTES // (row_bytes + 4 * max(batch, 1)))
    )

    def step(start: int) -> Step:
        stop = min(start + chunk, rows)
        size = stop - start
        in_blocks = not few and size >= 8 * BLOCK * k  # else both passes would read as much
        # Worth it when the second pass would read more than is written and read here.
        fits = 4 * batch * size <= _HELD_BYTES and 2 * size <= BLOCK * k * dim
        held = size if fits or not on_cpu or not in_blocks else min(size, tile)
        return Step(start, stop, in_blocks, held, min(tile, size))

    candidate_bytes = _CANDIDATE_BYTES if on_cpu else _MANY_CANDIDATE_BYTES
    at_once = max(1, candidate_bytes // (4 * dim * k * BLOCK))
    return SearchPlan([step(start) for start in range(0, rows, chunk)], at_once, in_halves)
