"""Laws that hold for every transform and every preset."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from operations import Operations
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from iivcl import augment
from iivcl.augment import (
    CenterCrop,
    ColorJitter,
    Compose,
    GaussianBlur,
    Normalize,
    RandAugment,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    ResizeShortSide,
    ToFloat,
    Transform,
    _lazy,
)
from iivcl.augment._batched import BATCHED, COMPILED, COMPILED_APART
from iivcl.augment._program import Program
from iivcl.augment._reference import run
from iivcl.augment._transform import program_of

REGISTRY: dict[str, Callable[[], Transform[Any]]] = {
    "RandomResizedCrop": lambda: RandomResizedCrop(13, scale=(0.2, 0.766)),
    "RandomHorizontalFlip": lambda: RandomHorizontalFlip(),
    "ResizeShortSide": lambda: ResizeShortSide(15),
    "CenterCrop": lambda: CenterCrop((12, 11)),
    "ColorJitter": lambda: ColorJitter(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15),
    "RandomGrayscale": lambda: RandomGrayscale(p=0.5),
    "RandomSolarize": lambda: RandomSolarize(0.5, p=0.5),
    "GaussianBlur": lambda: GaussianBlur(5, sigma=(0.1, 2.0)),
    "ToFloat": lambda: ToFloat(),
    "Normalize": lambda: Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    "RandomApply": lambda: RandomApply(
        Compose(RandomGrayscale(p=0.5), GaussianBlur(3, sigma=(1.0, 2.0))), p=0.5
    ),
    "Compose": lambda: Compose(
        RandomResizedCrop(17), CenterCrop(15), RandomResizedCrop((9, 11)), RandomSolarize(p=0.5)
    ),
    "RandAugment": lambda: RandAugment(num_ops=2, magnitude=9),
    "cvrl": lambda: augment.cvrl(20),
    "evaluation": lambda: augment.evaluation(12),
    "moco_v2": lambda: augment.moco_v2(20),
    "rho_moco": lambda: augment.rho_moco(20),
}
EVERY = pytest.mark.parametrize("transform", [f() for f in REGISTRY.values()], ids=list(REGISTRY))
ENGINES: dict[str, Callable[[Program, Tensor], Tensor]] = {
    "on the CPU": _lazy.run,
    "on a GPU": lambda program, video: run(program, video, BATCHED),
    "in a graph": lambda program, video: run(program, video, COMPILED),
    "in a graph, channels apart": lambda program, video: run(program, video, COMPILED_APART),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["uint8", "float32"])


def make_video(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    video = torch.rand(shape)
    return (video * 255).round().to(dtype) if dtype == torch.uint8 else video.to(dtype)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to the order of sums in float32: matrix products choose it by the whole shape."""
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=2e-5)


def take(params: Any, index: slice) -> Any:
    if isinstance(params, Tensor):
        return params[index]
    taken = [take(value, index) for value in params]
    return type(params)(*taken) if hasattr(params, "_fields") else tuple(taken)


def tensors(params: Any) -> Iterator[Tensor]:
    if isinstance(params, Tensor):
        yield params
    else:
        for value in params:
            yield from tensors(value)


def test_every_public_transform_is_in_the_registry() -> None:
    public = [getattr(augment, name) for name in augment.__all__ if name != "functional"]
    wanted = {f.__name__ for f in public if f is not Transform}
    assert set(REGISTRY) == wanted


@EVERY
@DTYPES
def test_a_static_clip_stays_static(transform: Transform[Any], dtype: torch.dtype) -> None:
    video = make_video(4, 3, 1, 21, 25, dtype=dtype).expand(-1, -1, 5, -1, -1)
    out = transform(video)
    assert_same(out, out[:, :, :1].expand_as(out))


@EVERY
@DTYPES
def test_frame_order_commutes(transform: Transform[Any], dtype: torch.dtype) -> None:
    video, order = make_video(4, 3, 5, 21, 25, dtype=dtype), torch.randperm(5)
    params = transform.make_params(video)
    assert_same(
        transform.apply(video[:, :, order], params), transform.apply(video, params)[:, :, order]
    )


