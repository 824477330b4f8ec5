"""From files on disk to optimizer steps: videos per second, and where the time goes.

    python benchmarks/pretrain.py --threads 1

All train the same network on the same files with two clips per video, the aug+ recipe of rho-MoCo
and a queue of 65,536, by momentum contrast or by NNCLR; the contenders differ in how a loop is
written:

- iivcl as in `examples/pretrain.py`: frames scaled while they are decoded, augmentation of the
  batch at once. In momentum contrast it alone looks up neighbours and adds the inter term.
- the way of lightly: torchcodec, torchvision's transforms clip by clip, lightly's modules: its
  update of the momentum encoder and NTXentLoss with a memory bank, or NNMemoryBankModule.
- the way of PySlowFast, which has no NNCLR: PyAV opened per clip, augmentation clip by clip, the
  step of `train_step.py`.

The small network, three layers of separable convolutions, is one where reading counts; R3D-18 one
where it does not. Contenders take turns at whole steps, with the same videos and the same frames.
Nothing runs beside: in training, workers read while the device computes, so the share of decoding
and augmentation is what they have to hide. Of decoding, a part is the decoder's alone: the same
frames from the same packets, neither converted nor scaled. No loop can be faster than that and the
network, which is the bound in the tables. The results go to
``benchmarks/results/pretrain.<device>.json`` and ``.md``.
"""

from __future__ import annotations

