"""Every engine computes what the reference computes, for any program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iivcl import augment
from iivcl.augment import _engine, _lazy
from iivcl.augment import _program as ops
from iivcl.augment._batched import BATCHED, COMPILED, COMPILED_APART
from iivcl.augment._reference import run

ENGINES: dict[str, Callable[[ops.Program, Tensor], Tensor]] = {
    "on the CPU": _lazy.run,
    "on a GPU": lambda program, video: run(program, video, BATCHED),
    "in a graph": lambda program, video: run(program, video, COMPILED),
    "in a graph, channels apart": lambda program, video: run(program, video, COMPILED_APART),
}
CLIPS, HEIGHT, WIDTH = 3, 12, 13


class Fade(augment.Transform[Tensor]):
    """A user's own: fade every clip from its first to its last frame, each by its own amount."""

    def make_params(self, video: Tensor, generator: torch.Generator | None = None) -> Tensor:
        device = video.device if generator is None else generator.device
        return torch.rand(len(video), generator=generator, device=device).to(video.device)

    def apply(self, video: Tensor, params: Tensor) -> Tensor:
        time = torch.linspace(0, 1, video.shape[2], device=video.device).view(-1, 1, 1)
        faded = video * (1 - params.view(-1, 1, 1, 1, 1) * time)
        return faded.to(video.dtype)


# --- any program ---------------------------------------------------------------------------------


def numbers(low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(CLIPS, dtype=torch.float64)


def blend(other: Any) -> Callable[[], Any]:
    """Factors on either side of 1, and its ends."""
    factors = [(0.0, 0.0), (0.0, 1.0), (0.0, 2.5), (1.0, 2.5)]
    return lambda: ops.Blend(numbers(*factors[int(torch.randint(4, ()))]), other)


def boxes() -> Tensor:
    return torch.tensor([[0, 0, 11, 13], [2, 3, 9, 8], [4, 1, 5, 11]])


KEEPING = {
    "black": blend("black"),
    "mean": blend("mean"),
    "gray": blend("gray"),
    "hue": lambda: ops.Hue(numbers(-0.5, 0.5)),
    "all gray": lambda: ops.Gray(),
    "blur": lambda: ops.Blur(numbers(0.1, 2.0), 5),
    "flip": lambda: ops.Flip(),
    "solarize": lambda: ops.Solarize(numbers(0.1, 0.9)),
    "call": lambda: ops.Call(Fade(), numbers(0, 1)),
}
RESIZING = {
    "crop": lambda: ops.Resample(boxes(), (HEIGHT, WIDTH)),
    "middle": lambda: ops.CenterCrop((HEIGHT - 1, WIDTH)),
    "short side": lambda: ops.ResizeShortSide(HEIGHT + 2),
}
leaves = st.sampled_from(sorted(KEEPING))
trees = st.recursive(
    leaves,
    lambda inner: st.tuples(st.sampled_from(["where", "in order", "choose"]), st.lists(inner)),
    max_leaves=6,
)
JITTER = ("in order", ["black", "mean", "gray", "hue"])


def build(tree: Any) -> Any:
    """Turn a drawn tree into an operation with numbers of its own."""
    if isinstance(tree, str):
        return {**KEEPING, **RESIZING}[tree]()
    kind, inner = tree
    if kind == "where":
        return ops.Where(numbers(0, 1) < 0.5, tuple(build(each) for each in inner))
    programs = tuple((build(each),) for each in inner)
    if kind == "in order" or not programs:
        order = torch.stack([torch.randperm(len(programs)) for _ in range(CLIPS)])
        return ops.InOrder(order, programs)
    return ops.Choose(torch.randint(len(programs), (CLIPS,)), programs)


@settings(max_examples=100, deadline=None)
@given(
    trees=st.lists(trees | st.just(JITTER) | st.sampled_from(sorted(RESIZING)), max_size=5),
    last=st.sampled_from([(), (0.5, 0.5, 0.5), (0.4, 0.5, 0.6)]),
    dtype=st.sampled_from([torch.uint8, torch.float64]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32),
)
def test_any_program_means_the_same_to_all_engines(
    trees: list[Any], last: tuple[float, ...], dtype: torch.dtype, channels: int, seed: int
) -> None:
    """In float64: where solarize compares, a rounding error of float32 inverts a pixel."""
    torch.manual_seed(seed)
    video = torch.rand(CLIPS, channels, 2, HEIGHT + 1, WIDTH + 1, dtype=torch.float64)
    video[..., 0], video[..., 1], video[..., 2] = 0, 1, video[:, :1, :, :, 2]
    video = (video * 255).round().to(dtype) if dtype == torch.uint8 else video
    tail = (ops.Normalize(last[:channels], (0.2, 0.3, 0.4)[:channels]),) if last else ()
    blur = (ops.Where(numbers(0, 1) < 0.5, (ops.Blur(numbers(0.5, 1), 3),)),) if last else ()
    program = (ops.ToFloat(torch.float64), *(build(tree) for tree in trees), *tail, *blur)
    before = video.clone()
    expected = run(program, video)
    for name, engine in ENGINES.items():
        actual = engine(program, video)
        assert actual.dtype == expected.dtype, name
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6, msg=f"{name}: {program}")
    assert torch.equal(video, before)


