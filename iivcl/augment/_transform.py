"""What a transform is, and how it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from iivcl.augment._arguments import check_video
from iivcl.augment._constants import constant
from iivcl.augment._engine import execute
from iivcl.augment._program import Call, Program, tensors_of

__all__ = ["Drawn", "Range", "Transform", "chance", "program_of", "read"]

Params = TypeVar("Params")

Range = tuple[float, float]
"""Numbers from the first to below the last."""


class Transform(nn.Module, Generic[Params]):
    """Base of all transforms: draw one set of parameters per clip, then apply it to all its frames.

    A subclass of your own gives :meth:`make_params` and :meth:`apply`, and :meth:`output_size` when
    it changes height or width. Transforms keep no state between calls.
    """

    _has_own_apply = False  # noted here, since torch 2.4 cannot compile the comparison

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._has_own_apply = cls.apply is not Transform.apply

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> Params:
        """Draw the parameters of every clip.

        Args:
            video: (B, C, T, H, W); only its shape, dtype and device are read.
            generator: Source of randomness; by default that of the device of ``video``.

        Returns:
            Tensors whose first axis is B, on the device of ``video``, in nested tuples; an empty
            one when nothing is random.
        """
        return self._read(_draw(self._ranges(), video, generator))

    def apply(self, video: Tensor, params: Params) -> Tensor:  # type: ignore[override]
        """Apply parameters that :meth:`make_params` drew.

        Args:
            video: (B, C, T, H, W) uint8 or floating.
            params: What :meth:`make_params` returned, or the same rows of all its tensors.

        Returns:
            (B, C, T, H', W').
        """
        check_video(video)
        for values in tensors_of(params):
            if len(values) != len(video):
                raise ValueError(
                    f"`params` must hold one entry for each of the {len(video)} clips of `video`; "
                    f"got {len(values)}"
                )
        return execute(self.describe(params), video)

    def describe(self, params: Params) -> Program:
        """Say what is done to the clips, as a program of operations that prints.

        Args:
            params: What :meth:`make_params` returned.

        Returns:
            Operations in the order of their execution.
        """
        raise NotImplementedError(f"{type(self).__name__} must have `apply` or `describe`")

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for frames of this height and width."""
        return height, width

    def forward(self, video: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw parameters and apply them.

        Args:
            video: (B, C, T, H, W) uint8 or floating.
            generator: Source of randomness; the global one stays untouched when it is given.

        Returns:
            (B, C, T, H', W').
        """
        check_video(video)
        return self.apply(video, self.make_params(video, generator))

    def _ranges(self) -> Sequence[Range]:
        """Ranges of the uniform numbers that a clip takes."""
        return ()

    def _read(self, drawn: Drawn) -> Params:
        """Turn these numbers into parameters."""
        return ()  # type: ignore[return-value]


def program_of(transform: Transform[Any], params: Any) -> Program:
    """What a transform does; one with an ``apply`` of its own is called."""
    if transform._has_own_apply:
        return (Call(transform, params),)
    return transform.describe(params)


# --- drawing -------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """The random numbers of a batch, one row per clip, of which each transform reads columns."""

    values: Tensor  # (B, n), uniform over the ranges asked for
    negative: Tensor  # (B, n) bool, whether they are below 0: for the ranges of `chance`
    video: Tensor  # that of the pipeline
    size: tuple[int, int]  # height and width that the transform will see
    generator: torch.Generator | None
    first: int = 0  # column of the transform

    def numbers(self, count: int) -> Tensor:
        """The first of the numbers (B, count)."""
        return self.values.narrow(1, self.first, count)

    def chances(self, count: int) -> Tensor:
        """Whether the first of the chances come true, (B, count) bool."""
        return self.negative.narrow(1, self.first, count)

    def after(self, count: int, size: tuple[int, int] | None = None) -> Drawn:
        """What is left after ``count`` numbers, for frames of a size."""
        # torch 2.4 cannot compile `_replace`.
        return Drawn(*self[:3], size or self.size, self.generator, self.first + count)


def _draw(ranges: Sequence[Range], video: Tensor, generator: torch.Generator | None) -> Drawn:
    """Draw all the numbers at once: on a GPU every operation on a few numbers costs a launch."""
    device = video.device if generator is None else generator.device
    shape, size = (len(video), len(ranges)), (video.shape[-2], video.shape[-1])
    unit = torch.rand(shape, device=device, dtype=torch.float32, generator=generator)
    unit = unit.to(video.device, non_blocking=video.device.type != "cpu")
    low_and_length = constant(tuple((low, high - low) for low, high in ranges), unit)
    low, length = low_and_length.view(len(ranges), 2).unbind(1)  # (n,)
    values = torch.addcmul(low, unit, length)
    return Drawn(values, values < 0, video, size, generator)


def chance(p: float) -> Range:
    """A range whose numbers are below 0 with probability ``p``."""
    return -p, 1 - p


def read(transform: Transform[Any], drawn: Drawn) -> Any:
    """Parameters of a transform; one with a ``make_params`` of its own draws them now."""
    if type(transform).make_params is not Transform.make_params:
        # It sees a stand-in of the size that the video will have then, which holds one number.
        stand_in = drawn.video[..., :1, :1].expand(*drawn.video.shape[:-2], *drawn.size)
        return transform.make_params(stand_in, drawn.generator)
    return transform._read(drawn)
