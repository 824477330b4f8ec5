"""One cell of the evidence: training by one method, and what it is worth."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _evidence_methods import METHODS, TEMPERATURE, Lookup, Method
from _evidence_sets import SIZE, Clips, Videos
from torch import Tensor, nn

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.data import random_clip_starts, uniform_clip_starts
from iivcl.diagnostics import effective_rank, neighbor_age, neighbor_purity
from iivcl.evaluation import fit_linear_probe, knn_classify, retrieval_recall, topk_accuracy
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_

MINIMAL = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "train_minimal.py"))
FRAMES, CLIPS = 16, 4  # of a clip, as in the example; of a video when it is evaluated
BATCH, DIM = 32, 128
POINTS = 20  # of the curves
BASELINES = ("raw-pixels", "frame-differences", "random-start")
Metrics = dict[str, float]


def settings(kind: str) -> Any:
    return MINIMAL["SHAPES" if kind == "shapes" else "REAL"]


def describe(kind: str) -> dict[str, Any]:
    """List what all cells of a table must have in common, ready for JSON."""
    setting = settings(kind)
    return {
        "frames": FRAMES,
        "stride": clip_of(kind)["stride"],
        "size": SIZE,
        "scale": list(setting.scale),
        "colour": setting.colour,
        "learning_rate": setting.learning_rate,
        "batch": BATCH,
        "dim": DIM,
        "queue": Method.queue,
        "temperature": TEMPERATURE,
        "clips": CLIPS,
    }


def clip_of(kind: str) -> dict[str, int]:
    return {"num_frames": FRAMES, "stride": settings(kind).stride * 16 // FRAMES}


NORMALIZE = augment.Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))


def run_cell(
    videos: Videos,
    split: tuple[Tensor, Tensor],
    method: str,
    *,
    steps: int,
    seed: int,
    device: str = "cpu",
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train, and evaluate on people whom training has not seen.

    Args:
        videos: The set.
        split: Places of the videos to train on, and to test.
        method: A name in `METHODS` or `BASELINES`.
        steps: Of training.
        seed: Of everything that is drawn. Up to the first neighbours, methods of one seed that have
            the same parts take the same steps.
        device: Where it runs.
        check: Called at every step; may raise.

    Returns:
        The results and the curves, ready for JSON.
    """
    torch.manual_seed(seed)
    encoder: nn.Module = MINIMAL["SmallEncoder"]().to(device)
    curves: list[Metrics] = []
    sees_changes = method in METHODS and METHODS[method].sees == "changes"
    if method in METHODS:
        curves = train(encoder, videos, split[0], method, steps=steps, seed=seed, check=check)
    trained = nn.Sequential(NORMALIZE, *[Changes()] * sees_changes, encoder)
    pixels = {"raw-pixels": Pixels("values"), "frame-differences": Pixels("changes")}
    features: nn.Module = pixels.get(method, trained)
    results = evaluate(features, videos, *split, device=device)
    return {"setting": describe(videos.kind), "results": results, "curves": curves}


