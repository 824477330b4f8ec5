"""`examples/prepare_videos.py`: same frames, nothing redone, nothing half done."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from videos import read_barcodes, rotate, write_dropped_frames, write_video

from iivcl.data import VideoClips, probe, read_clips, read_manifest

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
    dataset = VideoClips(dst / "manifest.csv", num_frames=4, stride=2, short_side=48)
    assert dataset[0][0].shape == (2, 3, 4, 48, 96)


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


def test_source_without_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src = tmp_path / "src"
    assert refusal(monkeypatch, src, tmp_path / "dst") == f"{src} is not a folder"
    src.mkdir()
    assert refusal(monkeypatch, src, tmp_path / "dst") == f"{src} holds no video files"
    assert not (tmp_path / "dst").exists()
