"""Pipelines of published methods."""

from __future__ import annotations

from iivcl._checks import is_integer
from iivcl.augment._compose import Compose, RandomApply
from iivcl.augment._crop import (
    CenterCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeShortSide,
)
from iivcl.augment._jitter import ColorJitter
from iivcl.augment._pixel import GaussianBlur, Normalize, RandomGrayscale, ToFloat

__all__ = ["cvrl", "evaluation", "moco_v2", "rho_moco"]

_IMAGENET = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_KINETICS = Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))


def moco_v2(size: int) -> Compose:
    """Augmentation of MoCo v2, with one draw per clip.

    Crop area [0.2, 1]; flip 0.5; jitter 0.4/0.4/0.4/0.1 with p 0.8; gray 0.2; blur sigma
    U(0.1, 2.0) with p 0.5; ImageNet mean and std.

    Args:
        size: Height and width of the result in pixels.

    Returns:
        From (B, 3, T, H, W) uint8 to (B, 3, T, size, size) float32; ``[:2]`` is its geometry and
        ``[2:]`` its colours.

    Example:
        >>> import torch
        >>> moco_v2(112)(torch.zeros(2, 3, 8, 128, 170, dtype=torch.uint8)).shape
        torch.Size([2, 3, 8, 112, 112])

    Source:
        Chen et al., "Improved Baselines with Momentum Contrastive Learning" (arXiv 2003.04297).
        Their blur is PIL's; here it has taps over a tenth of the frame, as in SimCLR.
    """
    return _contrastive(size, (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), _IMAGENET)


def rho_moco(size: int) -> Compose:
    """Augmentation of rho-MoCo ("aug+"), with one draw per clip.

    Crop area [0.2, 0.766], aspect [3/4, 4/3]; flip 0.5; jitter 0.6/0.6/0.6/0.15 with p 0.8; gray
    0.2; blur sigma U(0.1, 2.0) with p 0.5; mean 0.45 and std 0.225.

    Args:
        size: Height and width of the result in pixels.

    Returns:
        From (B, 3, T, H, W) uint8 to (B, 3, T, size, size) float32; ``[:2]`` is its geometry and
        ``[2:]`` its colours.

    Example:
        >>> rho_moco(224)
        Compose(
            RandomResizedCrop(224, scale=(0.2, 0.766), ratio=(0.75, 1.333)),
            RandomHorizontalFlip(p=0.5),
            ToFloat(torch.float32),
            RandomApply(ColorJitter(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15), p=0.8),
            RandomGrayscale(p=0.2),
            RandomApply(GaussianBlur(23, sigma=(0.1, 2.0)), p=0.5),
            Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
        )

    Source:
        Feichtenhofer et al., "A Large-Scale Study on Unsupervised Spatiotemporal Representation
        Learning" (arXiv 2104.14558), and the released configuration ``MoCo_SlowR50_8x8``. Their
        blur is PIL's; here it has taps over a tenth of the frame, as in SimCLR.
    """
    return _contrastive(size, (0.2, 0.766), (0.6, 0.6, 0.6, 0.15), _KINETICS)


def cvrl(size: int) -> Compose:
    """Augmentation of CVRL, with one draw per clip.

    Crop area [0.3, 1], aspect [1/2, 2]; flip 0.5; jitter 0.8/0.8/0.8/0.2 with p 0.8; gray 0.2;
    blur sigma U(0.1, 2.0) over a tenth of the frame with p 0.5; mean 0.45 and std 0.225.

    Args:
        size: Height and width of the result in pixels.

    Returns:
        From (B, 3, T, H, W) uint8 to (B, 3, T, size, size) float32; ``[:2]`` is its geometry and
        ``[2:]`` its colours.

    Example:
        >>> cvrl(224)[0]
        RandomResizedCrop(224, scale=(0.3, 1.0), ratio=(0.5, 2))

    Source:
        Qian et al., "Spatiotemporal Contrastive Video Representation Learning" (arXiv 2008.03800),
        and the released code, ``video_ssl`` of the TensorFlow Model Garden. That code blurs one
        view always and the other with p 0.1, solarizes the latter with p 0.2, and leaves the final
        range to a switch; here both views are alike.
    """
    jitter = (0.8, 0.8, 0.8, 0.2)
    return _contrastive(size, (0.3, 1.0), jitter, _KINETICS, ratio=(0.5, 2.0))


def evaluation(size: int) -> Compose:
    """Short side to ``size * 8 / 7`` (256 for 224), the middle of the frame, mean 0.45, std 0.225.

    Args:
        size: Height and width of the result in pixels.

    Returns:
        From (B, 3, T, H, W) uint8 to (B, 3, T, size, size) float32; nothing is random.

    Example:
        >>> evaluation(224)
        Compose(
            ResizeShortSide(256),
            CenterCrop(224),
            ToFloat(torch.float32),
            Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
        )

    Source:
        One view as in the linear protocol of He et al., "Momentum Contrast" (arXiv 1911.05722) and
        its released ``main_lincls.py``: short side 256, middle 224. Mean and std are rho-MoCo's.
    """
    _check_one_size(size)
    short_side = ResizeShortSide(round(size * 8 / 7))
    return Compose(short_side, CenterCrop(size), ToFloat(), _KINETICS)


def _check_one_size(size: int) -> None:
    if not is_integer(size):
        raise TypeError(
            f"`size` must be an int, the height and width of the square result; got {size!r}"
        )


def _contrastive(
    size: int,
    scale: tuple[float, float],
    jitter: tuple[float, float, float, float],
    normalize: Normalize,
    *,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Compose:
    """Crop, flip, jitter, gray and blur: the family that all the presets belong to.

    The flip stands second, wherever the paper has it: it commutes with all that follows.
    """
    _check_one_size(size)
    crop = RandomResizedCrop(size, scale=scale, ratio=ratio)
    brightness, contrast, saturation, hue = jitter
    color = ColorJitter(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    blur = GaussianBlur(2 * (size // 20) + 1, sigma=(0.1, 2.0))
    flip, gray = RandomHorizontalFlip(p=0.5), RandomGrayscale(p=0.2)
    in_color = RandomApply(color, p=0.8), gray, RandomApply(blur, p=0.5)
    return Compose(crop, flip, ToFloat(), *in_color, normalize)
