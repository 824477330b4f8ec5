"""How transforms are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn

from iivcl.augment._lazy import LazyClip, Scratch
from iivcl.augment._transform import (
    Parts,
    Transform,
    check_probability,
    draw_uniform,
    join,
    like,
    planes_of,
    take_clips,
)
from iivcl.augment.functional._clip import (
    Rows,
    check_mask,
    check_video,
    choose_clips,
    select_clips,
    values_are_free,
)

__all__ = ["Compose", "RandomApply"]


class Compose(Transform[tuple[Any, ...]]):
    """Apply transforms one after another.

    A slice is again a ``Compose``, so a pipeline splits into two parts that run in two places:
    ``in_worker, on_device = pipeline[:2], pipeline[2:]``.

    Args:
        *transforms: Transforms in the order of their application.

    Example:
        >>> from iivcl.augment import RandomHorizontalFlip, RandomResizedCrop, ToFloat
        >>> pipeline = Compose(RandomResizedCrop(112), RandomHorizontalFlip(), ToFloat())
        >>> pipeline[1:]
        Compose(
            RandomHorizontalFlip(p=0.5),
            ToFloat(torch.float32),
        )
    """

    def __init__(self, *transforms: Transform[Any]) -> None:
        super().__init__()
        for transform in transforms:
            _check_transform("transforms", transform)
        self.transforms = nn.ModuleList(transforms)

    def make_params(
        self, video: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Any, ...]:
        """Draw the parameters of every transform; see :meth:`Transform.make_params`."""
        params = []
        for transform in self._each():
            params.append(transform.make_params(video, generator))
            size = transform.output_size(*video.shape[-2:])
            if size != video.shape[-2:]:  # a stand-in of the next shape that holds one number
                video = video.new_empty(()).expand(*video.shape[:-2], *size)
        return tuple(params)

    def apply(self, video: Tensor, params: tuple[Any, ...]) -> Tensor:  # type: ignore[override]
        """Apply every transform with its parameters; see :meth:`Transform.apply`.

        On the CPU one clip goes through all transforms before the next, which keeps it in the
        cache, and what they do to its colours is computed in as few passes as give the same
        result. Elsewhere the whole batch goes through each transform in turn, which wants to be
        compiled: ``torch.compile(pipeline.apply)``.
        """
        check_video(video)
        _check_lengths(params, len(video))
        if len(video) == 0 or video.requires_grad or not values_are_free(video):
            if torch.compiler.is_compiling():
                return join(self._apply_to_parts([video], params))
            for transform, own in zip(self._each(), params, strict=True):
                video = transform.apply(video, own)
            return video
        out, scratch = torch.empty(0), Scratch()
        for i, own in enumerate(_split_clips(params, len(video))):
            clip = LazyClip(video[i : i + 1], scratch)
            self._apply_lazily(clip, own)
            if i == 0:
                out = torch.empty(len(video), *clip.shape[1:], dtype=clip.dtype)
            clip.result(out[i : i + 1])
        return out

    def _apply_lazily(self, clip: LazyClip, params: tuple[Any, ...]) -> None:
        for transform, own in zip(self._each(), params, strict=True):
            transform._apply_lazily(clip, own)

    def _apply_to_parts(self, parts: Parts, params: tuple[Any, ...]) -> Parts:
        for transform, own in zip(self._each(), params, strict=True):
            parts = transform._apply_to_parts(parts, own)
        return parts

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after all transforms."""
        for transform in self._each():
            height, width = transform.output_size(height, width)
        return height, width

    def __len__(self) -> int:
        return len(self.transforms)

    def __iter__(self) -> Iterator[Transform[Any]]:
        return iter(self._each())

    def _each(self) -> Sequence[Transform[Any]]:
        # What loops go over: torch 2.4 compiles none over a module with an `__iter__` of its own.
        return self.transforms  # type: ignore[return-value]

    @overload
    def __getitem__(self, index: int) -> Transform[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Compose: ...
    def __getitem__(self, index: int | slice) -> Transform[Any]:
        if isinstance(index, slice):
            return Compose(*list(self)[index])
        return list(self)[index]

    def __repr__(self) -> str:
        lines = "".join(f"    {line},\n" for t in self for line in repr(t).splitlines())
        return f"Compose(\n{lines})" if len(self) else "Compose()"


class RandomApplyParams(NamedTuple):
    """Parameters of :class:`RandomApply`."""

    where: Tensor
    """(B,) bool, the clips that are transformed."""
    inner: Any
    """Parameters of the transform, drawn for every clip."""


class RandomApply(Transform[RandomApplyParams]):
    """Apply a transform to every clip with probability ``p``.

    Args:
        transform: A transform that keeps height, width and dtype.
        p: Probability, in [0, 1].

    Example:
        >>> from iivcl.augment import GaussianBlur
        >>> RandomApply(GaussianBlur(11, sigma=(0.1, 2.0)), p=0.5)
        RandomApply(GaussianBlur(11, sigma=(0.1, 2.0)), p=0.5)
    """

    def __init__(self, transform: Transform[Any], *, p: float) -> None:
        super().__init__()
        _check_transform("transform", transform)
        self.transform = transform
        self.p = check_probability(p)

    def make_params(
        self, video: Tensor, generator: torch.Generator | None = None
    ) -> RandomApplyParams:
        """Draw the choice and the parameters; see :meth:`Transform.make_params`."""
        where = draw_uniform(video, generator) < self.p
        return RandomApplyParams(where, self.transform.make_params(video, generator))

    def apply(self, video: Tensor, params: RandomApplyParams) -> Tensor:  # type: ignore[override]
        """Transform the chosen clips; see :meth:`Transform.apply`."""

        def changed(clips: Tensor, rows: Rows) -> Tensor:
            out = self.transform.apply(clips, take_clips(params.inner, rows))
            _check_kept((clips.shape, clips.dtype), (out.shape, out.dtype))
            return out

        return select_clips("where", params.where, video, changed)

    def _apply_to_parts(self, parts: Parts, params: RandomApplyParams) -> Parts:
        check_mask("where", params.where, len(parts[0]))
        changed = self.transform._apply_to_parts(parts, params.inner)
        if len(changed) != len(parts):
            parts = [join(parts)] if len(changed) == 1 else planes_of(parts)
        chosen = []
        for before, after in zip(parts, changed, strict=True):
            _check_kept((before.shape, before.dtype), (after.shape, after.dtype))
            chosen.append(choose_clips(params.where, after, before))
        return chosen

    def _apply_lazily(self, clip: LazyClip, params: RandomApplyParams) -> None:
        check_mask("where", params.where, 1)
        if params.where.item():
            before = clip.shape, clip.dtype
            self.transform._apply_lazily(clip, params.inner)
            _check_kept(before, (clip.shape, clip.dtype))

    def __repr__(self) -> str:
        return f"RandomApply({self.transform!r}, p={self.p})"


def _split_clips(params: Any, num_clips: int) -> Sequence[Any]:
    """Split nested tuples of (B, ...) tensors into those of each clip, (1, ...)."""
    if isinstance(params, Tensor):
        return torch.split(params, 1)
    of_values = [_split_clips(value, num_clips) for value in params]
    of_clips = zip(*of_values, strict=True) if of_values else [()] * num_clips
    return [like(params, values) for values in of_clips]


def _check_lengths(params: Any, num_clips: int) -> None:
    if not isinstance(params, Tensor):
        for value in params:
            _check_lengths(value, num_clips)
    elif len(params) != num_clips:
        raise ValueError(
            f"`params` must hold one entry for each of the {num_clips} clips of `video`; "
            f"got {len(params)}"
        )


def _check_kept(
    before: tuple[torch.Size, torch.dtype], after: tuple[torch.Size, torch.dtype]
) -> None:
    if before != after:
        raise ValueError(
            f"`transform` must keep shape and dtype inside RandomApply; got {tuple(after[0])} "
            f"{after[1]} from {tuple(before[0])} {before[1]}"
        )


def _check_transform(name: str, transform: object) -> None:
    if not isinstance(transform, Transform):
        raise TypeError(f"`{name}` must be iivcl transforms; got {type(transform).__name__}")
