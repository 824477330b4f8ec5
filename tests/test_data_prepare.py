"""`examples/prepare_videos.py`: same frames, nothing redone, nothing half done."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from videos import read_barcodes, remux, rotate, set_matrix, write_dropped_frames, write_video

from iivcl.data import (
    ClipRecipe,
    VideoClips,
    _stream,
    find_videos,
    open_video,
    probe,
    read_clips,
    read_manifest,
)

SCRIPT = Path(__file__).parents[1] / "examples" / "prepare_videos.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def prepare(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def test_every_frame_is_kept_and_bad_files_are_listed(tmp_path: Path) -> None:
    src, dst = tmp_path / "source set", tmp_path / "prepared"
    write_video(src / "walk" / "a.mkv", 30, height=96, width=192)
    write_video(src / "walk" / "same.mkv", 8)
    write_video(src / "walk" / "same.webm", 9, codec="libvpx-vp9")
    write_video(src / "run" / "tiny ü.mp4", 20, height=48, width=96)
    write_video(src / "run" / "loop.gif", 5, codec="gif", pix_fmt="rgb8")
    (src / "frames").mkdir()
    (src / "frames" / "1.jpg").touch()
    (src / "fall").mkdir()
    write_dropped_frames(src / "fall" / "b.avi")
    (src / "fall" / "b.mp4").unlink()
    rotate(write_video(src / "turned.mp4", 12, height=96, width=192))
    (src / "fall" / "bad.mp4").write_bytes(b"no video")
    (src / "fall" / "empty.mp4").touch()

    done = prepare(src, dst, "--short-side", 64, "--gop", 4, "--jobs", 2)
    assert done.returncode == 1
    assert done.stdout.startswith("1 folders of images are passed over\n9 videos, 0 of them")
    assert "7 videos in" in done.stdout
    assert f"failed: {src}/fall/bad.mp4: Invalid data found" in done.stdout
    assert f"failed: {src}/fall/empty.mp4: the file is empty" in done.stdout
    assert not (dst / ".unfinished").exists()

    manifest = read_manifest(dst / "manifest.csv")
    names = [str(Path(path).relative_to(dst)) for path in manifest.paths]
    num_frames = dict(zip(names, [probe(path).num_frames for path in manifest.paths], strict=True))
    assert num_frames == {
        "fall/b.mp4": 40,
        "run/loop.mp4": 5,
        "run/tiny ü.mp4": 20,
        "turned.mp4": 12,
        "walk/a.mp4": 30,
        "walk/same.mkv.mp4": 8,
        "walk/same.webm.mp4": 9,
    }
    assert [manifest.classes[i] if i >= 0 else "" for i in manifest.labels.tolist()] == [
        "fall",
        "run",
        "run",
        "",
        "walk",
        "walk",
        "walk",
    ]
    for name, count in num_frames.items():
        clips = read_clips(dst / name, [list(range(count))])
        if name == "turned.mp4":
            assert clips.shape[3:] == (128, 64)
            clips = clips.rot90(1, dims=(3, 4))
        assert clips.shape[3:] == (
            (48, 96) if any(x in name for x in ("tiny", "same", "loop")) else (64, 128)
        )
        assert read_barcodes(clips).tolist() == [list(range(count))]
    recipe = ClipRecipe(num_frames=4, stride=2, short_side=48)
    dataset = VideoClips(dst / "manifest.csv", recipe)
    assert dataset[0][0].shape == (2, 3, 4, 48, 96)


def test_prepared_videos_are_shown_as_before(tmp_path: Path) -> None:
    """Turned, mirrored, stretched, and of a varying rate: as the library reads the source."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    for orientation, matrix in enumerate(((-1, 0, 0, 1), (0, 1, 1, 0), (0, -1, 1, 0))):
        set_matrix(write_video(src / f"{orientation}.mp4", 10), *matrix)
    write_video(src / "stretched.mp4", 10, aspect=Fraction(4, 3))
    steady = write_video(tmp_path / "steady.mp4", 10, options={"bf": "0"})

    def delay(number: int, packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = packet.pts + number**2 * packet.duration
        return packet

    remux(steady, src / "variable.mkv", delay)
    assert prepare(src, dst, "--crf", 4, "--jobs", 1).returncode == 0
    for path in map(Path, find_videos(src)):
        with open_video(path) as before, open_video((dst / path.name).with_suffix(".mp4")) as after:
            assert before.size == after.size
            assert before.pixel_aspect == pytest.approx(after.pixel_aspect)
            assert before.constant_rate == after.constant_rate == (path.suffix == ".mp4")
            assert torch.allclose(before.times, after.times, atol=1e-3)
            assert before.fps == pytest.approx(after.fps, rel=1e-2)
            numbers = [list(range(10))]
            error = before.read(numbers).float() - after.read(numbers).float()
            assert error.abs().mean() < 4, path


def test_names_of_every_kind_come_back_from_the_manifest(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    names = (" lead.mp4", "trail .mp4", " class /a.mp4", '"b", c.mp4', "d\ne.mp4", "f.avi.mp4")
    for number, name in enumerate(names):
        write_video(src / name, 4 + number)
    write_video(src / "f.mov", 20)
    write_video(src / "f.avi", 21)
    done = prepare(src, dst, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(dst / "manifest.csv")
    lengths = {str(Path(path).relative_to(dst)): probe(path).num_frames for path in manifest.paths}
    assert lengths == {
        **{name: 4 + number for number, name in enumerate(names[:-1])},
        **{"f.avi.mp4.mp4": 9, "f.mov.mp4": 20, "f.avi.mp4": 21},
    }

    # A source that was replaced is read again, and no other.
    before = {path: path.stat().st_mtime_ns for path in dst.rglob("*.mp4")}
    write_video(src / " lead.mp4", 30)
    os.utime(src / "trail .mp4", (1, 1))
    again = prepare(src, dst, "--jobs", 2)
    assert "8 videos, 7 of them finished before" in again.stdout
    assert probe(dst / " lead.mp4").num_frames == 30
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert changed == [dst / " lead.mp4"]


@given(st.sets(st.from_regex(r"[ab](\.(avi|mov|mp4)){1,3}", fullmatch=True)))
def test_every_source_has_a_target_of_its_own(names: set[str]) -> None:
    choose_targets = runpy.run_path(str(SCRIPT), run_name="script")["choose_targets"]
    targets = choose_targets([Path("src", name) for name in sorted(names)], Path("src"))
    assert len(set(targets.values())) == len(targets) == len(names)
    for source, target in targets.items():
        assert target.name in (source.with_suffix(".mp4").name, f"{source.name}.mp4")
        if len({name.rpartition(".")[0] for name in names}) == len(names):
            assert target.name == source.with_suffix(".mp4").name


@pytest.mark.parametrize("name", ["a.wmv", "a.mpg"])
def test_what_decodes_forward_only_is_decoded_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to count the frames, and once to encode them in many pieces."""
    codec = "wmv2" if name == "a.wmv" else "mpeg2video"
    path, decoded = write_video(tmp_path / name, 100, codec=codec), []

    def counted(reader, original=_stream.Stream._decode_from_start):
        for frame in original(reader):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(_stream.Stream, "_decode_from_start", counted)
    encode = runpy.run_path(str(SCRIPT), run_name="script")["encode"]
    monkeypatch.setitem(encode.__globals__, "READ_BYTES", 3 * 48 * 96 * 7)
    encode(path, tmp_path / "out.mp4", short_side=48, gop=8, crf=20)
    assert read_barcodes(read_clips(tmp_path / "out.mp4", [[*range(100)]])).tolist() == [
        [*range(100)]
    ]
    assert len(decoded) <= 2 * 100 + 1  # and the first, for its size


@pytest.mark.slow
def test_run_killed_midway_goes_on_where_it_was(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    for number in range(8):
        write_video(src / f"{number}.mp4", 40, height=256, width=340)
    arguments = (src, dst, "--short-side", 128, "--jobs", 2)
    run = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not list(dst.glob("*.mp4")) and run.poll() is None:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.communicate()  # ends when the last worker, which shares the pipe, has ended
    assert run.returncode == -signal.SIGKILL

    finished = {path: path.stat().st_mtime_ns for path in dst.glob("*.mp4")}
    assert 0 < len(finished) < 8
    for path in finished:
        assert read_barcodes(read_clips(path, [list(range(40))])).tolist() == [list(range(40))]

    again = prepare(*arguments)
    assert again.returncode == 0, again.stderr
    assert f"8 videos, {len(finished)} of them finished before" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert sorted(path.name for path in dst.iterdir()) == sorted(
        [*(f"{number}.mp4" for number in range(8)), "failed.csv", "manifest.csv", "settings.json"]
    )
    assert torch.tensor([probe(path).num_frames for path in dst.glob("*.mp4")]).eq(40).all()


CRASH = """
import os, signal, sys
import prepare_videos

def encode(source, target, encode=prepare_videos.encode, **settings):
    if "crash" in source.name:
        os.kill(os.getpid(), signal.SIGKILL)
    if "odd" in source.name:
        raise IndexError("nobody expected this")
    encode(source, target, **settings)

prepare_videos.encode = encode
sys.exit(prepare_videos.main())
"""


def test_file_that_crashes_the_decoder_does_not_end_the_run(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    for name in ("a", "crash 1", "b", "crash 2", "c", "odd"):
        write_video(src / f"{name}.mp4", 4)
    (src / os.fsdecode(b"not utf-8 \xff.mp4")).write_bytes((src / "a.mp4").read_bytes())
    (src / "gone.mp4").symlink_to(src / "nowhere.mp4")
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(src), str(dst), "--jobs", "2"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(SCRIPT.parent)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    names = ["a.mp4", "b.mp4", "c.mp4", "not utf-8 \\udcff.mp4"]
    dataset = VideoClips(dst / "manifest.csv", ClipRecipe(num_frames=2, stride=1))
    assert [Path(dataset.path(i)).name for i in range(len(dataset))] == names
    assert [index for _, index, *_ in dataset] == [0, 1, 2, 3]
    assert [line for line in done.stdout.splitlines() if line.startswith("failed:")] == [
        f"failed: {src}/crash 1.mp4: the process that read it died",
        f"failed: {src}/crash 2.mp4: the process that read it died",
        f"failed: {src}/gone.mp4: No such file or directory",
        f"failed: {src}/odd.mp4: nobody expected this",
    ]
    assert f"writing to {dst}\n" in done.stdout
    assert done.stdout.endswith(f"4 that failed in {dst}/failed.csv; start again to retry them\n")


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Run the script in this process, where it is quicker; return what it exits with."""
    monkeypatch.setattr(sys, "argv", ["prepare_videos.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="script")["main"]()
    return str(stopped.value)


def test_settings_of_one_folder_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "src" / "a.mp4", 4)
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "settings.json").write_text('{"short_side": 128, "gop": 4, "crf": 20}')
    assert refusal(monkeypatch, tmp_path / "src", dst, "--gop", 8) == (
        f"{dst} was begun with {{'short_side': 128, 'gop': 4, 'crf': 20}}; "
        "use these again, or another folder"
    )


def test_two_runs_do_not_write_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_video(src / "a.mp4", 4)
    being_written = dst / ".unfinished" / "1.mp4"
    being_written.parent.mkdir(parents=True)
    being_written.touch()
    (dst / "settings.json").write_text('{"short_side": 128, "gop": 8, "crf": 20}')
    the_only_run = runpy.run_path(str(SCRIPT), run_name="script")["the_only_run"]
    with the_only_run(dst):
        assert refusal(monkeypatch, src, dst) == (
            f"another run is writing to {dst}; let it end, or give another folder"
        )
    assert being_written.exists()
    with the_only_run(dst):  # when the first has ended
        pass


def test_what_cannot_be_listed_is_refused_before_it_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_video(src / "2024.01" / "a.mp4", 4)
    assert refusal(monkeypatch, src, dst) == (
        "the folder of a video is its label, and one must be renamed: `label` must be a name or a "
        "whole number from 0, -1 where unknown; got '2024.01'"
    )
    one, other = src / "\\udcff.mp4", src / os.fsdecode(b"\xff.mp4")
    for path in (one, other):
        path.write_bytes(b"")
    message = refusal(monkeypatch, src, dst)
    assert message.endswith(r" would both be \udcff.mp4.mp4; rename one of them")
    assert not dst.exists()


def test_source_without_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tmp_path / "src"
    assert refusal(monkeypatch, src, tmp_path / "dst") == f"{src} is not a folder"
    src.mkdir()
    assert refusal(monkeypatch, src, tmp_path / "dst") == f"{src} holds no video files"
    assert not (tmp_path / "dst").exists()


def test_source_and_destination_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tmp_path / "src"
    video = write_video(src / "walk" / "a.mp4", 4)
    before = video.read_bytes()
    (tmp_path / "link").symlink_to(src)
    (tmp_path / "inner").symlink_to(src / "walk")
    for dst in (
        src,
        tmp_path / "src" / ".." / "src",
        tmp_path / "link",
        src / "new" / "prepared",
        tmp_path / "inner",
        tmp_path / "inner" / "new",
        tmp_path,
    ):
        message = refusal(monkeypatch, src, dst)
        assert message.startswith(f"SRC {src} and DST {dst} must be apart; "), message
        assert refusal(monkeypatch, tmp_path / "link", dst).startswith("SRC ")
    assert not (src / "new").exists()

    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "walk").symlink_to(src / "walk")  # its a.mp4 is the source
    assert refusal(monkeypatch, src, dst).startswith(f"{video} lies in DST {dst} by way of a link;")
    (dst / "walk").unlink()
    write_video(dst / "old.mp4", 4)
    (src / "more").symlink_to(dst)
    message = refusal(monkeypatch, src, dst)
    assert message.startswith(f"{src}/more/old.mp4 lies in DST {dst} by way of a link;")
    assert video.read_bytes() == before
    assert sorted(path.name for path in dst.iterdir()) == ["old.mp4"]


def test_refusals_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "src" / "a.mp4", 4)
    src, dst = tmp_path / "src", tmp_path / "dst"
    (tmp_path / "file").touch()
    assert refusal(monkeypatch, video, dst) == (f"{video} is a file; give the folder that holds it")
    assert refusal(monkeypatch, src, tmp_path / "file") == (
        f"{tmp_path}/file cannot be written: File exists"
    )
    for option, value in (("--short-side", 1), ("--gop", 0), ("--crf", 52), ("--jobs", 0)):
        assert refusal(monkeypatch, src, dst, option, value) == "2"
        assert f"error: {option} must be " in capsys.readouterr().err
    assert not dst.exists()
    dst.mkdir()
    (dst / "settings.json").write_text("{")
    assert refusal(monkeypatch, src, dst) == (
        f"{dst}/settings.json cannot be read; remove it, or give another folder"
    )
