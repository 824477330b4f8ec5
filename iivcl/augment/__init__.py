"""Video augmentation that is consistent over time by construction: one draw per clip.

Every transform takes a batch of clips (B, C, T, H, W), uint8 or floating. Its parameters differ
from clip to clip and hold for all the frames of a clip; there is no flag that says so. A transform
is stateless: ``make_params`` draws, ``apply`` computes, and calling it does both.
"""

from iivcl.augment import functional
from iivcl.augment._compose import Compose, RandomApply
from iivcl.augment._crop import (
    CenterCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    ResizeShortSide,
)
from iivcl.augment._jitter import ColorJitter
from iivcl.augment._pixel import GaussianBlur, Normalize, RandomGrayscale, RandomSolarize, ToFloat
from iivcl.augment._presets import cvrl, evaluation, moco_v2, rho_moco
from iivcl.augment._rand_augment import RandAugment
from iivcl.augment._transform import Transform

__all__ = [
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "GaussianBlur",
    "Normalize",
    "RandAugment",
    "RandomApply",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomSolarize",
    "ResizeShortSide",
    "ToFloat",
    "Transform",
    "cvrl",
    "evaluation",
    "functional",
    "moco_v2",
    "rho_moco",
]
