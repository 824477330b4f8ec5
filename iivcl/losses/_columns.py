"""Log-sum-exp of logits over chosen columns, dense or streaming."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._forms import NO_LOGIT, log_sum_exp

ChunkSize = int | Literal["dense"] | None

# Above this many logits the dense form stops paying: each of its passes leaves the CPU's cache,
# and autograd keeps several matrices of this size.
_DENSE_LOGITS = 2**22


class Columns(NamedTuple):
    """Which columns of a (B, M) logit matrix are kept; all conditions hold together.

    Only ``pair_weights`` has the size of the matrix.
    """

    keep_rows: Tensor | None = None  # (M,) bool: keys that may be used at all
    pair_weights: Tensor | None = None  # (B, M) bool, or float factors of the exponentials
    query_ids: Tensor | None = None  # (B,): columns whose key has the same id are left out
    key_ids: Tensor | None = None  # (M,)
    excluded: Tensor | None = None  # (B, E) columns left out; numbers outside [0, M) name none

    def mask_(self, logits: Tensor, span: slice, value: float) -> Tensor:
        """Fill the columns left out of ``logits`` (B, c), which are columns ``span``, in place."""
        dropped = self._dropped(span)
        if dropped is not None:
            logits = logits.masked_fill_(dropped, value)
        weights = self.pair_weights
        if weights is not None and weights.is_floating_point():
            logits = logits.add_(weights[:, span].to(logits.dtype).log().clamp(min=value))
        return logits

    def _dropped(self, span: slice) -> Tensor | None:
        parts: list[Tensor] = []
        if self.keep_rows is not None:
            parts.append(~self.keep_rows[None, span])
        if self.pair_weights is not None and self.pair_weights.dtype == torch.bool:
            parts.append(~self.pair_weights[:, span])
        if self.query_ids is not None and self.key_ids is not None:
            parts.append(self.query_ids[:, None] == self.key_ids[None, span])
        if self.excluded is not None:
            parts.append(_one_hot(self.excluded - span.start, span.stop - span.start))
        if not parts:
            return None
        dropped = parts[0]
        for part in parts[1:]:
            dropped = dropped | part
        return dropped


def column_log_sum_exp(
    query: Tensor,
    keys: Tensor,
    columns: Columns,
    *,
    temperature: float,
    chunk_size: ChunkSize,
    normalize_keys: bool = False,
) -> Tensor:
    """Compute the log-sum-exp (B,) of ``query @ keys.T / temperature`` over the kept columns.

    `NO_LOGIT` where no column is kept. Keys that are normalised here get no gradient.
    """
    from ._streaming import streaming_log_sum_exp

    chunk_size = choose_chunk_size(chunk_size, query, keys.shape[0])
    if chunk_size != "dense":
        return streaming_log_sum_exp(
            query, keys, columns, temperature, chunk_size, normalize_keys=normalize_keys
        )
    keys = keys.to(query.dtype)
    if normalize_keys:
        keys = F.normalize(keys, dim=1)
    logits = query @ keys.T / temperature  # (B, M)
    return log_sum_exp(columns.mask_(logits, slice(0, keys.shape[0]), NO_LOGIT))


def check_chunk_size(chunk_size: ChunkSize) -> None:
    """Check the user's choice."""
    if isinstance(chunk_size, int) and chunk_size < 1:
        raise ValueError(f'`chunk_size` must be at least 1, "dense" or None; got {chunk_size}')


def choose_chunk_size(chunk_size: ChunkSize, query: Tensor, keys: int) -> int | Literal["dense"]:
    """Return the user's choice; else dense for a small matrix and streaming for others."""
    check_chunk_size(chunk_size)
    if chunk_size is not None:
        return chunk_size
    return "dense" if query.shape[0] * keys <= _DENSE_LOGITS else streaming_chunk_size(query)


def streaming_chunk_size(query: Tensor) -> int:
    """Return the keys per step whose logits fit the cache of the device and are worth a step."""
    logits = 2**20 if query.device.type == "cpu" else 2**23  # 4 and 32 MiB of float32
    return max(1024, logits // max(query.shape[0], 1))


def _one_hot(places: Tensor, width: int) -> Tensor:
    """Mark columns ``places`` (B, E) in a (B, width) bool matrix, skipping those out of range."""
    marks = torch.zeros(places.shape[0], width + 1, dtype=torch.bool, device=places.device)
    inside = (places >= 0) & (places < width)
    return marks.scatter(1, torch.where(inside, places, width), True)[:, :-1]


__all__ = [
    "NO_LOGIT",
    "ChunkSize",
    "Columns",
    "check_chunk_size",
    "choose_chunk_size",
    "column_log_sum_exp",
    "streaming_chunk_size",
]
