"""The search of a CPU: by tiles that stay in its cache.

Writing to memory costs more than computing a few rows again, so of a large chunk nothing is held
but the maxima of its blocks. A block is 16 rows that follow one another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iivcl._candidates import Candidates
from iivcl.queues._plan import Step
from iivcl.queues._scores import inner_products, score_rows, slices

_FAR = 1e30  # subtracted from the cosine of an excluded row


class CPUSearch:
    """The chunks of a bank, searched one by one.

    In a tile of similarities, bank rows run down and queries across, so that a maximum over
    neighbouring rows is a vertical, vectorised operation. Excluded pairs lie far below.
    """

    def __init__(self, query: Tensor, candidates: Candidates, k: int) -> None:
        self.query, self.candidates, self.k = query, candidates, k
        self.query_t = query.T.contiguous()
        rows, self.pairs, ids, query_ids = candidates[1:5]
        self.masked = not (rows is self.pairs is query_ids is None)
        # (M, 1) of the product: 0, -inf
        self.bias = None if rows is None else rows.to(query.dtype).log()[:, None]
        self.halves = None
        if ids is not None and query_ids is not None:
            self.halves = _id_halves(ids), _id_halves(query_ids)

    def best_of(self, step: Step) -> tuple[Tensor, Tensor]:
        """Find the best rows of a chunk: values and numbers (B, k), in any order."""
        values, rows = self._in_blocks(step) if step.in_blocks else self._directly(step)
        return values, rows + step.start if step.start else rows

    def finish(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the winners' values one by one, and sort them."""
        scores = inner_products(self.query, self.candidates.keys, rows)
        if self.masked:
            excluded = values <= (-torch.inf if self.halves is None else -_FAR / 2)
            scores.masked_fill_(excluded, -torch.inf)
        values, order = scores.sort(dim=1, descending=True)
        return values, rows.gather(1, order)

    def _directly(self, step: Step) -> tuple[Tensor, Tensor]:
        rows = step.stop - step.start
        similarity = self.query.new_empty(len(self.query), rows)
        for first in range(0, rows, step.tile):
            last = min(first + step.tile, rows)
            self._write(step.start + first, step.start + last, similarity[:, first:last].T)
        return similarity.topk(min(self.k, rows), sorted=False)

    def _in_blocks(self, step: Step) -> tuple[Tensor, Tensor]:
        batch, rows, block = len(self.query), step.stop - step.start, step.block
        maxima = self.query.new_empty(-(-rows // block), batch)
        buffer = self.query.new_empty(-(-step.held // block) * block, batch)
        for first in range(0, rows, step.tile):
            last = min(first + step.tile, rows)
            place = first % step.held  # a whole number of tiles is held
            part = buffer[place : place + -(-(last - first) // block) * block]
            self._write(step.start + first, step.start + last, part[: last - first])
            if len(part) > last - first:  # the rest of the bank's last block
                part[last - first :] = -torch.inf
            blocks = slice(first // block, -(-last // block))
            torch.amax(part.view(-1, block, batch), dim=1, out=maxima[blocks])
        best = maxima.T.contiguous().topk(self.k, sorted=False).indices  # (B, k) blocks
        numbers = torch.add(
            torch.arange(block, device=best.device), best[:, :, None], alpha=block
        ).flatten(1)
        if step.held == rows:
            similarity = buffer.T.gather(1, numbers)  # (B, k * block)
        else:
            similarity = torch.cat(
                [
                    score_rows(
                        self.query, self.candidates, numbers[part] + step.start, step.stop, part
                    )
                    for part in slices(batch, step.at_once)
                ]
            )
        values, order = similarity.topk(self.k, sorted=False)
        # Where nothing was allowed, the rest of the last block may be named.
        return values, numbers.gather(1, order).clamp_(max=rows - 1)

    def _write(self, start: int, stop: int, out: Tensor) -> None:
        """Write the similarities of rows ``start`` to ``stop`` into ``out`` (stop - start, B)."""
        span, rows = slice(start, stop), self.candidates.keys[start:stop].float()
        if self.bias is None:
            torch.mm(rows, self.query_t, out=out)
        else:
            bias = self.bias[span]
            if not self.candidates.normalized:  # what a mask excludes may hold inf or NaN
                rows = rows.masked_fill(bias < 0, 0.0)
            torch.addmm(bias, rows, self.query_t, out=out)
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


def _id_halves(ids: Tensor) -> Tensor:
    return ids.to(torch.int64).contiguous().view(torch.int32).view(-1, 2).T.contiguous()  # (2, M)
