"""Encoded test videos whose every frame carries its own number as a bar code.

A test can so say WHICH frame came back. The code is twelve black or white bars, the bits of the
number, and survives compression, scaling and chroma subsampling.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from av.stream import Disposition
from torch import Tensor

from iivcl.data import random_clip_starts

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
    fps: Fraction | int = 25,
    aspect: Fraction | None = None,
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
        stream.codec_context.time_base = 1 / Fraction(fps)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
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


def write_audio(path: Path, *, cover: bool = False) -> Path:
    """Encode half a second of silence, with a cover picture if asked for."""
    with av.open(f"file:{path}", "w") as output:
        sound = output.add_stream("aac", rate=16000)
        sound.layout = "mono"
        picture = output.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.height, picture.width, picture.pix_fmt = 48, 96, "yuvj420p"
            picture.disposition = Disposition.attached_pic.value
            image = av.VideoFrame.from_ndarray(barcode(0), format="rgb24")
            output.mux(picture.encode(image) + picture.encode())
        for start in range(0, 8000, 1000):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, start
            output.mux(sound.encode(frame))
        output.mux(sound.encode())
    return path


def remux(source: Path, target: Path, edit: Callable[[int, Any], Any], **options: str) -> Path:
    """Copy the packets of a video, each after ``edit(number, packet)``; None leaves one out."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(old.streams.video[0])):
            if packet.dts is not None and (edited := edit(number, packet)) is not None:
                edited.stream = stream
                new.mux(edited)
    return target


def write_packets(path: Path, source: Path, packets: Sequence[bytes]) -> Path:
    """Write an AVI of raw packets, 25 per second, with the stream header of ``source``."""
    with av.open(str(source)) as template, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(template.streams.video[0])
        stream.time_base = Fraction(1, 25)
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            output.mux(packet)
    return path


def read_packets(path: Path) -> list[bytes]:
    """Read the raw packets of a video."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def write_packed_divx(path: Path) -> Path:
    """Write 40 frames as DivX does: each B-frame in the packet before it, then a place holder."""
    options = {"bf": "1", "b_strategy": "0"}
    source = write_video(path.with_suffix(".mp4"), 40, codec="mpeg4", options=options)
    packets: list[bytes] = []
    for data in read_packets(source):
        frame_type = data[data.find(b"\0\0\1\xb6") + 4] >> 6
        if frame_type == 2:  # B
            packets[-1] += data
            packets.append(b"\x7f")
        else:
            packets.append(data)
    packets[0] = b"\0\0\1\xb2DivX503b1393p" + packets[0]
    return write_packets(path, source, packets)


def write_dropped_frames(path: Path) -> Path:
    """Write 40 frames and two packets that say "not coded", which headers count as frames."""
    size = {"height": 96, "width": 192}
    source = write_video(path.with_suffix(".mp4"), 40, codec="mpeg4", options={"bf": "0"}, **size)
    packets = read_packets(source)
    not_coded = b"\0\0\1\xb6" + (0b01_0_1_00000_1_0_01111).to_bytes(2, "big")
    for place in (20, 10):
        packets.insert(place, not_coded)
    return write_packets(path, source, packets)


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Tag an mp4 file to be shown with pixels moved from (x, y) to (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    matrix = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0, 1 << 14)]
    data[place : place + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in matrix)
    path.write_bytes(data)
    return path


def rotate(path: Path) -> Path:
    """Tag an mp4 file to be shown turned clockwise by a quarter."""
    return set_matrix(path, 0, 1, -1, 0)


# Transforms and samplings that the workers of a DataLoader can import, however they are started.


def random_number(clips: Tensor) -> float:
    """Draw from the global random state, as augmentations do."""
    assert clips.dtype == torch.uint8
    return float(torch.rand(1))


def two_numbers(clips: Tensor) -> tuple[float, float]:
    """Draw from the global random state, with time for others to do so in between."""
    first = float(torch.rand(1))
    time.sleep(0.002)
    return first, float(torch.rand(1))


def count_threads(clips: Tensor) -> int:
    """Count the threads of this process."""
    [count] = re.findall(r"Threads:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(count)


def die_of_59_frames(video_frames: int, **clip: Any) -> Tensor:
    """Draw starts, but end the process as a decoder that crashes would at one video."""
    if video_frames == 59:
        os.kill(os.getpid(), signal.SIGSEGV)
    return random_clip_starts(video_frames, **clip)
