"""Reading two clips of 8 frames, stride 8, from one video: iivcl, torchcodec and decord.

    python benchmarks/decode.py

Generates textured videos of 340x256, 10 s and 30 fps in four codings. All contenders read the same
frames with one thread. First in one process, where CPU time counts, so that other programs disturb
little; then through a DataLoader with collation, where wall time counts. The contenders take turns,
and ratios are medians over videos and rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _videos
import torch
from _measure import arguments_of_files, number, publish, surroundings, table, target_rows
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from iivcl.data import ClipRecipe, VideoClips, clip_indices, random_clip_starts, read_clips

CLIP = {"num_frames": 8, "stride": 8}
SHORT_SIDE, SMALL = 128, (128, 170)
BATCH = 4
CODINGS = {
    "H.264, GOP 12": (".mp4", "libx264", _videos.h264(12)),
    "H.264, GOP 250": (".mp4", "libx264", _videos.h264(250)),
    "MPEG-4, AVI": (".avi", "mpeg4", {"g": "12", "q": "5", "bf": "0"}),
    "HEVC": (".mp4", "libx265", {"crf": "28", "x265-params": "log-level=none"}),
}


def iivcl(path: str, indices: Tensor) -> Tensor:
    return read_clips(path, indices)


def iivcl_scaled(path: str, indices: Tensor) -> Tensor:
    return read_clips(path, indices, short_side=SHORT_SIDE)


def torchcodec_view(path: str, indices: Tensor, **options: Any) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    frames = VideoDecoder(path, **options).get_frames_at(indices.flatten().tolist()).data
    return frames.unflatten(0, indices.shape).transpose(1, 2)  # (V, C, T, H, W)


def torchcodec(path: str, indices: Tensor) -> Tensor:
    return torchcodec_view(path, indices).contiguous()


def torchcodec_scaled(path: str, indices: Tensor) -> Tensor:
    from torchcodec.transforms import Resize

    return torchcodec_view(path, indices, transforms=[Resize(SMALL)]).contiguous()


def decord(path: str, indices: Tensor) -> Tensor:
    import decord

    frames = decord.VideoReader(path, num_threads=1).get_batch(indices.flatten().tolist())
    clips = torch.from_numpy(frames.asnumpy()).unflatten(0, indices.shape)  # (V, T, H, W, C)
    return clips.permute(0, 4, 1, 2, 3).contiguous()


READERS: dict[str, Callable[[str, Tensor], Tensor]] = {
    "iivcl": iivcl,
    "iivcl, scaled": iivcl_scaled,
    "torchcodec": torchcodec,
    "torchcodec, scaled": torchcodec_scaled,
    "torchcodec, frames as they come": torchcodec_view,
    "decord": decord,
}
LOADED = ("iivcl", "iivcl, scaled", "torchcodec", "decord")


class Readings(Dataset[Tensor]):
    """The same clips for every reader."""

    def __init__(self, reader: str, paths: list[str]) -> None:
        self.reader, self.paths = reader, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return READERS[self.reader](self.paths[index], draw_indices(index))


def draw_indices(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    starts = random_clip_starts(_videos.FRAMES, generator=generator, **CLIP)
    return clip_indices(starts, _videos.FRAMES, **CLIP)


def main() -> None:
    args = arguments_of_files(__doc__, videos=4, rounds=8)
    videos, rounds = args.videos, args.rounds
    decoding, loading, overhead = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, list[str]] = {coding: [] for coding in CODINGS}
        for seed in range(videos):
            frames = list(_videos.draw(seed))
            for number, (coding, (suffix, codec, options)) in enumerate(CODINGS.items()):
                path = Path(folder, f"{seed}-{number}{suffix}")
                files[coding].append(str(_videos.encode(path, frames, codec, options)))
        for coding, paths in files.items():
            decoding[coding] = time_decoding(paths, rounds)
            for workers in (1, 2):
                loading[f"{coding}, {workers}"] = time_loading(paths * 3, rounds, workers)
            for name, short_side in (("", None), (", scaled", SHORT_SIDE)):
                overhead[coding + name] = time_overhead(paths * 3, rounds, short_side)
    report = {
        **surroundings(args, "av", "torchcodec", "decord"),
        "milliseconds_per_video": decoding,
        "clips_per_second": loading,
        "loader_over_decoding": overhead,
        "targets": targets(decoding, overhead),
    }
    publish("decode", args, report, to_markdown(report))


Times = dict[str, list[float]]


def time_decoding(paths: list[str], rounds: int) -> Times:
    """CPU milliseconds per video of every reader, in turns."""
    times: Times = {name: [] for name in READERS}
    for turn in range(-1, rounds):  # the first one warms up
        for path in paths:
            indices = draw_indices(len(times["iivcl"]))
            for name, read in READERS.items():
                start = time.process_time()
                read(path, indices)
                if turn >= 0:
                    times[name].append(1e3 * (time.process_time() - start))
    return times


def time_loading(paths: list[str], rounds: int, workers: int) -> Times:
    """Clips per second through a DataLoader, in turns."""
    loaders = {
        name: DataLoader(Readings(name, paths), BATCH, num_workers=workers, persistent_workers=True)
        for name in LOADED
    }
    rates: Times = {name: [] for name in LOADED}
    for turn in range(-1, max(rounds // 2, 1)):
        for name, loader in loaders.items():
            start = time.perf_counter()
            clips = sum(batch.shape[0] * batch.shape[1] for batch in loader)
            if turn >= 0:
                rates[name].append(clips / (time.perf_counter() - start))
    return rates


def time_overhead(paths: list[str], rounds: int, short_side: int | None) -> list[float]:
    """CPU time of a DataLoader, with its one worker, over that of a plain loop, less one."""
    dataset = VideoClips(paths, ClipRecipe(short_side=short_side, **CLIP))
    loader = DataLoader(dataset, BATCH, num_workers=1, persistent_workers=True)
    ratios = []
    for turn in range(-1, rounds):
        iterator = iter(loader)
        [worker] = iterator._workers
        start = cpu_seconds(worker.pid)
        for _ in iterator:
            pass
        middle, begin = cpu_seconds(worker.pid), time.process_time()
        for index in range(len(dataset)):
            dataset[index]
        if turn >= 0:
            ratios.append((middle - start) / (time.process_time() - begin) - 1)
    return ratios


def cpu_seconds(worker: int) -> float:
    """CPU time of this process and of its worker."""
    nanoseconds = int(Path(f"/proc/{worker}/schedstat").read_text().split()[0])
    return time.process_time() + nanoseconds / 1e9


def speed(times: Times, name: str, other: str) -> float:
    """Give how many times as fast as ``other`` a reader is."""
    return statistics.median(b / a for a, b in zip(times[name], times[other], strict=True))


def targets(decoding: dict[str, Times], overhead: dict[str, list[float]]) -> list[dict[str, Any]]:
    """As times, since a target is met when what is measured is not above the limit."""
    rows = []
    for coding, times in decoding.items():
        for name, other, least in (
            ("iivcl", "torchcodec", 1.0),
            ("iivcl", "torchcodec, frames as they come", 1.0),
            ("iivcl, scaled", "torchcodec, scaled", 1.1),
            ("iivcl, scaled", "torchcodec", 1.1),
        ):
            rows.append(
                {
                    "target": f"{coding}: time of {name} / {other}",
                    "limit": 1 / least,
                    "measured": 1 / speed(times, name, other),
                }
            )
    for coding, ratios in overhead.items():
        rows.append(
            {
                "target": f"{coding}: CPU time of DataLoader / plain loop, less one",
                "limit": 0.10,
                "measured": statistics.median(ratios),
            }
        )
    return rows


def to_markdown(report: dict[str, Any]) -> str:
    decoding, loading = report["milliseconds_per_video"], report["clips_per_second"]
    return "\n".join(
        [
            "# Two clips of 8 frames, stride 8, from one video of 300x256x340",
            "All readers give the same frames, with one thread. `scaled`: to a short side of "
            f"{SHORT_SIDE} pixels while decoding. Results are contiguous (V, C, T, H, W) tensors, "
            "but for `frames as they come`, where torchcodec's own layout is left as it is. "
            "Colours of iivcl are rounded to the nearest; those of the others are truncated.\n",
            "## One process: CPU milliseconds per video\n",
            table(
                ["coding", *READERS],
                [
                    [coding, *(number(statistics.median(times[name])) for name in READERS)]
                    for coding, times in decoding.items()
                ],
            ),
            "## DataLoader with collation: clips per second, wall time\n",
            table(
                ["coding, workers", *LOADED],
                [
                    [setting, *(number(statistics.median(rates[name])) for name in LOADED)]
                    for setting, rates in loading.items()
                ],
            ),
            "## Targets\n",
            "Medians of the ratios; 0.91 is 1.1 times as fast.\n",
            table(["target", "at most", "measured", ""], target_rows(report["targets"])),
        ]
    )


if __name__ == "__main__":
    main()
