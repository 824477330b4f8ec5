"""Programs: what transforms do to a batch of clips, as plain values that print.

A program is a tuple of operations, executed from left to right. What differs between clips is a
tensor whose first axis is B, also which operations happen: ``Where``, ``InOrder`` and ``Choose``
are operations like others, so that nobody has to read them on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from iivcl._checks import check_mask, check_shape
from iivcl.augment._arguments import check_channels, check_numbers, check_statistics

__all__ = ["Blend", "Blur", "Call", "CenterCrop", "Choose", "Flip", "Gray", "Hue", "InOrder"]
__all__ += ["Layout", "Normalize", "OnFrames", "Program", "Resample", "ResizeShortSide", "Solarize"]
__all__ += ["ToFloat", "Where", "check_layout", "check_program", "map_tensors"]
__all__ += ["of_clip", "short_side_size", "tensors_of"]

Program = tuple[Any, ...]
"""Operations, each of a class below."""


class ToFloat(NamedTuple):
    """Turn 0..255 into floats within [0, 1]; floats keep their values."""

    dtype: torch.dtype


class Normalize(NamedTuple):
    """Subtract the mean of every channel and divide by its standard deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype | None = None  # of the result, by default that of the video


class Layout(NamedTuple):
    """Put the axes in an order in memory."""

    memory_format: torch.memory_format


class Resample(NamedTuple):
    """Cut a box out of every clip and resize it, bilinear with antialiasing."""

    boxes: Tensor  # (B, 4) top, left, height, width
    size: tuple[int, int]


class ResizeShortSide(NamedTuple):
    """Resize frames so that their short side has this size."""

    size: int

    def expand(self, video: Tensor) -> Program:
        """The same as a box: the whole frame."""
        height, width = video.shape[-2:]
        size = short_side_size(height, width, self.size)
        boxes = torch.zeros((len(video), 4), dtype=torch.int64, device=video.device)
        boxes[:, 2], boxes[:, 3] = height, width
        return () if size == (height, width) else (Resample(boxes, size),)


class CenterCrop(NamedTuple):
    """Cut the middle of every frame."""

    size: tuple[int, int]


class Flip(NamedTuple):
    """Mirror left to right."""


class Gray(NamedTuple):
    """Replace every pixel by its gray level."""


class Blend(NamedTuple):
    """Keep a share of every pixel, and take the rest from another picture."""

    factor: Tensor  # (B,), the share that is kept
    other: Literal["black", "mean", "gray"]  # of the frame: its mean gray level, its gray levels


class Hue(NamedTuple):
    """Turn the hue by a share of the colour circle."""

    shift: Tensor  # (B,)


class Solarize(NamedTuple):
    """Invert the pixels at or above a share of the range."""

    threshold: Tensor  # (B,)


class Blur(NamedTuple):
    """Blur every frame with a Gaussian."""

    sigma: Tensor  # (B,) pixels
    kernel_size: int


class OnFrames(NamedTuple):
    """Call a function of frames (N, C, H, W), which are those of all the clips."""

    name: str
    function: Callable[[Tensor, float], Tensor]
    level: float

    def __repr__(self) -> str:
        return f"OnFrames({self.name}, level={self.level:.4g})"


class Where(NamedTuple):
    """Run a program on some of the clips; it keeps their shape and dtype."""

    where: Tensor  # (B,) bool
    program: Program


class InOrder(NamedTuple):
    """Run all of the programs, in an order that every clip has of its own."""

    order: Tensor  # (B, number of programs), which program runs at each turn
    programs: tuple[Program, ...]

    def expand(self, video: Tensor) -> Program:
        """The same as a choice for each turn."""
        return tuple(Choose(turn, self.programs) for turn in self.order.unbind(1))


class Choose(NamedTuple):
    """Run one of the programs on every clip."""

    which: Tensor  # (B,) int64
    programs: tuple[Program, ...]

    def expand(self, video: Tensor) -> Program:
        """The same as choices that exclude each other."""
        return tuple(Where(self.which == i, own) for i, own in enumerate(self.programs) if own)


class Call(NamedTuple):
    """Call ``transform.apply(video, params)``, whatever that does."""

    transform: Any
    params: Any


_SHAPES = {"boxes": "B 4", "order": "B N", "which": "B"}
_BOUNDS = {
    "factor": (0, torch.inf),
    "shift": (-0.5, 0.5),
    "sigma": (1e-6, torch.inf),
    "threshold": (-torch.inf, torch.inf),
}


def check_program(program: Program, num_clips: int) -> None:
    """Check the numbers of every operation; its pixels are checked when they are there."""
    batch = num_clips, "video"
    for op in program:
        for name in type(op)._fields:
            value = getattr(op, name)
            if name in _SHAPES:
                check_shape(name, value, _SHAPES[name], B=batch)
            elif name in _BOUNDS:
                check_numbers(name, value, num_clips, *_BOUNDS[name])
            elif name == "where":
                check_shape(name, value, "B", B=batch)
                check_mask(name, value, "B")
        for own in _inner(op):
            check_program(own, num_clips)


def check_layout(program: Program, video: Tensor) -> bool:
    """Check channels while the video is whole as it was given, up to a transform of one's own."""
    for op in program:
        if isinstance(op, (Blend, Gray, Hue, OnFrames, Solarize)):
            check_channels(video)
        elif isinstance(op, Normalize):
            check_statistics(video, op.mean, op.std)
        if isinstance(op, Call) or not all(check_layout(own, video) for own in _inner(op)):
            return False
    return True


def _inner(op: Any) -> Sequence[Program]:
    """The programs that an operation runs."""
    return (op.program,) if isinstance(op, Where) else getattr(op, "programs", ())


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the short side has ``size`` pixels."""
    short = min(height, width)
    return int(size * height / short), int(size * width / short)


def tensors_of(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples, and the parameters of transforms of one's own in them."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, nn.Module):
        return list(tree.parameters())
    return [t for value in tree for t in tensors_of(value)] if isinstance(tree, tuple) else []


def map_tensors(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Replace the tensors in nested tuples."""
    if isinstance(tree, Tensor):
        return change(tree)
    if not isinstance(tree, tuple):
        return tree
    values = [map_tensors(change, value) for value in tree]
    return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)


def of_clip(program: Program, i: int) -> Program:
    """The program of one clip of the batch."""
    own: Program = map_tensors(lambda value: value[i : i + 1], program)
    return own
