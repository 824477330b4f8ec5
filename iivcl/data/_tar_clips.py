"""An iterable dataset of clips in tar shards."""

from __future__ import annotations

import itertools
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from iivcl import distributed

from ._container import DecodeError, StrPath
from ._draws import Draws
from ._folder import natural_key
from ._reader import open_source
from ._readings import MAX_SUBSTITUTES, OnError, Readings, shared_zeros
from ._recipe import ClipRecipe, check_recipe
from ._shards import TarSample, list_samples

__all__ = ["TarClips"]

_T = TypeVar("_T")
_SHARD_BITS = 32  # a sample's index is its shard's number above, its own number in it below


class TarClips(Readings, IterableDataset[Any]):
    """Clips of videos in tar archives of the WebDataset layout, for sets that are read in order.

    A sample is the files of one archive that follow each other and share their name up to the
    first dot, such as ``000017.mp4`` and ``000017.json``. Archives are plain files, not compressed;
    they are opened for the headers, and then each video is read into memory as it is needed.

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
        shuffle_buffer: The next sample is drawn from this many; they wait as places in archives,
            which takes little memory. With 0 the shards and samples come in their order.
        length: Samples of every rank per epoch, the same for all so that none waits for another. A
            rank that has read all its shards reads on in others; one that has not, stops. By
            default the number of samples over the number of ranks, for which the headers of all
            shards are read once.
        on_error: What happens when a video cannot be read: ``"raise"`` raises the `DecodeError`;
            ``"substitute"`` returns the next sample of the order that can be read, and raises
            after 10 that cannot; ``"skip"`` returns None, which `collate_clips` leaves out.
        failure_log: File to which every failure is appended as a JSON line.
        seed: Seed of the order, the clip starts and the transform.
        rank: Which of the ranks this is; by default that of the process group.
        world_size: Number of ranks; by default that of the process group.

    Returns:
        Of iterating: (clips, index), and with ``describe`` (clips, index, description). The index
        is an integer that belongs to the sample, whatever the order, and serves as its id in a
        queue.

    Raises:
        FileNotFoundError: A shard does not exist.
        ValueError: There are fewer shards than ranks, no samples, or an argument is out of range.

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
        shuffle_buffer: int = 1000,
        length: int | None = None,
        on_error: OnError = "raise",
        failure_log: StrPath | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(on_error, failure_log)
        self._recipe = check_recipe(recipe)
        self._transform = transform
        self._draws = Draws(seed)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("shuffle_buffer", shuffle_buffer, 0),
            ("length", length, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}")
        self._rank = distributed.rank() if rank is None else rank
        self._world_size = distributed.world_size() if world_size is None else world_size
        if not 0 <= self._rank < self._world_size:
            raise ValueError(
                f"`rank` must be in [0, `world_size`); got {self._rank} and {self._world_size}"
            )
        self._shards = _find_shards(shards)
        if len(self._shards) < self._world_size:
            raise ValueError(
                f"`shards`: {self._world_size} ranks need at least as many shards; "
                f"got {len(self._shards)}"
            )
        self._length = self._count() if length is None else length
        self._start = shared_zeros()
        self._batch_size = batch_size
        self._describe = describe
        self._shuffle_buffer = shuffle_buffer

    def __len__(self) -> int:
        return self._length

    def path(self, index: int) -> str:
        """Return the path of one video: that of its archive and its name in it."""
        shard, number = index >> _SHARD_BITS, index % (1 << _SHARD_BITS)
        samples = list_samples(self._shards[shard])
        return samples[min(number, len(samples) - 1)].path  # the last one is the damage, if any

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch that comes next, in running workers as well, and where it begins.

        Logs what failed in the epoch before, if anything did.

        Args:
            epoch: The epoch.
            start: Samples of this rank to pass over, without decoding them: those that the run had
                seen when its checkpoint was written.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"`start` must be in [0, {len(self)}]; got {start}")
        self._failures.summarise(int(self._epoch), len(self))
        self._epoch.fill_(epoch)
        self._start.fill_(start)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        substitutes = MAX_SUBSTITUTES if self._on_error == "substitute" else 0
        order = _with_following(self._order(int(self._epoch)), substitutes)
        order = itertools.islice(order, int(self._start), self._length)
        for place, places in enumerate(order):
            if place // self._batch_size % num_workers == number:
                yield self._read_first(
                    (p.index, p.sample.path, partial(self._read, p)) for p in places
                )

    def _order(self, epoch: int) -> Iterator[_Place]:
        """Yield the samples of this rank, without end: those of its shards, then of others."""
        for turn in itertools.count():
            generator = self._draws.generator("order", epoch, turn)
            order = list(range(len(self._shards)))
            if self._shuffle_buffer:
                order = torch.randperm(len(order), generator=generator).tolist()
            places = (
                _Place(epoch, turn, (shard << _SHARD_BITS) + number, sample)
                for shard in order[self._rank :: self._world_size]
                for number, sample in enumerate(list_samples(self._shards[shard]))
            )
            found = False
            for place in _shuffled(places, self._shuffle_buffer, generator):
                found = True
                yield place
            if not found:
                raise DecodeError(f"the shards of rank {self._rank} hold no samples")

    def _read(self, place: _Place) -> tuple[Any, ...]:
        sample, address = place.sample, (place.epoch, place.turn, place.index)
        if sample.damage or sample.video is None:
            raise DecodeError(f"{sample.path}: {sample.damage or 'the sample holds no video'}")
        files = sample.read([sample.video] if self._describe is None else sample.files)
        video = files.pop(sample.video)
        approximate = self._recipe.approximate
        with open_source(video, name=sample.path, approximate=approximate) as source:
            clips = self._recipe.read(source, self._draws.generator("starts", *address))
        clips = self._draws.transform(clips, self._transform, *address)
        if self._describe is None:
            return clips, place.index
        return clips, place.index, self._describe(files)

    def _count(self) -> int:
        total = sum(len(list_samples(shard)) for shard in self._shards)
        if total < self._world_size:
            raise ValueError(f"`shards`: {total} samples for {self._world_size} ranks")
        return total // self._world_size


@dataclass(frozen=True)
class _Place:
    """A sample's place in the order of a rank."""

    epoch: int
    turn: int  # how often the rank has read all its shards in this epoch
    index: int
    sample: TarSample


