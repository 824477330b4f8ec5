"""Mean average precision of detected actions, held to plain loops, COCO's code and scikit-learn."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve
from torch import Tensor

from iivcl.data import ActionBoxes
from iivcl.evaluation import detection_map

ACTIONS = 5  # of which the last never occurs


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    low, side = torch.rand(2, count, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low * 0.5, low * 0.5 + 0.1 + 0.4 * side], dim=1)


def random_sides(seed: int, *, jitter: float = 0.08) -> tuple[ActionBoxes, ActionBoxes]:
    """Six keyframes of one to four persons; detections are moved copies of them, and others."""
    generator = torch.Generator().manual_seed(seed)
    keyframes = [(f"v{n % 2}", 900.0 + n) for n in range(6) for _ in range(1 + n % 4)]
    boxes = random_boxes(len(keyframes), generator)
    does = torch.rand(len(keyframes), ACTIONS, generator=generator) < 0.4
    does[0, :4], does[:, 4] = True, False
    truth = ActionBoxes(keyframes, boxes, does, torch.ones(len(boxes)))
    copies = torch.randint(len(boxes), (40,), generator=generator)
    moved = boxes[copies] + jitter * (torch.rand(40, 4, generator=generator) - 0.5)
    found = torch.cat([moved, random_boxes(10, generator)])
    where = [keyframes[i] for i in copies] + [keyframes[0], ("v0", 999.0)] * 5
    scores = torch.randn(50, ACTIONS, generator=generator)
    return ActionBoxes(where, found, scores, torch.ones(50)), truth


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def reference(detections: ActionBoxes, truth: ActionBoxes, action: int, iou: float) -> float | None:
    """The definition, one detection at a time; the highest precision by looking at all."""
    boxes: dict[Any, list[list[float]]] = {}
    for keyframe, box, does in zip(truth.keyframes, truth.boxes, truth.actions, strict=True):
        if does[action - 1]:
            boxes.setdefault(keyframe, []).append(box.tolist())
    total = sum(map(len, boxes.values()))
    if not total:
        return None
    scores = detections.actions[:, action - 1].tolist()
    claimed, hits = set(), []
    for row in sorted(range(len(scores)), key=lambda row: -scores[row]):
        keyframe, box = detections.keyframes[row], detections.boxes[row].tolist()
        shares = [overlap(box, other) for other in boxes.get(keyframe, [])]
        best = max(range(len(shares)), key=shares.__getitem__, default=None)
        right = best is not None and shares[best] >= iou and (keyframe, best) not in claimed
        claimed |= {(keyframe, best)} if right else set()
        hits.append(right)
    precision = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
    recall = [sum(hits[: n + 1]) for n in range(len(hits))]  # in boxes
    highest = [
        max((p for p, r in zip(precision, recall, strict=True) if r >= wanted), default=0.0)
        for wanted in range(1, total + 1)
    ]
    return sum(highest) / total


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(8))
def test_it_is_its_definition(seed: int, iou: float) -> None:
    detections, truth = random_sides(seed)
    found = detection_map(detections, truth, iou=iou)
    expected = {a: reference(detections, truth, a, iou) for a in range(1, ACTIONS + 1)}
    assert expected.pop(ACTIONS) is None
    assert found.average_precision.keys() == expected.keys()
    for action, value in expected.items():
        assert found.average_precision[action] == pytest.approx(value, abs=1e-12)
    mean = np.mean(list(expected.values()))
    assert found.mean_average_precision == pytest.approx(mean, abs=1e-12)
    assert 0 < mean < 1
    assert found.num_keyframes == 6
    assert found.num_truth == {a: int(truth.actions[:, a - 1].sum()) for a in range(1, ACTIONS + 1)}


@pytest.mark.parametrize("seed", range(4))
def test_of_boxes_that_are_the_true_ones_it_is_the_curve_of_scikit_learn(seed: int) -> None:
    """Each box is then a sample of its own, and detection is to rank them."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(60, 4)
    does = torch.rand(60, 3, generator=generator) < 0.3
    truth = ActionBoxes([("v", n) for n in range(60)], boxes, does, torch.ones(60))
    scores = torch.randn(60, 3, generator=generator)
    found = detection_map(truth._replace(actions=scores), truth)
    for action in (1, 2, 3):
        precision, recall, _ = precision_recall_curve(does[:, action - 1], scores[:, action - 1])
        highest = np.maximum.accumulate(precision)  # recall falls along the curve
        area = -np.sum(np.diff(recall) * highest[:-1])
        assert found.average_precision[action] == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_coco(seed: int) -> None:
    """COCO matches to the best box that is free: the same where nobody overlaps two of them.

    Asked for the precision at every recall that n true boxes can have, its mean over recalls is the
    area under all points.
    """
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    detections, truth = random_sides(seed)
    alone = [
        sum(
            other == keyframe and overlap(box, b.tolist()) > 0.2
            for other, b in zip(truth.keyframes, truth.boxes, strict=True)
        )
        == 1
        for keyframe, box in zip(truth.keyframes, truth.boxes.tolist(), strict=True)
    ]
    truth = truth.select(torch.tensor(alone))
    number_of = {k: n for n, k in enumerate({*truth.keyframes, *detections.keyframes}, 1)}

    def entries(side: ActionBoxes) -> list[dict[str, Any]]:
        return [
            {
                "id": 1 + row * ACTIONS + action, "image_id": number_of[side.keyframes[row]],
                "category_id": action + 1, "score": float(side.actions[row, action]),
                "bbox": [left, top, right - left, bottom - top], "iscrowd": 0,
                "area": (right - left) * (bottom - top),
            }
            for row, (left, top, right, bottom) in enumerate((side.boxes * 100).tolist())
            for action in range(ACTIONS)
            if side.actions.is_floating_point() or side.actions[row, action]
        ]  # fmt: skip

    found = detection_map(detections, truth)
    with contextlib.redirect_stdout(io.StringIO()):
        of_truth = coco.COCO()
        of_truth.dataset = {
            "images": [{"id": n} for n in number_of.values()], "annotations": entries(truth),
            "categories": [{"id": a} for a in range(1, ACTIONS + 1)],
        }  # fmt: skip
        of_truth.createIndex()
        of_detections = of_truth.loadRes(entries(detections))
        for action, value in found.average_precision.items():
            count = found.num_truth[action]
            evaluation = cocoeval.COCOeval(of_truth, of_detections, "bbox")
            evaluation.params.iouThrs = np.array([0.5])
            evaluation.params.recThrs = np.arange(1, count + 1) / count - 1e-9
            evaluation.params.catIds, evaluation.params.maxDets = [action], [100]
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e9]], ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
            assert value == pytest.approx(evaluation.eval["precision"].mean(), abs=1e-9)


