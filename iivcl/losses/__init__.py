"""Contrastive losses with several positives, and the IIVCL objective."""

from ._iivcl import IIVCLLoss, IIVCLOutput
from ._info_nce import InfoNCELoss, info_nce, multi_positive_info_nce

__all__ = [
    "IIVCLLoss",
    "IIVCLOutput",
    "InfoNCELoss",
    "info_nce",
    "multi_positive_info_nce",
]
