"""Jointed figures that wave, kick, bow, ...: the motions and the pictures of a generated set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy import cos, maximum, minimum, pi, sin

__all__ = ["FIGURE_MOTIONS", "render_figure"]

Array = npt.NDArray[np.floating[Any]]
Angle = Array | float
_Pair = tuple[tuple[Angle, Angle], tuple[Angle, Angle]]


_REST = (0.2, 0.13)


class _Pose(NamedTuple):
    """Where the body is at each of the T frames.

    The direction of a segment is (forward, outwards) in radians: that of a limb from hanging
    straight down, that of the torso from standing upright. Limbs come as (right, left).
    """

    arms: _Pair = (_REST, _REST)
    forearms: _Pair = (_REST, _REST)
    thighs: _Pair = ((0.0, 0.06), (0.0, 0.06))
    shins: _Pair = ((-0.05, 0.03), (-0.05, 0.03))
    torso: tuple[Angle, Angle] = (0.0, 0.0)
    turn: Angle = 0.0
    lift: Angle = 0.0  # of the lower foot, in metres


def _both(forward: Angle, outwards: Angle) -> _Pair:
    return (forward, outwards), (forward, outwards)


# Each motion maps a phase in radians (T,) to a pose; `up` goes from 0 to 1 and back once in a
# cycle, `one` does so in its first half and `two` in its second. The first eight are the easy set;
# each of the others shares a limb or a direction with some of them.
_Motion = Callable[[Array, Array, Array, Array], _Pose]
FIGURE_MOTIONS: dict[str, _Motion] = {
    "wave": lambda p, up, one, two: _Pose(
        arms=((0.2, 1.7), _REST), forearms=((0.2, 2.8 + 0.6 * sin(2 * p)), _REST)
    ),
    "kick": lambda p, up, one, two: _Pose(
        thighs=((1.5 * up, 0.06), (0.0, 0.06)),
        shins=((1.6 * up**3 - 0.2 * sin(p) ** 2, 0.05), (0.0, 0.03)),
    ),
    "jump": lambda p, up, one, two: _Pose(
        arms=_both(2.8 * one - 0.7 * two, 0.25),
        forearms=_both(2.9 * one - 0.4 * two, 0.15),
        thighs=_both(two, 0.1),
        shins=_both(-0.9 * two - 0.5 * one, 0.05),
        torso=(0.6 * two, 0.0),
        lift=0.45 * one,
    ),
    "bow": lambda p, up, one, two: _Pose(torso=(1.5 * up, 0.0), thighs=_both(-0.15 * up, 0.06)),
    "clap": lambda p, up, one, two: _Pose(_both(1.0, 0.3 + 0.6 * up), _both(1.5, 0.9 * up - 0.5)),
    "punch": lambda p, up, one, two: _Pose(
        arms=((0.3 + 1.25 * one, 0.2), (0.3 + 1.25 * two, 0.2)),
        forearms=((2.5 - 0.95 * one, -0.1), (2.5 - 0.95 * two, -0.1)),
        thighs=((-0.3, 0.12), (0.3, 0.12)),
        turn=-0.35 * sin(p),
    ),
    "squat": lambda p, up, one, two: _Pose(
        arms=_both(1.5 * up, 0.1),
        forearms=_both(1.5 * up, 0.1),
        thighs=_both(1.5 * up, 0.1),
        shins=_both(-0.8 * up, 0.1),
        torso=(0.6 * up, 0.0),
    ),
    "jumping_jack": lambda p, up, one, two: _Pose(
        arms=_both(0.0, 0.2 + 2.6 * up),
        forearms=_both(0.0, 0.2 + 2.6 * up),
        thighs=_both(0.0, 0.05 + 0.45 * up),
        shins=_both(0.0, 0.05 + 0.45 * up),
        lift=0.1 * (one + two),
    ),
    "two_hand_wave": lambda p, up, one, two: _Pose(
        _both(0.2, 1.7), _both(0.2, 2.8 + 0.6 * sin(2 * p))
    ),
    "side_kick": lambda p, up, one, two: _Pose(
        thighs=((0.0, 1.4 * up), (0.0, 0.06)),
        shins=((0.0, 1.4 * up), (0.0, 0.03)),
        torso=(0.0, -0.45 * up),
    ),
    "march": lambda p, up, one, two: _Pose(
        arms=((-0.7 * sin(p), 0.15), (0.7 * sin(p), 0.15)),
        forearms=((0.7 - 0.7 * sin(p), 0.1), (0.7 + 0.7 * sin(p), 0.1)),
        thighs=((1.4 * one, 0.06), (1.4 * two, 0.06)),
        shins=((-0.4 * one, 0.03), (-0.4 * two, 0.03)),
    ),
    "arm_circle": lambda p, up, one, two: _Pose(_both(p, 0.2), _both(p, 0.15)),
    "turn": lambda p, up, one, two: _Pose(_both(0.0, 0.7), _both(0.2, 0.6), turn=p),
}


def render_figure(
    motion: _Motion, time: Array, size: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draw one person in one room at T times, in frames, as (T, H, W, 3) uint8."""
    phase = 2 * pi * (rng.uniform(1.4, 2.2) * time / 24 + rng.uniform())
    pose = motion(phase, (1 - cos(phase)) / 2, maximum(0, sin(phase)), maximum(0, -sin(phase)))
    points, radii, colours = _body(pose, len(time), rng)

    # The camera stands somewhere, looks down a little, wanders and zooms.
    pitch, yaw, distance = rng.uniform(0.0, 0.3), rng.uniform(-0.9, 0.9), rng.uniform(3.5, 7.0)
    swing = rng.uniform(0.2, 0.8, 3) * time[:, None] / 24 + rng.uniform(size=3)
    sway = rng.uniform(0.02, 0.1, 3) * sin(2 * pi * swing)  # (T, 3)
    height = rng.uniform(2.1, 2.9) * (1 + sway[:, 2, None, None])  # (T, 1, 1) metres in the picture
    centre = [0.0, 0.95] + rng.uniform(-0.2, 0.2, 2) + sway[:, :2]  # (T, 2)
    axis = (np.arange(size) + 0.5) / size - 0.5
    u = (centre[:, 0, None, None] + height * axis).astype(np.float32)  # (T, 1, W) to the right
    v = (centre[:, 1, None, None] - height * axis[:, None]).astype(np.float32)  # (T, H, 1) up
    pixel = (height / size).astype(np.float32)

    video = _room(u, v, pixel, rng)
    x, y, z = np.moveaxis(_turned(points, yaw), -1, 0)  # (2, T, C)
    y, z = cos(pitch) * y - sin(pitch) * z, cos(pitch) * z + sin(pitch) * y
    scale = distance / (distance - z)
    ends = np.stack([x * scale, y * scale, scale]).astype(np.float32)  # (3, 2, T, C)

    # Limbs are drawn from the farthest to the nearest, each lit as a cylinder with round ends.
    light = np.array([rng.uniform(-0.6, 0.6), 0.5, 0.6], np.float32)
    frames = np.arange(len(time))
    for limb in ends[2].sum(0).argsort(axis=1).T:  # (T,): which one it is in each frame
        (x0, x1), (y0, y1), (s0, s1) = ends[:, :, frames, limb, None, None]  # (T, 1, 1) each
        radius = radii[limb, None, None] * (s0 + s1) / 2
        rows, columns = _reach(v, y0, y1, radius + pixel), _reach(u, x0, x1, radius + pixel)
        right, up, picture = u[:, :, columns] - x0, v[:, rows] - y0, video[:, rows, columns]
        dx, dy = x1 - x0, y1 - y0
        along = np.clip((right * dx + up * dy) / (dx**2 + dy**2 + 1e-6), 0, 1)
        right, up = (right - along * dx) / radius, (up - along * dy) / radius
        off = np.hypot(right, up)  # from the axis, 1 at the surface
        coverage = np.clip(0.5 + (1 - off) * radius / pixel, 0, 1)
        towards = np.sqrt(maximum(0, 1 - off**2))
        shade = 0.45 + 0.6 * maximum(0, light[0] * right + light[1] * up + light[2] * towards)
        picture += coverage[..., None] * (shade[..., None] * colours[limb, None, None] - picture)
    return np.asarray((np.clip(video, 0, 1) * 255).round(), dtype=np.uint8)


