"""Which clips are taken of one video, how they are read, and what chance decides about them."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from iivcl._checks import check_at_least, check_choice
from iivcl.data._container import DecodeError
from iivcl.data._index_cache import IndexPlace
from iivcl.data._sampling import (
    ShortPolicy,
    check_clip,
    check_starts,
    clip_indices,
    clip_indices_in_time,
    last_not_behind,
    move_to_keyframes,
    random_clip_starts,
    uniform_clip_starts,
)
from iivcl.data._video import PixelAspect, Video, check_reading

__all__ = ["ClipRecipe", "Draws"]

_Sampling = Literal["random", "keyframes", "uniform"] | Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class ClipRecipe:
    """Which clips are taken of one video, and how they are read.

    Args:
        num_frames: T, frames per clip.
        stride: Frames from one frame of a clip to the next.
        stride_seconds: The same in seconds, for sets that mix frame rates; instead of ``stride``.
            Frames are those nearest in time, also where a video's rate varies.
        clips_per_video: V, clips per video.
        sampling: ``"random"`` for independent uniform starts; ``"keyframes"`` for the same moved
            back to keyframes, which decodes faster and varies less; ``"uniform"`` for starts
            spread evenly over the video, as in evaluation; or a function with the arguments of
            `random_clip_starts`, such as ``functools.partial(random_clip_starts, power=2.0)``.
        short: What fills a clip of a video that is too short, as in `clip_indices`; with
            ``"error"`` it counts as one that cannot be read.
        short_side: Scale to this many pixels on the shorter side while decoding, or None.
        pixels: ``"stored"``, or ``"square"`` as in `read_clips`.
        approximate: Decode faster and not exactly, as in `read_clips`.
        keep_index: ``"memory"``, or ``"file"`` as in `open_video`, for long videos.

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
    pixels: PixelAspect = "stored"
    approximate: bool = False
    keep_index: IndexPlace = "memory"

    def __post_init__(self) -> None:
        both = {"stride": self.stride, "stride_seconds": self.stride_seconds}
        given = {name: value for name, value in both.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"exactly one of `stride` and `stride_seconds` must be given; "
                f"got {self.stride} and {self.stride_seconds}"
            )
        if not callable(self.sampling):
            check_choice("sampling", self.sampling, ("random", "keyframes", "uniform"))
        check_choice("short", self.short, get_args(ShortPolicy))
        check_clip(self.num_frames, self.clips_per_video, **given)
        check_reading(self.short_side, self.pixels)
        check_choice("keep_index", self.keep_index, get_args(IndexPlace))

    def indices(self, video: Video, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the frames of the clips of one video.

        Args:
            video: The open video.
            generator: Source of randomness; the global one when None.

        Returns:
            (V, T) int64, each in [0, ``video.num_frames``).

        Raises:
            DecodeError: ``short="error"`` and a clip does not fit; or ``stride_seconds`` is given,
                and the video does not tell its rate.
            ValueError: ``sampling`` gives starts below 0.
        """
        clip: dict[str, Any] = {"num_frames": self.num_frames, "stride": self.stride}
        if self.stride_seconds is not None:
            clip["stride"] = self.stride_seconds * video.fps
            if math.isnan(video.fps):
                raise DecodeError(
                    f"{video.name}: the frame rate is unknown, so `stride_seconds` has no meaning; "
                    "give `stride` in frames"
                )
        n = video.num_frames
        if self.sampling == "uniform":
            starts = uniform_clip_starts(n, clips_per_video=self.clips_per_video, **clip)
        else:
            draw = self.sampling if callable(self.sampling) else random_clip_starts
            starts = draw(n, clips_per_video=self.clips_per_video, generator=generator, **clip)
        check_starts(starts)
        if in_time := self.stride_seconds is not None and not video.constant_rate:
            # They are those of a steady video of the same length: what is shown then here.
            starts = last_not_behind(video.times, starts / video.fps)
            clip["stride"] = self.stride_seconds
        if self.sampling == "keyframes":
            starts = move_to_keyframes(starts, video.keyframes)
        try:
            if in_time:
                times, fps = video.times, video.fps
                return clip_indices_in_time(starts, times, fps, short=self.short, **clip)
            return clip_indices(starts, n, short=self.short, **clip)
        except ValueError as error:  # it is too short
            raise DecodeError(f"{video.name}: {error}") from error

    def read(self, video: Video, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw the clips of one video, and read them.

        Args:
            video: The open video; ``approximate`` is for whoever opens it.
            generator: Source of randomness; the global one when None.

        Returns:
            (V, C, T, H, W) uint8.

        Raises:
            DecodeError: A frame cannot be decoded, or as in `indices`.
            ValueError: As in `indices`.

        Example:
            >>> import numpy as np
            >>> from iivcl.data import ClipRecipe, open_video
            >>> with open_video(np.zeros((30, 32, 48, 3), np.uint8)) as video:
            ...     ClipRecipe(num_frames=4, stride=2).read(video).shape
            torch.Size([2, 3, 4, 32, 48])
        """
        indices = self.indices(video, generator=generator)
        return video.read(indices, short_side=self.short_side, pixels=self.pixels)


_Purpose = Literal["starts", "transform", "substitutes", "order"]

_turns = threading.RLock()  # a transform may itself read a sample
if hasattr(os, "register_at_fork"):  # a forked worker must not wait for threads left behind
    os.register_at_fork(after_in_child=_turns._at_fork_reinit)  # type: ignore[attr-defined]


class Draws:
    """Clips of videos, each drawn and transformed by (seed, address) alone.

    The address is the numbers that name one reading, such as the epoch and the index of the video.
    """

    def __init__(
        self, recipe: ClipRecipe, transform: Callable[[Tensor], Any] | None, seed: int
    ) -> None:
        if not isinstance(recipe, ClipRecipe):
            raise TypeError(
                f"`recipe` must be a ClipRecipe(num_frames=..., stride=...); got {recipe!r}"
            )
        check_at_least(0, seed=seed)
        self.recipe, self._transform, self._seed = recipe, transform, seed

    def generator(self, purpose: _Purpose, *address: int) -> torch.Generator:
        """Seed a generator of its own for each purpose and address."""
        key = [self._seed, *address, get_args(_Purpose).index(purpose)]
        [state] = np.random.SeedSequence(key).generate_state(1, np.uint64)
        return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))

    def read(self, video: Video, *address: int) -> Tensor:
        """Draw the clips of an open video, and read them."""
        return self.recipe.read(video, generator=self.generator("starts", *address))

    def transform(self, clips: Tensor, *address: int) -> Any:
        """Transform clips; PyTorch's global random state comes from the address meanwhile.

        There is one such state in a process, so that its threads take turns.
        """
        if self._transform is None:
            return clips
        with _turns, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.generator("transform", *address).get_state())
            return self._transform(clips)
