"""Every operation equals a loop of its namesake in torchvision over the clips."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2.functional as V
from torch import Tensor
from torchvision.transforms import InterpolationMode

from iivcl.augment import functional as F
from iivcl.augment._batched import COMPILED
from iivcl.augment._program import Hue, Resample
from iivcl.augment._reference import REFERENCE, Engine, resample, run

BILINEAR = InterpolationMode.BILINEAR
SHAPES = [(4, 3, 5, 24, 31), (2, 3, 1, 17, 19), (1, 3, 2, 16, 16)]


def make_video(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Smooth in places, noisy in others, with true blacks, whites and grays."""
    video = torch.rand(shape)
    video[..., : shape[-1] // 3] = video[..., :1, :1]  # flat stripes
    video[:, :, :, 0] = 0
    video[:, :, :, 1] = 1
    video[:, :, :, 2] = 0.5
    return (video * 255).round().to(dtype) if dtype == torch.uint8 else video.to(dtype)


def loop(video: Tensor, op: Callable[..., Tensor], *params: Tensor) -> Tensor:
    """Apply ``op`` to each (T, C, H, W) clip with its own parameters as Python numbers."""
    clips = []
    for i, clip in enumerate(video):
        own = [p[i].tolist() for p in params]
        clips.append(op(clip.transpose(0, 1), *own).transpose(0, 1))
    return torch.stack(clips)


def assert_equal_to(actual: Tensor, expected: Tensor) -> None:
    """Within one gray level, or within 2e-3 of the range; in fact floats are much closer."""
    assert actual.dtype == expected.dtype
    atol = 1 if expected.dtype == torch.uint8 else 1e-5
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)


PER_CLIP = {
    "brightness": (F.adjust_brightness, V.adjust_brightness, (0.0, 2.0)),
    "contrast": (F.adjust_contrast, V.adjust_contrast, (0.0, 2.0)),
    "saturation": (F.adjust_saturation, V.adjust_saturation, (0.0, 2.0)),
    "hue": (F.adjust_hue, V.adjust_hue, (-0.5, 0.5)),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PER_CLIP)
