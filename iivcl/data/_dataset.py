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

from ._container import DecodeError, StrPath
from ._manifest import MANIFEST_SUFFIXES, Manifest, find_videos, make_manifest, read_manifest
from ._reader import open_source
from ._readings import MAX_SUBSTITUTES, OnError, Readings, shared_zeros
from ._recipe import ClipRecipe, Sampling
from ._sampling import ShortPolicy

__all__ = ["VideoClips", "collate_clips"]


class VideoClips(Readings, Dataset[Any]):
    """Clips of videos, one video per index.

    The clips of a video depend on (``seed``, epoch, index) alone: not on the number of workers or
    ranks, nor on the order of reading. The transform runs with PyTorch's global random state
    seeded from the same three numbers and put back afterwards, so what it draws is as repeatable.

    Args:
        paths: Video files or folders of images; or one folder, which is searched for both at
            every depth; or a `Manifest`, or the ``.csv`` or ``.jsonl`` file of one.
        num_frames: T, frames per clip.
        stride: Frames from one frame of a clip to the next.
        stride_seconds: The same in seconds, for sets that mix frame rates; instead of ``stride``.
        clips_per_video: V, clips per video.
        sampling: ``"random"`` for independent uniform starts; ``"keyframes"`` for the same moved
            back to keyframes, which decodes faster and varies less; ``"uniform"`` for starts
            spread evenly over the video, as in evaluation; or a function with the arguments of
            `random_clip_starts`, such as ``functools.partial(random_clip_starts, power=2.0)``.
        short: What fills a clip of a video that is too short, as in `clip_indices`.
        short_side: Scale to this many pixels on the shorter side while decoding, or None.
        approximate: Decode faster and not exactly, as in `read_clips`.
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
        >>> from iivcl.data import VideoClips, make_synthetic_videos
        >>> paths = make_synthetic_videos(tempfile.mkdtemp() + "/videos", 3)
        >>> dataset = VideoClips(paths, num_frames=4, stride=2, short_side=32)
        >>> clips, index = dataset[2]
        >>> clips.shape, index
        (torch.Size([2, 3, 4, 32, 32]), 2)
    """

    def __init__(
        self,
        paths: StrPath | Sequence[StrPath] | Manifest,
        *,
        num_frames: int,
        stride: float | None = None,
        stride_seconds: float | None = None,
        clips_per_video: int = 2,
        sampling: Sampling = "random",
        short: ShortPolicy = "loop",
        short_side: int | None = None,
        approximate: bool = False,
        transform: Callable[[Tensor], Any] | None = None,
        on_error: OnError = "raise",
        failure_log: StrPath | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(on_error, failure_log)
        self._recipe = ClipRecipe(
            num_frames=num_frames,
            stride=stride,
            stride_seconds=stride_seconds,
            clips_per_video=clips_per_video,
            sampling=sampling,
            short=short,
            short_side=short_side,
            approximate=approximate,
            transform=transform,
            seed=seed,
        )
        manifest, self._from_manifest = _to_manifest(paths)
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
            generator = self._recipe.generator("substitutes", int(self._epoch), index)
            others = torch.randperm(len(self), generator=generator)
            yield from others[others != index][:MAX_SUBSTITUTES].tolist()

    def _read(self, index: int) -> tuple[Any, ...]:
        recipe, address = self._recipe, (int(self._epoch), index)
        with open_source(
            self.path(index),
            approximate=recipe.approximate,
            num_frames=int(self._counts[index]) or None,
        ) as source:
            self._counts[index] = source.num_frames
            clips = recipe.read(source, *address)
        clips = recipe.finish(clips, *address)
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


def _to_manifest(paths: StrPath | Sequence[StrPath] | Manifest) -> tuple[Manifest, bool]:
    """Return the list of videos, and whether the user gave labels and ids with it."""
    if isinstance(paths, Manifest):
        manifest = paths
    elif not isinstance(paths, (str, os.PathLike)):
        manifest = make_manifest(paths)
    elif not os.path.exists(paths):
        raise FileNotFoundError(f"`paths`: no such file or folder: {os.fspath(paths)}")
    elif os.path.isdir(paths):
        manifest = make_manifest(find_videos(paths))
    elif os.fspath(paths).lower().endswith(MANIFEST_SUFFIXES):
        return read_manifest(paths), True
    else:
        manifest = make_manifest([paths])
    if not manifest.paths:
        where = f" in {os.fspath(paths)}" if isinstance(paths, (str, os.PathLike)) else ""
        raise ValueError(f"`paths`: there are no videos{where}")
    return manifest, isinstance(paths, Manifest)
