"""Textured videos like those of Kinetics, encoded for the benchmarks of reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, FRAMES, FPS = 256, 340, 300, 30


def h264(gop: int) -> dict[str, str]:
    return {"crf": "23", "g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}


def encode(path: Path, frames: Iterable[np.ndarray], codec: str, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for image in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        output.mux(stream.encode())
    return path


def draw(seed: int) -> Iterator[np.ndarray]:
    """Draw (H, W, 3) textures that pan and turn over each other, with the noise of a camera."""
    rng = np.random.default_rng(seed)
    textures = [smooth_noise(rng, 512, scale) for scale in (60, 25, 10)]  # (512, 512, 3)
    speed = rng.uniform(-3, 3, (len(textures), 2))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for t in range(FRAMES):
        image = np.zeros((HEIGHT, WIDTH, 3))
        for depth, texture in enumerate(textures):
            y, x = speed[depth] * t
            angle = 0.3 * np.sin(t / 40 + depth)
            u = (np.cos(angle) * rows - np.sin(angle) * columns + y).astype(int) % 512
            v = (np.sin(angle) * rows + np.cos(angle) * columns + x).astype(int) % 512
            image += texture[u, v] / len(textures)
        image = image * 255 + rng.normal(0, 2, image.shape)
        yield image.clip(0, 255).astype(np.uint8)


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    frequency = np.fft.fftfreq(size) * size
    envelope = np.exp(-(frequency[:, None] ** 2 + frequency**2) / (2 * (size / scale) ** 2))
    noise = np.fft.ifft2(
        np.fft.fft2(rng.standard_normal((size, size, 3)), axes=(0, 1)) * envelope[..., None],
        axes=(0, 1),
    ).real
    low, high = np.quantile(noise, [0.02, 0.98])
    return ((noise - low) / (high - low)).clip(0, 1)