def test_color_equals_torchvision(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, theirs, (low, high) = PER_CLIP[name]
    video = make_video(shape, dtype)
    amount = torch.linspace(low, high, shape[0] + 2)[1:-1]
    assert_equal_to(ours(video, amount), loop(video, theirs, amount))


@pytest.mark.parametrize("engine", [None, REFERENCE, COMPILED], ids=["lazy", "reference", "graph"])
def test_hue_is_that_of_colorsys(engine: Engine | None) -> None:
    """On every side of the colour wheel, at its corners and beyond, for every kind of shift."""
    shifts = torch.tensor([-3, -2, -1, 0, 1, 2, 3], dtype=torch.float64) / 6  # to a corner
    shifts = torch.cat([shifts, shifts[:-1] + 1 / 24, shifts[1:] - 1 / 24])
    levels = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    colors = torch.cartesian_prod(levels, levels, levels)  # (N, 3), ties included
    video = colors.T.reshape(1, 3, 1, 1, -1).expand(len(shifts), -1, -1, -1, -1)
    turned = run((Hue(shifts),), video, engine) if engine else F.adjust_hue(video, shifts)
    for shift, clip in zip(shifts.tolist(), turned, strict=True):
        for color, result in zip(colors.tolist(), clip.view(3, -1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*color)
            expected = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
            assert result == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", PER_CLIP)
def test_color_of_one_channel_equals_torchvision(name: str, dtype: torch.dtype) -> None:
    ours, theirs, (low, high) = PER_CLIP[name]
    video = make_video((2, 1, 3, 8, 9), dtype)
    amount = torch.tensor([low / 2 + 0.1, high / 2])
    assert_equal_to(ours(video, amount), loop(video, theirs, amount))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PER_CLIP)
def test_half_precision_is_the_float32_result_rounded(name: str, dtype: torch.dtype) -> None:
    ours, _, (low, high) = PER_CLIP[name]
    video = make_video((2, 3, 2, 8, 9), dtype)
    amount = torch.tensor([low / 2 + 0.1, high / 2])
    expected = ours(video.float(), amount)
    assert ours(video, amount).dtype == dtype
    torch.testing.assert_close(
        ours(video, amount).float(), expected, rtol=0, atol=2 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_grayscale_is_exactly_that_of_torchvision(dtype: torch.dtype, channels: int) -> None:
    video = make_video((3, channels, 4, 12, 13), dtype)
    where = torch.tensor([True, False, True])
    expected = loop(
        video, lambda c, w: V.rgb_to_grayscale(c, num_output_channels=channels) if w else c, where
    )
    assert torch.equal(F.to_grayscale(video, where), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_solarize_is_exactly_that_of_torchvision(dtype: torch.dtype) -> None:
    video = make_video((3, 3, 4, 12, 13), dtype)
    threshold = torch.tensor([0, 128, 255]) if dtype == torch.uint8 else torch.tensor([0, 0.5, 1])
    assert torch.equal(F.solarize(video, threshold), loop(video, V.solarize, threshold))
    assert torch.equal(F.solarize(video, torch.full((3,), torch.inf)), video)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_a_threshold_is_met_whatever_its_dtype(dtype: torch.dtype, default: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    clips = levels.view(1, 1, 1, 16, 16).expand(256, 1, 1, 16, 16)
    thresholds = levels.to(dtype)  # all of which these dtypes hold
    expected = torch.where(clips >= levels.view(-1, 1, 1, 1, 1), 255 - clips, clips)
    torch.set_default_dtype(default)
    try:
        assert torch.equal(F.solarize(clips, thresholds), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_flip_is_exactly_that_of_torchvision(dtype: torch.dtype) -> None:
    video = make_video((3, 3, 4, 12, 13), dtype)
    flip = torch.tensor([False, True, True])
    expected = loop(video, lambda c, f: V.horizontal_flip(c) if f else c, flip)
    assert torch.equal(F.horizontal_flip(video, flip), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [7, (16, 9), 40])
def test_crop_resize_equals_torchvision(dtype: torch.dtype, size: int | tuple[int, int]) -> None:
    video = make_video((4, 3, 3, 24, 31), dtype)
    boxes = torch.tensor([[0, 0, 24, 31], [3, 5, 16, 9], [23, 30, 1, 1], [1, 2, 20, 29]])
    sizes = [size, size] if isinstance(size, int) else list(size)

    def resized_crop(clip: Tensor, box: list[int]) -> Tensor:
        return V.resized_crop(clip, *box, size=sizes, interpolation=BILINEAR, antialias=True)

    assert_equal_to(F.crop_resize(video, boxes, size), loop(video, resized_crop, boxes))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_narrow_frames_equal_those_turned_by_a_quarter(dtype: torch.dtype) -> None:
    """Not torchvision, which is wrong where the result is one pixel wide."""
    for height, width in ((8, 1), (17, 1), (9, 1), (8, 5), (1, 7), (1, 1)):
        video = make_video((2, 3, 2, 24, 31), dtype)[..., 5 : 5 + height, :width].contiguous()
        box, turned = (
            torch.tensor([[0, 0, *size]] * 2) for size in ((height, width), (width, height))
        )
        for size in ((17, 1), (8, 1), (5, 1), (36, 1), (1, 1), (1, 4)):
            expected = F.crop_resize(video.mT.contiguous(), turned, size[::-1]).mT
            assert_equal_to(F.crop_resize(video, box, size), expected)
            exact = run((Resample(box, size),), video.double())  # by matrix products
            atol = 1 if dtype == torch.uint8 else 1e-5
            torch.testing.assert_close(expected.double(), exact, rtol=0, atol=atol)


def test_resizing_in_float16_stays_within_one_gray_level() -> None:
    """What uint8 clips go through on a GPU, run here."""
    video = make_video((4, 3, 3, 64, 85), torch.uint8)
    boxes = torch.tensor([[0, 0, 64, 85], [3, 5, 16, 9], [20, 30, 40, 50], [1, 2, 50, 50]])
    expected = F.crop_resize(video, boxes, 40)
    assert_equal_to(resample(video, Resample(boxes, (40, 40)), torch.float16), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("frame", [(24, 31), (31, 24), (16, 16), (9, 40)])
def test_resize_short_side_equals_torchvision(dtype: torch.dtype, frame: tuple[int, int]) -> None:
    video = make_video((2, 3, 3, *frame), dtype)
    expected = loop(video, lambda c: V.resize(c, [16], interpolation=BILINEAR, antialias=True))
    assert_equal_to(F.resize_short_side(video, 16), expected)


@pytest.mark.parametrize("size", [7, (16, 9), (24, 31)])
def test_center_crop_is_exactly_that_of_torchvision(size: int | tuple[int, int]) -> None:
    video = make_video((2, 3, 3, 24, 31), torch.uint8)
    expected = loop(video, lambda c: V.center_crop(c, [size] if isinstance(size, int) else size))
    assert torch.equal(F.center_crop(video, size), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("kernel_size", [1, 3, 11])
@pytest.mark.parametrize("shape", SHAPES)
def test_blur_equals_torchvision(
    shape: tuple[int, ...], kernel_size: int, dtype: torch.dtype
) -> None:
    video = make_video(shape, dtype)
    sigma = torch.linspace(0.1, 2.0, shape[0])
    expected = loop(video, lambda c, s: V.gaussian_blur(c, [kernel_size] * 2, [s] * 2), sigma)
    assert_equal_to(F.gaussian_blur(video, sigma, kernel_size), expected)


@pytest.mark.parametrize("sigma", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_a_width_counts_by_its_value_whatever_its_dtype(
    dtype: torch.dtype, sigma: torch.dtype
) -> None:
    video, widths = make_video((2, 3, 2, 24, 31), dtype), torch.tensor([0.7, 1.9]).to(sigma)
    expected = F.gaussian_blur(video, widths.double(), 11)
    assert_equal_to(F.gaussian_blur(video, widths, 11), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalize_equals_torchvision(dtype: torch.dtype) -> None:
    video = make_video((2, 3, 4, 12, 13), dtype)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = loop(
        video, lambda c: V.normalize(V.to_dtype(c, torch.float32, scale=True), mean, std)
    )
    actual = F.normalize(video, mean=mean, std=std)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_to_float_equals_torchvision(dtype: torch.dtype) -> None:
    video = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16)
    expected = V.to_dtype(video, torch.float64, scale=True)
    assert F.to_float(video, dtype).dtype == dtype
    torch.testing.assert_close(
        F.to_float(video, dtype).double(), expected, rtol=0, atol=torch.finfo(dtype).eps
    )


VIDEO = torch.zeros(2, 3, 4, 8, 10)
ONES = torch.ones(2)
BAD_INPUTS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: F.adjust_hue(VIDEO[0], ONES),
        ValueError,
        "`video` must have shape (B, C, T, H, W); got (3, 4, 8, 10). "
        "For a single clip, add the axis B with `video[None]`",
    ),
    (
        lambda: F.adjust_contrast(VIDEO.transpose(1, 2), ONES),
        ValueError,
        "`video` must have 1 or 3 channels; got 4 in shape (2, 4, 3, 8, 10), "
        "read as (B, C, T, H, W). For (B, T, C, H, W), use `video.permute(0, 2, 1, 3, 4)`",
    ),
    (
        lambda: F.to_float(VIDEO.long()),
        TypeError,
        "`video` must be uint8 or floating-point; got torch.int64",
    ),
    (
        lambda: F.adjust_brightness(VIDEO + 3, ONES),
        ValueError,
        "floating-point `video` must be within [0, 1]; got [3, 3]. Normalize after the colour "
        "operations, and turn uint8 into floats with `to_float`",
    ),
    (
        lambda: F.adjust_saturation(VIDEO.fill_(0), torch.tensor([0.5, -1.0])),
        ValueError,
        "`factor` must be within [0, inf]; got [0.5, -1.0]",
    ),
    (
        lambda: F.adjust_hue(VIDEO, torch.tensor([0.25, 0.75])),
        ValueError,
        "`shift` must be within [-0.5, 0.5]; got [0.25, 0.75]",
    ),
    (
        lambda: F.adjust_hue(VIDEO, torch.ones(3)),
        ValueError,
        "`shift` must have shape (B,) with B=2 (from `video`); got (3,)",
    ),
    (
        lambda: F.horizontal_flip(VIDEO, ONES),
        TypeError,
        "`flip` must be a bool tensor; got torch.float32",
    ),
    (
        lambda: F.crop_resize(VIDEO, torch.tensor([[0, 0, 8, 10], [4, 0, 8, 10]]), 4),
        ValueError,
        "`boxes` must lie within the frame of 8 x 10 pixels; got top 4, left 0, height 8, width 10",
    ),
    (
        lambda: F.crop_resize(VIDEO, torch.zeros(2, 4), 4),
        TypeError,
        "`boxes` must be an integer tensor of pixels; got torch.float32",
    ),
    (
        lambda: F.crop_resize(VIDEO, torch.ones(2, 4).long(), 0),
        ValueError,
        "`size` must be at least 1 pixel; got 0",
    ),
    (
        lambda: F.resize_short_side(VIDEO, 4.0),
        TypeError,
        "`size` must be an integer; got 4.0",
    ),
    (
        lambda: F.center_crop(VIDEO, 9),
        ValueError,
        "`size` must fit in the frame of 8 x 10 pixels; got 9 x 9. Resize first",
    ),
    (
        lambda: F.gaussian_blur(VIDEO, ONES, 4),
        ValueError,
        "`kernel_size` must be odd; got 4",
    ),
    (
        lambda: F.gaussian_blur(VIDEO, ONES, 17),
        ValueError,
        "`kernel_size` 17 reaches 8 pixels, which must be less than the height and width of "
        "`video`; got 8 x 10",
    ),
    (
        lambda: F.horizontal_flip(VIDEO, None),  # type: ignore[arg-type]
        TypeError,
        "`flip` must be a tensor of shape (B,); got NoneType",
    ),
    (
        lambda: F.to_grayscale(VIDEO, None),  # type: ignore[arg-type]
        TypeError,
        "`where` must be a tensor of shape (B,); got NoneType",
    ),
    (
        lambda: F.solarize(VIDEO, 0.5),  # type: ignore[arg-type]
        TypeError,
        "`threshold` must be a tensor of shape (B,); got float",
    ),
    (
        lambda: F.normalize(VIDEO, mean=[0.5], std=[0.5]),
        ValueError,
        "`mean` and `std` must have one number for each of the 3 channels of `video`; got 1 and "
        "1, and `video` of shape (2, 3, 4, 8, 10), read as (B, C, T, H, W)",
    ),
    (
        lambda: F.normalize(VIDEO, mean=[0.5] * 3, std=[0.5, 0, 1]),
        ValueError,
        "`mean` and `std` must have one finite number per channel, and `std` must be above 0; "
        "got (0.5, 0.5, 0.5) and (0.5, 0, 1)",
    ),
    (
        lambda: F.to_float(VIDEO, torch.uint8),
        TypeError,
        "`dtype` must be a floating-point dtype; got torch.uint8",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_INPUTS)
def test_bad_input_is_named(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
