"""Clips per second of `iivcl.data`: original against prepared files, and what each option gains.

    python benchmarks/data.py

Generates textured videos of 340x256, 10 s and 30 fps in H.264 with a keyframe every 250 frames,
re-encodes them as `examples/prepare_videos.py` does, and reads two clips of 8 frames, stride 8,
per video. What counts is the time of the CPU, of which all need one thread, so that other
programs disturb little; the contenders take turns, and ratios are medians over videos and rounds.
Before that, 2,000 small files are read for five epochs to see whether memory grows.
"""

from __future__ import annotations

import logging
import os
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _videos
import av
from _measure import arguments_of_files, number, publish, surroundings, table
from torch.utils.data import DataLoader

from iivcl.data import ClipRecipe, VideoClips, make_synthetic_videos, probe

PREPARE = Path(__file__).parents[1] / "examples" / "prepare_videos.py"
CLIP = {"num_frames": 8, "stride": 8, "clips_per_video": 2}
SHORT_SIDE, GOP = 128, 8  # of the prepared files: the defaults of the script


def main() -> None:
    args = arguments_of_files(__doc__, videos=8, rounds=5)
    logging.getLogger("iivcl.data").setLevel(logging.ERROR)  # unreadable files are meant

    with tempfile.TemporaryDirectory() as folder:
        # First, since memory that others have freed would hide growth.
        memory = measure_memory(Path(folder) / "small", 100 if args.quick else 2000)
        originals = [
            _videos.encode(Path(folder) / f"{i}.mp4", _videos.draw(i), "libx264", _videos.h264(250))
            for i in range(args.videos)
        ]
        encode = runpy.run_path(str(PREPARE))["encode"]
        prepared = [path.with_suffix(".prepared.mp4") for path in originals]
        for source, target in zip(originals, prepared, strict=True):
            encode(source, target, short_side=SHORT_SIDE, gop=GOP, crf=20)
        milliseconds = compare(contenders(originals, prepared), args.videos, args.rounds)
        megabytes = {
            name: sum(path.stat().st_size for path in paths) / len(paths) / 2**20
            for name, paths in (("original", originals), ("prepared", prepared))
        }

    base = milliseconds["exact, scaled"]
    report = {
        **surroundings(args, "av", "numpy"),
        "files": (
            f"{args.videos} of {_videos.FRAMES}x{_videos.HEIGHT}x{_videos.WIDTH}, GOP 250, "
            f"{megabytes['original']:.2f} MB each; prepared: short side {SHORT_SIDE}, GOP {GOP}, "
            f"{megabytes['prepared']:.2f} MB"
        ),
        "rounds": args.rounds,
        "milliseconds_per_video": {k: statistics.median(v) for k, v in milliseconds.items()},
        "speed_relative_to_exact_scaled": {
            name: statistics.median(b / t for b, t in zip(base, times, strict=True))
            for name, times in milliseconds.items()
        },
        "memory": memory,
    }
    publish("data", args, report, to_markdown(report))


def contenders(originals: list[Path], prepared: list[Path]) -> dict[str, Callable[[int], object]]:
    """Ways to read the clips of video i; all but the last two draw the same clips."""

    def dataset(paths: list[Path], **options: object) -> VideoClips:
        return VideoClips(paths, ClipRecipe(**CLIP, **options))

    def decode_everything(i: int) -> list[object]:
        with av.open(str(originals[i])) as container:
            container.streams.video[0].codec_context.thread_count = 1
            return [None for frame in container.decode(video=0)]

    return {
        "exact, scaled": dataset(originals, short_side=SHORT_SIDE).__getitem__,
        "exact, full size": dataset(originals).__getitem__,
        "approximate, scaled": dataset(
            originals, short_side=SHORT_SIDE, approximate=True
        ).__getitem__,
        "prepared, exact": dataset(prepared).__getitem__,
        "probe alone": lambda i: probe(originals[i]),
        "every frame decoded, none converted": decode_everything,
    }


def compare(
    readers: dict[str, Callable[[int], object]], num_videos: int, rounds: int
) -> dict[str, list[float]]:
    """CPU milliseconds of every reader for every video and round, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(-1, rounds):  # the first one warms up
        for i in range(num_videos):
            for name, read in readers.items():
                start = time.process_time()
                read(i)
                if turn >= 0:
                    times[name].append(1e3 * (time.process_time() - start))
    return times


def measure_memory(folder: Path, num_videos: int, epochs: int = 5) -> dict[str, object]:
    """Read many files with bad ones among them; note the memory of all processes per epoch."""
    sources = make_synthetic_videos(folder, 50, num_frames=24, size=48)
    missing = folder / "missing.mp4"
    paths = [missing if i % 50 == 7 else sources[i % len(sources)] for i in range(num_videos)]
    dataset = VideoClips(paths, ClipRecipe(num_frames=8, stride=2), on_error="substitute")
    loader = DataLoader(dataset, batch_size=8, num_workers=2, persistent_workers=True, shuffle=True)
    megabytes = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for _ in loader:
            pass
        workers = [worker.pid for worker in loader._iterator._workers]
        megabytes.append([round(resident_megabytes(pid), 1) for pid in (os.getpid(), *workers)])
    return {
        "videos": num_videos,
        "unreadable": paths.count(missing),
        "megabytes_of_main_and_workers_after_each_epoch": megabytes,
    }


def resident_megabytes(pid: int) -> float:
    """Memory that a process alone has written: files that others may map are not counted."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_Dirty")) / 1024


def to_markdown(report: dict[str, Any]) -> str:
    times = report["milliseconds_per_video"]
    speeds = report["speed_relative_to_exact_scaled"]
    memory = report["memory"]
    epochs = memory["megabytes_of_main_and_workers_after_each_epoch"]
    return "\n".join(
        [
            "# Two clips of 8 frames, stride 8, from one video\n",
            f"Files: {report['files']}. Medians of CPU time. Speed is relative to exact reading, "
            "scaled to the prepared size.\n",
            table(
                ["reading", "CPU ms per video", "speed"],
                [[name, number(times[name]), number(speeds[name], 2)] for name in times],
            ),
            f"## Private memory over {memory['videos']} videos x {len(epochs)} epochs\n",
            f"{memory['unreadable']} of them unreadable; two workers that stay. MB per epoch.\n",
            table(
                ["epoch", "main process", "worker 0", "worker 1"],
                [[epoch, *megabytes] for epoch, megabytes in enumerate(epochs)],
            ),
        ]
    )


if __name__ == "__main__":
    main()
