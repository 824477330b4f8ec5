"""A generated video set whose classes are motions: for demonstrations, tests and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

__all__ = ["make_synthetic_videos"]

Array = npt.NDArray[np.float64]


class _Pose(NamedTuple):
    """Where the shape is at each of the T frames, as multiples of the video's own amplitude."""

    x: Array | float = 0.0
    y: Array | float = 0.0
    growth: Array | float = 0.0
    angle: Array | float = 0.0


# Each motion maps a phase in radians (T,) to a pose. The first eight are the easy set; the others
# differ from one of them by direction of time, by an added motion, or by the shape of the path.
_MOTIONS: dict[str, Callable[[Array], _Pose]] = {
    "left_right": lambda p: _Pose(x=np.sin(p)),
    "up_down": lambda p: _Pose(y=np.sin(p)),
    "circle": lambda p: _Pose(x=np.cos(p), y=np.sin(p)),
    "diagonal": lambda p: _Pose(x=np.sin(p), y=np.sin(p)),
    "antidiagonal": lambda p: _Pose(x=np.sin(p), y=-np.sin(p)),
    "pulse": lambda p: _Pose(growth=np.sin(p)),
    "spin": lambda p: _Pose(angle=p),
    "figure_eight": lambda p: _Pose(x=np.sin(p), y=np.sin(2 * p)),
    "counter_circle": lambda p: _Pose(x=np.cos(p), y=-np.sin(p)),
    "counter_spin": lambda p: _Pose(angle=-p),
    "upright_eight": lambda p: _Pose(x=np.sin(2 * p), y=np.sin(p)),
    "swing": lambda p: _Pose(angle=np.sin(p)),
    "hop": lambda p: _Pose(y=0.5 - np.abs(np.sin(p))),
    "left_right_pulse": lambda p: _Pose(x=np.sin(p), growth=np.cos(p)),
    "square": lambda p: _Pose(x=np.clip(1.4 * np.cos(p), -1, 1), y=np.clip(1.4 * np.sin(p), -1, 1)),
    "circle_spin": lambda p: _Pose(x=np.cos(p), y=np.sin(p), angle=-2 * p),
}

# Signed distances (inside below zero) of shapes of about unit size; none looks the same at every
# angle, so that a spin is always visible.
_SHAPES: tuple[Callable[[Array, Array], Array], ...] = (
    lambda u, v: np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.4),  # bar
    lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.75,  # square
    lambda u, v: np.maximum(v - 0.6, 0.866 * np.abs(u) - 0.5 * v - 0.6),  # triangle
    lambda u, v: np.minimum(  # cross
        np.maximum(np.abs(u) - 0.95, np.abs(v) - 0.3),
        np.maximum(np.abs(v) - 0.95, np.abs(u) - 0.3),
    ),
    lambda u, v: np.hypot(u / 1.0, v / 0.55) - 1.0,  # ellipse
)


