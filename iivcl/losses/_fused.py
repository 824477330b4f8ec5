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

from iivcl._candidates import NO_LOGIT, Candidates, stream
from iivcl._checks import common_dtype, unit_and_length
from iivcl._engine import ChunkSize, streaming_chunk_size
from iivcl._first_order import once
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
        at_least: torch.dtype = torch.float32,
    ) -> tuple[Queries, Tensor]:
        """Normalise queries (B, D) and their keys (B, P, D) together."""
        dtype = common_dtype(query, keys, at_least=at_least)
        rows = torch.cat([query.detach()[:, None].to(dtype), keys.detach().to(dtype)], 1)
        unit, length = unit_and_length(rows)
        learned = isinstance(temperature, Tensor) and temperature.requires_grad
        slopes = torch.is_grad_enabled() and (query.requires_grad or learned)
        return cls(query, unit[:, 0], length[:, 0], temperature, slopes), unit[:, 1:]

    def number(self) -> float | Tensor:
        """Give the temperature without a gradient."""
        by = self.temperature
        return by.detach() if isinstance(by, Tensor) else by

    def differentiable(self, losses: list[Tensor], slopes: list[Tensor]) -> list[Tensor]:
        """Give ``losses``, (B,) or (), their derivatives (B, D) by the scaled query."""
        if not self.slopes:
            return losses
        slope = slopes[0][:, None] if len(slopes) == 1 else torch.stack(slopes, 1)  # (B, n, D)
        by, unit = self.number(), self.unit[:, None]
        along = (unit * slope).sum(2, keepdim=True)
        across = torch.addcmul(slope, unit, along, value=-1)
        by_query = across.div_((self.length * by)[:, None])
        by_temperature = along[..., 0].neg().div_(by * by) if by is not self.temperature else None
        return list(_Known.apply(self.given, self.temperature, by_query, by_temperature, *losses))


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
        chunk_size: ChunkSize,
        *,
        absent: Tensor | None = None,
    ) -> Columns:
        """Take the keys (B, p, D), then one column for all ``negatives`` of each kind.

        ``absent`` (B, k) marks which of the last k keys do not count.
        """
        scaled = queries.unit / queries.number()
        size = chunk_size or streaming_chunk_size(scaled)
        by = queries.temperature
        bounded = not isinstance(by, Tensor) and _SAFE_LOGIT * by >= 1
        own = torch.bmm(keys, scaled[:, :, None])[:, :, 0]
        if absent is not None:
            own[:, own.shape[1] - absent.shape[1] :].masked_fill_(absent, NO_LOGIT)
        levels = [stream(scaled, size, queries.slopes, bounded, *part) for part in negatives]  # type: ignore[arg-type]
        logits = torch.cat([own, *(level[:, None] for level, _ in levels)], 1)
        if queries.slopes:
            keys = torch.cat([keys, *(slope[:, None] for _, slope in levels)], 1)
        return cls(logits, keys)

    def row_losses(
        self, form: Form, p: int, own: Tensor | float, row: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Compute weighted losses (B,) and their derivatives (B, D) by the scaled query.

        Args:
            form: As for `row_losses`.
            p: How many of the keys are positives; they come first.
            own: Their weights (B, p), or one for all. Those of a row are equal where they are not
                0, and have the sum ``row``.
            row: Weights (B, 1) of the losses, or one for all; 0 for a row without a positive.
        """
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
                if isinstance(own, Tensor):
                    positives = positives.masked_fill(own == 0, NO_LOGIT)
                level = positives.logsumexp(1, keepdim=True).clamp_(min=NO_LOGIT)
                losses = (row * level).neg_()[:, 0]
                own = (positives - level).exp_().mul_(row)
            by_logits = shares.exp_().mul_(row)
            by_logits[:, :p].sub_(own)
        return losses, torch.bmm(by_logits[:, None, : self.keys.shape[1]], self.keys)[:, 0]

    def after(self, first: int) -> Columns:
        """Leave the first columns out."""
        return Columns(self.logits[:, first:], self.keys[:, first:])


class _Known(torch.autograd.Function):
    """Losses (B,) or (), whose derivatives (B, n, D) by the query are known.

    Those by the temperature, (B, n), are added up over the rows.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, temperature: Any, by_query: Tensor,
        by_temperature: Tensor | None, *losses: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        learned = None if by_temperature is None else temperature
        ctx.save_for_backward(query, learned, by_query, by_temperature)
        ctx.set_materialize_grads(False)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        query, temperature, by_query, by_temperature = ctx.saved_tensors
        wanted = [(i, grad) for i, grad in enumerate(grads) if grad is not None]
        gradients = [None, None]
        if wanted:
            parts = [grad[..., None] * by_query[:, i] for i, grad in wanted]
            gradients[0] = sum(parts[1:], parts[0]).to(query.dtype)
        if wanted and by_temperature is not None:
            parts = [(grad * by_temperature[:, i]).sum() for i, grad in wanted]
            gradients[1] = sum(parts[1:], parts[0])
        if torch.is_grad_enabled():
            of = (query, temperature)
            gradients = [g if g is None else once(g, x) for g, x in zip(gradients, of, strict=True)]
        return *gradients, *(None,) * (2 + len(grads))
