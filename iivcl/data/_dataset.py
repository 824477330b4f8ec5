"""A map-style dataset of clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from iivcl._checks import check_choice, check_positive

from ._container import StrPath
from ._decode import read_clips
from ._probe import probe
from ._sampling import clip_indices, random_clip_starts, uniform_clip_starts

__all__ = ["VideoClips"]

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".ogv", ".ts", ".webm", ".wmv",
})
# fmt: on


class VideoClips(Dataset[tuple[Any, int]]):
    """Clips of videos, one video per index.

    The clips of a video depend on (``seed``, epoch, index) alone: not on the number of workers or
    ranks, nor on the order of reading. The transform runs with PyTorch's global random state
    seeded from the same three numbers and put back afterwards, so what it draws is as repeatable.

    Args:
        paths: Video files, or a folder, which is searched for video files at every depth.
        num_frames: T, frames per clip.
        stride: Frames from one frame of a clip to the next.
        clips_per_video: V, clips per video.
        sampling: ``"random"`` for independent uniform starts, ``"uniform"`` for starts spread
            evenly over the video, as in evaluation.
        short: What fills a clip of a video that is too short, as in `clip_indices`.
        short_side: Scale to this many pixels on the shorter side while decoding, or None.
        transform: Called with the (V, C, T, H, W) uint8 clips; its result is returned instead.
        on_error: ``"raise"`` raises the `DecodeError`.
        seed: Seed of the clip starts and of the transform.

    Returns:
        Of ``dataset[index]``: (clips, index), clips (V, C, T, H, W) uint8 or whatever
        ``transform`` makes of them.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: There are no videos, or an argument is out of range.

    Example:
        >>> import tempfile
        >>> from iivcl.data import VideoClips, make_synthetic_videos
        >>> paths = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 3)
        >>> dataset = VideoClips(paths, num_frames=4, stride=2, short_side=32)
        >>> clips, index = dataset[2]
        >>> clips.shape, index
        (torch.Size([2, 3, 4, 32, 32]), 2)
    """

    def __init__(
        self,
        paths: StrPath | Sequence[StrPath],
        *,
        num_frames: int,
        stride: float,
        clips_per_video: int = 2,
        sampling: Literal["random", "uniform"] = "random",
        short: Literal["loop", "clamp", "mirror", "error"] = "loop",
        short_side: int | None = None,
        transform: Callable[[Tensor], Any] | None = None,
        on_error: Literal["raise"] = "raise",
        seed: int = 0,
    ) -> None:
        check_choice("sampling", sampling, ("random", "uniform"))
        check_choice("on_error", on_error, ("raise",))
        check_choice("short", short, ("loop", "clamp", "mirror", "error"))
        for name, value in (("num_frames", num_frames), ("clips_per_video", clips_per_video)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}")
        check_positive("stride", stride)
        # One array instead of N str objects, whose reference counts would make every forked
        # worker copy the memory that they lie in.
        self._paths = np.array([os.fsencode(path) for path in _find_videos(paths)])
        # In shared memory, so that persistent workers see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._num_frames = num_frames
        self._stride = stride
        self._clips_per_video = clips_per_video
        self._sampling = sampling
        self._short = short
        self._short_side = short_side
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """Return the path of one video."""
        return os.fsdecode(self._paths[index])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose clips come next, in running workers as well."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        index = range(len(self))[index]  # negative indices, and IndexError behind the end
        path = self.path(index)
        generator = self._generator(index)
        indices = self._indices(probe(path).num_frames, generator)
        clips = read_clips(path, indices, short_side=self._short_side)
        if self._transform is None:
            return clips, index
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            return self._transform(clips), index

    def _indices(self, video_frames: int, generator: torch.Generator) -> Tensor:
        num_frames, stride, clips = self._num_frames, self._stride, self._clips_per_video
        if self._sampling == "random":
            starts = random_clip_starts(
                video_frames,
                num_frames=num_frames,
                stride=stride,
                clips_per_video=clips,
                generator=generator,
            )
        else:
            starts = uniform_clip_starts(
                video_frames, num_frames=num_frames, stride=stride, clips_per_video=clips
            )
        return clip_indices(
            starts, video_frames, num_frames=num_frames, stride=stride, short=self._short
        )

    def _generator(self, index: int) -> torch.Generator:
        state = np.random.SeedSequence([self._seed, int(self._epoch), index])
        return torch.Generator().manual_seed(int(state.generate_state(1, np.uint64)[0] >> 1))


def _find_videos(paths: StrPath | Sequence[StrPath]) -> list[StrPath]:
    if not isinstance(paths, (str, os.PathLike)):
        if not paths:
            raise ValueError("`paths` is empty: give at least one video file, or a folder")
        return list(paths)
    root = Path(paths)
    if not root.exists():
        raise FileNotFoundError(f"`paths`: no such file or folder: {root}")
    if root.is_file():
        return [root]
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not found:
        raise ValueError(f"`paths`: no video files in {root}; looked for {sorted(VIDEO_SUFFIXES)}")
    return list(found)
