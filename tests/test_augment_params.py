"""What transforms draw, and what their constructors refuse."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch
import torchvision.transforms.v2 as V

from iivcl.augment import (
    ColorJitter,
    Compose,
    GaussianBlur,
    Normalize,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    ResizeShortSide,
    ToFloat,
    rho_moco,
)

N = 4000


def clips(height: int = 120, width: int = 160, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.zeros((), dtype=dtype).expand(N, 3, 1, height, width)


def largest_gap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest distance of two empirical distribution functions (Kolmogorov-Smirnov)."""
    points = torch.cat([first, second]).sort().values
    first, second = first.sort().values, second.sort().values
    left = torch.searchsorted(first, points, right=True) / len(first)
    right = torch.searchsorted(second, points, right=True) / len(second)
    return float((left - right).abs().max())


@pytest.mark.parametrize(("height", "width"), [(120, 160), (160, 120), (100, 300)])
@pytest.mark.parametrize("scale", [(0.2, 0.766), (0.6, 1.0)])
def test_boxes_are_drawn_as_in_torchvision(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    crop = RandomResizedCrop(112, scale=scale)
    ours = crop.make_params(clips(height, width)).boxes.double()
    reference = V.RandomResizedCrop(112, scale=scale)
    frame = torch.zeros((), dtype=torch.uint8).expand(3, height, width)
    # It is private in torchvision 0.19.
    draw = reference.make_params if hasattr(reference, "make_params") else reference._get_params
    drawn = [draw([frame]) for _ in range(N)]
    theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).double()
    critical = 1.95 * (2 / N) ** 0.5  # passed by chance once in a thousand
    for column in range(4):
        assert largest_gap(ours[:, column], theirs[:, column]) < critical
    area = ours[:, 2] * ours[:, 3]
    assert largest_gap(area, theirs[:, 2] * theirs[:, 3]) < critical
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10])],
)
def test_box_of_an_extreme_frame_is_the_largest_central(
    height: int, width: int, box: list[int]
) -> None:
    crop = RandomResizedCrop(8, scale=(1.0, 1.0))
    assert crop.make_params(clips(height, width)).boxes.unique(dim=0).tolist() == [box]


def test_orders_of_jitter_are_drawn_evenly_per_clip() -> None:
    orders = ColorJitter(brightness=0.4).make_params(clips()).order.tolist()
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for order in orders:
        counts[tuple(order)] += 1
    expected = N / 24
    assert all(abs(count - expected) < 6 * expected**0.5 for count in counts.values())


def test_jitter_amounts_fill_their_ranges() -> None:
    params = ColorJitter(brightness=0.6, contrast=1.5, saturation=(0.2, 0.3), hue=0.15).make_params(
        clips()
    )
    for amount, (low, high) in zip(
        params[:4], [(0.4, 1.6), (0.0, 2.5), (0.2, 0.3), (-0.15, 0.15)], strict=True
    ):
        evenly = torch.linspace(low, high, N)
        assert largest_gap(amount, evenly) < 0.04
        assert low <= amount.min()
        assert amount.max() <= high


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_probabilities(p: float) -> None:
    choices = [
        RandomHorizontalFlip(p=p).make_params(clips()).flip,
        RandomGrayscale(p=p).make_params(clips()).where,
        RandomApply(ToFloat(), p=p).make_params(clips()).where,
        RandomSolarize(p=p).make_params(clips()).threshold.isfinite(),
    ]
    for chosen in choices:
        assert abs(chosen.float().mean() - p) <= 0.03 * (0 < p < 1)


def test_solarize_follows_the_dtype_that_reaches_it() -> None:
    solarize = RandomSolarize(0.5, p=1.0)
    video = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 1, 1, 4)
    expected = torch.tensor([0, 127, 127, 0])
    assert solarize(video).flatten().tolist() == expected.tolist()
    assert torch.allclose(Compose(ToFloat(), solarize)(video).flatten(), expected / 255)


def test_params_of_one_clip_do_not_depend_on_the_frames() -> None:
    preset = rho_moco(32)
    long, short = torch.zeros(3, 3, 9, 40, 50), torch.zeros(3, 3, 1, 40, 50)
    first = preset.make_params(long, torch.Generator().manual_seed(3))
    second = preset.make_params(short, torch.Generator().manual_seed(3))
    assert repr(first) == repr(second)


def test_later_crops_see_the_size_that_earlier_ones_leave() -> None:
    pipeline = Compose(ResizeShortSide(30), RandomResizedCrop(20), RandomResizedCrop(8))
    _, first, second = pipeline.make_params(torch.zeros(50, 3, 2, 60, 90))
    assert (first.boxes[:, 0] + first.boxes[:, 2]).max() <= 30
    assert (first.boxes[:, 1] + first.boxes[:, 3]).max() > 30
    assert (second.boxes[:, :2] + second.boxes[:, 2:]).max() <= 20
    assert pipeline.output_size(60, 90) == (8, 8)


BAD_ARGUMENTS: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: RandomResizedCrop(8, scale=(0.8, 0.2)),
        ValueError,
        "`scale` must be (low, high) with 1e-06 <= low <= high <= 1.0; got (0.8, 0.2)",
    ),
    (lambda: RandomResizedCrop((8, 0)), ValueError, "`size` must be at least 1 pixel; got (8, 0)"),
    (
        lambda: RandomResizedCrop(8.0),
        TypeError,
        "`size` must be an int or two of them, height and width; got 8.0",
    ),
    (
        lambda: ResizeShortSide((128, 170)),
        TypeError,
        "`size` must be an integer; got (128, 170)",
    ),
    (
        lambda: ToFloat(torch.uint8),
        TypeError,
        "`dtype` must be a floating-point dtype; got torch.uint8",
    ),
    (
        lambda: rho_moco(0),
        ValueError,
        "`size` must be at least 1 pixel; got 0",
    ),
    (
        lambda: ColorJitter(hue=0.6),
        ValueError,
        "`hue` must be in [0, 0.5]; got 0.6",
    ),
    (
        lambda: ColorJitter(contrast=(-0.5, 1.0)),
        ValueError,
        "`contrast` must be (low, high) with 0.0 <= low <= high < inf; got (-0.5, 1.0)",
    ),
    (
        lambda: GaussianBlur(11, sigma=(2.0, 0.1)),
        ValueError,
        "`sigma` must be (low, high) with 1e-06 <= low <= high < inf; got (2.0, 0.1)",
    ),
    (lambda: GaussianBlur(10), ValueError, "`kernel_size` must be odd; got 10"),
    (lambda: RandomGrayscale(p=1.5), ValueError, "`p` must be in [0, 1]; got 1.5"),
    (lambda: RandomSolarize(2.0), ValueError, "`threshold` must be in [0, 1]; got 2.0"),
    (
        lambda: Normalize(mean=(0.5,), std=(0.5, 0.5)),
        ValueError,
        "`mean` and `std` must have one finite number per channel, and `std` must be above 0; "
        "got (0.5,) and (0.5, 0.5)",
    ),
    (
        lambda: Compose(torch.nn.Identity()),
        TypeError,
        "`transforms` must be iivcl transforms; got Identity",
    ),
    (
        lambda: RandomApply(ToFloat(), p=1.0)(torch.zeros(1, 3, 1, 4, 4, dtype=torch.uint8)),
        ValueError,
        "`transform` must keep shape and dtype inside RandomApply; got (1, 3, 1, 4, 4) "
        "torch.float32 from (1, 3, 1, 4, 4) torch.uint8",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
