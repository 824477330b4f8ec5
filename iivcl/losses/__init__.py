"""Contrastive losses with several positives, and the IIVCL objective."""

from iivcl._candidates import Candidates
from iivcl.losses._iivcl import IIVCLLoss, IIVCLOutput
from iivcl.losses._info_nce import InfoNCELoss, info_nce, multi_positive_info_nce

__all__ = [
    "Candidates",
    "IIVCLLoss",
    "IIVCLOutput",
    "InfoNCELoss",
    "info_nce",
    "multi_positive_info_nce",
]
