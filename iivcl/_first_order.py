"""Derivatives that were computed by hand, and cannot be differentiated again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FIRST_ORDER = (
    "the streaming form of the loss has a first derivative only, in reverse mode; "
    'pass chunk_size="dense" for others'
)


class _Once(torch.autograd.Function):
    """The identity, as long as nobody differentiates it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, query: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError(FIRST_ORDER)


def once(gradient: Tensor, of: Tensor) -> Tensor:
    """Refuse that a gradient by ``of`` is differentiated again."""
    return _Once.apply(gradient, of)  # type: ignore[no-any-return]
