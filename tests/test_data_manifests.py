"""Manifests, folders and the official split files."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iivcl.data import (
    ClipRecipe,
    Manifest,
    VideoClips,
    find_videos,
    read_diving48_split,
    read_hmdb51_split,
    read_kinetics_split,
    read_manifest,
    read_ssv2_split,
    read_ucf101_split,
    ucf101_ids,
)

CLIP = ClipRecipe(num_frames=2, stride=1)


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
    ("labels", "numbers", "classes"),
    [
        ([0, 1, 2, 10, -1], [0, 1, 2, 10, -1], []),
        (["0", "1", "2", "10", "-1", ""], [0, 1, 2, 10, -1, -1], []),
        ([3.0, 2.0, -1.0], [3, 2, -1], []),
        (["3.0", "07", "-1.0", "1e1"], [3, 7, -1, 10], []),
        ([9223372036854774784], [9223372036854774784], []),
        (["c10", "c9", "", "-1", "c2"], [2, 1, -1, -1, 0], ["c2", "c9", "c10"]),
        ([10, 9, "walk", -1], [1, 0, 2, -1], ["9", "10", "walk"]),
        (["10\u00b23", "2", "\u0663"], [1, 0, 2], ["2", "10\u00b23", "\u0663"]),
        (["1_000", "inf", "1.2.3"], [1, 2, 0], ["1.2.3", "1_000", "inf"]),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_labels_mean_the_same_in_both_formats(
    suffix: str, labels: list, numbers: list, classes: list, tmp_path: Path
) -> None:
    file = tmp_path / f"set{suffix}"
    if suffix == ".csv":
        file.write_text("path,label\n" + "".join(f"/a,{label}\n" for label in labels))
    else:
        file.write_text("".join(json.dumps({"path": "/a", "label": x}) + "\n" for x in labels))
    manifest = read_manifest(file)
    assert manifest.labels.tolist() == numbers
    assert manifest.classes == classes


@pytest.mark.parametrize("label", ["0.5", "-2", "nan", "1e300"])
def test_numbers_that_number_no_class_are_refused_in_both_formats(
    label: str, tmp_path: Path
) -> None:
    csv_file, json_file = tmp_path / "a.csv", tmp_path / "a.jsonl"
    csv_file.write_text(f"path,label\n/a,1\n/b,{label}\n")
    json_file.write_text(f'{{"path": "/a", "label": 1}}\n{{"path": "/b", "label": "{label}"}}')
    for file, line in ((csv_file, 3), (json_file, 2)):
        message = f"{file}, line {line}: `label` must be a name or a whole number from 0, -1 where"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}.*; got '{label}'$"):
            read_manifest(file)


def test_unknown_groups_are_groups_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,group\n/a,7\n/b,-1\n/c,7\n/d,\n/e,-1\n")
    lines = ({"path": "/a", "group": group} for group in (7, -1, "7", "", None))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("a.csv", "a.jsonl"):
        assert read_manifest(tmp_path / name).ids.tolist() == [0, 1, 0, 2, 3]


def test_only_utf8_is_read_with_and_without_a_mark(tmp_path: Path) -> None:
    texts = {".csv": "path,label\n/a,x\n/\u00e4,y\n"}
    texts[".jsonl"] = '{"path": "/a", "label": "x"}\n{"path": "/\u00e4", "label": "y"}\n'
    for suffix, text in texts.items():
        file = tmp_path / f"set{suffix}"
        for encoding in ("utf-8", "utf-8-sig"):
            file.write_text(text, encoding=encoding)
            assert listed(read_manifest(file)) == [("/a", 0, 0), ("/\u00e4", 1, 1)]
        for encoding, line in (
            ("latin-1", text[: text.index("\u00e4")].count("\n") + 1),
            ("utf-16", 1),
        ):
            file.write_text(text, encoding=encoding)
            message = re.escape(f"{file}, line {line}: not UTF-8 (")
            with pytest.raises(ValueError, match=f"^{message}.*; save the file as UTF-8$"):
                read_manifest(file)


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    odd = "/a\u2028b\x85c\x1c.mp4"
    (tmp_path / "a.jsonl").write_text(json.dumps({"path": odd}, ensure_ascii=False) + "\r\n")
    (tmp_path / "a.csv").write_text(f"path\r\n{odd}\r\n")
    for name in ("a.jsonl", "a.csv"):
        assert read_manifest(tmp_path / name).paths == [odd]


def manifest_of(ids: list[int], splits: list[str] | tuple = ()) -> Manifest:
    numbers = torch.tensor(ids)
    return Manifest([f"{i}.mp4" for i in range(len(ids))], numbers % 2, numbers, ["a", "b"], splits)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1), st.floats(0.01, 0.99), st.integers(0, 99))
def test_held_out_videos_share_no_id_with_the_others(
    ids: list[int], share: float, seed: int
) -> None:
    whole = manifest_of(ids)
    if len(set(ids)) == 1:
        with pytest.raises(ValueError, match=r"^at least 2 ids are needed to hold some out; got 1"):
            whole.hold_out(share)
        return
    train, test = whole.hold_out(share, generator=torch.Generator().manual_seed(seed))
    assert not set(train.ids.tolist()) & set(test.ids.tolist())
    assert sorted(listed(train) + listed(test)) == sorted(listed(whole))
    assert train.paths
    assert test.paths
    largest = max(ids.count(i) for i in ids)
    assert abs(len(test.paths) - share * len(ids)) <= largest
    again, _ = whole.hold_out(share, generator=torch.Generator().manual_seed(seed))
    assert listed(again) == listed(train)


def test_default_device_plays_no_part(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label,split\n/a,x,train\n/b,y,test\n/c,x,train\n")
    with torch.device("meta"):
        manifest = read_manifest(tmp_path / "a.csv")
        train, test = manifest.hold_out(0.3)
        assert listed(manifest.split("test")) == [("/b", 1, 1)]
    assert sorted(listed(train) + listed(test)) == listed(manifest)


def test_share_is_met_where_every_video_has_its_own_id() -> None:
    for share in (0.1, 0.25, 0.5):
        train, test = manifest_of(list(range(100))).hold_out(share)
        assert (len(train.paths), len(test.paths)) == (100 - 100 * share, 100 * share)
    with pytest.raises(ValueError, match=r"^`share` must be in \(0, 1\); got 1$"):
        manifest_of([0, 1]).hold_out(1)


def test_splits_of_a_manifest_keep_labels_classes_and_ids(tmp_path: Path) -> None:
    file = tmp_path / "set.csv"
    file.write_text(
        "path,label,group,split\n/a,run,g1,test\n/b,jump,g2,train\n/c,run,,train\n"
        "/d,walk,g1,test\n/e,walk,g1,\n"
    )
    whole = read_manifest(file)
    assert whole.splits == ["test", "train", "train", "test", ""]
    assert listed(whole.split("test")) == [("/a", 1, 0), ("/d", 2, 0)]
    assert listed(whole.split("train")) == [("/b", 0, 1), ("/c", 1, 2)]
    assert whole.split("train").classes == whole.classes == ["jump", "run", "walk"]
    with pytest.raises(ValueError, match=r"^`name` must be one of \('test', 'train'\); got 'val'$"):
        whole.split("val")
    with pytest.raises(ValueError, match=r"^the manifest names no splits; `hold_out` parts it"):
        manifest_of([0, 1]).split("train")
    for name in ("train", "test"):
        with pytest.raises(ValueError, match=r"^.\.mp4 is of split '\w+', and its group of split"):
            manifest_of([0, 1, 1], ["train", "train", "test"]).split(name)


def test_part_to_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the examples take it: what is called otherwise is not trained on by mistake."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    from _data import training_part

    assert training_part(manifest_of([0, 1, 2], ["train", "", "test"])).paths == ["0.mp4"]
    for whole in (manifest_of([0, 1]), manifest_of([0, 1], ["", ""])):
        assert training_part(whole) is whole
    message = "the manifest must name a split 'train' to train on; got ['Train', 'validation']"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        training_part(manifest_of([0, 1, 2], ["validation", "Train", ""]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path,label\n/a,1\n,2\n", "line 3: a video needs a `path`"),
        ("a.csv", "/a\n/b\n", "line 1: the header must name a column `path`; got ['/a']"),
        ("a.csv", "", "line 1: the header must name a column `path`; got []"),
        (
            "a.csv",
            "path,label,fps, label\n/a,run,25,jump\n",
            "line 1: the header names ['label'] more than once",
        ),
        ("a.csv", "path,Label\n/a,run\n", "line 1: 'Label' must be written 'label'"),
        ("a.csv", "path,label,GROUP \n/a,run,1\n", "line 1: 'GROUP' must be written 'group'"),
        (
            "a.jsonl",
            '{"path": "/a"}\n{"path": "/b", "Split": "x"}',
            "line 2: 'Split' must be written 'split'",
        ),
        ("a.jsonl", '{"path": "/a", "label ": 1}', "line 1: 'label ' must be written 'label'"),
        ("a.csv", "path\n", "lists no videos"),
        (
            "a.csv",
            "path,label\n/a,b.mp4,run\n",
            "line 2: needs double quotes around a field that holds a comma; got ['run']",
        ),
        ("a.csv", 'path,label\n/a,run\n"/b,run\n/c,run\n', "line 3: not CSV: "),
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


def test_spaces_belong_to_a_path_and_not_to_the_name_of_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'label ,\tgroup , path \nrun,1, /a.mp4\njump,1," /b.mp4 "\nrun,2,/c .mp4\n'
    )
    manifest = read_manifest(tmp_path / "a.csv")
    assert manifest.paths == ["/a.mp4", f"{tmp_path}/ /b.mp4 ", "/c .mp4"]
    assert manifest.labels.tolist() == [1, 0, 1]
    assert manifest.ids.tolist() == [0, 0, 1]
    (tmp_path / "a.jsonl").write_text('{"path": " b.mp4 "}')
    assert read_manifest(tmp_path / "a.jsonl").paths == [f"{tmp_path}/ b.mp4 "]


THREE = Manifest(["0", "1", "2"], torch.arange(3), torch.arange(3), [])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"labels": torch.tensor([0, 1])},
            ValueError,
            "`labels` must have shape (N,) with N=3 (from `paths`); got (2,)",
        ),
        (
            {"ids": torch.arange(4)},
            ValueError,
            "`ids` must have shape (N,) with N=3 (from `paths`); got (4,)",
        ),
        ({"labels": [0, 1, 2]}, TypeError, "`labels` must be a tensor of shape (N,); got list"),
        ({"labels": torch.zeros(3)}, TypeError, "`labels` must be int64; got torch.float32"),
        ({"ids": torch.arange(3).int()}, TypeError, "`ids` must be int64; got torch.int32"),
        (
            {"splits": ["train"]},
            ValueError,
            "`splits` must have an entry for each of the 3 `paths`, or none; got 1",
        ),
    ],
)
def test_manifest_that_does_not_say_of_each_video_what_it_says(
    change: dict, error: type, message: str
) -> None:
    manifest = THREE._replace(**change)
    for use in (
        lambda: VideoClips(manifest, CLIP),
        lambda: manifest.split("train"),
        lambda: manifest.hold_out(0.4),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            use()


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
    dataset = VideoClips(tmp_path, CLIP)
    found = [Path(dataset.path(i)).relative_to(tmp_path) for i in range(len(dataset))]
    assert list(map(str, found)) == ["a/deep/x.webm", "b/2.MP4", "b/10.mp4", "frames/video 1"]
    assert dataset.ids.tolist() == [0, 1, 2, 3]
    assert dataset.labels.tolist() == [-1] * 4


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    for name in ("root/z/1.mp4", "root/z/inner/2.mp4", "store/3.mp4", "store/sub/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (root / "a link to z").symlink_to(root / "z")
    (root / "linked").symlink_to(store)
    (root / "part of it").symlink_to(store / "sub")
    (root / "z" / "up").symlink_to(root)
    (store / "sub" / "loop").symlink_to(store)
    (root / "z" / "gone").symlink_to(tmp_path / "gone")
    (root / "file.mp4").symlink_to(store / "3.mp4")
    found = [str(Path(path).relative_to(root)) for path in find_videos(root)]
    assert found == ["file.mp4", "linked/3.mp4", "linked/sub/4.mp4", "z/1.mp4", "z/inner/2.mp4"]
    (tmp_path / "door").symlink_to(root)
    assert len(find_videos(tmp_path / "door")) == 5


def test_names_of_every_kind_have_one_order(tmp_path: Path) -> None:
    names = ["10\u00b23.mp4", "1.mp4", "01.mp4", "001.mp4", "\u0663.mp4", "a\u2460.mp4", "9.mp4"]
    for name in names:
        (tmp_path / name).touch()
    found = [Path(path).name for path in find_videos(tmp_path)]
    expected = ["001.mp4", "01.mp4", "1.mp4", "9.mp4", "10\u00b23.mp4", "a\u2460.mp4", "\u0663.mp4"]
    assert found == expected


def test_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.mp4").touch()

    def scandir(path, original=os.scandir):
        if str(path).endswith("closed"):  # permissions do not bind the superuser
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_videos(tmp_path) == [f"{tmp_path}/a.mp4"]
    assert caplog.messages == [f"{tmp_path}/closed: Permission denied; the folder is passed over"]


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^`videos`: no such file or folder: /missing$"):
        VideoClips("/missing", CLIP)
    message = re.escape(f"`videos`: there are no videos in {tmp_path}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        VideoClips(tmp_path, CLIP)
    with pytest.raises(ValueError, match=r"^`videos`: there are no videos$"):
        VideoClips([], CLIP)
    for videos, kind in (
        ([None], "NoneType"),
        (["a.mp4", 1], "int"),
        (5, "int"),
        ([("a", 1)], "tuple"),
    ):
        with pytest.raises(TypeError, match=f"^`videos` must be paths or a Manifest; got {kind}$"):
            VideoClips(videos, CLIP)


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
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert listed(read_kinetics_split(file, tmp_path, missing="drop")) == listed(manifest)
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
    for numbers, missing in (("3, 5", 0), ("1, 2", 0), ("0, 2", 1), ("0, 0", 1), ("0, null", 1)):
        first, second = numbers.split(", ")
        labels.write_text(f'{{"Moving something up": {first}, "Holding something": {second}}}')
        message = f"{labels}: numbers must go from 0 on; no class has {missing}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_ssv2_split(train, "/ssv2", labels_file=labels)
    labels.write_text("[]")
    with pytest.raises(ValueError, match=r"labels.json: needs an object of classes and their num"):
        read_ssv2_split(train, "/ssv2", labels_file=labels)
    for entry, wanted in (
        ('{"id": "1", "template": null}', "a text `template`"),
        ('{"id": null, "template": "a"}', "`id`"),
    ):
        test.write_text(f"[{entry}]")
        message = re.escape(f"{test}, entry 0: needs {wanted}; got {{")
        with pytest.raises(ValueError, match=f"^{message}"):
            read_ssv2_split(test, "/ssv2")


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
