"""Generated video sets whose classes are motions: for demonstrations, tests and benchmarks."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

from iivcl._checks import check_at_least, check_choice, check_within
from iivcl.data._figures import FIGURE_MOTIONS, render_figure
from iivcl.data._shapes import SHAPE_MOTIONS, render_shape

__all__ = ["make_synthetic_videos"]

# What a kind consists of: its motions, and what draws one video of one of them.
_KINDS: dict[str, tuple[Mapping[str, Any], Callable[..., npt.NDArray[np.uint8]]]] = {
    "shapes": (SHAPE_MOTIONS, render_shape),
    "figures": (FIGURE_MOTIONS, render_figure),
}
_RECIPE = "synthetic.json"


def make_synthetic_videos(
    root: str | os.PathLike[str],
    num_videos: int,
    *,
    kind: Literal["shapes", "figures"] = "shapes",
    num_classes: int = 8,
    takes: int = 1,
    imbalance: float = 1.0,
    num_frames: int = 24,
    size: int = 48,
    fps: int = 12,
    seed: int = 0,
) -> list[Path]:
    """Write a set of real H.264 mp4 files whose classes are motions.

    The class is the motion; everything else is drawn anew for every video. Of the kind
    ``"shapes"``, a bright shape moves over a dim textured background (side to side, circle, spin,
    ...), and colours, place, size, speed and phase vary, so that neither one frame nor the mean
    colour gives the class away. Of the kind ``"figures"``, a person in a room waves, kicks, jumps,
    bows, ..., and body, clothes, room, speed, the hand and the place and moves of the camera vary;
    a pose says something of its motion, as it does in real videos.

    Video ``i`` is take ``i % takes`` of group ``i // takes``; the groups go round the classes. What
    it shows depends on ``seed``, ``i``, ``takes`` and its class alone. ``root/manifest.csv`` lists
    path, label and group, as `read_manifest` takes them.

    The set is written under a temporary name and renamed when it is complete. A set of the same
    arguments that is already there is kept as it is.

    Args:
        root: Folder to create; files are ``root/<motion>/<index>.mp4``.
        num_videos: Number of files, at least 1.
        kind: What is shown.
        num_classes: Number of motions, 2 to 16 of shapes or to 13 of figures. The first 8 are easy
            to tell apart; the others differ from them by direction of time, by an added motion or
            by a limb.
        takes: Videos of a group, at least 1: the same thing at another moment and speed. They are
            near-duplicates, as the takes of one person are in real sets.
        imbalance: How many times more groups the first class has than the last, at least 1; those
            between fall off exponentially.
        num_frames: Frames per video, at least 2.
        size: Height and width in pixels, even and at least 16; figures want 64 or more.
        fps: Frames per second written in the file.
        seed: Seed of everything that varies.

    Returns:
        The files, sorted by path.

    Raises:
        ValueError: An argument is out of range, or ``root`` holds something else.

    Example:
        >>> import tempfile
        >>> from iivcl.data import make_synthetic_videos, read_manifest
        >>> root = tempfile.mkdtemp() + "/videos"
        >>> paths = make_synthetic_videos(root, 4, kind="figures", num_classes=2, takes=2)
        >>> [path.parent.name for path in paths]
        ['kick', 'kick', 'wave', 'wave']
        >>> read_manifest(root + "/manifest.csv").ids
        tensor([0, 0, 1, 1])
    """
    # All arguments but the folder, which may be numbers of NumPy.
    recipe = {k: getattr(v, "item", lambda v=v: v)() for k, v in locals().items() if k != "root"}
    check_choice("kind", kind, tuple(_KINDS))
    motions, render = _KINDS[kind]
    check_at_least(2, num_classes=num_classes, num_frames=num_frames)
    check_at_least(1, num_videos=num_videos, takes=takes, fps=fps)
    check_at_least(0, seed=seed)
    check_at_least(16, size=size)
    check_within(1, math.inf, imbalance=imbalance)
    if num_classes > len(motions):
        raise ValueError(f"`num_classes` must be in [2, {len(motions)}]; got {num_classes}")
    if size % 2:
        raise ValueError(f"`size` must be even; got {size}")

    root = Path(root)
    if root.exists():
        if _read_recipe(root) != recipe:
            raise ValueError(
                f"`root` {str(root)!r} exists and does not hold this synthetic set; "
                "remove it or choose another folder"
            )
        return sorted(root.glob("*/*.mp4"))

    classes = _apportion(-(-num_videos // takes), num_classes, imbalance)
    names = [list(motions)[classes[i // takes]] for i in range(num_videos)]
    paths = [f"{name}/{i:06d}.mp4" for i, name in enumerate(names)]
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for name in set(names):
            (unfinished / name).mkdir()

        def write(index: int) -> None:
            group, take = divmod(index, takes)
            time = np.arange(num_frames, dtype=np.float64)
            if take > 0:
                again = np.random.default_rng([seed, group, take])
                time = again.uniform(0, 24) + again.uniform(0.85, 1.15) * time
            rng = np.random.default_rng([seed, group])
            _encode(unfinished / paths[index], render(motions[names[index]], time, size, rng), fps)

        with ThreadPoolExecutor() as pool:
            list(pool.map(write, range(num_videos)))
        rows = [f"{paths[i]},{name},{i // takes}\n" for i, name in enumerate(names)]
        (unfinished / "manifest.csv").write_text("path,label,group\n" + "".join(rows))
        (unfinished / _RECIPE).write_text(json.dumps(recipe))
        unfinished.chmod(0o755)
        try:
            unfinished.rename(root)
        except OSError:  # another process has finished it meanwhile
            if not root.exists():
                raise
            return make_synthetic_videos(root, **recipe)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(root.glob("*/*.mp4"))


def _apportion(num_groups: int, num_classes: int, imbalance: float) -> list[int]:
    """Give every group in turn to the class that is the most behind its share."""
    shares = imbalance ** -(np.arange(num_classes) / (num_classes - 1))
    shares /= shares.sum()
    given = np.zeros(num_classes)
    classes = []
    for total in range(1, num_groups + 1):
        classes.append(int(np.argmax(total * shares - given)))
        given[classes[-1]] += 1
    return classes


def _read_recipe(root: Path) -> object:
    try:
        return json.loads((root / _RECIPE).read_text())
    except (OSError, ValueError):
        return None


def _encode(path: Path, video: npt.NDArray[np.uint8], fps: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "g": "12"})
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for array in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
