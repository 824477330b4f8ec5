"""`TarClips`: shards in order, for any number of workers and ranks, and what is broken in them."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from distributed_workers import places_in_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import workers_end
from torch.utils.data import ChainDataset, DataLoader
from videos import read_barcodes, write_video

from iivcl.data import ClipRecipe, DecodeError, Failure, TarClips, collate_clips
from iivcl.data._shards import TarSample, list_samples
from iivcl.testing import run_on_ranks

RECIPE = ClipRecipe(num_frames=4, stride=3, short_side=48)
SHARD = 1 << 32  # from a sample of one shard to the same of the next


def add_link(archive: tarfile.TarFile, name: str, target: str, kind: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    archive.addfile(info)


def add_file(
    archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE
) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    archive.addfile(info, io.BytesIO(content))


def samples_in(shard: Path) -> list[TarSample]:
    return list_samples(str(shard), "first_dot")


def write_shard(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            add_file(archive, name, content)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", 60).read_bytes()


@pytest.fixture(scope="module")
def folder(video: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 3, 5, 4 and 4 samples."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, size in enumerate((3, 5, 4, 4)):
        files = [
            (f"{shard}{i}.{x}", video if x == "mp4" else str(i).encode())
            for i in range(size)
            for x in ("cls", "mp4")
        ]
        write_shard(folder / f"{shard + 8}.tar", files)
    return folder


EVERYTHING = [(s, n) for s, size in enumerate((3, 5, 4, 4)) for n in range(size)]


def read(dataset: TarClips, batch_size: int = 2, **loading: Any) -> list[tuple[int, int, str]]:
    """Shard, number and clips of every sample, in the order in which a loader gives them."""
    loader = DataLoader(dataset, batch_size, **loading)
    return [
        (*divmod(int(index), SHARD), str(read_barcodes(one).tolist()))
        for clips, indices, *_ in loader
        for one, index in zip(clips, indices, strict=True)
    ]


def test_an_epoch_is_every_sample_once_whatever_the_workers(folder: Path) -> None:
    dataset = TarClips(folder, RECIPE, batch_size=2, seed=5)
    assert len(dataset) == 16
    first = read(dataset)
    assert sorted((shard, number) for shard, number, _ in first) == EVERYTHING
    assert len({clips for *_, clips in first}) > 8
    for num_workers in (1, 2):
        assert read(dataset, num_workers=num_workers) == first
    dataset.set_epoch(1)
    second = read(dataset)
    assert sorted((shard, number) for shard, number, _ in second) == EVERYTHING
    assert [s[:2] for s in second] != [s[:2] for s in first]
    assert sorted(second) != sorted(first)  # other clips of the same videos
    in_order = TarClips(folder, RECIPE, batch_size=2, shuffle_buffer=0, seed=5)
    assert [(shard, number) for shard, number, _ in read(in_order, num_workers=2)] == EVERYTHING


def test_epoch_reaches_running_workers(folder: Path) -> None:
    dataset = TarClips(folder, RECIPE, batch_size=3)
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(read(dataset, 3))
    loader = DataLoader(dataset, 3, num_workers=2, persistent_workers=True)
    for epoch in (1, 0):
        dataset.set_epoch(epoch)
        indices = [int(i) for _, batch in loader for i in batch]
        assert indices == [shard * SHARD + number for shard, number, _ in epochs[epoch]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_run_goes_on_at_the_sample_where_it_stopped(num_workers: int, folder: Path) -> None:
    dataset = TarClips(folder, RECIPE, batch_size=2)
    dataset.set_epoch(3)
    whole = read(dataset)
    for start in (0, 2, 6, 14, 16):
        again = TarClips(folder, RECIPE, batch_size=2)
        again.set_epoch(3, start=start)
        assert read(again, num_workers=num_workers) == whole[start:]


@pytest.mark.parametrize("shuffle_buffer", [0, 1, 3, 1000])
def test_ranks_share_the_shards_and_give_as_much_each(shuffle_buffer: int, folder: Path) -> None:
    for epoch in range(3):
        ranks = [
            TarClips(
                folder,
                RECIPE,
                batch_size=2,
                shuffle_buffer=shuffle_buffer,
                rank=rank,
                world_size=2,
            )
            for rank in range(2)
        ]
        for dataset in ranks:
            dataset.set_epoch(epoch)
        parts = [read(dataset) for dataset in ranks]
        assert [len(part) for part in parts] == [8, 8]
        shards = [Counter(shard for shard, *_ in part) for part in parts]
        sizes = [sum((3, 5, 4, 4)[s] for s in counts) for counts in shards]
        if sizes == [8, 8]:  # neither had to read on in shards of the other
            assert not shards[0].keys() & shards[1].keys()
            assert sorted(s[:2] for part in parts for s in part) == EVERYTHING


def test_rank_that_runs_out_reads_on_with_other_clips(folder: Path) -> None:
    dataset = TarClips(folder / "8.tar", RECIPE, batch_size=2, length=7, shuffle_buffer=0)
    samples = read(dataset)
    assert [number for _, number, _ in samples] == [0, 1, 2, 0, 1, 2, 0]
    assert len({clips for _, number, clips in samples if number == 0}) == 3
    assert read(dataset, num_workers=2) == samples


def test_default_device_and_iterators_play_no_part(folder: Path) -> None:
    expected = [index for _, index in TarClips(folder, RECIPE, batch_size=2)]
    shards = sorted(folder.glob("*.tar"), key=lambda path: int(path.stem))
    with torch.device("meta"):
        assert [index for _, index in TarClips(iter(shards), RECIPE, batch_size=2)] == expected


def test_shuffled_order_stays_within_the_buffer(folder: Path) -> None:
    dataset = TarClips(folder, RECIPE, batch_size=1, shuffle_buffer=3)
    shuffled = [(shard, number) for shard, number, _ in read(dataset, 1)]
    shards = dict.fromkeys(shard for shard, _ in shuffled)  # none is smaller than the buffer
    order = [(shard, number) for shard in shards for number in range((3, 5, 4, 4)[shard])]
    assert shuffled != order
    assert all(order.index(sample) <= place + 2 for place, sample in enumerate(shuffled))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_layout_is_that_of_webdataset(video: bytes, tmp_path: Path) -> None:
    pattern = str(tmp_path / "set-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as writer:
        for i in range(5):
            key = f"walk/{i:05d}"
            writer.write({"__key__": key, "mp4": video, "json": {"i": i}, "seg.txt": "x"})
    shards = sorted(map(str, tmp_path.glob("*.tar")))
    dataset = TarClips(
        shards,
        RECIPE,
        batch_size=5,
        shuffle_buffer=0,
        describe=lambda files: (json.loads(files["json"])["i"], sorted(files)),
    )
    ours = [(dataset.path(index), described) for _, index, described in dataset]
    theirs = list(webdataset.WebDataset(shards, shardshuffle=False))
    gc.collect()
    assert ours == [
        (
            f"{sample['__url__']}/{sample['__key__']}.mp4",
            (json.loads(sample["json"])["i"], ["json", "seg.txt"]),
        )
        for sample in theirs
    ]
    assert len(ours) == 5


NAMES = st.from_regex(r"(d/|d\.e/)?[ab]{1,2}(\.(mp4|MP4|cls|0)){0,2}", fullmatch=True)


@settings(deadline=None)  # it writes files
@given(st.lists(NAMES, unique_by=str.lower))
def test_names_are_grouped_as_webdataset_groups_them(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shard = write_shard(Path(folder, "a.tar"), [(name, b"") for name in names])
        ours = [(s.key, sorted(s.files)) for s in samples_in(shard) if not s.damage]
    members = [{"fname": name, "data": b"", "__url__": ""} for name in names]
    theirs = webdataset.tariterators.group_by_keys(members)
    assert ours == [
        (sample["__key__"], sorted(sample.keys() - {"__key__", "__url__"})) for sample in theirs
    ]


def test_members_that_are_no_samples_are_passed_over(video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("clips")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("clips/._a.mp4", "clips/a.MP4", "clips/a.txt", "b/a.part.2.webm", "b/a.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(video)
            archive.addfile(info, io.BytesIO(video))
    assert [(s.key, sorted(s.files), s.videos) for s in samples_in(path)] == [
        ("clips/a", ["mp4", "txt"], ["mp4"]),
        ("b/a", ["part.2.webm", "txt"], ["part.2.webm"]),
    ]


def test_links_are_read_as_what_they_link_to(video: bytes, tmp_path: Path) -> None:
    other = write_video(tmp_path / "b.mp4", 30).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add_link(archive, "first/0.mp4", "../later/x.mp4", tarfile.SYMTYPE)  # what comes later
        add_file(archive, "first/1.mp4", video)
        add_link(archive, "first/2.mp4", "./first/1.mp4", tarfile.LNKTYPE)
        add_link(archive, "first/3.mp4", "2.mp4", tarfile.SYMTYPE)  # a link to a link
        add_file(archive, "later/x.mp4", other)
        add_link(archive, "later/y.mp4", "x.mp4", tarfile.SYMTYPE)
        add_file(archive, "first/1.mp4", other)  # replaces the name, not what links hold
        add_link(
            archive, "later/x.mp4", "later/x.mp4", tarfile.LNKTYPE
        )  # as `tar` adds a file twice
    recipe = ClipRecipe(num_frames=30, stride=1, short_side=48, sampling="uniform")
    dataset = TarClips(tmp_path / "a.tar", recipe, batch_size=1, shuffle_buffer=0)
    frames = [int(read_barcodes(clips).max()) for clips, _ in dataset]
    assert frames == [29, 59, 59, 59, 29, 29, 29, 29]
    assert not dataset.failures()


def test_real_links_of_a_folder_are_read(video: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(video)
    os.link(folder / "a.mp4", folder / "b.mp4")
    (folder / "c.mp4").symlink_to("a.mp4")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, "set")
    with tarfile.open(tmp_path / "a.tar") as archive:
        types = [member.type for member in archive]
    assert set(types) == {tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE}
    dataset = TarClips(tmp_path / "a.tar", RECIPE, batch_size=1)
    assert len(list(dataset)) == 3
    assert not dataset.failures()


NO_FILE = "which is no file of the archive"
ANOTHER = 'the sample has another video, which is read; `name_end="last_dot"` parts them'


def test_what_is_left_out_is_a_recorded_failure(video: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add_file(archive, "README", b"")
        add_file(archive, "talk.part0.mp4", video)
        add_file(archive, "talk.part1.mp4", video)
        add_file(archive, "twice.mp4", b"no video")
        add_file(archive, "twice.MP4", video)
        add_file(archive, "lone.mp4", video)
        add_link(archive, "lone.cls", "../outside.cls", tarfile.SYMTYPE)
        add_link(archive, "lone.txt", "missing.txt", tarfile.LNKTYPE)
        add_link(archive, "round.mp4", "round.avi", tarfile.SYMTYPE)
        add_link(archive, "round.avi", "round.mp4", tarfile.SYMTYPE)
        add_file(archive, "LICENSE", b"")
    dataset = TarClips(path, RECIPE, batch_size=1, shuffle_buffer=0, on_error="skip")
    assert [s[1] if s else None for s in dataset] == [0, 1, 2, None]
    assert [(f.index, f.path.removeprefix(f"{path}/")) for f in dataset.failures()] == [
        (0, "README"),
        (0, "talk.part1.mp4"),
        (1, "twice.MP4"),
        (2, "lone.cls"),
        (2, "lone.txt"),
        (3, "round.mp4"),
        (3, "round.avi"),
        (3, "LICENSE"),
        (3, "round"),
    ]
    assert [f.cause.removeprefix(f.path) for f in dataset.failures()] == [
        ": a name without a dot belongs to no sample",
        f": {ANOTHER}",
        ": two files of the sample end in .mp4; the last is read",
        f": a link to ../outside.cls, {NO_FILE}",
        f": a link to missing.txt, {NO_FILE}",
        f": a link to round.avi, {NO_FILE}",
        f": a link to round.mp4, {NO_FILE}",
        ": a name without a dot belongs to no sample",
        ": the sample holds no video",
    ]


def test_names_may_end_at_the_last_dot(video: bytes, tmp_path: Path) -> None:
    names = ("talk.part0.mp4", "talk.part0.cls", "talk.part1.mp4", "b.c/._d.mp4", "b.c/d.mp4")
    path = write_shard(tmp_path / "a.tar", [(name, video) for name in names])
    dataset = TarClips(path, RECIPE, batch_size=1, shuffle_buffer=0, name_end="last_dot")
    assert [dataset.path(index) for _, index in dataset] == [
        f"{path}/{name}" for name in ("talk.part0.mp4", "talk.part1.mp4", "b.c/d.mp4")
    ]
    assert not dataset.failures()
    described = TarClips(path, RECIPE, batch_size=1, shuffle_buffer=0, describe=sorted)
    assert [names for *_, names in described] == [["part0.cls", "part1.mp4"], []]
    assert not described.failures()  # all that a sample holds has been handed on


def test_file_with_holes_is_read_with_them(tmp_path: Path) -> None:
    """GNU tar's --sparse stores the parts of a file that hold anything, and where they belong."""
    video = write_video(tmp_path / "a.mp4", 60).read_bytes()
    first, second = video[:512], video[1024:]
    path = tmp_path / "a.tar"
    hole = video[:512] + bytes(512) + video[1024:]  # what must come back
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        info = tarfile.TarInfo("a.mp4")
        info.type, info.size = tarfile.GNUTYPE_SPARSE, len(first) + len(second)
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        numbers = (0, 512, 1024, len(second))  # place and size of each part
        for place, number in zip((386, 398, 410, 422), numbers, strict=True):
            header[place : place + 12] = b"%011o\0" % number
        header[483:495] = b"%011o\0" % len(hole)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        archive.fileobj.write(header + first + second + bytes(-(len(first + second)) % 512))
        archive.offset = archive.fileobj.tell()
    [sample] = samples_in(path)
    assert sample.read(["mp4"]) == {"mp4": hole}


