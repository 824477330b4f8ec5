"""Features of videos from frozen encoders: encoders of files, views, a cache."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import torch
import torch.distributed as dist
import torchvision
from _report import Report
from _resume import cause, need, refusing, replacing, say, stay_alive
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader
from torch.utils.data.distributed import DistributedSampler
from tqdm import tqdm

import iivcl
from iivcl import augment, backbones, data
from iivcl.distributed import rank, world_size
from iivcl.evaluation import extract_features


def absolute(source: str) -> str:
    """Spell out the path in [BACKBONE=]FILE, for the result is read in another folder."""
    backbone, file = parts(source)
    if source in ("random", "pixels"):
        return source
    return (f"{backbone}=" if backbone else "") + os.path.abspath(file)


def parts(source: str) -> tuple[str, str]:
    if os.path.exists(source):
        return "", source
    backbone, _, file = source.rpartition("=")
    return backbone, file


def open_encoder(source: str, args: argparse.Namespace) -> tuple[nn.Module, Report]:
    """Make one encoder, from clips (N, 3, T, H, W) to features (N, D), and say what it is."""
    if source == "pixels":
        pixels = nn.Sequential(nn.AdaptiveAvgPool3d((4, 7, 7)), nn.Flatten())
        return pixels, {"encoder": "none: mean colours of 4 x 7 x 7 cells of a clip"}
    if source == "random":
        module = build(args.backbone, args.seed)
        about = {"encoder": "random start", "backbone": args.backbone, "seed": args.seed}
        return module, {**about, "weights_sha256": weights_hash(module)}
    backbone, file = parts(source)
    about = saved_with(source, args.backbone)
    backbone = backbone or about.get("backbone") or args.backbone
    need(backbone, f"{file} does not say its backbone: give --backbone, or BACKBONE=FILE")
    module = build(backbone, args.seed)
    main = source == args.checkpoint
    with refusing(ValueError, ImportError, OSError):
        report = backbones.load_weights(module, file, prefix=args.prefix if main else None)
    of_run = {"finetune": "finetuned on labels"}.get(about.get("method"), "query")
    which = of_run if about else f"that under {report.prefix!r}"
    sha256 = file_hash(Path(file))
    # The encoder of a run is a copy of that of its last checkpoint, whose name says the step.
    copies = [Path(file), *Path(file).parent.glob("checkpoints/step-*/encoder.pt")]
    steps = [int(p.parent.name[5:]) for p in copies if re.fullmatch(r"step-\d+", p.parent.name)
             and file_hash(p) == sha256]  # fmt: skip
    about |= {"encoder": which, "backbone": backbone, "step": max(steps, default=None)}
    return module, {**about, "sha256": sha256, "weights_sha256": weights_hash(module)}


def build(name: str, seed: int) -> nn.Module:
    need(name, "--beside random needs the --backbone, or a checkpoint that says it")
    torch.manual_seed(seed)
    module, _, function = name.rpartition(":")
    need(module or name in backbones.__all__, f"--backbone {name} is not in iivcl.backbones; a "
         "function of your own is my_module:my_function")  # fmt: skip
    try:
        source = importlib.import_module(module) if module else backbones
        return getattr(source, function)()
    except (ImportError, AttributeError, TypeError) as error:
        need(False, f"--backbone {name}: {cause(error)}")


@torch.no_grad()
def width_of(encoder: nn.Module, args: argparse.Namespace, device: Any) -> int:
    """Find the number of features, as an encoder gives them of one clip; its modes stay."""
    modes = [(module, module.training) for module in encoder.modules()]
    clip = torch.zeros(1, 3, args.frames, args.size, args.size, device=device)
    width = encoder.eval()(clip).shape[1]
    for module, training in modes:
        module.training = training
    return width


def saved_with(source: str, given: str | None) -> Report:
    """Read what `pretrain.py` says beside the weights of [BACKBONE=]FILE; nothing in others' files.

    No file chooses what is imported: an encoder of one's own is the one that is ``given``.
    """
    backbone, file = parts(source)
    need(os.path.isfile(file), f"no such file: {file}")
    if file.endswith(".safetensors"):
        return {}
    try:
        content = torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes its reader stumble over
        need(False, f"{file} is no checkpoint, or not whole ({type(error).__name__})")
    names = ("method", "backbone", "frames", "stride", "size")
    about = {n: content[n] for n in names if isinstance(content, dict) and n in content}
    own = about.get("backbone") or ""
    need(
        ":" not in own or own in (backbone, given),
        f"{file} is of an encoder of your own: give --backbone {own}, or {own}={file}",
    )
    return about


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_hash(module: nn.Module) -> str:
    digest = hashlib.sha256(str(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Recipe(data.ClipRecipe):
    """A recipe that names the video which is shorter than a clip, where that is an error."""

    def indices(self, video: data.Video, *, generator: torch.Generator | None = None) -> Tensor:
        try:
            return super().indices(video, generator=generator)
        except ValueError as error:
            raise data.DecodeError(f"{video.name}: {error}") from error


class Together(nn.Module):
    """Encoders side by side, so that videos are decoded once; and whether a view repeats one.

    From views (N, 3, T, H, W), of which each video has as many, to (N, D1 + D2 + ... + 1).
    """

    def __init__(self, encoders: list[nn.Module], args: argparse.Namespace) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.clips, self.crops, self.precision = args.clips, args.crops, args.precision
        self.widths: list[int] = []

    def forward(self, views: Tensor) -> Tensor:
        half = self.precision != "float32"
        dtype = getattr(torch, self.precision) if half else None
        with torch.autocast(views.device.type, dtype, half):
            features = [encoder(views).float() for encoder in self.encoders]  # (N, D) each
        self.widths = [f.shape[1] for f in features] + [1]
        clips = views.unflatten(0, (-1, self.clips, self.crops)).flatten(2)  # (B, clips, *)
        repeats = torch.zeros(clips.shape[:2], device=views.device)
        repeats[:, 1:] = (clips[:, 1:] == clips[:, :-1]).all(dim=2).float()
        flags = repeats.repeat_interleave(self.crops, dim=1).flatten()  # (N,)
        return torch.cat([*features, flags[:, None]], dim=1)


def three_crops(clips: Tensor, size: int) -> Tensor:
    """Cut both ends and the middle of the longer side of clips (V, 3, T, H, W), to 3 V views."""
    resize, center, *to_float = augment.evaluation(size)
    clips = resize(clips)
    side = 3 if clips.shape[3] > clips.shape[4] else 4
    ends = clips.narrow(side, 0, size), clips.narrow(side, clips.shape[side] - size, size)
    crops = torch.stack([center(part) for part in (ends[0], clips, ends[1])], dim=1).flatten(0, 1)
    return augment.Compose(*to_float)(crops)


Rows = tuple[Tensor, Tensor, Tensor]  # features (N, D), places in the list (N,), repeats (N,) bool


def features_of(
    encoders: dict[str, nn.Module], videos: data.Manifest, args: argparse.Namespace, device: str
) -> dict[str, Rows]:
    """Take one feature per video of every encoder: the mean over its views."""
    cache = cache_files(encoders, videos, args)
    missing = [name for name in encoders if cache[name] is None or not cache[name].exists()]
    agreed = [missing]
    if world_size() > 1:
        dist.broadcast_object_list(agreed)
    missing = agreed[0]
    found = {
        n: torch.load(cache[n], weights_only=True)
        for n in encoders
        if n not in missing and rank() == 0
    }
    if missing:
        found |= read_means({name: encoders[name] for name in missing}, videos, args, device)
    if missing and args.cache and rank() == 0:
        skipped = len(videos.paths) - len(found[missing[0]][1])
        if skipped:  # another time they may be read, or be an error
            say(f"features are not kept in --cache: {skipped} videos were skipped")
        for name in () if skipped else missing:
            keep(found[name], cache[name])
    return {name: found[name] for name in encoders} if rank() == 0 else {}


def keep(rows: Rows, path: Path) -> None:
    """Write features into the cache, or say why not: they are not lost by it."""
    try:
        with replacing(path) as unfinished:
            torch.save(rows, unfinished)
    except (OSError, RuntimeError) as error:  # the second is what torch makes of a full disk
        say(f"features are not kept in --cache {path.parent}: {cause(error).splitlines()[0]}")


def collate_read(batch: list[Any]) -> Any:
    """Collate what could be read of a batch; if that is nothing, give the error that says why.

    Its loader takes a ConcatDataset, which unlike `VideoClips` itself hands on what was skipped.
    """
    try:
        return data.collate_clips(batch)
    except data.DecodeError as error:
        return error


def only_read(batches: Iterable[Any]) -> Iterator[Any]:
    """Leave out batches of which nothing could be read; an error if no rank has any other."""
    count, errors = 0, []
    for batch in batches:
        if isinstance(batch, data.DecodeError):
            errors.append(batch)
        else:
            count += 1
            yield batch
    counts = [count]
    if world_size() > 1:
        counts *= world_size()
        dist.all_gather_object(counts, count)
    if errors and not any(counts):
        raise errors[0]


def read_means(
    modules: dict[str, nn.Module],
    videos: data.Manifest,
    args: argparse.Namespace,
    device: torch.device | str,
    text: str = "features",
) -> dict[str, Rows]:
    """Take of every module its mean over the views of a video; whole on rank 0 alone."""
    recipe = Recipe(
        num_frames=args.frames, stride=args.stride, clips_per_video=args.clips,
        sampling="uniform", short=args.short,
    )  # fmt: skip
    crop = (
        augment.evaluation(args.size) if args.crops == 1 else partial(three_crops, size=args.size)
    )
    clips = data.VideoClips(videos.paths, recipe, transform=crop, on_error=args.on_error)
    loader = DataLoader(
        ConcatDataset([clips]), args.batch_size, num_workers=args.workers, collate_fn=collate_read,
        sampler=DistributedSampler(clips, world_size(), rank(), shuffle=False),
        worker_init_fn=stay_alive, generator=torch.Generator(),
    )  # fmt: skip
    together = Together(list(modules.values()), args).to(device)
    batches = tqdm(loader, text, disable=rank() > 0, leave=text == "features")
    with clips.name_crashes():
        all_columns, places, _ = extract_features(
            together, only_read(batches), device=device, distributed="gather"
        )
    # This rank may have read none of the videos.
    widths = together.widths or [*(width_of(m, args, device) for m in modules.values()), 1]
    *columns, repeats = all_columns.split(widths, dim=1)
    return {
        name: (columns_of_one.clone(), places, repeats[:, 0] > 0)
        for name, columns_of_one in zip(modules, columns, strict=True)
    }


def cache_files(
    encoders: dict[str, nn.Module], videos: data.Manifest, args: argparse.Namespace
) -> dict[str, Path | None]:
    """Name the file of each encoder's features by all that they depend on."""
    if not args.cache:
        return dict.fromkeys(encoders)
    folder = Path(args.cache).expanduser()
    with refusing(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    stats = [os.stat(path) if os.path.exists(path) else None for path in videos.paths]
    files = [
        (p, s and (s.st_size, s.st_mtime_ns)) for p, s in zip(videos.paths, stats, strict=True)
    ]
    names = ("frames", "stride", "clips", "crops", "size", "short", "precision", "batch_size")
    reading = [files, [getattr(args, name) for name in names], versions()]
    keys = {n: json.dumps([weights_hash(m), *reading]) for n, m in encoders.items()}
    return {n: folder / f"{hashlib.sha256(k.encode()).hexdigest()}.pt" for n, k in keys.items()}


def versions() -> dict[str, str]:
    modules = (torch, torchvision, av, iivcl)
    return {"python": platform.python_version(), **{m.__name__: m.__version__ for m in modules}}
