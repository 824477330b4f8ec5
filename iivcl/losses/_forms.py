"""The three multi-positive InfoNCE losses, from the logits of the positives and the negatives."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["per_positive", "out", "in"]
Reduction = Literal["mean", "sum", "none"]
FORMS: tuple[Form, ...] = ("per_positive", "out", "in")
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "none")

# Stands for the logit of a column that is left out. Finite, so that a row in which every column is
# left out has a finite log-sum-exp and, through the masking, a zero gradient instead of NaN.
NO_LOGIT = -1e30


def row_losses(form: Form, positives: Tensor, weights: Tensor, negatives: Tensor) -> Tensor:
    """Compute the loss of every row; 0 with zero gradient for rows without a positive.

    With positive logits s_p, weights w_p that sum to 1 over a row's P positives, and N the
    log-sum-exp of the row's negatives::

        per_positive   sum_p w_p log(1 + exp(N - s_p))
        out            sum_p w_p (A - s_p)               A = log(exp N + sum_p exp s_p)
        in             A - log(sum_p P w_p exp s_p)

    Args:
        form: Which of the three.
        positives: (B, P) logits of the positives.
        weights: (B, P), not negative; 0 where an entry is not a positive.
        negatives: (B,) log-sum-exp of the negatives, `NO_LOGIT` where there are none.
    """
    chosen = weights > 0
    shares = weights / _or_one(weights.sum(1, keepdim=True))
    logits = positives.masked_fill(~chosen, 0.0)
    if form == "per_positive":
        # softplus without a shortcut above 20, whose error float64 would show
        return (shares * F.softplus(negatives[:, None] - logits, threshold=50)).sum(1)
    everything = log_add_exp(negatives, log_sum_exp(positives, chosen))
    if form == "out":
        losses = everything - (shares * logits).sum(1)
    else:
        scale = _or_one(shares * chosen.sum(1, keepdim=True)).log()
        losses = everything - log_sum_exp(positives + scale, chosen)
    return torch.where(chosen.any(1), losses, 0.0)


def log_sum_exp(logits: Tensor, keep: Tensor | None = None) -> Tensor:
    """Log-sum-exp (B,) of the kept columns of (B, M) logits, `NO_LOGIT` where none is kept."""
    if logits.shape[1] == 0:
        return logits.new_full(logits.shape[:1], NO_LOGIT)
    if keep is not None:
        logits = logits.masked_fill(~keep, NO_LOGIT)
    return logits.logsumexp(1)


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """Like `torch.logaddexp`, whose second derivative is NaN when the two are far apart."""
    return torch.stack([a, b]).logsumexp(0)


def reduce_rows(losses: Tensor, has_positive: Tensor, reduction: Reduction) -> Tensor:
    """Reduce row losses; the mean runs over the rows that have a positive."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / has_positive.sum().clamp(min=1)


def _or_one(values: Tensor) -> Tensor:
    return values.masked_fill(values == 0, 1.0)
