from __future__ import annotations

import re

import pytest
import torch
import torchvision.transforms.v2 as V

from iivcl.augment import RandAugment

# The names of torchvision in our order, and the largest magnitude of each at (height, width).
NAMES = {
    "Identity": lambda h, w: 0.0,
    "ShearX": lambda h, w: 0.3,
    "ShearY": lambda h, w: 0.3,
    "TranslateX": lambda h, w: 150 / 331 * w,
    "TranslateY": lambda h, w: 150 / 331 * h,
    "Rotate": lambda h, w: 30.0,
    "Brightness": lambda h, w: 0.9,
    "Color": lambda h, w: 0.9,
    "Contrast": lambda h, w: 0.9,
    "Sharpness": lambda h, w: 0.9,
    "Posterize": lambda h, w: None,
    "Solarize": lambda h, w: None,
    "AutoContrast": lambda h, w: 0.0,
    "Equalize": lambda h, w: 0.0,
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_each_operation_is_exactly_that_of_torchvision(magnitude: int, dtype: torch.dtype) -> None:
    transform, reference = RandAugment(num_ops=1, magnitude=magnitude), V.RandAugment()
    video = (torch.rand(28, 3, 3, 20, 26) * 255).byte()
    video = video if dtype == torch.uint8 else video / 255
    params = transform.make_params(video)._replace(
        op=torch.arange(14).repeat(2)[:, None], negative=(torch.arange(28) >= 14)[:, None]
    )
    out = transform.apply(video, params)
    level = magnitude / 30
    for i, name in enumerate(list(NAMES) * 2):
        largest = NAMES[name](20, 26)
        if name == "Posterize":
            amount = round(8 - 4 * level)
        elif name == "Solarize":
            amount = 1 - level
        else:
            amount = largest * level * (1 if i < 14 else -1)
        expected = reference._apply_image_or_video_transform(
            video[i].transpose(0, 1), name, amount, reference.interpolation, {torch.Tensor: None}
        ).transpose(0, 1)
        assert torch.equal(out[i], expected), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float32_result_rounded(dtype: torch.dtype) -> None:
    """Of frames so large that torch's own kernels for half precision are wrong on a CPU."""
    transform = RandAugment(num_ops=1, magnitude=9)
    video = torch.rand(14, 3, 1, 182, 184).to(dtype)
    params = transform.make_params(video)._replace(op=torch.arange(14)[:, None])
    out, exact = transform.apply(video, params), transform.apply(video.float(), params)
    assert out.dtype == dtype
    assert torch.equal(out, exact.to(dtype))


def test_operations_are_drawn_evenly_and_apart() -> None:
    video = torch.zeros((), dtype=torch.uint8).expand(14_000, 3, 1, 8, 8)
    params = RandAugment(num_ops=2).make_params(video, torch.Generator().manual_seed(0))
    counts = torch.stack([torch.bincount(layer, minlength=14) for layer in params.op.T])
    assert (counts - 1000).abs().max() < 6 * 1000**0.5
    assert abs(params.negative.float().mean() - 0.5) < 0.02
    both = (params.op[:, 0] == params.op[:, 1]).float().mean()
    assert abs(both - 1 / 14) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ops": -1}, "`num_ops` must be at least 0; got -1"),
        ({"magnitude": 31}, "`magnitude` must be in [0, 30]; got 31"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        RandAugment(**arguments)
