"""Boxes of persons and what they do, in the files of AVA and of others in its formats."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from iivcl._checks import check_at_least, check_choice
from iivcl.data._container import StrPath
from iivcl.data._tables import numbered_lines, read_text, wrong

__all__ = ["ActionBoxes", "read_ava_actions", "read_ava_boxes", "read_ava_keyframes"]

_Keyframe = tuple[str, float]
_ITEM = re.compile(
    r'\s*(?:item|label)\s*\{(?:\s*(?:name:\s*"([^"]+)"|(?:label_)?id:\s*(\d+)|\w+:\s*\w+))*\s*\}'
)


class ActionBoxes(NamedTuple):
    """N boxes, each of a person in a keyframe, and which of A actions the persons do.

    Attributes:
        keyframes: N pairs of video and second, such as ``("-5KQ66BBWC4", 902.0)``.
        boxes: (N, 4): left, top, right and bottom, as shares of width and height.
        actions: (N, A): bool of annotations, floating-point scores of detections. Column ``a - 1``
            is AVA's action ``a``.
        scores: (N,) of the detector of persons; 1 where there was none.

    Example:
        >>> from iivcl.data import ActionBoxes
        >>> boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.5, 0.1, 0.8, 0.7]])
        >>> actions = torch.tensor([[True, False], [True, True]])
        >>> found = ActionBoxes([("a", 902), ("a", 903)], boxes, actions, torch.tensor([0.9, 0.7]))
        >>> found.select(found.scores >= 0.8).keyframes
        [('a', 902)]
    """

    keyframes: list[tuple[str, float]]
    boxes: Tensor
    actions: Tensor
    scores: Tensor

    def select(self, rows: Tensor) -> ActionBoxes:
        """Take some of the boxes.

        Args:
            rows: (N,) bool.
        """
        kept = [k for k, wanted in zip(self.keyframes, rows.tolist(), strict=True) if wanted]
        return ActionBoxes(kept, self.boxes[rows], self.actions[rows], self.scores[rows])


def read_ava_boxes(
    csv_file: StrPath, *, num_actions: int = 80, last: Literal["person", "score"] = "person"
) -> ActionBoxes:
    r"""Read boxes with or without actions, such as ``ava_train_v2.2.csv``.

    A row is ``video, second, left, top, right, bottom, action, person``, without a header. Action
    and person may be empty, -1 or missing. Rows that differ in the action alone are one box, and a
    row that stands twice counts once. A row of video and second alone, of a keyframe in which
    nobody is, gives no box.

    Args:
        csv_file: The file.
        num_actions: A; actions are numbered from 1 to A.
        last: What the last column is: the number of the ``"person"``, as in annotations; or the
            ``"score"`` in [0, 1] of a detector of persons, as in published files of its boxes.

    Returns:
        The boxes in the order of the file, float64, with bool ``actions``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is wrong, as one whose box is empty or not within [0, 1]; the message
            gives its line.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_ava_boxes
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "train.csv"
        >>> _ = file.write_text("a,0902,0.1,0.2,0.4,0.9,2,7\na,0902,0.1,0.2,0.4,0.9,3,7\n")
        >>> read_ava_boxes(file, num_actions=3).actions
        tensor([[False,  True,  True]])

    Source:
        Gu et al., "AVA: A Video Dataset of Spatio-temporally Localized Atomic Visual Actions",
        arXiv 1705.08421, and its page of downloads.
    """
    check_at_least(1, num_actions=num_actions)
    check_choice("last", last, ("person", "score"))
    found: dict[tuple[_Keyframe, tuple[float, ...], float], list[int]] = {}  # actions of each box
    for where, line in numbered_lines(Path(csv_file)):
        fields = _fields(line)
        keyframe = _keyframe(where, fields)
        if not any(fields[2:]):
            continue
        box = tuple(map(_number, fields[2:6]))
        if len(fields) > 8:
            raise wrong(where, "8 columns at most", line)
        if len(box) < 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise wrong(where, "a box: 0 <= left < right <= 1 and 0 <= top < bottom <= 1", line)
        action, mark = (_number(field or "-1") for field in [*fields[6:8], "", ""][:2])
        if action not in range(1, num_actions + 1) and action != -1:
            raise wrong(where, f"an action in [1, {num_actions}], or -1 for none", line)
        if last == "score" and not 0 <= mark <= 1:
            raise wrong(where, "a score in [0, 1] as the last of 8 columns", line)
        if last == "person" and not mark.is_integer():
            raise wrong(where, 'the number of a person at the end (`last="score"`: a score)', line)
        found.setdefault((keyframe, box, mark), []).append(max(int(action), 0))
    rows = [row for row, actions in enumerate(found.values()) for _ in actions]
    columns = [number for actions in found.values() for number in actions]
    does = torch.zeros(len(found), 1 + num_actions, dtype=torch.bool, device="cpu")
    does[rows, columns] = True  # column 0 is no action
    return ActionBoxes(
        keyframes=[keyframe for keyframe, _, _ in found],
        boxes=_float64([box for _, box, _ in found]).view(-1, 4),
        actions=does[:, 1:].contiguous(),
        scores=_float64([mark if last == "score" else 1.0 for _, _, mark in found]),
    )


def read_ava_keyframes(csv_file: StrPath) -> list[tuple[str, float]]:
    r"""Read which keyframes a file lists, such as ``ava_val_excluded_timestamps_v2.2.csv``.

    Args:
        csv_file: File whose rows begin with video and second. Boxes may follow, or nothing, as of
            keyframes in which nobody is.

    Returns:
        The keyframes in the order of the file, each once.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is wrong; the message gives its line.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_ava_keyframes
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "excluded.csv"
        >>> _ = file.write_text("a,0902\na,0907\n")
        >>> read_ava_keyframes(file)
        [('a', 902.0), ('a', 907.0)]
    """
    rows = numbered_lines(Path(csv_file))
    return list(dict.fromkeys(_keyframe(where, _fields(line)) for where, line in rows))


def read_ava_actions(label_map: StrPath) -> dict[int, str]:
    r"""Read the names of actions, such as ``ava_action_list_v2.2_for_activitynet_2019.pbtxt``.

    Args:
        label_map: File of ``item { name: "..." id: 1 }``, or of ``label`` with ``label_id``.

    Returns:
        The name of every action that it lists, by number: 80, or the 60 that are evaluated.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: An item is wrong; the message gives its line.

    Example:
        >>> import pathlib, tempfile
        >>> from iivcl.data import read_ava_actions
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "actions.pbtxt"
        >>> _ = file.write_text('item {\n  name: "run"\n  id: 10\n}\n')
        >>> read_ava_actions(file)
        {10: 'run'}
    """
    text, place = read_text(Path(label_map)).rstrip(), 0
    names: dict[int, str] = {}
    while place < len(text):
        item = _ITEM.match(text, place)
        name, number = item.groups() if item else (None, None)
        if item is None or name is None or number is None or int(number) in names:
            rest = text[place:].lstrip()
            where = f"{label_map}, line {1 + text.count(chr(10), 0, len(text) - len(rest))}"
            raise wrong(where, 'item { name: "..." id: 1 } with an id of its own', rest[:40])
        names[int(number)], place = name, item.end()
    if not names:
        raise ValueError(f"{label_map}: lists no actions")
    return names


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split(",")]


def _keyframe(where: str, fields: list[str]) -> _Keyframe:
    second = _number(fields[1]) if len(fields) > 1 else math.nan
    if not fields[0] or not 0 <= second < math.inf:
        raise wrong(where, "a video and a second from 0", ",".join(fields))
    return fields[0], second


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _float64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")
