"""Measures of a frozen video encoder: retrieval, nearest neighbours, linear probe."""

from iivcl.evaluation._features import Features, extract_features
from iivcl.evaluation._neighbors import knn_classify
from iivcl.evaluation._probe import confusion_matrix, fit_linear_probe, topk_accuracy
from iivcl.evaluation._retrieval import RetrievalMetrics, retrieval_metrics, retrieval_recall

__all__ = [
    "Features",
    "RetrievalMetrics",
    "confusion_matrix",
    "extract_features",
    "fit_linear_probe",
    "knn_classify",
    "retrieval_metrics",
    "retrieval_recall",
    "topk_accuracy",
]
