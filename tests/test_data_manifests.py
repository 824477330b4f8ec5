"""Manifests, folders and the official split files."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from iivcl.data import (
    Manifest,
    VideoClips,
    read_diving48_split,
    read_hmdb51_split,
    read_kinetics_split,
    read_manifest,
    read_ssv2_split,
    read_ucf101_split,
    ucf101_ids,
)


def listed(manifest: Manifest) -> list[tuple[str, int, int]]:
    return list(zip(manifest.paths, manifest.labels.tolist(), manifest.ids.tolist(), strict=True))


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"path": "b/1.mp4", "label": "run", "group": "g2"},
        {"path": "/abs/2.mp4", "label": "", "group": ""},
        {"path": 'with, comma "3".mp4', "label": "jump", "group": "g2"},
        {"path": "4.mp4", "label": "run", "group": "g1"},
    ]
    csv_file, json_file = tmp_path / "set.csv", tmp_path / "set.jsonl"
    csv_file.write_text(
        "\ufeffpath,label,group,fps\nb/1.mp4,run,g2,25\n/abs/2.mp4,,\n"
        '"with, comma ""3"".mp4",jump,g2,\n4.mp4,run,g1,\n',
        encoding="utf-8",
    )
    json_file.write_text("\n\n".join(json.dumps(row) for row in rows))
    expected = [
        (f"{tmp_path}/b/1.mp4", 1, 0),
        ("/abs/2.mp4", -1, 1),
        (f'{tmp_path}/with, comma "3".mp4', 0, 0),
        (f"{tmp_path}/4.mp4", 1, 2),
    ]
    for file in (csv_file, json_file):
        manifest = read_manifest(file)
        assert listed(manifest) == expected
        assert manifest.classes == ["jump", "run"]


def test_numbers_stay_and_missing_columns_mean_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"path": "/a", "label": 7}\n{"path": "/b", "label": -1}')
    assert listed(read_manifest(tmp_path / "a.jsonl")) == [("/a", 7, 0), ("/b", -1, 1)]
    (tmp_path / "b.csv").write_text("path\n/a\n/b\n")
    manifest = read_manifest(tmp_path / "b.csv")
    assert listed(manifest) == [("/a", -1, 0), ("/b", -1, 1)]
    assert manifest.classes == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,label\n/a,1\n,2\n", "line 3: a video needs a `path`"),
        ("a.csv", "/a\n/b\n", "line 1: the header must name a column `path`; got ['/a']"),
        ("a.csv", "", "line 1: the header must name a column `path`; got None"),
        ("a.csv", "path\n", "lists no videos"),
        ("a.jsonl", '{"path": "/a"}\n{"path":\n', "line 2: not JSON: "),
        ("a.jsonl", '{"path": "/a"}\n\n["/b"]\n', "line 3: a video needs a `path`"),
        ("a.jsonl", '{"path": 5}\n', "line 1: a video needs a `path`"),
        (
            "a.jsonl",
            '{"path": "/a", "label": 0.5}',
            "line 1: `label` must be text or a whole number; got 0.5",
        ),
    ],
)
def test_errors_of_a_manifest_give_the_line(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}(, |: ){re.escape(message)}"):
        read_manifest(file)


def test_manifest_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^`path` must end in .csv or .jsonl; got 'a.txt'$"):
        read_manifest("a.txt")
    with pytest.raises(FileNotFoundError):
        read_manifest(tmp_path / "missing.csv")


def test_folder_is_searched_at_every_depth(tmp_path: Path) -> None:
    for name in (
        "b/10.mp4",
        "b/2.MP4",
        "a/deep/x.webm",
        "a/deep/cover.jpg",
        "a/notes.txt",
        "frames/video 1/img_1.jpg",
        ".hidden/y.mp4",
        "b/._2.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    dataset = VideoClips(tmp_path, num_frames=2, stride=1)
    found = [Path(dataset.path(i)).relative_to(tmp_path) for i in range(len(dataset))]
    assert list(map(str, found)) == ["a/deep/x.webm", "b/2.MP4", "b/10.mp4", "frames/video 1"]
    assert dataset.ids.tolist() == [0, 1, 2, 3]
    assert dataset.labels.tolist() == [-1] * 4


def test_nothing_to_read(tmp_path: Path) -> None:
    clip = {"num_frames": 2, "stride": 1}
    with pytest.raises(FileNotFoundError, match=r"^`paths`: no such file or folder: /missing$"):
        VideoClips("/missing", **clip)
    message = re.escape(f"`paths`: there are no videos in {tmp_path}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        VideoClips(tmp_path, **clip)
    with pytest.raises(ValueError, match=r"^`paths`: there are no videos$"):
        VideoClips([], **clip)


def test_ucf101_split(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n2 YoYo\r\n")
    train = tmp_path / "trainlist01.txt"
    train.write_text(
        "YoYo/v_YoYo_g08_c01.avi 2\r\nYoYo/v_YoYo_g08_c02.avi 2\r\n"
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    )
    (tmp_path / "testlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi\n")
    manifest = read_ucf101_split(train, "/ucf")
    assert listed(manifest) == [
        ("/ucf/YoYo/v_YoYo_g08_c01.avi", 1, 0),
        ("/ucf/YoYo/v_YoYo_g08_c02.avi", 1, 0),
        ("/ucf/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", 0, 1),
    ]
    assert manifest.classes == ["ApplyEyeMakeup", "YoYo"]
    assert ucf101_ids(manifest.paths).equal(manifest.ids)
    assert read_ucf101_split(train, "/ucf", suffix=".mp4").paths[2].endswith("_g08_c01.mp4")
    assert listed(read_ucf101_split(tmp_path / "testlist01.txt", "/u"))[0][1:] == (1, 0)

    train.write_text("YoYo/v_YoYo_g08_c01.avi 2\nJump/v_Jump_g01_c01.avi 3\n")
    with pytest.raises(ValueError, match=r"trainlist01.txt, line 2: needs Class/.*; got 'Jump/"):
        read_ucf101_split(train, "/ucf")
    (tmp_path / "classInd.txt").write_text("1 ApplyEyeMakeup\n3 YoYo\n")
    with pytest.raises(ValueError, match=r"classInd.txt, line 2: needs 2 Class; got '3 YoYo'$"):
        read_ucf101_split(train, "/ucf")
    with pytest.raises(ValueError, match=r"^'x.avi' is not a name of UCF101"):
        ucf101_ids(["a/x.avi"])


def test_hmdb51_split(tmp_path: Path) -> None:
    (tmp_path / "wave_test_split1.txt").write_text("a_wave_1.avi 1 \nb#c.avi 2 \nd.avi 0 \n")
    (tmp_path / "brush_hair_test_split1.txt").write_text("e.avi 2 \n f g.avi 1 \n")
    (tmp_path / "wave_test_split2.txt").write_text("a_wave_1.avi 2\n")
    train = read_hmdb51_split(tmp_path, "/hmdb", split=1, subset="train")
    assert listed(train) == [
        ("/hmdb/brush_hair/f g.avi", 0, 0),
        ("/hmdb/wave/a_wave_1.avi", 1, 1),
    ]
    assert train.classes == ["brush_hair", "wave"]
    test = read_hmdb51_split(tmp_path, "/hmdb", split=1, subset="test")
    assert test.paths == ["/hmdb/brush_hair/e.avi", "/hmdb/wave/b#c.avi"]
    with pytest.raises(FileNotFoundError, match=r"^`folder`: no files \*_test_split3.txt in "):
        read_hmdb51_split(tmp_path, "/hmdb", split=3, subset="test")
    (tmp_path / "wave_test_split2.txt").write_text("a_wave_1.avi 7\n")
    with pytest.raises(ValueError, match=r"wave_test_split2.txt, line 1: needs name.avi 0, 1 or 2"):
        read_hmdb51_split(tmp_path, "/hmdb", split=2, subset="test")


def test_kinetics_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "train.csv"
    file.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "riding a bike,-abc_d,5,15,train\n"
        "riding a bike,-abc_d,100,110,train\n"
        '"abseiling, rope",xyz,0,10,train\n'
        "zumba,gone,1,11,train\n"
    )
    for name in (
        "riding a bike/-abc_d_000005_000015.mp4",
        "riding a bike/-abc_d_000100_000110.mkv",
        "xyz_000000_000010.webm",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=r"train.csv, line 5: no video gone_000001_000011 "):
        read_kinetics_split(file, tmp_path)
    with caplog.at_level(logging.WARNING):
        manifest = read_kinetics_split(file, tmp_path, missing="drop")
    assert caplog.messages == [f"{file}: 1 of 4 videos are missing"]
    assert listed(manifest) == [
        (f"{tmp_path}/riding a bike/-abc_d_000005_000015.mp4", 1, 0),
        (f"{tmp_path}/riding a bike/-abc_d_000100_000110.mkv", 1, 0),
        (f"{tmp_path}/xyz_000000_000010.webm", 0, 1),
    ]
    assert manifest.classes == ["abseiling, rope", "riding a bike", "zumba"]
    file.write_text("label,youtube_id,time_start,time_end\nrun,x,soon,10\n")
    with pytest.raises(ValueError, match=r"train.csv, line 2: needs youtube_id, time_start"):
        read_kinetics_split(file, tmp_path)


def test_ssv2_split(tmp_path: Path) -> None:
    train, labels, test = (tmp_path / f"{name}.json" for name in ("train", "labels", "test"))
    train.write_text(
        '[{"id": "78687", "label": "holding potato next to bottle", '
        '"template": "Holding [something] next to [something]", "placeholders": ["potato"]}, '
        '{"id": "42", "label": "moving it up", "template": "Moving [something] up"}]'
    )
    labels.write_text('{"Moving something up": "0", "Holding something next to something": "1"}')
    test.write_text('[{"id": "1420"}]')
    manifest = read_ssv2_split(train, "/ssv2", labels_file=labels)
    assert listed(manifest) == [("/ssv2/78687.webm", 1, 0), ("/ssv2/42.webm", 0, 1)]
    assert manifest.classes == ["Moving something up", "Holding something next to something"]
    assert listed(read_ssv2_split(test, "/ssv2", labels_file=labels)) == [
        ("/ssv2/1420.webm", -1, 0)
    ]
    assert read_ssv2_split(train, "/ssv2").labels.tolist() == [-1, -1]
    labels.write_text('{"Moving something up": "0"}')
    with pytest.raises(ValueError, match=r"train.json, entry 0: 'Holding something next to"):
        read_ssv2_split(train, "/ssv2", labels_file=labels)


def test_diving48_split(tmp_path: Path) -> None:
    file = tmp_path / "Diving48_V2_train.json"
    file.write_text(
        '[{"vid_name": "-mfiRSG3s10_00054", "label": 34, "start_frame": 0, "end_frame": 96}, '
        '{"vid_name": "b_00001", "label": 0}]'
    )
    assert listed(read_diving48_split(file, "/d")) == [
        ("/d/-mfiRSG3s10_00054.mp4", 34, 0),
        ("/d/b_00001.mp4", 0, 1),
    ]
    file.write_text('[{"vid_name": "a"}]')
    with pytest.raises(ValueError, match=r"json, entry 0: needs a whole number `label`; got {"):
        read_diving48_split(file, "/d")
    file.write_text('{"vid_name": "a"}')
    with pytest.raises(ValueError, match=r"json: must hold a list; got dict$"):
        read_diving48_split(file, "/d")
    file.write_text("[")
    with pytest.raises(ValueError, match=r"json: not JSON: "):
        read_diving48_split(file, "/d")
