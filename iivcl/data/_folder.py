"""A folder of images as a video."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence

import av
from av.video.frame import VideoFrame

from ._container import DecodeError, decode_errors

__all__ = ["IMAGE_SUFFIXES", "FrameFolder", "natural_key"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class FrameFolder:
    """A source whose frames are the images of a folder, in natural order of their names."""

    codec = "images"
    fps = float("nan")

    def __init__(self, path: str) -> None:
        self.name = path
        names = [entry for entry in os.listdir(path) if entry.lower().endswith(IMAGE_SUFFIXES)]
        if not names:
            raise DecodeError(f"{path}: the folder holds no images ({', '.join(IMAGE_SUFFIXES)})")
        self._names = sorted(names, key=natural_key)

    @property
    def num_frames(self) -> int:
        return len(self._names)

    @property
    def keyframes(self) -> list[int]:
        return list(range(self.num_frames))

    def frames(self, wanted: Sequence[int]) -> Iterator[VideoFrame]:
        if wanted[-1] >= self.num_frames:
            raise ValueError(
                f"`indices` must be below {self.num_frames}, the number of images in {self.name}; "
                f"got {wanted[-1]}"
            )
        for number in wanted:
            image = os.path.join(self.name, self._names[number])
            # From memory, so that neither a "%" in the name nor a wrong suffix means anything.
            with (
                decode_errors(image),
                open(image, "rb") as file,
                av.open(io.BytesIO(file.read()), metadata_errors="ignore") as container,
            ):
                frame = next(container.decode(video=0), None)
            if frame is None:
                raise DecodeError(f"{image}: the image is empty")
            yield frame

    def close(self) -> None:
        pass


def natural_key(name: str) -> list[tuple[int, str]]:
    """Order ``frame2`` before ``frame10``, and in one way what differs in leading zeros alone."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    key = [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]
    return [*key, (-1, name)]
