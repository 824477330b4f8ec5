"""From files on disk to optimizer steps: videos per second, and where the time goes.

    python benchmarks/pretrain.py --threads 1

All train the same network on the same files by momentum contrast with two clips per video, the
aug+ recipe of rho-MoCo and a queue of 65,536; the contenders differ in how a loop is written:

- iivcl as in `examples/pretrain.py`: frames scaled while they are decoded, augmentation of the
  batch at once. It alone looks up neighbours and adds the inter term.
- the way of lightly: torchcodec, torchvision's transforms clip by clip, lightly's modules, its
  update of the momentum encoder and its NTXentLoss with a memory bank.
- the way of PySlowFast: PyAV opened per clip, augmentation clip by clip, the step of
  `train_step.py`.

The small network, three layers of separable convolutions, is one where reading counts; R3D-18 one
where it does not. Contenders take turns at whole steps, with the same videos and the same frames.
Nothing runs beside: in training, workers read while the device computes, so the share of decoding
and augmentation is what they have to hide. The results go to
``benchmarks/results/pretrain.<device>.json`` and ``.md``.
"""

from __future__ import annotations

import itertools
import os
import runpy
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _videos
import av
import numpy as np
import torch
from _measure import (
    arguments,
    environment,
    number,
    publish,
    ratios,
    summary,
    table,
    take_turns,
    target_rows,
)
from _steps import (
    DIM,
    MOMENTUM,
    ROWS,
    TEMPERATURE,
    Scene,
    Setting,
    backward,
    iivcl_step,
    plain_step,
)
from lightly.loss import NTXentLoss
from lightly.models.utils import update_momentum
from torch import Tensor, nn
from torchcodec.decoders import VideoDecoder
from torchvision.transforms import v2
from train_step import Parts

from iivcl import augment, backbones
from iivcl.data import ClipRecipe, VideoClips, random_clip_starts

IIVCL, LIGHTLY, SLOWFAST = "iivcl", "the way of lightly", "the way of PySlowFast"
PARTS = {  # of the page, from those of the steps
    "decode": ("decode",),
    "augmentation": ("augment",),
    "forward": ("key encoder", "query encoder"),
    "backward": ("backward", "optimizer"),
    "method": ("momentum", "lookup", "loss", "enqueue"),
}
STRIDE, LONG = 8, 3  # frames from one to the next; a long file is so many times 10 seconds
ROUNDS_OF_PARTS = 3
MINIMAL = Path(__file__).parents[1] / "examples" / "train_minimal.py"
Reader = Callable[[Path, int], list[Tensor]]  # two clips, (C, T, H, W) uint8


def small_encoder() -> nn.Module:
    """The encoder of `examples/train_minimal.py`."""
    return runpy.run_path(str(MINIMAL))["SmallEncoder"]()


def draw_starts(video_frames: int, setting: Setting, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    clip = {"num_frames": setting.frames, "stride": STRIDE, "generator": generator}
    return random_clip_starts(video_frames, **clip).tolist()


class SameStarts:
    """A sampling for `VideoClips` that draws what the other contenders draw."""

    seed = 0

    def __call__(self, video_frames: int, *, generator: torch.Generator, **clip: Any) -> Tensor:
        """Draw from the seed instead of the generator."""
        return random_clip_starts(
            video_frames, generator=torch.Generator().manual_seed(self.seed), **clip
        )


def read_by_torchcodec(path: Path, setting: Setting, seed: int) -> list[Tensor]:
    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
    clips = []
    for start in draw_starts(len(decoder), setting, seed):
        frames = range(start, start + setting.frames * STRIDE, STRIDE)
        clips.append(decoder.get_frames_at(list(frames)).data)  # (T, C, H, W)
    return clips


def read_by_pyav(path: Path, setting: Setting, seed: int) -> list[Tensor]:
    clips = []
    with av.open(str(path)) as container:
        video_frames = container.streams.video[0].frames
    for start in draw_starts(video_frames, setting, seed):
        wanted = set(range(start, start + setting.frames * STRIDE, STRIDE))
        with av.open(str(path)) as container:  # per clip, as its decoder does
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            step = 1 / (stream.average_rate * stream.time_base)  # of pts, from frame to frame
            container.seek(int(start * step), stream=stream)
            images = []
            for frame in container.decode(stream):
                place = round(frame.pts / step)
                if place in wanted:
                    images.append(frame.to_ndarray(format="rgb24"))
                if place >= max(wanted):
                    break
        clips.append(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))  # (T, C, H, W)
    return clips


