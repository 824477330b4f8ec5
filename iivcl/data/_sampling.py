"""Which frames make a clip: integer arithmetic that never touches a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from iivcl._checks import check_at_least, check_choice, check_positive, check_shape

__all__ = ["ShortPolicy", "check_clip", "check_numbers", "check_starts", "clip_indices"]
__all__ += ["clip_indices_in_time", "last_not_behind", "move_to_keyframes"]
__all__ += ["random_clip_starts", "uniform_clip_starts"]

ShortPolicy = Literal["loop", "clamp", "mirror", "error"]


def random_clip_starts(
    video_frames: int,
    *,
    num_frames: int,
    stride: float = 1,
    clips_per_video: int = 2,
    power: float = 1.0,
    min_gap: int = 0,
    max_gap: int | None = None,
    keyframes: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draw the first frames of the clips of one video.

    By default every start is uniform over the video and independent of the others. For a pair of
    clips the law of the gap ``d`` between the starts can be chosen: its density over [0, M] is

    .. math:: f(d) = \frac{a + 1}{a M} \Big( 1 - (d / M)^a \Big)

    with a -> ``power`` and M -> the largest gap that fits, rounded to whole frames so that
    ``power=1`` is exactly the law of two independent uniform starts. A smaller power favours close
    clips, a larger one tends to a uniform gap. The pair is uniform over the video given its gap.

    Args:
        video_frames: Frames in the video. One shorter than a clip gives starts of 0.
        num_frames: Frames per clip.
        stride: Frames from one frame of a clip to the next; may be fractional.
        clips_per_video: V, clips to draw.
        power: The exponent a, above 0. Other than 1 only for V = 2.
        min_gap: Smallest gap in frames, cut to the largest that fits. Only for V = 2.
        max_gap: Largest gap in frames, or None. Only for V = 2.
        keyframes: Frames, ascending from 0, to one of which every start is moved: the last that is
            not behind it. Decoding then skips no frames, and clips begin at few places; gaps
            follow their law only up to the distance of keyframes.
        generator: Source of randomness; the global one when None.

    Returns:
        (V,) int64 starts in random order.

    Raises:
        ValueError: A number is out of range, or a gap law is asked of other than two clips.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> starts = random_clip_starts(300, num_frames=8, stride=8, generator=generator)
        >>> starts.shape, bool((starts <= 300 - 57).all())
        (torch.Size([2]), True)

    Source:
        Qian et al., "Spatiotemporal Contrastive Video Representation Learning", section 3.3.
    """
    num_starts = _num_starts(video_frames, num_frames, stride, clips_per_video)
    check_positive("power", power)
    check_at_least(0, min_gap=min_gap, max_gap=0 if max_gap is None else max_gap)
    if max_gap is not None and max_gap < min_gap:
        raise ValueError(
            f"`min_gap` and `max_gap` must satisfy 0 <= min_gap <= max_gap; "
            f"got {min_gap} and {max_gap}"
        )
    draw = partial(torch.randint, generator=generator, device="cpu")
    if power == 1 and min_gap == 0 and max_gap is None:
        starts = draw(num_starts, (clips_per_video,))
    elif clips_per_video == 2:
        gaps = torch.arange(num_starts, dtype=torch.float64, device="cpu")
        weights = 1 - (gaps / num_starts) ** power
        weights[0] /= 2  # a gap of 0 comes from one ordered pair, any other from two
        weights[gaps < min(min_gap, num_starts - 1)] = 0
        weights[gaps > (num_starts if max_gap is None else max_gap)] = 0
        gap = int(torch.multinomial(weights, 1, generator=generator))
        first = draw(num_starts - gap, (1,)) + torch.tensor([0, gap], device="cpu")
        starts = first[torch.randperm(2, generator=generator, device="cpu")]
    else:
        raise ValueError(
            "`power`, `min_gap` and `max_gap` describe the gap of a pair: they need "
            f"`clips_per_video` = 2; got {clips_per_video}"
        )
    return starts if keyframes is None else move_to_keyframes(starts, keyframes)


