"""Exactly the frames asked for, whatever the container, codec or damage."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from torchvision.transforms.v2 import functional as tv
from videos import (
    barcode,
    read_barcodes,
    remux,
    rotate,
    write_dropped_frames,
    write_packed_divx,
    write_video,
)

from iivcl.data import (
    _index,
    _stream,
    open_video,
    probe,
    read_clips,
)

OPEN_GOP = {"x264-params": "open-gop=1:keyint=10", "bf": "3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=10", "bf": "0"}
PYRAMID = {"x264-params": "b-pyramid=normal:keyint=20:b-adapt=0", "bf": "5", "preset": "medium"}
LAYERS = {"x265-params": "temporal-layers=3:keyint=10:log-level=none:pools=none", "preset": "fast"}
ALT_REF = {"deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "16", "b:v": "200k"}

# name -> (codec, other arguments of write_video)
FILES: dict[str, tuple[str, dict]] = {
    "h264.mp4": ("libx264", {}),
    "h264.mkv": ("libx264", {}),
    "h264.ts": ("libx264", {}),
    "h264.flv": ("libx264", {}),
    "h264.avi": ("libx264", {}),
    "raw.h264": ("libx264", {}),
    "open gop, ü 视频.mp4": ("libx264", {"options": OPEN_GOP}),
    "open gop.ts": ("libx264", {"options": OPEN_GOP}),
    "intra refresh.mkv": ("libx264", {"options": REFRESH}),
    "file:10 bit.mp4": ("libx264", {"pix_fmt": "yuv420p10le"}),
    "100% odd size.mp4": ("libx264", {"pix_fmt": "yuv444p", "height": 47, "width": 97}),
    "hevc.mp4": ("libx265", {}),
    "hevc.ts": ("libx265", {}),
    "b pyramid.mp4": ("libx264", {"options": PYRAMID}),
    "temporal layers.mp4": ("libx265", {"options": LAYERS}),
    "vp8.webm": ("libvpx", {"options": ALT_REF}),
    "vp9.webm": ("libvpx-vp9", {"options": ALT_REF}),
    "av1.mp4": ("libsvtav1", {}),
    "av1.mkv": ("libsvtav1", {}),
    "mpeg4.avi": ("mpeg4", {"height": 240, "width": 320, "options": {"bf": "0"}}),
    "divx.avi": ("mpeg4", {"options": {"bf": "2"}}),
    "mpeg4.mp4": ("mpeg4", {"options": {"bf": "2"}}),
    "mpeg2.mpg": ("mpeg2video", {"options": {"bf": "2"}}),
    "wmv.wmv": ("wmv2", {}),
    "mjpeg.avi": ("mjpeg", {"pix_fmt": "yuvj420p"}),
    "gif.gif": ("gif", {"pix_fmt": "rgb8"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(params=["packets in memory", "packets sought"], autouse=True)
def packets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read every file as a small one, and as one too large to stay in memory."""
    if request.param == "packets sought":
        monkeypatch.setattr(_index, "_KEPT_BYTES", 0)


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_of_decode_order(name: str, folder: Path) -> None:
    codec, arguments = FILES[name]
    path = write_video(folder / name, 40, codec=codec, **arguments)
    assert probe(path).num_frames == 40
    assert (probe(path).codec == "av1") == name.startswith("av1")
    whole = read_clips(path, [list(range(40))])
    assert read_barcodes(whole).tolist() == [list(range(40))]
    # Wherever decoding begins, the pixels are those of decoding from the first frame.
    for indices in (torch.randint(40, (2, 4)), torch.tensor([[39, 0], [12, 12]])):
        clips = read_clips(path, indices)
        torch.testing.assert_close(clips, whole[0][:, indices].movedim(0, 1), rtol=0, atol=0)
    # From memory, where no name tells the format.
    content = path.read_bytes()
    assert probe(content) == probe(path)
    assert read_clips(content, indices).equal(clips)


@pytest.mark.parametrize(
    "name",
    [
        *("h264.mp4", "h264.ts", "open gop.ts", "intra refresh.mkv", "b pyramid.mp4"),
        *("hevc.mp4", "temporal layers.mp4", "mpeg4.mp4", "mpeg2.mpg"),
    ],
)
def test_every_single_frame_is_found_alone(name: str, folder: Path) -> None:
    codec, arguments = FILES[name]
    path = write_video(folder / f"alone {name}", 24, codec=codec, **arguments)
    with av.open(str(path)) as container:  # every frame decoded, and none sought
        whole = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    assert len(whole) == 24
    for number in range(24):
        [[frame]] = read_clips(path, [[number]]).unbind(2)
        assert read_barcodes(frame[None, :, None]).item() == number
        alone = read_clips(path, [[number] * 2])[0, :, 0]
        assert alone.equal(frame)


