"""One cell of the evidence: training by one method, and what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _evidence_features import (
    CLIPS,
    FRAMES,
    NORMALIZE,
    clip_of,
    features_of,
    settings,
    small_encoder,
)
from _evidence_methods import METHODS, TEMPERATURE, Method
from _evidence_sets import SIZE, Clips, Videos
from _evidence_train import BATCH, DIM, Metrics, Run, State
from torch import Tensor, nn

from iivcl.evaluation import (
    fit_linear_probe,
    fit_whitening,
    knn_classify,
    retrieval_metrics,
    topk_accuracy,
)

BASELINES = ("raw-pixels", "frame-differences", "random-start")


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


def run_cell(
    videos: Videos,
    split: tuple[Tensor, Tensor],
    method: str,
    *,
    steps: int,
    seed: int,
    device: str = "cpu",
    half: bool = False,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train, and evaluate on people whom training has not seen.

    Args:
        videos: The set.
        split: Places of the videos to train on, and to test.
        method: A name in `METHODS` or `BASELINES`.
        steps: Of training.
        seed: Of everything that is drawn. Up to the first neighbours, methods of one seed that have
            the same parts take the same steps, once in a process.
        device: Where it runs.
        half: Whether models are trained in bfloat16, as `torch.autocast` does; evaluation is not.
        check: Called at every step; may raise.

    Returns:
        The results and the curves, ready for JSON.
    """
    torch.manual_seed(seed)
    sees = METHODS[method].sees if method in METHODS else "frames"
    encoder, curves = small_encoder(device, sees), []
    if method in METHODS:
        how = {"steps": steps, "seed": seed, "half": half, "check": check}
        run = Run(encoder, videos, split[0], method, **how)
        run.train(states_of(videos, split[0], METHODS[method], steps, seed, half))
        encoder, curves = run.state.online[0], run.state.curves
    trained = nn.Sequential(NORMALIZE, encoder)
    pixels = {"raw-pixels": Pixels("values"), "frame-differences": Pixels("changes")}
    features: nn.Module = pixels.get(method, trained)
    results = evaluate(features, videos, *split, device=device)
    return {"setting": describe(videos.kind), "results": results, "curves": curves}


_STATES: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, State]]] = {}


def states_of(
    videos: Videos, places: Tensor, method: Method, steps: int, seed: int, half: bool
) -> dict[int, State]:
    """Give the states that runs of this pair and of the same parts have left, by their steps."""
    pair = (id(videos), tuple(places.tolist()), steps, seed, half)
    if pair not in _STATES:
        _STATES.clear()  # pairs come one after the other
    shared = {"find", "term", "start", "weight", "ramp"}  # what counts from the first neighbour on
    parts = tuple(value for name, value in vars(method).items() if name not in shared)
    return _STATES.setdefault(pair, {}).setdefault(parts, {})


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
    clips = Clips(videos, device, **clip_of(videos.kind))
    # On the host, which is as fast from here on.
    gallery, query = (features_of(features, clips, part).cpu() for part in (train, test))
    labels, truth = videos.labels[train], videos.labels[test]
    found = retrieval_metrics(query, truth, gallery, labels, ks=(1, 5))
    classes = int(videos.labels.max()) + 1
    near = {"k": min(20, len(gallery)), "num_classes": classes}
    votes = knn_classify(query, gallery, labels, **near)
    probe = fit_linear_probe(gallery, labels, num_classes=classes)
    results = {
        "recall_at_1": round(found.recall[1], 5),
        "recall_at_5": round(found.recall[5], 5),
        "mean_average_precision": round(found.mean_average_precision, 5),
        "knn": round(topk_accuracy(votes, truth, ks=(1,))[1], 5),
        "linear": round(topk_accuracy(probe(query), truth, ks=(1,))[1], 5),
        "test_videos": len(test),
    }
    if gallery.shape[1] < len(gallery):  # pixels have more directions than videos
        whiten = fit_whitening(gallery)
        found = retrieval_metrics(whiten(query), truth, whiten(gallery), labels, ks=(1,))
        results["whitened_recall_at_1"] = round(found.recall[1], 5)
        results["whitened_mean_average_precision"] = round(found.mean_average_precision, 5)
    return results