def make_synthetic_videos(
    root: str | os.PathLike[str],
    num_videos: int,
    *,
    num_classes: int = 8,
    num_frames: int = 24,
    size: int = 48,
    fps: int = 12,
    seed: int = 0,
) -> list[Path]:
    """Write a set of real H.264 mp4 files whose classes are motions.

    Every video shows one bright shape that moves over a dim textured background. The class is the
    motion alone (side to side, circle, spin, ...); shape, colours, texture, place, size, speed and
    phase are drawn anew for every video, so neither one frame nor the mean colour gives the class
    away. Video ``i`` has class ``i % num_classes``, and what it shows depends on ``seed`` and ``i``
    alone.

    The set is written under a temporary name and renamed when it is complete. A set of the same
    arguments that is already there is kept as it is.

    Args:
        root: Folder to create; files are ``root/<motion>/<index>.mp4``.
        num_videos: Number of files, at least 1.
        num_classes: Number of motions, 2 to 16. The first 8 are easy to tell apart; the others
            differ from them by direction of time or by an added motion.
        num_frames: Frames per video, at least 2.
        size: Height and width in pixels, even and at least 16.
        fps: Frames per second written in the file.
        seed: Seed of everything that varies.

    Returns:
        The files, sorted by path.

    Raises:
        ValueError: An argument is out of range, or ``root`` holds something else.

    Example:
        >>> import tempfile
        >>> root = tempfile.mkdtemp() + "/videos"
        >>> [path.parent.name for path in make_synthetic_videos(root, 3, num_classes=2)]
        ['left_right', 'left_right', 'up_down']
    """
    if not 2 <= num_classes <= len(_MOTIONS):
        raise ValueError(f"`num_classes` must be in [2, {len(_MOTIONS)}]; got {num_classes}")
    if size < 16 or size % 2:
        raise ValueError(f"`size` must be even and at least 16; got {size}")
    for name, value, least in (("num_videos", num_videos, 1), ("num_frames", num_frames, 2)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; got {value}")

    root = Path(root)
    recipe = {
        "num_videos": num_videos,
        "num_classes": num_classes,
        "num_frames": num_frames,
        "size": size,
        "fps": fps,
        "seed": seed,
    }
    if root.exists():
        if _read_recipe(root) != recipe:
            raise ValueError(
                f"`root` {str(root)!r} exists and does not hold this synthetic set; "
                "remove it or choose another folder"
            )
        return sorted(root.glob("*/*.mp4"))

    motions = list(_MOTIONS)[:num_classes]
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:

        def write(index: int) -> None:
            motion = motions[index % num_classes]
            path = unfinished / motion / f"{index:06d}.mp4"
            path.parent.mkdir(exist_ok=True)
            rng = np.random.default_rng([seed, index])
            _encode(path, _render(_MOTIONS[motion], num_frames, size, rng), fps)

        with ThreadPoolExecutor() as pool:
            list(pool.map(write, range(num_videos)))
        (unfinished / _RECIPE).write_text(json.dumps(recipe))
        unfinished.chmod(0o755)
        unfinished.rename(root)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(root.glob("*/*.mp4"))


_RECIPE = "synthetic.json"


def _read_recipe(root: Path) -> object:
    try:
        return json.loads((root / _RECIPE).read_text())
    except (OSError, ValueError):
        return None


def _render(
    motion: Callable[[Array], _Pose], num_frames: int, size: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw one video as (T, H, W, 3) uint8."""
    cycles = rng.uniform(1.6, 2.4)  # at least one whole cycle in any 15 of 24 frames
    phase = 2 * np.pi * (cycles * np.arange(num_frames) / 24 + rng.uniform())
    pose = motion(phase)
    amplitude, radius = rng.uniform(0.45, 0.6), rng.uniform(0.22, 0.32)
    # A shape that stays on an axis may be anywhere on it, so that its place in one frame says
    # little of how it moves.
    centre_x, centre_y = (
        rng.uniform(-1, 1) * (0.65 - amplitude * np.ptp(along) / 2) for along in (pose.x, pose.y)
    )
    angle0 = rng.uniform(0, 2 * np.pi)

    def per_frame(value: Array | float) -> Array:  # (T, 1, 1)
        return np.broadcast_to(np.asarray(value, dtype=np.float64), (num_frames,))[:, None, None]

    axis = (np.arange(size) + 0.5) / size * 2 - 1
    dx = axis[None, None, :] - centre_x - amplitude * per_frame(pose.x)  # (T, 1, W)
    dy = axis[None, :, None] - centre_y - amplitude * per_frame(pose.y)  # (T, H, 1)
    angle = angle0 + per_frame(pose.angle)
    scale = radius * (1 + 0.6 * per_frame(pose.growth))
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / scale  # (T, H, W)
    v = (np.cos(angle) * dy - np.sin(angle) * dx) / scale
    distance = _SHAPES[rng.integers(len(_SHAPES))](u, v) * scale * size / 2  # in pixels
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]  # antialiased edge

    colour = rng.uniform(0.35, 1.0, 3)
    colour[rng.integers(3)] = 1.0  # bright whatever its hue
    tint = rng.uniform(0.5, 1.0, 3)  # dim
    background = (0.05 + 0.08 * _texture(size, rng))[None] * tint  # (1, H, W, 3)
    video = background + coverage * (colour - background)
    return np.asarray((video * 255).round(), dtype=np.uint8)


def _texture(size: int, rng: np.random.Generator) -> Array:
    """Draw smooth noise of a random scale, (H, W, 3) in [0, 1]."""
    frequency = np.fft.fftfreq(size) * size
    envelope = np.exp(-(frequency[:, None] ** 2 + frequency**2) / rng.uniform(2, 8) ** 2)
    spectrum = np.fft.fft2(rng.standard_normal((size, size, 3)), axes=(0, 1))
    noise = np.fft.ifft2(spectrum * envelope[..., None], axes=(0, 1)).real
    low, high = noise.min(axis=(0, 1)), noise.max(axis=(0, 1))
    return np.asarray((noise - low) / (high - low))


def _encode(path: Path, video: npt.NDArray[np.uint8], fps: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "g": "12"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for array in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