@pytest.mark.parametrize(
    "name",
    [
        *("h264.mp4", "h264.mkv", "h264.ts", "h264.flv"),
        *("hevc.mp4", "temporal layers.mp4", "vp9.webm", "mpeg4.avi"),
    ],
)
def test_decoding_begins_at_the_nearest_keyframe(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def numbered(frames, numbers, original=_stream._numbered):
        for number, frame in original(frames, numbers):
            decoded.append(number)
            yield number, frame

    monkeypatch.setattr(_stream, "_numbered", numbered)
    codec, arguments = FILES[name]
    path = write_video(folder / f"seek {name}", 40, codec=codec, **arguments)
    read_clips(path, [[36, 22], [23, 2]])  # keyframes at 0, 10, 20, 30
    on_the_way = [0, 1, 2, 20, 21, 22, 23, 30, 31, 32, 33, 34, 35, 36]
    assert {2, 22, 23, 36} <= set(decoded) <= set(on_the_way)
    assert decoded == sorted(set(decoded))
    # Frames that no other refers to are left out where the stream tells them for certain: in HEVC
    # with several temporal layers it does not.
    decoded.clear()
    read_clips(path, [[9]])
    assert (len(decoded) < 10) == name.startswith(("h264", "hevc"))


@pytest.mark.parametrize("name", ["wmv.wmv", "mpeg2.mpg", "divx.avi", "vp8.webm", "joined.ts"])
def test_reading_forward_decodes_no_frame_again(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []

    def counted(reader, original=_stream.Stream._decode_from_start):
        for number, frame in original(reader):
            decoded.append(number)
            yield number, frame

    monkeypatch.setattr(_stream.Stream, "_decode_from_start", counted)
    codec, arguments = FILES[name.replace("joined", "h264")]
    path = write_video(folder / f"forward {name}", 40, codec=codec, **arguments)
    if name == "joined.ts":
        path.write_bytes(path.read_bytes() * 2)
    with open_video(path) as video:
        count = video.num_frames
        whole = video.read([list(range(count))])[0]
        assert decoded == [*range(count)] * 2
        decoded.clear()
        for start in range(0, count - 4, 6):  # with gaps
            assert video.read([[start, start + 3]]).equal(whole[None, :, start : start + 4 : 3])
        assert decoded == [*range(decoded[-1] + 1)]
        for frames in ([count - 1], [count - 1], [2, 5], [4], [5], [count - 1]):  # and back
            assert video.read([frames]).equal(whole[None, :, frames])
        with pytest.raises(ValueError, match=f"^`indices` must be below {count}"):
            video.read([[count]])
        assert video.size == (48, 96)
        assert video.read([[7]]).equal(whole[None, :, [7]])


def test_packed_divx_whose_pts_run_backwards(folder: Path) -> None:
    path = write_packed_divx(folder / "packed.avi")
    with av.open(str(path)) as container:
        pts = [frame.pts for frame in container.decode(video=0)]
    assert pts != sorted(pts)  # the hazard is there
    assert probe(path).num_frames == len(pts) == 40
    assert read_barcodes(read_clips(path, [[30, 31, 32], [0, 1, 2]])).tolist() == [
        [30, 31, 32],
        [0, 1, 2],
    ]


def test_header_that_counts_frames_which_do_not_decode(folder: Path) -> None:
    path = write_dropped_frames(folder / "dropped.avi")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 42
    assert probe(path).num_frames == 40
    assert read_barcodes(read_clips(path, [[9, 10, 11, 20, 21, 39]])).tolist() == [
        [9, 10, 11, 20, 21, 39]
    ]


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("write", [write_packed_divx, write_dropped_frames])
def test_avi_packets_moved_to_another_container(write, suffix: str, folder: Path) -> None:
    avi = write(folder / f"moved {write.__name__}.avi")
    path = remux(avi, avi.with_suffix(f".copy.{suffix}"), lambda i, packet: packet)
    assert probe(path).num_frames == 40
    assert read_barcodes(read_clips(path, [[10, 2, 39, 21]])).tolist() == [[10, 2, 39, 21]]


def test_edit_list_hides_frames(folder: Path) -> None:
    def shift(number: int, packet: av.Packet) -> av.Packet:
        five_frames = round(5 / 25 / packet.time_base)
        packet.pts, packet.dts = packet.pts - five_frames, packet.dts - five_frames
        return packet

    source = write_video(folder / "unedited.mp4", 40)
    path = remux(source, folder / "edited.mp4", shift, avoid_negative_ts="disabled")
    assert probe(path).num_frames == 35
    assert read_barcodes(read_clips(path, [[0, 1, 34, 20]])).tolist() == [[5, 6, 39, 25]]


def test_file_that_begins_between_keyframes(folder: Path) -> None:
    source = write_video(folder / "whole.mkv", 40, options={"bf": "0"})
    path = remux(source, folder / "beheaded.mkv", lambda i, packet: packet if i >= 4 else None)
    with av.open(str(path)) as container:
        decoded = len(list(container.decode(video=0)))
    assert probe(path).num_frames == decoded
    assert read_barcodes(read_clips(path, [[decoded - 1, decoded - 20]])).tolist() == [[39, 20]]


def test_the_best_of_several_streams_is_read(folder: Path) -> None:
    path = folder / "two.mkv"
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, height in zip(streams, (48, 96), strict=True):
            stream.height, stream.width, stream.pix_fmt = height, 2 * height, "yuv420p"
        streams[1].disposition = Disposition.default.value
        for number in range(10):
            for stream, offset in zip(streams, (100, 0), strict=True):
                image = barcode(number + offset, stream.height, stream.width)
                output.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            output.mux(stream.encode())
    assert (probe(path).height, probe(path).width) == (96, 192)
    assert read_barcodes(read_clips(path, [[3, 7]])).tolist() == [[3, 7]]


def test_rotation_tag_turns_the_frames(folder: Path) -> None:
    path = write_video(folder / "upright.mp4", 12)
    upright = read_clips(path, [[11, 2]])
    info = probe(rotate(path))
    assert (info.height, info.width) == (96, 48)
    turned = read_clips(path, [[11, 2]])
    torch.testing.assert_close(turned, upright.rot90(-1, dims=(3, 4)), rtol=0, atol=0)
    assert read_clips(path, [[11, 2]], short_side=24).shape == (1, 3, 2, 48, 24)


@pytest.mark.parametrize("encoding", ["latin-1", "gbk"])
def test_tags_of_any_encoding(encoding: str, folder: Path) -> None:
    path, tag = folder / "tagged.mkv", {"latin-1": "caf\xe9", "gbk": "\u4e2d\u6587"}[encoding]
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "four"
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(barcode(5), format="rgb24")))
        output.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"four") == 1
    path.write_bytes(content.replace(b"four", tag.encode(encoding)))
    with contextlib.suppress(UnicodeDecodeError), av.open(str(path)) as plain:
        # PyAV 19 does not raise.
        assert plain.metadata["title"].encode("utf-8", "surrogateescape") == tag.encode(encoding)
    assert read_barcodes(read_clips(path, [[0]])).tolist() == [[5]]


