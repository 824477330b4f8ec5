"""What the examples show of a run: numbers, pictures of neighbours, and a verdict on its health.

Numbers go to `log.jsonl`, one line a step that is looked at, and to TensorBoard where it is
installed. A line depends on its step alone (but for speed), so a run that was killed and resumed
writes the lines that it would have written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from _checkpoints import Run, averaged_buffers, unwrap
from _data import Data
from _features import collate_read, only_read
from _resume import replacing, say, stay_alive, write_whole
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchvision.utils import make_grid

from iivcl import augment, diagnostics
from iivcl.data import ClipRecipe, DecodeError, VideoClips, open_video
from iivcl.distributed import all_gather_cat, rank, world_size
from iivcl.evaluation import extract_features, knn_classify, topk_accuracy
from iivcl.queues import Neighbors

SHOWN, FRAMES, PIXELS = 8, 3, 64  # of a picture: queries, frames of a video, pixels of a frame
MOST_FOR_KNN = 10_000  # videos


class Trouble(Exception):
    """The run is not worth going on with."""


class Log:
    """The numbers of a run, as JSON lines and in TensorBoard; rank 0 alone writes them.

    Args:
        folder: Of the run.
        step: Step at which the run goes on: what a killed one logged after it is cut off.
        clips_per_step: Over all ranks.
    """

    def __init__(self, folder: Path, step: int, *, clips_per_step: int) -> None:
        self.path, self.step, self.clips_per_step = folder / "log.jsonl", step, clips_per_step
        self.pictures = folder / "neighbors"
        self.clock, self.seconds_waited = time.perf_counter(), 0.0
        self.shown: dict[str, str] = {}
        self.board = None
        if rank() > 0:
            return
        lines = [] if not self.path.exists() else self.path.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        write_whole(self.path, "".join(ln for ln in whole if json.loads(ln)["step"] <= step))
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            say("no TensorBoard: pip install tensorboard")
        else:
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def waited(self, seconds: float) -> None:
        self.seconds_waited += seconds

    def write(self, step: int, line: dict[str, float], sheet: Image.Image | None = None) -> None:
        """Write the numbers of one step, and the speed since the last."""
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        clips = (step - self.step) * self.clips_per_step
        speed = {
            "clips_per_second": clips / seconds,
            "data_wait": min(1.0, self.seconds_waited / seconds),  # share of the time
        }
        self.step, self.seconds_waited = step, 0.0
        short = {"loss": "loss", "embedding_std": "std", "validation_top1": "top1"}
        self.shown |= {short[name]: f"{line[name]:.3f}" for name in short if name in line}
        self.shown |= {
            "clips/s": f"{speed['clips_per_second']:.1f}",
            "wait": f"{speed['data_wait']:.0%}",
        }
        if rank() > 0:
            return
        line = {**line, **speed}
        known = {name: value if math.isfinite(value) else None for name, value in line.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **known}) + "\n")
        if sheet is not None:
            self.pictures.mkdir(exist_ok=True)
            with replacing(self.pictures / f"step-{step:08d}.png") as unfinished:
                sheet.save(unfinished, "PNG")
        if self.board is not None:
            for name, value in line.items():
                if math.isfinite(value):
                    self.board.add_scalar(name, value, step)
            if sheet is not None:
                self.board.add_image("neighbors", np.asarray(sheet), step, dataformats="HWC")
            self.board.flush()

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def look_up(run: Run, keys: Tensor, ids: Tensor, k: int = 5) -> Neighbors:
    """Find the neighbours of keys (B, D) in the queue, before these are enqueued."""
    return run.queue.nearest(keys, min(k, run.queue.size), ids=ids)


def all_rows(run: Run, values: Tensor) -> Tensor:
    """Give one value per row of the queue, by the numbers that its lookup gives to rows."""
    return all_gather_cat(values) if run.queue.distributed == "shard" else values


@torch.no_grad()
def describe(
    run: Run, terms: dict[str, Tensor], query: Tensor, found: Neighbors, ids: Tensor, labels: Tensor
) -> dict[str, float]:
    """Gather the numbers of one step: means over the ranks that know them.

    Args:
        run: Before the keys of the step are enqueued.
        terms: The loss and its parts, ().
        query: (B, V, D) embeddings of the trained encoder.
        found: Neighbours (B, k) of a key of every video.
        ids: (B,).
        labels: (B,), -1 where unknown.
    """
    row_labels = all_rows(run, run.labels.ids)
    known = (row_labels[found.indices] >= 0) & (labels[:, None] >= 0)
    labelled = found._replace(valid=found.valid & known)
    similarity = found.similarity.masked_fill(~found.valid, 0.0)
    values = {
        **terms,
        "embedding_std": diagnostics.embedding_std(query.flatten(0, 1)),
        "effective_rank": diagnostics.effective_rank(query.flatten(0, 1)),
        "neighbor_similarity": similarity.sum() / found.valid.sum(),
        "neighbor_age": diagnostics.neighbor_age(found, all_rows(run, run.queue.ages)),
        "self_match_rate": diagnostics.self_match_rate(found, all_rows(run, run.queue.ids), ids),
        "neighbor_purity": diagnostics.neighbor_purity(labelled, row_labels, labels),
    }
    numbers = torch.stack([value.detach().float() for value in values.values()])
    sums = torch.stack([numbers.nan_to_num(0.0), (~numbers.isnan()).float()])  # and of how many
    if world_size() > 1:
        dist.all_reduce(sums)
    means = (sums[0] / sums[1]).tolist()  # the one wait for the device
    return dict(zip(values, means, strict=True))


Recent = list[tuple[int, Tensor, Tensor]]  # steps since the last check: number, loss, videos


def check_finite(run: Run, recent: Recent, path_of: Callable[[int], str]) -> None:
    """Raise on all ranks when a loss since the last check, or a weight, is not finite."""
    losses = torch.stack([loss for _, loss, _ in recent]).cpu()
    norms = torch._foreach_norm([p.detach() for p in unwrap(run.encoder).parameters()])
    weights = torch.stack([getattr(n, "full_tensor", lambda n=n: n)() for n in norms]).cpu()
    own = torch.cat([~losses.isfinite(), ~weights.isfinite().all()[None]]).int()
    bad = own.clone()
    dist.all_reduce(bad, op=dist.ReduceOp.MAX, group=run.hosts)
    if not bad.any():
        return
    first = int(bad.argmax())
    step, loss, videos = recent[min(first, len(recent) - 1)]
    if first == len(recent):
        raise Trouble(f"step {step}: a weight is not finite" + listed(videos, path_of))
    files = listed(videos, path_of) if own[first] else ""
    raise Trouble(f"step {step}: the loss is not finite; here it is {float(loss)}" + files)


def check_spread(recent: Recent, path_of: Callable[[int], str], std: float, bound: float) -> None:
    """Raise on all ranks when the embeddings have become one point, by their std."""
    if std < bound:
        step, _, videos = recent[-1]
        raise Trouble(
            f"step {step}: the embeddings have collapsed, their std is {std:.2g}, below "
            f"{bound:.2g}" + listed(videos, path_of)
        )


def listed(videos: Tensor, path_of: Callable[[int], str]) -> str:
    return "; its videos:" + "".join(f"\n  {path_of(video)}" for video in videos.tolist())


class FeaturesOf(nn.Module):
    """The output of the backbone inside an encoder, as evaluations want it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> Tensor:
        return self.encoder(clips, head=False)


