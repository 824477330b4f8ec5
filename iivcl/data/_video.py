"""An open video, whatever it is kept in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from typing_extensions import Self

from iivcl._checks import check_at_least, check_choice
from iivcl.data._container import DecodeError, decode_errors
from iivcl.data._index import Clock
from iivcl.data._pixels import Picture, rgb_planes, shown_size, transposes
from iivcl.data._sampling import check_numbers

__all__ = ["PixelAspect", "Video", "VideoInfo", "check_indices", "check_reading"]

PixelAspect = Literal["stored", "square"]


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds.

    Attributes:
        num_frames: Frames that the decoder returns; headers often say another number.
        fps: Frames per second, on average; nan where the source does not tell, as a folder of
            images.
        height: Height in pixels as shown, after rotation.
        width: Width in pixels as shown, after rotation.
        codec: Name of the codec.
        constant_rate: Whether all frames are shown for as long.
        orientation: How the frames lie in the file, as EXIF numbers it: 1 as shown, 2 mirrored, 3
            upside down, 4 both, 5 to 8 with rows for columns.
        pixel_aspect: Width over height of a pixel as shown.

    Example:
        >>> from iivcl.data import VideoInfo
        >>> VideoInfo(num_frames=24, fps=12.0, height=48, width=64, codec="h264").duration_seconds
        2.0
    """

    num_frames: int
    fps: float
    height: int
    width: int
    codec: str
    constant_rate: bool = True
    orientation: int = 1
    pixel_aspect: float = 1.0

    @property
    def duration_seconds(self) -> float:
        """Time from the beginning of the first frame to the end of the last."""
        return self.num_frames / self.fps


class Video(ABC):
    """An open video; made by `open_video`, and closed by `close` or at the end of a ``with``.

    A kind of video says what it is kept in: it numbers its frames in the order in which they
    decode, and finds them.

    Attributes:
        name: Its name in messages.
        codec: Name of the codec.

    Example:
        >>> import numpy as np
        >>> from iivcl.data import open_video
        >>> with open_video(np.zeros((6, 32, 48, 3), np.uint8)) as video:
        ...     video.num_frames, video.size, video.read([[0, 2, 4]]).shape
        (6, (32, 48), torch.Size([1, 3, 3, 32, 48]))
    """

    name: str
    codec: str
    _counts_without_decoding = True
    _is_closed = False
    _stored_aspect = Fraction(1)  # width over height of a pixel as it lies

    @property
    @abstractmethod
    def num_frames(self) -> int:
        """Frames that can be decoded; where only decoding tells, all are decoded once."""

    @property
    @abstractmethod
    def keyframes(self) -> list[int]:
        """Frames, ascending from 0, at which decoding can start."""

    @property
    @abstractmethod
    def _clock(self) -> Clock:
        """When the frames are shown."""

    @abstractmethod
    def _frames(self, wanted: Sequence[int]) -> Iterator[Picture]:
        """Decode the frames ``wanted``, which ascend, up to the first that is not there."""

    def close(self) -> None:
        """Release the file; nothing more can be read."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def times(self) -> Tensor:
        """(N,) float64 seconds from the first frame to each; nan where the source has no times."""
        return torch.from_numpy(self._clock.times)

    @property
    def fps(self) -> float:
        """Frames per second, on average; nan where the source has no times."""
        return self._clock.fps

    @property
    def constant_rate(self) -> bool:
        """Whether all frames are shown for as long, up to the rounding of the file."""
        return self._clock.constant

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame, as shown."""
        return shown_size(self._first)

    @property
    def orientation(self) -> int:
        """How the first frame lies, as EXIF numbers it."""
        return self._first[1]

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a pixel, as shown."""
        aspect = self._stored_aspect
        return float(1 / aspect if transposes(self.orientation) else aspect)

    @property
    def info(self) -> VideoInfo:
        """All of it, as `probe` gives it."""
        height, width = self.size
        shown = self.constant_rate, self.orientation, self.pixel_aspect
        return VideoInfo(self.num_frames, self.fps, height, width, self.codec, *shown)

    def read(
        self,
        indices: Tensor | Sequence[Sequence[int]],
        *,
        short_side: int | None = None,
        pixels: PixelAspect = "stored",
    ) -> Tensor:
        """Read exactly the frames asked for, as `read_clips` does.

        Args:
            indices: (V, T) frame indices, each in [0, ``num_frames``).
            short_side: Scale to this many pixels on the shorter side, or None.
            pixels: ``"square"`` scales the width by the aspect of the pixels.

        Returns:
            (V, C, T, H, W) uint8.

        Raises:
            DecodeError: A frame asked for cannot be decoded.
            ValueError: An index is outside the video, an argument is out of range, or the video is
                closed.
        """
        self._check_open()
        indices = check_indices(indices)
        check_reading(short_side, pixels)
        places: dict[int, list[tuple[int, int]]] = {}  # of every frame among the clips
        for v, clip in enumerate(indices.tolist()):
            for t, number in enumerate(clip):
                places.setdefault(number, []).append((v, t))
        wanted = sorted(places)
        if self._counts_without_decoding:
            self._check_inside(wanted)
        aspect = self._stored_aspect if pixels == "square" else Fraction(1)
        reformatter, found = VideoReformatter(), 0
        clips: npt.NDArray[np.uint8] | None = None
        with decode_errors(self.name):
            for picture in self._frames(wanted):
                if clips is None:
                    height, width = shown_size(picture, short_side, aspect)
                    clips = np.empty((len(indices), 3, indices.shape[1], height, width), np.uint8)
                planes = rgb_planes(reformatter, picture, height, width)
                for v, t in places[wanted[found]]:
                    for channel, plane in enumerate(planes):
                        clips[v, channel, t] = plane
                found += 1
        if clips is None or found < len(wanted):
            self._check_inside(wanted)
            raise DecodeError(f"{self.name}: frame {wanted[found]} cannot be decoded")
        return torch.from_numpy(clips)

    @cached_property
    def _first(self) -> Picture:
        self._check_open()
        with decode_errors(self.name):
            picture = next(self._frames([0]), None)
        if picture is None:
            raise DecodeError(f"{self.name}: frame 0 cannot be decoded")
        return picture

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"{self.name} is closed; open it again to read it")

    def _check_inside(self, wanted: Sequence[int]) -> None:
        if wanted[-1] >= self.num_frames:
            raise ValueError(
                f"`indices` must be below {self.num_frames}, the number of frames of {self.name}; "
                f"got {wanted[-1]}"
            )


def check_reading(short_side: int | None, pixels: PixelAspect) -> None:
    """Check what says how to read."""
    check_at_least(1, short_side=1 if short_side is None else short_side)
    check_choice("pixels", pixels, get_args(PixelAspect))


def check_indices(indices: Tensor | Sequence[Sequence[int]]) -> Tensor:
    """Check that indices are integers (V, T), on the CPU."""
    indices = torch.as_tensor(indices, device="cpu")
    if indices.ndim != 2 or indices.numel() == 0:
        raise ValueError(
            f"`indices` must have shape (V, T), both at least 1; got {tuple(indices.shape)}"
        )
    check_numbers("indices", indices)
    return indices
