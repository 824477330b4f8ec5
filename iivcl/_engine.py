"""Which engine does the work: by device and by size.

The CPU's works in tiles that fit its caches; accelerators launch few large kernels. Tests force
theirs on the CPU, by `on_cpu`. A small matrix of logits is held, a large one streamed in chunks.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

ChunkSize = int | Literal["dense"] | None

# Above this many logits the dense form stops paying: each of its passes leaves the CPU's cache,
# and autograd keeps several matrices of this size.
_DENSE_LOGITS = 2**22


def on_cpu(tensor: Tensor) -> bool:
    """Whether the CPU does the work on ``tensor``."""
    return tensor.device.type == "cpu"


def choose_chunk_size(chunk_size: ChunkSize, query: Tensor, keys: int) -> int | Literal["dense"]:
    """Return the user's choice; else dense for a small matrix and streaming for others."""
    if chunk_size is not None:
        return chunk_size
    return "dense" if query.shape[0] * keys <= _DENSE_LOGITS else streaming_chunk_size(query)


def streaming_chunk_size(query: Tensor) -> int:
    """Return the keys per step whose logits fit the cache of the device and are worth a step."""
    logits = 2**20 if on_cpu(query) else 2**26  # 4 and 256 MiB of float32
    return max(1024, logits // max(query.shape[0], 1))
