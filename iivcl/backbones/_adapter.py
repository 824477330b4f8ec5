"""Encoders of other libraries: any module that takes clips or frames, as an encoder of this one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from iivcl._checks import check_at_least, check_choice, computes_as
from iivcl.backbones._encoder import VideoEncoder, with_mean

__all__ = ["as_encoder", "inflate"]

Layout = Literal["BCTHW", "BTCHW", "BCHW"]
_FROM_CLIPS = {
    "BCTHW": "b c t h w -> b c t h w",
    "BTCHW": "b c t h w -> b t c h w",
    "BCHW": "b c t h w -> (b t) c h w",
}


def as_encoder(
    module: nn.Module,
    *,
    feature_dim: int,
    strides: tuple[int, int],
    layout: Layout = "BCTHW",
    pool: Literal["mean", "first"] = "mean",
    prefix_tokens: int = 0,
    in_channels: int = 3,
) -> VideoEncoder:
    """Make any module that takes clips or frames an encoder of this library.

    The module returns, by itself, as ``last_hidden_state`` or as the first of a tuple, one of

    - a vector per clip or frame, ``(N, feature_dim)``;
    - a map, ``(N, feature_dim, ..., H', W')`` or with the channels last;
    - tokens, ``(N, L, feature_dim)``, in the order of time, rows, columns.

    Args:
        module: Without its classifier.
        feature_dim: Channels of what it returns.
        strides: Input frames and input pixels per cell of its map, or per token: 2 and 16 for
            VideoMAE, 1 and 32 for an image ResNet.
        layout: What it takes: ``"BCTHW"`` or ``"BTCHW"`` clips, or frames, ``"BCHW"``. Frames are
            encoded one by one, and their features averaged over time.
        pool: How a map or tokens become one vector: their ``"mean"``, or the ``"first"`` token.
        prefix_tokens: Tokens before those of the map, as of the class.
        in_channels: Channels C of the video.

    Returns:
        An encoder whose state dict has the module's under ``module.``.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: An option is unknown or out of range; and when it is called, the module's
            output is none of the above.

    Example:
        >>> import torch
        >>> from torchvision.models import resnet18
        >>> network = resnet18()
        >>> network.fc = torch.nn.Identity()
        >>> encoder = as_encoder(network, feature_dim=512, strides=(1, 32), layout="BCHW")
        >>> encoder(torch.rand(2, 3, 4, 32, 32)).shape
        torch.Size([2, 512])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`module` must be an nn.Module, whose parameters train; got {type(module).__name__}. "
            "Put a function or a method into the `forward` of a module"
        )
    check_choice("layout", layout, tuple(_FROM_CLIPS))
    check_choice("pool", pool, ("mean", "first"))
    check_at_least(1 if pool == "first" else 0, prefix_tokens=prefix_tokens)
    encoder = _Adapted(feature_dim=feature_dim, strides=strides, in_channels=in_channels)
    if layout == "BCHW" and strides[0] != 1:
        raise ValueError(f"`strides` of frames must begin with 1; got {strides}")
    encoder.module, encoder.layout = module, layout
    encoder.pool, encoder.prefix_tokens = pool, prefix_tokens
    return encoder


