"""A linear classifier on frozen features, and how well scores of classes fit the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iivcl._checks import check_at_least, check_embeddings, check_within
from iivcl._precision import without_autocast
from iivcl.evaluation._rows import Average, check_ks, mean_at, rows_that_count

__all__ = ["confusion_matrix", "fit_linear_probe", "topk_accuracy"]


@torch.inference_mode(False)  # whose tensors could not be trained
def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    weight_decay: float = 1e-3,
    max_iterations: int = 200,
) -> nn.Linear:
    """Fit multinomial logistic regression to frozen features.

        minimize over W, b:  mean cross-entropy(W z + b, label) + weight_decay / 2 * |W|^2

    where z are the features standardised by their mean and standard deviation, which are then
    folded into the layer that is returned: it takes the features as they are. The problem is
    convex and L-BFGS solves it, so there is no learning rate, no schedule and no random draw.

    This is the quick probe on stored features. The published protocol trains on fresh crops and
    flips, through the frozen encoder, for 60 epochs; its figures are not comparable with these.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)`` integers in [0, ``num_classes``); rows with -1, unknown, are left out, as
            are rows that are not finite, with a warning.
        num_classes: Number of classes; by default the largest label plus one.
        weight_decay: Strength of the penalty, at least 0. With 0 and separable classes there is no
            finite solution, and the weights grow until ``max_iterations``.
        max_iterations: Most iterations of L-BFGS.

    Returns:
        Linear layer ``(D) -> (num_classes)`` in float32 on the device of the features.

    Raises:
        ValueError: A shape does not fit, a label or an argument is out of range, or no row is left.

    Example:
        >>> import torch
        >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> probe = fit_linear_probe(features, torch.tensor([0, 0, 1, 1]))
        >>> probe(torch.tensor([[-3.0], [0.5]])).argmax(dim=1)
        tensor([0, 1])
    """
    check_embeddings("features", features, "N D")
    check_within(0, math.inf, weight_decay=weight_decay)
    check_at_least(1, max_iterations=max_iterations)
    features, labels, _ = rows_that_count("features", features, "labels", labels, num_classes)
    features = features.detach().float()
    if num_classes is None:
        num_classes = int(labels.max()) + 1

    # The squares of any finite number fit into float32 once its column's largest is divided out.
    largest = features.abs().amax(dim=0).clamp(min=torch.finfo(torch.float32).tiny)  # (D,)
    std, mean = torch.std_mean(features / largest, dim=0, correction=0)  # (D,)
    # A feature that is constant but for rounding is left at about 0, not blown up to unit size.
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))
    z = (features / largest - mean) / std
    probe = nn.Linear(features.shape[1], num_classes, dtype=torch.float32, device="meta")
    probe = probe.to_empty(device=features.device)  # which draws nothing
    weight, bias = nn.init.zeros_(probe.weight), nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(
        probe.parameters(),
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        loss = F.cross_entropy(probe(z), labels) + weight_decay / 2 * weight.square().sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
        return loss

    # Autocast would keep its first copy of the weights for all steps.
    with torch.enable_grad(), without_autocast(z):
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad(), without_autocast(z):
        # W (x - mean) / std + b = (W / std) x + (b - (W / std) mean)
        bias.sub_((weight / std) @ mean)
        weight.div_(std).div_(largest)
    return probe.requires_grad_(False)


@torch.no_grad()
def topk_accuracy(
    scores: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 5), average: Average = "videos"
) -> dict[int, float]:
    """Measure how often the label is among the k classes with the highest scores.

    Args:
        scores: ``(N, num_classes)``: logits, probabilities or votes. Rows whose highest score is
            not finite are left out, with a warning.
        labels: ``(N,)`` integers in [0, ``num_classes``); rows with -1, unknown, are left out.
        ks: Numbers of classes, each in [1, ``num_classes``].
        average: The mean over all ``"videos"``, or over the means of the ``"classes"``, in which a
            rare class weighs as much as a frequent one.

    Returns:
        Accuracy in [0, 1] for every k.

    Raises:
        ValueError: A shape does not fit, a label or a k is out of range, or no row is left.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
        >>> topk_accuracy(scores, torch.tensor([1, 2]), ks=(1, 2))
        {1: 0.5, 2: 1.0}
    """
    scores, labels = _scored(scores, labels)
    check_ks("ks", ks, scores.shape[1], "classes of `scores`")
    hit = scores.topk(max(ks), dim=1).indices == labels[:, None]  # (N, max k), best first
    return mean_at(hit, ks, labels, average)


@torch.no_grad()
def confusion_matrix(scores: Tensor, labels: Tensor) -> Tensor:
    """Count the videos of every class (row) that are given to every class (column).

    Of the matrix M, ``M.diagonal() / M.sum(1)`` is the recall of every class, and
    ``M.diagonal() / M.sum(0)`` its precision; NaN for a class that does not occur.

    Args:
        scores: ``(N, num_classes)``: logits, probabilities or votes; the highest decides. Rows
            where it is not finite are left out, with a warning.
        labels: ``(N,)`` integers in [0, ``num_classes``); rows with -1, unknown, are left out.

    Returns:
        Counts ``(num_classes, num_classes)`` int64.

    Raises:
        ValueError: A shape does not fit, a label is out of range, or no row is left.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> confusion_matrix(scores, torch.tensor([0, 1, 1]))
        tensor([[1, 0],
                [1, 1]])
    """
    scores, labels = _scored(scores, labels)
    classes = scores.shape[1]
    cells = labels * classes + scores.argmax(dim=1)
    return cells.bincount(minlength=classes**2).view(classes, classes)


def _scored(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Take the rows that count. A score may be -inf, that of a class which is ruled out."""
    check_embeddings("scores", scores, "N num_classes")
    sound = scores.amax(dim=1).isfinite()
    return rows_that_count("scores", scores, "labels", labels, scores.shape[1], sound)[:2]
