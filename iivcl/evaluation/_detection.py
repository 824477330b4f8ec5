"""Mean average precision of actions that are detected in boxes, as in AVA."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl._checks import check_embeddings, check_mask, check_number, check_same_device, check_shape
from iivcl.data import ActionBoxes
from iivcl.evaluation._rows import warn_of_rows

__all__ = ["DetectionMetrics", "detection_map"]


class DetectionMetrics(NamedTuple):
    """What `detection_map` finds.

    Attributes:
        mean_average_precision: Mean over the actions that occur, in [0, 1].
        average_precision: Of every action that occurs, by its number.
        num_truth: Boxes of the truth that count, of every action asked for; 0 where it is absent.
        num_keyframes: Keyframes of the truth that count.
    """

    mean_average_precision: float
    average_precision: dict[int, float]
    num_truth: dict[int, int]
    num_keyframes: int


@torch.no_grad()
def detection_map(
    detections: ActionBoxes,
    truth: ActionBoxes,
    *,
    iou: float = 0.5,
    classes: Iterable[int] | None = None,
    keyframes: Iterable[tuple[str, float]] | None = None,
    exclusions: Iterable[tuple[str, float]] = (),
) -> DetectionMetrics:
    """Measure frame-mAP: how well boxes and the scores of their actions fit the annotated ones.

    Of every action by itself, a detection belongs to the true box of its keyframe that it overlaps
    most. In the order of scores over the whole set, it is right when that overlap is at least
    ``iou`` and no detection before it was right about the same box; all others are false, also
    those in keyframes without a true box. With p(r) -> the highest precision at recall r or above,

        average precision = integral of p(r) over r in [0, 1]

    which is the area under all points of the curve, as PASCAL VOC has it since 2010, not the mean
    at 11 of them. An action without a true box has none, and changes nothing.

    It is the measure of AVA, whose own evaluation first keeps the 50 best (box, action) pairs of
    every keyframe; here all count. An action that a detection leaves out has a score of -inf.

    Args:
        detections: N boxes with scores ``actions`` (N, A), of any range. Equal scores rank in the
            order of the rows. Rows with NaN are left out, with a warning. Their ``scores`` are not
            used: leave out boxes that the detector is not sure of, and say which.
        truth: M boxes with bool ``actions`` (M, A).
        iou: Least intersection over union, in (0, 1].
        classes: Numbers, from 1, of the actions to average over: 60 of the 80 in AVA, as its label
            map lists them. All by default.
        keyframes: Keyframes in which detections and true boxes count; by default all. AVA's own
            evaluation counts those that its list of true boxes names, since 2020; before it counted
            all, as SlowFast's does: a detection where nobody is annotated is false.
        exclusions: Keyframes in which they do not count.

    Returns:
        The measure and the counts behind it.

    Raises:
        TypeError: ``detections`` have no scores, or ``truth`` is not bool.
        ValueError: A shape does not fit, a box is empty or no number, an argument is out of range,
            or no true box that counts shows one of ``classes``.

    Example:
        >>> from iivcl.data import ActionBoxes
        >>> boxes = torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.6, 0.1, 0.9, 0.9]])
        >>> does = torch.tensor([[True, False], [False, True]])
        >>> truth = ActionBoxes([("a", 902), ("a", 902)], boxes, does, torch.ones(2))
        >>> found = truth._replace(actions=torch.tensor([[0.9, 0.6], [0.2, 0.5]]))
        >>> detection_map(found, truth).average_precision
        {1: 1.0, 2: 0.5}

    Source:
        Gu et al., arXiv 1705.08421, section 5.2; Everingham et al., "The PASCAL Visual Object
        Classes Challenge: A Retrospective", IJCV 2015, section 3.2.
    """
    check_number("iou", iou)
    if not 0 < iou <= 1:
        raise ValueError(f"`iou` must be in (0, 1]; got {iou}")
    check_mask("truth.actions", truth.actions, "M A")
    columns = truth.actions.shape[1]
    check_embeddings("detections.actions", detections.actions, "N A", A=(columns, "truth.actions"))
    numbers = list(range(1, columns + 1)) if classes is None else sorted(set(classes))
    if not all(1 <= number <= columns for number in numbers):
        raise ValueError(f"`classes` must be in [1, {columns}]; got {numbers}")
    if keyframes is None:
        keyframes = {*detections.keyframes, *truth.keyframes}
    counting = set(keyframes) - set(exclusions)
    detections = _take_side("detections", detections, counting)
    truth = _take_side("truth", truth, counting)
    sound = ~detections.actions.isnan().any(dim=1)
    warn_of_rows("detections.actions", sound)
    detections = detections.select(sound)

    pairs = _overlapping(detections, truth, iou)
    counts, precision = dict.fromkeys(numbers, 0), dict[int, float]()
    for number in numbers:
        scores, true = detections.actions[:, number - 1], truth.actions[:, number - 1]
        counts[number] = int(true.sum())
        if counts[number]:
            precision[number] = _average_precision(scores, true, *pairs)
    if not precision:
        raise ValueError("`truth` has no box that shows one of `classes` in a keyframe that counts")
    mean = sum(precision.values()) / len(precision)
    return DetectionMetrics(mean, precision, counts, len(set(truth.keyframes)))


def _take_side(name: str, side: ActionBoxes, counting: set[tuple[str, float]]) -> ActionBoxes:
    """Check one side, and take the keyframes that count."""
    rows = (len(side.keyframes), f"{name}.keyframes")
    check_shape(f"{name}.actions", side.actions, "N A", N=rows)
    check_embeddings(
        f"{name}.boxes", side.boxes, "N edges", N=rows, edges=(4, "left, top, right, bottom")
    )
    check_same_device(f"{name}.boxes", side.boxes, f"{name}.actions", side.actions)
    wrong = ~(side.boxes.isfinite().all(dim=1) & (side.boxes[:, :2] < side.boxes[:, 2:]).all(dim=1))
    if wrong.any():
        raise ValueError(
            f"`{name}.boxes` must be finite, left < right and top < bottom; got "
            f"{side.boxes[wrong][0].tolist()}"
        )
    rows_that_count = [keyframe in counting for keyframe in side.keyframes]
    return side.select(torch.tensor(rows_that_count, dtype=torch.bool, device=side.boxes.device))


def _overlapping(detections: ActionBoxes, truth: ActionBoxes, iou: float) -> tuple[Tensor, Tensor]:
    """Pair detections (P,) with true boxes (P,) that they overlap, best first of a detection."""
    device, true_rows_of = truth.boxes.device, defaultdict(list)
    for row, keyframe in enumerate(truth.keyframes):
        true_rows_of[keyframe].append(row)
    among = [true_rows_of.get(keyframe, []) for keyframe in detections.keyframes]
    several = torch.tensor([len(rows) for rows in among], dtype=torch.int64, device=device)
    rows = torch.arange(len(among), device=device).repeat_interleave(several)
    true_rows = torch.tensor(list(itertools.chain(*among)), dtype=torch.int64, device=device)
    overlap = _iou(detections.boxes[rows].double(), truth.boxes[true_rows].double())
    best = overlap.argsort(descending=True, stable=True)
    best = best[overlap[best] >= iou]
    best = best[rows[best].argsort(stable=True)]
    return rows[best], true_rows[best]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (P, 4) and (P, 4), row by row."""
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    both = sides.clamp(min=0).prod(dim=1)
    areas = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1)
    return both / (areas - both)


def _average_precision(scores: Tensor, true: Tensor, rows: Tensor, true_rows: Tensor) -> float:
    """Average precision of one action: scores (N,), whether a true box shows it (M,), pairs."""
    shown = true[true_rows]
    rows, true_rows = rows[shown], true_rows[shown]
    is_best = rows.diff(prepend=rows[:1] - 1) != 0  # of the pairs of a detection the first
    rows, true_rows = rows[is_best], true_rows[is_best]
    order = scores.argsort(descending=True, stable=True)
    place = order.argsort()  # of every detection in the order of scores
    first = torch.full_like(true, len(order), dtype=torch.int64)  # who is right: N for nobody
    first = first.scatter_reduce(0, true_rows, place[rows], "amin")
    right = torch.zeros(len(order) + 1, dtype=torch.bool, device=order.device)
    right[first] = True
    right = right[: int((scores > -torch.inf).sum())]
    precision = right.cumsum(0).double() / torch.arange(1, len(right) + 1, device=right.device)
    highest = precision.flip(0).cummax(0).values.flip(0)  # at this recall or above
    return (highest[right].sum() / true.sum()).item()
