"""The nearest rows of a gallery by cosine similarity, and the class that they vote for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from iivcl._checks import (
    check_at_least,
    check_embeddings,
    check_positive,
    check_same_device,
    unit_rows,
)
from iivcl.evaluation._rows import check_ks, rows_that_count, warn_of_rows
from iivcl.queues import exact_topk

__all__ = ["knn_classify"]


@torch.no_grad()
def knn_classify(
    query: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor,
    *,
    num_classes: int | None = None,
    k: int = 200,
    temperature: float = 0.07,
) -> Tensor:
    """Classify by a vote of the k nearest gallery videos, weighted by similarity.

        score(c) = sum over the k nearest n with label c of exp(cos(q, n) / temperature), / sum

    Args:
        query: Features ``(N, D)``. A row that is not finite gets scores of NaN, with a warning.
        gallery: Features ``(M, D)``, or None to leave one out: the queries are the gallery, and
            none votes for itself. A row that is not finite has no vote, with a warning.
        gallery_labels: ``(M,)`` integers in [0, ``num_classes``). A row with -1, unknown, has no
            vote.
        num_classes: Number of classes; by default the largest label plus one.
        k: Number of neighbours, in [1, rows that have a vote]: 200 by custom, 20 for small sets.
        temperature: Above 0; a smaller one listens more to the nearest.

    Returns:
        Scores ``(N, num_classes)`` float32, each row summing to 1; see `topk_accuracy`.

    Raises:
        ValueError: A shape does not fit, a label, ``k`` or ``temperature`` is out of range, or no
            row has a vote.

    Example:
        >>> import torch
        >>> gallery, labels = torch.eye(3), torch.tensor([0, 1, 1])
        >>> knn_classify(torch.tensor([[0.0, 1.0, 1.0]]), gallery, labels, k=2)
        tensor([[0., 1.]])

    Source:
        Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        arXiv 1805.01978, section 3.4.
    """
    check_positive("temperature", temperature)
    check_at_least(1, k=k)
    check_features(query, gallery)
    name, features = ("query", query) if gallery is None else ("gallery", gallery)
    voters = take_side(name, features, "gallery_labels", gallery_labels, num_classes=num_classes)
    voters = voters._replace(leave_one_out=gallery is None)
    check_k("k", [k], voters)
    sound = query.isfinite().all(dim=1)
    warn_of_rows("query", sound, "get scores of NaN")
    places = torch.arange(len(query), device=query.device)
    queries = Side(unit_rows(query.masked_fill(~sound[:, None], 0.0)).float(), places, places)
    similarity, indices = nearest(queries, voters, k)
    weights = F.softmax(similarity / temperature, dim=1)  # (N, k)
    classes = int(voters.labels.max()) + 1 if num_classes is None else num_classes
    scores = weights.new_zeros(len(query), classes)
    scores.scatter_add_(1, voters.labels[indices], weights)
    return scores.masked_fill_(~sound[:, None], torch.nan)


class Side(NamedTuple):
    """Features of unit length ``(N, D)``, their labels, and their places in what was given.

    Of a gallery that is to leave one out, a row is not found by the query of the same place.
    """

    unit: Tensor
    labels: Tensor
    places: Tensor
    leave_one_out: bool = False


def take_side(
    name: str,
    features: Tensor,
    labels_name: str,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    center: bool = False,
) -> Side:
    """Keep the rows that count, without their mean when it is to be taken off."""
    features, labels, places = rows_that_count(name, features, labels_name, labels, num_classes)
    if center:
        features = unit_rows(features.flatten()).view_as(features)  # sums of large numbers overflow
        features = features - features.mean(dim=0)
    return Side(unit_rows(features).float(), labels, places)


def nearest(query: Side, gallery: Side, k: int) -> tuple[Tensor, Tensor]:
    """Find cosine and row ``(N, k)`` of the k nearest gallery rows."""
    found = []
    # The k rows of every query are gathered at once, so the queries come in parts.
    for unit, own in zip(torch.split(query.unit, 256), torch.split(query.places, 256), strict=True):
        mask = own[:, None] != gallery.places if gallery.leave_one_out else None
        found.append(exact_topk(unit, gallery.unit, k, mask=mask))
    similarity, indices = (torch.cat(column) for column in zip(*found, strict=True))
    return similarity, indices


def check_features(query: Tensor, gallery: Tensor | None) -> None:
    """Check the features of both sides."""
    check_embeddings("query", query, "N D")
    if len(query) == 0:
        raise ValueError("`query` has no rows")
    if gallery is not None:
        check_embeddings("gallery", gallery, "M D", D=(query.shape[1], "query"))
        check_same_device("gallery", gallery, "query", query)


def check_k(name: str, ks: Sequence[int], gallery: Side) -> None:
    """Check numbers of neighbours."""
    what = "other rows of `query`" if gallery.leave_one_out else "rows of `gallery`"
    check_ks(name, ks, len(gallery.unit) - gallery.leave_one_out, f"{what} that count")