def test_archive_without_a_usable_name(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", [("one", b""), ("two", b"")])
    message = f"{path}: no name in it has a dot, such as 'one'"
    with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
        list(TarClips(path, RECIPE, batch_size=1))


def test_offset_parts_the_indices_of_two_datasets(folder: Path) -> None:
    first = TarClips(folder, RECIPE, batch_size=2)
    second = TarClips(folder, RECIPE, batch_size=2, id_offset=1 << 40)
    indices = [int(index) for _, index in ChainDataset([first, second])]
    assert len(set(indices)) == 32
    assert second.path(max(indices) - (1 << 40)) == first.path(max(indices) - (1 << 40))


@pytest.fixture
def broken(video: bytes, tmp_path: Path) -> list[Path]:
    """Two shards; of 4 and 3 entries, the ones numbered 1, 2 and 1, 2 are bad."""
    first = write_shard(
        tmp_path / "a.tar",
        [("0.mp4", video), ("1.mp4", b"no video"), ("2.cls", b"7"), ("3.mp4", video)],
    )
    second = write_shard(tmp_path / "b.tar", [(f"{i}.mp4", video) for i in range(4)])
    half = samples_in(second)[1].files["mp4"]
    second.write_bytes(second.read_bytes()[: half.offset_data + half.size // 2])
    return [first, second]


CAUSES = {
    1: "a.tar/1.mp4: Invalid data found when processing input",
    2: "a.tar/2: the sample holds no video",
    SHARD + 1: "b.tar/1.mp4: the archive ends in the middle of it",
    SHARD + 2: "b.tar: no sound tar archive: unexpected end of data",
}


def test_everything_broken_has_its_error(broken: list[Path], tmp_path: Path) -> None:
    dataset = TarClips(
        broken,
        RECIPE,
        batch_size=1,
        shuffle_buffer=0,
        on_error="skip",
        failure_log=tmp_path / "log",
    )
    samples = list(dataset)
    assert [divmod(s[1], SHARD) if s else None for s in samples] == [
        *((0, 0), None, None, (0, 3)),
        *((1, 0), None, None),
    ]
    assert {f.index: f for f in dataset.failures()} == {
        index: Failure(0, index, f"{tmp_path}/{cause.split(': ')[0]}", f"{tmp_path}/{cause}")
        for index, cause in CAUSES.items()
    }
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=collate_clips)
    assert [len(indices) for _, indices in loader] == [2, 1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_raise_names_the_archive_and_the_file(num_workers: int, broken: list[Path]) -> None:
    dataset = TarClips(broken, RECIPE, batch_size=1, shuffle_buffer=0)
    message = re.escape(str(broken[0].parent / CAUSES[1]))
    with pytest.raises(DecodeError, match=message), workers_end():
        list(DataLoader(dataset, num_workers=num_workers))


def test_substitutes_come_next_in_the_order(broken: list[Path], video: bytes) -> None:
    options = {"batch_size": 1, "on_error": "substitute"}
    dataset = TarClips(broken, RECIPE, shuffle_buffer=0, **options)
    samples = read(dataset, 1)
    # The last one's substitute is what would come after it: the first of the next turn.
    assert [s[:2] for s in samples] == [(0, 0), (0, 3), (0, 3), (0, 3), (1, 0), (0, 0), (0, 0)]
    assert samples[1] == samples[2] == samples[3]
    assert samples[0] != samples[5] == samples[6]
    assert read(dataset, 1, num_workers=2) == samples
    dataset = TarClips(broken, RECIPE, **options)
    assert len(read(dataset, 1)) == 7
    bad = write_shard(broken[0].parent / "bad.tar", [(f"{i}.mp4", b"no video") for i in range(20)])
    dataset = TarClips(bad, RECIPE, **options)
    with pytest.raises(DecodeError, match="Invalid data found"):
        list(dataset)
    assert len(dataset.failures()) == 11


def test_error_of_a_description_names_shard_and_sample(tmp_path: Path, video: bytes) -> None:
    names = ("0.mp4", "0.cls", "1.mp4", "2.mp4", "2.cls")
    shard = write_shard(tmp_path / "a.tar", [(name, video) for name in names])
    dataset = TarClips(
        shard,
        RECIPE,
        batch_size=1,
        shuffle_buffer=0,
        describe=lambda files: len(files["cls"]),
        on_error="skip",
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(f'{shard}/1.mp4: KeyError')}: 'cls'$"):
        list(dataset)


def test_archive_that_vanishes_has_its_error(tmp_path: Path, video: bytes) -> None:
    shard = write_shard(tmp_path / "a.tar", [(f"{i}.mp4", video) for i in range(4)])
    dataset = TarClips(shard, RECIPE, batch_size=1, shuffle_buffer=0, on_error="skip")
    samples = iter(dataset)
    assert next(samples)[1] == 0
    shard.unlink()
    assert [bool(sample) for sample in samples] == [False] * 3
    cause = f"{shard}/1.mp4: No such file or directory"
    assert dataset.failures()[0] == Failure(0, 1, f"{shard}/1.mp4", cause)
    assert dataset.path(3) == str(shard)


@pytest.mark.slow
def test_ranks_are_those_of_the_process_group(folder: Path) -> None:
    parts = run_on_ranks(2, places_in_shards, folder)
    for rank, part in enumerate(parts):
        alone = TarClips(folder, RECIPE, batch_size=2, rank=rank, world_size=2)
        assert part == [index for _, index in alone]


def test_archives_that_are_none(tmp_path: Path, video: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(video)
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(tmp_path / "a.tar", "a.mp4")
    (tmp_path / "c.tar").touch()
    dataset = TarClips(tmp_path, RECIPE, batch_size=1, shuffle_buffer=0, on_error="skip")
    assert [bool(sample) for sample in dataset] == [False] * 3
    causes = ["invalid header", "invalid header", "empty file"]
    assert [f.cause for f in dataset.failures()] == [
        f"{tmp_path}/{name}.tar: no sound tar archive: {cause}"
        for name, cause in zip("abc", causes, strict=True)
    ]
    empty = write_shard(tmp_path / "d.tar", [])
    with pytest.raises(DecodeError, match=r"^the shards of rank 0 hold no samples$"):
        list(TarClips(empty, RECIPE, batch_size=1, length=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"shuffle_buffer": -1}, "`shuffle_buffer` must be at least 0; got -1"),
        ({"id_offset": -1}, "`id_offset` must be at least 0; got -1"),
        (
            {"name_end": "dot"},
            "`name_end` must be one of ('first_dot', 'last_dot'); got 'dot'",
        ),
        ({"length": 0}, "`length` must be at least 1; got 0"),
        ({"rank": 2, "world_size": 2}, "`rank` must be in [0, `world_size`); got 2 and 2"),
        ({"world_size": 5}, "`shards`: 5 ranks need at least as many shards; got 4"),
        ({"seed": -1}, "`seed` must be at least 0; got -1"),
    ],
)
def test_arguments(arguments: dict, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TarClips(folder, RECIPE, **{"batch_size": 1} | arguments)


def test_shards_and_starts_that_do_not_exist(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^`shards`: no such file: x\.tar$"):
        TarClips(["x.tar"], RECIPE, batch_size=1)
    message = f"`shards`: there are no .tar files in {Path(__file__).parent}"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        TarClips(Path(__file__).parent, RECIPE, batch_size=1)
    with pytest.raises(ValueError, match=r"^`start` must be in \[0, 16\]; got 17$"):
        TarClips(folder, RECIPE, batch_size=1).set_epoch(0, start=17)
    with pytest.raises(ValueError, match=r"^`shards`: 0 samples for 1 ranks$"):
        TarClips(write_shard(folder.parent / "none.tar", []), RECIPE, batch_size=1)


def test_nothing_of_a_video_is_written_to_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TarClips(folder, RECIPE, batch_size=1, failure_log=tmp_path / "log")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))  # whatever asked for a file would fail
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    clips, _ = next(iter(dataset))
    assert clips.dtype == torch.uint8
    assert not list(tmp_path.iterdir())