class _Adapted(VideoEncoder):
    module: nn.Module
    layout: Layout
    pool: str
    prefix_tokens: int

    def _encode(self, video: Tensor) -> tuple[Tensor, Tensor]:
        output = self._run(self.module, rearrange(video, _FROM_CLIPS[self.layout]))
        output = getattr(output, "last_hidden_state", output)
        output = output[0] if isinstance(output, (tuple, list)) and output else output
        if not isinstance(output, Tensor):
            raise ValueError(
                "the module must give vectors, a map or tokens, by itself, as `last_hidden_state` "
                f"or as the first of a tuple; got {_kind(output)}"
            )
        cells = self._as_map(output, video.shape[2:])
        frames = video.shape[2] if self.layout == "BCHW" else 1  # that the module takes for clips
        if self.layout == "BCHW":
            cells = rearrange(cells, "(b t) f 1 h w -> b f t h w", t=frames)
        if self.pool == "mean":
            return with_mean(cells)
        if output.ndim != 3:
            raise ValueError(
                f"`pool` 'first' takes a token; the module gives {tuple(output.shape)}"
            )
        return cells, rearrange(output[:, 0], "(b t) f -> b t f", t=frames).mean(dim=1)

    def _as_map(self, output: Tensor, size: Sequence[int]) -> Tensor:
        """Bring what the module returns to ``(N, F, T', H', W')``."""
        given, most = tuple(output.shape), 4 if self.layout == "BCHW" else 5
        if output.ndim == 3:
            t = 1 if self.layout == "BCHW" else size[0] // self.strides[0]
            h, w = (pixels // self.strides[1] for pixels in size[1:])
            if output.shape[1] != self.prefix_tokens + t * h * w:
                raise ValueError(
                    "`strides` and `prefix_tokens` must tell the tokens, of which the module gives "
                    f"{output.shape[1]}; got {t} x {h} x {w} cells and {self.prefix_tokens} more"
                )
            tokens = output[:, self.prefix_tokens :]
            output = rearrange(tokens, "n (t h w) f -> n f t h w", t=t, h=h, w=w)
        elif output.ndim > 3 and output.shape[1] != self.feature_dim:
            output = output.movedim(-1, 1)
        if not 2 <= len(given) <= most or output.shape[1] != self.feature_dim:
            raise ValueError(
                "the module must give vectors, a map or tokens with `feature_dim` "
                f"{self.feature_dim}; got {given}"
            )
        ones = [1] * (5 - output.ndim)  # of one frame, or one cell
        return output.view(*output.shape[:2], *ones, *output.shape[2:])


def _kind(output: Any) -> str:
    keys = f" with {', '.join(map(repr, output))}" if isinstance(output, dict) else ""
    return f"{type(output).__name__}{keys}"


def inflate(module: nn.Module, *, frames: int = 3) -> nn.Module:
    """Return a copy of an image network whose layers take clips, (N, C, T, H, W).

    The weights of a 2D kernel become the middle frame of a 3D one, which is 0 elsewhere: at first
    the copy gives what the network gives of each frame, and training fills in the rest.

    Args:
        module: Of convolutions, batch norms and pools; its own code must work on clips.
        frames: Odd number of frames of the kernels that look beyond one pixel; others take one.

    Returns:
        The copy.

    Raises:
        ValueError: ``frames`` is even or below 1; or a layer computes something of its own, such
            as an activation inside a batch norm, which would be lost.

    Example:
        >>> import torch
        >>> network = inflate(torch.nn.Conv2d(3, 8, 3, padding=1), frames=3)
        >>> network(torch.rand(2, 3, 4, 16, 16)).shape
        torch.Size([2, 8, 4, 16, 16])

    Source:
        Feichtenhofer et al., "Spatiotemporal Residual Networks for Video Action Recognition",
        arXiv 1611.02155; the mean over frames instead of the middle one: Carreira and Zisserman,
        arXiv 1705.07750.
    """
    check_at_least(1, frames=frames)
    if frames % 2 == 0:
        raise ValueError(f"`frames` must be odd; got {frames}")
    module = copy.deepcopy(module)
    for name, layer in list(module.named_modules()):
        if is_parametrized(layer):
            _keep_values(layer)
        for flat, deep in _DEEP.items():
            if isinstance(layer, flat):
                if not computes_as(layer, flat):
                    raise ValueError(
                        f"`module` must have layers of torch; {name!r} is a "
                        f"{type(layer).__name__}, which computes something of its own"
                    )
                layer.__class__ = deep
                _extend_over_time(layer, frames)
    return module


def _keep_values(layer: Any) -> None:
    """Make parameters of weights that are computed, of a weight norm for example.

    What torch has for it would change the class, which is that of the original as well.
    """
    values = {name: getattr(layer, name).detach() for name in layer.parametrizations}
    del layer.parametrizations
    layer.__class__ = type(layer).__bases__[0]
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value))


_DEEP = {  # layers that differ in their sizes alone, of which the deep ones have one more
    nn.Conv2d: nn.Conv3d,
    nn.BatchNorm2d: nn.BatchNorm3d,
    nn.MaxPool2d: nn.MaxPool3d,
    nn.AvgPool2d: nn.AvgPool3d,
    nn.AdaptiveAvgPool2d: nn.AdaptiveAvgPool3d,
}


def _extend_over_time(layer: Any, frames: int) -> None:
    is_convolution = isinstance(layer, nn.Conv3d)
    frames = frames if is_convolution and max(layer.kernel_size) > 1 else 1
    first = {"kernel_size": frames, "padding": frames // 2, "stride": 1, "dilation": 1}
    first["output_size"] = 1
    for name in first.keys() & vars(layer).keys():
        size = getattr(layer, name)
        if size != "same":
            size = 0 if size == "valid" else size
            height, width = (size, size) if isinstance(size, int) else size
            setattr(layer, name, (first[name], height, width))
    if is_convolution:
        around = (frames // 2, frames // 2)
        layer._reversed_padding_repeated_twice = (*layer._reversed_padding_repeated_twice, *around)
        kernel = F.pad(layer.weight.detach()[:, :, None], (0, 0, 0, 0, *around))
        layer.weight = nn.Parameter(kernel, layer.weight.requires_grad)
