"""Rows with a label: the checks and the mean that all measures share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from iivcl._checks import check_floating, check_ids, check_same_device, check_shape


def check_labeled(name: str, rows: Tensor, pattern: str, labels_name: str, labels: Tensor) -> None:
    """Check that features or scores have a label each, beside them."""
    check_shape(name, rows, pattern)
    check_floating(name, rows)
    check_ids(labels_name, labels, len(rows), name)
    check_same_device(labels_name, labels, name, rows)


def check_ks(name: str, ks: Sequence[int], most: int, what: str) -> None:
    """Check numbers of neighbours or classes."""
    for k in ks:
        if not 1 <= k <= most:
            raise ValueError(f"`{name}` must be in [1, {most}] ({what}); got {k}")


def hit_rates(hit: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """Average over rows whether one of the first k, best first, is a hit: (N, K) bool."""
    return {k: hit[:, :k].any(dim=1).double().mean().item() for k in ks}
