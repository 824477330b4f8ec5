"""A map-style dataset of clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from iivcl.data._container import DecodeError, StrPath
from iivcl.data._draws import Draws
from iivcl.data._manifest import (
    MANIFEST_SUFFIXES,
    Manifest,
    find_videos,
    make_manifest,
    read_manifest,
)
from iivcl.data._reader import open_source
from iivcl.data._readings import MAX_SUBSTITUTES, OnError, Readings, shared_zeros
from iivcl.data._recipe import ClipRecipe, check_recipe

__all__ = ["VideoClips", "collate_clips"]


class VideoClips(Readings, Dataset[Any]):
    """Clips of videos, one video per index.

    The clips of a video depend on (``seed``, epoch, index) alone: not on the number of workers or
    ranks, nor on the order of reading. The transform runs with PyTorch's global random state
    seeded from the same three numbers and put back afterwards, so what it draws is as repeatable.

    Args:
        videos: Video files or folders of images; or one folder, which is searched for both at
            every depth; or a `Manifest`, or the ``.csv`` or ``.jsonl`` file of one.
        recipe: Which clips are taken of a video, and how they are read.
        transform: Called with the (V, C, T, H, W) uint8 clips; its result is returned instead.
        on_error: What happens when a video cannot be read. ``"raise"`` raises the `DecodeError`.
            ``"substitute"`` returns another video, drawn from (``seed``, epoch, index), with the
            other's index, and raises after 10 that cannot be read either. ``"skip"`` returns None,
            which `collate_clips` leaves out of the batch: the number of batches stays, and one of
            them is smaller. The length of the dataset never changes, so ranks stay in step.
        failure_log: File to which every failure is appended as a JSON line; a temporary one that
            goes with the dataset when None.
        seed: Seed of the clip starts, the substitutes and the transform.

    Returns:
        Of ``dataset[index]``: (clips, index), and for a manifest (clips, index, label, id); clips
        (V, C, T, H, W) uint8 or whatever ``transform`` makes of them.

    Raises:
        FileNotFoundError: The folder or manifest does not exist.
        ValueError: There are no videos, or an argument is out of range.

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
    ) -> None:
        super().__init__(on_error, failure_log)
        self._recipe = check_recipe(recipe)
        self._transform = transform
        self._draws = Draws(seed)
        manifest, self._from_manifest = _to_manifest(videos)
        # One array instead of N str objects, whose reference counts would make every forked
        # worker copy the memory that they lie in.
        self._paths = np.array([os.fsencode(path) for path in manifest.paths])
        self.labels = manifest.labels
        self.ids = manifest.ids
        self.classes = manifest.classes
        # So that a video whose frames can only be counted by decoding is counted once.
        self._counts = shared_zeros(len(manifest.paths))  # frames of each video, 0: not known yet

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        """Return the path of one video."""
        return os.fsdecode(self._paths[index])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose clips come next, in running workers as well.

        Logs what failed in the epoch before, if anything did.
        """
        self._failures.summarise(int(self._epoch), len(self))
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]  # negative indices, and IndexError behind the end
        return self._read_first(
            (i, self.path(i), partial(self._read, i)) for i in self._candidates(index)
        )

    def _candidates(self, index: int) -> Iterator[int]:
        yield index
        if self._on_error == "substitute":
            generator = self._draws.generator("substitutes", int(self._epoch), index)
            others = torch.randperm(len(self), generator=generator)
            yield from others[others != index][:MAX_SUBSTITUTES].tolist()

    def _read(self, index: int) -> tuple[Any, ...]:
        address = int(self._epoch), index
        with open_source(
            self.path(index),
            approximate=self._recipe.approximate,
            num_frames=int(self._counts[index]) or None,
        ) as source:
            self._counts[index] = source.num_frames
            clips = self._recipe.read(source, self._draws.generator("starts", *address))
        clips = self._draws.transform(clips, self._transform, *address)
        if not self._from_manifest:
            return clips, index
        return clips, index, int(self.labels[index]), int(self.ids[index])


def collate_clips(batch: Sequence[Any]) -> Any:
    """Collate samples as PyTorch does, leaving out those that `VideoClips` skipped.

    Args:
        batch: Samples of a `VideoClips` with ``on_error="skip"``; skipped ones are None.

    Returns:
        The batch of the other samples.

    Raises:
        DecodeError: No video of the batch could be read.

    Example:
        >>> import torch
        >>> from iivcl.data import collate_clips
        >>> clips, indices = collate_clips([(torch.zeros(2, 3, 4, 8, 8), 0), None])
        >>> clips.shape, indices
        (torch.Size([1, 2, 3, 4, 8, 8]), tensor([0]))
    """
    samples = [sample for sample in batch if sample is not None]
    if not samples:
        raise DecodeError(f"none of the {len(batch)} videos of a batch can be read")
    return default_collate(samples)


def _to_manifest(videos: StrPath | Sequence[StrPath] | Manifest) -> tuple[Manifest, bool]:
    """Return the list of videos, and whether the user gave labels and ids with it."""
    if isinstance(videos, Manifest):
        manifest = videos
    elif not isinstance(videos, (str, os.PathLike)):
        manifest = make_manifest(videos)
    elif not os.path.exists(videos):
        raise FileNotFoundError(f"`videos`: no such file or folder: {os.fspath(videos)}")
    elif os.path.isdir(videos):
        manifest = make_manifest(find_videos(videos))
    elif os.fspath(videos).lower().endswith(MANIFEST_SUFFIXES):
        return read_manifest(videos), True
    else:
        manifest = make_manifest([videos])
    if not manifest.paths:
        where = f" in {os.fspath(videos)}" if isinstance(videos, (str, os.PathLike)) else ""
        raise ValueError(f"`videos`: there are no videos{where}")
    return manifest, isinstance(videos, Manifest)
