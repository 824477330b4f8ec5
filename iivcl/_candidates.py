"""The candidates of a contrast: keys, which of them count for which query, and their log-sum-exp.

Lookup and losses describe what they compare as `Candidates`. Whether the logits of a log-sum-exp
are held (dense) or never held as a whole (streaming) is chosen by size, in `_engine`.

The streaming form rests on one identity, in which K are the keys and q is a query divided by the
temperature T::

    d logsumexp(q K') / dq = softmax(q K') K

which is what attention with V = K returns. So one pass over the keys gives the value and its
derivative, chunk by chunk with the online softmax (Dao et al., FlashAttention, arXiv 2205.14135,
section 3.1), in O(B x chunk) memory. The backward pass only scales that derivative: it needs
neither logits nor keys, and a queue may be written before it. The derivative by a learnable
temperature, -(q . dL/dq) / T, is that of the division.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from iivcl import _engine
from iivcl._checks import (
    check_chunk_size,
    check_embeddings,
    check_ids,
    check_mask,
    check_shape,
    unit_rows,
)
from iivcl._engine import ChunkSize, choose_chunk_size
from iivcl._first_order import FIRST_ORDER, once
from iivcl._precision import without_autocast

# Stands for the logit of a key that does not count. Finite, so that a query for which no key counts
# has a finite log-sum-exp and, through the masking, a zero gradient instead of NaN.
NO_LOGIT = -1e30


class Candidates(NamedTuple):
    """Keys that queries are compared with, and which of them count for which query.

    A key counts for a query where all conditions hold together. Only ``pairs`` has the size of the
    (B, M) matrix of logits.

    Attributes:
        keys: (M, D) float, normalised on the way; a gradient reaches those that ask for one.
        rows: (M,) bool, keys that count at all.
        pairs: (B, M) bool; or float factors of the exponentials, not negative.
        ids: (M,) integer ids of the keys, which do not count for queries of the same id.
        query_ids: (B,) integer ids of the queries.
        without: (B, E) integer rows that do not count; numbers outside [0, M) name none.
        normalized: Whether the keys are of unit length already, as those of a queue are.

    Example:
        >>> import torch
        >>> queries, keys = torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
        >>> others = Candidates(keys, ids=torch.tensor([7, 8, 9]), query_ids=torch.tensor([7, 8]))
        >>> others.log_sum_exp(queries)  # log(e^0 + e^1), log(e^0 + e^0)
        tensor([1.3133, 0.6931])
    """

    keys: Tensor
    rows: Tensor | None = None
    pairs: Tensor | None = None
    ids: Tensor | None = None
    query_ids: Tensor | None = None
    without: Tensor | None = None
    normalized: bool = False

    def log_sum_exp(self, query: Tensor, *, chunk_size: ChunkSize = None) -> Tensor:
        """Compute ``log sum_m exp(query . key_m)`` over the keys that count.

        Args:
            query: (B, D) float, of unit length and divided by the temperature.
            chunk_size: Keys per step of the streaming form; ``"dense"`` for the form that holds all
                logits and can be differentiated twice; default: by size.

        Returns:
            (B,) in float32 (float64 for float64 queries); -1e30 with zero gradient for a query for
            which no key counts.

        Raises:
            ValueError: A shape does not fit, or ``chunk_size`` is below 1.
            TypeError: A mask is not bool, or ids are not integers.
        """
        self._check(query)
        check_chunk_size(chunk_size)
        size = choose_chunk_size(chunk_size, query, len(self.keys))
        query = query.to(torch.promote_types(query.dtype, torch.float32))
        with without_autocast(query):
            if size == "dense" or not len(self.keys):
                return self._chunk_log_sum_exp(query, slice(0, len(self.keys)))
            constants = (self.keys, self.pairs)
            if torch.is_grad_enabled() and any(
                x is not None and x.requires_grad for x in constants
            ):
                parts = [
                    recomputed(self._chunk_log_sum_exp, query, span)
                    for span in spans(len(self.keys), size)
                ]
                return torch.stack(parts).logsumexp(0)
            if forward_ad.unpack_dual(query).tangent is not None:  # type: ignore[no-untyped-call]
                raise NotImplementedError(FIRST_ORDER)
            slopes = torch.is_grad_enabled() and query.requires_grad
            operator = _Streamed.apply
            if torch.compiler.is_compiling() and (size < len(self.keys) or _engine.on_cpu(query)):
                operator = _log_sum_exp
            return operator(query, size, slopes, False, *self)[0]  # type: ignore[no-any-return]

    def chunk(self, span: slice, dtype: torch.dtype) -> Tensor:
        """Give the keys ``span`` of unit length, (c, D)."""
        keys = self.keys[span].to(dtype)
        return keys if self.normalized else unit_rows(keys)

    def dropped(self, span: slice) -> Tensor | None:
        """Mark which keys ``span`` do not count but for `without`, (B, c) or (1, c); None: none."""
        parts: list[Tensor] = []
        if self.rows is not None:
            parts.append(~self.rows[None, span])
        if self.pairs is not None:
            pairs = self.pairs[:, span]
            parts.append(~pairs if pairs.dtype == torch.bool else pairs <= 0)
        if self.query_ids is not None and self.ids is not None:
            parts.append(self.query_ids[:, None] == self.ids[None, span])
        return functools.reduce(torch.logical_or, parts) if parts else None

    def allowed(self, rows: Tensor, queries: slice = slice(None)) -> Tensor:
        """Tell which of a few ``rows`` (b, R) count for each of the ``queries``, (b, R) bool."""
        parts = [rows >= 0]
        if self.rows is not None:
            parts.append(self.rows.take(rows))
        if self.pairs is not None:
            parts.append(self.pairs[queries].gather(1, rows))
        if self.query_ids is not None and self.ids is not None:
            parts.append(self.ids.take(rows) != self.query_ids[queries, None])
        return functools.reduce(torch.logical_and, parts)

    def _logits(self, query: Tensor, keys: Tensor, span: slice, nothing: float) -> Tensor:
        """Multiply the queries with ``keys``, which are those of ``span``, (B, c)."""
        which = self
        if self.rows is not None and nothing == -torch.inf and _engine.on_cpu(query):
            bias = self.rows[span].log().to(query.dtype)  # of the product: 0 or -inf
            logits, which = torch.addmm(bias, query, keys.T), Candidates(self.keys, None, *self[2:])
        else:
            logits = query @ keys.T
        dropped = which.dropped(span)
        if self.pairs is not None and self.pairs.is_floating_point() and dropped is not None:
            factors = self.pairs[:, span].to(logits.dtype).masked_fill(dropped, 1.0)
            logits = logits.add_(factors.log())
        if dropped is not None:
            logits = logits.masked_fill_(dropped, nothing)
        if self.without is not None:  # added, for a row may be named twice
            places = self.without - span.start if span.start else self.without
            inside = places.clamp(0, span.stop - span.start - 1)
            bias = (inside != places).log().to(logits.dtype)
            if nothing > -torch.inf:
                bias = bias.clamp_(min=nothing)
            logits.scatter_add_(1, inside, bias)
        return logits

    def _chunk_log_sum_exp(self, query: Tensor, span: slice) -> Tensor:
        if span.start == span.stop:
            return query.new_full(query.shape[:1], NO_LOGIT)
        keys = self.chunk(span, query.dtype)
        value = self._logits(query, keys, span, NO_LOGIT).logsumexp(1)
        return value.masked_fill(value <= NO_LOGIT, NO_LOGIT)  # without a gradient

    def _check(self, query: Tensor) -> None:
        check_embeddings("keys", self.keys, "M D")
        rows, dim = self.keys.shape
        check_embeddings("query", query, "B D", D=(dim, "keys"))
        sizes = {"B": (query.shape[0], "query"), "M": (rows, "keys")}
        check_mask("rows", self.rows, "M", **sizes)
        if self.pairs is not None:
            check_shape("pairs", self.pairs, "B M", **sizes)
            if self.pairs.dtype != torch.bool and not self.pairs.is_floating_point():
                raise TypeError(f"`pairs` must be bool or floating-point; got {self.pairs.dtype}")
        if self.ids is not None and self.query_ids is not None:
            check_ids("ids", self.ids, rows, "keys")
            check_ids("query_ids", self.query_ids, query.shape[0], "query")
        if self.without is not None:
            check_shape("without", self.without, "B E", **sizes)


def spans(keys: int, chunk_size: int) -> Iterator[slice]:
    """Cut the keys into chunks, at least one."""
    for start in range(0, max(keys, 1), chunk_size):
        yield slice(start, min(start + chunk_size, keys))


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call ``function`` and keep nothing but its arguments for the backward pass."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


# --- the operator: one opaque node in a compiled graph, however many chunks there are ------------


def stream(
    query: Tensor, chunk_size: int, slopes: bool, bounded: bool, keys: Tensor, *which: Any
) -> tuple[Tensor, Tensor]:
    """Give the log-sum-exp (B,) and its derivative (B, D) by the query, softmax(q K') K.

    Args:
        query: As for `Candidates.log_sum_exp`.
        chunk_size: Keys per step.
        slopes: Whether the derivative is asked for.
        bounded: Whether no exponential of a logit, nor their sum, can leave the range of float32.
        keys: What `Candidates` begins with.
        *which: The rest of it.
    """
    candidates = Candidates(keys, *which)
    top = total = slope = None
    for span in spans(len(keys), chunk_size):
        chunk = candidates.chunk(span, query.dtype)
        logits = candidates._logits(query, chunk, span, -torch.inf)  # (B, chunk)
        if not bounded:
            largest = logits.amax(1).clamp_(min=NO_LOGIT)
            new_top = largest if top is None else torch.maximum(top, largest)
            logits.sub_(new_top[:, None])
            if top is not None and total is not None:
                shrink = top.sub_(new_top).exp_()
                total.mul_(shrink)
                if slope is not None:
                    slope.mul_(shrink[:, None])
            top = new_top  # the largest logit so far
        weights = logits.exp_()
        sums = weights.sum(1)
        total = sums if total is None else total.add_(sums)  # of exp(logit), or exp(logit - top)
        if slopes:  # the same, each times its key
            slope = weights @ chunk if slope is None else slope.addmm_(weights, chunk)
    assert total is not None
    value = total.log().clamp_(min=NO_LOGIT)  # is -inf where no key counts
    if top is not None:
        value.add_(top).clamp_(min=NO_LOGIT)
    if slope is None:
        return value, query.new_empty(0, 0)
    return value, slope.div_(total.clamp_(min=torch.finfo(total.dtype).tiny)[:, None])


def _stream(query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    with without_autocast(query):
        return stream(query, *arguments)


_log_sum_exp = torch.library.custom_op(
    "iivcl::log_sum_exp",
    _stream,
    mutates_args=(),
    schema="(Tensor query, int chunk_size, bool slopes, bool bounded, Tensor keys, Tensor? rows, "
    "Tensor? pairs, Tensor? ids, Tensor? query_ids, Tensor? without, bool normalized) "
    "-> (Tensor, Tensor)",
)


@_log_sum_exp.register_fake
def _(query: Tensor, chunk_size: int, slopes: bool, *_: object) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape[:1]), query.new_empty(query.shape if slopes else (0, 0))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    query, slope = ctx.saved_tensors
    gradient = grad[:, None] * slope
    if torch.is_grad_enabled():
        gradient = once(gradient, query)
    return gradient, *(None,) * 10


_log_sum_exp.register_autograd(_backward, setup_context=_save)


class _Streamed(torch.autograd.Function):
    """The same without an operator's machinery, and open to a compiler.

    What a GPU does with one chunk are few kernels when joined.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _stream(*inputs)
        ctx.mark_non_differentiable(output[1])
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: object) -> Any:
        return _backward(ctx, grad, _)
