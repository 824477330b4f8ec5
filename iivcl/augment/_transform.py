"""What a transform is, and what all of them need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from iivcl.augment._lazy import LazyClip
from iivcl.augment.functional._clip import Rows, check_video

__all__ = ["Transform"]

Params = TypeVar("Params")

Parts = Sequence[Tensor]
"""A video (B, C, T, H, W) in one part or several along its channels."""


class Transform(nn.Module, Generic[Params]):
    """Base of all transforms: draw one set of parameters per clip, then apply it to all its frames.

    A subclass gives :meth:`make_params` and :meth:`apply`, and :meth:`output_size` when it changes
    height or width. Transforms keep no state between calls.
    """

    _by_channel = False  # whether no channel of the result depends on another channel

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for form in ("_apply_lazily", "_apply_to_parts", "_by_channel"):
            if "apply" in vars(cls) and form not in vars(cls):  # what it inherits is another's
                setattr(cls, form, getattr(Transform, form))

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> Params:
        """Draw the parameters of every clip.

        Args:
            video: (B, C, T, H, W); only its shape, dtype and device are read.
            generator: Source of randomness; by default that of the device of ``video``.

        Returns:
            Tensors whose first axis is B, on the device of ``video``; an empty tuple when nothing
            is random.
        """
        raise NotImplementedError

    def apply(self, video: Tensor, params: Params) -> Tensor:  # type: ignore[override]
        """Apply parameters that :meth:`make_params` drew.

        Args:
            video: (B, C, T, H, W) uint8 or floating.
            params: What :meth:`make_params` returned.

        Returns:
            (B, C, T, H', W').
        """
        raise NotImplementedError

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

    def _apply_lazily(self, clip: LazyClip, params: Params) -> None:
        """Apply the parameters of one clip, which may compute their effect later."""
        clip.replace(self.apply(clip.result(), params))

    def _apply_to_parts(self, parts: Parts, params: Params) -> Parts:
        """Apply the parameters to a video whose channels may lie apart: the form for a compiler.

        What is done to pixels then stays a chain of arithmetic, which a compiler turns into one
        pass over memory; a tensor of all channels in between would cut it.
        """
        return [self.apply(part, params) for part in (parts if self._by_channel else [join(parts)])]


def draw_uniform(
    video: Tensor,
    generator: torch.Generator | None,
    low: float = 0.0,
    high: float = 1.0,
    *,
    columns: int | None = None,
) -> Tensor:
    """Draw (B,) or (B, columns) numbers from [low, high) for the clips of ``video``."""
    shape = (video.shape[0],) if columns is None else (video.shape[0], columns)
    device = video.device if generator is None else generator.device
    unit = torch.rand(shape, device=device, generator=generator)
    return (low + (high - low) * unit).to(video.device, non_blocking=True)


def join(parts: Parts) -> Tensor:
    """Put the parts of a video together."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)


def planes_of(parts: Parts) -> list[Tensor]:
    """Take a video apart into its channels, (B, 1, T, H, W) each."""
    return [plane for part in parts for plane in torch.split(part, 1, dim=1)]


def take_clips(params: Any, rows: Rows) -> Any:
    """Take the parameters of some clips out of nested tuples of (B, ...) tensors."""
    if isinstance(params, Tensor):
        return params[rows]
    return like(params, (take_clips(value, rows) for value in params))


def like(params: tuple[Any, ...], values: Iterable[Any]) -> tuple[Any, ...]:
    """Make a tuple, or a named one, of the kind of ``params``."""
    return type(params)(*values) if hasattr(params, "_fields") else tuple(values)


def check_probability(p: float) -> float:
    """Return ``p``, or say that it is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"`p` must be in [0, 1]; got {p}")
    return p


def check_range(
    name: str, bounds: tuple[float, float], low: float, high: float = float("inf")
) -> tuple[float, float]:
    """Return ``bounds`` as two floats, or say that they are reversed or out of [low, high]."""
    first, last = (float(bound) for bound in bounds)
    if not low <= first <= last <= high:
        raise ValueError(
            f"`{name}` must be (low, high) with {low} <= low <= high <= {high}; got {bounds}"
        )
    return first, last