def train(
    backbone: nn.Module,
    videos: Videos,
    places: Tensor,
    name: str,
    *,
    steps: int,
    seed: int,
    check: Callable[[], None],
) -> list[Metrics]:
    """Train the backbone in place, and return the curves."""
    method, setting = METHODS[name], settings(videos.kind)
    device = next(backbone.parameters()).device
    width: int = backbone.feature_dim  # type: ignore[assignment]

    def head() -> nn.Module:
        return backbones.ProjectionHead(width, 256, DIM, num_layers=2, norm="batch")

    heads = nn.ModuleList([head() for _ in range(1 + (method.head == "own"))])
    online = nn.ModuleList([backbone, heads]).to(device)
    target = momentum_copy(online)
    predictor = nn.Identity()
    if method.query == "prediction":
        predictor = backbones.PredictionHead(DIM, 256).to(device)
    queues = [NNSupportQueue(method.queue, DIM).to(device) for _ in heads]
    row_labels = torch.full((method.queue,), -1, device=device)
    two_views, second = method.lookup != "embedding", nn.Identity()
    near = width + DIM * (method.lookup == "both")  # numbers that neighbours are near in
    second_queue = NNSupportQueue(method.queue, near).to(device)
    if two_views:  # trained first, and then left as it is
        second = MINIMAL["SmallEncoder"]().to(device)
        how = {"steps": steps, "seed": seed, "check": check}
        train(second, videos, places, "changes-intra", **how)
        second.eval()
    intra = IIVCLLoss(num_neighbors=0, temperature=TEMPERATURE, batch_negatives=True)
    parameters = [*online.parameters(), *predictor.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, setting.learning_rate, weight_decay=1e-4, fused=device.type == "cuda"
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    transform = augment.Compose(
        augment.RandomResizedCrop(SIZE, scale=setting.scale),
        augment.ToFloat(),
        *([augment.ColorJitter(**setting.colour), augment.RandomGrayscale(p=0.3)] * method.colours),
        NORMALIZE,
    )
    see = Changes() if method.sees == "changes" else nn.Identity()
    draws, method_draws = (torch.Generator().manual_seed(2 * seed + i) for i in (0, 1))
    clips = Clips(videos, device, **clip_of(videos.kind))
    batch = min(BATCH, len(places))
    all_ids, all_labels = (x.to(device) for x in (videos.ids(method.ids), videos.labels))

    def embed(model: nn.ModuleList, views: Tensor) -> list[Tensor]:  # (2, B, D) of every head
        features = model[0](views)
        return [F.normalize(head(features), dim=1).view(2, batch, DIM) for head in model[1]]

    curves: list[Metrics] = []
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        check()
        if len(order) < batch:
            order = places[torch.randperm(len(places), generator=draws)]
        chosen, order = order[:batch], order[batch:]
        starts = [clips.starts(i, random_clip_starts, generator=draws) for i in chosen.tolist()]
        pairs = clips.cut(torch.stack(starts, dim=1).flatten())  # (2 B, 3, T, H, W), first clips
        frames = transform(pairs, generator=draws)  # of all videos first
        views, chosen = see(frames), chosen.to(device, non_blocking=True)
        ids, labels = all_ids[chosen], all_labels[chosen]

        query = embed(online, views)
        with torch.no_grad():
            momentum_update_(target, online, cosine_momentum(step, steps, base=0.98))
            key = embed(target, views)
        losses = [intra(query[0][i], key[0][1 - i], queues[0], ids=ids).intra for i in (0, 1)]
        loss = torch.stack(losses).mean()

        started = method.find is not None and step >= method.start * steps
        shown = step % max(1, steps // POINTS) == 0 or step == steps - 1
        look = Lookup(key[-1], ids, queues[-1], labels, row_labels, method_draws)
        if two_views:  # its rows are in step with those of the other queues
            with torch.no_grad():
                near_in = [F.normalize(second(Changes()(frames)), dim=1).view(2, batch, width)]
                near_in += [key[-1]] * (method.lookup == "both")
                look = look._replace(
                    keys=F.normalize(torch.cat(near_in, dim=2), dim=2), queue=second_queue
                )
        if shown:
            curves.append({"step": step, "intra": loss.item(), **watch(look, query[0])})
        if started:
            found = method.find(look)
            seen = [predictor(query[-1][i]) for i in (0, 1)]
            inter = [
                method.term(seen[i], key[-1][1 - i], queues[-1], ids, found[1 - i]) for i in (0, 1)
            ]
            term = torch.stack(inter).mean()
            loss = loss + method.weight * term
            if shown:
                curves[-1] |= {"inter": term.item(), **watch_accepted(found[0], look)}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        rows = (queues[0].cursor + torch.arange(2 * batch, device=device)) % method.queue
        row_labels[rows] = labels.repeat(2)
        for queue, keys in zip(queues, key, strict=True):
            queue.enqueue(keys.flatten(0, 1), ids.repeat(2))
        if two_views:
            second_queue.enqueue(look.keys.flatten(0, 1), ids.repeat(2))
    return [{name: tidy(value) for name, value in point.items()} for point in curves]


class Changes(nn.Module):
    """Show motion alone, (B, 3, T - 1, H, W): another view of the same clip."""

    def forward(self, views: Tensor) -> Tensor:
        return views.diff(dim=2)


def watch(look: Lookup, query: Tensor) -> Metrics:
    """Measure the five nearest rows, whatever the method takes, and the embedding."""
    found = look.queue.nearest(look.keys[0], 5, ids=look.ids)
    return {
        "nearest_purity": neighbor_purity(found, look.row_labels, look.labels).item(),
        "nearest_similarity": found.similarity[found.valid].mean().item(),
        "nearest_age": neighbor_age(found, look.queue.ages).item(),
        "effective_rank": effective_rank(query.detach().flatten(0, 1)).item(),
    }


def watch_accepted(found: Any, look: Lookup) -> Metrics:
    return {
        "purity": neighbor_purity(found, look.row_labels, look.labels).item(),
        "accepted": found.valid.float().sum(1).mean().item(),
        "similarity": found.similarity[found.valid].mean().item(),
        "age": neighbor_age(found, look.queue.ages).item(),
    }


def tidy(value: float) -> Any:
    """Round a number, and write one that does not exist as JSON can."""
    return round(value, 5) if math.isfinite(value) else None


class Pixels(nn.Module):
    """What is known without a network: gray values, or how much each pixel changes."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, video: Tensor) -> Tensor:
        gray = video.mean(1)  # (B, T, H, W)
        return (gray if self.what == "values" else gray.diff(dim=1).abs().sum(1)).flatten(1)


@torch.no_grad()
def evaluate(
    features: nn.Module, videos: Videos, train: Tensor, test: Tensor, *, device: str
) -> Metrics:
    """Measure features of (B, 3, T, H, W) in [0, 1] by all protocols, from clips of the centre."""
    transform = augment.Compose(
        augment.ResizeShortSide(SIZE), augment.CenterCrop(SIZE), augment.ToFloat()
    )
    clips = Clips(videos, device, **clip_of(videos.kind))
    features.eval()

    def features_of(places: Tensor) -> Tensor:  # (N, D), on the host, which is as fast from here on
        how = {"clips_per_video": CLIPS}
        starts = torch.cat([clips.starts(i, uniform_clip_starts, **how) for i in places.tolist()])
        parts = [features(transform(clips.cut(part))) for part in starts.split(8 * CLIPS)]
        return torch.cat(parts).float().unflatten(0, (-1, CLIPS)).mean(1).cpu()

    gallery, query = features_of(train), features_of(test)
    labels, truth = videos.labels[train], videos.labels[test]
    recall = retrieval_recall(query, truth, gallery, labels, ks=(1, 5))
    classes = int(videos.labels.max()) + 1
    near = {"k": min(20, len(gallery)), "num_classes": classes}
    votes = knn_classify(query, gallery, labels, **near)
    probe = fit_linear_probe(gallery, labels, num_classes=classes)
    return {
        "recall_at_1": round(recall[1], 5),
        "recall_at_5": round(recall[5], 5),
        "knn": round(topk_accuracy(votes, truth, ks=(1,))[1], 5),
        "linear": round(topk_accuracy(probe(query), truth, ks=(1,))[1], 5),
        "test_videos": len(test),
    }
