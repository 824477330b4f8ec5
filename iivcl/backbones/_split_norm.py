"""Batch norm over parts of the batch: the statistics of several devices on one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from iivcl._checks import check_at_least, check_within, computes_as

__all__ = ["SplitBatchNorm"]


class SplitBatchNorm(_BatchNorm):
    """Batch norm that normalises every one of ``num_splits`` parts of the batch by itself.

    On one device it does what plain batch norm does on ``num_splits`` of them, of which each sees
    its own consecutive rows. Together with `iivcl.distributed.batch_shuffle` on the keys it keeps a
    network from recognising pairs by their common statistics. In eval mode it is plain batch norm.
    Running statistics move towards the mean over the parts. Also called ghost batch norm.

    Args:
        num_features: Channels C.
        num_splits: Parts of the batch; B must be a multiple of it in train mode.
        eps: As in ``nn.BatchNorm3d``.
        momentum: As in ``nn.BatchNorm3d``.
        affine: As in ``nn.BatchNorm3d``.
        track_running_stats: As in ``nn.BatchNorm3d``.

    Raises:
        ValueError: ``num_splits`` is below 1; or does not divide the batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.randn(8, 3, 4, 6, 6)  # (B, C, T, H, W)
        >>> split = SplitBatchNorm(3, num_splits=2)
        >>> torch.equal(split(x)[:4], nn.BatchNorm3d(3)(x[:4]))
        True

    Source:
        He et al., Momentum Contrast, arXiv 1911.05722, section 3.3.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_splits: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        check_at_least(1, num_features=num_features, num_splits=num_splits)
        check_within(0, math.inf, eps=eps)
        check_within(0, 1, momentum=0.0 if momentum is None else momentum)
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.num_splits = num_splits

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(B, C, ...)``."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        if input.shape[0] % self.num_splits:
            raise ValueError(
                f"`input` must have a multiple of {self.num_splits} rows (from `num_splits`); "
                f"got {input.shape[0]}"
            )
        n = self.num_splits
        running = self.running_mean
        statistics = None if running is None else running.new_zeros(2, n, self.num_features)
        normalised = []
        for i, part in enumerate(input.chunk(n)):
            # With a momentum of 1, the "running" statistics of a part become its own.
            mean, variance = (None, None) if statistics is None else statistics[:, i].unbind()
            normalised.append(
                F.batch_norm(part, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
            )
        if statistics is not None:
            self._track(statistics.mean(1))
        return torch.cat(normalised)

    @torch.no_grad()
    def _track(self, statistics: Tensor) -> None:
        """Move the running statistics towards ``statistics``, mean and variance (2, C)."""
        share: float | Tensor = self.momentum or 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a cumulative average
                share = 1 / self.num_batches_tracked.to(statistics.dtype)
        for name, new in zip(("running_mean", "running_var"), statistics, strict=True):
            running = getattr(self, name)
            running.add_((new - running) * share)

    def extra_repr(self) -> str:
        """Add the number of parts to what batch norm says of itself."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, num_splits={self.num_splits}"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"`input` must have at least 2 axes (B, C, ...); got {input.ndim}")

    @classmethod
    def convert_split_batchnorm(cls, module: nn.Module, *, num_splits: int) -> nn.Module:
        """Replace every batch norm inside ``module``, which keeps its weights and statistics.

        Args:
            module: Network to convert, in place.
            num_splits: Parts of the batch.

        Returns:
            The module.

        Raises:
            ValueError: ``num_splits`` is below 1; or a batch norm computes something of its own,
                such as an activation, which would be lost.

        Example:
            >>> from iivcl.backbones import r3d_18
            >>> backbone = SplitBatchNorm.convert_split_batchnorm(r3d_18(), num_splits=4)
            >>> backbone.stem[1].num_splits
            4
        """
        check_at_least(1, num_splits=num_splits)
        norms = {
            name: norm for name, norm in module.named_modules() if isinstance(norm, _BatchNorm)
        }
        for name, norm in norms.items():
            if not any(computes_as(norm, kind) for kind in (_BatchNorm, nn.SyncBatchNorm, cls)):
                raise ValueError(
                    f"`module` must have batch norms of torch; {name!r} is a "
                    f"{type(norm).__name__}, which computes something of its own"
                )
        for norm in norms.values():  # each stays what it is, with its hooks and tensors
            norm.__class__ = cls
            norm.num_splits = num_splits  # type: ignore[assignment]
        return module