def clip_by_clip(pixels: int) -> Callable[[Tensor], Tensor]:
    """The recipe in torchvision's transforms, for one clip (T, C, H, W)."""
    return v2.Compose([
        v2.RandomResizedCrop(pixels, scale=(0.2, 0.766), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.6, 0.6, 0.6, 0.15)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(2 * (pixels // 20) + 1, sigma=(0.1, 2.0))], p=0.5),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.45,) * 3, (0.225,) * 3),
    ])  # fmt: skip


class OneByOne(Scene):
    """A scene whose clips come from a reader and are augmented one after the other."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, torch.contiguous_format)
        self.transform_clip = clip_by_clip(setting.pixels)
        self.read: list[Tensor] = []

    def views(self) -> Tensor:
        """Augment clip by clip: (2B, C, T, H, W)."""
        views = [self.transform_clip(clip).transpose(0, 1) for clip in self.read]
        return torch.stack(views)  # (2B, C, T, H, W)


def lightly_step(scene: OneByOne) -> Callable[[Callable[[str], None]], Tensor]:
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(ROWS, DIM))
    optimizer = scene.optimizer()
    encoder, key_encoder = scene.encoder, scene.key_encoder

    def step(mark: Callable[[str], None]) -> Tensor:
        query_clips, key_clips = scene.views().chunk(2)  # (B, C, T, H, W) each
        mark("augment")
        update_momentum(encoder, key_encoder, m=MOMENTUM)
        mark("momentum")
        total = torch.zeros(())
        for first, second in ((query_clips, key_clips), (key_clips, query_clips)):
            query = encoder(first)
            mark("query encoder")
            with torch.no_grad():
                key = key_encoder(second)
            mark("key encoder")
            loss = criterion(query, key) / 2  # writes the keys as well
            backward(loss, query, mark)
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        mark("optimizer")
        return total

    return step


def contender(name: str, setting: Setting, paths: list[Path]) -> Callable[..., Tensor]:
    """Make a function that reads the next videos and trains on them."""
    batches = batches_of(len(paths), setting.videos)
    if name == IIVCL:
        scene = Scene(setting, torch.contiguous_format)  # float32 on a CPU: see train_step.py
        preset = augment.rho_moco(setting.pixels)
        starts = SameStarts()
        recipe = ClipRecipe(
            num_frames=setting.frames,
            stride=STRIDE,
            short_side=setting.pixels * 8 // 7,
            sampling=starts,
        )
        dataset = VideoClips(paths, recipe)
        scene.transform = preset
        scene.apply = preset.apply
        step = iivcl_step(scene, passes=2)
    else:
        scene = OneByOne(setting)
        step = lightly_step(scene) if name == LIGHTLY else plain_step(scene)
        read = read_by_torchcodec if name == LIGHTLY else read_by_pyav

    def run(mark: Callable[[str], None] = lambda part: None) -> Tensor:
        epoch, videos = next(batches)
        if name == IIVCL:
            pairs = []
            for i in videos:
                starts.seed = epoch * len(paths) + i
                pairs.append(dataset[i][0])
            clips = torch.stack(pairs)  # (B, 2, C, T, H, W)
            scene.clips = clips.transpose(0, 1).flatten(0, 1)  # one clip of each, then again
        else:
            pairs = [read(paths[i], setting, seed=epoch * len(paths) + i) for i in videos]
            scene.read = [pair[view] for view in (0, 1) for pair in pairs]
        mark("decode")
        return step(mark)

    return run


def batches_of(num_videos: int, size: int) -> Iterator[tuple[int, list[int]]]:
    for epoch in itertools.count():
        order = torch.randperm(num_videos, generator=torch.Generator().manual_seed(epoch))
        for first in range(0, num_videos - size + 1, size):
            yield epoch, order[first : first + size].tolist()


def measure_parts(run: Callable[..., Tensor], device: str) -> dict[str, float]:
    """Give the median milliseconds of every part of the page."""
    rounds = []
    for _ in range(ROUNDS_OF_PARTS):
        mark = Parts(device)
        run(mark)
        rounds.append(mark.milliseconds())
    return {
        part: statistics.median(sum(ms.get(name, 0.0) for name in names) for ms in rounds)
        for part, names in PARTS.items()
    }


def make_files(folder: Path, count: int) -> dict[str, list[Path]]:
    """Encode files of 10 seconds, and the same played several times over as long files."""
    short, long = [], []
    for i in range(count):
        frames = list(_videos.draw(i))
        there_and_back = itertools.chain.from_iterable(
            frames if turn % 2 == 0 else frames[::-1] for turn in range(LONG)
        )
        options = _videos.h264(250)
        short.append(_videos.encode(folder / f"short{i}.mp4", frames, "libx264", options))
        long.append(_videos.encode(folder / f"long{i}.mp4", there_and_back, "libx264", options))
    return {"10 s": short, f"{10 * LONG} s": long}


def measure(
    setting: Setting, files: str, paths: list[Path], reading_counts: bool, seconds: float
) -> dict[str, Any]:
    runs = {name: contender(name, setting, paths) for name in (IIVCL, LIGHTLY, SLOWFAST)}
    times = take_turns(runs, device=setting.device, seconds=seconds)
    for name, run in runs.items():
        if not run().isfinite():
            raise RuntimeError(f"the loss of {name!r} is not finite: its time means nothing")
    parts = {name: measure_parts(run, setting.device) for name, run in runs.items()}
    return {
        **setting._asdict(),
        "files": files,
        "reading_counts": reading_counts,
        "milliseconds": summary(times),
        "videos_per_second": {n: 1e3 * setting.videos / min(ms) for n, ms in times.items()},
        "ratios": {name: ratios(times, name, IIVCL) for name in (LIGHTLY, SLOWFAST)},
        "parts": parts,
    }


def find_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    targets = []
    for row in rows:
        what = f"{row['model']}, {row['frames']}x{row['pixels']}, files of {row['files']}"
        for kind in ("fastest", "median"):
            best = min(ratio[kind] for ratio in row["ratios"].values())
            targets.append({
                "target": f"{kind} time of {IIVCL} / the best other, {what}",
                "limit": 1 / 1.5 if row["reading_counts"] else 1.0,
                "measured": 1 / best,
            })  # fmt: skip
        if row["model"] != "small":
            parts = row["parts"][IIVCL]
            targets.append({
                "target": f"share of lookup, loss, queue and momentum, {what}",
                "limit": 0.05,
                "measured": parts["method"] / sum(parts.values()),
            })  # fmt: skip
    return targets


def to_markdown(report: dict[str, Any]) -> str:
    rows = report["results"]
    header = ["encoder", "videos", "clip", "files"]

    def setting_cells(row: dict[str, Any]) -> list[object]:
        return [row["model"], row["videos"], f"{row['frames']}x{row['pixels']}", row["files"]]

    names = (IIVCL, LIGHTLY, SLOWFAST)
    speed = [
        [
            *setting_cells(row),
            *(number(row["videos_per_second"][name], 2) for name in names),
            *(f"{r['fastest']:.2f} / {r['median']:.2f}" for r in row["ratios"].values()),
        ]
        for row in rows
    ]
    parts = [
        [
            *setting_cells(row), name,
            *(number(100 * ms / sum(row["parts"][name].values())) for ms in
              row["parts"][name].values()),
            number(sum(row["parts"][name].values()), 0),
        ]
        for row in rows
        for name in names
    ]  # fmt: skip
    return "\n".join(
        [
            "# From files to optimizer steps\n",
            table(["target", "at most", "measured", ""], target_rows(report["targets"])),
            "## Videos per second\n",
            f"Two clips each, of the fastest step. Ratios of times to {IIVCL}, fastest / median "
            "over the rounds.\n",
            table([*header, *names, *(f"{n} / {IIVCL}" for n in names[1:])], speed),
            "## Share of each part, in percent\n",
            "Backward holds the optimizer; method is momentum update, lookup, loss with its "
            "gradient up to the embeddings, and queue.\n",
            table([*header, "", *PARTS, "ms in all"], parts),
        ]
    )


def main() -> None:
    args = arguments(__doc__)
    backbones.small = small_encoder  # type: ignore[attr-defined]  # where Scene looks for networks
    load = [os.getloadavg()[0]]
    settings = [("small", 4, 8, 112, True), ("r3d_18", 2, 8, 64, False)]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), 4 if args.quick else 6)
        for model, videos, frames, pixels, reading_counts in settings:
            for kind, paths in list(files.items())[: 2 if reading_counts else 1]:
                setting = Setting(
                    model, min(videos, len(paths)), frames, pixels, "float32", args.device
                )
                results.append(measure(setting, kind, paths, reading_counts, args.seconds))
                print(setting, kind, results[-1]["ratios"], flush=True)
    report = {
        "environment": environment(args.device, ("torchvision", "av", "lightly", "torchcodec")),
        "load": [*load, os.getloadavg()[0]],
        "targets": find_targets(results),
        "results": results,
    }
    publish("pretrain", args, report, to_markdown(report))


if __name__ == "__main__":
    main()
