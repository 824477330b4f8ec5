"""Which engine executes a program: the one place that decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from iivcl.augment import _lazy
from iivcl.augment import _program as ops
from iivcl.augment import _reference as reference
from iivcl.augment._arguments import check_video
from iivcl.augment._batched import BATCHED, COMPILED, COMPILED_APART

__all__ = ["execute"]


def execute(program: ops.Program, video: Tensor) -> Tensor:
    """Run a program on a batch of clips.

    The reference means what is computed, and computes where derivatives are asked for. On a CPU
    clips take turns, read their numbers and compute their colours as late as possible. Elsewhere,
    and in a graph that is being traced, all clips go through at once and no number is read.

    Args:
        program: Operations with numbers for B clips, on any device.
        video: (B, C, T, H, W) uint8 or floating.

    Returns:
        (B, C, T, H', W').
    """
    check_video(video)
    ops.check_layout(program, video)
    ops.check_program(program, len(video))
    host = video.device.type == "cpu"  # which must wait for what comes to it
    program = ops.map_tensors(lambda value: value.to(video.device, non_blocking=not host), program)
    if torch.compiler.is_compiling():
        last = any(getattr(op, "memory_format", None) == torch.channels_last_3d for op in program)
        return reference.run(program, video, COMPILED_APART if last else COMPILED)
    if _wants_derivatives([video, *ops.tensors_of(program)]) or len(video) == 0:
        return reference.run(program, video)
    return _lazy.run(program, video) if host else reference.run(program, video, BATCHED)


def _wants_derivatives(tensors: Sequence[Tensor]) -> bool:
    backward = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    unpack: Any = forward_ad.unpack_dual
    return backward or any(unpack(tensor).tangent is not None for tensor in tensors)
