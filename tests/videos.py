"""Encoded test videos whose every frame carries its own number as a bar code.

A test can so say WHICH frame came back. The code is twelve black or white bars, the bits of the
number, and survives compression, scaling and chroma subsampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BITS = 12


def barcode(number: int, height: int = 48, width: int = 96) -> npt.NDArray[np.uint8]:
    """Draw (H, W, 3) uint8 with bit b of ``number`` in the b-th of twelve vertical bars."""
    bars = np.arange(width) * BITS // width  # (W,)
    row = np.where((number >> bars) & 1, 235, 20).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_barcodes(clips: Tensor) -> Tensor:
    """Read the numbers of the frames of (V, C, T, H, W) clips as (V, T) int64."""
    columns = clips.float().mean(dim=(1, 3))  # (V, T, W)
    centres = ((torch.arange(BITS) + 0.5) * clips.shape[-1] / BITS).long()
    return ((columns[..., centres] > 128).long() << torch.arange(BITS)).sum(-1)


def write_video(
    path: Path,
    num_frames: int = 40,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    height: int = 48,
    width: int = 96,
    fps: int = 25,
    options: dict[str, str] | None = None,
    container: str | None = None,
    frames: Sequence[npt.NDArray[np.uint8]] | None = None,
) -> Path:
    """Encode bar codes 0, 1, 2, ... (or the given frames) and return ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if frames is None:
        frames = [barcode(number, height, width) for number in range(num_frames)]
    with av.open(f"file:{path}", "w", format=container) as output:
        settings = _OPTIONS.get(codec, {}) | (options or {})
        stream = output.add_stream(codec, rate=fps, options=settings)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, fps)
        stream.codec_context.thread_count = 1
        for array in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        output.mux(stream.encode())
    return path


_OPTIONS = {
    "libx264": {"preset": "ultrafast", "bf": "2", "g": "10"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=10:pools=none"},
    "libvpx": {"deadline": "realtime", "g": "10"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "10"},
    "libsvtav1": {"preset": "12", "g": "10"},
    "mpeg4": {"g": "10", "q": "4"},
}