import itertools
import runpy
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import _videos
import av
import numpy as np
import torch
from _measure import (
    arguments,
    both,
    number,
    publish,
    ratios,
    summary,
    surroundings,
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
from lightly.models.modules import NNMemoryBankModule
from lightly.models.utils import update_momentum
from torch import Tensor, nn
from torchcodec.decoders import VideoDecoder
from torchvision.transforms import v2
from train_step import Parts, unmarked

from iivcl import NNSupportQueue, augment, backbones
from iivcl.data import ClipRecipe, VideoClips, open_video, random_clip_starts
from iivcl.losses import multi_positive_info_nce

MOMENTUM_CONTRAST, NNCLR = "momentum contrast", "NNCLR"
IIVCL, LIGHTLY, SLOWFAST = "iivcl", "the way of lightly", "the way of PySlowFast"
DECODER = "its decoder alone"
PARTS = {  # of the page, from those of the steps
    "decode": ("decode",),
    "augmentation": ("augment",),
    "forward": ("key encoder", "query encoder"),
    "backward": ("backward", "optimizer"),
    "method": ("momentum", "lookup", "loss", "enqueue"),
}
STRIDE, TURNS = 8, 3  # frames from one to the next; a long file is so many times 10 seconds
SHORT, LONG = "10 s", f"{10 * TURNS} s"
AVI = "10 s, MPEG-4 in AVI"  # of which torchcodec's decoder is known to be the faster


class Row(NamedTuple):
    """One row of the tables."""

    model: str
    videos: int
    frames: int
    pixels: int
    method: str
    files: str
    reading_counts: bool = True


ROWS_OF_TABLE = (
    Row("small", 4, 8, 112, MOMENTUM_CONTRAST, SHORT),
    Row("small", 4, 8, 112, MOMENTUM_CONTRAST, LONG),
    Row("small", 4, 8, 112, MOMENTUM_CONTRAST, AVI),
    Row("small", 4, 8, 112, NNCLR, SHORT),
    Row("r3d_18", 2, 8, 64, MOMENTUM_CONTRAST, SHORT, reading_counts=False),
    Row("r3d_18", 2, 8, 64, NNCLR, SHORT, reading_counts=False),
)
ROUNDS_OF_PARTS = 5
MINIMAL = Path(__file__).parents[1] / "examples" / "train_minimal.py"
Reader = Callable[[Path, int], list[Tensor]]  # two clips, (C, T, H, W) uint8


def small_encoder() -> nn.Module:
    """The encoder of `examples/train_minimal.py`."""
    return runpy.run_path(str(MINIMAL))["SmallEncoder"]()


class WithPredictor(nn.Module):
    """The encoder of NNCLR: an embedding, and a prediction of another."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, backbones.PredictionHead(DIM, 4 * DIM)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, T, H, W) to two (B, D)."""
        z = self.encoder(views)
        return z, self.predictor(z)


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


def nnclr_step(scene: Scene, name: str) -> Callable[[Callable[[str], None]], Tensor]:
    """Set up NNCLR as `examples/pretrain.py` has it, or as lightly's documentation does."""
    scene.encoder = WithPredictor(scene.encoder)
    encoder, optimizer = scene.encoder, scene.optimizer()
    if name == IIVCL:
        queue = NNSupportQueue(ROWS, DIM)
        queue.enqueue(scene.keys, torch.arange(ROWS) // 8 + len(scene.ids))
        ids, positive = scene.ids, torch.eye(len(scene.ids), dtype=torch.bool)

        def contrast(first: Tensor, prediction: Tensor) -> Tensor:
            neighbor = queue.keys[queue.nearest(first, ids=ids).indices[:, 0]]  # (B, D)
            return multi_positive_info_nce(prediction, neighbor, positive, temperature=TEMPERATURE)

        def enqueue(embeddings: list[Tensor]) -> None:
            queue.enqueue(torch.cat(embeddings), ids.repeat(2))
    else:
        bank, criterion = NNMemoryBankModule((ROWS, DIM)), NTXentLoss(temperature=TEMPERATURE)

        def contrast(first: Tensor, prediction: Tensor) -> Tensor:
            return criterion(bank(first, update=True), prediction)

        def enqueue(embeddings: list[Tensor]) -> None:
            pass

    def step(mark: Callable[[str], None]) -> Tensor:
        views = scene.views().chunk(2)  # (B, C, T, H, W) each
        mark("augment")
        (z0, p0), (z1, p1) = map(encoder, views)  # (B, D) each
        mark("query encoder")
        predictions = torch.stack([p0, p1])  # of which one graph goes back
        loss = (contrast(z0.detach(), predictions[1]) + contrast(z1.detach(), predictions[0])) / 2
        backward(loss, predictions, mark)
        optimizer.step()
        optimizer.zero_grad()
        mark("optimizer")
        enqueue([z0.detach(), z1.detach()])
        mark("enqueue")
        return loss.detach()

    return step


def contender(name: str, method: str, setting: Setting, paths: list[Path]) -> Callable[..., Tensor]:
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
        step = nnclr_step(scene, name) if method == NNCLR else iivcl_step(scene, passes=2)
    else:
        scene = OneByOne(setting)
        make_step = lightly_step if name == LIGHTLY else plain_step
        step = nnclr_step(scene, name) if method == NNCLR else make_step(scene)
        read = read_by_torchcodec if name == LIGHTLY else read_by_pyav

    def run(parts: Parts | None = None) -> Tensor:
        mark = unmarked if parts is None else parts
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
        loss = step(mark)
        if parts is not None:
            decode_alone(setting, paths, epoch, videos)
            mark(DECODER)
        return loss

    return run


def batches_of(num_videos: int, size: int) -> Iterator[tuple[int, list[int]]]:
    for epoch in itertools.count():
        order = torch.randperm(num_videos, generator=torch.Generator().manual_seed(epoch))
        for first in range(0, num_videos - size + 1, size):
            yield epoch, order[first : first + size].tolist()


def decode_alone(setting: Setting, paths: list[Path], epoch: int, videos: list[int]) -> None:
    """Decode what a step of iivcl does, and convert nothing."""
    for i in videos:
        with open_video(paths[i]) as video:
            starts = draw_starts(video.num_frames, setting, seed=epoch * len(paths) + i)
            clips = [range(s, s + setting.frames * STRIDE, STRIDE) for s in starts]
            for _ in video._frames(sorted(set().union(*clips))):
                pass


def measure_parts(run: Callable[..., Tensor], device: str) -> dict[str, float]:
    """Give the median milliseconds of every part of the page, and of the decoder alone."""
    rounds = []
    for _ in range(ROUNDS_OF_PARTS):
        parts = Parts(device)
        run(parts)
        rounds.append(parts.milliseconds())
    return {
        part: statistics.median(sum(ms.get(name, 0.0) for name in names) for ms in rounds)
        for part, names in {**PARTS, DECODER: (DECODER,)}.items()
    }


def make_files(folder: Path, count: int) -> dict[str, list[Path]]:
    """Encode files of 10 seconds, and the same played several times over as long files."""
    files: dict[str, list[Path]] = {SHORT: [], LONG: [], AVI: []}
    for i in range(count):
        frames = list(_videos.draw(i))
        there_and_back = itertools.chain.from_iterable(
            frames if turn % 2 == 0 else frames[::-1] for turn in range(TURNS)
        )
        h264, xvid = _videos.h264(250), {"g": "12", "q": "5", "bf": "0"}
        for kind, name, content, codec, options in (
            (SHORT, f"short{i}.mp4", frames, "libx264", h264),
            (LONG, f"long{i}.mp4", there_and_back, "libx264", h264),
            (AVI, f"short{i}.avi", frames, "mpeg4", xvid),
        ):
            files[kind].append(_videos.encode(folder / name, content, codec, options))
    return files


def measure(row: Row, paths: list[Path], device: str, seconds: float) -> dict[str, Any]:
    videos = min(row.videos, len(paths))
    setting = Setting(row.model, videos, row.frames, row.pixels, "float32", device)
    names = [IIVCL, LIGHTLY] if row.method == NNCLR else [IIVCL, LIGHTLY, SLOWFAST]
    runs = {name: contender(name, row.method, setting, paths) for name in names}
    times = take_turns(runs, device=device, seconds=seconds)
    for name, run in runs.items():
        if not run().isfinite():
            raise RuntimeError(f"the loss of {name!r} is not finite: its time means nothing")
    parts = {name: measure_parts(run, device) for name, run in runs.items()}
    alone = {name: ms.pop(DECODER) for name, ms in parts.items()}[IIVCL]
    of_network = sum(parts[IIVCL][part] for part in ("forward", "backward", "method"))
    best = min(sum(parts[name].values()) for name in names[1:])
    return {
        **row._asdict(),
        "milliseconds": summary(times),
        "videos_per_second": {n: 1e3 * videos / min(ms) for n, ms in times.items()},
        "ratios": {name: ratios(times, name, IIVCL) for name in names[1:]},
        "parts": parts,
        "decoder_alone": alone,
        "bound": (alone + of_network) / best,
    }


def find_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    targets = []
    for row in rows:
        what = describe(row)
        for kind in ("fastest", "median") if row["files"] != AVI else ():
            best = min(ratio[kind] for ratio in row["ratios"].values())
            targets.append({
                "target": f"{kind} time of {IIVCL} / the best other, {what}",
                "limit": 1 / 1.5 if row["reading_counts"] else 1.0,
                "measured": 1 / best,
            })  # fmt: skip
        if not row["reading_counts"]:
            parts = row["parts"][IIVCL]
            targets.append({
                "target": f"share of lookup, loss, queue and momentum, {what}",
                "limit": 0.05,
                "measured": parts["method"] / sum(parts.values()),
            })  # fmt: skip
    return targets


def describe(row: dict[str, Any]) -> str:
    clip = f"{row['frames']}x{row['pixels']}"
    return f"{row['model']}, {clip}, {row['method']}, files of {row['files']}"


def to_markdown(report: dict[str, Any]) -> str:
    rows = report["results"]
    header = ["encoder", "videos", "clip", "method", "files"]

    def setting_cells(row: dict[str, Any]) -> list[object]:
        clip = f"{row['frames']}x{row['pixels']}"
        return [row["model"], row["videos"], clip, row["method"], row["files"]]

    names = (IIVCL, LIGHTLY, SLOWFAST)
    speed = [
        [
            *setting_cells(row),
            *(number(row["videos_per_second"].get(name), 2) for name in names),
            *(both(row["ratios"].get(name)) for name in names[1:]),
            number(1 / row["bound"], 2),
        ]
        for row in rows
    ]
    parts = [
        [
            *setting_cells(row), name,
            *(number(100 * ms / sum(of_name.values())) for ms in of_name.values()),
            number(100 * row["decoder_alone"] / of_name["decode"] if name == IIVCL else None, 0),
            number(sum(of_name.values()), 0),
        ]
        for row in rows
        for name, of_name in row["parts"].items()
    ]  # fmt: skip
    return "\n".join(
        [
            "# From files to optimizer steps\n",
            table(["target", "at most", "measured", ""], target_rows(report["targets"])),
            "## Videos per second\n",
            f"Two clips each, of the fastest step. Ratios of times to {IIVCL}, fastest / median "
            "over the rounds. The bound is the best other's time over that of the decoder alone "
            "and the network: more cannot be had without decoding fewer frames.\n",
            table([*header, *names, *(f"{n} / {IIVCL}" for n in names[1:]), "bound"], speed),
            "## Share of each part, in percent\n",
            "Backward holds the optimizer; method is momentum update, lookup, loss with its "
            "gradient up to the embeddings, and queue. Of decoding, the decoder alone takes the "
            "share of the last but one column.\n",
            table([*header, "", *PARTS, "decoder alone / decode", "ms in all"], parts),
        ]
    )


def main() -> None:
    args = arguments(__doc__)
    backbones.small = small_encoder  # type: ignore[attr-defined]  # where Scene looks for networks
    results = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), 4 if args.quick else 6)
        for row in ROWS_OF_TABLE:
            results.append(measure(row, files[row.files], args.device, args.seconds))
            print(row, results[-1]["ratios"], flush=True)
    report = {
        **surroundings(args, "torchvision", "av", "lightly", "torchcodec"),
        "targets": find_targets(results),
        "results": results,
    }
    publish("pretrain", args, report, to_markdown(report))


if __name__ == "__main__":
    main()
