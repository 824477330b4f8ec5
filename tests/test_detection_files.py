"""AVA's files, read as they are and with what can be wrong in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from iivcl.data import read_ava_actions, read_ava_boxes, read_ava_keyframes

TRAIN = """\
-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1
-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1
-5KQ66BBWC4,0902,0.226,0.032,0.366,0.497,12,0
-5KQ66BBWC4,0902,0.226,0.032,0.366,0.497,12,2
_145Aa_xkuE,4.5,0.0,0.0,1.0,1.0,1,7
"""
LABELS = """\
item {
  name: "bend/bow (at the waist)"
  id: 1
}
item {
  name: "crouch/kneel"
  id: 3
}
"""
OLD_LABELS = """\
label {
  name: "dance"
  label_id: 4
  label_type: PERSON_MOVEMENT
}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "file.csv"
    file.write_text(text)
    return file


def test_annotations(tmp_path: Path) -> None:
    found = read_ava_boxes(written(tmp_path, TRAIN))
    first = ("-5KQ66BBWC4", 902)
    assert found.keyframes == [first, first, first, ("_145Aa_xkuE", 4.5)]
    assert found.boxes[0].tolist() == [0.077, 0.151, 0.283, 0.811]
    does = [row.nonzero()[:, 0].tolist() for row in found.actions]  # from 0
    assert does == [[8, 79], [11], [11], [0]]
    assert found.actions.shape == (4, 80)
    assert found.actions.dtype == torch.bool
    assert found.scores.tolist() == [1, 1, 1, 1]


def test_boxes_of_a_detector(tmp_path: Path) -> None:
    rows = "a,0902,0.1,0.2,0.3,0.4,,0.9\na,0902,0.5,0.2,0.7,0.4,3,0.7\na,0904,0,0,1,1,-1,1.0\n"
    found = read_ava_boxes(written(tmp_path, rows), num_actions=3, last="score")
    assert found.scores.tolist() == [0.9, 0.7, 1.0]
    assert found.actions.int().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    sure = found.select(found.scores >= 0.8)
    assert sure.keyframes == [("a", 902), ("a", 904)]
    assert sure.boxes.tolist() == [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]


def test_keyframes_without_boxes(tmp_path: Path) -> None:
    rows = "a,0902\n\na,0903,,,,,,\na,0904,0.1,0.2,0.3,0.4\n"
    found = read_ava_boxes(written(tmp_path, rows))
    assert found.keyframes == [("a", 904)]
    assert not found.actions.any()
    nobody = read_ava_boxes(written(tmp_path, "a,0902\n"))
    assert (nobody.boxes.shape, nobody.actions.shape) == ((0, 4), (0, 80))
    excluded = read_ava_keyframes(written(tmp_path, "a,0902\nb,1798\n"))
    assert excluded == [("a", 902), ("b", 1798)]
    assert read_ava_keyframes(written(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("row", "last", "needs"),
    [
        ("a", "person", "a video and a second from 0"),
        (",0902", "person", "a video and a second from 0"),
        ("a,soon,0.1,0.2,0.3,0.4,1,1", "person", "a video and a second from 0"),
        ("a,-1,0.1,0.2,0.3,0.4,1,1", "person", "a video and a second from 0"),
        ("a,nan,0.1,0.2,0.3,0.4,1,1", "person", "a video and a second from 0"),
        ("a,0902,0.1,0.2,0.3", "person", "a box: 0 <= left < right <= 1 and 0 <= top < bottom"),
        ("a,0902,0.3,0.2,0.3,0.4,1,1", "person", "a box: 0 <= left < right"),
        ("a,0902,0.1,0.5,0.3,0.4,1,1", "person", "a box: 0 <= left < right"),
        ("a,0902,31,42,63,74,1,1", "person", "a box: 0 <= left < right"),
        ("a,0902,0.1,0.2,0.3,nan,1,1", "person", "a box: 0 <= left < right"),
        ("a,0902,0.1,0.2,0.3,0.4,0,1", "person", "an action in [1, 80], or -1 for none"),
        ("a,0902,0.1,0.2,0.3,0.4,81,1", "person", "an action in [1, 80], or -1 for none"),
        ("a,0902,0.1,0.2,0.3,0.4,1.5,1", "person", "an action in [1, 80], or -1 for none"),
        ("a,0902,0.1,0.2,0.3,0.4,run,1", "person", "an action in [1, 80], or -1 for none"),
        ("a,0902,0.1,0.2,0.3,0.4,1,0.9", "person", "the number of a person at the end"),
        ("a,0902,0.1,0.2,0.3,0.4,1,7", "score", "a score in [0, 1] as the last of 8 columns"),
        ("a,0902,0.1,0.2,0.3,0.4,1", "score", "a score in [0, 1] as the last of 8 columns"),
        ("a,0902,0.1,0.2,0.3,0.4,1,1,0.9", "person", "8 columns at most"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: str, last: str, needs: str) -> None:
    sound = "a,0901,0.1,0.2,0.3,0.4,1,1\n\n"
    file = written(tmp_path, sound + row + "\n" + sound)
    message = f"{re.escape(f'{file}, line 3: needs {needs}')}.*; got '{re.escape(row)}'$"
    with pytest.raises(ValueError, match=f"^{message}"):
        read_ava_boxes(file, last=last)  # type: ignore[arg-type]


def test_keyframes_are_listed_once_with_boxes_or_without(tmp_path: Path) -> None:
    listed = read_ava_keyframes(written(tmp_path, "a,0902\n" + TRAIN + "a,0902,,,,,,\n"))
    assert listed == [("a", 902), ("-5KQ66BBWC4", 902), ("_145Aa_xkuE", 4.5)]
    file = written(tmp_path, "a,0902\n\na,x\n")
    with pytest.raises(ValueError, match=r"line 3: needs a video and a second from 0; got 'a,x'$"):
        read_ava_keyframes(file)


def test_label_maps(tmp_path: Path) -> None:
    assert read_ava_actions(written(tmp_path, LABELS)) == {
        1: "bend/bow (at the waist)",
        3: "crouch/kneel",
    }
    assert read_ava_actions(written(tmp_path, OLD_LABELS)) == {4: "dance"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (LABELS + 'item {\n  name: "no id"\n}\n', 9),
        (LABELS + "item {\n  id: 7\n}\n", 9),
        (LABELS + "\n" + LABELS, 10),
        (LABELS.replace("}", "", 1), 1),
        (TRAIN, 1),
    ],
)
def test_a_wrong_label_map_is_named(tmp_path: Path, text: str, line: int) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(f"{file}, line {line}: needs item {{ name: ")):
        read_ava_actions(file)


def test_files_that_say_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"file\.csv: lists no actions$"):
        read_ava_actions(written(tmp_path, "\n"))
    for read in (read_ava_actions, read_ava_boxes, read_ava_keyframes):
        with pytest.raises(FileNotFoundError, match="gone"):
            read(tmp_path / "gone.csv")
    with pytest.raises(
        ValueError, match=r"^`last` must be one of \('person', 'score'\); got 'id'$"
    ):
        read_ava_boxes(written(tmp_path, ""), last="id")  # type: ignore[arg-type]
