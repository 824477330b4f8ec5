"""Retrieval and nearest-neighbour classification by cosine similarity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from iivcl._checks import check_floating, check_positive, check_same_device, check_shape
from iivcl.evaluation._rows import check_ks, check_labeled, hit_rates
from iivcl.queues import exact_topk

__all__ = ["knn_classify", "retrieval_recall"]


@torch.no_grad()
def retrieval_recall(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    ks: Sequence[int] = (1, 5, 10, 20, 50),
    center: bool = False,
) -> dict[int, float]:
    """Measure how often one of the k nearest gallery videos shares the class of the query.

        R@k = mean over queries of [ any of the k most similar gallery rows has the query's label ]

    Similarity is the cosine, in float32. On UCF101 and HMDB51 the queries are the test videos and
    the gallery the training videos of split 1.

    Args:
        query: Features ``(N, D)``.
        query_labels: ``(N,)`` integers.
        gallery: Features ``(M, D)``.
        gallery_labels: ``(M,)`` integers.
        ks: Numbers of neighbours, each in [1, M]. A k above M is refused, because its recall would
            be reported under a k that was not measured.
        center: Subtract from each side its own mean first, as CoCLR and SCE do and IIC and TCLR do
            not. It changes the figures, so say which was used.

    Returns:
        Recall in [0, 1] for every k.

    Raises:
        ValueError: A shape does not fit, or a k is outside [1, M].

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
    _check_sides(query, gallery, gallery_labels)
    check_labeled("query", query, "N D", "query_labels", query_labels)
    check_ks("ks", ks, len(gallery), "rows of `gallery`")
    if center:
        query, gallery = query - query.mean(dim=0), gallery - gallery.mean(dim=0)
    _, indices = _nearest(query, gallery, max(ks))
    return hit_rates(gallery_labels[indices] == query_labels[:, None], ks)  # (N, max k)


@torch.no_grad()
def knn_classify(
    query: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    num_classes: int | None = None,
    k: int = 200,
    temperature: float = 0.07,
) -> Tensor:
    """Classify by a vote of the k nearest gallery videos, weighted by similarity.

        score(c) = sum over the k nearest n with label c of exp(cos(q, n) / temperature), / sum

    Args:
        query: Features ``(N, D)``.
        gallery: Features ``(M, D)``.
        gallery_labels: ``(M,)`` integers in [0, ``num_classes``).
        num_classes: Number of classes; by default the largest label plus one.
        k: Number of neighbours, in [1, M]: 200 by custom, 20 for small sets.
        temperature: Above 0; a smaller one listens more to the nearest.

    Returns:
        Scores ``(N, num_classes)`` float32, each row summing to 1; see `topk_accuracy`.

    Raises:
        ValueError: A shape does not fit, or ``k`` or ``temperature`` is out of range.

    Example:
        >>> import torch
        >>> gallery, labels = torch.eye(3), torch.tensor([0, 1, 1])
        >>> knn_classify(torch.tensor([[0.0, 1.0, 1.0]]), gallery, labels, k=2)
        tensor([[0., 1.]])

    Source:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        arXiv 1805.01978, section 3.4.
    """
    _check_sides(query, gallery, gallery_labels)
    check_ks("k", [k], len(gallery), "rows of `gallery`")
    check_positive("temperature", temperature)
    if num_classes is None:
        num_classes = int(gallery_labels.max()) + 1
    similarity, indices = _nearest(query, gallery, k)
    weights = F.softmax(similarity / temperature, dim=1)  # (N, k)
    scores = weights.new_zeros(len(query), num_classes)
    return scores.scatter_add_(1, gallery_labels[indices].long(), weights)


def _nearest(query: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find cosine and row ``(N, k)`` of the k nearest gallery rows."""
    query, gallery = F.normalize(query.float(), dim=1), F.normalize(gallery.float(), dim=1)
    # The k rows of every query are gathered at once, so the queries come in parts.
    parts = [exact_topk(part, gallery, k) for part in torch.split(query, 256)]
    similarity, indices = (torch.cat(column) for column in zip(*parts, strict=True))
    return similarity, indices


def _check_sides(query: Tensor, gallery: Tensor, gallery_labels: Tensor) -> None:
    check_shape("query", query, "N D")
    check_floating("query", query)
    check_shape("gallery", gallery, "M D", D=(query.shape[1], "query"))
    check_labeled("gallery", gallery, "M D", "gallery_labels", gallery_labels)
    check_same_device("gallery", gallery, "query", query)
    if len(query) == 0:
        raise ValueError("`query` has no rows")
