"""A map-style dataset of clips."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from iivcl._checks import check_at_least
from iivcl.data._container import DecodeError, StrPath
from iivcl.data._manifest import Manifest, as_manifest
from iivcl.data._open_video import open_video
from iivcl.data._readings import Failure, OnError, Readings, Shared, Skipped
from iivcl.data._recipe import ClipRecipe, Draws

__all__ = ["VideoClips", "collate_clips"]


class VideoClips(Dataset[Any]):
    """Clips of videos, one video per index.

    The clips of a video depend on (``seed``, epoch, index) alone: not on the number of workers or
    ranks, nor on the order of reading. The transform runs with PyTorch's global random state
    seeded from the same three numbers and put back afterwards, so what it draws is as repeatable.

    Args:
        videos: Video files or folders of images; or one folder, which is searched for both at
            every depth; or a `Manifest`, or the ``.csv`` or ``.jsonl`` file of one.
        recipe: Which clips are taken of a video, and how they are read.
        transform: Called with the (V, C, T, H, W) uint8 clips; its result is returned instead.
            Files that differ in size need a crop here to make a batch, such as
            ``augment.RandomResizedCrop(112)``.
        on_error: What happens when a video cannot be read. ``"raise"`` raises the `DecodeError`.
            ``"substitute"`` returns another video, drawn from (``seed``, epoch, index), with the
            other's index, and raises after 10 that cannot be read either. ``"skip"`` returns a
            false value, which is left out of a DataLoader's batch (in a ``ConcatDataset``, by
            `collate_clips`): the number of batches stays, and one of them is smaller. The length of
            the dataset never changes, so ranks stay in step.
        failure_log: File to which every failure is appended as a JSON line; a temporary one that
            goes with the dataset when None.
        seed: Seed of the clip starts, the substitutes and the transform.
        id_offset: Added to the index and the id that are returned, so that those of several
            datasets differ: above all that the others return.

    Returns:
        Of ``dataset[index]``: (clips, index), and for a manifest (clips, index, label, id); clips
        (V, C, T, H, W) uint8 or whatever ``transform`` makes of them.

    Raises:
        FileNotFoundError: The folder or manifest does not exist.
        ValueError: There are no videos, what is said of them is not said of each, or an argument
            is out of range.
        RuntimeError: Reading a sample, the transform raised an error; the message names the video.

    Example:
        >>> import tempfile
        >>> from iivcl.data import ClipRecipe, VideoClips, make_synthetic_videos
        >>> paths = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 3)
        >>> recipe = ClipRecipe(num_frames=4, stride=2, short_side=32)
        >>> dataset = VideoClips(paths, recipe)
        >>> clips, index = dataset[2]
        >>> clips.shape, index
        (torch.Size([2, 3, 4, 32, 32]), 2)
    """

    def __init__(
        self,
        videos: StrPath | Sequence[StrPath] | Manifest,
        recipe: ClipRecipe,
        *,
        transform: Callable[[Tensor], Any] | None = None,
        on_error: OnError = "raise",
        failure_log: StrPath | None = None,
        seed: int = 0,
        id_offset: int = 0,
    ) -> None:
        check_at_least(0, id_offset=id_offset)
        self._id_offset = id_offset
        self._draws = Draws(recipe, transform, seed)
        self._readings = Readings(on_error, failure_log)
        manifest, self._from_manifest = as_manifest(videos)
        self._paths = _Paths(manifest.paths)
        self.labels = manifest.labels
        self.ids = manifest.ids
        self.classes = manifest.classes
        # So that a video whose frames can only be counted by decoding is counted once.
        self._counts = Shared(len(manifest.paths))  # frames of each video, 0: not known yet

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """Return the path of one video."""
        return self._paths[range(len(self))[index]]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose clips come next, in running workers as well.

        Logs what failed in the epoch before, if anything did.
        """
        self._readings.set_epoch(epoch, len(self))

    def failures(self) -> list[Failure]:
        """Return every failed reading so far, of this process and its workers."""
        return self._readings.failures.read()

    def name_crashes(self) -> AbstractContextManager[None]:
        """Turn the death of a worker into a `DecodeError` that names what it was reading.

        A decoder that crashes takes its process with it, and PyTorch's error tells the number of
        the process alone. Put the loop over the DataLoader inside this context.

        Raises:
            DecodeError: A worker died while it read a video; it is among `failures` as well.

        Example:
            >>> import tempfile, torch
            >>> from iivcl.data import ClipRecipe, VideoClips, make_synthetic_videos
            >>> paths = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 2)
            >>> dataset = VideoClips(paths, ClipRecipe(num_frames=4, stride=2))
            >>> with dataset.name_crashes():
            ...     for clips, index in torch.utils.data.DataLoader(dataset):
            ...         pass
        """
        return self._readings.name_crashes(self.path)

    def __getitem__(self, index: int) -> Any:
        try:
            index = range(len(self))[operator.index(index)]  # negative ones count from the end
        except (TypeError, IndexError) as error:
            raise type(error)(
                f"`index` must be a whole number in [{-len(self)}, {len(self)}); got {index!r}"
            ) from None
        return self._readings.first(
            (i, self.path(i), partial(self._read, i)) for i in self._candidates(index)
        )

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Read the samples of a batch, for a DataLoader; those that are skipped are left out."""
        return _checked([self[index] for index in indices])

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        if self._readings.num_substitutes:
            generator = self._draws.generator("substitutes", self._readings.epoch, index)
            others = torch.randperm(len(self), generator=generator, device="cpu")
            yield from others[others != index][: self._readings.num_substitutes].tolist()

    def _read(self, index: int) -> tuple[Any, ...]:
        address = self._readings.epoch, index
        with open_video(
            self.path(index),
            num_frames=int(self._counts.values[index]) or None,
            approximate=self._draws.recipe.approximate,
            keep_index=self._draws.recipe.keep_index,
        ) as video:
            self._counts.values[index] = video.num_frames
            clips = self._draws.read(video, *address)
        clips = self._draws.transform(clips, *address)
        number = index + self._id_offset
        if not self._from_manifest:
            return clips, number
        return clips, number, int(self.labels[index]), int(self.ids[index]) + self._id_offset


class _Paths:
    """Paths in one piece of memory.

    As many objects, every forked worker would copy the memory that they lie in, since each use of
    one counts its references; in an array, each would take as much as the longest.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]])