def uniform_clip_starts(
    video_frames: int, *, num_frames: int, stride: float = 1, clips_per_video: int = 10
) -> Tensor:
    """Spread the clips evenly over the video, from its first frame to its last, for evaluation.

    ``start_v = floor(v * M / (V - 1) + 1/2)`` with M -> the last start that fits; a single clip
    is the middle one.

    Args:
        video_frames: Frames in the video. One shorter than a clip gives starts of 0.
        num_frames: Frames per clip.
        stride: Frames from one frame of a clip to the next; may be fractional.
        clips_per_video: V, clips to place.

    Returns:
        (V,) int64 starts, ascending.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> uniform_clip_starts(100, num_frames=8, stride=4, clips_per_video=3)
        tensor([ 0, 36, 71])
    """
    last = _num_starts(video_frames, num_frames, stride, clips_per_video) - 1
    if clips_per_video == 1:
        return torch.tensor([last // 2], device="cpu")
    steps = clips_per_video - 1
    return (2 * torch.arange(clips_per_video, device="cpu") * last + steps) // (2 * steps)


def clip_indices(
    starts: Tensor,
    video_frames: int,
    *,
    num_frames: int,
    stride: float = 1,
    short: ShortPolicy = "loop",
) -> Tensor:
    """Turn clip starts into frame indices: ``start + floor(t * stride + 1/2)``.

    Args:
        starts: (V,) integers from 0, the first frames.
        video_frames: Frames in the video.
        num_frames: T, frames per clip.
        stride: Frames from one frame of a clip to the next; may be fractional, such as
            ``fps * seconds``.
        short: What comes after the last frame of a video that is too short: ``"loop"`` starts
            again at the first, ``"clamp"`` repeats the last, ``"mirror"`` plays backwards (the
            last frame is not repeated), ``"error"`` raises.

    Returns:
        (V, T) int64, each in [0, ``video_frames``).

    Raises:
        ValueError: A number is out of range, or ``short="error"`` and a clip does not fit.

    Example:
        >>> clip_indices(torch.tensor([0, 3]), 6, num_frames=4, stride=1.5, short="clamp")
        tensor([[0, 2, 3, 5],
                [3, 5, 5, 5]])
    """
    check_starts(starts)
    check_choice("short", short, get_args(ShortPolicy))
    _num_starts(video_frames, num_frames, stride, 1)
    indices = starts[:, None] + _offsets(num_frames, stride)  # (V, T)
    if short == "error" and (indices >= video_frames).any():
        raise ValueError(
            f"a clip of {num_frames} frames at stride {stride} needs frame {int(indices.max())}, "
            f"but the video has {video_frames} frames; choose another `short`"
        )
    return _fold(indices, video_frames, video_frames - 1, short)


def clip_indices_in_time(
    starts: Tensor, times: Tensor, fps: float, *, num_frames: int, stride: float, short: ShortPolicy
) -> Tensor:
    """Turn clip starts (V,) into the frames (V, T) nearest to ``times[start] + t * stride``.

    ``stride`` is in seconds, and ``short`` means in time what it means in `clip_indices`.
    """
    steps = torch.arange(num_frames, dtype=torch.float64, device="cpu") * stride
    wanted, duration = times[starts][:, None] + steps, len(times) / fps  # (V, T) seconds
    if short == "error" and (wanted >= duration).any():
        raise ValueError(
            f"a clip of {num_frames} frames at stride {stride} s needs the frame at "
            f"{float(wanted.max()):.3f} s, but the video ends at {duration:.3f} s; choose another "
            "`short`"
        )
    wanted = _fold(wanted, duration, float(times[-1]), short)
    before = last_not_behind(times, wanted)
    behind = (before + 1).clamp(max=len(times) - 1)
    return torch.where(times[behind] - wanted <= wanted - times[before], behind, before)


def move_to_keyframes(starts: Tensor, keyframes: Sequence[int]) -> Tensor:
    """Move each start to the last keyframe that is not behind it."""
    places = torch.as_tensor(keyframes, device="cpu")
    if not len(places) or places[0] != 0 or (places.diff() < 0).any():
        raise ValueError(f"`keyframes` must ascend from 0; got {places[:9].tolist()}")
    return places[last_not_behind(places, starts)]


def last_not_behind(ascending: Tensor, values: Tensor) -> Tensor:
    """Find the last of the ascending numbers that is not above each value."""
    return (torch.searchsorted(ascending, values, right=True) - 1).clamp(min=0)


def _fold(places: Tensor, length: float, last: float, short: ShortPolicy) -> Tensor:
    """Bring places behind the last frame back into the video."""
    if short == "loop":
        return places % length
    if short == "mirror":
        places = places % (2 * last or 1)  # one way and back
        return torch.minimum(places, 2 * last - places)
    return places.clamp(max=last)


def check_numbers(name: str, numbers: Tensor) -> None:
    """Check that frames are given by their numbers, integers from 0."""
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"`{name}` must be integers; got {numbers.dtype}")
    if numbers.numel():
        check_at_least(0, **{name: int(numbers.min())})


def check_starts(starts: Tensor) -> None:
    """Check the first frames (V,) of clips."""
    check_shape("starts", starts, "V")
    check_numbers("starts", starts)


def check_clip(num_frames: int, clips_per_video: int, **stride: float) -> None:
    """Check the numbers that say what a clip is; the stride has the name of its unit."""
    check_at_least(1, num_frames=num_frames, clips_per_video=clips_per_video)
    for name, value in stride.items():
        check_positive(name, value)


def _num_starts(video_frames: int, num_frames: int, stride: float, clips_per_video: int) -> int:
    """Count the starts at which a clip fits, at least 1."""
    check_clip(num_frames, clips_per_video, stride=stride)
    check_at_least(1, video_frames=video_frames)
    span = int(_offsets(num_frames, stride)[-1]) + 1
    return max(video_frames - span, 0) + 1


def _offsets(num_frames: int, stride: float) -> Tensor:
    return torch.floor(
        torch.arange(num_frames, dtype=torch.float64, device="cpu") * stride + 0.5
    ).long()
