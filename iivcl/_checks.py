"""The door of the package: argument checks, and embeddings of unit length.

The checks read only shapes, dtypes and Python numbers: none reads a tensor's values, so none
makes a GPU wait, and all of them trace through ``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from iivcl import _engine


def check_shape(name: str, tensor: Any, pattern: str, **sizes: tuple[int, str]) -> None:
    """Check the number of axes of ``tensor`` and the sizes that are already known.

    Args:
        name: Name of the argument, for the message.
        tensor: The argument.
        pattern: Names of the axes, such as ``"M D"``.
        **sizes: For an axis, its size and where that size comes from: ``D=(128, "query")``.
    """
    axes = pattern.split()
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"`{name}` must be a tensor of shape ({_join(axes)}); got {type(tensor).__name__}"
            + (f". Make one with `torch.as_tensor({name})`" if hasattr(tensor, "__len__") else "")
        )
    fits = tensor.ndim == len(axes) and all(
        axis not in sizes or size == sizes[axis][0]
        for axis, size in zip(axes, tensor.shape, strict=True)
    )
    if not fits:
        known = [
            f"{axis}={sizes[axis][0]} (from `{sizes[axis][1]}`)" for axis in axes if axis in sizes
        ]
        where = f" with {', '.join(known)}" if known else ""
        channels = (sizes["C"][0],) if "C" in sizes else (3,)
        raise ValueError(
            f"`{name}` must have shape ({_join(axes)}){where}; got {tuple(tensor.shape)}"
            + (layout_hint(tensor.shape, channels) if name == "video" else "")
        )


def check_floating(name: str, tensor: Tensor) -> None:
    """Check that ``tensor`` holds real floating-point numbers."""
    if not tensor.is_floating_point():
        raise TypeError(
            f"`{name}` must be a floating-point tensor; got {tensor.dtype}. "
            f"Convert it with `{name}.float()`"
        )


def check_ids(name: str, ids: Tensor, rows: int, source: str) -> None:
    """Check that ``ids`` is an integer vector with one entry per row of ``source``."""
    check_shape(name, ids, "B", B=(rows, source))
    if ids.is_floating_point() or ids.is_complex():
        raise TypeError(f"`{name}` must be an integer tensor; got {ids.dtype}")
    if ids.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch compares none of them
        raise TypeError(f"`{name}` must be int64; got {ids.dtype}. Use `{name}.to(torch.int64)`")


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two tensors live on the same device."""
    if tensor.device != other.device:
        raise ValueError(
            f"`{name}` is on {tensor.device} but `{other_name}` is on {other.device}; "
            "move them to the same device"
        )


def check_embeddings(name: str, rows: Tensor, pattern: str, **sizes: tuple[int, str]) -> None:
    """Check that ``rows`` are floating-point and have the shape, as for `check_shape`."""
    check_shape(name, rows, pattern, **sizes)
    check_floating(name, rows)


def check_mask(name: str, mask: Tensor | None, pattern: str, **sizes: tuple[int, str]) -> None:
    """Check that ``mask``, if there is one, is bool and has the shape, as for `check_shape`."""
    if mask is None:
        return
    check_shape(name, mask, pattern, **sizes)
    if mask.dtype != torch.bool:
        raise TypeError(f"`{name}` must be a bool tensor; got {mask.dtype}")


def layout_hint(shape: Sequence[int], channels: Sequence[int] = (3,)) -> str:
    """Say how clips of this shape become (B, C, T, H, W), where that can be guessed."""
    steps = {4: "For a single clip, add the axis B with `video[None]`"}
    if len(shape) == 5:
        if shape[1] == 1:
            steps[5] = "Expand gray clips to 3 channels with `video.expand(-1, 3, -1, -1, -1)`"
        elif shape[2] in channels:
            steps[5] = "For (B, T, C, H, W), use `video.permute(0, 2, 1, 3, 4)`"
        elif shape[4] in channels:
            steps[5] = "For (B, T, H, W, C), use `video.permute(0, 4, 1, 2, 3)`"
    return f". {steps[len(shape)]}" if len(shape) in steps else ""


