"""Videos of every kind as a player shows them: upright, cropped, at their times."""

from __future__ import annotations

import gc
import re
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext
from PIL import Image, ImageOps
from videos import barcode, read_barcodes, remux, rotate, set_matrix, write_video

from iivcl.data import DecodeError, _index, open_video, probe, read_clips


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


# The display matrix of each orientation that EXIF numbers, as (a, b, c, d).
MATRICES = {
    **{1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1)},
    **{5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)},
}


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, 3) as Pillow does."""
    lying = Image.fromarray(image)
    lying.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(lying))


@pytest.mark.parametrize("orientation", MATRICES)
def test_mirrored_and_turned_videos(orientation: int, folder: Path) -> None:
    path = write_video(folder / f"lying {orientation}.mp4", 12)
    lying = read_clips(path, [[11, 2]])[0]  # (C, T, H, W)
    info = probe(set_matrix(path, *MATRICES[orientation]))
    images = [upright(image.movedim(0, -1).numpy(), orientation) for image in lying.unbind(1)]
    shown = torch.from_numpy(np.stack(images)).movedim(-1, 0)[None]
    assert (info.orientation, info.height, info.width) == (orientation, *shown.shape[-2:])
    assert read_clips(path, [[11, 2]]).equal(shown)
    scaled = read_clips(path, [[11, 2]], short_side=24)
    assert scaled.shape == (1, 3, 2, *(n // 2 for n in shown.shape[-2:]))


def test_angle_between_counts_as_the_nearest_quarter(folder: Path) -> None:
    path = write_video(folder / "oblique.mp4", 3)
    sine, cosine = np.sin(np.radians(80)), np.cos(np.radians(80))
    assert probe(set_matrix(path, cosine, sine, -sine, cosine)).orientation == 6


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", MATRICES)
def test_mirrored_and_turned_pictures(
    orientation: int, kind: str, order: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010E] = "a description before it"
    exif[0x0112] = orientation
    path = tmp_path / f"1.{kind.lower()}"
    Image.fromarray(barcode(5)).save(path, kind, exif=exif, quality=95)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    clip = read_clips(tmp_path, [[0]])[0, :, 0]  # (C, H, W)
    assert probe(tmp_path).orientation == orientation
    assert clip.shape[1:] == expected.shape[:2]
    assert np.abs(clip.movedim(0, -1).numpy() - expected).max() <= 3  # of another JPEG decoder


CROPS = [(8, 8, 4, 2), (2, 0, 6, 0), (0, 6, 0, 2), (34, 2, 18, 4)]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_cropped_streams_lose_what_they_say(codec: str, crop: tuple, folder: Path) -> None:
    left, right, top, bottom = crop
    whole = write_video(folder / f"whole {codec}.ts", codec=codec, pix_fmt="yuv444p")
    name = {"libx264": "h264", "libx265": "hevc"}[codec]
    edit = (
        f"{name}_metadata=crop_left={left}:crop_right={right}:crop_top={top}:crop_bottom={bottom}"
    )
    with av.open(str(whole)) as container:
        crop_packets = BitStreamFilterContext(edit, container.streams.video[0])
        path = remux(whole, folder / "cropped.ts", lambda i, p: crop_packets.filter(p)[0])
    asked = [[3, 33]]
    inside = read_clips(whole, asked)[..., top : 48 - bottom, left : 96 - right]
    assert (probe(path).height, probe(path).width) == inside.shape[-2:]
    assert read_clips(path, asked).equal(inside)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_odd_sizes_are_kept(codec: str, folder: Path) -> None:
    suffix = "webm" if codec == "libvpx-vp9" else "mp4"
    how = {"pix_fmt": "yuv420p" if codec == "libsvtav1" else "yuv444p", "height": 67, "width": 131}
    path = write_video(folder / f"odd {codec}.{suffix}", 20, codec=codec, **how)
    clips = read_clips(path, [[17, 4]])
    assert clips.shape == (1, 3, 2, 67, 131)
    assert read_barcodes(clips).tolist() == [[17, 4]]
    edge = clips[0, :, :, :, -2:].int() - clips[0, :, :, :, -4:-2].int()  # one bar, one colour
    assert edge.abs().max() < 16


def at(milliseconds: list[int], source: Path, target: Path) -> Path:
    """Copy a video without B-frames, its frames shown at the given times."""

    def move(number: int, packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = round(milliseconds[number] / 1000 / packet.time_base)
        return packet

    return remux(source, target, move)


VARIABLE = [0, 40, 80, 500, 540, 600, 1600, 1640, 3200, 3240]


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_times_of_a_variable_rate(suffix: str, folder: Path) -> None:
    source = write_video(folder / f"steady.{suffix}", 10, options={"bf": "0"})
    path = at(VARIABLE, source, folder / f"variable.{suffix}")
    with open_video(path) as video:
        assert not video.constant_rate
        torch.testing.assert_close(video.times * 1000, torch.tensor(VARIABLE).double())
        assert video.info.duration_seconds == pytest.approx(3.28, abs=0.002)
        assert video.fps == pytest.approx(10 / 3.28, abs=0.002)
    with open_video(source) as video:
        assert video.constant_rate
        assert video.info.fps == 25
        torch.testing.assert_close(video.times, torch.arange(10).double() / 25)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "flv", "avi", "gif"])
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(12), Fraction(50)])
def test_rate_that_the_file_rounds_is_still_constant(
    suffix: str, fps: Fraction, folder: Path
) -> None:
    codec, pix_fmt = ("gif", "rgb8") if suffix == "gif" else ("libx264", "yuv420p")
    path = write_video(folder / f"{fps}.{suffix}".replace("/", "-"), 40, codec=codec, fps=fps,
                       pix_fmt=pix_fmt)  # fmt: skip
    info = probe(path)
    assert info.constant_rate
    assert info.fps == pytest.approx(float(fps), rel=0.01 if suffix == "gif" else 1e-4)
    assert info.duration_seconds == pytest.approx(40 / info.fps)


@pytest.mark.parametrize("aspect", [Fraction(16, 11), Fraction(2, 3)])
def test_square_pixels_are_offered(aspect: Fraction, folder: Path) -> None:
    path = write_video(folder / f"anamorphic {aspect.denominator}.mp4", 12, aspect=aspect)
    info = probe(path)
    assert (info.height, info.width) == (48, 96)
    assert info.pixel_aspect == pytest.approx(float(aspect))
    assert read_clips(path, [[7]]).shape[-2:] == (48, 96)
    square = read_clips(path, [[7, 2]], pixels="square")
    assert square.shape[-2:] == (48, round(96 * aspect))
    assert read_barcodes(square).tolist() == [[7, 2]]
    assert read_clips(path, [[7]], pixels="square", short_side=24).shape[-2] == 24
    turned = probe(rotate(path))
    assert turned.pixel_aspect == pytest.approx(float(1 / aspect))
    assert read_clips(path, [[7]], pixels="square").shape[-2:] == (round(96 * aspect), 48)


def test_every_kind_of_video_reads_alike(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 12, codec="ffv1", pix_fmt="bgr0")
    frames = np.stack([barcode(number) for number in range(12)])
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(path, "clips/000007.mkv")
    with tarfile.open(tmp_path / "shard.tar") as archive, path.open("rb") as file:
        member = archive.extractfile("clips/000007.mkv")
        kinds = [
            (path, str(path)),
            (path.read_bytes(), f"<{path.stat().st_size} bytes>"),
            (folder, str(folder)),
            (file, str(path)),
            (member, member.name),  # of the archive, and from Python 3.12 on of the member
            (frames, "<array of (12, 48, 96, 3)>"),
            (torch.from_numpy(frames), "<array of (12, 48, 96, 3)>"),
        ]
        for kind, name in kinds:
            with open_video(kind, name="mine") as video:
                assert video.name == "mine"
            with open_video(kind) as video:
                assert video.name == name
                assert (video.num_frames, video.size, video.orientation) == (12, (48, 96), 1)
                assert len(video.times) == 12
                for indices in ([[0, 11], [5, 5]], [[3, 2]]):
                    assert video.read(indices).equal(
                        torch.from_numpy(frames[indices]).movedim(-1, 1)
                    )
                with pytest.raises(ValueError, match="`indices` must be below 12"):
                    video.read([[12]])


@pytest.mark.parametrize(
    ("video", "error", "message"),
    [
        (None, TypeError, "`video` must be a path, bytes, a binary file or an array (T, H, W, C)"),
        (np.zeros((2, 8, 8), np.uint8), ValueError, "`video` must have shape (T, H, W, 3), all"),
        (np.zeros((2, 8, 8, 3)), TypeError, "`video` must be uint8; got float64"),
    ],
)
def test_what_is_no_video(video: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        open_video(video)


def test_text_is_no_binary_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 4)
    with path.open(encoding="latin-1") as file:
        message = "`video` must be a path, bytes, a binary file or an array (T, H, W, C); got Text"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}IOWrapper$"):
            open_video(file)


@pytest.mark.parametrize("kept", [0, 2**26])
@pytest.mark.parametrize("suffix", ["mp4", "wmv", None])
def test_closed_video_says_so(
    suffix: str | None, kept: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_index, "_KEPT_BYTES", kept)
    source: Any = np.zeros((6, 48, 96, 3), np.uint8)
    if suffix is not None:
        codec = "wmv2" if suffix == "wmv" else "libx264"
        source = write_video(folder / f"closed {kept}.{suffix}", 6, codec=codec)
    video = open_video(source, name="mine")
    assert video.read([[1]]).shape == (1, 3, 1, 48, 96)
    video.close()
    video.close()
    for use in (lambda: video.read([[3]]), lambda: video.size, lambda: video.info):
        with pytest.raises(ValueError, match=r"^mine is closed; open it again to read it$"):
            use()


def test_files_beside_the_images_of_macos_are_none(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(barcode(number)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"._{number}.jpg").write_bytes(b"\0\5\x16\7" + bytes(200))
    assert probe(tmp_path).num_frames == 3
    assert read_barcodes(read_clips(tmp_path, [[2, 0]])).tolist() == [[2, 0]]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_picture_that_is_cut_off(kind: str, progressive: bool, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 96, 3), np.uint8)
    path = tmp_path / f"0.{kind.lower()}"
    Image.fromarray(noise).save(path, kind, exif=Image.Exif(), progressive=progressive)
    content = path.read_bytes()
    for left in (1, 2, 3, 20, len(content) // 10, len(content) // 2):
        path.write_bytes(content[:-left])
        # Without its last chunk, which holds nothing, a PNG is whole.
        if kind == "JPEG" or left > 12:
            with pytest.raises(DecodeError, match=f"^{re.escape(str(path))}: "):
                read_clips(tmp_path, [[0]])
    if kind == "JPEG":
        path.write_bytes(content[: len(content) // 2] + content[-2:])  # its end is there
        with pytest.raises(DecodeError, match=f"^{re.escape(str(path))}: "):
            read_clips(tmp_path, [[0]])
    path.write_bytes(content)
    whole = read_clips(tmp_path, [[0]])
    # A phone puts a film behind its pictures, in which there may be any bytes.
    film = np.random.default_rng(1).bytes(2**17)
    for behind in (b"behind the end", film, film + b"\xff\xda" + film, content[:99], b"\xff\xd9"):
        path.write_bytes(content + behind)
        assert read_clips(tmp_path, [[0]]).equal(whole)


@pytest.mark.skipif(
    int(av.__version__.split(".")[0]) < 18, reason="PyAV 17 keeps its packets in circles"
)
def test_frames_are_freed_with_the_last_use_of_them(folder: Path) -> None:
    paths = [write_video(folder / f"freed.{suffix}", 12) for suffix in ("mp4", "avi")]
    for path in (*paths, rotate(write_video(folder / "freed turned.mp4", 12))):
        read_clips(path, [[0, 11]])
        while gc.collect():  # what other tests have left, and what that leaves
            pass
        gc.disable()
        try:
            with open_video(path) as video:
                video.read([[0, 11, 5]], short_side=24)
                assert video.info.num_frames == 12
            del video
            assert gc.collect() == 0  # no frame waits for this
        finally:
            gc.enable()