def collate_clips(batch: Sequence[Any]) -> Any:
    """Collate samples as PyTorch does, leaving out those that were skipped.

    `TarClips` with ``on_error="skip"`` needs it, and a `VideoClips` inside of a ``ConcatDataset``.

    Args:
        batch: Samples of a dataset with ``on_error="skip"``; None counts as skipped.

    Returns:
        The batch of the other samples.

    Raises:
        DecodeError: No video of the batch could be read.
        ValueError: The clips differ in shape.

    Example:
        >>> import torch
        >>> from iivcl.data import collate_clips
        >>> clips, indices = collate_clips([(torch.zeros(2, 3, 4, 8, 8), 0), None])
        >>> clips.shape, indices
        (torch.Size([1, 2, 3, 4, 8, 8]), tensor([0]))
    """
    return default_collate(_checked(batch))


def _checked(batch: Sequence[Any]) -> list[Any]:
    """Leave out what was skipped, and say what to do about clips that cannot be stacked."""
    samples = [sample for sample in batch if not isinstance(sample, (Skipped, type(None)))]
    if not samples:
        causes = [one.cause for one in batch if isinstance(one, Skipped) and one.cause]
        shown = "; ".join([*causes[:3], "..."] if len(causes) > 3 else causes)
        message = f"none of the {len(batch)} videos of a batch can be read"
        raise DecodeError(f"{message}: {shown}" if shown else message)
    clips = [sample[0] for sample in samples if isinstance(sample, tuple)]
    shapes = sorted({tuple(one.shape) for one in clips if isinstance(one, Tensor)})
    if len(shapes) > 1:
        raise ValueError(
            f"the clips of a batch differ in shape, such as {shapes[0]} and {shapes[-1]}; to stack "
            "them, crop in the dataset: `transform=augment.RandomResizedCrop(112)`. (To collate "
            "them in a way of your own, let the transform put them in a list.)"
        )
    return samples