def test_perfect_detections_and_none_at_all() -> None:
    _, truth = random_sides(0)
    scores = truth.actions.double()
    assert detection_map(truth._replace(actions=scores), truth).mean_average_precision == 1
    nobody = truth._replace(actions=scores).select(torch.zeros(len(scores), dtype=torch.bool))
    found = detection_map(nobody, truth)
    assert found.average_precision == dict.fromkeys(range(1, 5), 0.0)


def test_a_second_detection_of_a_person_is_false() -> None:
    box = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    truth = ActionBoxes([("v", 1), ("v", 2)], box.expand(2, 4), torch.ones(2, 1) > 0, torch.ones(2))
    scores = torch.tensor([[0.9], [0.8], [0.7]])
    twice = ActionBoxes([("v", 1), ("v", 1), ("v", 2)], box.expand(3, 4), scores, torch.ones(3))
    assert detection_map(twice, truth).average_precision[1] == pytest.approx((1 + 2 / 3) / 2)


def test_a_detection_belongs_to_the_box_that_it_overlaps_most_and_to_no_other() -> None:
    """As PASCAL VOC has it: the second finds its box taken, and the next best is not its own."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.1, 0.0, 0.6, 1.0]])
    truth = ActionBoxes([("v", 1)] * 2, boxes, torch.ones(2, 1) > 0, torch.ones(2))
    found = truth._replace(boxes=boxes[[0, 0]], actions=torch.tensor([[0.9], [0.8]]))
    assert detection_map(found, truth).average_precision[1] == 0.5


Change = Callable[[ActionBoxes, ActionBoxes], tuple[ActionBoxes, ActionBoxes]]


def without_the_absent(d: ActionBoxes, t: ActionBoxes) -> tuple[ActionBoxes, ActionBoxes]:
    return d._replace(actions=d.actions[:, :4]), t._replace(actions=t.actions[:, :4])


def in_another_order(d: ActionBoxes, t: ActionBoxes) -> tuple[ActionBoxes, ActionBoxes]:
    order = torch.randperm(len(d.boxes)).tolist()
    where = [d.keyframes[i] for i in order]
    return ActionBoxes(where, d.boxes[order], d.actions[order], d.scores[order]), t


def of_other_scores(d: ActionBoxes, t: ActionBoxes) -> tuple[ActionBoxes, ActionBoxes]:
    return d._replace(actions=d.actions.double().sigmoid()), t


def seen_in_a_mirror(d: ActionBoxes, t: ActionBoxes) -> tuple[ActionBoxes, ActionBoxes]:
    def mirrored(side: ActionBoxes) -> ActionBoxes:
        left, top, right, bottom = side.boxes.unbind(1)
        return side._replace(boxes=torch.stack([1 - right, top, 1 - left, bottom], 1))

    return mirrored(d), mirrored(t)


@pytest.mark.parametrize(
    "change", [without_the_absent, in_another_order, of_other_scores, seen_in_a_mirror]
)
def test_what_changes_nothing(change: Change) -> None:
    sides = random_sides(3)
    before, after = detection_map(*sides), detection_map(*change(*sides))
    assert after.average_precision == before.average_precision
    assert after.mean_average_precision == before.mean_average_precision


def test_classes_choose_what_is_averaged() -> None:
    sides = random_sides(1)
    every = detection_map(*sides).average_precision
    found = detection_map(*sides, classes=[2, 4, 5])
    assert found.average_precision == {2: every[2], 4: every[4]}
    assert found.mean_average_precision == (every[2] + every[4]) / 2
    assert found.num_truth[5] == 0


def test_excluded_keyframes_are_as_if_they_were_not_there() -> None:
    sides = random_sides(2)
    gone = [("v1", 905), ("v0", 999), ("v0", 12345)]  # 905 is 905.0
    found = detection_map(*sides, exclusions=gone)
    kept = [s.select(torch.tensor([k not in set(gone) for k in s.keyframes])) for s in sides]
    assert found == detection_map(*kept)
    assert found.num_keyframes == 5
    assert found != detection_map(*sides)


def test_only_the_keyframes_that_are_listed_count() -> None:
    """Where nobody is annotated, a detection is false when the keyframe counts."""
    box = torch.tensor([[0.1, 0.1, 0.5, 0.5]])
    truth = ActionBoxes([("v", 1)], box, torch.ones(1, 1) > 0, torch.ones(1))
    scores = torch.tensor([[0.7], [0.9]])
    found = ActionBoxes([("v", 1), ("v", 2)], box.expand(2, 4), scores, torch.ones(2))
    assert detection_map(found, truth)[0] == 0.5
    assert detection_map(found, truth, keyframes=[("v", 1), ("v", 2)])[0] == 0.5
    assert detection_map(found, truth, keyframes=[("v", 1)])[0] == 1
    listed = [("v", 1), ("v", 2)]
    assert detection_map(found, truth, keyframes=listed, exclusions=[("v", 2)])[0] == 1


def test_minus_infinity_detects_nothing() -> None:
    detections, truth = random_sides(4)
    scores = detections.actions.clone()
    scores[::2, 0] = -math.inf
    found = detection_map(detections._replace(actions=scores), truth)
    rows = torch.arange(len(scores)) % 2 == 1
    assert found.average_precision[1] == detection_map(detections.select(rows), truth)[1][1]
    assert found.average_precision[2] == detection_map(detections, truth)[1][2]
    assert detection_map(detections._replace(actions=scores - math.inf), truth)[0] == 0


def test_rows_with_nan_are_left_out_with_a_warning() -> None:
    detections, truth = random_sides(5)
    scores = detections.actions.clone()
    scores[7, 2] = math.nan
    with pytest.warns(UserWarning, match=r"^1 of 50 rows of `detections.actions` have a value"):
        found = detection_map(detections._replace(actions=scores), truth)
    assert found == detection_map(detections.select(torch.arange(50) != 7), truth)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d, t: detection_map(t, t), TypeError, "`detections.actions` must be a floating"),
        (lambda d, t: detection_map(d, d), TypeError, "`truth.actions` must be a bool tensor"),
        (lambda d, t: detection_map(d._replace(actions=d.actions[:, :2]), t), ValueError,
         "`detections.actions` must have shape (N, A) with A=5 (from `truth.actions`); got (50"),
        (lambda d, t: detection_map(d._replace(keyframes=[]), t), ValueError,
         "`detections.actions` must have shape (N, A) with N=0 (from `detections.keyframes`)"),
        (lambda d, t: detection_map(d, t._replace(boxes=t.boxes[:, :3])), ValueError,
         "`truth.boxes` must have shape (N, edges) with N=13 (from `truth.keyframes`), edges=4"),
        (lambda d, t: detection_map(d._replace(boxes=d.boxes[:, [2, 1, 0, 3]]), t), ValueError,
         "`detections.boxes` must be finite, left < right and top < bottom; got ["),
        (lambda d, t: detection_map(d, t, iou=0), ValueError, "`iou` must be in (0, 1]; got 0"),
        (lambda d, t: detection_map(d, t, classes=[0, 1]), ValueError,
         "`classes` must be in [1, 5]; got [0, 1]"),
        (lambda d, t: detection_map(d, t, classes=[5]), ValueError, "`truth` has no box that"),
        (lambda d, t: detection_map(d, t, exclusions=t.keyframes), ValueError, "`truth` has no"),
    ],
)  # fmt: skip
def test_bad_input(
    change: Callable[[ActionBoxes, ActionBoxes], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        change(*random_sides(0))
