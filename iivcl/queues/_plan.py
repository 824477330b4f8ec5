"""How a search goes through a bank: computed once, executed by the search, added up by `estimate`.

Sizes decide, and whether the CPU does the work, whose caches are small and whose topk is slow.
"""

from __future__ import annotations

from typing import NamedTuple

_CPU_BLOCK = 16  # rows that share one maximum
_TILE_BYTES = 2**21  # similarities computed at once on the CPU: they stay in its cache
_HELD_BYTES = 2**24  # similarities of a chunk that the CPU holds until the second pass
_FEW_QUERIES = 8  # the CPU multiplies so few with the bank faster as rows than as columns
_CPU_GATHERED_BYTES = 2**20  # rows of the best blocks gathered at once: the cache
_CPU_CHUNK_ROWS = 65_536

_GPU_BLOCKS = 64, 128, 256  # the least whose maxima take no more than ...
_MAXIMA_BYTES = 2**25
_GPU_TILE_BYTES = 72 * 2**20  # similarities, and halves of the rows, that are held at once
_GPU_GATHERED_BYTES = 48 * 2**20
_FEW_SIMILARITIES = 2**22  # that topk goes through in the time of launching the rest
_HALVES_PAY = 768, 2**24  # queries, and similarities, from which on the halves are worth making


class Step(NamedTuple):
    """One chunk of the bank.

    Attributes:
        start: First row.
        stop: Row after the last.
        in_blocks: Whether the two passes pay.
        held: Rows whose similarities are held at once; fewer than all: their blocks are computed
            again in the second pass.
        tile: Rows that are multiplied at once.
        block: Rows that share one maximum.
        at_once: Queries that look into their best blocks at once.
    """

    start: int
    stop: int
    in_blocks: bool
    held: int
    tile: int
    block: int
    at_once: int


class SearchPlan(NamedTuple):
    """The chunks in their order.

    The first pass may run ``in_halves``: on tensor cores, with numbers in two parts of float16.
    """

    steps: list[Step]
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
    if on_cpu:
        return _plan_on_cpu(batch, dim, rows, k, chunk_size or _CPU_CHUNK_ROWS)
    in_halves = has_halves and batch >= _HALVES_PAY[0] and batch * rows >= _HALVES_PAY[1]
    return _plan_on_gpu(batch, dim, rows, k, chunk_size, in_halves)


def _plan_on_cpu(batch: int, dim: int, rows: int, k: int, chunk: int) -> SearchPlan:
    block = _CPU_BLOCK
    fitting = _TILE_BYTES // (4 * max(batch, 1)) // block * block
    tile = min(4096, max(256, fitting))

    def step(start: int, stop: int) -> Step:
        size = stop - start
        # Else both passes would read as much.
        in_blocks = batch > _FEW_QUERIES and size >= 8 * block * k
        # Worth it when the second pass would read more than is written and read here.
        fits = 4 * batch * size <= _HELD_BYTES and 2 * size <= block * k * dim
        held = size if fits or not in_blocks else min(size, tile)
        at_once = max(1, _CPU_GATHERED_BYTES // (4 * dim * k * block))
        return Step(start, stop, in_blocks, held, min(tile, size), block, at_once)

    steps = [step(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    return SearchPlan(steps, False)


def _plan_on_gpu(
    batch: int, dim: int, rows: int, k: int, chunk: int | None, in_halves: bool
) -> SearchPlan:
    column = 4 * max(batch, 1)  # bytes of the similarities of a row
    block = next((b for b in _GPU_BLOCKS if column * rows <= b * _MAXIMA_BYTES), _GPU_BLOCKS[-1])
    row_bytes = column + half_bytes(dim) * in_halves
    tile = max(1, _GPU_TILE_BYTES // row_bytes // block) * block
    pays = batch * rows > _FEW_SIMILARITIES and rows >= 4 * block * k
    chunk = chunk or max(tile, _MAXIMA_BYTES * block // column if pays else tile)

    def step(start: int, stop: int) -> Step:
        size = stop - start
        in_blocks = pays and size >= 4 * block * k
        whole = -(-size // block) * block
        # Of each row that is looked at, the key if it is not held, its number, value and masks.
        row = 4 * dim * (size > tile) + 40
        at_once = max(1, _GPU_GATHERED_BYTES // (row * k * block))
        return Step(start, stop, in_blocks, min(tile, size), min(tile, whole), block, at_once)

    steps = [step(start, min(start + chunk, rows)) for start in range(0, rows, chunk)]
    return SearchPlan(steps, in_halves)
