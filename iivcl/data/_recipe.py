"""Which clips are taken of one video, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from iivcl._checks import check_choice
from iivcl.data._container import DecodeError
from iivcl.data._decode import check_decoding, decode_clips
from iivcl.data._reader import Source
from iivcl.data._sampling import (
    SHORT_POLICIES,
    ShortPolicy,
    check_clip,
    clip_indices,
    random_clip_starts,
    uniform_clip_starts,
)

__all__ = ["ClipRecipe", "check_recipe"]

_Sampling = Literal["random", "keyframes", "uniform"] | Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """Which clips are taken of one video, and how they are read.

    Args:
        num_frames: T, frames per clip.
        stride: Frames from one frame of a clip to the next.
        stride_seconds: The same in seconds, for sets that mix frame rates; instead of ``stride``.
        clips_per_video: V, clips per video.
        sampling: ``"random"`` for independent uniform starts; ``"keyframes"`` for the same moved
            back to keyframes, which decodes faster and varies less; ``"uniform"`` for starts
            spread evenly over the video, as in evaluation; or a function with the arguments of
            `random_clip_starts`, such as ``functools.partial(random_clip_starts, power=2.0)``.
        short: What fills a clip of a video that is too short, as in `clip_indices`.
        short_side: Scale to this many pixels on the shorter side while decoding, or None.
        approximate: Decode faster and not exactly, as in `read_clips`.

    Raises:
        ValueError: A number is out of range, or not exactly one of ``stride`` and
            ``stride_seconds`` is given.

    Example:
        >>> from iivcl.data import ClipRecipe
        >>> ClipRecipe(num_frames=8, stride=4, short_side=128).clips_per_video
        2
    """

    num_frames: int
    stride: float | None = None
    stride_seconds: float | None = None
    clips_per_video: int = 2
    sampling: _Sampling = "random"
    short: ShortPolicy = "loop"
    short_side: int | None = None
    approximate: bool = False

    def __post_init__(self) -> None:
        step = self.stride_seconds if self.stride is None else self.stride
        if step is None or None not in (self.stride, self.stride_seconds):
            raise ValueError(
                f"exactly one of `stride` and `stride_seconds` must be given; "
                f"got {self.stride} and {self.stride_seconds}"
            )
        if isinstance(self.sampling, str):
            check_choice("sampling", self.sampling, tuple(_SAMPLERS))
        check_choice("short", self.short, SHORT_POLICIES)
        check_clip(self.num_frames, step, self.clips_per_video)
        check_decoding(self.short_side, num_threads=1)

    def read(self, source: Source, generator: torch.Generator) -> Tensor:
        """Draw the clips of one video and read them."""
        draw = _SAMPLERS[self.sampling] if isinstance(self.sampling, str) else self.sampling
        at_keyframes = {"keyframes": source.keyframes} if self.sampling == "keyframes" else {}
        clip: dict[str, Any] = {
            "num_frames": self.num_frames,
            "stride": self._stride_in(source),
        }
        starts = draw(
            source.num_frames,
            clips_per_video=self.clips_per_video,
            generator=generator,
            **clip,
            **at_keyframes,
        )
        indices = clip_indices(starts, source.num_frames, short=self.short, **clip)
        return decode_clips(source, indices, self.short_side)

    def _stride_in(self, source: Source) -> float:
        if self.stride is not None:
            return self.stride
        assert self.stride_seconds is not None  # exactly one is given
        if source.fps > 0:  # not nan
            return self.stride_seconds * source.fps
        raise DecodeError(
            f"{source.name}: the frame rate is unknown, so `stride_seconds` has no meaning; "
            "give `stride` in frames"
        )


def check_recipe(recipe: ClipRecipe) -> ClipRecipe:
    """Check that a dataset was given a recipe."""
    if not isinstance(recipe, ClipRecipe):
        raise TypeError(
            f"`recipe` must be a ClipRecipe(num_frames=..., stride=...); got {recipe!r}"
        )
    return recipe


def _uniform(video_frames: int, *, generator: torch.Generator, **clip: Any) -> Tensor:
    return uniform_clip_starts(video_frames, **clip)


_SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "random": random_clip_starts,
    "keyframes": random_clip_starts,
    "uniform": _uniform,
}
