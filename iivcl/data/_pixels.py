"""From decoded frames to pixels as shown: turned upright, scaled, RGB."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

__all__ = ["Picture", "frame_orientation", "rgb_planes", "shown_size", "transposes"]

Picture = tuple[VideoFrame, int]  # as it lies, and its orientation

# EXIF's numbers 1 to 8: whether to transpose, and then to flip the rows and the columns.
_ORIENTATIONS = (
    *((False, False, False), (False, False, True), (False, True, True), (False, True, False)),
    *((True, False, False), (True, False, True), (True, True, True), (True, True, False)),
)
# Planar RGB is what (C, T, H, W) needs. Accurate rounding also keeps swscale off its unscaled
# fast path, which leaves the last columns unwritten where the width is no multiple of 8.
_SCALING = 0x2 | 0x40000  # SWS_BILINEAR | SWS_ACCURATE_RND, which older PyAV does not name


def frame_orientation(frame: VideoFrame) -> int:
    """Give the orientation that the frame's display matrix asks for, as EXIF numbers it.

    The matrix ((a, b), (c, d)) moves a pixel from (x, y) to (a x + c y, b x + d y). Of angles
    between, the nearest quarter of a turn counts.
    """
    try:
        # As frame.side_data, which the frame would keep in a circle until the next collection.
        data: Any = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    except ValueError:  # PyAV refuses them all where it does not know one; flips are not seen
        return (1, 8, 3, 6)[round(frame.rotation / 90) % 4]
    if data is None:
        return 1
    a, b, _, c, d = struct.unpack_from("=5i", data)
    transpose = abs(a) + abs(d) < abs(b) + abs(c)
    flips = (b < 0, c < 0) if transpose else (d < 0, a < 0)
    return _ORIENTATIONS.index((transpose, *flips)) + 1


def transposes(orientation: int) -> bool:
    """Whether rows become columns."""
    return _ORIENTATIONS[orientation - 1][0]


def shown_size(
    picture: Picture, short_side: int | None = None, pixel_aspect: Fraction = Fraction(1)
) -> tuple[int, int]:
    """Give the height and width of a picture as shown, scaled to ``short_side``.

    ``pixel_aspect`` is that of the pixels as they lie; the width is stretched by it.
    """
    frame, orientation = picture
    size = frame.height, max(1, round(frame.width * pixel_aspect))
    height, width = size[::-1] if transposes(orientation) else size
    short = min(height, width)
    scale = short if short_side is None else short_side
    return scale * height // short, scale * width // short


def rgb_planes(
    reformatter: VideoReformatter, picture: Picture, height: int, width: int
) -> list[npt.NDArray[np.uint8]]:
    """Convert, scale and turn one picture to three (H, W) planes."""
    frame, orientation = picture
    transpose, flip_rows, flip_columns = _ORIENTATIONS[orientation - 1]
    if transpose:  # it is scaled as it lies
        height, width = width, height
    planar = reformatter.reformat(frame, width, height, "gbrp", interpolation=_SCALING, threads=1)
    green, blue, red = (
        np.frombuffer(memoryview(plane), np.uint8).reshape(height, -1)[:, :width]
        for plane in planar.planes
    )
    rows, columns = -1 if flip_rows else 1, -1 if flip_columns else 1
    return [(p.T if transpose else p)[::rows, ::columns] for p in (red, green, blue)]
