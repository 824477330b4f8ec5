"""Classifiers on encoders: what they are trained on, and the linear protocol of the papers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from _data import Data
from _features import Recipe, read_means, width_of
from _optimizer import half_cosine, make_optimizer, set_rate
from _resume import need
from torch import Tensor, nn
from tqdm import tqdm

from iivcl import augment, data
from iivcl.distributed import rank, world_size

ZOOM = 8 / 7, 10 / 7  # short side over the side of the crop: 256 to 320 for 224


class TrainingViews:
    """Crop, flip and RandAugment of the clips (V, 3, T, H, W) of one video; they stay uint8.

    The crop is the square that a crop of ``size`` cuts out of a frame whose short side was scaled
    to ``size`` times a number drawn from ``zoom``.
    """

    def __init__(
        self, size: int, *, zoom: tuple[float, float] = ZOOM, flip: float = 0.5, magnitude: int = 0
    ) -> None:
        self.size, self.zoom = size, zoom
        color = augment.RandAugment(magnitude=magnitude, num_ops=2 if magnitude else 0)
        self.after = augment.Compose(augment.RandomHorizontalFlip(p=flip), color)

    def __call__(self, clips: Tensor) -> Tensor:
        height, width = clips.shape[-2:]
        zoom = torch.empty(len(clips)).uniform_(*self.zoom)
        side = (min(height, width) / zoom).round()  # (V,)
        corner = torch.rand(2, len(clips)) * torch.stack([height - side, width - side])
        boxes = torch.stack([*corner.round(), side, side], dim=1).long()  # (V, 4)
        return self.after(augment.functional.crop_resize(clips, boxes, self.size))


def training_recipe(args: argparse.Namespace, zoom: tuple[float, float]) -> Recipe:
    """Take one clip with a random start, in as many pixels as the closest crop needs."""
    return Recipe(
        num_frames=args.frames, stride=args.stride, clips_per_video=1, short=args.short,
        short_side=round(args.size * zoom[1]),
    )  # fmt: skip


def to_input(clips: Tensor) -> Tensor:
    """Turn uint8 clips into what encoders take."""
    return augment.evaluation(8)[2:](clips)


class Classifier(nn.Module):
    """An encoder and a linear layer, with dropout between them.

    Args:
        backbone: From clips (N, 3, T, H, W) to features (N, D).
        width: D.
        classes: Number of classes.
        dropout: Share of the features that are dropped in training.
        frozen: Whether the encoder stays as it is, its running statistics included.
    """

    def __init__(
        self, backbone: nn.Module, width: int, classes: int, *, dropout: float = 0.0, frozen: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(not frozen)
        self.frozen = frozen
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Classifier:
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips (N, 3, T, H, W) to logits (N, classes)."""
        return self.head(self.dropout(self.backbone(clips)))


