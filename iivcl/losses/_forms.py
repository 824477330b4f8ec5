"""The three multi-positive InfoNCE losses, from logits that are held or streamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from iivcl._candidates import NO_LOGIT, Candidates, recomputed, spans

Form = Literal["per_positive", "out", "in"]
Reduction = Literal["mean", "sum", "none"]
FORMS: tuple[Form, ...] = ("per_positive", "out", "in")
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "none")


def row_losses(form: Form, logits: Tensor, weights: Tensor) -> Tensor:
    """Compute the loss of every row; 0 with zero gradient for rows without a positive.

    With positive logits s_p, weights w_p that sum to 1 over a row's P positives, and N the
    log-sum-exp of the row's negatives::

        per_positive   sum_p w_p log(1 + exp(N - s_p))
        out            sum_p w_p (A - s_p)               A = log(exp N + sum_p exp s_p)
        in             -log(sum_p P w_p exp(s_p - A))

    Args:
        form: Which of the three.
        logits: (..., n), `NO_LOGIT` where there is none. One may be the log-sum-exp of many.
        weights: (..., n) bool or float, not negative, of any sum; 0 for a negative.
    """
    total = weights.sum(-1, keepdim=True, dtype=logits.dtype)
    own = weights / total.clamp(min=torch.finfo(total.dtype).tiny)  # sums to 1, or to 0
    if form == "per_positive":
        level = logits.masked_fill(own > 0, NO_LOGIT).logsumexp(-1, keepdim=True)
        return weighted_sum(own, soft_margins(level, logits))
    shares = logits.log_softmax(-1)
    if form == "out":
        return weighted_sum(-own, shares)
    none = own == 0
    if weights.dtype != torch.bool:
        of_mean = own * (own > 0).sum(-1, keepdim=True)
        shares = shares + of_mean.masked_fill(none, 1.0).log()
    losses = -shares.masked_fill(none, NO_LOGIT).logsumexp(-1)
    return losses.masked_fill(none.all(-1), 0.0)


def streamed_row_losses(
    form: Form, query: Tensor, keys: Tensor, weights: Tensor, negatives: Tensor, chunk_size: int
) -> Tensor:
    """The same of logits that are computed chunk by chunk, also for the backward pass.

    Args:
        form: Which of the three.
        query: (B, D), of unit length and divided by the temperature.
        keys: (M, D), normalised.
        weights: (B, M), as above.
        negatives: (B, M) bool.
        chunk_size: Keys per step.
    """
    chunks = list(spans(len(keys), chunk_size))

    def log_sum_exp(pairs: Tensor) -> Tensor:
        candidates = Candidates(keys, pairs=pairs, normalized=True)
        return candidates.log_sum_exp(query, chunk_size=chunk_size)

    def summed(part: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return torch.stack([recomputed(part, *tensors, span) for span in chunks]).sum(0)

    def margins(query: Tensor, keys: Tensor, level: Tensor, span: slice) -> Tensor:
        own = weights[:, span].to(query.dtype)
        return weighted_sum(own, soft_margins(level[:, None], query @ keys[span].T))

    def mean_key(keys: Tensor, span: slice) -> Tensor:  # q (W K)', so that no logit is needed
        return weights[:, span].to(keys.dtype) @ keys[span]  # (B, D)

    positive = weights > 0
    total = weights.sum(1, dtype=query.dtype)
    none = total == 0
    total = total.masked_fill(none, 1.0)
    level = log_sum_exp(negatives)
    if form == "per_positive":
        return summed(margins, query, keys, level) / total
    everything = log_add_exp(log_sum_exp(positive), level)
    if form == "out":
        losses = everything - (query * summed(mean_key, keys)).sum(1) / total
    else:
        mean_weight = total / positive.sum(1).clamp(min=1)
        losses = everything - log_sum_exp(weights) + mean_weight.log()
    return losses.masked_fill(none, 0.0)


def soft_margins(level: Tensor, logits: Tensor) -> Tensor:
    """Compute ``log(1 + exp(level - s))``, whose shortcut above 20 float64 would show."""
    return F.softplus(level - logits, threshold=50)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Sum up values of the positives, (..., n) to (...)."""
    if weights.requires_grad:  # of one that is 0, the derivative is 0 and not a value like 1e30
        values = values.masked_fill(weights == 0, 0.0)
    return (weights * values).sum(-1)


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """Like `torch.logaddexp`, whose second derivative is NaN when the two are far apart."""
    return torch.stack([a, b]).logsumexp(0)


def reduce_rows(losses: Tensor, count: Tensor | int, reduction: Reduction) -> Tensor:
    """Reduce row losses; the mean runs over the ``count`` rows that have a positive."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / count
