"""What the program around it does must not matter: default device and dtype, inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from surroundings import SURROUNDINGS
from test_augment_derivatives import FUNCTIONS
from torch import Tensor

from iivcl import augment

TRANSFORMS: dict[str, Callable[[], augment.Transform[Any]]] = {
    "rho_moco": lambda: augment.rho_moco(20),
    "moco_v2": lambda: augment.moco_v2(20),
    "evaluation": lambda: augment.evaluation(16),
    **{
        f"RandAugment {n}": lambda n=n: augment.RandAugment(num_ops=4, magnitude=n) for n in (9, 25)
    },
    "RandomSolarize": lambda: augment.RandomSolarize(0.3, p=0.7),
}


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str, around: str) -> None:
    video = torch.randint(0, 256, (4, 3, 2, 24, 26), dtype=torch.uint8)
    expected = TRANSFORMS[name]()(video, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    with SURROUNDINGS[around]():
        out = TRANSFORMS[name]()(video, generator=generator)
    assert out.device.type == "cpu"
    assert torch.equal(out, expected)


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, with_gradient: bool, around: str) -> None:
    video = torch.rand(2, 3, 1, 8, 7, dtype=torch.float64, requires_grad=with_gradient)
    expected = FUNCTIONS[name](video)
    with SURROUNDINGS[around]():
        clone: Tensor = FUNCTIONS[name](video)
    assert clone.device.type == "cpu"
    torch.testing.assert_close(clone, expected, rtol=0, atol=1e-7)


def test_constants_kept_in_inference_mode_serve_outside_of_it() -> None:
    video = torch.rand(3, 3, 2, 24, 27)  # a size that no other test has drawn for
    with torch.inference_mode():
        augment.rho_moco(12)(video)
    augment.rho_moco(12)(video.requires_grad_()).sum().backward()
    assert video.grad is not None


def test_params_are_those_of_the_video_whatever_device_drew_them() -> None:
    """Fake devices would need one each; the meta device stands for one that the host waits for."""
    video = torch.zeros(3, 3, 2, 24, 26, dtype=torch.uint8)
    preset = augment.rho_moco(12)
    on_device = preset.make_params(video.to("meta"), torch.Generator())
    assert {t.device.type for t in augment._program.tensors_of(on_device)} == {"meta"}
    assert preset.apply(video.to("meta"), preset.make_params(video)).device.type == "meta"
