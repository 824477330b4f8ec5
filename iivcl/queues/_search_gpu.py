"""The search of a GPU: few kernels, each over as much as memory allows.

A tile of similarities is cut into strips of equal length, and a block is the rows at one place of
all strips: so the maxima of all blocks are an elementwise maximum of strips, which reads the tile
at the speed of memory, where maxima over rows that follow one another read it at a quarter of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iivcl._candidates import Candidates
from iivcl.queues._halves import half_product, halves_of_keys, halves_of_queries, scale_of
from iivcl.queues._plan import Step
from iivcl.queues._scores import inner_products, score_rows, slices


class GPUSearch:
    """The chunks of a bank, searched one by one. Excluded pairs have the similarity -inf."""

    def __init__(self, query: Tensor, candidates: Candidates, k: int, *, in_halves: bool) -> None:
        self.query, self.candidates, self.k = query, candidates, k
        self.excluding, self.bias, self.parts = candidates, None, None
        self.halves = query.new_empty(0, 0, dtype=torch.float16)  # of the tile before
        if in_halves:
            rows, scale = candidates.rows, query.new_full((), 2.0**14)
            if not candidates.normalized:
                scale = scale_of(candidates.keys.float(), rows)
            self.parts = halves_of_queries(query), scale
            if rows is not None and candidates.normalized:  # no row holds inf or NaN
                self.bias = rows.log()[:, None]  # (M, 1) of the product: 0 or -inf
                self.excluding = candidates._replace(rows=None)

    def best_of(self, step: Step) -> tuple[Tensor, Tensor]:
        """Find the best rows of a chunk: values and numbers (B, k), descending."""
        values, rows = self._in_blocks(step) if step.in_blocks else self._directly(step)
        return values, rows + step.start if step.start else rows

    def finish(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give what was found: it is sorted, and float32's."""
        return values, rows

    def _directly(self, step: Step) -> tuple[Tensor, Tensor]:
        rows = step.stop - step.start
        similarity = self.query.new_empty(len(self.query), rows)
        self._write(step.start, step.stop, similarity, in_halves=False)
        return similarity.topk(min(self.k, rows))

    def _in_blocks(self, step: Step) -> tuple[Tensor, Tensor]:
        batch, rows = len(self.query), step.stop - step.start
        tiles, strip = -(-rows // step.tile), step.tile // step.block
        maxima = self.query.new_empty(batch, tiles, strip)
        tile = self.query.new_empty(batch, step.tile)
        for i, first in enumerate(range(0, rows, step.tile)):
            size = min(step.tile, rows - first)
            start = step.start + first
            self._write(start, start + size, tile[:, :size], in_halves=self.parts is not None)
            if size < step.tile:
                tile[:, size:] = -torch.inf
            torch.amax(tile.view(batch, step.block, strip), dim=1, out=maxima[:, i])
        best = maxima.flatten(1).topk(self.k, sorted=False).indices  # (B, k) blocks
        if tiles > 1:  # of which tile, and where in a strip
            best = torch.add(best % strip, best // strip, alpha=step.tile)
        held = tile if tiles == 1 else None
        del tile
        parts = [self._among(best, held, step, part) for part in slices(batch, step.at_once)]
        if len(parts) == 1:
            return parts[0]
        values, found = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(found)

    def _among(
        self, best: Tensor, held: Tensor | None, step: Step, queries: slice
    ) -> tuple[Tensor, Tensor]:
        """Look into the blocks of some queries, of which ``best`` (B, k) names the first rows."""
        strips = torch.arange(0, step.tile, step.tile // step.block, device=best.device)
        numbers = torch.add(best[queries, :, None], strips).flatten(1)  # (b, k * block)
        if held is not None:
            similarity = held[queries].gather(1, numbers)
        else:
            rows = numbers + step.start if step.start else numbers
            similarity = score_rows(self.query, self.candidates, rows, step.stop, queries)
        values, order = similarity.topk(self.k)
        found = numbers.gather(1, order)
        if (step.stop - step.start) % step.tile:  # where few are allowed, rows beyond are named
            found.clamp_(max=step.stop - step.start - 1)
        if held is not None and self.parts is not None:  # the values are those of halves
            scores = inner_products(self.query[queries], self.candidates.keys, found + step.start)
            scores.masked_fill_(values == -torch.inf, -torch.inf)
            values, order = scores.sort(dim=1, descending=True)
            found = found.gather(1, order)
        return values, found

    def _write(self, start: int, stop: int, out: Tensor, *, in_halves: bool) -> None:
        """Write the similarities of rows ``start`` to ``stop`` into ``out`` (B, stop - start).

        Those in halves are of another scale.
        """
        span, rows = slice(start, stop), self.candidates.keys[start:stop].float()
        excluding = self.candidates
        if in_halves and self.parts is not None:
            queries, scale = self.parts
            bias = None if self.bias is None else self.bias[span]
            old = self.halves[: len(rows)] if len(self.halves) >= len(rows) else None
            self.halves = halves_of_keys(rows, scale, bias, old)
            half_product(queries, self.halves, out)
            excluding = self.excluding
        else:
            torch.mm(self.query, rows.T, out=out)
        if (dropped := excluding.dropped(span)) is not None:
            out.masked_fill_(dropped, -torch.inf)
