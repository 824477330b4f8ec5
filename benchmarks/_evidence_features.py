"""Clips of a set, and features of whole videos: what training and evaluation share."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _evidence_sets import SIZE, Clips
from torch import Tensor, nn

from iivcl import augment
from iivcl.data import uniform_clip_starts

MINIMAL = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "train_minimal.py"))
FRAMES, CLIPS = 16, 4  # of a clip, as in the example; of a video when it is evaluated
LAST = torch.channels_last_3d
NORMALIZE = augment.Normalize(mean=(0.45, 0.45, 0.45), std=(0.225,) * 3, memory_format=LAST)


def settings(kind: str) -> Any:
    return MINIMAL["SHAPES" if kind == "generated" else "REAL"]


def clip_of(kind: str) -> dict[str, int]:
    return {"num_frames": FRAMES, "stride": settings(kind).stride * 16 // FRAMES}


class OfFrames(MINIMAL["SmallEncoder"]):  # type: ignore[misc]
    """The small encoder of the example, which sees the frames and not what changes from one on."""

    forward = nn.Sequential.forward


def small_encoder(device: str | torch.device, sees: str = "frames") -> nn.Module:
    encoder: nn.Module = {"frames": OfFrames, "changes": MINIMAL["SmallEncoder"]}[sees]()
    return encoder.to(device, memory_format=LAST)


def transform_of(kind: str, colours: bool) -> augment.Compose:
    setting = settings(kind)
    changes = augment.ColorJitter(**setting.colour), augment.RandomGrayscale(p=0.3)
    crop = augment.RandomResizedCrop(SIZE, scale=setting.scale)
    return augment.Compose(crop, augment.ToFloat(), *(changes if colours else ()), NORMALIZE)


CENTER = augment.Compose(augment.ResizeShortSide(SIZE), augment.CenterCrop(SIZE), augment.ToFloat())


@torch.no_grad()
def features_of(features: nn.Module, clips: Clips, places: Tensor) -> Tensor:
    """Average the features of clips of the centre of each video, (N, D)."""
    before = [(module, module.training) for module in features.modules()]
    features.eval()
    how = {"clips_per_video": CLIPS}
    starts = torch.cat([clips.starts(i, uniform_clip_starts, **how) for i in places.tolist()])
    parts = [features(CENTER(clips.cut(part))) for part in starts.split(8 * CLIPS)]
    for module, training in before:
        module.training = training
    return torch.cat(parts).float().unflatten(0, (-1, CLIPS)).mean(1)


def near_videos_of(
    models: Sequence[nn.Module], clips: Clips, places: Tensor, ids: Tensor, k: int = 5
) -> Tensor:
    """Find for each of N videos the k nearest of those in ``places`` and of other ids.

    Near is what has a large sum of similarities, of features of all models that are centred.

    Returns:
        Numbers of videos, (N, k); -1 in the rows of videos that are not in ``places``.
    """
    near = torch.zeros(len(places), len(places), device=ids.device)
    for model in models:
        whole = features_of(model, clips, places)
        whole = F.normalize(whole - whole.mean(0), dim=1)
        near += whole @ whole.T
    places = places.to(ids.device)
    near.masked_fill_(ids[places, None] == ids[places], -torch.inf)
    table = torch.full((len(ids), k), -1, device=ids.device)
    table[places] = places[near.topk(k).indices]
    return table


def mutual_videos(near: Tensor) -> Tensor:
    """Keep of (N, k) near videos those to which the video itself is near; others become -1."""
    own = torch.arange(len(near), device=near.device)[:, None, None]
    return near.where((near[near] == own).any(2), -1)