def test_size_that_changes_on_the_way(folder: Path) -> None:
    small = write_video(folder / "small.ts", 10)
    large = write_video(folder / "large.ts", 10, height=96, width=192)
    path = folder / "changes.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert probe(path).num_frames == 20
    clips = read_clips(path, [[2, 15]])
    assert clips.shape == (1, 3, 2, 48, 96)
    assert read_barcodes(clips).tolist() == [[2, 5]]


@pytest.mark.parametrize("gap", [None, 0.513, 1.18])
@pytest.mark.parametrize(
    ("codec", "bf", "fps"),
    [
        ("libx264", ("0", "2"), (Fraction(25), Fraction(30000, 1001))),
        ("libx264", ("2", "0"), (Fraction(25), Fraction(25))),
        ("mpeg2video", ("2", "0"), (Fraction(25), Fraction(25))),
    ],
)
def test_recordings_joined_byte_by_byte(
    codec: str, bf: tuple[str, str], fps: tuple[Fraction, Fraction], gap: float | None, folder: Path
) -> None:
    """The times of the second begin anew, or within those of the first; what decodes counts."""
    path = folder / "joined.ts"
    path.unlink(missing_ok=True)
    for part in (0, 1):
        shots = [barcode(number) for number in range(30 * part, 30 * part + 30)]
        options = {"bf": bf[part], "g": "10"}
        one = write_video(
            folder / "one.ts", codec=codec, fps=fps[part], frames=shots, options=options
        )
        late = int((gap or 0) * part * 90_000)

        def move(number: int, packet: av.Packet, late: int = late) -> av.Packet:
            packet.pts, packet.dts = packet.pts + late, packet.dts + late
            return packet

        moved = remux(one, folder / "moved.ts", move, mpegts_copyts="1")
        with path.open("ab") as joined:
            joined.write(moved.read_bytes())
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    shown = read_barcodes(torch.from_numpy(np.stack(whole)).movedim(-1, 0)[None])[0].tolist()
    assert probe(path).num_frames == len(shown) >= 58
    assert read_barcodes(read_clips(path, [list(range(len(shown)))])).tolist() == [shown]
    for number in range(0, len(shown), 3):
        assert read_barcodes(read_clips(path, [[number]])).item() == shown[number]


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colours_follow_the_tags(matrix: str, full_range: bool, folder: Path) -> None:
    y, u, v = 120, 100, 160
    path = folder / f"colour {matrix} {full_range}.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p"
        stream.codec_context.color_range = 2 if full_range else 1
        stream.codec_context.colorspace = 1 if matrix == "bt709" else 6
        planes = np.concatenate([np.full(48 * 96, y), np.full(48 * 24, u), np.full(48 * 24, v)])
        frame = av.VideoFrame.from_ndarray(planes.astype(np.uint8).reshape(72, 96), "yuv420p")
        frame.color_range = stream.codec_context.color_range
        frame.colorspace = stream.codec_context.colorspace
        output.mux(stream.encode(frame))
        output.mux(stream.encode())

    red, blue = (0.2126, 0.0722) if matrix == "bt709" else (0.299, 0.114)
    luma = y if full_range else (y - 16) * 255 / 219
    cb, cr = ((c - 128) * (1 if full_range else 255 / 224) for c in (u, v))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    expected = torch.tensor([r, (luma - red * r - blue * b) / (1 - red - blue), b])
    pixels = read_clips(path, [[0]]).float()[0, :, 0, 4:-4, 4:-4]
    torch.testing.assert_close(pixels.mean((1, 2)), expected, rtol=0, atol=2.0)


