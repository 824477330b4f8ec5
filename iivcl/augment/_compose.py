"""How transforms are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

from torch import Tensor, nn

from iivcl.augment._arguments import check_probability
from iivcl.augment._program import Program, Where
from iivcl.augment._transform import Drawn, Range, Transform, chance, program_of, read

__all__ = ["Compose", "RandomApply"]


class Compose(Transform[tuple[Any, ...]]):
    """Apply transforms one after another.

    A slice is again a ``Compose``, so a pipeline splits into two parts that run in two places:
    ``in_worker, on_device = pipeline[:2], pipeline[2:]``. So do its parameters: ``params[:2]`` and
    ``params[2:]`` are those of the parts.

    All of the numbers are drawn at once; transforms with a ``make_params`` of their own draw after
    that from the same generator.

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

    def describe(self, params: tuple[Any, ...]) -> Program:
        """Say what all the transforms do; see :meth:`Transform.describe`."""
        if len(params) != len(self.transforms):
            raise ValueError(
                f"`params` must be those of this pipeline of {len(self.transforms)} transforms; "
                f"got {len(params)}: those of `pipeline[a:b]` are `params[a:b]`"
            )
        programs = [program_of(t, own) for t, own in zip(self._each(), params, strict=True)]
        return tuple(op for program in programs for op in program)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after all transforms."""
        for transform in self._each():
            height, width = transform.output_size(height, width)
        return height, width

    def _ranges(self) -> Sequence[Range]:
        return [each for transform in self._each() for each in transform._ranges()]

    def _read(self, drawn: Drawn) -> tuple[Any, ...]:
        params = []
        for transform in self._each():
            params.append(read(transform, drawn))
            drawn = drawn.after(len(transform._ranges()), transform.output_size(*drawn.size))
        return tuple(params)

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

    def describe(self, params: RandomApplyParams) -> Program:
        """Say which clips are transformed, and how; see :meth:`Transform.describe`."""
        return (Where(params.where, program_of(self.transform, params.inner)),)

    def _ranges(self) -> Sequence[Range]:
        return [chance(self.p), *self.transform._ranges()]

    def _read(self, drawn: Drawn) -> RandomApplyParams:
        if (size := self.transform.output_size(*drawn.size)) != drawn.size:
            raise ValueError(
                f"`transform` must keep height and width inside RandomApply; {self.transform!r} "
                f"gives {size[0]} x {size[1]} from {drawn.size[0]} x {drawn.size[1]}"
            )
        return RandomApplyParams(drawn.chances(1).squeeze(1), read(self.transform, drawn.after(1)))

    def __repr__(self) -> str:
        return f"RandomApply({self.transform!r}, p={self.p})"


def _check_transform(name: str, transform: object) -> None:
    if not isinstance(transform, Transform):
        raise TypeError(f"`{name}` must be iivcl transforms; got {type(transform).__name__}")
