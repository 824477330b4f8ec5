"""Features without the directions that all videos share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iivcl._checks import check_embeddings, check_within
from iivcl.evaluation._rows import warn_of_rows

__all__ = ["fit_whitening"]


@torch.no_grad()
def fit_whitening(features: Tensor, *, shrinkage: float = 0.1) -> nn.Linear:
    """Fit the map that centres features and gives all their directions the same variance.

        whiten(x) = S^(-1/2) (x - mean),   S = (1 - shrinkage) C + shrinkage tr(C) / D I

    where C is the covariance of the features. A contrastive loss shapes the output of the head;
    in the features before it a few directions, of much variance and little meaning, decide the
    cosine. Whitened features give them no more than their share, and need no labels. Where the
    directions of much variance are the classes, that loses: measure both. Of small variance is
    also what is noise, which shrinkage keeps small. At 1 the features are centred alone.

    It changes the figures of retrieval and of neighbours, so say that it was used.

    Args:
        features: ``(N, D)``, of the gallery alone. Rows that are not finite are left out, with a
            warning.
        shrinkage: Share of the mean variance in every direction, in [0, 1].

    Returns:
        Linear layer ``(D) -> (D)`` in float32 on the device of the features, for gallery and
        queries alike.

    Raises:
        ValueError: A shape does not fit, ``shrinkage`` is out of range or too small for features
            that span fewer than D directions, or the features are all alike.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(500, 2, generator=generator) * torch.tensor([9.0, 1.0]) + 5
        >>> whiten = fit_whitening(features, shrinkage=0.0)
        >>> whiten(features).T.cov().round(decimals=2).abs()
        tensor([[1., 0.],
                [0., 1.]])

    Source:
        Jegou and Chum, "Negative evidences and co-occurences in image retrieval: the benefit of PCA
        and whitening", ECCV 2012; shrinkage: Ledoit and Wolf, "A well-conditioned estimator for
        large-dimensional covariance matrices", Journal of Multivariate Analysis 88, 2004.
    """
    check_embeddings("features", features, "N D")
    check_within(0, 1, shrinkage=shrinkage)
    features = features.float()
    sound = features.isfinite().all(dim=1)
    warn_of_rows("features", sound)
    x = features[sound].double()
    if not len(x):
        raise ValueError("`features` has no row whose values are all finite")
    mean = x.mean(dim=0)  # (D,)
    directions = x.shape[1]
    variance, axes = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))  # (D,) and (D, D)
    rounding = directions * torch.finfo(x.dtype).eps
    least = max(rounding * x.abs().amax().item(), torch.finfo(torch.float32).tiny)
    if variance[-1] <= least**2:
        raise ValueError("`features` are all alike: there is no direction to whiten")
    variance = variance.clamp(min=0).lerp(variance.mean().expand_as(variance), shrinkage)
    if variance[0] <= rounding * variance[-1]:
        raise ValueError(
            f"`shrinkage` must be above 0, such as 0.1, where {len(x)} features span fewer than "
            f"{directions} directions; got {shrinkage}"
        )
    weight = (axes / variance.sqrt()) @ axes.T  # S^(-1/2), (D, D)
    whitening = nn.Linear(directions, directions, dtype=torch.float32, device="meta")
    whitening = whitening.to_empty(device=features.device).requires_grad_(False)  # draws nothing
    whitening.weight.copy_(weight)
    whitening.bias.copy_(-weight @ mean)
    return whitening