def is_integer(value: object) -> bool:
    """Whether ``value`` is a whole number of Python or numpy, which True is not meant to be."""
    return hasattr(value, "__index__") and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number of Python or numpy, which True is not meant to be."""
    return hasattr(value, "__float__") and not isinstance(value, bool)


def check_at_least(least: int, **values: int) -> None:
    """Check integers, given by the names of their arguments."""
    for name, value in values.items():
        if not is_integer(value):
            raise TypeError(f"`{name}` must be an integer; got {value!r}")
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}")


def check_within(low: float, high: float, **values: float) -> None:
    """Check finite numbers, given by the names of their arguments."""
    for name, value in values.items():
        check_number(name, value)
        if not low <= value <= high or value == math.inf:
            bound = f"at least {low} and finite" if high == math.inf else f"in [{low}, {high}]"
            raise ValueError(f"`{name}` must be {bound}; got {value}")


def check_positive(name: str, value: float) -> None:
    """Check that a number is above zero and finite."""
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be above 0 and finite; got {value}")


def check_number(name: str, value: float) -> None:
    """Check that a value is a number."""
    if not is_number(value):
        raise TypeError(f"`{name}` must be a number; got {value!r}")


def check_temperature(temperature: float | Tensor) -> None:
    """Check a number above 0, or a tensor of one, whose value only the device knows."""
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    elif temperature.ndim or not temperature.is_floating_point():
        raise ValueError(
            "`temperature` must be a number, or a floating-point tensor of shape (); got "
            f"{temperature.dtype} of shape {tuple(temperature.shape)}"
        )


def check_chunk_size(chunk_size: _engine.ChunkSize) -> None:
    """Check how many keys a step of the streaming form shall take."""
    if chunk_size in (None, "dense"):
        return
    if not is_integer(chunk_size) or chunk_size < 1:  # type: ignore[operator]
        raise ValueError(f'`chunk_size` must be at least 1, "dense" or None; got {chunk_size!r}')


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Check that a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}; got {value!r}")


def computes_as(layer: object, kind: type) -> bool:
    """Whether a layer, of ``kind`` or of a class made from it, has that class's own arithmetic."""
    names = ("forward", "_conv_forward")
    return all(getattr(type(layer), name, None) is getattr(kind, name, None) for name in names)


def unit_rows(rows: Tensor) -> Tensor:
    """Scale the rows (..., D) to unit length, whatever finite length they have; 0 stays 0.

    Half precision becomes float32. Lengths are float64: the squares of entries from 2e19 on, or
    below 1e-23, leave the range of float32. Some entry of a row that is not finite becomes NaN.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if _is_at_hand(rows):  # a million rows of usual length need no further pass
        length: Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        if bool(((length > 1e-10) & (length < 1e10)).all()):
            return rows.div(length)
    if rows.dtype == torch.float64:
        rows, _ = _moderate(rows)
    if rows.requires_grad:  # whose gradient is finite for a row of zeros, too
        is_traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
        is_dual = forward_ad.unpack_dual(rows).tangent is not None  # type: ignore[no-untyped-call]
        unit: Tensor = (_unit if is_traced or is_dual else _Unit.apply)(rows)[0]
        return unit
    return _unit(rows)[0]


def unit_and_length(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scale constant rows, float32 or float64, as `unit_rows`; give their lengths as well."""
    if rows.dtype != torch.float64:
        return _unit(rows)
    rows, largest = _moderate(rows)
    unit, length = _unit(rows)
    return unit, length * largest


def _moderate(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Divide by the largest entry, no part of derivatives: float64 has no wider type."""
    largest = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=-1, keepdim=True)
    largest = largest.clamp(min=torch.finfo(torch.float64).tiny)
    return rows / largest, largest


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Give ``x / |x|`` and ``|x|``, which is 1 for a row of zeros."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float64)
    length = torch.threshold(length, 0.0, 1.0)
    if (
        rows.requires_grad
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
    ):
        return rows.div(length).to(rows.dtype), length
    return torch.div(rows, length, out=torch.empty_like(rows)), length  # one pass on a GPU


class _Unit(torch.autograd.Function):
    """`_unit` with half as many operations backward: a projection, ``(g - u (u . g)) / |x|``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> tuple[Tensor, Tensor]:
        unit, length = _unit(rows)
        ctx.save_for_backward(unit, length)
        ctx.set_materialize_grads(False)
        return unit, length

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, of_length: Tensor | None) -> Any:
        unit, length = ctx.saved_tensors
        grad = torch.zeros_like(unit) if grad is None else grad
        along = (unit * grad).sum(-1, keepdim=True)
        if of_length is not None:  # of a second derivative
            along = along - of_length * length
        return torch.addcmul(grad, unit, along, value=-1).div(length).to(unit.dtype)


def _is_at_hand(tensor: Tensor) -> bool:
    """Whether to read a value of a constant makes nobody wait: neither a device nor a tracer."""
    if not _engine.on_cpu(tensor) or tensor.requires_grad or torch.compiler.is_compiling():
        return False
    return type(tensor) is Tensor and not torch._C._are_functorch_transforms_active()


def normalize_alike(*tensors: Tensor, at_least: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Normalise rows in the widest dtype of all, at least float32."""
    dtype = common_dtype(*tensors, at_least=at_least)
    return tuple(unit_rows(tensor.to(dtype)) for tensor in tensors)


def common_dtype(*tensors: Tensor, at_least: torch.dtype = torch.float32) -> torch.dtype:
    """Give the widest dtype of all, at least float32."""
    dtype = torch.promote_types(at_least, torch.float32)
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def as_several(query: Tensor, positives: Tensor, name: str) -> Tensor:
    """Check positives (B, D) or (B, P, D) and return them as (B, P, D)."""
    batch, dim = (query.shape[0], "query"), (query.shape[1], "query")
    if isinstance(positives, Tensor) and positives.ndim == 3:
        check_embeddings(name, positives, "B P D", B=batch, D=dim)
        return positives
    check_embeddings(name, positives, "B D", B=batch, D=dim)
    return positives[:, None]


def _join(axes: list[str]) -> str:
    return ", ".join(axes) + ("," if len(axes) == 1 else "")
