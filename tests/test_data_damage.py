"""Files that cannot be read give a `DecodeError` that names them, and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
from pathlib import Path

import av
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from damage import read_damaged
from videos import read_barcodes, remux, write_audio, write_video

from iivcl.data import DecodeError, probe, read_clips


@pytest.mark.parametrize("read", [probe, lambda path: read_clips(path, [[0]])])
def test_unreadable_files_are_named_with_the_cause(read, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video" * 100)
    (tmp_path / "folder").mkdir()
    whole = write_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_audio(tmp_path / "sound.m4a")
    write_audio(tmp_path / "cover.mp4", cover=True)
    causes = {
        "missing.mp4": "No such file or directory",
        "empty.mp4": "the file is empty",
        "text.mp4": "Invalid data found when processing input",
        "folder": "the folder holds no images (.jpg, .jpeg, .png)",
        "cut.mp4": "Invalid data found when processing input",
        "sound.m4a": "the file holds no video stream",
        "cover.mp4": "the file holds no video stream",
    }
    for name, cause in causes.items():
        with pytest.raises(DecodeError) as caught:
            read(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {cause}"
    for name in ("empty.mp4", "text.mp4", "cut.mp4", "cover.mp4"):
        content = (tmp_path / name).read_bytes()
        with pytest.raises(DecodeError) as caught:
            read(content)
        assert str(caught.value) == f"<{len(content)} bytes>: {causes[name]}"


@pytest.mark.parametrize("name", ["list.txt", "about.nfo"])
def test_text_is_no_video(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("Run/v_Run_g01_c01.avi 1\n" * 999)
    message = (
        f"{tmp_path / name}: it is text, and no video (tty); "
        "a list of videos is a .csv or .jsonl file, as for `read_manifest`"
    )
    for read in (probe, lambda path: read_clips(path, [[0]])):
        with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
            read(tmp_path / name)


@pytest.mark.parametrize("read", [probe, lambda path: read_clips(path, [[0]])])
def test_what_is_neither_file_nor_folder_is_not_waited_for(read, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.mp4"))
        for name in ("fifo.mp4", "socket.mp4"):
            message = f"{tmp_path / name}: it is neither a file nor a folder"
            with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
                read(tmp_path / name)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "avi"])
def test_file_cut_in_the_middle_reads_up_to_the_cut(suffix: str, tmp_path: Path) -> None:
    whole = write_video(tmp_path / f"whole.{suffix}", 80, codec="libx264").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    num_frames = probe(path).num_frames
    assert 8 < num_frames < 79
    indices = torch.tensor([[0, 7, num_frames - 8]])
    assert read_barcodes(read_clips(path, indices)).equal(indices)


def test_packet_that_the_decoder_rejects(tmp_path: Path) -> None:
    path = write_video(tmp_path / "broken.mkv", 40, options={"bf": "0"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = next(p for i, p in enumerate(container.demux(video=0)) if i == 15)
        place = data.index(bytes(packet))
        data[place : place + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    assert read_barcodes(read_clips(path, [[3, 25]])).tolist() == [[3, 25]]
    with pytest.raises(DecodeError, match=f"^{re.escape(str(path))}: "):
        read_clips(path, [[17]])


def test_indices_outside_the_video(tmp_path: Path) -> None:
    for name in ("indexed.mp4", "counted.avi"):
        path = write_video(tmp_path / name, 10)
        message = f"`indices` must be below 10, the number of frames of {path}; got 12"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_clips(path, [[3, 12]])


def test_arguments_of_read_clips() -> None:
    for arguments, message in (
        ({"indices": [[-1]]}, "`indices` must be at least 0; got -1"),
        ({"indices": [1, 2]}, "`indices` must have shape (V, T), both at least 1; got (2,)"),
        ({"indices": [[]]}, "`indices` must have shape (V, T), both at least 1; got (1, 0)"),
        ({"indices": [[0]], "short_side": 0}, "`short_side` must be at least 1; got 0"),
        ({"indices": [[0]], "num_threads": 0}, "`num_threads` must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_clips("a.mp4", **arguments)
    with pytest.raises(TypeError, match=r"^`indices` must be integers; got torch\.float32$"):
        read_clips("a.mp4", [[0.5]])


# A file of every container and of every way to find its frames.
SOURCES: dict[str, dict] = {
    "a.mp4": {},
    "b.mov": {"codec": "mpeg4"},
    "c.mkv": {"codec": "libx265"},
    "d.webm": {"codec": "libvpx-vp9"},
    "e.webm": {"codec": "libvpx"},
    "f.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "g.avi": {"codec": "mpeg4", "options": {"bf": "0"}},
    "h.ts": {},
    "i.ts": {"codec": "mpeg2video"},
    "j.mpg": {"codec": "mpeg2video"},
    "k.flv": {},
    "l.wmv": {"codec": "wmv2"},
    "m.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "n.h264": {},
    "o.mp4": {"codec": "libsvtav1"},
    "p.ogv": {"codec": "libvpx"},
}


def fuzz(sources: list[Path], folder: Path, cases: int, seed: int) -> None:
    # A crash or a hang runs into the time limit.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        arguments = sources, folder, cases, seed
        outcome = pool.apply_async(read_damaged, arguments).get(timeout=100 + cases / 5)
    errors = {path: error for path, error in outcome.errors.items() if error is not None}
    assert all(error.startswith(f"{path}: ") for path, error in errors.items())
    assert len(outcome.errors) == cases
    assert cases / 20 < len(errors) < cases * 19 / 20
    assert outcome.end.open_files == outcome.midway.open_files
    # One frame left behind by each of a thousand files would be twice as much.
    assert outcome.end.megabytes - outcome.midway.megabytes < 8


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_random_damage_ends_in_clips_or_in_a_decode_error(tmp_path: Path) -> None:
    sources = [write_video(tmp_path / name, 20, **how) for name, how in SOURCES.items()]
    fuzz(sources, tmp_path, cases=400, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", SOURCES)
def test_random_damage_of_every_container(name: str, tmp_path: Path) -> None:
    fuzz([write_video(tmp_path / name, 20, **SOURCES[name])], tmp_path, cases=2000, seed=1)


def test_frames_that_turn_on_the_way_take_the_shape_of_the_first(tmp_path: Path) -> None:
    upright = write_video(tmp_path / "upright.mkv", 10, options={"bf": "0"})
    with av.open(str(upright)) as container:
        stream = container.streams.video[0]
        turn = BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=90", stream)
        [first] = turn.filter(next(container.demux(stream)))
    path = remux(upright, tmp_path / "turns.mkv", lambda i, packet: packet if i else first)
    with av.open(str(path)) as container:
        assert [frame.rotation for frame in container.decode(video=0)] == [90] + [0] * 9
    clips = read_clips(path, [[0, 5, 7]])
    assert clips.shape == (1, 3, 3, 96, 48)
    assert read_barcodes(clips)[0, 1:].tolist() == [5, 7]
    assert read_clips(path, [[5, 7]]).shape == (1, 3, 2, 48, 96)
