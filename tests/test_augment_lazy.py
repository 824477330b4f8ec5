"""Pipelines that compute colours lazily equal their transforms one by one, and torchvision."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as NF
import torchvision.transforms.v2.functional as V
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iivcl import augment
from iivcl.augment import (
    CenterCrop,
    ColorJitter,
    Compose,
    GaussianBlur,
    Normalize,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomSolarize,
    ToFloat,
    Transform,
)

COLORS: list[Callable[[], Transform[Any]]] = [
    lambda: ColorJitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5),
    lambda: ColorJitter(brightness=(0.2, 0.9), contrast=(0.2, 0.9)),
    lambda: ColorJitter(saturation=(0.0, 0.0), hue=(-0.5, -0.4)),
    lambda: ColorJitter(brightness=(1.5, 1.5), contrast=(0.0, 0.0)),
    lambda: RandomGrayscale(p=0.5),
    lambda: RandomSolarize(0.5, p=0.5),
    lambda: GaussianBlur(5, sigma=(0.1, 2.0)),
    lambda: RandomHorizontalFlip(),
    lambda: CenterCrop((11, 12)),
    lambda: ToFloat(),
    lambda: RandomApply(Compose(ColorJitter(hue=0.2), RandomGrayscale(p=0.5)), p=0.5),
]
LAST: list[list[Transform[Any]]] = [
    [],
    [Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))],
    [Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), RandomHorizontalFlip()],
    [Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), GaussianBlur(3), RandomGrayscale()],
    [Normalize(mean=(0.5,) * 3, std=(2.0,) * 3), Normalize(mean=(0.1, 0.2, 0.3), std=(1.0,) * 3)],
]


def one_by_one(pipeline: Compose, video: Tensor, params: tuple[Any, ...]) -> Tensor:
    for transform, own in zip(pipeline, params, strict=True):
        video = transform.apply(video, own)
    return video


def make_video(dtype: torch.dtype, frames: int) -> Tensor:
    """Noise with true blacks, whites and grays, where hue and clamps are at their edges."""
    video = torch.rand(3, 3, frames, 13, 14)
    video[..., 0], video[..., 1], video[..., 2] = 0, 1, video[:, :1, :, :, 2]
    return (video * 255).round().to(dtype) if dtype == torch.uint8 else video.to(dtype)


@settings(max_examples=150, deadline=None)
@given(
    colors=st.lists(st.sampled_from(COLORS), max_size=5),
    last=st.sampled_from(LAST),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    frames=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_any_pipeline_equals_its_transforms_one_by_one(
    colors: list[Callable[[], Transform[Any]]],
    last: list[Transform[Any]],
    dtype: torch.dtype,
    frames: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    video = make_video(dtype, frames)
    before = video.clone()
    pipeline = Compose(ToFloat(), *(make() for make in colors), *last)
    params = pipeline.make_params(video)
    out = pipeline.apply(video, params)
    expected = one_by_one(pipeline, video, params)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
    assert torch.equal(video, before)


def test_operations_after_gray_equal_their_transforms() -> None:
    blur = GaussianBlur(5, sigma=(1.0, 2.0))
    jitter = ColorJitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    for steps in ((blur, jitter, blur, blur), (jitter, jitter), (blur, jitter, jitter, blur)):
        pipeline = Compose(ToFloat(), RandomGrayscale(p=1.0), *steps)
        for _ in range(10):
            video = make_video(torch.uint8, 2)
            params = pipeline.make_params(video)
            expected = one_by_one(pipeline, video, params)
            torch.testing.assert_close(pipeline.apply(video, params), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_only_the_result_is_rounded_to_the_dtype_wanted(dtype: torch.dtype) -> None:
    preset = augment.moco_v2(12)
    to_dtype = Compose(*preset[:2], ToFloat(dtype), *preset[3:])
    video = make_video(torch.uint8, 3)
    params = preset.make_params(video)
    out, expected = to_dtype.apply(video, params), preset.apply(video, params)
    assert out.dtype == dtype
    eps = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(out.float(), expected, rtol=eps, atol=1e-5)


@pytest.mark.parametrize("name", ["moco_v2", "rho_moco", "cvrl"])
def test_presets_equal_torchvision(name: str) -> None:
    """A loop of torchvision over the clips, colours on floats, with the same parameters."""
    preset = getattr(augment, name)(40)
    video = NF.interpolate(torch.rand(16, 9, 6, 7), (48, 56), mode="bicubic")
    video = (video.clamp(0, 1) * 255).byte().view(16, 3, 3, 48, 56)
    params = preset.make_params(video)
    crop, flip, _, jitter, gray, blur, _ = params
    operations = (
        V.adjust_brightness,
        V.adjust_contrast,
        V.adjust_saturation,
        V.adjust_hue,
    )
    for drawn in (flip.flip, jitter.where, gray.where, blur.where):  # of 16 clips some
        drawn[0] = True
    clips = []
    for i, clip in enumerate(video.transpose(1, 2)):  # (T, C, H, W)
        # V.resized_crop, but in uint8 on every machine: where it goes through floats (torchvision
        # 0.19 does with AVX-512), it differs by a gray level, which the colours then multiply.
        clip = V.crop(clip, *crop.boxes[i].tolist())
        clip = NF.interpolate(clip, (40, 40), mode="bilinear", antialias=True)
        clip = V.horizontal_flip(clip) if flip.flip[i] else clip
        clip = V.to_dtype(clip, torch.float32, scale=True)
        for index in jitter.inner.order[i].tolist() if jitter.where[i] else ():
            clip = operations[index](clip, jitter.inner[index][i].item())
        clip = V.rgb_to_grayscale(clip, num_output_channels=3) if gray.where[i] else clip
        if blur.where[i]:
            clip = V.gaussian_blur(clip, [5, 5], [blur.inner.sigma[i].item()] * 2)
        clips.append(V.normalize(clip, preset[-1].mean, preset[-1].std).transpose(0, 1))
    expected = torch.stack(clips)
    torch.testing.assert_close(preset.apply(video, params), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_of_the_input_is_never_written_to(channels: int) -> None:
    """Also where reordering axes of length 1 gives the same memory."""
    for pipeline in (
        Compose(GaussianBlur(3, sigma=(1.0, 2.0))),
        Compose(ColorJitter(brightness=(2.0, 2.0))),
        Compose(ColorJitter(hue=0.5), GaussianBlur(3, sigma=(1.0, 2.0))),
        GaussianBlur(3, sigma=(1.0, 2.0)),
    ):
        for frames in (1, 2):
            video = torch.rand(2, 9, frames, channels, 10).permute(0, 3, 2, 1, 4)  # rows outermost
            before = video.clone()
            assert not torch.equal(pipeline(video), before)
            assert torch.equal(video, before)


def test_params_of_other_clips_are_refused() -> None:
    preset, video = augment.rho_moco(12), make_video(torch.uint8, 2)
    params = preset.make_params(torch.cat([video, video]))
    message = "`params` must hold one entry for each of the 3 clips of `video`; got 6"
    with pytest.raises(ValueError, match=f"^{message}$"):
        preset.apply(video, params)


def test_gradients_flow_where_the_transforms_have_them() -> None:
    pipeline = Compose(
        RandomHorizontalFlip(),
        RandomGrayscale(p=0.5),
        GaussianBlur(3, sigma=(0.5, 2.0)),
        Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    )
    video = torch.rand(2, 3, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    params = pipeline.make_params(video)
    assert torch.autograd.gradcheck(lambda clips: pipeline.apply(clips, params), video)


def test_statistics_are_numbers_whatever_holds_them() -> None:
    mean, std = (0.25, 0.5, 0.75), (0.5, 0.25, 0.125)  # which every float holds
    video = make_video(torch.float32, 2)
    expected = Normalize(mean=mean, std=std)
    for of in (list, torch.tensor, np.array):
        normalize = Normalize(mean=of(mean), std=of(std))  # type: ignore[operator]
        assert repr(normalize) == repr(expected)
        assert torch.equal(normalize(video), expected(video))
        given = {"mean": of(mean), "std": of(std)}  # type: ignore[operator]
        assert torch.equal(augment.functional.normalize(video, **given), expected(video))


def test_ranges_and_sizes_may_come_from_a_file_that_knows_lists_alone() -> None:
    assert ColorJitter(brightness=[0.6, 1.4]).brightness == (0.6, 1.4)  # type: ignore[arg-type]
    video = make_video(torch.uint8, 3)
    assert augment.RandomResizedCrop([5, 6])(video).shape[-2:] == (5, 6)  # type: ignore[arg-type]


BAD_INPUTS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: Compose(GaussianBlur(17))(torch.rand(2, 3, 2, 8, 9)),
        "`kernel_size` 17 reaches 8 pixels, which must be less than the height and width of "
        "`video`; got 8 x 9",
    ),
    (
        lambda: Compose(ColorJitter(hue=0.1))(torch.full((2, 3, 2, 8, 9), 255.0)),
        "floating-point `video` must be within [0, 1]; got [255, 255]. Normalize after the colour "
        "operations, and turn uint8 into floats with `to_float`",
    ),
    (
        lambda: Compose(ToFloat(), ColorJitter())(torch.zeros(2, 4, 2, 8, 9, dtype=torch.uint8)),
        "`video` must have 1 or 3 channels; got 4 in shape (2, 4, 2, 8, 9), "
        "read as (B, C, T, H, W)",
    ),
    (
        lambda: Compose(CenterCrop(4), RandomSolarize())(torch.zeros(2, 4, 2, 8, 9)),
        "`video` must have 1 or 3 channels; got 4 in shape (2, 4, 2, 8, 9), "
        "read as (B, C, T, H, W)",
    ),
    (
        lambda: augment.evaluation(8)(torch.zeros(2, 1, 2, 8, 9, dtype=torch.uint8)),
        "`mean` and `std` must have one number for each of the 1 channels of `video`; got 3 and "
        "3, and `video` of shape (2, 1, 2, 8, 9), read as (B, C, T, H, W). Expand gray clips to 3 "
        "channels with `video.expand(-1, 3, -1, -1, -1)`",
    ),
    (
        lambda: RandomApply(CenterCrop(4), p=0.0)(torch.zeros(2, 3, 2, 8, 9)),
        "`transform` must keep height and width inside RandomApply; CenterCrop(4) gives 4 x 4 from "
        "8 x 9",
    ),
    (
        lambda: Compose(ToFloat(), RandomSolarize()).apply(torch.zeros(2, 3, 2, 8, 9), ((),)),
        "`params` must be those of this pipeline of 2 transforms; got 1: those of `pipeline[a:b]` "
        "are `params[a:b]`",
    ),
    (
        lambda: GaussianBlur(3, sigma=(0.1, float("inf"))),
        "`sigma` must be (low, high) with 1e-06 <= low <= high < inf; got (0.1, inf)",
    ),
    (
        lambda: augment.rho_moco(8)(torch.zeros(3, 2, 8, 9, dtype=torch.uint8)),
        "`video` must have shape (B, C, T, H, W); got (3, 2, 8, 9)."
        " For a single clip, add the axis B with `video[None]`",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUTS)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