@EVERY
@DTYPES
def test_a_clip_depends_on_itself_alone(transform: Transform[Any], dtype: torch.dtype) -> None:
    video = make_video(5, 3, 4, 21, 25, dtype=dtype)
    params = transform.make_params(video)
    together = transform.apply(video, params)
    for i in range(5):
        alone = transform.apply(video[i : i + 1], take(params, slice(i, i + 1)))
        assert_same(alone, together[i : i + 1])


@EVERY
def test_clips_differ_in_their_parameters(transform: Transform[Any]) -> None:
    video = make_video(1, 3, 2, 21, 25).expand(64, -1, -1, -1, -1)
    for param in tensors(transform.make_params(video)):
        assert len(param) == 64
        assert len(param.unique(dim=0)) > 1


@EVERY
@DTYPES
def test_generator_decides_everything(transform: Transform[Any], dtype: torch.dtype) -> None:
    video = make_video(6, 3, 2, 21, 25, dtype=dtype)
    state = torch.get_rng_state()
    first = transform(video, generator=torch.Generator().manual_seed(7))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(123)
    assert torch.equal(first, transform(video, generator=torch.Generator().manual_seed(7)))


@EVERY
@DTYPES
def test_replay_from_params(transform: Transform[Any], dtype: torch.dtype) -> None:
    video = make_video(6, 3, 2, 21, 25, dtype=dtype)
    params = transform.make_params(video, torch.Generator().manual_seed(7))
    drawn = transform(video, generator=torch.Generator().manual_seed(7))
    assert torch.equal(drawn, transform.apply(video, params))
    assert torch.equal(drawn, transform.apply(video, params))


@EVERY
@DTYPES
def test_input_is_left_alone(transform: Transform[Any], dtype: torch.dtype) -> None:
    video = make_video(3, 3, 2, 21, 25, dtype=dtype)
    before = video.clone()
    transform(video)
    assert torch.equal(video, before)
    assert not transform.state_dict()


@EVERY
@DTYPES
def test_memory_layout_does_not_matter(transform: Transform[Any], dtype: torch.dtype) -> None:
    video = make_video(3, 3, 4, 21, 25, dtype=dtype)
    params = transform.make_params(video)
    expected = transform.apply(video, params)
    channels_last = video.contiguous(memory_format=torch.channels_last_3d)
    frames_first = video.transpose(1, 2).contiguous().transpose(1, 2)
    part_of_larger = torch.stack([video, video], dim=-1)[..., 1]
    for other in (channels_last, frames_first, part_of_larger):
        assert_same(transform.apply(other, params), expected)


@EVERY
@DTYPES
@pytest.mark.parametrize(
    "shape",
    [(2, 3, 4, 20, 30), (1, 3, 1, 21, 25), (2, 3, 1, 25, 21), (0, 3, 4, 21, 25), (2, 3, 7, 48, 23)],
)
def test_shapes(transform: Transform[Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    out = transform(make_video(*shape, dtype=dtype))
    assert out.shape == (*shape[:3], *transform.output_size(*shape[3:]))
    assert out.dtype in (dtype, torch.float32)


def steps_of(transform: Transform[Any], params: Any) -> list[tuple[Transform[Any], Any]]:
    together = isinstance(transform, Compose)
    return list(zip(transform, params, strict=True)) if together else [(transform, params)]


@EVERY
@DTYPES
@pytest.mark.parametrize("engine", ENGINES)
def test_all_engines_compute_the_same(
    transform: Transform[Any], dtype: torch.dtype, engine: str
) -> None:
    """One step at a time: colours amplify a gray level that was rounded to the other side."""
    video = make_video(6, 3, 4, 21, 25, dtype=dtype)
    for step, params in steps_of(transform, transform.make_params(video)):
        program = program_of(step, params)
        expected, actual = run(program, video), ENGINES[engine](program, video)
        assert actual.dtype == expected.dtype
        atol = 1 if expected.dtype == torch.uint8 else 2e-5
        torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)
        video = expected


@DTYPES
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_jitter_in_every_order(engine: str, channels: int, dtype: torch.dtype) -> None:
    video = make_video(24, channels, 2, 9, 11, dtype=dtype)
    jitter = ColorJitter(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.5)
    params = jitter.make_params(video)
    params = params._replace(order=torch.tensor(list(itertools.permutations(range(4)))))
    program = jitter.describe(params)
    actual, expected = ENGINES[engine](program, video), run(program, video)
    assert actual.dtype == dtype
    atol = 1 if dtype == torch.uint8 else 2e-5
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)


