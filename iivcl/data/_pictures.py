"""Pictures as a video: a folder of images, or an array."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from iivcl.data._container import DecodeError, decode_errors, open_input
from iivcl.data._index import Clock
from iivcl.data._pixels import Picture
from iivcl.data._video import Video

__all__ = ["IMAGE_SUFFIXES", "Pictures", "natural_key", "open_array", "open_folder"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


class Pictures(Video):
    """Pictures, each of which ``decode`` makes of an item; they have no times."""

    def __init__(
        self, name: str, codec: str, items: Sequence[Any], decode: Callable[[Any], Picture]
    ) -> None:
        self.name, self.codec = name, codec
        self._items, self._decode = items, decode

    @property
    def num_frames(self) -> int:
        return len(self._items)

    @property
    def keyframes(self) -> list[int]:
        return list(range(self.num_frames))

    @property
    def _clock(self) -> Clock:
        return Clock(np.full(self.num_frames, np.nan), np.nan)

    def _frames(self, wanted: Sequence[int]) -> Iterator[Picture]:
        return (self._decode(self._items[number]) for number in wanted)


def open_array(array: npt.NDArray[np.uint8], name: str | None) -> Video:
    """Open an array (T, H, W, C) uint8, RGB."""
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(f"`video` must have shape (T, H, W, 3), all at least 1; got {array.shape}")
    if array.dtype != np.uint8:
        raise TypeError(f"`video` must be uint8; got {array.dtype}")

    def decode(image: npt.NDArray[np.uint8]) -> Picture:
        return VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"), 1

    return Pictures(name or f"<array of {array.shape}>", "array", array, decode)  # type: ignore[arg-type]


def open_folder(folder: str, name: str) -> Video:
    """Open the images of a folder, in natural order of their names."""
    # Hidden files are no images: macOS puts "._frame1.jpg" beside "frame1.jpg".
    names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_SUFFIXES) and n[0] != "."]
    if not names:
        raise DecodeError(f"{name}: the folder holds no images ({', '.join(IMAGE_SUFFIXES)})")
    paths = [os.path.join(folder, n) for n in sorted(names, key=natural_key)]
    return Pictures(name, "images", paths, _decode_image)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Order ``frame2`` before ``frame10``, and in one way what differs in leading zeros alone."""
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn
    key = [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]
    return [*key, (-1, name)]


_JPEG = b"\xff\xd8"
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)  # but those within a scan
_JPEG_END = b"\xd9"


def _decode_image(path: str) -> Picture:
    with decode_errors(path):
        with open(path, "rb") as file:
            content = file.read()
        if content.startswith(_JPEG):
            end = _jpeg_end(content)
            if end is None:
                raise DecodeError(f"{path}: the image is cut off")
            content = content[:end]
        # From memory, so that neither a "%" in the name nor a wrong suffix means anything.
        with open_input(io.BytesIO(content)) as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}  # or what is missing is gray
            frame = next(container.decode(stream), None)
    if frame is None:
        raise DecodeError(f"{path}: the image is empty")
    return frame, _exif_orientation(content)


def _jpeg_end(content: bytes) -> int | None:
    """Find where the image ends; phones put a film behind it."""
    place = len(_JPEG)
    while marker := _JPEG_MARKER.search(content, place):
        if marker[1] == _JPEG_END:
            return marker.end()
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return None


def _exif_orientation(image: bytes) -> int:
    """Read the orientation of a JPEG or PNG image, 1 to 8; 1 where it says none."""
    mark = b"eXIf" if image.startswith(b"\x89PNG") else b"Exif\0\0"  # a TIFF structure follows it
    tiff = image.partition(mark)[2]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        if order is not None:
            [directory] = struct.unpack_from(f"{order}I", tiff, 4)
            [count] = struct.unpack_from(f"{order}H", tiff, directory)
            for entry in range(directory + 2, directory + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
                if tag == 0x0112 and 1 <= value <= 8:
                    return int(value)
    except struct.error:  # it ends before what it announces
        pass
    return 1
