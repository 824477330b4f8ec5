"""Operations on batches of clips (B, C, T, H, W), each clip with its own numbers.

A number given for a clip holds for all of its frames. uint8 stays uint8 and floats stay floats.
Every operation equals a loop of its namesake in ``torchvision.transforms.v2.functional`` over the
clips.
"""

from iivcl.augment.functional._color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    normalize,
    solarize,
    to_float,
    to_grayscale,
)
from iivcl.augment.functional._frame import (
    center_crop,
    crop_resize,
    gaussian_blur,
    horizontal_flip,
    resize_short_side,
)

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "center_crop",
    "crop_resize",
    "gaussian_blur",
    "horizontal_flip",
    "normalize",
    "resize_short_side",
    "solarize",
    "to_float",
    "to_grayscale",
]
