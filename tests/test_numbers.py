"""Numbers of another type, that are none, or out of range: each is refused by its name."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import pkgutil
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import iivcl
from iivcl import augment, backbones, data, evaluation, losses, momentum, queues, testing

ROWS, LABELS = torch.eye(4), torch.arange(4)
CLIPS, BOXES = torch.zeros(1, 3, 2, 9, 9), torch.tensor([[0, 0, 8, 8]])
FRAMES = np.zeros((4, 16, 16, 3), np.uint8)
MANIFEST = data.Manifest(list("abcd"), LABELS, LABELS, list("abcd"))
RECIPE = data.ClipRecipe(num_frames=2, stride=1)
CLIP = {"num_frames": 2, "stride": 1.0, "clips_per_video": 2}
SHARD = Path(__file__)  # of which only the name is looked at
FUNCTIONAL = augment.functional
SPLIT = backbones.SplitBatchNorm.convert_split_batchnorm
ACTIONS = data.ActionBoxes(
    [("a", 1.0)], torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.rand(1, 2), torch.rand(1)
)
TRUTH = ACTIONS._replace(actions=ACTIONS.actions > 0)
STAGES = [nn.Sequential() for _ in range(4)]


def on_meta(build: Callable[..., object], **numbers: Any) -> object:
    """Build a network where it takes no memory and no time."""
    with torch.device("meta"):
        return build(**numbers)


# Every public callable that takes numbers, with numbers that are right.
CALLS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "augment.CenterCrop": (augment.CenterCrop, {"size": 8}),
    "augment.ColorJitter": (
        augment.ColorJitter,
        {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "hue": 0.1},
    ),
    "augment.GaussianBlur": (augment.GaussianBlur, {"kernel_size": 3, "sigma": (0.1, 2.0)}),
    "augment.Normalize": (augment.Normalize, {"mean": (0.5,), "std": (0.5,)}),
    "augment.RandAugment": (augment.RandAugment, {"num_ops": 2, "magnitude": 9}),
    "augment.RandomApply": (partial(augment.RandomApply, augment.RandomGrayscale()), {"p": 0.5}),
    "augment.RandomGrayscale": (augment.RandomGrayscale, {"p": 0.5}),
    "augment.RandomHorizontalFlip": (augment.RandomHorizontalFlip, {"p": 0.5}),
    "augment.RandomResizedCrop": (
        augment.RandomResizedCrop,
        {"size": 8, "scale": (0.1, 1.0), "ratio": (0.5, 2.0)},
    ),
    "augment.RandomSolarize": (augment.RandomSolarize, {"threshold": 0.5, "p": 0.5}),
    "augment.ResizeShortSide": (augment.ResizeShortSide, {"size": 8}),
    "augment.cvrl": (augment.cvrl, {"size": 8}),
    "augment.evaluation": (augment.evaluation, {"size": 8}),
    "augment.moco_v2": (augment.moco_v2, {"size": 8}),
    "augment.rho_moco": (augment.rho_moco, {"size": 8}),
    "augment.functional.center_crop": (partial(FUNCTIONAL.center_crop, CLIPS), {"size": 8}),
    "augment.functional.crop_resize": (partial(FUNCTIONAL.crop_resize, CLIPS, BOXES), {"size": 8}),
    "augment.functional.gaussian_blur": (
        partial(FUNCTIONAL.gaussian_blur, CLIPS, torch.ones(1)),
        {"kernel_size": 3},
    ),
    "augment.functional.normalize": (
        partial(FUNCTIONAL.normalize, CLIPS),
        {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    ),
    "augment.functional.resize_short_side": (
        partial(FUNCTIONAL.resize_short_side, CLIPS),
        {"size": 8},
    ),
    "backbones.PredictionHead": (
        backbones.PredictionHead,
        {"dim": 4, "hidden_dim": 4, "num_layers": 2},
    ),
    "backbones.ProjectionHead": (
        backbones.ProjectionHead,
        {"in_dim": 4, "hidden_dim": 4, "out_dim": 4, "num_layers": 2},
    ),
    "backbones.RoIActionHead": (
        backbones.RoIActionHead,
        {"in_dim": 4, "num_actions": 3, "stride": 16, "resolution": 7, "dropout": 0.5},
    ),
    "backbones.SplitBatchNorm": (
        backbones.SplitBatchNorm,
        {"num_features": 4, "num_splits": 2, "eps": 1e-5, "momentum": 0.1},
    ),
    "backbones.SplitBatchNorm.convert_split_batchnorm": (
        partial(SPLIT, nn.BatchNorm3d(4)),
        {"num_splits": 2},
    ),
    "backbones.VideoEncoder": (
        backbones.VideoEncoder,
        {"feature_dim": 8, "strides": (1, 2), "in_channels": 3},
    ),
    "backbones.VideoResNet": (
        partial(backbones.VideoResNet, nn.Identity(), STAGES),
        {"feature_dim": 8, "strides": (1, 2), "in_channels": 3},
    ),
    "backbones.as_encoder": (
        partial(backbones.as_encoder, nn.Identity()),
        {"feature_dim": 8, "strides": (1, 2), "prefix_tokens": 0, "in_channels": 3},
    ),
    "backbones.check_convolutions": (
        partial(backbones.check_convolutions, nn.Identity(), CLIPS),
        {"tolerance": 0.1},
    ),
    "backbones.inflate": (partial(backbones.inflate, nn.Conv2d(1, 1, 1)), {"frames": 3}),
    "backbones.s3d": (partial(on_meta, backbones.s3d), {"norm_eps": 1e-3}),
    "backbones.slow_r50": (
        partial(on_meta, backbones.slow_r50),
        {"res5_dilation": 1, "in_channels": 3},
    ),
    "backbones.slow_resnet": (
        partial(on_meta, backbones.slow_resnet),
        {"depth": 18, "res5_dilation": 1, "in_channels": 3},
    ),
    "data.ClipRecipe": (data.ClipRecipe, {**CLIP, "short_side": 8}),
    "data.ClipRecipe by seconds": (
        partial(data.ClipRecipe, num_frames=2),
        {"stride_seconds": 1.0},
    ),
    "data.Manifest.hold_out": (MANIFEST.hold_out, {"share": 0.5}),
    "data.TarClips": (
        partial(data.TarClips, [SHARD], RECIPE),
        {"batch_size": 2, "shuffle_buffer": 9, "length": 4, "seed": 0, "id_offset": 0}
        | {"rank": 0, "world_size": 1},
    ),
    "data.TarClips.set_epoch": (
        data.TarClips([SHARD], RECIPE, batch_size=1, length=4).set_epoch,
        {"epoch": 1, "start": 0},
    ),
    "data.Video.read": (partial(data.open_video(FRAMES).read, [[0]]), {"short_side": 8}),
    "data.VideoClips": (
        partial(data.VideoClips, ["none.mp4"], RECIPE),
        {"seed": 0, "id_offset": 0},
    ),
    "data.VideoClips.set_epoch": (data.VideoClips(["none.mp4"], RECIPE).set_epoch, {"epoch": 1}),
    "data.clip_indices": (
        partial(data.clip_indices, torch.tensor([0])),
        {"video_frames": 9, "num_frames": 2, "stride": 1.0},
    ),
    "data.make_synthetic_videos": (
        partial(data.make_synthetic_videos, "/dev/null/none"),
        {"num_videos": 2, "num_classes": 2, "takes": 1, "imbalance": 1.0, "num_frames": 4}
        | {"size": 16, "fps": 8, "seed": 0},
    ),
    "data.open_video": (partial(data.open_video, FRAMES), {"num_frames": 4, "num_threads": 1}),
    "data.random_clip_starts": (
        data.random_clip_starts,
        {"video_frames": 9, **CLIP, "power": 1.0, "min_gap": 0, "max_gap": 3},
    ),
    "data.read_clips": (
        partial(data.read_clips, FRAMES, [[0]]),
        {"short_side": 8, "num_threads": 1},
    ),
    "data.read_ava_boxes": (partial(data.read_ava_boxes, os.devnull), {"num_actions": 3}),
    "data.uniform_clip_starts": (data.uniform_clip_starts, {"video_frames": 9, **CLIP}),
    "evaluation.detection_map": (partial(evaluation.detection_map, ACTIONS, TRUTH), {"iou": 0.5}),
    "evaluation.fit_linear_probe": (
        partial(evaluation.fit_linear_probe, ROWS, LABELS),
        {"num_classes": 4, "weight_decay": 0.1, "max_iterations": 2},
    ),
    "evaluation.fit_whitening": (partial(evaluation.fit_whitening, ROWS), {"shrinkage": 0.1}),
    "evaluation.knn_classify": (
        partial(evaluation.knn_classify, ROWS, ROWS, LABELS),
        {"num_classes": 4, "k": 2, "temperature": 0.1},
    ),
    "evaluation.retrieval_metrics": (
        partial(evaluation.retrieval_metrics, ROWS, LABELS, ROWS, LABELS),
        {"ks": (1, 2)},
    ),
    "evaluation.retrieval_recall": (
        partial(evaluation.retrieval_recall, ROWS, LABELS, ROWS, LABELS),
        {"ks": (1, 2)},
    ),
    "evaluation.topk_accuracy": (partial(evaluation.topk_accuracy, ROWS, LABELS), {"ks": (1, 2)}),
    "losses.Candidates.log_sum_exp": (
        partial(losses.Candidates(ROWS).log_sum_exp, ROWS),
        {"chunk_size": 2},
    ),
    "losses.IIVCLLoss": (
        losses.IIVCLLoss,
        {"num_neighbors": 2, "temperature": 0.1, "inter_weight": 1.0, "min_age": 0}
        | {"chunk_size": 2},
    ),
    "losses.InfoNCELoss": (losses.InfoNCELoss, {"temperature": 0.1, "chunk_size": 2}),
    "losses.info_nce": (
        partial(losses.info_nce, ROWS, ROWS, ROWS),
        {"temperature": 0.1, "chunk_size": 2},
    ),
    "losses.multi_positive_info_nce": (
        partial(losses.multi_positive_info_nce, ROWS, ROWS, ROWS > 0),
        {"temperature": 0.1, "chunk_size": 2},
    ),
    "momentum.cosine_momentum": (
        momentum.cosine_momentum,
        {"step": 1.0, "total_steps": 9, "base": 0.9},
    ),
    "momentum.momentum_update_": (
        partial(momentum.momentum_update_, nn.Identity(), nn.Identity()),
        {"momentum": 0.9},
    ),
    "queues.MoCoQueue": (queues.MoCoQueue, {"size": 4, "dim": 4}),
    "queues.MoCoQueue.candidates": (queues.MoCoQueue(4, 4).candidates, {"min_age": 0}),
    "queues.MoCoQueue.resize_": (queues.MoCoQueue(4, 4).resize_, {"size": 8}),
    "queues.NNSupportQueue": (queues.NNSupportQueue, {"size": 4, "dim": 4}),
    "queues.NNSupportQueue.nearest": (
        partial(queues.NNSupportQueue(4, 4).nearest, ROWS),
        {"k": 1, "min_age": 0},
    ),
    "queues.estimate": (
        queues.estimate,
        {"size": 64, "dim": 8, "batch": 4, "k": 1, "world_size": 1},
    ),
    "queues.exact_topk": (partial(queues.exact_topk, ROWS, ROWS), {"k": 1, "chunk_size": 2}),
    "testing.assert_ddp_equivalent": (
        partial(testing.assert_ddp_equivalent, max),
        {"world_size": 2, "batch_size": 2, "dim": 4, "seed": 0, "rtol": 1e-6, "atol": 1e-8},
    ),
    "testing.run_on_ranks": (partial(testing.run_on_ranks, worker=max), {"world_size": 2}),
}
REFUSED_ONLY = ("data.make_synthetic_videos", "testing")  # what is right takes files or processes

FROM_ZERO = {"min_age", "seed", "id_offset", "epoch", "start", "rank", "num_ops", "magnitude"}
FROM_ZERO |= {"num_neighbors", "prefix_tokens", "shuffle_buffer", "min_gap", "max_gap"}
TOO_LARGE = {
    "p": 1.5, "threshold": 1.5, "share": 1.0, "base": 1.5, "momentum": 1.5, "magnitude": 31,
    "hue": 0.6, "dropout": 1.5, "iou": 1.5, "rank": 1, "start": 5, "step": 10.0, "kernel_size": 4,
    "frames": 4, "depth": 34, "res5_dilation": 3, "scale": (0.5, 1.5), "ratio": (1.0, 0.5),
    "sigma": (2.0, 1.0),
}  # fmt: skip
ITEMS = [(name, parameter) for name, (_, right) in CALLS.items() for parameter in right]


def wrong(parameter: str, right: Any) -> Iterator[Any]:
    """Give values for an argument of which ``right`` would be right."""
    yield from ("3", math.nan)
    if isinstance(right, tuple):
        yield from (1j, ("1", "2"), (math.nan,) * len(right))
        if parameter != "mean":
            yield (right[0], -1)
    else:
        yield from ([right], 1j)
        if parameter != "res5_dilation":  # where 1 is a choice, and True is equal to it
            yield True
        if isinstance(right, int):
            yield from (right + 0.5, -1 if parameter in FROM_ZERO else 0)
        else:
            yield from (-1.0, math.inf)
    if parameter in TOO_LARGE:
        yield TOO_LARGE[parameter]


@pytest.mark.parametrize(("name", "parameter"), ITEMS)
def test_wrong_numbers_are_refused_by_name(name: str, parameter: str) -> None:
    call, right = CALLS[name]
    for value in wrong(parameter, right[parameter]):
        with pytest.raises((TypeError, ValueError)) as caught:
            call(**{**right, parameter: value})
        message = str(caught.value)
        assert f"`{parameter}`" in message, (value, message)
        shown = (value, *value) if isinstance(value, tuple) else (value,)
        assert any(str(part) in message.rpartition("got ")[2] for part in shown), (value, message)


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(REFUSED_ONLY)])
def test_right_numbers_are_taken(name: str) -> None:
    call, right = CALLS[name]
    call(**right)
    call(**{parameter: of_numpy(value) for parameter, value in right.items()})


def of_numpy(value: Any) -> Any:
    return tuple(map(of_numpy, value)) if isinstance(value, tuple) else np.asarray(value)[()]


# A class of torch, a record, a place in a sequence, the size of a frame; frames and sizes at hand.
OTHERS = ("PaddedConv3d", "VideoInfo", "Failure", ".path", ".output_size")
FOUND = ("classes", "exclusions", "indices", "keyframes", "sizes")


def takes_number(annotation: str) -> bool:
    return re.search(r"\b(int|float|Scalar|ChunkSize)\b|Literal\[\d", annotation) is not None


def public_callables() -> Iterator[tuple[str, Callable[..., object]]]:
    for module in pkgutil.walk_packages(iivcl.__path__, "iivcl."):
        if "._" in module.name:
            continue
        members = importlib.import_module(module.name)
        for name in getattr(members, "__all__", ()):
            item = getattr(members, name)
            path = f"{module.name}.{name}".removeprefix("iivcl.")
            if callable(item) and not (isinstance(item, type) and issubclass(item, tuple)):
                yield path, item  # others are records of results, and names of choices
            if isinstance(item, type):
                for method in vars(item):
                    if not method.startswith("_") and callable(getattr(item, method)):
                        yield f"{path}.{method}", getattr(item, method)


def test_no_public_argument_is_left_out() -> None:
    expected = set()
    for name, function in public_callables():
        try:
            signature = inspect.signature(function)
        except ValueError:
            continue
        expected |= {
            (name, parameter.name)
            for parameter in signature.parameters.values()
            if takes_number(str(parameter.annotation))
            and not name.endswith(OTHERS)
            and parameter.name not in FOUND
        }
    tried = {(name.partition(" ")[0], parameter) for name, parameter in ITEMS}
    assert expected == tried
