"""Batches of clips: what is skipped, sizes that differ, ids and indices across datasets."""

from __future__ import annotations

import copy
import gc
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loading import workers_end
from torch.utils.data import ConcatDataset, DataLoader, Subset
from videos import write_video

from iivcl import NNSupportQueue, augment
from iivcl.data import ClipRecipe, DecodeError, TarClips, VideoClips, collate_clips

RECIPE = ClipRecipe(num_frames=2, stride=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos 0 and 1 of one size, 2 of another, 3 that cannot be read; all of them in a shard."""
    folder = tmp_path_factory.mktemp("set")
    for name, height in (("0", 48), ("1", 48), ("2", 64)):
        write_video(folder / f"{name}.mp4", 8, height=height)
    (folder / "3.mp4").write_bytes(b"no video")
    with tarfile.open(folder / "a.tar", "w") as archive:
        for name in "0123":
            archive.add(folder / f"{name}.mp4", f"{name}.mp4")
    return folder


def paths(folder: Path, names: str) -> list[Path]:
    return [folder / f"{name}.mp4" for name in names]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipped_videos_leave_any_loader_a_smaller_batch(num_workers: int, folder: Path) -> None:
    dataset = VideoClips(paths(folder, "0313"), RECIPE, on_error="skip")
    for read, expected in ((dataset, [[0], [2]]), (Subset(dataset, [2, 0, 1]), [[2, 0], None])):
        batches = iter(DataLoader(read, batch_size=2, num_workers=num_workers))
        for indices in expected:
            if indices is None:
                with pytest.raises(DecodeError, match="none of the 1 videos of a batch can be"):
                    next(batches)
            else:
                assert next(batches)[1].tolist() == indices
    several = ConcatDataset([dataset, dataset])
    loader = DataLoader(several, batch_size=4, collate_fn=collate_clips)
    assert [indices.tolist() for _, indices in loader] == [[0, 2], [0, 2]]


@pytest.mark.parametrize("names", ["03", "30"])
@pytest.mark.parametrize("kind", ["videos", "shard"])
def test_a_loader_that_cannot_leave_them_out_says_what_to_add(
    kind: str, names: str, folder: Path
) -> None:
    options: dict[str, Any] = {"on_error": "skip"}
    clips = VideoClips(paths(folder, names), RECIPE, **options)
    dataset: Any = ConcatDataset([clips, clips])
    if kind == "shard":
        dataset = TarClips(folder / "a.tar", RECIPE, batch_size=4, seed=int(names), **options)
    with pytest.raises(ValueError, match=r"give the DataLoader `collate_fn=iivcl\.data\.collate_"):
        list(DataLoader(dataset, batch_size=4))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_clips_of_several_sizes_say_what_to_add(num_workers: int, folder: Path) -> None:
    dataset = VideoClips(paths(folder, "012"), RECIPE)
    message = (
        "the clips of a batch differ in shape, such as (2, 3, 2, 48, 96) and (2, 3, 2, 64, 96); "
        "to stack them, crop in the dataset: `transform=augment.RandomResizedCrop(112)`. "
    )
    loading = {"batch_size": 3, "num_workers": num_workers}
    for collation in ({}, {"collate_fn": collate_clips}):
        with pytest.raises(ValueError, match=re.escape(message)), workers_end():
            list(DataLoader(dataset, **loading, **collation))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        collate_clips([dataset[0], dataset[2]])
    assert len(list(DataLoader(dataset, batch_size=2))) == 2  # no batch with two sizes
    listed = VideoClips(paths(folder, "012"), RECIPE, transform=list)
    [own] = DataLoader(listed, collate_fn=list, **loading)
    assert [clips[0].shape[2] for clips, _ in own] == [48, 48, 64]
    cropped = VideoClips(paths(folder, "012"), RECIPE, transform=augment.RandomResizedCrop(16))
    [(clips, _)] = DataLoader(cropped, **loading)
    assert clips.shape == (3, 2, 3, 2, 16, 16)


def test_offset_keeps_ids_of_joined_datasets_apart(folder: Path, tmp_path: Path) -> None:
    first = VideoClips(paths(folder, "01"), RECIPE)
    second = VideoClips(paths(folder, "101"), RECIPE, id_offset=len(first))
    [(_, ids)] = DataLoader(ConcatDataset([first, second]), batch_size=5)
    assert ids.tolist() == [0, 1, 2, 3, 4]  # those of the joined dataset itself
    queue = NNSupportQueue(8, 4)
    queue.enqueue(torch.eye(5, 4) + 1, ids)
    found = queue.nearest(torch.eye(5, 4) + 1, 4, ids=ids)
    assert found.valid.all()  # each of the others, none taken for itself
    assert second.path(0) == str(folder / "1.mp4")

    file = tmp_path / "set.csv"
    file.write_text(f"path,label,group\n{folder}/0.mp4,7,g\n{folder}/1.mp4,8,g\n")
    listed = VideoClips(file, RECIPE, id_offset=10)
    assert [sample[1:] for sample in (listed[0], listed[1])] == [(10, 7, 10), (11, 8, 10)]
    with pytest.raises(ValueError, match=r"^`id_offset` must be at least 0; got -1$"):
        VideoClips(file, RECIPE, id_offset=-1)


def test_failures_and_substitutes_keep_their_places_under_an_offset(folder: Path) -> None:
    dataset = VideoClips(paths(folder, "03"), RECIPE, on_error="substitute", id_offset=5)
    assert [index for _, index in (dataset[0], dataset[1])] == [5, 5]
    [failure] = dataset.failures()
    assert dataset.path(failure.index) == failure.path == str(folder / "3.mp4")


@pytest.mark.parametrize("index", [slice(0, 1), 1.0, "0", None, [0]])
def test_index_of_another_type_is_refused(index: object, folder: Path) -> None:
    dataset = VideoClips(paths(folder, "01"), RECIPE)
    with pytest.raises(TypeError, match=r"^`index` must be a whole number in \[-2, 2\); got "):
        dataset[index]


def test_index_may_be_any_whole_number_within(folder: Path) -> None:
    dataset = VideoClips(paths(folder, "01"), RECIPE)
    assert [dataset[i][1] for i in (-2, torch.tensor(1), True)] == [0, 1, 1]
    for index in (2, -3):
        with pytest.raises(IndexError):
            dataset[index]
    assert [index for _, index in dataset] == [0, 1]  # the protocol of sequences ends by it


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: VideoClips(paths(folder, "03"), RECIPE, on_error="skip"),
        lambda folder: TarClips(folder / "a.tar", RECIPE, batch_size=1, on_error="skip"),
    ],
    ids=["videos", "shards"],
)
def test_deep_copy_keeps_the_failures_and_reaches_its_workers(
    make: Callable[[Path], VideoClips | TarClips], folder: Path
) -> None:
    dataset = make(folder)
    samples = list(dataset)
    assert not all(samples)
    before = dataset.failures()
    assert len(before) == 1
    twin = copy.deepcopy(dataset)
    del dataset
    gc.collect()
    assert twin.failures() == before
    workers = {"num_workers": 1, "persistent_workers": True}
    loader = DataLoader(twin, None, **workers)
    for epoch in (1, 2):
        twin.set_epoch(epoch)
        assert len(list(loader)) == len(twin)
        assert {failure.epoch for failure in twin.failures()} == set(range(epoch + 1))
