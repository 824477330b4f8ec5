"""Derivatives flow through augmentation and are right, for every function and every transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as V
from torch import Tensor
from torch.autograd import forward_ad

from iivcl import augment
from iivcl.augment import functional as F

BOXES = torch.tensor([[0, 0, 8, 7], [1, 2, 5, 4]])
WHERE = torch.tensor([True, False])
AMOUNTS = torch.tensor([0.4, 1.7], dtype=torch.float64)
SHIFTS = torch.tensor([0.31, -0.11], dtype=torch.float64)
THRESHOLDS = torch.tensor([0.5, 0.25])
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "adjust_brightness": lambda x: F.adjust_brightness(x, AMOUNTS),
    "adjust_contrast": lambda x: F.adjust_contrast(x, AMOUNTS),
    "adjust_hue": lambda x: F.adjust_hue(x, SHIFTS),
    "adjust_saturation": lambda x: F.adjust_saturation(x, AMOUNTS),
    "center_crop": lambda x: F.center_crop(x, 5),
    "crop_resize": lambda x: F.crop_resize(x, BOXES, (6, 5)),
    "gaussian_blur": lambda x: F.gaussian_blur(x, AMOUNTS, 5),
    "horizontal_flip": lambda x: F.horizontal_flip(x, WHERE),
    "normalize": lambda x: F.normalize(x, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    "resize_short_side": lambda x: F.resize_short_side(x, 5),
    "solarize": lambda x: F.solarize(x, THRESHOLDS),
    "to_float": lambda x: F.to_float(x, torch.float64),
    "to_grayscale": lambda x: F.to_grayscale(x, WHERE),
}


@pytest.fixture
def video() -> Tensor:
    """(2, 3, 1, 8, 7) away from the ends of the range, where clamps have no derivative."""
    return (0.05 + 0.9 * torch.rand(2, 3, 1, 8, 7, dtype=torch.float64)).requires_grad_()


def test_all_functions_are_here() -> None:
    assert sorted(FUNCTIONS) == sorted(F.__all__)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # torch's own in forward mode
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_functions(name: str, video: Tensor) -> None:
    without = FUNCTIONS[name](video.detach())
    torch.testing.assert_close(FUNCTIONS[name](video).detach(), without, rtol=0, atol=1e-7)
    assert torch.autograd.gradcheck(FUNCTIONS[name], video, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("name", ["adjust_hue", "adjust_contrast", "gaussian_blur", "crop_resize"])
def test_second_derivatives(name: str, video: Tensor) -> None:
    assert torch.autograd.gradgradcheck(lambda x: FUNCTIONS[name](x) ** 2, video, fast_mode=True)


@pytest.mark.parametrize(
    ("function", "amounts"),
    [
        (F.adjust_brightness, AMOUNTS),
        (F.adjust_contrast, AMOUNTS),
        (F.adjust_saturation, AMOUNTS),
        (F.adjust_hue, SHIFTS),
        (lambda video, sigma: F.gaussian_blur(video, sigma, 5), AMOUNTS),
    ],
)
def test_gradients_by_the_amounts(
    function: Callable[[Tensor, Tensor], Tensor], amounts: Tensor, video: Tensor
) -> None:
    """So that the amounts can be learnt."""
    amounts = amounts.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: function(video.detach(), a), amounts)


def test_gradient_of_crop_resize_is_that_of_torchvision(video: Tensor) -> None:
    weights = torch.rand(2, 3, 1, 6, 5, dtype=torch.float64)
    (ours,) = torch.autograd.grad((F.crop_resize(video, BOXES, (6, 5)) * weights).sum(), video)
    clips = [
        V.resized_crop(c[:, 0], *b, size=[6, 5]) for c, b in zip(video, BOXES.tolist(), strict=True)
    ]
    (theirs,) = torch.autograd.grad((torch.stack(clips).unsqueeze(2) * weights).sum(), video)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["moco_v2", "rho_moco", "cvrl", "evaluation"])
def test_gradients_of_presets(name: str, video: Tensor) -> None:
    preset = getattr(augment, name)(6)
    params = preset.make_params(video)
    out = preset.apply(video, params)
    torch.testing.assert_close(out, preset.apply(video.detach(), params), rtol=0, atol=1e-5)
    preset = augment.Compose(*preset[:2], augment.ToFloat(torch.float64), *preset[3:])
    assert torch.autograd.gradcheck(lambda x: preset.apply(x, params), video, fast_mode=True)


@pytest.mark.parametrize("where", ["a parameter", "under no_grad"])
def test_nothing_is_recorded_where_nothing_is_asked_for(where: str, video: Tensor) -> None:
    preset = augment.rho_moco(6)
    if where == "under no_grad":
        with torch.no_grad():
            assert not preset(video).requires_grad
    else:
        assert not preset(video.detach()).requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_forward_derivatives_of_a_preset_are_those_of_the_backward_pass(video: Tensor) -> None:
    preset = augment.rho_moco(6)
    preset = augment.Compose(*preset[:2], augment.ToFloat(torch.float64), *preset[3:])
    params, tangent = preset.make_params(video), torch.rand_like(video)
    with forward_ad.dual_level():
        out = preset.apply(forward_ad.make_dual(video.detach(), tangent), params)
        forward = forward_ad.unpack_dual(out).tangent
    weights = torch.rand_like(forward)
    (gradient,) = torch.autograd.grad((preset.apply(video, params) * weights).sum(), video)
    assert math.isclose((forward * weights).sum(), (gradient * tangent).sum(), rel_tol=1e-9)


@pytest.mark.slow
def test_gradients_in_a_compiled_preset(video: Tensor) -> None:
    colours = augment.Compose(*augment.rho_moco(7)[3:])
    params = colours.make_params(video)
    compiled = torch.compile(colours.apply, fullgraph=True, backend="aot_eager")
    grads: list[Any] = [
        torch.autograd.grad((apply(video, params) ** 2).sum(), video)[0]
        for apply in (compiled, colours.apply)
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-6)
