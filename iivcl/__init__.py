"""Inter-intra video contrastive learning in PyTorch, as small parts for your own training loop."""

from iivcl import (
    augment,
    backbones,
    data,
    diagnostics,
    distributed,
    evaluation,
    losses,
    momentum,
    queues,
    testing,
)
from iivcl.losses import IIVCLLoss, InfoNCELoss
from iivcl.queues import MoCoQueue, NNSupportQueue

__all__ = [
    "IIVCLLoss",
    "InfoNCELoss",
    "MoCoQueue",
    "NNSupportQueue",
    "augment",
    "backbones",
    "data",
    "diagnostics",
    "distributed",
    "evaluation",
    "losses",
    "momentum",
    "queues",
    "testing",
]

__version__ = "0.1.0"
