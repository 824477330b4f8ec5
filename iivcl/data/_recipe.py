"""Which clips are taken of a video and what is made of them: what all datasets of clips share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from iivcl._checks import check_choice

from ._container import DecodeError
from ._decode import check_decoding, decode_clips
from ._reader import Source
from ._sampling import (
    SHORT_POLICIES,
    ShortPolicy,
    check_clip,
    clip_indices,
    random_clip_starts,
    uniform_clip_starts,
)

__all__ = ["ClipRecipe", "Sampling"]

Sampling = Literal["random", "keyframes", "uniform"] | Callable[..., Tensor]
_Purpose = Literal["starts", "transform", "substitutes", "order"]
_PURPOSES = ("starts", "transform", "substitutes", "order")


@dataclass(frozen=True)
class ClipRecipe:
    """The arguments of `VideoClips` that say how clips are made, with the making.

    Everything random is drawn from (seed, address, purpose), where the address is the numbers that
    name one reading, such as the epoch and the index of the video.
    """

    num_frames: int
    stride: float | None
    stride_seconds: float | None
    clips_per_video: int
    sampling: Sampling
    short: ShortPolicy
    short_side: int | None
    approximate: bool
    transform: Callable[[Tensor], Any] | None
    seed: int

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
        if self.seed < 0:
            raise ValueError(f"`seed` must be at least 0; got {self.seed}")

    def read(self, source: Source, *address: int) -> Tensor:
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
            generator=self.generator("starts", *address),
            **clip,
            **at_keyframes,
        )
        indices = clip_indices(starts, source.num_frames, short=self.short, **clip)
        return decode_clips(source, indices, self.short_side)

    def finish(self, clips: Tensor, *address: int) -> Any:
        """Transform the clips; PyTorch's global random state comes from the address meanwhile."""
        if self.transform is None:
            return clips
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.generator("transform", *address).get_state())
            return self.transform(clips)

    def generator(self, purpose: _Purpose, *address: int) -> torch.Generator:
        """Seed a generator of its own for each purpose and address."""
        key = [self.seed, *address, _PURPOSES.index(purpose)]
        [state] = np.random.SeedSequence(key).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))

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


def _uniform(video_frames: int, *, generator: torch.Generator, **clip: Any) -> Tensor:
    return uniform_clip_starts(video_frames, **clip)


_SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "random": random_clip_starts,
    "keyframes": random_clip_starts,
    "uniform": _uniform,
}
