"""Losses that the processes of the distributed check import."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from iivcl.distributed import all_gather_cat
from iivcl.losses import multi_positive_info_nce


def batch_negatives_of_all_ranks(query: Tensor, key: Tensor, *, ids: Tensor) -> Tensor:
    """In-batch contrast in both directions, so that gradients cross ranks."""
    queries, keys, all_ids = (all_gather_cat(part) for part in (query, key, ids))
    forward = multi_positive_info_nce(query, keys, ids[:, None] == all_ids)
    backward = multi_positive_info_nce(key, queries, ids[:, None] == all_ids)
    return forward + backward


def constant(query: Tensor, key: Tensor, *, ids: Tensor) -> Tensor:
    return torch.zeros(())


def divide_by_rank(rank: int, world_size: int) -> Any:
    return world_size // rank
