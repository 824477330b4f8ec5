"""Tensors that do not change, kept on their device: a copy to it would make it wait."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["constant", "kept", "row"]


def constant(values: tuple[Any, ...], like: Tensor) -> Tensor:
    """Numbers in the dtype of a tensor, on its device."""
    return kept(_constant, values, like.dtype, like=like)


def kept(make: Callable[..., Tensor], *args: Any, like: Tensor) -> Tensor:
    """Call ``make(*args, device=...)`` once for each device; every time in a graph or for fakes."""
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return make(*args, device=like.device)
    return _kept(make, *args, like.device)


@functools.lru_cache(maxsize=256)
def _kept(make: Callable[..., Tensor], *args: Any) -> Tensor:
    with torch.inference_mode(False):
        return make(*args[:-1], device=args[-1])


def row(values: tuple[float, ...], like: Tensor) -> Tensor:
    """A few numbers (n,) likewise, which a graph computes and does not copy."""
    if not torch.compiler.is_compiling():
        return constant(values, like)
    place = torch.arange(len(values), device=like.device)
    numbers = torch.full_like(place, values[0], dtype=like.dtype)
    for i, value in enumerate(values[1:], 1):
        numbers = torch.where(place == i, value, numbers)
    return numbers


def _constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
