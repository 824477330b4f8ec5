"""An iterable dataset of clips in tar shards."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from iivcl import distributed
from iivcl._checks import check_at_least, check_choice
from iivcl.data._container import DecodeError, StrPath
from iivcl.data._open_video import open_video
from iivcl.data._pictures import natural_key
from iivcl.data._readings import Failure, OnError, Readings, Shared
from iivcl.data._recipe import ClipRecipe, Draws
from iivcl.data._shards import NameEnd, TarSample, list_samples

__all__ = ["TarClips"]

_Place = tuple[TarSample, tuple[int, int, int]]  # with its address: epoch, turn, index
_SHARD_BITS = 32  # a sample's index is its shard's number above, its own number in it below


class TarClips(IterableDataset[Any]):
    """Clips of videos in tar archives of the WebDataset layout, for sets that are read in order.

    A sample is the files of one archive that follow each other and share their name up to the
    first dot, such as ``000017.mp4`` and ``000017.json``. Links to files of the same archive are
    read as these files. Files that are left out, such as the second video of a sample, are among
    `failures`. Archives are not compressed; they are opened for the headers, and then each video is
    read into memory as it is needed.

    Every rank reads its own shards of an epoch, dealt anew each epoch. The order of a rank depends
    on (``seed``, epoch) alone: its workers take whole batches in turn, so their number changes
    nothing. The clips of a sample depend on (``seed``, epoch, sample) alone.

    Args:
        shards: Archives; or one; or a folder, whose ``.tar`` files are taken in natural order.
        recipe: Which clips are taken of a video, and how they are read.
        batch_size: Batch size of the DataLoader that reads this.
        transform: Called with the (V, C, T, H, W) uint8 clips; its result is returned instead.
        describe: Called with the other files of a sample, from the rest of the name to the
            content; its result ends the sample: ``lambda files: int(files["cls"])``.
        name_end: Which dot ends the common part of the names. With the second, ``talk.0.mp4`` and
            ``talk.1.mp4`` are two samples; with the first they are one, of which one video is read.
        shuffle_buffer: The next sample is drawn from this many; they wait as places in archives,
            which takes little memory. With 0 the shards and samples come in their order.
        length: Samples of every rank per epoch, the same for all so that none waits for another. A
            rank that has read all its shards reads on in others; one that has not, stops. By
            default the number of samples over the number of ranks, for which the headers of all
            shards are read once.
        on_error: What happens when a video cannot be read: ``"raise"`` raises the `DecodeError`;
            ``"substitute"`` returns the next sample of the order that can be read, and raises
            after 10 that cannot; ``"skip"`` gives a false value, which `collate_clips`
            leaves out.
        failure_log: File to which every failure is appended as a JSON line.
        seed: Seed of the order, the clip starts and the transform.
        id_offset: Added to the index that is returned, so that indices of several datasets differ.
        rank: Which of the ranks this is; by default that of the process group.
        world_size: Number of ranks; by default that of the process group.

    Returns:
        Of iterating: (clips, index), and with ``describe`` (clips, index, description). The index
        is an integer that belongs to the sample, whatever the order, and serves as its id in a
        queue.

    Raises:
        FileNotFoundError: A shard does not exist, or a folder holds none.
        ValueError: There are fewer shards than ranks, no samples, or an argument is out of range.
        RuntimeError: Reading a sample, ``transform`` or ``describe`` raised an error; the message
            names shard and sample.

    Example:
        >>> import tarfile, tempfile, torch
        >>> from iivcl.data import ClipRecipe, TarClips, make_synthetic_videos
        >>> folder = tempfile.mkdtemp()
        >>> with tarfile.open(folder + "/0.tar", "w") as archive:
        ...     for number, path in enumerate(make_synthetic_videos(folder + "/videos", 6)):
        ...         archive.add(path, f"{number:06d}.mp4")
        >>> recipe = ClipRecipe(num_frames=4, stride=2)
        >>> dataset = TarClips(folder, recipe, batch_size=2)
        >>> loader = torch.utils.data.DataLoader(dataset, batch_size=2)
        >>> [tuple(clips.shape) for clips, index in loader]
        [(2, 2, 3, 4, 48, 48), (2, 2, 3, 4, 48, 48), (2, 2, 3, 4, 48, 48)]

    Source:
        Aizman et al., "High Performance I/O For Large Scale Deep Learning" (arXiv 2001.01858), for
        the layout.
    """

    def __init__(
        self,
        shards: StrPath | Sequence[StrPath],
        recipe: ClipRecipe,
        *,
        batch_size: int,
        transform: Callable[[Tensor], Any] | None = None,
        describe: Callable[[dict[str, bytes]], Any] | None = None,
        name_end: NameEnd = "first_dot",
        shuffle_buffer: int = 1000,
        length: int | None = None,
        on_error: OnError = "raise",
        failure_log: StrPath | None = None,
        seed: int = 0,
        id_offset: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._readings = Readings(on_error, failure_log)
        self._draws = Draws(recipe, transform, seed)
        self._describe = describe
        check_choice("name_end", name_end, get_args(NameEnd))
        self._list_samples = partial(list_samples, name_end=name_end)
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, shuffle_buffer=shuffle_buffer, id_offset=id_offset)
        self._batch_size = batch_size
        self._shuffle_buffer = shuffle_buffer
        self._id_offset = id_offset
        self._rank = distributed.rank() if rank is None else rank
        self._world_size = distributed.world_size() if world_size is None else world_size
        check_at_least(0, rank=self._rank)
        check_at_least(1, world_size=self._world_size)
        if self._rank >= self._world_size:
            raise ValueError(
                f"`rank` must be in [0, `world_size`); got {self._rank} and {self._world_size}"
            )
        self._shards = _find_shards(shards)
        if len(self._shards) < self._world_size:
            raise ValueError(
                f"`shards`: {self._world_size} ranks need at least as many shards; "
                f"got {len(self._shards)}"
            )
        if length is None:
            total = sum(len(self._list_samples(shard)) for shard in self._shards)
            if total < self._world_size:
                raise ValueError(f"`shards`: {total} samples for {self._world_size} ranks")
            length = total // self._world_size
        check_at_least(1, length=length)
        self._length = length
        self._start = Shared()

    def __len__(self) -> int:
        return self._length

    def path(self, index: int) -> str:
        """Return the path of one video: that of its archive and its name in it."""
        shard, number = index >> _SHARD_BITS, index % (1 << _SHARD_BITS)
        samples = self._list_samples(self._shards[shard])
        return samples[min(number, len(samples) - 1)].path  # the last one is the damage, if any

    def failures(self) -> list[Failure]:
        """Return every failed reading so far, of this process and its workers."""
        return self._readings.failures.read()

    def name_crashes(self) -> AbstractContextManager[None]:
        """Turn the death of a worker into a `DecodeError`, as `VideoClips.name_crashes` does."""
        return self._readings.name_crashes(self.path)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch that comes next, in running workers as well, and where it begins.

        Logs what failed in the epoch before, if anything did.

        Args:
            epoch: The epoch.
            start: Samples of this rank to pass over, without decoding them: those that the run had
                seen when its checkpoint was written.
        """
        check_at_least(0, start=start)
        if start > len(self):
            raise ValueError(f"`start` must be in [0, {len(self)}]; got {start}")
        self._readings.set_epoch(epoch, len(self))
        self._start.values.fill_(start)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        ahead = itertools.tee(self._order(self._readings.epoch), 1 + self._readings.num_substitutes)
        # Each sample comes with those that may take its place: the ones behind it.
        runs = zip(*(itertools.islice(it, k, None) for k, it in enumerate(ahead)), strict=False)
        for number, places in enumerate(
            itertools.islice(runs, int(self._start.values), self._length)
        ):
            if number // self._batch_size % num_workers == worker_id:
                yield self._readings.first(
                    (address[-1], sample.path, partial(self._read, sample, address))
                    for sample, address in places
                )

    def _order(self, epoch: int) -> Iterator[_Place]:
        """Yield the samples of this rank, without end: those of its shards, then of others."""
        for turn in itertools.count():
            generator = self._draws.generator("order", epoch, turn)
            order = list(range(len(self._shards)))
            if self._shuffle_buffer:
                order = torch.randperm(len(order), generator=generator, device="cpu").tolist()
            places = (
                (sample, (epoch, turn, (shard << _SHARD_BITS) + number))
                for shard in order[self._rank :: self._world_size]
                for number, sample in enumerate(self._list_samples(self._shards[shard]))
            )
            draw = random.Random(generator.initial_seed()).randrange
            buffer = list(itertools.islice(places, self._shuffle_buffer or 1))
            if not buffer:
                raise DecodeError(f"the shards of rank {self._rank} hold no samples")
            while buffer:
                at = draw(len(buffer))
                yield buffer[at]
                buffer[at : at + 1] = itertools.islice(places, 1)  # the next one, while there is

    def _read(self, sample: TarSample, address: tuple[int, int, int]) -> tuple[Any, ...]:
        for name, cause in sample.unread if self._describe is None else sample.lost:
            path = f"{sample.shard}/{name}"
            self._readings.record(address[-1], path, f"{path}: {cause}")
        if not sample.videos:
            raise DecodeError(f"{sample.path}: {sample.damage or 'the sample holds no video'}")
        files = sample.read(sample.videos[:1] if self._describe is None else sample.files)
        content = files.pop(sample.videos[0])
        approximate = self._draws.recipe.approximate
        with open_video(content, name=sample.path, approximate=approximate) as video:
            clips = self._draws.read(video, *address)
        clips = self._draws.transform(clips, *address)
        number = address[-1] + self._id_offset
        return (clips, number) if self._describe is None else (clips, number, self._describe(files))


def _find_shards(shards: StrPath | Sequence[StrPath]) -> list[str]:
    if isinstance(shards, (str, os.PathLike)):
        archives = sorted(map(str, Path(shards).glob("*.tar")), key=natural_key)
        if os.path.isdir(shards) and not archives:
            raise FileNotFoundError(f"`shards`: there are no .tar files in {os.fspath(shards)}")
        shards = archives or [shards]
    found = [os.fspath(shard) for shard in shards]
    for shard in found:
        if not os.path.isfile(shard):
            raise FileNotFoundError(f"`shards`: no such file: {shard}")
    return found
