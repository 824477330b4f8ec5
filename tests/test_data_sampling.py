"""Clip sampling against its analytic laws and against plain loops."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iivcl.data import clip_indices, random_clip_starts, uniform_clip_starts

DRAWS = 4000


def draw(video_frames: int, **arguments) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    clip = {"num_frames": 4, "stride": 2, "generator": generator} | arguments
    return [tuple(random_clip_starts(video_frames, **clip).tolist()) for _ in range(DRAWS)]


def assert_follows(samples: list, law: dict) -> None:
    """Chi-squared test: the statistic is below its mean plus six standard deviations."""
    counts = Counter(samples)
    assert set(counts) <= {outcome for outcome, p in law.items() if p > 0}
    assert math.isclose(sum(law.values()), 1)
    expected = {outcome: p * len(samples) for outcome, p in law.items() if p > 0}
    statistic = sum((counts[outcome] - e) ** 2 / e for outcome, e in expected.items())
    freedom = len(expected) - 1
    assert statistic < freedom + 6 * math.sqrt(2 * freedom)


def gap_law(num_starts: int, power: float) -> dict[int, float]:
    """The density of CVRL on whole frames, halved at 0 where only one ordered pair has the gap."""
    weights = [(1 - (d / num_starts) ** power) / (2 if d == 0 else 1) for d in range(num_starts)]
    return {d: w / sum(weights) for d, w in enumerate(weights)}


def test_starts_are_independent_and_uniform() -> None:
    pairs = draw(13)  # span 7: starts 0 to 6
    assert_follows(pairs, {(a, b): 1 / 49 for a in range(7) for b in range(7)})
    assert_follows([s for (s,) in draw(13, clips_per_video=1)], dict.fromkeys(range(7), 1 / 7))
    assert {len(starts) for starts in draw(13, clips_per_video=5)} == {5}


def test_power_one_is_the_law_of_two_independent_starts() -> None:
    law = gap_law(7, 1.0)
    independent = Counter(abs(a - b) for a in range(7) for b in range(7))
    assert all(math.isclose(law[d], independent[d] / 49) for d in range(7))
    # The same through the general path, which a gap limit that never binds selects.
    assert_follows(draw(13, max_gap=100), {(a, b): 1 / 49 for a in range(7) for b in range(7)})


@pytest.mark.parametrize("power", [0.3, 2.0, 8.0])
def test_gap_follows_the_general_power(power: float) -> None:
    pairs = draw(15, power=power)  # starts 0 to 8
    law = gap_law(9, power)
    assert_follows([abs(a - b) for a, b in pairs], law)
    # Given its gap, the pair is uniform over the video and in random order.
    whole = {
        (a, b): law[abs(a - b)] / (9 - abs(a - b)) / (1 if a == b else 2)
        for a in range(9)
        for b in range(9)
    }
    assert_follows(pairs, whole)


@pytest.mark.parametrize("power", [0.5, 3.0])
def test_large_videos_follow_the_published_distribution(power: float) -> None:
    largest = 1000
    gaps = [abs(a - b) / largest for a, b in draw(largest + 7, power=power)]
    for x in (0.1, 0.3, 0.5, 0.8):
        cdf = (x * (power + 1) - x ** (power + 1)) / power
        share = sum(gap <= x for gap in gaps) / len(gaps)
        assert abs(share - cdf) < 5 * math.sqrt(cdf * (1 - cdf) / len(gaps)) + 0.002


def test_gap_limits_condition_the_law() -> None:
    law = gap_law(9, 2.0)
    kept = {d: p for d, p in law.items() if 2 <= d <= 5}
    gaps = [abs(a - b) for a, b in draw(15, power=2.0, min_gap=2, max_gap=5)]
    assert_follows(gaps, {d: p / sum(kept.values()) for d, p in kept.items()})
    # A video too short for the smallest gap has its clips as far apart as they can be.
    assert {abs(a - b) for a, b in draw(10, min_gap=8)} == {3}
    assert set(draw(5, min_gap=8, max_gap=9)) == {(0, 0)}


def test_starts_move_to_the_keyframe_before_them() -> None:
    law = {(0,): 3 / 7, (3,): 1 / 7, (4,): 3 / 7}  # starts 0 to 6
    assert_follows(draw(13, clips_per_video=1, keyframes=[0, 3, 4, 9]), law)


def test_generator_decides_and_the_global_state_stays() -> None:
    before = torch.get_rng_state()
    first, second = draw(300, power=2.0), draw(300, power=2.0)
    assert first == second
    assert torch.get_rng_state().equal(before)


@given(st.integers(1, 60), st.integers(1, 9), st.floats(0.2, 6), st.integers(1, 12))
def test_uniform_starts_spread_from_end_to_end(
    video_frames: int, num_frames: int, stride: float, clips: int
) -> None:
    clip = {"num_frames": num_frames, "stride": stride}
    starts = uniform_clip_starts(video_frames, clips_per_video=clips, **clip).tolist()
    span = math.floor((num_frames - 1) * stride + 0.5) + 1
    last = max(video_frames - span, 0)
    if clips == 1:
        assert starts == [last // 2]
    else:
        assert starts == [math.floor(v * last / (clips - 1) + 0.5) for v in range(clips)]


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=3),
    st.integers(1, 40),
    st.integers(1, 9),
    st.one_of(st.integers(1, 9), st.floats(0.2, 6)),
)
def test_indices_follow_a_plain_loop(
    starts: list[int], video_frames: int, num_frames: int, stride: float
) -> None:
    there_and_back = [*range(video_frames), *range(video_frames - 2, 0, -1)]
    expected = {"loop": [], "clamp": [], "mirror": []}
    for start in starts:
        frames = [start + math.floor(t * stride + 0.5) for t in range(num_frames)]
        expected["loop"].append([frame % video_frames for frame in frames])
        expected["clamp"].append([min(frame, video_frames - 1) for frame in frames])
        expected["mirror"].append([there_and_back[frame % len(there_and_back)] for frame in frames])
    for short, indices in expected.items():
        got = clip_indices(
            torch.tensor(starts), video_frames, num_frames=num_frames, stride=stride, short=short
        )
        assert got.tolist() == indices


def test_one_second_is_one_second_at_every_rate() -> None:
    start = torch.tensor([0])
    for fps in (12.0, 29.97, 60.0):
        indices = clip_indices(start, 10_000, num_frames=9, stride=0.25 * fps)
        seconds = indices[0] / fps
        assert (seconds - 0.25 * torch.arange(9)).abs().max() <= 0.5 / fps + 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"video_frames": 0}, "`video_frames` must be at least 1; got 0"),
        ({"num_frames": 0}, "`num_frames` must be at least 1; got 0"),
        ({"stride": 0}, "`stride` must be above 0 and finite; got 0"),
        ({"stride": math.nan}, "`stride` must be above 0 and finite; got nan"),
        ({"clips_per_video": 0}, "`clips_per_video` must be at least 1; got 0"),
        ({"power": 0.0}, "`power` must be above 0 and finite; got 0.0"),
        (
            {"min_gap": 5, "max_gap": 4},
            "`min_gap` and `max_gap` must satisfy 0 <= min_gap <= max_gap; got 5 and 4",
        ),
        (
            {"power": 2.0, "clips_per_video": 3},
            "`power`, `min_gap` and `max_gap` describe the gap of a pair: they need "
            "`clips_per_video` = 2; got 3",
        ),
        ({"keyframes": []}, "`keyframes` must ascend from 0; got []"),
        ({"keyframes": [5, 9]}, "`keyframes` must ascend from 0; got [5, 9]"),
        ({"keyframes": [0, 9, 5]}, "`keyframes` must ascend from 0; got [0, 9, 5]"),
    ],
)
def test_arguments_of_the_samplers(arguments: dict, message: str) -> None:
    valid = {"video_frames": 20, "num_frames": 4, "stride": 2}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        random_clip_starts(**valid | arguments)


def test_arguments_of_clip_indices() -> None:
    starts = torch.tensor([0, 14])
    message = (
        "a clip of 4 frames at stride 2 needs frame 20, but the video has 20 frames; "
        "choose another `short`"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        clip_indices(starts, 20, num_frames=4, stride=2, short="error")
    assert clip_indices(starts, 21, num_frames=4, stride=2, short="error").max() == 20
    with pytest.raises(ValueError, match=r"^`starts` must have shape \(V,\); got \(1, 2\)$"):
        clip_indices(starts[None], 20, num_frames=4)
    with pytest.raises(ValueError, match=r"^`starts` must be at least 0; got -5$"):
        clip_indices(torch.tensor([3, -5]), 20, num_frames=4)
    for wrong in (torch.tensor([0.5]), torch.tensor([True])):
        with pytest.raises(TypeError, match=rf"^`starts` must be integers; got {wrong.dtype}$"):
            clip_indices(wrong, 20, num_frames=4)
    assert clip_indices(starts[:0], 20, num_frames=4).shape == (0, 4)
    with pytest.raises(ValueError, match=r"^`short` must be one of .*; got 'pad'$"):
        clip_indices(starts, 20, num_frames=4, short="pad")