def knn_accuracy(run: Run, data: Data, args: argparse.Namespace) -> dict[str, float]:
    """Classify every labelled video by the others; empty without labels. All ranks call this.

    None votes for itself. The features are those of `encoder.pt`, of one clip from the middle.
    """
    labelled = [] if data.labels is None else (data.labels >= 0).nonzero().flatten().tolist()
    labelled = labelled[:: max(1, len(labelled) // MOST_FOR_KNN)]
    if len(labelled) < 2:
        return {}
    recipe = ClipRecipe(
        num_frames=args.frames, stride=args.stride, clips_per_video=1, sampling="uniform"
    )
    clips = VideoClips(
        [data.set.path(i) for i in labelled], recipe, transform=augment.evaluation(args.size),
        on_error="skip",
    )  # fmt: skip
    sampler = DistributedSampler(clips, world_size(), rank(), shuffle=False)
    loader = DataLoader(
        ConcatDataset([clips]), 16, sampler=sampler, num_workers=args.workers,
        collate_fn=collate_read, worker_init_fn=stay_alive, generator=torch.Generator(),
    )  # fmt: skip
    with averaged_buffers(run.encoder):
        model = FeaturesOf(unwrap(run.encoder))
        found = extract_features(model, only_read(loader), device=run.device, distributed="gather")
    labels = data.labels[labelled][found.indices]
    if len(labels) < 2:
        return {}
    scores = knn_classify(found.features, None, labels, k=min(20, len(labels) - 1))
    return {"knn_accuracy": topk_accuracy(scores, labels, ks=(1,))[1]}


def contact_sheet(run: Run, queries: Tensor, found: Neighbors, data: Data) -> Image.Image | None:
    """Draw videos and on their right the neighbours (B, k), with the cosine; None on other ranks.

    Call it before the keys of the step are enqueued.
    """
    videos = all_rows(run, run.videos.ids).cpu()
    if rank() > 0:
        return None
    found = Neighbors(*(values[:SHOWN].cpu() for values in found))
    width, height = FRAMES * PIXELS + 8, PIXELS + 20
    size = 8 + (1 + found.indices.shape[1]) * width, 8 + len(found.indices) * height
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, query in enumerate(queries[:SHOWN].tolist()):
        cells = [(query, f"video {query}")]
        for index, cosine, valid in zip(
            found.indices[row], found.similarity[row], found.valid[row], strict=True
        ):
            if valid:
                cells.append((int(videos[index]), f"{cosine:.3f} video {videos[index]}"))
        for column, (video, text) in enumerate(cells):
            x, y = 8 + column * width, 8 + row * height
            strip = make_grid(list(thumbnails(data.set.path(video))), nrow=FRAMES, padding=0)
            sheet.paste(Image.fromarray(strip.permute(1, 2, 0).numpy()), (x, y))
            draw.text((x, y + PIXELS + 2), text, fill="black")
    return sheet


def thumbnails(path: str) -> Tensor:
    """Read frames from the middle of a video, (FRAMES, 3, PIXELS, PIXELS) uint8."""
    crop = augment.Compose(augment.ResizeShortSide(PIXELS), augment.CenterCrop(PIXELS))
    try:
        with open_video(content_of(path), name=path) as video:
            last = video.num_frames - 1
            middle = torch.linspace(0.25 * last, 0.75 * last, FRAMES).round().long()
            return crop(video.read(middle[None]))[0].transpose(0, 1)
    except DecodeError:
        return torch.full((FRAMES, 3, PIXELS, PIXELS), 128, dtype=torch.uint8)


def content_of(path: str) -> str | bytes:
    """Give the path, or of a video in a shard its bytes."""
    archives = (path[: found.end()] for found in re.finditer(r"\.tar(?=/)", path))
    archive = next(filter(os.path.isfile, archives), None)  # a folder may be named so as well
    if archive is None:
        return path
    with tarfile.open(archive) as shard:
        return shard.extractfile(path[len(archive) + 1 :]).read()