def _find_shards(shards: StrPath | Sequence[StrPath]) -> list[str]:
    if not isinstance(shards, (str, os.PathLike)):
        found = [os.fspath(shard) for shard in shards]
    elif os.path.isdir(shards):
        found = sorted(map(str, Path(shards).glob("*.tar")), key=natural_key)
    else:
        found = [os.fspath(shards)]
    for shard in found:
        if not os.path.isfile(shard):
            raise FileNotFoundError(f"`shards`: no such file: {shard}")
    return found


def _shuffled(items: Iterable[_T], size: int, generator: torch.Generator) -> Iterator[_T]:
    """Yield each item once, always one drawn from the next ``size``."""
    if size == 0:
        yield from items
        return
    draw = random.Random(generator.initial_seed()).randrange
    buffer: list[_T] = []
    for item in items:
        if len(buffer) < size:
            buffer.append(item)
            continue
        place = draw(size)
        yield buffer[place]
        buffer[place] = item
    while buffer:
        place = draw(len(buffer))
        buffer[place], buffer[-1] = buffer[-1], buffer[place]
        yield buffer.pop()


def _with_following(items: Iterable[_T], count: int) -> Iterator[tuple[_T, ...]]:
    """Yield every item with the ``count`` items behind it."""
    window: deque[_T] = deque()
    for item in items:
        window.append(item)
        if len(window) > count:
            yield tuple(window)
            window.popleft()
