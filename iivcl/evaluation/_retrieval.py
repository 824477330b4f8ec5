"""How well the nearest videos of a gallery share the class of the query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl._precision import full_float32
from iivcl.evaluation._neighbors import Side, check_features, check_k, nearest, take_side
from iivcl.evaluation._rows import Average, mean, mean_at

__all__ = ["RetrievalMetrics", "retrieval_metrics", "retrieval_recall"]

_RANKED_AT_ONCE = 2**22  # similarities that are sorted together


class RetrievalMetrics(NamedTuple):
    """What `retrieval_metrics` finds, each value in [0, 1].

    Of the R gallery rows that have the query's class, those ranked best first, and P(i) the share
    of them among the first i rows:

    Attributes:
        recall: R@k for every k: whether one of the k nearest has the query's class.
        mean_average_precision: Mean over the R rows of P at the place of each.
        map_at_r: The same with the rows beyond place R counting 0.
        r_precision: P(R).
        num_queries: Queries that count.
        num_gallery: Gallery rows that count.
        num_unmatched: Queries whose class the gallery lacks (R = 0). They count as misses in
            ``recall``, and not at all in the other three, which are 0 / 0 for them.
    """

    recall: dict[int, float]
    mean_average_precision: float
    map_at_r: float
    r_precision: float
    num_queries: int
    num_gallery: int
    num_unmatched: int


@torch.no_grad()
def retrieval_metrics(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    center: bool = False,
    average: Average = "videos",
) -> RetrievalMetrics:
    """Measure retrieval over the whole ranking of the gallery, not only its first rows.

    Takes what `retrieval_recall` takes, and the time to sort the gallery for every query. Rows
    that are alike rank in the order of the gallery.

    Args:
        query: As in `retrieval_recall`.
        query_labels: As in `retrieval_recall`.
        gallery: As in `retrieval_recall`.
        gallery_labels: As in `retrieval_recall`.
        ks: As in `retrieval_recall`.
        center: As in `retrieval_recall`.
        average: As in `retrieval_recall`.

    Returns:
        The measures and the counts behind them.

    Raises:
        ValueError: As in `retrieval_recall`.

    Example:
        >>> import torch
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.1, 0.9], [0.7, 0.3]])
        >>> found = retrieval_metrics(features, torch.tensor([0, 0, 1, 1]), ks=(1,))
        >>> found.recall, round(found.mean_average_precision, 3)
        ({1: 0.75}, 0.833)

    Source:
        MAP@R: Musgrave et al., "A Metric Learning Reality Check", arXiv 2003.08505, section 3.2.
    """
    queries, bank = _sides(query, query_labels, gallery, gallery_labels, center, ks)
    rankings = [
        (relevant[:, : max(ks)], *_precisions(relevant)) for relevant in _rank(queries, bank)
    ]
    hit, *precisions = (torch.cat(column) for column in zip(*rankings, strict=True))
    matched = ~precisions[0].isnan()  # (N,)
    means = [mean(p[matched], queries.labels[matched], average) for p in precisions]
    return RetrievalMetrics(
        mean_at(hit, ks, queries.labels, average),
        means[0],
        means[1],
        means[2],
        num_queries=len(matched),
        num_gallery=len(bank.labels),
        num_unmatched=len(matched) - int(matched.sum()),
    )


@torch.no_grad()
def retrieval_recall(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    center: bool = False,
    average: Average = "videos",
) -> dict[int, float]:
    """Measure how often one of the k nearest gallery videos shares the class of the query.

        R@k = mean over queries of [ any of the k most similar gallery rows has the query's label ]

    Similarity is the cosine, in float32. On UCF101 and HMDB51 the queries are the test videos and
    the gallery the training videos of split 1. Without a gallery one is left out: all others are
    the gallery of each query.

    Rows labelled -1, unknown, count on neither side, nor do rows that are not finite, of which a
    warning tells how many.

    Args:
        query: Features ``(N, D)``.
        query_labels: ``(N,)`` integers, at least 0, or -1 for unknown.
        gallery: Features ``(M, D)``; by default the queries themselves.
        gallery_labels: ``(M,)`` integers, at least 0, or -1 for unknown.
        ks: Numbers of neighbours, each in [1, gallery rows that count]. A larger k is refused,
            because its recall would be reported under a k that was not measured.
        center: Subtract from each side its own mean first, as CoCLR and SCE do and IIC and TCLR do
            not. It changes the figures, so say which was used.
        average: The mean over all ``"videos"``, or over the means of the queries' ``"classes"``, in
            which a rare class weighs as much as a frequent one.

    Returns:
        Recall in [0, 1] for every k.

    Raises:
        ValueError: A shape does not fit, a label or a k is out of range, or no row counts.

    Example:
        >>> import torch
        >>> gallery = torch.eye(3)
        >>> query = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.9, 1.0]])
        >>> retrieval_recall(
        ...     query, torch.tensor([0, 1]), gallery, torch.tensor([0, 1, 2]), ks=(1, 2)
        ... )
        {1: 0.5, 2: 1.0}

    Source:
        Xu et al., "Self-Supervised Spatiotemporal Learning via Video Clip Order Prediction",
        CVPR 2019, section 4.3; centring: Han et al., "CoCLR", arXiv 2010.09709.
    """
    queries, bank = _sides(query, query_labels, gallery, gallery_labels, center, ks)
    _, indices = nearest(queries, bank, max(ks))
    hit = bank.labels[indices] == queries.labels[:, None]  # (N, max k), nearest first
    return mean_at(hit, ks, queries.labels, average)


def _sides(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    center: bool,
    ks: Sequence[int],
) -> tuple[Side, Side]:
    if (gallery is None) != (gallery_labels is None):
        raise ValueError(
            "`gallery` and `gallery_labels` belong together; leave out both to search the queries "
            "among themselves"
        )
    check_features(query, gallery)
    queries = take_side("query", query, "query_labels", query_labels, center=center)
    bank = queries._replace(leave_one_out=True)
    if gallery is not None and gallery_labels is not None:
        bank = take_side("gallery", gallery, "gallery_labels", gallery_labels, center=center)
    check_k("ks", ks, bank)
    return queries, bank


def _rank(query: Side, gallery: Side) -> Iterator[Tensor]:
    """Give, for some queries at a time, which rows have their class, nearest first: (n, M) bool."""
    rows = max(1, _RANKED_AT_ONCE // len(gallery.unit))
    columns = (torch.split(column, rows) for column in (query.unit, query.labels, query.places))
    for unit, labels, places in zip(*columns, strict=True):
        with full_float32(unit):
            # The product of a single row adds up in another order for some of the columns.
            pair = unit if len(unit) > 1 else unit.expand(2, -1)
            similarity = (pair @ gallery.unit.T)[: len(unit)]  # (n, M)
        if gallery.leave_one_out:  # the query itself comes last, and is cut off
            similarity.masked_fill_(places[:, None] == gallery.places, -torch.inf)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        order = order[:, : order.shape[1] - gallery.leave_one_out]
        yield gallery.labels[order] == labels[:, None]


def _precisions(relevant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average precision, the same at R, and R-precision of rankings (n, M): each (n,)."""
    place = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    precision = relevant.cumsum(dim=1).double() / place * relevant  # P(i) where row i is relevant
    R = relevant.sum(dim=1)
    within = place <= R[:, None]
    return (
        precision.sum(dim=1) / R,
        (precision * within).sum(dim=1) / R,
        (relevant & within).sum(dim=1).double() / R,
    )
