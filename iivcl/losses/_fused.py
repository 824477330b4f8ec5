"""The losses as one node of the graph: each value is computed along with its derivative.

Autograd makes a hundred small operations of a loss over a queue, and a GPU waits for its host to
launch them. Here the derivative by the query, which is a weighted mean of keys, is computed with
the value, and the backward pass only scales it. `row_losses` says what is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from iivcl._candidates import NO_LOGIT, Candidates, once, stream
from iivcl._checks import common_dtype, unit_and_length
from iivcl._engine import ChunkSize, streaming_chunk_size
from iivcl.losses._forms import Form

# Exponentials of logits up to this size, and sums of 1e10 of them, are far from both ends of
# float32, so that they need not be divided by the largest.
_SAFE_LOGIT = 64.0


def is_fused(query: Tensor, chunk_size: ChunkSize) -> bool:
    """Whether nobody asks for what only autograd or a compiler gives."""
    if chunk_size == "dense" or torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return forward_ad.unpack_dual(query).tangent is None  # type: ignore[no-untyped-call]


class Queries(NamedTuple):
    """Queries, and what leads from their logits back to them."""

    given: Tensor  # (B, D), that may ask for a gradient
    unit: Tensor  # (B, D), of unit length
    length: Tensor  # (B, 1) float64
    temperature: float | Tensor
    slopes: bool  # whether derivatives are asked for

    @classmethod
    def beside(
        cls,
        query: Tensor,
        keys: Tensor,
        temperature: float | Tensor,
        *,
        at_least: torch.dtype = torch.float32,
    ) -> tuple[Queries, Tensor]:
        """Normalise queries (B, D) and their keys (B, P, D) together."""
        dtype = common_dtype(query, keys, at_least=at_least)
        rows = torch.cat([query.detach()[:, None].to(dtype), keys.detach().to(dtype)], 1)
        unit, length = unit_and_length(rows)
        learned = isinstance(temperature, Tensor) and temperature.requires_grad
        slopes = torch.is_grad_enabled() and (query.requires_grad or learned)
        return cls(query, unit[:, 0], length[:, 0], temperature, slopes), unit[:, 1:]

    def scaled(self) -> Tensor:
        """Divide by the temperature, (B, D)."""
        by = self.temperature
        return self.unit / (by.detach() if isinstance(by, Tensor) else by)


class Columns(NamedTuple):
    """Logits of each query, and their derivatives by the scaled query.

    That of a key's logit is the key; that of a log-sum-exp of many, their mean by softmax.
    """

    logits: Tensor  # (B, n)
    keys: Tensor  # (B, n, D)

    @classmethod
    def of(
        cls,
        queries: Queries,
        keys: Tensor,
        negatives: Sequence[Candidates],
        chunk_size: int | None,
        *,
        absent: Tensor | None = None,
    ) -> Columns:
        """Take the keys (B, p, D), then one column for all ``negatives`` of each kind.

        ``absent`` (B, k) marks which of the last k keys do not count.
        """
        scaled = queries.scaled()
        size = chunk_size or streaming_chunk_size(scaled)
        by = queries.temperature
        bounded = not isinstance(by, Tensor) and _SAFE_LOGIT * by >= 1
        own = torch.bmm(keys, scaled[:, :, None])[:, :, 0]
        if absent is not None:
            own[:, own.shape[1] - absent.shape[1] :].masked_fill_(absent, NO_LOGIT)
        levels = [stream(scaled, size, queries.slopes, bounded, *part) for part in negatives]
        logits = torch.cat([own, *(level[:, None] for level, _ in levels)], 1)
        if queries.slopes:
            keys = torch.cat([keys, *(slope[:, None] for _, slope in levels)], 1)
        return cls(logits, keys)

    def row_losses(self, form: Form, own: Tensor) -> tuple[Tensor, Tensor]:
        """Compute losses (B,) and their derivatives (B, D) by the scaled query.

        Args:
            form: As for `row_losses`.
            own: (B, p) or (1, p) weights of the positives, which are the first p keys: equal where
                they are not 0, with the sum 1. Without any, the result means nothing.
        """
        p = own.shape[1]
        if form == "per_positive":
            level = self.logits[:, p:].logsumexp(1, keepdim=True)
            margins = level - self.logits[:, :p]
            losses = (own * F.softplus(margins, threshold=50)).sum(1)
            of_positives = own * margins.sigmoid()
            of_negatives = (self.logits[:, p:] - level).exp_()
            of_negatives = of_negatives.mul_(of_positives.sum(1, keepdim=True))
            by_logits = torch.cat([-of_positives, of_negatives], 1)
        else:
            shares = self.logits.log_softmax(1)
            positives = shares[:, :p]
            if form == "out":
                losses = (own * positives).sum(1).neg_()
            else:
                positives = positives.masked_fill(own == 0, NO_LOGIT)
                losses = positives.logsumexp(1).neg_()
                own = (positives + losses[:, None]).exp_()
            by_logits = shares.exp_()
            by_logits[:, :p].sub_(own)
        return losses, torch.bmm(by_logits[:, None, : self.keys.shape[1]], self.keys)[:, 0]

    def after(self, first: int) -> Columns:
        """Leave the first columns out."""
        return Columns(self.logits[:, first:], self.keys[:, first:])


class _Known(torch.autograd.Function):
    """Losses, (B,) or (), each followed by its derivative (B, D) by the scaled query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, temperature: Any, *known: Tensor) -> Any:
        learned = temperature if isinstance(temperature, Tensor) else None
        ctx.number = temperature if learned is None else None
        unit, length, *known = known
        ctx.save_for_backward(query, learned, unit, length, *known[1::2])
        ctx.set_materialize_grads(False)
        return tuple(known[::2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        query, learned, unit, length, *slopes = ctx.saved_tensors
        nothing = (None,) * (2 + 2 * len(grads))
        parts = [
            grad[..., None] * slope
            for grad, slope in zip(grads, slopes, strict=True)
            if grad is not None
        ]
        if not parts:
            return None, None, *nothing
        slope = sum(parts[1:], parts[0])  # by the scaled query
        temperature = ctx.number if learned is None else learned.detach()
        along = (unit * slope).sum(1, keepdim=True)
        across = torch.addcmul(slope, unit, along, value=-1)
        by_query = across.div_(length * temperature).to(query.dtype)
        by_temperature = None
        if learned is not None:
            by_temperature = along.sum().neg_().div_(temperature * temperature)
        if torch.is_grad_enabled():
            by_query = once(by_query, query)
            by_temperature = by_temperature if learned is None else once(by_temperature, learned)
        return by_query, by_temperature, *nothing


def known(queries: Queries, *terms: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Give losses, of which each comes with its derivative (B, D), their gradients."""
    if not queries.slopes:
        return tuple(loss for loss, _ in terms)
    given, unit, length, temperature, _ = queries
    parts = (part for term in terms for part in term)
    return _Known.apply(given, temperature, unit, length, *parts)  # type: ignore[no-untyped-call,no-any-return]