class Softmax(nn.Module):
    """Probabilities of a classifier, whose mean over views is the answer for a video."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, clips: Tensor) -> Tensor:
        return F.softmax(self.classifier(clips).float(), dim=1)


def subset(videos: data.Manifest, rows: Tensor) -> data.Manifest:
    """Take some rows (n,) of a list."""
    return videos._replace(
        paths=[videos.paths[row] for row in rows.tolist()],
        labels=videos.labels[rows], ids=videos.ids[rows], splits=(),
    )  # fmt: skip


# The linear protocol of arXiv 2104.14558, as `evaluate.py --sgd-epochs` runs it.

SGD: dict[str, Any] = {
    "source": "arXiv 2104.14558, with the lr 0.5 at batch 64 that PySlowFast released",
    "optimizer": "SGD, nesterov 0.9", "schedule": "line to the peak, then half a cosine",
    "weight_decay": 0.0, "dropout": 0.0, "loss": "cross-entropy",
    "encoder": "frozen, in eval mode", "features": "as they are, not standardised",
    "training_views": "one clip with a random start; squares of a random place, of a short side "
    "scaled to 8/7 to 10/7 of them; flip 0.5",
    "initial_weights": "normal, std 0.01; biases 0",
    "test": "mean of the softmax over the views", "selection": "none: the last epoch counts",
}  # fmt: skip


def sgd_settings(args: argparse.Namespace, videos: int) -> dict[str, Any]:
    """Spell out the protocol for a number of videos to train on."""
    batch_size = min(args.sgd_batch_size, videos) // world_size() * world_size()
    need(batch_size > 0, f"{videos} videos of the gallery are fewer than {world_size()} ranks")
    return {
        **SGD, "epochs": args.sgd_epochs, "warmup_epochs": args.sgd_epochs * 8 / 60,
        "batch_size": batch_size, "lr": args.sgd_lr * batch_size / 512,
        "lr_rule": f"{args.sgd_lr} x batch size / 512", "seed": args.seed,
    }  # fmt: skip


def sgd_probe(
    encoders: dict[str, nn.Module],
    videos: data.Manifest,
    is_query: Tensor,
    args: argparse.Namespace,
    device: torch.device | str,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Train a linear layer on every frozen encoder, all on the same fresh clips, and test it.

    Returns:
        On rank 0, of every encoder the probabilities (N, classes) and the places (N,) of the
        queries; nothing on the others.
    """
    gallery = subset(videos, (~is_query).nonzero().flatten())
    setting = sgd_settings(args, len(gallery.paths))
    on_error = "raise" if args.on_error == "raise" else "substitute"
    more = {"batch_size": setting["batch_size"], "accumulate": 1, "on_error": on_error}
    loaded = Data(
        argparse.Namespace(**vars(args) | more | {"data": Path(args.data)}),
        videos=gallery, recipe=training_recipe(args, ZOOM), transform=TrainingViews(args.size),
    )  # fmt: skip
    models = classifiers(encoders, int(videos.labels.max()) + 1, args, device)
    heads = [p for model in models.values() for p in model.head.parameters()]
    groups = [{"params": heads, "scale": 1.0}]
    optimizer = make_optimizer(groups, "sgd", setting["lr"])
    half = args.precision != "float32"
    dtype = getattr(torch, args.precision) if half else None
    total, warmup = (round(setting[n] * loaded.steps) for n in ("epochs", "warmup_epochs"))
    bar = tqdm(total=total, desc="linear protocol", disable=rank() > 0, unit="step")
    for epoch in range(args.sgd_epochs):
        for step, (parts, _) in enumerate(loaded.steps_from(epoch, 0), epoch * loaded.steps):
            views, _, labels, _ = (x.to(device, non_blocking=True) for x in parts[0])
            views = to_input(views.flatten(0, 1))  # (B, 3, T, H, W)
            set_rate(optimizer, half_cosine(step, total, warmup=warmup, lr=setting["lr"]))
            losses = []
            for model in models.values():
                with torch.no_grad(), torch.autocast(views.device.type, dtype, half):
                    features = model.backbone(views).float()  # (B, D)
                losses.append(F.cross_entropy(model.head(features), labels))
            torch.stack(losses).sum().backward()  # no head has a part in the loss of another
            for p in heads if world_size() > 1 else ():
                dist.all_reduce(p.grad)
                p.grad /= world_size()
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
        bad = [n for n, m in models.items() if not m.head.weight.isfinite().all()]
        need(not bad, f"the linear protocol diverges on {', '.join(bad)}: give a smaller --sgd-lr")
    bar.close()
    places = is_query.nonzero().flatten()
    with_softmax = {name: Softmax(model) for name, model in models.items()}
    scored = read_means(with_softmax, subset(videos, places), args, device, "test of it")
    return {n: (rows[0], places[rows[1]]) for n, rows in scored.items()} if rank() == 0 else {}


def classifiers(
    encoders: dict[str, nn.Module], classes: int, args: argparse.Namespace, device: Any
) -> dict[str, Classifier]:
    """Put a new linear layer on every encoder."""
    models = {}
    for name, encoder in encoders.items():
        width = width_of(encoder.to(device), args, device)
        torch.manual_seed(args.seed)  # whatever stands beside it
        models[name] = Classifier(encoder, width, classes, frozen=True).to(device).eval()
    return models