def _reach(axis: Array, start: Array | float, end: Array | float, radius: Array) -> slice:
    """Pixels of an axis that something from start to end may touch in any frame."""
    near = (axis > minimum(start, end) - radius) & (axis < maximum(start, end) + radius)
    (touched,) = near.any(axis=0).ravel().nonzero()
    return slice(touched[0], touched[-1] + 1) if len(touched) else slice(0)


def _body(pose: _Pose, num_frames: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Hang the C limbs of a person onto each other, standing on the floor.

    Returns:
        Both ends (2, T, C, 3) in metres: right, up, towards the viewer; radii (C,); colours (C, 3).
    """
    stout, hand_side = rng.uniform(0.85, 1.3), rng.choice([-1.0, 1.0])
    skin = np.array([0.95, 0.75, 0.6]) * rng.uniform(0.35, 1.0)
    hair, shirt, trousers, shoes = (_paint(rng, *span) for span in _CLOTHES)
    sleeve, stocking = (skin if rng.uniform() < 0.4 else cloth for cloth in (shirt, trousers))

    def segment(length: float, forward: Angle, sideways: Angle) -> Array:  # (T, 3)
        x, y, z = sin(sideways), -cos(sideways) * cos(forward), cos(sideways) * sin(forward)
        return length * np.stack(np.broadcast_arrays(x, y, z, np.zeros(num_frames))[:3], axis=-1)

    up = segment(-1.0, *pose.torso) * [-1, 1, -1]
    side = np.stack([up[:, 1], -up[:, 0], 0 * up[:, 0]], axis=-1)  # where the shoulders lie
    limbs = [  # start, end, radius, colour
        (0.5 * up, 0.58 * up, 0.055, skin),
        (0.68 * up, 0.71 * up, 0.1, skin),
        (0.73 * up - [0, 0, 0.03], 0.76 * up - [0, 0, 0.03], 0.095, hair),
    ]
    for n, sign in enumerate((1.0, -1.0)):
        outwards = [sign, 1, 1]
        shoulder, hip = 0.47 * up + sign * 0.17 * side, 0 * up + [sign * 0.09, 0, 0]
        elbow = shoulder + segment(0.28, *pose.arms[n]) * outwards
        hand = elbow + segment(0.27, *pose.forearms[n]) * outwards
        knee = hip + segment(0.42, *pose.thighs[n]) * outwards
        ankle = knee + segment(0.42, *pose.shins[n]) * outwards
        limbs += [
            (hip, 0.44 * up + sign * 0.09 * side, 0.105 * stout, shirt),
            (shoulder, elbow, 0.055 * stout, shirt),
            (elbow, hand, 0.043 * stout, sleeve),
            (hand, hand, 0.052, skin),
            (hip, knee, 0.08 * stout, trousers),
            (knee, ankle, 0.058 * stout, stocking),
            (ankle, ankle + np.array([0, -0.02, 0.13]), 0.05, shoes),
        ]
    starts, ends, radius, colour = (list(column) for column in zip(*limbs, strict=True))
    points = np.stack([np.stack(starts, axis=1), np.stack(ends, axis=1)])  # (2, T, C, 3)
    points[..., 1] += (pose.lift + 0.05 - points[..., 1].min(axis=(0, 2)))[:, None]
    points = _turned(points, np.broadcast_to(pose.turn, num_frames)[:, None])
    points = rng.uniform(0.85, 1.08) * points * [hand_side, 1, 1]
    return points, np.array(radius, np.float32), np.array(colour, np.float32)


def _turned(points: Array, angle: Angle) -> Array:
    """Turn (..., 3) points about the upright."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([cos(angle) * x + sin(angle) * z, y, cos(angle) * z - sin(angle) * x], axis=-1)


def _paint(rng: np.random.Generator, darkest: float, brightest: float, colourful: float) -> Array:
    """Draw a colour: its brightness, and how far it may be from gray."""
    return rng.uniform(darkest, brightest) * (1 + colourful * rng.uniform(-1, 1, 3))


_CLOTHES = ((0.05, 0.4, 0.4), (0.2, 0.75, 0.6), (0.1, 0.5, 0.4), (0.05, 0.8, 0.5))


def _room(u: Array, v: Array, pixel: Array, rng: np.random.Generator) -> Array:
    """Paint a wall with things on it and a floor of boards, (T, H, W, 3)."""
    waves = rng.normal(0, [2.5, 2.5, 6], (6, 3)).astype(np.float32)
    stains = np.sum([cos(a * u + b * v + c) for a, b, c in waves], axis=0)
    wall, floor = _paint(rng, 0.3, 0.8, 0.25), _paint(rng, 0.2, 0.6, 0.4)
    picture = wall * (0.9 + 0.03 * stains + 0.08 * (v - 1))[..., None]
    for _ in range(rng.integers(2, 7)):  # pictures, windows, cupboards
        x, y, width, height = rng.uniform([-1.6, 0.2, 0.1, 0.1], [1.6, 2.2, 0.5, 0.6])
        rows = _reach(v, y - height, y + height, pixel)
        columns = _reach(u, x - width, x + width, pixel)
        edge = maximum(abs(u[:, :, columns] - x) - width, abs(v[:, rows] - y) - height)
        inside = np.clip(0.5 - edge / pixel, 0, 1)[..., None]
        part = picture[:, rows, columns]
        part += inside * (_paint(rng, 0.15, 0.95, 0.4) - part)
    horizon = rng.uniform(0.2, 0.5)
    boards = 0.9 + 0.1 * cos(rng.uniform(8, 20) * u / (maximum(horizon - v, 0) + 0.5))
    boards *= 1 - 0.5 * np.exp(-((u / 0.35) ** 2) - (v / 0.1) ** 2)  # the shadow of the person
    below = np.clip(0.5 + (horizon - v) / pixel, 0, 1)[..., None]
    return np.asarray(picture + below * (floor * boards[..., None] - picture), np.float32)
