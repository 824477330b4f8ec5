"""Queues of past embeddings, and exact nearest neighbours in them."""

from iivcl.queues._moco import MoCoQueue
from iivcl.queues._planner import Estimate, estimate
from iivcl.queues._support import Neighbors, NNSupportQueue, agreed
from iivcl.queues._topk import exact_topk

__all__ = [
    "Estimate",
    "MoCoQueue",
    "NNSupportQueue",
    "Neighbors",
    "agreed",
    "estimate",
    "exact_topk",
]
