"""What the program around it does must not matter to lookup, losses and evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from surroundings import SURROUNDINGS
from torch import Tensor, nn

from iivcl import IIVCLLoss, NNSupportQueue, evaluation
from iivcl.diagnostics import effective_rank, embedding_std, neighbor_age, neighbor_purity
from iivcl.losses import info_nce
from iivcl.queues import exact_topk

ROWS, LABELS = torch.randn(3000, 8), torch.arange(3000) % 5  # so many that blocks are searched
QUERY, IDS = torch.randn(6, 8), torch.arange(6)
QUEUE = NNSupportQueue(len(ROWS) + 3, 8)  # with rows that were never written
QUEUE.enqueue(ROWS, LABELS)


def enqueue() -> list[Tensor]:
    queue = copy.deepcopy(QUEUE)
    queue.enqueue(QUERY, IDS)
    return [queue.keys, queue.ids, queue.ages]


def loss(chunk_size: Any) -> list[Tensor]:
    criterion = IIVCLLoss(chunk_size=chunk_size, batch_negatives=True)
    found = QUEUE.nearest(QUERY, 4, ids=IDS)
    out = criterion(QUERY, QUERY + 0.1, QUEUE, ids=IDS, neighbors=found)
    return [*out[:3], *criterion(QUERY, QUERY + 0.1, QUEUE, ids=IDS)[:3], *out.neighbors]


def features() -> list[Tensor]:
    loader = [(ROWS[:12].view(3, 2, 1, 1, 2, 8), LABELS[:3], LABELS[:3])]
    return [*evaluation.extract_features(nn.Flatten(), loader, device="cpu")]  # type: ignore[list-item]


def diagnostics() -> list[Tensor]:
    found = QUEUE.nearest(QUERY, 4, ids=IDS)
    values = [neighbor_purity(found, QUEUE.ids, IDS), neighbor_age(found, QUEUE.ages)]
    return [*values, embedding_std(ROWS), effective_rank(ROWS)]


def retrieval() -> list[float]:
    found = evaluation.retrieval_metrics(QUERY, IDS % 5, ROWS, LABELS, ks=(1, 7))
    return [*found.recall.values(), found.mean_average_precision, found.map_at_r, found.r_precision]


def probe() -> list[Tensor]:
    layer = evaluation.fit_linear_probe(ROWS[:400], ROWS[:400, :3].argmax(1))
    return [layer.weight, layer.bias]


def whitening() -> list[Tensor]:
    layer = evaluation.fit_whitening(ROWS)
    return [layer.weight, layer.bias]


CALLS: dict[str, Callable[[], Any]] = {
    "enqueue": enqueue,
    "lookup": lambda: [*QUEUE.nearest(QUERY, 5, ids=IDS)],
    "exact_topk": lambda: [*exact_topk(QUERY, ROWS, 9)],
    "IIVCLLoss": lambda: loss(None),
    "IIVCLLoss, dense": lambda: loss("dense"),
    "info_nce": lambda: info_nce(QUERY, QUERY + 0.1, ROWS, temperature=0.1),
    "diagnostics": diagnostics,
    "extract_features": features,
    "retrieval": retrieval,
    "kNN": lambda: evaluation.knn_classify(QUERY, ROWS, LABELS, k=20),
    "linear probe": probe,
    "whitening": whitening,
}


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_without(name: str, around: str) -> None:
    expected = CALLS[name]()
    with SURROUNDINGS[around]():
        found = CALLS[name]()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
