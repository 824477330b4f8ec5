"""What the loss does not show: collapse of the embeddings, and the quality of the neighbours.

Every function returns a float32 scalar tensor. All but `effective_rank` leave the host free of the
GPU, so they can be called at every step of training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iivcl._checks import check_embeddings, check_ids, check_same_device, check_shape, unit_rows
from iivcl.queues import Neighbors

__all__ = ["effective_rank", "embedding_std", "neighbor_age", "neighbor_purity", "self_match_rate"]


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> Tensor:
    """Return the standard deviation of the L2-normalised embeddings, averaged over dimensions.

    Near ``1 / sqrt(D)`` when embeddings are spread over the whole sphere, and 0 when all are one
    point: the collapse that a falling loss can hide.

    Args:
        embeddings: ``(B, D)``.

    Returns:
        Scalar in [0, ``1 / sqrt(D)``], NaN when an embedding is not finite.

    Example:
        >>> import torch
        >>> embedding_std(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        tensor(0.7071)
        >>> embedding_std(torch.ones(4, 2))
        tensor(0.)

    Source:
        Chen and He, "Exploring Simple Siamese Representation Learning", arXiv 2011.10566,
        section 4.1.
    """
    check_embeddings("embeddings", embeddings, "B D")
    return unit_rows(embeddings).float().std(dim=0, correction=0).mean()  # over D


@torch.no_grad()
def effective_rank(embeddings: Tensor) -> Tensor:
    """Return the number of directions that the embeddings use, by the entropy of their spectrum.

        exp(-sum_i p_i log p_i),   p_i = sigma_i / sum_j sigma_j

    with ``sigma`` the singular values of the matrix of embeddings. 1 when all lie on one line, and
    ``min(B, D)`` when all directions are used alike. The decomposition makes the host wait for the
    device, so call it now and then.

    Args:
        embeddings: ``(B, D)``; take B well above D, for the result cannot exceed either.

    Returns:
        Scalar in [1, min(B, D)], NaN when all embeddings are 0 or one is not finite.

    Example:
        >>> import torch
        >>> [round(float(effective_rank(z)), 3) for z in (torch.eye(3), torch.ones(5, 3))]
        [3.0, 1.0]

    Source:
        Roy and Vetterli, "The effective rank", EUSIPCO 2007; Garrido et al., "RankMe",
        arXiv 2210.02885.
    """
    check_embeddings("embeddings", embeddings, "B D")
    if not embeddings.isfinite().all():
        return torch.full((), torch.nan, dtype=torch.float32, device=embeddings.device)
    x = unit_rows(embeddings.flatten()).view_as(embeddings)  # any length gives the same p
    sigma = torch.linalg.svdvals(x.float())  # (min(B, D),)
    p = sigma / sigma.sum()
    entropy: Tensor = torch.special.entr(p).sum()
    return entropy.exp()


@torch.no_grad()
def neighbor_purity(neighbors: Neighbors, queue_labels: Tensor, labels: Tensor) -> Tensor:
    """Return the share of neighbours that have the class of their query.

    Compare it with chance: an inter-video loss whose neighbours are no purer than chance pulls
    unlike videos together.

    Args:
        neighbors: As found by ``NNSupportQueue.nearest``, B queries with k neighbours each.
        queue_labels: ``(K,)`` integers, the class of every row of the queue. Keep them in step
            with the queue by its ids: ``labels_of_video[queue.ids]``.
        labels: ``(B,)`` integers, the class of every query. Pairs with a label of -1, unknown, on
            either side do not count.

    Returns:
        Scalar in [0, 1] over the valid neighbours that count, NaN when none does.

    Example:
        >>> import torch
        >>> from iivcl.queues import Neighbors
        >>> neighbors = Neighbors(
        ...     torch.tensor([[0.9, 0.8], [0.7, -torch.inf]]),
        ...     torch.tensor([[0, 2], [1, 0]]),
        ...     torch.tensor([[True, True], [True, False]]),
        ... )
        >>> neighbor_purity(neighbors, torch.tensor([4, 5, 6]), torch.tensor([4, 5]))
        tensor(0.6667)
    """
    return _match_rate(neighbors, "queue_labels", queue_labels, "labels", labels)


@torch.no_grad()
def self_match_rate(neighbors: Neighbors, queue_ids: Tensor, ids: Tensor) -> Tensor:
    """Return the share of neighbours that are clips of the query's own video.

    It is 0 when ids are given to the lookup. Without them it says how much of the inter-video loss
    is in truth intra-video.

    Args:
        neighbors: As found by ``NNSupportQueue.nearest``, B queries with k neighbours each.
        queue_ids: ``(K,)`` integers, ``queue.ids``.
        ids: ``(B,)`` integers, the video of every query. Pairs with an id of -1, unknown, on
            either side do not count.

    Returns:
        Scalar in [0, 1] over the valid neighbours that count, NaN when none does.

    Example:
        >>> import torch
        >>> from iivcl.queues import Neighbors
        >>> neighbors = Neighbors(
        ...     torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 2]]), torch.tensor([[True, True]])
        ... )
        >>> self_match_rate(neighbors, torch.tensor([10, 11, 12]), torch.tensor([12]))
        tensor(0.5000)
    """
    return _match_rate(neighbors, "queue_ids", queue_ids, "ids", ids)


@torch.no_grad()
def neighbor_age(neighbors: Neighbors, ages: Tensor) -> Tensor:
    """Return the mean age of the neighbours, in calls of ``enqueue``.

    Neighbours drawn evenly from a full queue have half the age of its oldest row. Much younger
    ones are chosen for the state of the key encoder that made them, not for what they show.

    Args:
        neighbors: As found by ``NNSupportQueue.nearest``, B queries with k neighbours each.
        ages: ``(K,)`` integers, ``queue.ages``.

    Returns:
        Scalar over the valid neighbours, NaN when none is valid.

    Example:
        >>> import torch
        >>> from iivcl.queues import Neighbors
        >>> neighbors = Neighbors(
        ...     torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 2]]), torch.tensor([[True, True]])
        ... )
        >>> neighbor_age(neighbors, torch.tensor([1, 2, 4]))
        tensor(2.5000)
    """
    return _mean_where(neighbors.valid, _look_up("ages", ages, neighbors))


def _match_rate(
    neighbors: Neighbors, bank_name: str, bank: Tensor, name: str, values: Tensor
) -> Tensor:
    check_ids(name, values, len(neighbors.indices), "neighbors")
    check_same_device(name, values, "neighbors", neighbors.indices)
    found, own = _look_up(bank_name, bank, neighbors), values.long()[:, None]  # (B, k), (B, 1)
    return _mean_where(neighbors.valid & (found != -1) & (own != -1), found == own)


def _look_up(name: str, bank: Tensor, neighbors: Neighbors) -> Tensor:
    """Take the entry of every neighbour, (B, k), from one per row of the queue, (K,)."""
    check_shape(name, bank, "K")
    check_ids(name, bank, len(bank), name)
    check_same_device(name, bank, "neighbors", neighbors.indices)
    return bank.long()[neighbors.indices]


def _mean_where(counts: Tensor, values: Tensor) -> Tensor:
    """Average ``values`` (B, k) over the neighbours that count; 0 / 0 = NaN when none does."""
    mean: Tensor = (values * counts).sum().float() / counts.sum()
    return mean
