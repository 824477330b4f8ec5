"""Queues of past embeddings, and exact nearest neighbours in them."""

from ._moco import MoCoQueue
from ._planner import Estimate, estimate
from ._support import Neighbors, NNSupportQueue
from ._topk import exact_topk

__all__ = ["Estimate", "MoCoQueue", "NNSupportQueue", "Neighbors", "estimate", "exact_topk"]
