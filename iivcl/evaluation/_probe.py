"""A linear classifier on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iivcl.evaluation._rows import check_ks, check_labeled, hit_rates

__all__ = ["fit_linear_probe", "topk_accuracy"]


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
        labels: ``(N,)`` integers in [0, ``num_classes``).
        num_classes: Number of classes; by default the largest label plus one.
        weight_decay: Strength of the penalty, at least 0. With 0 and separable classes there is no
            finite solution, and the weights grow until ``max_iterations``.
        max_iterations: Most iterations of L-BFGS.

    Returns:
        Linear layer ``(D) -> (num_classes)`` in float32 on the device of the features.

    Raises:
        ValueError: A shape does not fit, or an argument is out of range.

    Example:
        >>> import torch
        >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> probe = fit_linear_probe(features, torch.tensor([0, 0, 1, 1]))
        >>> probe(torch.tensor([[-3.0], [0.5]])).argmax(dim=1)
        tensor([0, 1])
    """
    check_labeled("features", features, "N D", "labels", labels)
    if weight_decay < 0:
        raise ValueError(f"`weight_decay` must be at least 0; got {weight_decay}")
    if num_classes is None:
        num_classes = int(labels.max()) + 1

    features = features.detach().float()
    std, mean = torch.std_mean(features, dim=0, correction=0)  # (D,)
    # A feature that is constant but for rounding is left at about 0, not blown up to unit size.
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))
    z = (features - mean) / std
    probe = nn.Linear(features.shape[1], num_classes, device="meta")  # draws nothing
    probe = probe.to_empty(device=features.device)
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
        loss = F.cross_entropy(probe(z), labels.long()) + weight_decay / 2 * weight.square().sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad():  # W (x - mean) / std + b = (W / std) x + (b - (W / std) mean)
        weight.div_(std)
        bias.sub_(weight @ mean)
    return probe.requires_grad_(False)


@torch.no_grad()
def topk_accuracy(
    scores: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Measure how often the label is among the k classes with the highest scores.

    Args:
        scores: ``(N, num_classes)``: logits, probabilities or votes.
        labels: ``(N,)`` integers.
        ks: Numbers of classes, each in [1, ``num_classes``].

    Returns:
        Accuracy in [0, 1] for every k.

    Raises:
        ValueError: A shape does not fit, or a k is out of range.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
        >>> topk_accuracy(scores, torch.tensor([1, 2]), ks=(1, 2))
        {1: 0.5, 2: 1.0}
    """
    check_labeled("scores", scores, "N num_classes", "labels", labels)
    check_ks("ks", ks, scores.shape[1], "classes of `scores`")
    return hit_rates(scores.topk(max(ks), dim=1).indices == labels[:, None], ks)  # (N, max k)
