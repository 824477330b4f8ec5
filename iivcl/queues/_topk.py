"""Exact top-k rows of a bank, at about the cost of the matrix product alone.

The k best rows of a chunk lie in its k best blocks, where a block is 16 neighbouring rows and its
rank is that of its best row: were a block with one of the k best rows not among the k best blocks,
k other blocks would each hold a better row. So one pass computes the similarities with their block
maxima, and a second pass looks only into the k best blocks. On the CPU the first pass goes by tiles
that stay in the cache, and of a large chunk nothing is held but the maxima: writing to memory costs
more than computing a few rows again.
"""

import functools

import torch
from torch import Tensor

from .._checks import check_floating, check_same_device, check_shape
from .._precision import full_float32

__all__ = ["exact_topk"]

_BLOCK = 16  # rows that share one maximum
_TILE_BYTES = 2**21  # similarities computed at once on the CPU: they stay in its cache
_HELD_BYTES = 2**24  # similarities of a chunk that the CPU holds until the second pass
_FEW_QUERIES = 8  # the CPU multiplies so few with the bank faster as rows than as columns
_FAR = 1e30  # subtracted from the similarity of an excluded row; cosines lie in [-1, 1]
_CANDIDATE_BYTES = 2**20  # rows of the best blocks gathered at once in the second pass: the cache


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
    check_shape("query", query, "B D")
    check_shape("bank", bank, "M D", D=(query.shape[1], "query"))
    check_floating("query", query)
    check_floating("bank", bank)
    check_same_device("bank", bank, "query", query)
    rows = bank.shape[0]
    if not 1 <= k <= rows:
        raise ValueError(f"`k` must be in [1, {rows}], the number of rows of `bank`; got {k}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1; got {chunk_size}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"`mask` must be a bool tensor; got {mask.dtype}")
        check_same_device("mask", mask, "query", query)
        if mask.ndim == 1:
            check_shape("mask", mask, "M", M=(rows, "bank"))
        else:
            check_shape("mask", mask, "B M", B=(query.shape[0], "query"), M=(rows, "bank"))
    row_mask, pair_mask = (mask, None) if mask is None or mask.ndim == 1 else (None, mask)
    return search(query, bank, k, chunk_size=chunk_size, row_mask=row_mask, pair_mask=pair_mask)


def search(
    query: Tensor,
    bank: Tensor,
    k: int,
    *,
    chunk_size: int | None = None,
    row_mask: Tensor | None = None,
    pair_mask: Tensor | None = None,
    query_ids: Tensor | None = None,
    bank_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Search the allowed rows: by row (M,), by pair (B, M), and by different ids (B,) and (M,).

    Ids are for rows of unit length only: an equal id moves the similarity out of reach of a cosine.
    """
    chunk_size = chunk_size or _default_chunk_size(query, bank)
    arguments = (
        query.detach(),
        bank.detach(),
        k,
        chunk_size,
        row_mask,
        pair_mask,
        query_ids,
        bank_ids,
    )
    # One opaque node in a compiled graph, however many chunks the bank has.
    return _search_op(*arguments) if torch.compiler.is_compiling() else _search(*arguments)


def _default_chunk_size(query: Tensor, bank: Tensor) -> int:
    if _is_on_cpu(query):
        return 65536
    return max(2048, 2**25 // max(query.shape[0], 1))  # 128 MiB of similarities


def _search(
    query: Tensor,
    bank: Tensor,
    k: int,
    chunk_size: int,
    row_mask: Tensor | None,
    pair_mask: Tensor | None,
    query_ids: Tensor | None,
    bank_ids: Tensor | None,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), full_float32(query):
        query = query.float()
        columns = _Columns(query, bank, row_mask, pair_mask, query_ids, bank_ids)
        best: tuple[Tensor, Tensor] | None = None
        for start in range(0, bank.shape[0], chunk_size):
            stop = min(start + chunk_size, bank.shape[0])
            find = _search_blocks if has_blocks(query, stop - start, k) else _search_directly
            found = find(columns, start, stop, k)
            best = found if best is None else _merge(best, found, k)
        assert best is not None  # a bank has rows
        return _rescore(query, bank, *best)


def _is_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _merge(
    best: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    values, indices = torch.cat([best[0], found[0]], 1), torch.cat([best[1], found[1]], 1)
    values, order = values.topk(min(k, values.shape[1]), sorted=False)
    return values, indices.gather(1, order)


class _Columns:
    """Similarities (rows, B) of a range of bank rows to all queries, excluded pairs far below.

    Bank rows run down and queries across, so that a maximum over neighbouring rows is a vertical,
    vectorised operation and the masks of whole rows come with the product as its bias.
    """

    def __init__(
        self,
        query: Tensor,
        bank: Tensor,
        row_mask: Tensor | None,
        pair_mask: Tensor | None,
        query_ids: Tensor | None,
        bank_ids: Tensor | None,
    ) -> None:
        self.query, self.query_t, self.bank = query, query.T.contiguous(), bank
        self.row_mask, self.pair_mask = row_mask, pair_mask
        self.query_ids, self.bank_ids = query_ids, bank_ids
        self.bias = None
        if not _is_on_cpu(query):
            return
        if row_mask is not None:  # 0 or -inf, (M, 1)
            self.bias = query.new_zeros(len(bank), 1).masked_fill_(~row_mask[:, None], -torch.inf)
        if query_ids is not None and bank_ids is not None:
            self.query_halves, self.bank_halves = _halves(query_ids), _halves(bank_ids)

    def tile(self, start: int, stop: int, out: Tensor) -> Tensor:
        """Write the similarities of rows ``start`` to ``stop`` into ``out`` (stop - start, B)."""
        rows = self.bank[start:stop].float()
        if self.bias is None:
            torch.mm(rows, self.query_t, out=out)
        else:
            torch.addmm(self.bias[start:stop], rows, self.query_t, out=out)
        exclude = self._exclude_on_cpu if _is_on_cpu(out) else self._exclude
        exclude(slice(start, stop), out)
        return out

    def _exclude(self, rows: slice, out: Tensor) -> None:
        """Join all masks before the one pass over the similarities."""
        masks = []
        if self.query_ids is not None and self.bank_ids is not None:
            masks.append(self.bank_ids[rows, None] == self.query_ids)  # (rows, B)
        if self.row_mask is not None:
            masks.append(~self.row_mask[rows, None])
        if self.pair_mask is not None:
            masks.append(~self.pair_mask[:, rows].T)
        if masks:
            out.masked_fill_(functools.reduce(torch.logical_or, masks), -torch.inf)

    def _exclude_on_cpu(self, rows: slice, out: Tensor) -> None:
        """Leave out what the bias of the product has not."""
        if self.query_ids is not None:
            # Two int32 halves compared straight into float32 take a third of the time of one
            # int64 comparison and a masked fill.
            low, high = (
                torch.eq(bank[rows, None], query, out=torch.empty_like(out))
                for bank, query in zip(self.bank_halves, self.query_halves, strict=True)
            )
            out.addcmul_(low, high, value=-_FAR)
        if self.pair_mask is not None:
            out.masked_fill_(~self.pair_mask[:, rows].T, -torch.inf)

    def pairs(self, rows: Tensor) -> Tensor:
        """Compute the similarities (B, R) of a few ``rows`` (B, R) of the bank per query."""
        batch, dim = self.query.shape
        step = max(1, _CANDIDATE_BYTES // (4 * dim * rows.shape[1]))
        parts = [slice(first, first + step) for first in range(0, batch, step)]
        return torch.cat([self._pairs(rows[part], part) for part in parts])

    def _pairs(self, rows: Tensor, queries: slice) -> Tensor:
        similarity = _inner_products(self.query[queries], self.bank, rows)
        if self.bias is not None:
            similarity += self.bias[rows].squeeze(2)
        if self.query_ids is not None and self.bank_ids is not None:
            same = self.bank_ids[rows] == self.query_ids[queries, None]
            similarity.masked_fill_(same, -torch.inf)
        if self.pair_mask is not None:
            similarity.masked_fill_(~self.pair_mask[queries].gather(1, rows), -torch.inf)
        return similarity


def _halves(ids: Tensor) -> Tensor:
    return ids.to(torch.int64).contiguous().view(torch.int32).view(-1, 2).T.contiguous()  # (2, M)


def _search_blocks(columns: _Columns, start: int, stop: int, k: int) -> tuple[Tensor, Tensor]:
    batch, rows = columns.query.shape[0], stop - start
    maxima = columns.query.new_empty(-(-rows // _BLOCK), batch)
    held = rows_held(columns.query, rows, k)
    buffer = columns.query.new_empty(-(-held // _BLOCK) * _BLOCK, batch)
    tile = min(held, tile_rows(columns.query)) if _is_on_cpu(columns.query) else held
    for first in range(0, rows, tile):
        last = min(first + tile, rows)
        place = first % held  # a whole number of tiles is held
        part = buffer[place : place + -(-(last - first) // _BLOCK) * _BLOCK]
        columns.tile(start + first, start + last, part[: last - first])
        part[last - first :] = -torch.inf  # the rest of the bank's last block
        blocks = slice(first // _BLOCK, -(-last // _BLOCK))
        torch.amax(part.view(-1, _BLOCK, batch), dim=1, out=maxima[blocks])
    best = maxima.T.contiguous().topk(k, sorted=False).indices  # (B, k) blocks
    offsets = torch.arange(_BLOCK, device=best.device)
    candidates = (best[:, :, None] * _BLOCK + offsets).flatten(1)  # (B, k * 16) rows
    beyond = candidates >= rows
    candidates.clamp_(max=rows - 1)
    if held == rows:
        similarity = buffer.T.gather(1, candidates)
    else:
        similarity = columns.pairs(candidates + start)
    values, order = similarity.masked_fill_(beyond, -torch.inf).topk(k, sorted=False)
    return values, candidates.gather(1, order) + start


def tile_rows(query: Tensor) -> int:
    """Count the bank rows, whole blocks of them, that the CPU multiplies at once."""
    return min(4096, max(256, _TILE_BYTES // (4 * max(query.shape[0], 1)) // _BLOCK * _BLOCK))


def rows_held(query: Tensor, rows: int, k: int) -> int:
    """Count the bank rows of a chunk whose similarities are held at once."""
    batch, dim = query.shape
    # Worth it when the second pass would read more than is written and read here.
    fits = 4 * batch * rows <= _HELD_BYTES and 2 * rows <= _BLOCK * k * dim
    return rows if fits or not _is_on_cpu(query) else min(rows, tile_rows(query))


def has_blocks(query: Tensor, rows: int, k: int) -> bool:
    """Tell whether the two passes pay for a chunk of ``rows``."""
    if query.shape[0] <= (_FEW_QUERIES if _is_on_cpu(query) else 0):
        return False
    return rows >= 8 * _BLOCK * k  # else the second pass would read as much as the first


def _search_directly(columns: _Columns, start: int, stop: int, k: int) -> tuple[Tensor, Tensor]:
    rows = stop - start
    similarity = columns.query.new_empty(columns.query.shape[0], rows)
    tile = tile_rows(columns.query) if _is_on_cpu(columns.query) else rows
    for first in range(0, rows, tile):
        last = min(first + tile, rows)
        columns.tile(start + first, start + last, similarity[:, first:last].T)
    values, indices = similarity.topk(min(k, rows), sorted=False)
    return values, indices + start


def _rescore(query: Tensor, bank: Tensor, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the winners' values one by one, so that they do not depend on chunks or batch."""
    scores = _inner_products(query, bank, indices).masked_fill_(values < -_FAR / 2, -torch.inf)
    values, order = scores.sort(dim=1, descending=True)
    return values, indices.gather(1, order)


def _inner_products(query: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Multiply each query (B, D) with its own ``rows`` (B, R) of the bank, to (B, R)."""
    gathered = bank.index_select(0, rows.flatten()).float().view(*rows.shape, bank.shape[1])
    return gathered.mul_(query[:, None]).sum(2)


_search_op = torch.library.custom_op(
    "iivcl::search",
    _search,
    mutates_args=(),
    schema="(Tensor query, Tensor bank, int k, int chunk_size, Tensor? row_mask, "
    "Tensor? pair_mask, Tensor? query_ids, Tensor? bank_ids) -> (Tensor, Tensor)",
)


@_search_op.register_fake
def _(query: Tensor, bank: Tensor, k: int, *_: object) -> tuple[Tensor, Tensor]:
    values = query.new_empty((query.shape[0], k), dtype=torch.float32)
    return values, torch.empty_like(values, dtype=torch.int64)
