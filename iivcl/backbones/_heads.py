"""The small networks between the encoder and the loss."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from iivcl._checks import check_at_least, check_choice, check_shape

__all__ = ["PredictionHead", "ProjectionHead"]

Norm = Literal["batch", "sync"] | None


class ProjectionHead(nn.Module):
    """MLP from the features of the encoder to the space of the loss.

    ``num_layers`` linear layers with ReLU, and optionally a norm, between them. The output is not
    normalised: losses and queues do that.

    Args:
        in_dim: Size of the features.
        hidden_dim: Size of every hidden layer.
        out_dim: Embedding size D.
        num_layers: Number of linear layers, at least 1.
        norm: Norm of the hidden layers: none as in rho-MoCo, ``"batch"``, or ``"sync"`` for batch
            norm over all processes.

    Raises:
        ValueError: An argument is out of range; or the features have the wrong size.

    Example:
        >>> import torch
        >>> head = ProjectionHead(2048, 2048, 128)
        >>> head(torch.zeros(4, 2048)).shape
        torch.Size([4, 128])

    Source:
        Feichtenhofer et al., arXiv 2104.14558, section 4: three layers 2048-2048-128, no norm.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int = 3, norm: Norm = None
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        check_at_least(1, in_dim=in_dim, hidden_dim=hidden_dim, out_dim=out_dim)
        self.layers = _mlp(in_dim, hidden_dim, out_dim, num_layers, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, in_dim)`` to embeddings ``(B, out_dim)``."""
        check_shape("features", features, "B in_dim", in_dim=(self.in_dim, "in_dim"))
        return self.layers(features)  # type: ignore[no-any-return]


class PredictionHead(nn.Module):
    """MLP from the query's embedding to the key's, as in BYOL, SimSiam and NNCLR.

    It stands behind the query's projection head only; the momentum encoder has none.

    Args:
        dim: Embedding size D, of input and output.
        hidden_dim: Size of every hidden layer.
        num_layers: Number of linear layers, at least 1.
        norm: Norm of the hidden layers: ``"batch"`` as in BYOL, ``"sync"`` for batch norm over all
            processes, or none.

    Raises:
        ValueError: An argument is out of range; or the embeddings have the wrong size.

    Example:
        >>> import torch
        >>> predictor = PredictionHead(128, 512)
        >>> predictor(torch.zeros(4, 128)).shape
        torch.Size([4, 128])

    Source:
        Grill et al., "Bootstrap Your Own Latent", arXiv 2006.07733, section 3.2.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, num_layers: int = 2, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.dim = dim
        check_at_least(1, dim=dim, hidden_dim=hidden_dim)
        self.layers = _mlp(dim, hidden_dim, dim, num_layers, norm)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings ``(B, D)`` to predictions ``(B, D)``."""
        check_shape("embeddings", embeddings, "B D", D=(self.dim, "dim"))
        return self.layers(embeddings)  # type: ignore[no-any-return]


def _mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int, norm: Norm) -> nn.Sequential:
    check_at_least(1, num_layers=num_layers)
    if norm is not None:
        check_choice("norm", norm, ("batch", "sync"))
    *hidden, last = pairwise([in_dim, *[hidden_dim] * (num_layers - 1), out_dim])
    layers: list[nn.Module] = []
    for d_in, d_out in hidden:
        layers.append(nn.Linear(d_in, d_out, bias=norm is None))  # a norm has its own bias
        if norm is not None:
            layers.append(nn.BatchNorm1d(d_out) if norm == "batch" else nn.SyncBatchNorm(d_out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(*last))