@pytest.mark.parametrize("size", [(48, 96), (47, 97), (50, 34)])
def test_short_side_scales_as_torchvision_does(size: tuple[int, int], folder: Path) -> None:
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    waves = 127 + 80 * np.sin(rows / 5)[..., None] * np.cos(columns[..., None] / [6, 8, 9])
    path = write_video(
        folder / f"waves {size}.mkv", codec="ffv1", pix_fmt="bgr0", frames=[waves.astype(np.uint8)]
    )
    full = read_clips(path, [[0]])
    assert full.shape == (1, 3, 1, height, width)
    torch.testing.assert_close(full[0, :, 0], torch.from_numpy(waves).byte().movedim(2, 0))
    scaled = read_clips(path, [[0]], short_side=32)[:, :, 0]
    expected = tv.resize(full[:, :, 0], [32])
    assert scaled.shape == expected.shape
    assert (scaled.float() - expected).abs().max() <= 3


def test_width_that_is_no_multiple_of_eight_is_filled(folder: Path) -> None:
    grey = np.full((48, 100, 3), 128, np.uint8)
    path = write_video(folder / "grey.mp4", frames=[grey])
    assert ((read_clips(path, [[0]]).int() - 128).abs() <= 3).all()


def test_clips_own_their_memory(folder: Path) -> None:
    path = write_video(folder / "owned.mp4", 20)
    clips = read_clips(path, torch.tensor([[3, 3, 19], [0, 3, 1]], dtype=torch.int32))
    assert clips.is_contiguous()
    assert clips.untyped_storage().nbytes() == clips.numel()
    assert read_barcodes(clips).tolist() == [[3, 3, 19], [0, 3, 1]]


def test_threads_change_nothing(folder: Path) -> None:
    path = write_video(folder / "threads.mp4", 40)
    indices = [[3, 39, 17]]
    torch.testing.assert_close(
        read_clips(path, indices, num_threads=3), read_clips(path, indices), rtol=0, atol=0
    )


def test_approximate_reading_is_at_most_a_few_frames_early(folder: Path) -> None:
    path = write_video(folder / "approximate.mp4", 40)  # two B-frames between references
    asked = torch.arange(40)
    got = read_barcodes(read_clips(path, asked[None], approximate=True))[0]
    assert ((asked - got >= 0) & (asked - got <= 2)).all()
    assert (got != asked).any()
    assert (got[::10] == asked[::10]).all()  # keyframes
    backwards = write_packed_divx(folder / "approximate.avi")
    assert read_barcodes(read_clips(backwards, asked[None], approximate=True))[0].equal(asked)