def test_programs_print_what_is_done() -> None:
    pipeline = augment.Compose(augment.RandomHorizontalFlip(), augment.ToFloat(), Fade())
    flip = pipeline[0].make_params(torch.zeros(2, 3, 1, 4, 4))
    params = (flip._replace(flip=torch.tensor([True, False])), (), torch.ones(2))
    assert repr(pipeline.describe(params)) == (
        "(Where(where=tensor([ True, False]), program=(Flip(),)), ToFloat(dtype=torch.float32), "
        "Call(transform=Fade(), params=tensor([1., 1.])))"
    )


# --- a user's transform --------------------------------------------------------------------------


@pytest.fixture
def video() -> Tensor:
    return torch.rand(4, 3, 5, 16, 18)


def test_a_users_transform_takes_part_in_pipelines(video: Tensor) -> None:
    fade = Fade()
    pipeline = augment.Compose(
        augment.RandomResizedCrop(12),
        augment.RandomApply(augment.Compose(fade, augment.RandomGrayscale()), p=0.5),
        fade,
        augment.GaussianBlur(3),
    )
    params = pipeline.make_params(video, torch.Generator().manual_seed(3))
    cropped = pipeline[0].apply(video, params[0])
    where, (amount, gray) = params[1].where, params[1].inner
    once = augment.functional.to_grayscale(fade.apply(cropped, amount), gray.where)
    expected = fade.apply(torch.where(where.view(-1, 1, 1, 1, 1), once, cropped), params[2])
    expected = pipeline[3].apply(expected, params[3])
    torch.testing.assert_close(pipeline.apply(video, params), expected)
    assert torch.equal(
        pipeline(video, generator=torch.Generator().manual_seed(3)), pipeline.apply(video, params)
    )


def test_a_users_transform_draws_after_the_pipeline_from_the_same_generator(video: Tensor) -> None:
    generator, again = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    flip, gray = augment.RandomHorizontalFlip(), augment.RandomGrayscale()
    params = augment.Compose(flip, Fade(), gray).make_params(video, generator)
    drawn = torch.rand(len(video), 2, generator=again)  # one column for each of the others
    assert torch.equal(params[0].flip, drawn[:, 0] < 0.5)
    assert torch.equal(params[2].where, drawn[:, 1] < 0.2)
    assert torch.equal(params[1], torch.rand(len(video), generator=again))


def test_a_users_transform_compiles(video: Tensor) -> None:
    pipeline = augment.Compose(augment.RandomApply(Fade(), p=0.5), augment.RandomHorizontalFlip())
    params = pipeline.make_params(video)
    compiled = torch.compile(pipeline.apply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(video, params), pipeline.apply(video, params))


def test_a_users_transform_may_learn(video: Tensor) -> None:
    class Gain(augment.Transform[Any]):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(0.5))

        def apply(self, video: Tensor, params: Any) -> Tensor:
            return video * self.gain

    gain, gray = Gain(), augment.RandomGrayscale(p=1.0)
    for pipeline in (
        augment.Compose(gain, gray),
        augment.Compose(augment.RandomApply(gain, p=1.0)),
    ):
        (gradient,) = torch.autograd.grad(pipeline(video).sum(), gain.gain)
        torch.testing.assert_close(gradient, pipeline(video).detach().sum() / 0.5)


def test_an_apply_or_a_draw_of_a_subclass_counts_inside_compose_too(video: Tensor) -> None:
    class Black(augment.ColorJitter):
        def apply(self, video: Tensor, params: Any) -> Tensor:
            return torch.zeros_like(video)

    class Always(augment.RandomHorizontalFlip):
        def make_params(self, video: Tensor, generator: Any = None) -> Any:
            return super().make_params(video, generator)._replace(flip=torch.ones(len(video)) > 0)

    assert augment.Compose(Black(brightness=0.5))(video).max() == 0
    flipped = augment.Compose(augment.RandomGrayscale(p=0.0), Always(p=0.0))(video)
    assert torch.equal(flipped, video.flip(-1))


def test_a_transform_without_either_says_what_it_lacks(video: Tensor) -> None:
    with pytest.raises(NotImplementedError, match="must have `apply` or `describe`"):
        augment.Transform().apply(video, ())


# --- which engine --------------------------------------------------------------------------------


def test_one_function_chooses(video: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    real = _engine.reference.run

    def spy(program: ops.Program, clips: Tensor, engine: Any = None) -> Tensor:
        names = {id(None): "reference", id(BATCHED): "batched", id(COMPILED): "compiled"}
        names[id(COMPILED_APART)] = "compiled, channels apart"
        chosen.append(names[id(engine)])
        return real(program, clips, engine)

    monkeypatch.setattr(_engine.reference, "run", spy)
    program = (ops.Flip(),)
    lazy = _engine.execute(program, video[:, :, :, :, :1])
    assert lazy.shape == (4, 3, 5, 16, 1)
    chosen.clear()
    _engine.execute((ops.Blend(torch.ones(4), "black"),), video)  # the lazy one, by itself
    _engine.execute(program, video.clone().requires_grad_())
    _engine.execute((ops.Blend(torch.ones(4, requires_grad=True), "black"),), video)
    _engine.execute(program, video[:0])
    _engine.execute(program, video.to("meta"))
    assert chosen == ["reference", "reference", "reference", "batched"]
    chosen.clear()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    _engine.execute(program, video)
    _engine.execute((*program, ops.Layout(torch.channels_last_3d)), video)
    assert chosen == ["compiled", "compiled, channels apart"]
