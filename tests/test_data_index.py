"""The index of a file is kept, and what is read with it is the same."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from test_data_decode import FILES
from videos import read_barcodes, write_video

from iivcl.data import _index, _index_cache, _stream, open_video, probe, read_clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose packets were read through, from here on."""
    paths: list[str] = []

    def noted(container, stream, original=_stream.index_frames):
        paths.append(Path(container.name.removeprefix("file:")).name)
        return original(container, stream)

    monkeypatch.setattr(_stream, "index_frames", noted)
    monkeypatch.setattr(_index_cache, "_memory", {})
    monkeypatch.setattr(_index_cache, "_MIN_FRAMES", 30)
    return paths


def read_twice(path: Path, **options: str) -> None:
    """Read the frames 39, 12 and 3 of 40, over two openings."""
    for asked in ([[39, 12]], [[3, 12]]):
        with open_video(path, **options) as video:
            assert video.num_frames == 40
            assert video.keyframes[0] == 0
            assert read_barcodes(video.read(asked)).tolist() == asked
            times, rate = video.times, video.constant_rate
    with open_video(path.read_bytes()) as video:  # which is never kept
        assert video.times.equal(times)
        assert video.constant_rate == rate


@pytest.mark.parametrize("name", FILES)
def test_index_of_a_file_is_kept_in_memory(name: str, folder: Path, indexed: list[str]) -> None:
    codec, arguments = FILES[name]
    path = write_video(folder / f"kept {name}", 40, codec=codec, **arguments)
    read_twice(path)
    assert indexed == [path.name, "<none>"]
    # Pixels are those of decoding from the start, also where a seek has nothing to go by.
    assert read_clips(path, [[33, 7]]).equal(read_clips(path.read_bytes(), [[33, 7]]))
    write_video(path, 32, codec=codec, **arguments)  # another file of the same name
    assert probe(path).num_frames == 32


def test_memory_of_indices_is_bounded(
    folder: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_index_cache, "_MAX_FRAMES", 100)
    paths = [write_video(folder / f"bounded {i}.mp4", 40) for i in range(3)]
    for i in (0, 1, 0, 2, 0, 1):  # the one used last stays
        probe(paths[i])
    assert indexed == [paths[i].name for i in (0, 1, 2, 1)]
    probe(write_video(folder / "short.mp4", 20))
    assert sum(len(index.pts) for index in _index_cache._memory.values()) <= 80


@pytest.mark.parametrize("name", ["h264.mp4", "open gop.ts", "divx.avi", "vp8.webm"])
def test_index_of_a_file_is_kept_beside_it(
    name: str, tmp_path: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, arguments = FILES[name]
    path = write_video(tmp_path / name, 40, codec=codec, **arguments)
    probe(path)
    assert [file.name for file in tmp_path.iterdir()] == [name]  # off by default

    def another_process() -> None:
        monkeypatch.setattr(_index_cache, "_memory", {})
        indexed.clear()

    another_process()
    read_twice(path, keep_index="file")
    assert len(list(tmp_path.iterdir())) == 2
    another_process()
    read_twice(path, keep_index="file")
    assert indexed == ["<none>"]

    kept = next(file for file in tmp_path.iterdir() if file != path)
    for damaged in (b"", b"no index", kept.read_bytes()[:-30], kept.read_bytes()[::-1]):
        kept.write_bytes(damaged)
        another_process()
        read_twice(path, keep_index="file")
        assert indexed == [path.name, "<none>"]
    with np.load(kept) as numbers:  # as an earlier version would have written it
        columns = dict(numbers) | {"stamp": numbers["stamp"][:2]}
    np.savez(kept, **columns)
    another_process()
    read_twice(path, keep_index="file")
    assert indexed == [path.name, "<none>"]
    os.utime(path, (1, 1))
    another_process()
    read_twice(path, keep_index="file")
    assert indexed == [path.name, "<none>"]
    write_video(path, 32, codec=codec, **arguments)
    with open_video(path, keep_index="file") as video:
        assert video.num_frames == 32


def test_folder_that_cannot_be_written_fails_no_read(
    tmp_path: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", 40)

    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)  # root may write anywhere
    read_twice(path, keep_index="file")
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    long = write_video(tmp_path / ("a" * 245 + ".mp4"), 40)  # no room for a longer name
    read_twice(long, keep_index="file")


def test_long_video_costs_the_seek_and_the_frames(
    folder: Path, indexed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(folder / "long.mp4", 40)
    probe(path)
    read: list[int] = []
    monkeypatch.setattr(
        _stream.Stream,
        "_packets_from",
        lambda *arguments, original=_stream.Stream._packets_from: (
            read.append(packet.size) or packet for packet in original(*arguments)
        ),
    )
    assert read_barcodes(read_clips(path, [[32, 34]])).tolist() == [[32, 34]]
    assert indexed == [path.name]
    assert len(read) <= 8  # of a group of ten


@pytest.mark.parametrize("name", ["h264.mp4", "open gop.ts", "h264.mkv"])
def test_decoding_begins_at_the_keyframe_wherever_a_seek_lands(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []

    def lands_at_the_start(container, stream, original=_stream.index_frames):
        index = original(container, stream)
        start = index.keyframes[0].seek_time
        index.keyframes = [keyframe._replace(seek_time=start) for keyframe in index.keyframes]
        return index

    def noted(reader, index, keyframe, original=_stream.Stream._packets_from):
        for packet in original(reader, index, keyframe):
            begun.append(packet.pts == keyframe.pts)
            yield packet

    monkeypatch.setattr(_index, "_KEPT_BYTES", 0)
    monkeypatch.setattr(_stream, "index_frames", lands_at_the_start)
    monkeypatch.setattr(_stream.Stream, "_packets_from", noted)
    codec, arguments = FILES[name]
    path = write_video(folder / f"early {name}", 40, codec=codec, **arguments)
    assert read_barcodes(read_clips(path, [[35, 36]])).tolist() == [[35, 36]]
    assert begun[0]
    assert len(begun) < 20
