"""Shapes that move over a dim background: the motions and the pictures of a generated set."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["SHAPE_MOTIONS", "render_shape"]

Array = npt.NDArray[np.float64]


class _Pose(NamedTuple):
    """Where the shape is at each of the T frames, as multiples of the video's own amplitude."""

    x: Array | float = 0.0
    y: Array | float = 0.0
    growth: Array | float = 0.0
    angle: Array | float = 0.0


# Each motion maps a phase in radians (T,) to a pose. The first eight are the easy set; the others
# differ from one of them by direction of time, by an added motion, or by the shape of the path.
SHAPE_MOTIONS: dict[str, Callable[[Array], _Pose]] = {
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


def render_shape(
    motion: Callable[[Array], _Pose], time: Array, size: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw one video at T times, in frames, as (T, H, W, 3) uint8."""
    cycles = rng.uniform(1.6, 2.4)  # at least one whole cycle in any 15 of 24 frames
    phase = 2 * np.pi * (cycles * time / 24 + rng.uniform())
    x, y, growth, turn = (np.broadcast_to(p, time.shape)[:, None, None] for p in motion(phase))
    amplitude, radius = rng.uniform(0.45, 0.6), rng.uniform(0.22, 0.32)
    # A shape that stays on an axis may be anywhere on it, so that its place in one frame says
    # little of how it moves.
    centre_x, centre_y = (rng.uniform(-1, 1) * (0.65 - amplitude * np.ptp(p) / 2) for p in (x, y))
    angle = rng.uniform(0, 2 * np.pi) + turn  # (T, 1, 1)
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    dx = axis - centre_x - amplitude * x  # (T, 1, W)
    dy = axis[:, None] - centre_y - amplitude * y  # (T, H, 1)
    scale = radius * (1 + 0.6 * growth)
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
