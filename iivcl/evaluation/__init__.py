"""Measures of a frozen video encoder: retrieval, nearest neighbours, linear probe."""

from iivcl.evaluation._features import Features, extract_features
from iivcl.evaluation._neighbors import knn_classify, retrieval_recall
from iivcl.evaluation._probe import fit_linear_probe, topk_accuracy

__all__ = [
    "Features",
    "extract_features",
    "fit_linear_probe",
    "knn_classify",
    "retrieval_recall",
    "topk_accuracy",
]