@EVERY
@pytest.mark.parametrize("compiling", [False, True])
def test_autocast_changes_nothing(
    transform: Transform[Any], compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = make_video(6, 3, 2, 21, 25, dtype=torch.float32)
    params = transform.make_params(video)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    expected = transform.apply(video, params)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(transform.apply(video, params), expected)


@EVERY
@DTYPES
def test_no_value_is_read_on_an_accelerator(transform: Transform[Any], dtype: torch.dtype) -> None:
    """Tensors of the meta device have no values: whatever reads one there raises."""
    video = make_video(6, 3, 4, 21, 25, dtype=dtype).to("meta")
    out = transform(video)
    assert out.device.type == "meta"
    assert out.shape == (*video.shape[:3], *transform.output_size(21, 25))


@EVERY
def test_repr_is_code_that_makes_the_transform(transform: Transform[Any]) -> None:
    scope = {"torch": torch, **{name: getattr(augment, name) for name in augment.__all__}}
    assert repr(eval(repr(transform), scope)) == repr(transform)


@EVERY
def test_workers_that_are_spawned_get_the_same_transform(transform: Transform[Any]) -> None:
    assert repr(pickle.loads(pickle.dumps(transform))) == repr(transform)


@pytest.mark.parametrize("name", ["cvrl", "moco_v2", "rho_moco", "evaluation"])
def test_presets_split_in_two(name: str) -> None:
    preset = REGISTRY[name]()
    assert isinstance(preset, Compose)
    video = make_video(5, 3, 4, 21, 25)
    params = preset.make_params(video)
    geometry, color = preset[:2], preset[2:]
    moved = geometry.apply(video, params[:2])
    assert moved.dtype == torch.uint8
    assert torch.equal(color.apply(moved, params[2:]), preset.apply(video, params))


@pytest.mark.parametrize("name", ["cvrl", "moco_v2", "rho_moco", "evaluation"])
def test_presets_equal_their_transforms_one_by_one(name: str) -> None:
    preset = REGISTRY[name]()
    video = make_video(5, 3, 4, 21, 25)
    params = preset.make_params(video)
    expected = video
    for transform, own in zip(preset, params, strict=True):
        expected = transform.apply(expected, own)
    assert_same(preset.apply(video, params), expected)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("rho_moco", torch.uint8),
        ("evaluation", torch.float32),
        pytest.param("rho_moco", torch.float32, marks=pytest.mark.slow),
        pytest.param("evaluation", torch.uint8, marks=pytest.mark.slow),
    ],
)
def test_presets_compile_into_one_graph(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = REGISTRY[name]()
    video = make_video(4, 3, 2, 21, 25, dtype=dtype)

    def draw_and_apply(video: Tensor) -> tuple[Any, Tensor]:
        params = preset.make_params(video)
        return params, preset.apply(video, params)

    params, actual = torch.compile(draw_and_apply, fullgraph=True, backend="aot_eager")(video)
    assert actual.shape == (4, 3, 2, *preset.output_size(21, 25))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the same form, not compiled
    torch.testing.assert_close(actual, preset.apply(video, params), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_batches_of_all_sizes_share_two_compiled_graphs() -> None:
    """One for the size that came first, and one for any other."""
    torch._dynamo.reset()
    preset, graphs = augment.rho_moco(12), CompileCounterWithBackend("aot_eager")
    apply = torch.compile(preset.apply, fullgraph=True, backend=graphs)
    for batch in (3, 2, 5, 4):
        video = make_video(batch, 3, 2, 16, 20)
        assert apply(video, preset.make_params(video)).shape == (batch, 3, 2, 12, 12)
    assert graphs.frame_count == 2


@pytest.mark.slow
def test_inductor_computes_the_colours_of_a_preset() -> None:
    colours = augment.rho_moco(20)[2:]
    video = make_video(6, 3, 2, 20, 20)
    params = colours.make_params(video)
    actual = torch.compile(colours.apply, fullgraph=True)(video, params)
    torch.testing.assert_close(actual, colours.apply(video, params), rtol=0, atol=1e-4)


# --- on a GPU: what can be counted without one ---------------------------------------------------


@pytest.mark.parametrize("name", ["moco_v2", "rho_moco", "cvrl"])
def test_drawing_is_one_call_and_few_operations(name: str) -> None:
    preset, video = getattr(augment, name)(20), make_video(4, 3, 2, 21, 25)
    preset.make_params(video)  # constants are kept from now on
    with Operations() as operations:
        preset.make_params(video, torch.Generator())
    assert sum(n for name, n in operations.counts.items() if "rand" in name) == 1
    assert sum(operations.counts.values()) <= 19, operations.counts


def test_a_preset_is_few_operations_for_all_clips_at_once() -> None:
    """Each costs a launch, and those that write a video cost a pass over all the clips."""
    preset, video = augment.rho_moco(112), make_video(2, 3, 2, 128, 170)
    program = preset.describe(preset.make_params(video))
    run(program, video, BATCHED)  # constants are kept from now on
    with Operations() as operations:
        run(program, video, BATCHED)
    assert 0 < sum(operations.counts.values()) <= 122, operations.counts


def scheduled_kernels(
    transform: augment.Compose, video: Tensor, monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """Kernels of the compiled transform, as Inductor schedules them on the CPU.

    For a GPU it joins some more.
    """
    from torch._inductor.scheduler import NopKernelSchedulerNode, Scheduler

    class Scheduled(Exception):
        pass

    scheduled: list[Any] = []

    def stop_here(self: Any) -> None:
        scheduled.extend(self.nodes)
        raise Scheduled

    monkeypatch.setattr(Scheduler, "codegen", stop_here)
    torch._dynamo.reset()
    params = transform.make_params(video)
    caches_off = torch._inductor.config.patch(force_disable_caches=True)
    with caches_off, pytest.raises(Exception, match="Scheduled"):
        torch.compile(transform.apply, fullgraph=True)(video, params)
    torch._dynamo.reset()
    return [
        node
        for node in scheduled
        if not (node.is_extern() or isinstance(node, NopKernelSchedulerNode))
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_colours_and_blur_are_four_passes_to_any_dtype_and_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean gray level, the chain of colours, a blur each way; the last writes the result."""
    colours = augment.rho_moco(112)[2:-1]
    normalize = augment.Normalize(
        mean=(0.45,) * 3,
        std=(0.225,) * 3,
        dtype=torch.bfloat16,
        memory_format=torch.channels_last_3d,
    )
    video = make_video(2, 3, 8, 112, 112)
    kernels = scheduled_kernels(augment.Compose(*colours, normalize), video, monkeypatch)
    sizes = [max(math.prod(out.node.get_size()) for out in node.get_outputs()) for node in kernels]
    passes = [size for size in sizes if size >= video.numel() // 3]  # others are numbers of clips
    assert 0 < len(passes) <= 4, kernels


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_a_compiled_preset_is_at_most_ten_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    video = make_video(2, 3, 8, 128, 170)
    kernels = scheduled_kernels(augment.rho_moco(112), video, monkeypatch)
    assert 0 < len(kernels) <= 10, kernels


@DTYPES
@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float64, None])
def test_the_result_has_the_dtype_and_layout_that_the_encoder_wants(
    wanted: torch.dtype | None, layout: Any, with_gradient: bool, dtype: torch.dtype
) -> None:
    """Only the result is rounded."""
    preset = augment.moco_v2(20)
    last = Normalize(mean=preset[-1].mean, std=preset[-1].std, dtype=wanted, memory_format=layout)
    video = make_video(4, 3, 3, 21, 25, dtype=dtype)
    params = preset.make_params(video)
    expected = preset.apply(video, params).to(wanted or torch.float32)
    if with_gradient and dtype != torch.uint8:
        video.requires_grad_()
    other = Compose(*preset[:-1], last)
    assert repr(eval(repr(last), {"torch": torch, "Normalize": Normalize})) == repr(last)
    applies = [other.apply]
    one_compiles_for_it = wanted == torch.bfloat16 and layout == torch.channels_last_3d
    if one_compiles_for_it and not with_gradient and dtype == torch.float32:
        torch._dynamo.reset()
        applies.append(torch.compile(other.apply, fullgraph=True, backend="aot_eager"))
    for apply in applies:
        out = apply(video, params)
        assert out.dtype == expected.dtype
        assert out.is_contiguous(memory_format=layout)
        eps = max(torch.finfo(expected.dtype).eps, 1e-6)
        torch.testing.assert_close(out.double(), expected.double(), rtol=eps, atol=1e-4)
