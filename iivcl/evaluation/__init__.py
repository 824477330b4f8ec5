"""Measures of a frozen video encoder: retrieval, nearest neighbours, linear probe."""

from ._features import Features, extract_features
from ._neighbors import knn_classify, retrieval_recall
from ._probe import fit_linear_probe, topk_accuracy

__all__ = [
    "Features",
    "extract_features",
    "fit_linear_probe",
    "knn_classify",
    "retrieval_recall",
    "topk_accuracy",
]
