"""The three multi-positive InfoNCE losses, from the logits of the positives and the negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from iivcl._candidates import NO_LOGIT, Candidates, recomputed, spans

Form = Literal["per_positive", "out", "in"]
Reduction = Literal["mean", "sum", "none"]
FORMS: tuple[Form, ...] = ("per_positive", "out", "in")
REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "none")


class Logits(Protocol):
    """Logits (B, M) of queries and keys, which need not be held.

    ``weights`` (B, M) are bool, or float and not negative.
    """

    def log_sum_exp(self, weights: Tensor, beside: Tensor | None = None) -> Tensor:
        """``log(sum_m w_m exp s_m + exp beside)``, (B,); `NO_LOGIT` for a sum of nothing."""

    def total(self, weights: Tensor) -> Tensor:
        """``sum_m w_m s_m``, (B,)."""

    def soft_margin(self, weights: Tensor, level: Tensor) -> Tensor:
        """``sum_m w_m log(1 + exp(level - s_m))``, (B,)."""


def row_losses(
    form: Form,
    logits: Logits,
    weights: Tensor,
    negatives: Tensor,
    everything: Tensor | None = None,
) -> Tensor:
    """Compute the loss of every row; 0 with zero gradient for rows without a positive.

    With positive logits s_p, weights w_p that sum to 1 over a row's P positives, and N the
    log-sum-exp of the row's negatives::

        per_positive   sum_p w_p log(1 + exp(N - s_p))
        out            A - sum_p w_p s_p                 A = log(exp N + sum_p exp s_p)
        in             A - log(sum_p P w_p exp s_p)

    Args:
        form: Which of the three.
        logits: Of the positives; others have weight 0.
        weights: (B, M) bool or float, not negative, of any sum; 0 where an entry is not a positive.
        negatives: (B,) log-sum-exp of the negatives, `NO_LOGIT` where there are none.
        everything: (B,) A, where it is known already.
    """
    positive = weights if weights.dtype == torch.bool else weights > 0
    total = weights.sum(1, dtype=negatives.dtype)
    none, total = total == 0, total.clamp(min=torch.finfo(total.dtype).tiny)
    if form == "per_positive":
        losses = logits.soft_margin(weights, negatives) / total
    else:
        if everything is None:
            everything = logits.log_sum_exp(positive, negatives)
        if form == "out":
            losses = everything - logits.total(weights) / total
        else:
            mean_weight = total / positive.sum(1).clamp(min=1)
            losses = everything - logits.log_sum_exp(weights) + mean_weight.log()
    return losses.masked_fill(none, 0.0)


class Held(NamedTuple):
    """Logits that are held."""

    logits: Tensor  # (B, M)

    def log_sum_exp(self, weights: Tensor, beside: Tensor | None = None) -> Tensor:
        """See `Logits`."""
        logits = self.logits
        if beside is None:
            beside = logits.new_full(logits.shape[:1], NO_LOGIT)
        if weights.dtype != torch.bool:
            logits = logits + _or_one(weights).to(logits.dtype).log()
        dropped = ~weights if weights.dtype == torch.bool else weights <= 0
        logits = logits.masked_fill(dropped, NO_LOGIT)
        return torch.cat([logits, beside[:, None]], 1).logsumexp(1)

    def total(self, weights: Tensor) -> Tensor:
        """See `Logits`."""
        return (weights * self.logits).sum(1)

    def soft_margin(self, weights: Tensor, level: Tensor) -> Tensor:
        """See `Logits`."""
        # Without a shortcut above 20, whose error float64 would show. A row without positives may
        # have an absurd level, which must not meet its weights of 0.
        margins = F.softplus(level[:, None] - self.logits, threshold=50)
        return torch.where(weights > 0, margins * weights, 0.0).sum(1)


class Streamed(NamedTuple):
    """Logits that are computed chunk by chunk, also for the backward pass."""

    query: Tensor  # (B, D), divided by the temperature
    keys: Tensor  # (M, D), normalised
    chunk_size: int

    def log_sum_exp(self, weights: Tensor, beside: Tensor | None = None) -> Tensor:
        """See `Logits`."""
        candidates = Candidates(self.keys, pairs=weights, normalized=True)
        value = candidates.log_sum_exp(self.query, chunk_size=self.chunk_size)
        return value if beside is None else log_add_exp(value, beside)

    def total(self, weights: Tensor) -> Tensor:
        """See `Logits`; q (W K)', so that no logit is needed."""

        def part(keys: Tensor, span: slice) -> Tensor:
            return weights[:, span].to(keys.dtype) @ keys[span]  # (B, D)

        return (self.query * self._sum(part, self.keys)).sum(1)

    def soft_margin(self, weights: Tensor, level: Tensor) -> Tensor:
        """See `Logits`."""

        def part(query: Tensor, keys: Tensor, level: Tensor, span: slice) -> Tensor:
            logits = Held(query @ keys[span].T)
            return logits.soft_margin(weights[:, span].to(query.dtype), level)

        return self._sum(part, self.query, self.keys, level)

    def _sum(self, part: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        chunks = spans(len(self.keys), self.chunk_size)
        return torch.stack([recomputed(part, *tensors, span) for span in chunks]).sum(0)


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
    return values.masked_fill(values == 0, 1)
