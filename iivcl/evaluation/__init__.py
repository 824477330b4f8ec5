"""Measures of a frozen video encoder: retrieval, neighbours, linear probe, detection."""

from iivcl.evaluation._detection import DetectionMetrics, detection_map
from iivcl.evaluation._features import Features, extract_features
from iivcl.evaluation._neighbors import knn_classify
from iivcl.evaluation._probe import confusion_matrix, fit_linear_probe, topk_accuracy
from iivcl.evaluation._retrieval import RetrievalMetrics, retrieval_metrics, retrieval_recall
from iivcl.evaluation._whitening import fit_whitening

__all__ = [
    "DetectionMetrics",
    "Features",
    "RetrievalMetrics",
    "confusion_matrix",
    "detection_map",
    "extract_features",
    "fit_linear_probe",
    "fit_whitening",
    "knn_classify",
    "retrieval_metrics",
    "retrieval_recall",
    "topk_accuracy",
]
