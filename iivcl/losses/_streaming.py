"""Reductions over the columns of a logit matrix that is never held.

One pass over the keys, chunk by chunk, computes the value of every row together with its derivative
by the query: both are sums over columns, and the online softmax of Dao et al., FlashAttention
(arXiv 2205.14135, section 3.1), gives them in O(B x chunk) memory. The backward pass then only
scales that derivative. So it needs neither the logits nor the keys, and a queue may be written
between the forward and the backward pass. Keys that ask for a gradient are the exception:
theirs takes a second pass.

The passes are custom operators: one opaque node in a compiled graph, however many chunks there are.
Their gradient is not differentiable again; that of the dense form is.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._precision import without_autocast
from ._columns import Columns
from ._forms import NO_LOGIT


def streaming_log_sum_exp(
    query: Tensor,
    keys: Tensor,
    columns: Columns,
    temperature: float,
    chunk_size: int,
    *,
    normalize_keys: bool = False,
) -> Tensor:
    """Compute the log-sum-exp (B,) of ``query @ keys.T / temperature`` over the kept columns.

    Keys that are normalised on the way, and so never copied as a whole, get no gradient.
    """
    options = temperature, chunk_size, normalize_keys, _slopes(query)
    value: Tensor = _log_sum_exp(query, keys, *options, *columns)[0]
    return value


def streaming_margin_sum(
    query: Tensor,
    keys: Tensor,
    level: Tensor,
    weights: Tensor,
    temperature: float,
    chunk_size: int,
    *,
    soft: bool,
) -> Tensor:
    """Compute ``sum_m weights[b, m] * g(level[b] - logits[b, m])``, (B,).

    ``g`` is softplus when ``soft``, else the identity; ``weights`` (B, M) are bool or float.
    """
    slopes = _slopes(query, level)
    value: Tensor = _margin_sum(query, keys, temperature, chunk_size, slopes, level, weights, soft)[
        0
    ]
    return value


def _slopes(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


def _spans(keys: Tensor, chunk_size: int) -> Iterator[slice]:
    for start in range(0, keys.shape[0], chunk_size):
        yield slice(start, min(start + chunk_size, keys.shape[0]))


def _logits(scaled_query: Tensor, keys: Tensor) -> Tensor:
    return scaled_query @ keys.to(scaled_query.dtype).T  # (B, chunk)


def _without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(query: Tensor, *arguments: Any) -> Any:
        with without_autocast(query):
            return run(query, *arguments)

    return wrapped


def _key_gradient(
    query: Tensor, keys: Tensor, chunk_size: int, of_products: Callable[[slice], Tensor]
) -> Tensor:
    """Compute the gradient of the keys from that of ``query @ keys.T``, chunk by chunk."""
    gradient = torch.empty_like(keys, memory_format=torch.contiguous_format)
    for span in _spans(keys, chunk_size):
        gradient[span] = of_products(span).T @ query
    return gradient


_COMMON = "Tensor query, Tensor keys, float temperature, int chunk_size, "
_COLUMNS = (
    "Tensor? keep_rows, Tensor? pair_weights, Tensor? query_ids, Tensor? key_ids, Tensor? excluded"
)
_MARGINS = "Tensor level, Tensor weights, bool soft"


# --- log-sum-exp ---------------------------------------------------------------------------------


@_without_autocast
def _lse(
    query: Tensor,
    keys: Tensor,
    temperature: float,
    chunk_size: int,
    normalize_keys: bool,
    slopes: bool,
    *columns: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scaled, kept = query / temperature, Columns(*columns)
    top = query.new_full(query.shape[:1], NO_LOGIT)  # largest logit so far
    total = torch.zeros_like(top)  # sum of exp(logit - top)
    mean = query.new_zeros(query.shape if slopes else (0, 0))  # sum of exp(logit - top) key
    for span in _spans(keys, chunk_size):
        chunk = keys[span].to(query.dtype)
        if normalize_keys:
            chunk = F.normalize(chunk, dim=1)
        logits = kept.mask_(scaled @ chunk.T, span, -torch.inf)  # (B, chunk)
        new_top = torch.maximum(top, logits.amax(1))
        weights = logits.sub_(new_top[:, None]).exp_()
        shrink = top.sub_(new_top).exp_()
        total.mul_(shrink).add_(weights.sum(1))
        if slopes:
            mean.mul_(shrink[:, None]).addmm_(weights, chunk)
        top = new_top
    empty = total == 0
    value = torch.where(empty, NO_LOGIT, top + total.log())
    if slopes:
        mean.div_(total.masked_fill(empty, 1.0)[:, None] * temperature)
    return value, mean


@_without_autocast
def _lse_key_grad(
    query: Tensor,
    keys: Tensor,
    temperature: float,
    chunk_size: int,
    value: Tensor,
    grad: Tensor,
    *columns: Tensor | None,
) -> Tensor:
    scaled, kept = query / temperature, Columns(*columns)

    def of_products(span: slice) -> Tensor:
        logits = kept.mask_(_logits(scaled, keys[span]), span, -torch.inf)
        return logits.sub_(value[:, None]).exp_().mul_(grad[:, None] / temperature)

    return _key_gradient(query, keys, chunk_size, of_products)


_log_sum_exp = torch.library.custom_op(
    "iivcl::log_sum_exp",
    _lse,
    mutates_args=(),
    schema=f"({_COMMON} bool normalize_keys, bool slopes, {_COLUMNS}) -> (Tensor, Tensor)",
)
_log_sum_exp_key_grad = torch.library.custom_op(
    "iivcl::log_sum_exp_key_grad",
    _lse_key_grad,
    mutates_args=(),
    schema=f"({_COMMON} Tensor value, Tensor grad, {_COLUMNS}) -> Tensor",
)


@_log_sum_exp.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    temperature: float,
    chunk_size: int,
    normalize_keys: bool,
    slopes: bool,
    *_: object,
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape[:1]), query.new_empty(query.shape if slopes else (0, 0))


@_log_sum_exp_key_grad.register_fake
def _(query: Tensor, keys: Tensor, *_: object) -> Tensor:
    return torch.empty_like(keys, memory_format=torch.contiguous_format)


def _save_lse(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, keys, ctx.temperature, ctx.chunk_size, _, _, *columns = inputs
    value, slope = output
    ctx.save_for_backward(slope, *((query, keys, value, *columns) if keys.requires_grad else ()))


def _backward_lse(ctx: Any, grad: Tensor, _: object) -> tuple[Tensor | None, ...]:
    slope, *saved = ctx.saved_tensors
    grad_keys = None
    if ctx.needs_input_grad[1]:
        query, keys, value, *columns = saved
        grad_keys = _log_sum_exp_key_grad(
            query, keys, ctx.temperature, ctx.chunk_size, value, grad, *columns
        )
    return grad[:, None] * slope if slope.numel() else None, grad_keys, *(None,) * 9


_log_sum_exp.register_autograd(_backward_lse, setup_context=_save_lse)


# --- weighted sum over the positives of how far each lies below a level of its row ---------------


@_without_autocast
def _margins(
    query: Tensor,
    keys: Tensor,
    temperature: float,
    chunk_size: int,
    slopes: bool,
    level: Tensor,
    weights: Tensor,
    soft: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scaled, total = query / temperature, torch.zeros_like(level)
    slope = query.new_zeros(query.shape if slopes else (0, 0))
    level_slope = torch.zeros_like(level)
    for span in _spans(keys, chunk_size):
        chosen = weights[:, span].to(query.dtype)
        margins = level[:, None] - _logits(scaled, keys[span])
        values = F.softplus(margins, threshold=50) if soft else margins
        # A row without positives may have an absurd level, which must not meet its weights of 0.
        total += torch.where(chosen > 0, values * chosen, 0.0).sum(1)
        if slopes:
            steepness = margins.sigmoid_().mul_(chosen) if soft else chosen
            level_slope += steepness.sum(1)
            slope.addmm_(steepness, keys[span].to(query.dtype))
    return total, slope.div_(-temperature), level_slope


@_without_autocast
def _margins_key_grad(
    query: Tensor,
    keys: Tensor,
    temperature: float,
    chunk_size: int,
    grad: Tensor,
    level: Tensor,
    weights: Tensor,
    soft: bool,
) -> Tensor:
    scaled = query / temperature

    def of_products(span: slice) -> Tensor:
        chosen = weights[:, span] * grad[:, None] / -temperature
        if soft:
            chosen *= (level[:, None] - _logits(scaled, keys[span])).sigmoid_()
        return chosen

    return _key_gradient(query, keys, chunk_size, of_products)


_margin_sum = torch.library.custom_op(
    "iivcl::margin_sum",
    _margins,
    mutates_args=(),
    schema=f"({_COMMON} bool slopes, {_MARGINS}) -> (Tensor, Tensor, Tensor)",
)
_margin_sum_key_grad = torch.library.custom_op(
    "iivcl::margin_sum_key_grad",
    _margins_key_grad,
    mutates_args=(),
    schema=f"({_COMMON} Tensor grad, {_MARGINS}) -> Tensor",
)


@_margin_sum.register_fake
def _(
    query: Tensor, keys: Tensor, temperature: float, chunk_size: int, slopes: bool, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    level = query.new_empty(query.shape[:1])
    return level, query.new_empty(query.shape if slopes else (0, 0)), torch.empty_like(level)


@_margin_sum_key_grad.register_fake
def _(query: Tensor, keys: Tensor, *_: object) -> Tensor:
    return torch.empty_like(keys, memory_format=torch.contiguous_format)


def _save_margins(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    query, keys, ctx.temperature, ctx.chunk_size, _, level, weights, ctx.soft = inputs
    _, slope, level_slope = output
    again = (query, keys, level, weights) if keys.requires_grad else ()
    ctx.save_for_backward(slope, level_slope, *again)


def _backward_margins(ctx: Any, grad: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    slope, level_slope, *saved = ctx.saved_tensors
    grad_keys = None
    if ctx.needs_input_grad[1]:
        query, keys, level, weights = saved
        grad_keys = _margin_sum_key_grad(
            query, keys, ctx.temperature, ctx.chunk_size, grad, level, weights, ctx.soft
        )
    grad_query = grad[:, None] * slope if slope.numel() else None
    return grad_query, grad_keys, None, None, None, grad * level_slope, None, None


_margin_sum.register_autograd(_backward_margins, setup_context=_save_margins)
