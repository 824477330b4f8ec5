"""`VideoClips`: addressable clips, epochs in running workers, and what happens to bad files."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import pytest
import torch
from loading import workers_end
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler
from videos import (
    barcode,
    count_threads,
    die_of_59_frames,
    random_number,
    read_barcodes,
    remux,
    two_numbers,
    write_packed_divx,
    write_video,
)

from iivcl.data import (
    ClipRecipe,
    DecodeError,
    Failure,
    VideoClips,
    _stream,
    clip_indices,
    collate_clips,
    random_clip_starts,
    read_manifest,
    uniform_clip_starts,
)

RECIPE = ClipRecipe(num_frames=4, stride=3, short_side=48)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("set")
    return [write_video(folder / f"{i}.mp4", 60, options={"bf": "0"}) for i in range(6)]


@pytest.fixture
def broken(paths: list[Path], tmp_path: Path) -> list[Path]:
    """The set with its videos 1 and 4 replaced by bad ones."""
    (tmp_path / "empty.mp4").touch()
    return [paths[0], tmp_path / "empty.mp4", *paths[2:4], tmp_path / "missing.mp4", paths[5]]


def codes(dataset: VideoClips, **loading) -> dict[int, list]:
    """Which frames each video gave, read through a loader with default collation."""
    loader = DataLoader(dataset, batch_size=2, **loading)
    return {
        int(index): read_barcodes(clips).tolist()
        for batch, indices in loader
        for clips, index in zip(batch, indices, strict=True)
    }


def test_clips_depend_on_seed_epoch_and_video_alone(paths: list[Path]) -> None:
    dataset = VideoClips(paths, RECIPE, seed=3)
    expected = codes(dataset)
    assert {len(frames) for clips in expected.values() for frames in clips} == {4}
    assert all(f[i + 1] - f[i] == 3 for c in expected.values() for f in c for i in range(3))
    assert codes(dataset, num_workers=2, shuffle=True) == expected
    ranks = [DistributedSampler(dataset, 2, rank) for rank in range(2)]
    assert codes(dataset, sampler=ranks[0]) | codes(dataset, sampler=ranks[1]) == expected
    assert codes(VideoClips(paths, RECIPE, seed=3)) == expected
    assert codes(pickle.loads(pickle.dumps(dataset))) == expected
    assert codes(VideoClips(paths, RECIPE, seed=4)) != expected
    assert len({str(clips) for clips in expected.values()}) == len(paths)


def test_epoch_reaches_running_workers(paths: list[Path]) -> None:
    dataset = VideoClips(paths, RECIPE)
    alone = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        alone.append(codes(dataset))
    assert alone[0] != alone[1] != alone[2]

    loader = DataLoader(dataset, batch_size=3, num_workers=2, persistent_workers=True)
    for epoch in (0, 1, 2, 1):
        dataset.set_epoch(epoch)
        got = [read_barcodes(clips).tolist() for batch, _ in loader for clips in batch]
        assert got == list(alone[epoch].values())


def test_frames_are_counted_by_decoding_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VideoClips([write_packed_divx(tmp_path / "a.avi")], RECIPE)
    first = dataset[0][0]
    passes = []

    def counted(reader, original=_stream.Stream._decode_from_start):
        passes.append(1)
        return original(reader)

    monkeypatch.setattr(_stream.Stream, "_decode_from_start", counted)
    assert dataset[0][0].equal(first)
    assert passes == [1]


def test_sampling_and_short_videos(paths: list[Path], tmp_path: Path) -> None:
    uniform = VideoClips(paths, replace(RECIPE, sampling="uniform", clips_per_video=3))
    starts = uniform_clip_starts(60, num_frames=4, stride=3, clips_per_video=3)
    expected = clip_indices(starts, 60, num_frames=4, stride=3)
    assert read_barcodes(uniform[2][0]).equal(expected)

    close = partial(random_clip_starts, power=0.5, max_gap=2)
    dataset = VideoClips(paths, replace(RECIPE, sampling=close))
    firsts = torch.stack([read_barcodes(clips)[:, 0] for clips, _ in dataset])
    assert (firsts[:, 0] - firsts[:, 1]).abs().max() <= 2

    at_keyframes = VideoClips(paths, replace(RECIPE, sampling="keyframes"))  # one every 10 frames
    firsts = torch.stack([read_barcodes(clips)[:, 0] for clips, _ in at_keyframes])
    assert set(firsts.flatten().tolist()) <= {0, 10, 20, 30, 40, 50}
    assert len(firsts.unique()) > 2

    short = [write_video(tmp_path / "short.mp4", 5)]
    for policy, frames in (("loop", [0, 3, 1, 4]), ("clamp", [0, 3, 4, 4])):
        clips, _ = VideoClips(short, replace(RECIPE, short=policy))[0]
        assert read_barcodes(clips).tolist() == [frames] * 2
    message = (
        f"{short[0]}: a clip of 4 frames at stride 3 needs frame 9, but the video has 5 frames"
    )
    strict = replace(RECIPE, short="error")
    with pytest.raises(DecodeError, match=f"^{re.escape(message)}"):
        VideoClips(short, strict)[0]
    skipping = VideoClips([paths[0], *short], strict, on_error="skip")
    assert [indices.tolist() for _, indices in DataLoader(skipping, batch_size=2)] == [[0]]
    assert [failure.path for failure in skipping.failures()] == [str(short[0])]
    assert VideoClips([paths[0], *short], strict, on_error="substitute")[1][1] == 0


def test_seconds_mean_the_same_at_every_frame_rate(tmp_path: Path) -> None:
    slow = write_video(tmp_path / "slow.mp4", 24, fps=12)
    fast = write_video(tmp_path / "fast.mp4", 120, fps=60)
    recipe = ClipRecipe(num_frames=4, stride_seconds=0.25, sampling="uniform", clips_per_video=1)
    dataset = VideoClips([slow, fast], recipe)
    steps = [read_barcodes(clips).diff()[0].tolist() for clips, _ in dataset]
    assert steps == [[3, 3, 3], [15, 15, 15]]


VARIABLE = [0, 40, 80, 500, 540, 600, 1600, 1640, 3200, 3240, 3280, 3300]  # milliseconds


def write_variable(tmp_path: Path) -> Path:
    steady = write_video(tmp_path / "steady.mkv", 12, options={"bf": "0", "g": "4"})

    def move(number: int, packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = VARIABLE[number]
        return packet

    return remux(steady, tmp_path / "variable.mkv", move)


@pytest.mark.parametrize("sampling", ["random", "keyframes", "uniform"])
@pytest.mark.parametrize("short", ["loop", "clamp", "mirror"])
@pytest.mark.parametrize("step", [40, 250, 700, 1700])
def test_seconds_pick_the_frames_nearest_in_time(
    step: int, short: str, sampling: str, tmp_path: Path
) -> None:
    path = write_variable(tmp_path)
    recipe = ClipRecipe(
        num_frames=3, stride_seconds=step / 1000, sampling=sampling, short=short, clips_per_video=40
    )
    [(clips, _)] = VideoClips([path], recipe)
    duration = 3340  # the last frame is shown for 40 ms
    for frames in read_barcodes(clips).tolist():
        for t, frame in enumerate(frames):
            time = VARIABLE[frames[0]] + t * step
            if time >= duration and short == "loop":
                time %= duration
            elif time > VARIABLE[-1] and short == "mirror":
                time = abs((time + 3300) % 6600 - 3300)
            off = [abs(other - time) for other in VARIABLE]
            assert off[frame] == pytest.approx(min(off), abs=1e-6)
            if step <= 700:  # what fits is not wrapped
                assert frames == sorted(frames)
    firsts = read_barcodes(clips)[:, 0].tolist()
    if sampling == "keyframes":
        assert set(firsts) <= {0, 4, 8}
    if (sampling, step) == ("random", 40):  # as often as they are on the screen
        assert sum(VARIABLE[first] in (600, 1640) for first in firsts) > 20
    if sampling == "uniform":
        assert firsts == sorted(firsts)


def test_seconds_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / "a.mp4", 20), write_variable(tmp_path)]
    for number, message in (
        (0, r"a clip of 4 frames at stride 30\.0 needs frame 90, but the video has 20 frames"),
        (1, r"a clip of 4 frames at stride 1\.2 s needs the frame at 3\.600 s, but .* at 3\.340 s"),
    ):
        recipe = ClipRecipe(num_frames=4, stride_seconds=1.2, short="error")
        with pytest.raises(DecodeError, match=f"^{re.escape(str(paths[number]))}: {message}"):
            VideoClips(paths, recipe)[number]
    assert VideoClips(paths, replace(recipe, stride_seconds=1.0))[1][0].shape[2] == 4


def test_transform_draws_are_addressable(paths: list[Path]) -> None:
    dataset = VideoClips(paths, RECIPE, transform=random_number)
    before = torch.get_rng_state()
    expected = [dataset[i][0] for i in range(6)]
    assert torch.get_rng_state().equal(before)
    assert len(set(expected)) == 6
    loaded = DataLoader(dataset, batch_size=1, num_workers=2, shuffle=True)
    assert {int(i): float(x) for x, i in loaded} == dict(enumerate(expected))


def test_threads_read_as_one_does(paths: list[Path]) -> None:
    dataset = VideoClips(paths, RECIPE, transform=two_numbers)
    expected = [dataset[i][0] for i in range(6)]
    before = torch.get_rng_state()
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda i: dataset[i % 6][0], range(48)))
    assert got == expected * 8
    assert torch.get_rng_state().equal(before)


def test_transform_that_reads_another_sample(paths: list[Path]) -> None:
    alone = VideoClips(paths, RECIPE, transform=random_number)
    nested = VideoClips(paths, RECIPE, transform=lambda clips: (alone[1][0], torch.rand(1).item()))
    assert nested[3][0] == (alone[1][0], alone[3][0])


def test_default_device_changes_nothing(paths: list[Path]) -> None:
    for recipe in (
        RECIPE,
        replace(RECIPE, sampling="uniform"),
        replace(RECIPE, sampling="keyframes"),
        replace(RECIPE, sampling=partial(random_clip_starts, power=0.5)),
        ClipRecipe(num_frames=4, stride_seconds=0.1),
    ):
        expected = VideoClips(paths, recipe, on_error="substitute")[2][0]
        with torch.device("meta"):
            clips = VideoClips(paths, recipe, on_error="substitute")[2][0]
        assert clips.equal(expected)


def test_manifest_gives_labels_and_ids(paths: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "set.csv"
    rows = [f"{path},{'ab'[i % 2]},{i // 3}" for i, path in enumerate(paths)]
    file.write_text("path,label,group\n" + "\n".join(rows))
    for source in (file, str(file), read_manifest(file)):
        dataset = VideoClips(source, RECIPE)
        clips, index, labels, ids = next(iter(DataLoader(dataset, batch_size=6)))
        assert clips.shape == (6, 2, 3, 4, 48, 96)
        assert index.tolist() == list(range(6))
        assert labels.tolist() == [0, 1] * 3
        assert ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.classes == ["a", "b"]


def test_ids_survive_concatenation(paths: list[Path], tmp_path: Path) -> None:
    first = VideoClips(paths[:2], RECIPE)
    second = VideoClips(paths[2:], RECIPE, id_offset=len(first))
    assert [index for _, index in ConcatDataset([first, second])] == list(range(6))
    assert second[1][0].equal(VideoClips(paths[2:], RECIPE)[1][0])
    file = tmp_path / "set.csv"
    file.write_text("path,group\n" + "\n".join(f"{path},{i // 2}" for i, path in enumerate(paths)))
    third = VideoClips(file, RECIPE, id_offset=100)
    assert [(index, int(number)) for _, index, _, number in third] == [
        (100 + i, 100 + i // 2) for i in range(6)
    ]
    with pytest.raises(ValueError, match=r"^`id_offset` must be at least 0; got -1$"):
        VideoClips(paths, RECIPE, id_offset=-1)


def test_raise_names_the_file_also_from_a_worker(broken: list[Path]) -> None:
    dataset = VideoClips(broken, RECIPE)
    message = f"{broken[1]}: the file is empty"
    with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
        dataset[1]
    with pytest.raises(DecodeError, match=re.escape(message)), workers_end():
        list(DataLoader(dataset, num_workers=1))
    # Once here and once in the worker, which had begun to read ahead.
    assert [f.cause for f in dataset.failures() if f.index == 1] == [message] * 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_substitute_keeps_the_length_and_tells_the_index(
    num_workers: int, broken: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = VideoClips(broken, RECIPE, on_error="substitute")
    assert len(dataset) == 6
    seen = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        batches = list(DataLoader(dataset, batch_size=2, num_workers=num_workers))
        assert [len(indices) for _, indices in batches] == [2, 2, 2]
        indices = torch.cat([indices for _, indices in batches])
        assert indices[[0, 2, 3, 5]].tolist() == [0, 2, 3, 5]
        assert not {1, 4} & set(indices.tolist())
        seen.append(indices.tolist())
        causes = {(f.epoch, f.index): (f.path, f.cause) for f in dataset.failures()}
        for index, cause in ((1, "the file is empty"), (4, "No such file or directory")):
            path = str(broken[index])
            assert causes[epoch, index] == (path, f"{path}: {cause}")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        dataset.set_epoch(0)
    assert caplog.messages == [
        "epoch 1: 2 of 6 videos failed:"
        f"\n  {broken[1]}: the file is empty\n  {broken[4]}: No such file or directory"
    ]
    # The substitutes, too, depend on (seed, epoch, index) alone.
    again = [dataset[i][1] for i in range(6)]
    assert again == seen[0]


def test_skip_leaves_videos_out_of_the_batch(broken: list[Path]) -> None:
    dataset = VideoClips(broken, RECIPE, on_error="skip")
    assert not dataset[1]
    loader = DataLoader(dataset, batch_size=3, collate_fn=collate_clips)
    assert [indices.tolist() for _, indices in loader] == [[0, 2], [3, 5]]
    message = f"none of the 1 videos of a batch can be read: {broken[1]}: the file is empty"
    with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
        list(DataLoader(dataset, batch_size=1, collate_fn=collate_clips))
    many = VideoClips([broken[1]] * 5, RECIPE, on_error="skip")
    message = (
        f"none of the 5 videos of a batch can be read: {f'{broken[1]}: the file is empty; ' * 3}..."
    )
    with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
        list(DataLoader(many, batch_size=5))


def refuse(clips: torch.Tensor) -> None:
    raise KeyError("cls")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("on_error", ["raise", "skip", "substitute"])
def test_error_of_a_transform_names_the_video(
    on_error: str, num_workers: int, paths: list[Path]
) -> None:
    dataset = VideoClips(paths[:1], RECIPE, transform=refuse, on_error=on_error)
    message = re.escape(f"{paths[0]}: KeyError: 'cls'")
    with pytest.raises(RuntimeError, match=message) as caught:
        next(iter(DataLoader(dataset, num_workers=num_workers)))
    assert not isinstance(caught.value, DecodeError)
    assert not dataset.failures()


@pytest.mark.parametrize("start", [-1, 0.5])
def test_sampling_that_gives_no_frames_names_the_video(start: float, paths: list[Path]) -> None:
    for recipe in (RECIPE, ClipRecipe(num_frames=2, stride_seconds=0.1)):
        recipe = replace(recipe, sampling=lambda *_, **__: torch.tensor([start]))
        message = re.escape(f"{paths[0]}: ") + r"(Value|Type)Error: `starts` must be "
        with pytest.raises(RuntimeError, match=f"^{message}"):
            VideoClips(paths, recipe, on_error="skip")[0]


def test_set_of_nothing_but_bad_files_ends(tmp_path: Path) -> None:
    missing = [tmp_path / f"{i}.mp4" for i in range(30)]
    dataset = VideoClips(missing, RECIPE, on_error="substitute", failure_log=tmp_path / "log")
    with pytest.raises(DecodeError, match="No such file or directory"):
        dataset[3]
    failures = dataset.failures()
    assert len(failures) == 11
    assert len({f.index for f in failures}) == 11
    assert failures[0] == Failure(0, 3, str(missing[3]), f"{missing[3]}: No such file or directory")
    del dataset
    assert len((tmp_path / "log").read_text().splitlines()) == 11  # the user's own file stays
    again = VideoClips(missing, RECIPE, on_error="skip", failure_log=tmp_path / "log")
    assert not again[7]
    assert [failure.index for failure in again.failures()] == [7]


# PyTorch's handler of the signal raises wherever this process is, also in a finalizer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_death_of_a_worker_names_what_it_was_reading(paths: list[Path], tmp_path: Path) -> None:
    deadly = write_video(tmp_path / "deadly.mp4", 59)
    dataset = VideoClips([*paths, deadly], replace(RECIPE, sampling=die_of_59_frames))
    message = f"{deadly}: the process that read it died"
    for _ in range(2):
        with (
            pytest.raises(DecodeError, match=f"^{re.escape(message)}$") as caught,
            dataset.name_crashes(),
        ):
            list(DataLoader(dataset, num_workers=2))
        assert caught.value.__cause__ is not None
        assert dataset.failures()[-1] == Failure(0, 6, str(deadly), message)
    # Errors of another kind pass as they are, also when a worker died before.
    other = RuntimeError("of the training step")
    with pytest.raises(RuntimeError) as caught, dataset.name_crashes():
        raise other
    assert caught.value is other


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_workers_run_few_threads(paths: list[Path]) -> None:
    dataset = VideoClips(paths, RECIPE, transform=count_threads)
    counts = [int(count) for count, _ in DataLoader(dataset, batch_size=1, num_workers=2)]
    assert max(counts) <= 4


def test_folder_of_images_is_a_video(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        suffix, codec, pix_fmt = (
            (".png", "png", "rgb24") if number % 2 else (".JPG", "mjpeg", "yuvj420p")
        )
        with av.open(str(tmp_path / "image"), "w", format="image2") as output:
            stream = output.add_stream(codec, rate=1)
            stream.height, stream.width, stream.pix_fmt = 48, 96, pix_fmt
            frame = av.VideoFrame.from_ndarray(barcode(number), format="rgb24")
            output.mux(stream.encode(frame))
            output.mux(stream.encode())
        (tmp_path / "image").rename(folder / f"100% frame {number}{suffix}")
    dataset = VideoClips([folder], ClipRecipe(num_frames=3, stride=4, sampling="uniform"))
    clips, _ = dataset[0]
    assert read_barcodes(clips).tolist() == [[0, 4, 8], [3, 7, 11]]

    with pytest.raises(DecodeError, match="the frame rate is unknown, so `stride_seconds` has no"):
        VideoClips([folder], ClipRecipe(num_frames=3, stride_seconds=0.1))[0]
    (folder / "100% frame 5.png").write_bytes(b"no image")
    with pytest.raises(DecodeError, match=r"/100% frame 5\.png: "):
        VideoClips([folder], ClipRecipe(num_frames=12, stride=1))[0]


def test_indices_are_those_of_a_sequence(paths: list[Path]) -> None:
    dataset = VideoClips(paths, RECIPE)
    assert dataset[-1][1] == 5
    assert dataset[torch.tensor(2)][1] == 2
    for index in (6, -7):
        with pytest.raises(IndexError):
            dataset[index]
    for index in (slice(0, 1), 1.0, "1", None, [1]):
        with pytest.raises(TypeError, match=r"^`index` must be a whole number in \[-6, 6\); got "):
            dataset[index]


def test_epochs_that_are_none(paths: list[Path]) -> None:
    dataset = VideoClips(paths, RECIPE)
    with pytest.raises(ValueError, match=r"^`epoch` must be at least 0; got -1$"):
        dataset.set_epoch(-1)
    with pytest.raises(TypeError):
        dataset.set_epoch(0.5)
    assert len(codes(dataset)) == 6


def test_copy_keeps_the_failures_and_is_alive(broken: list[Path]) -> None:
    dataset = VideoClips(broken, RECIPE, on_error="skip")
    assert not dataset[1]
    copied = copy.deepcopy(dataset)
    recorded = dataset.failures()
    assert copied.failures() == recorded != []
    del dataset
    gc.collect()
    assert copied.failures() == recorded
    assert not copied[4]
    assert [failure.index for failure in copied.failures()] == [1, 4]
    # Its workers see its epoch, as those of the first do.
    alone = []
    loader = DataLoader(copied, 3, num_workers=1, persistent_workers=True, collate_fn=collate_clips)
    for epoch in (0, 1):
        copied.set_epoch(epoch)
        alone.append(codes(copied, collate_fn=collate_clips))
        got = [read_barcodes(clips).tolist() for batch, _ in loader for clips in batch]
        assert got == list(alone[-1].values())
    assert alone[0] != alone[1]


def test_one_long_path_costs_no_memory_for_the_others() -> None:
    tracemalloc.start()
    paths = [f"{i}.mp4" for i in range(20_000)]
    VideoClips(paths, RECIPE)
    before = tracemalloc.get_traced_memory()[0]
    dataset = VideoClips([*paths, "a" * 4000 + ".mp4", "ü\udcff.mp4"], RECIPE)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 3_000_000  # labels, ids and counts are 8 bytes each
    assert dataset.path(19_999) == "19999.mp4"
    assert dataset.path(-2) == "a" * 4000 + ".mp4"
    assert dataset.path(-1) == "ü\udcff.mp4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stride": None}, "exactly one of `stride` and `stride_seconds` must be given; got None"),
        ({"stride_seconds": 1.0}, "exactly one of `stride` and `stride_seconds` must be given"),
        ({"stride": -1}, "`stride` must be above 0 and finite; got -1"),
        ({"num_frames": 0}, "`num_frames` must be at least 1; got 0"),
        ({"clips_per_video": 0}, "`clips_per_video` must be at least 1; got 0"),
        ({"short_side": 0}, "`short_side` must be at least 1; got 0"),
        (
            {"sampling": "centre"},
            "`sampling` must be one of ('random', 'keyframes', 'uniform'); got",
        ),
        ({"short": "pad"}, "`short` must be one of ('loop', 'clamp', 'mirror', 'error'); got"),
    ],
)
def test_arguments_of_a_recipe(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        replace(RECIPE, **arguments)


def test_arguments_of_a_dataset(paths: list[Path]) -> None:
    for arguments, message in (
        ({"seed": -1}, "`seed` must be at least 0; got -1"),
        ({"on_error": "ignore"}, "`on_error` must be one of ('raise', 'substitute', 'skip'); got"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            VideoClips(paths, RECIPE, **arguments)
    with pytest.raises(TypeError, match=r"^`recipe` must be a ClipRecipe\(num.*\); got 8$"):
        VideoClips(paths, 8)
