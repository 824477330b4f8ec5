"""Reductions over the columns of a logit matrix that is never held.

Forward and backward go over the keys chunk by chunk and compute the logits of a chunk anew each
time, so memory is O(B x chunk) where autograd would keep O(B x M). The idea is that of the online
softmax of Dao et al., FlashAttention, arXiv 2205.14135, section 3.1.

The passes are custom operators: one opaque node in a compiled graph, however many chunks there are.
Their gradient is not differentiable again; the dense form is.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._columns import Columns
from ._forms import NO_LOGIT


def streaming_log_sum_exp(
    query: Tensor, keys: Tensor, columns: Columns, temperature: float, chunk_size: int
) -> Tensor:
    """Compute the log-sum-exp (B,) of ``query @ keys.T / temperature`` over the kept columns."""
    result: Tensor = _log_sum_exp(query, keys, temperature, chunk_size, *columns)
    return result


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
    result: Tensor = _margin_sum(query, keys, level, weights, temperature, chunk_size, soft)
    return result


def _spans(keys: Tensor, chunk_size: int) -> Iterator[slice]:
    for start in range(0, keys.shape[0], chunk_size):
        yield slice(start, min(start + chunk_size, keys.shape[0]))


def _logits(scaled_query: Tensor, keys: Tensor, span: slice) -> Tensor:
    return scaled_query @ keys[span].to(scaled_query.dtype).T  # (B, chunk)


def _gradients(
    query: Tensor,
    keys: Tensor,
    chunk_size: int,
    keys_need_grad: bool,
    grad_of_products: Callable[[slice], Tensor],
) -> tuple[Tensor, Tensor]:
    """Sum up the gradients of query and keys from those of ``query @ keys.T``, chunk by chunk."""
    grad_query = torch.zeros_like(query)
    grad_keys = query.new_empty(keys.shape if keys_need_grad else (0,))
    for span in _spans(keys, chunk_size):
        grad = grad_of_products(span)  # (B, chunk)
        grad_query.addmm_(grad, keys[span].to(query.dtype))
        if keys_need_grad:
            torch.mm(grad.T, query, out=grad_keys[span])
    return grad_query, grad_keys.to(keys.dtype)


def _without_autocast(run: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(query: Tensor, *arguments: Any) -> Any:
        with torch.autocast(query.device.type, enabled=False):
            return run(query, *arguments)

    return wrapped


# --- log-sum-exp -------------------------------------------------------------------------------

_COLUMNS = (
    "Tensor? keep_rows, Tensor? pair_weights, Tensor? query_ids, Tensor? key_ids, Tensor? excluded"
)


@_without_autocast
def _lse(
    query: Tensor, keys: Tensor, temperature: float, chunk_size: int, *columns: Tensor | None
) -> Tensor:
    scaled, kept = query / temperature, Columns(*columns)
    total = query.new_full(query.shape[:1], -torch.inf)
    for span in _spans(keys, chunk_size):
        logits = kept.mask_(_logits(scaled, keys, span), span, -torch.inf)
        total = torch.logaddexp(total, logits.logsumexp(1))
    return total.clamp_(min=NO_LOGIT)


@_without_autocast
def _lse_grad(
    query: Tensor,
    keys: Tensor,
    temperature: float,
    chunk_size: int,
    total: Tensor,
    grad: Tensor,
    keys_need_grad: bool,
    *columns: Tensor | None,
) -> tuple[Tensor, Tensor]:
    scaled, kept = query / temperature, Columns(*columns)
    row_grad = grad[:, None] / temperature

    def grad_of_products(span: slice) -> Tensor:
        logits = kept.mask_(_logits(scaled, keys, span), span, -torch.inf)
        return logits.sub_(total[:, None]).exp_().mul_(row_grad)

    return _gradients(query, keys, chunk_size, keys_need_grad, grad_of_products)


_log_sum_exp = torch.library.custom_op(
    "iivcl::log_sum_exp",
    _lse,
    mutates_args=(),
    schema=f"(Tensor query, Tensor keys, float temperature, int chunk_size, {_COLUMNS}) -> Tensor",
)
_log_sum_exp_grad = torch.library.custom_op(
    "iivcl::log_sum_exp_grad",
    _lse_grad,
    mutates_args=(),
    schema="(Tensor query, Tensor keys, float temperature, int chunk_size, Tensor total, "
    f"Tensor grad, bool keys_need_grad, {_COLUMNS}) -> (Tensor, Tensor)",
)


@_log_sum_exp.register_fake
def _(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[:1])


@_log_sum_exp_grad.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    temperature: float,
    chunk_size: int,
    total: Tensor,
    grad: Tensor,
    keys_need_grad: bool,
    *_: object,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), keys.new_empty(keys.shape if keys_need_grad else (0,))


def _save_lse(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, keys, ctx.temperature, ctx.chunk_size, *columns = inputs
    ctx.save_for_backward(query, keys, output, *columns)


def _backward_lse(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, keys, total, *columns = ctx.saved_tensors
    needed = ctx.needs_input_grad[1]
    grad_query, grad_keys = _log_sum_exp_grad(
        query, keys, ctx.temperature, ctx.chunk_size, total, grad, needed, *columns
    )
    return grad_query, grad_keys if needed else None, *(None,) * (2 + len(columns))


_log_sum_exp.register_autograd(_backward_lse, setup_context=_save_lse)


# --- weighted sum over the positives of how far each lies below a level of its row --------------


@_without_autocast
def _margins(
    query: Tensor,
    keys: Tensor,
    level: Tensor,
    weights: Tensor,
    temperature: float,
    chunk_size: int,
    soft: bool,
) -> Tensor:
    scaled, total = query / temperature, torch.zeros_like(level)
    for span in _spans(keys, chunk_size):
        margins = level[:, None] - _logits(scaled, keys, span)
        if soft:
            margins = F.softplus(margins, threshold=50)
        # A row without positives may have an absurd level, which must not meet its weights of 0.
        chosen = weights[:, span]
        total += torch.where(chosen > 0, margins * chosen, 0.0).sum(1)
    return total


@_without_autocast
def _margins_grad(
    query: Tensor,
    keys: Tensor,
    level: Tensor,
    weights: Tensor,
    temperature: float,
    chunk_size: int,
    soft: bool,
    grad: Tensor,
    keys_need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    scaled, grad_level = query / temperature, torch.zeros_like(level)

    def grad_of_products(span: slice) -> Tensor:
        slopes = weights[:, span] * grad[:, None]
        if soft:
            slopes *= (level[:, None] - _logits(scaled, keys, span)).sigmoid_()
        grad_level.add_(slopes.sum(1))
        return slopes.div_(-temperature)

    return *_gradients(query, keys, chunk_size, keys_need_grad, grad_of_products), grad_level


_MARGINS = (
    "Tensor query, Tensor keys, Tensor level, Tensor weights, float temperature, int chunk_size, "
    "bool soft"
)
_margin_sum = torch.library.custom_op(
    "iivcl::margin_sum", _margins, mutates_args=(), schema=f"({_MARGINS}) -> Tensor"
)
_margin_sum_grad = torch.library.custom_op(
    "iivcl::margin_sum_grad",
    _margins_grad,
    mutates_args=(),
    schema=f"({_MARGINS}, Tensor grad, bool keys_need_grad) -> (Tensor, Tensor, Tensor)",
)


@_margin_sum.register_fake
def _(query: Tensor, keys: Tensor, level: Tensor, *_: object) -> Tensor:
    return torch.empty_like(level)


@_margin_sum_grad.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    level: Tensor,
    weights: Tensor,
    temperature: float,
    chunk_size: int,
    soft: bool,
    grad: Tensor,
    keys_need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_keys = keys.new_empty(keys.shape if keys_need_grad else (0,))
    return torch.empty_like(query), grad_keys, torch.empty_like(level)


def _save_margins(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.temperature, ctx.chunk_size, ctx.soft = inputs
    ctx.save_for_backward(*tensors)


def _backward_margins(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[1]
    grad_query, grad_keys, grad_level = _margin_sum_grad(
        *ctx.saved_tensors, ctx.temperature, ctx.chunk_size, ctx.soft, grad, needed
    )
    return grad_query, grad_keys if needed else None, grad_level, None, None, None, None


_margin_sum.register_autograd(_backward_margins, setup_context=_save_margins)
