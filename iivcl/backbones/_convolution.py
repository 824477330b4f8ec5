"""Convolutions over time that are right in half precision on every CPU, and a check of any model's.

Some CPU kernels of bfloat16 convolutions read or write beyond the clip where it is shorter than the
temporal kernel, and others err at a single output column under a stride. Nothing of that raises:
the values or the gradients are noise.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from iivcl._checks import check_within, computes_as

__all__ = ["PaddedConv3d", "WrongConvolution", "check_convolutions"]


class PaddedConv3d(nn.Conv3d):
    """`torch.nn.Conv3d` that stays right in half precision on a CPU, where torch's does not.

    Clips shorter than the temporal kernel are padded before the convolution; maps smaller than the
    spatial kernel, and those of a single output column under a stride, are convolved in float32.
    Everything else is ``nn.Conv3d``, whose arguments it takes. All encoders of `iivcl.backbones`
    use it; `check_convolutions` tells whether a model of your own needs it.

    Example:
        >>> import torch
        >>> conv = PaddedConv3d(3, 8, kernel_size=3, padding=1).to(torch.bfloat16)
        >>> conv(torch.ones(1, 3, 2, 8, 8, dtype=torch.bfloat16)).shape
        torch.Size([1, 8, 2, 8, 8])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        half = _half_on_cpu(input)
        if half is not None and self.padding_mode == "zeros":
            frames, *pixels = input.shape[-3:]
            reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            left, right, *_, first, last = self._reversed_padding_repeated_twice
            is_short = frames < reach[0] and first + last > 0
            is_small = pixels[0] < reach[1] or pixels[1] < reach[2]
            is_column = pixels[1] + left + right - reach[2] < self.stride[2] > 1
            if is_small or is_column or (is_short and isinstance(self.padding, str)):
                with torch.autocast("cpu", enabled=False):  # on so few pixels it costs nothing
                    bias = None if bias is None else bias.float()
                    out: Tensor = super()._conv_forward(input.float(), weight.float(), bias)
                    return out.to(half)
            if is_short:
                input = F.pad(input, (0, 0, 0, 0, first, last))
                padding = (0, *self.padding[1:])
                return F.conv3d(
                    input, weight, bias, self.stride, padding, self.dilation, self.groups
                )
        return super()._conv_forward(input, weight, bias)  # type: ignore[no-any-return]

    @classmethod
    def convert_conv3d(cls, module: nn.Module) -> nn.Module:
        """Replace every ``nn.Conv3d`` inside ``module``, which keeps its weights.

        A subclass with an arithmetic of its own stays what it is.

        Args:
            module: Network to convert, in place.

        Returns:
            The module.

        Example:
            >>> model = PaddedConv3d.convert_conv3d(nn.Sequential(nn.Conv3d(3, 8, 3)))
            >>> type(model[0]).__name__
            'PaddedConv3d'
        """
        for conv in module.modules():  # each stays what it is, with its hooks and tensors
            if not isinstance(conv, nn.Conv3d) or is_parametrized(conv):
                continue
            if computes_as(conv, nn.Conv3d):
                conv.__class__ = cls
        return module


class WrongConvolution(NamedTuple):
    """A convolution whose results in half precision are not those of float32.

    Attributes:
        name: Its name inside the model.
        input_shape: Shape of its input.
        output: Relative error of the output, ``norm(half - full) / norm(full)``; NaN or infinite
            where the result is.
        input_gradient: That of the gradient of the input.
        weight_gradient: That of the gradient of the weight.
    """

    name: str
    input_shape: tuple[int, ...]
    output: float
    input_gradient: float
    weight_gradient: float


def check_convolutions(
    model: nn.Module, *inputs: Tensor, dtype: torch.dtype = torch.bfloat16, tolerance: float = 0.05
) -> list[WrongConvolution]:
    """Find the convolutions of a model that this machine computes wrongly in half precision.

    The model runs once in float32, and each of its convolutions, on the input that reaches it, also
    in ``dtype``, forward and backward. The model itself is not changed. A kernel that writes beyond
    its memory can end the process: run an unknown one in a process of its own.

    Args:
        model: Any module; convolutions are its ``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``.
        *inputs: What the model is called with, of the size that it is to be trained on; float.
        dtype: ``torch.bfloat16`` or ``torch.float16``.
        tolerance: Largest relative error that counts as rounding; bfloat16 rounds to 0.003.

    Returns:
        The convolutions that are wrong, none on a machine without the fault.

    Example:
        >>> import torch
        >>> from iivcl.backbones import slow_resnet
        >>> check_convolutions(slow_resnet(18), torch.randn(1, 3, 2, 32, 32))
        []
    """
    check_within(0, math.inf, tolerance=tolerance)
    model = copy.deepcopy(model).float().eval()
    worst: dict[str, WrongConvolution] = {}

    def compare(name: str, conv: _ConvNd, args: tuple[Tensor, ...]) -> None:
        full, half = (_results(conv, args[0].float(), to) for to in (torch.float32, dtype))
        errors = [_relative_error(a, b) for a, b in zip(half, full, strict=True)]
        if not all(error <= tolerance for error in errors):
            worst[name] = WrongConvolution(name, tuple(args[0].shape), *errors)

    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            conv.register_forward_pre_hook(lambda conv, args, name=name: compare(name, conv, args))
    with torch.no_grad():
        model(*(tensor.float() for tensor in inputs))
    return list(worst.values())


def _results(conv: _ConvNd, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Output and both gradients of a convolution in ``dtype``, of numbers that bfloat16 holds."""
    x = x.detach().bfloat16().to(dtype).requires_grad_()
    weight = conv.weight.detach().bfloat16().to(dtype).requires_grad_()
    with torch.enable_grad():
        out = conv._conv_forward(x, weight, None)
        slope = torch.arange(out.numel(), device=out.device).sin().view_as(out)
        grads = torch.autograd.grad(out, (x, weight), slope.bfloat16().to(dtype))
    return out.detach(), grads[0], grads[1]


def _relative_error(value: Tensor, truth: Tensor) -> float:
    value, truth = value.float(), truth.float()
    return float((value - truth).norm() / truth.norm().clamp(min=1e-12))


def _half_on_cpu(input: Tensor) -> torch.dtype | None:
    """In which half precision a convolution of ``input`` computes on a CPU; None if in none."""
    if input.device.type != "cpu":
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None
