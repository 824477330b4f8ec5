"""Which rows count in a measure, and how their values become one number."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from iivcl._checks import check_at_least, check_choice, check_ids, check_same_device, is_integer

Average = Literal["videos", "classes"]


def check_ks(name: str, ks: Sequence[int], most: int, what: str) -> None:
    """Check numbers of neighbours or classes."""
    if not (isinstance(ks, Sequence) and ks and all(map(is_integer, ks))):
        raise TypeError(f"`{name}` must be a sequence of integers, such as (1, 5); got {ks!r}")
    for k in ks:
        if not 1 <= k <= most:
            raise ValueError(f"`{name}` must be in [1, {most}] ({what}); got {k}")


def warn_of_rows(name: str, sound: Tensor, consequence: str = "are left out") -> None:
    """Say how many rows are not numbers."""
    bad = int((~sound).sum())
    if bad:
        warnings.warn(
            f"{bad} of {len(sound)} rows of `{name}` have a value that is not finite; they "
            f"{consequence}",
            stacklevel=3,
        )


def rows_that_count(
    name: str,
    values: Tensor,
    labels_name: str,
    labels: Tensor,
    num_classes: int | None = None,
    sound: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the values, labels and places of the rows with a known label that are sound (N,).

    By default those are that have finite values. Of the others is warned.
    """
    check_ids(labels_name, labels, len(values), name)
    check_same_device(labels_name, labels, name, values)
    labels = labels.long()
    wrong, bound = labels < -1, "at least 0"
    if num_classes is not None:
        check_at_least(1, num_classes=num_classes)
        wrong, bound = wrong | (labels >= num_classes), f"in [0, {num_classes})"
    if wrong.any():
        raise ValueError(
            f"`{labels_name}` must be {bound}, or -1 for unknown; got {int(labels[wrong][0])}"
        )
    sound = values.isfinite().all(dim=1) if sound is None else sound
    warn_of_rows(name, sound)
    rows = (sound & (labels >= 0)).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(
            f"`{name}` has no row that counts: with finite values, and a label in `{labels_name}` "
            "that is not -1"
        )
    return values[rows], labels[rows], rows


def mean(values: Tensor, labels: Tensor, average: Average) -> float:
    """Average values (N,) over rows, or over the means of the classes."""
    check_choice("average", average, ("videos", "classes"))
    values = values.double()
    if average == "classes":
        index = torch.unique(labels, return_inverse=True)[1]
        values = index.bincount(values) / index.bincount()
    return values.mean().item()


def mean_at(hit: Tensor, ks: Sequence[int], labels: Tensor, average: Average) -> dict[int, float]:
    """Average whether one of the first k, best first, is a hit: (N, K) bool."""
    return {k: mean(hit[:, :k].any(dim=1), labels, average) for k in ks}
