"""Queues of past embeddings, and exact nearest neighbours in them."""

from ._moco import MoCoQueue
from ._support import Neighbors, NNSupportQueue
from ._topk import exact_topk

__all__ = ["MoCoQueue", "NNSupportQueue", "Neighbors", "exact_topk"]
