"""Files that cannot be read give a `DecodeError` that names them, and nothing else."""

from __future__ import annotations

import random
import re
from pathlib import Path

import av
import pytest
import torch
from videos import read_barcodes, write_audio, write_video

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


def test_random_damage_ends_in_clips_or_in_a_decode_error(tmp_path: Path) -> None:
    chance = random.Random(0)
    files = [
        write_video(tmp_path / "a.mp4", 20),
        write_video(tmp_path / "b.mkv", 20, codec="libx265"),
        write_video(tmp_path / "c.avi", 20, codec="mpeg4", options={"bf": "2"}),
        write_video(tmp_path / "d.webm", 20, codec="libvpx-vp9"),
        write_video(tmp_path / "e.ts", 20),
        write_video(tmp_path / "f.gif", 20, codec="gif", pix_fmt="rgb8"),
    ]
    sources = [(file.suffix, file.read_bytes()) for file in files]
    for case in range(300):
        suffix, whole = sources[case % len(sources)]
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(data))
            length = chance.randint(1, 40)
            kind = chance.choice(["flip", "cut", "splice"])
            if kind == "flip":
                data[place] ^= 1 << chance.randrange(8)
            elif kind == "cut":
                del data[place : place + length]
            else:
                data[place:place] = chance.randbytes(length)
        path = tmp_path / f"case {case}{suffix}"
        path.write_bytes(data)
        try:
            info = probe(path)
            clips = read_clips(path, [[0, info.num_frames - 1]], short_side=16)
            outcome = f"{path}: clips of shape {tuple(clips.shape[:3])}"
        except DecodeError as error:
            outcome = str(error)
        assert outcome.startswith(f"{path}: ")
