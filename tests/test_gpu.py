"""What only a real GPU can show; without one, all of it is skipped.

pytest tests/test_gpu.py
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.losses import info_nce, multi_positive_info_nce
from iivcl.momentum import momentum_copy, momentum_update_
from iivcl.queues import estimate, exact_topk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

DEVICE = "cuda"
BATCH, DIM, ROWS = 32, 64, 5000
FORMS = ("per_positive", "out", "in")


def unit(rows: int, dim: int = DIM) -> Tensor:
    return F.normalize(torch.randn(rows, dim), dim=1).to(DEVICE)


@contextmanager
def low_precision() -> Iterator[None]:
    """Everything a program may allow its products."""
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast(DEVICE, torch.bfloat16):
            yield
    finally:
        torch.set_float32_matmul_precision("highest")


# --- lookup --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 1500])
@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("rows", [100, ROWS, 70_001])
def test_neighbors_are_those_of_float64_in_low_precision_programs(
    rows: int, k: int, chunk_size: int | None
) -> None:
    query, bank = unit(BATCH), unit(rows)
    mask = torch.rand(rows, device=DEVICE) < 0.9
    with low_precision():
        values, indices = exact_topk(query, bank, k, mask=mask, chunk_size=chunk_size)
    exact = (query.double() @ bank.double().T).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(values.double(), exact.topk(k).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.gather(1, indices), values.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 20])
def test_nearest_leaves_out_the_own_video_and_what_is_not_there(k: int) -> None:
    queue = NNSupportQueue(ROWS, DIM).to(DEVICE)
    queue.enqueue(unit(3000), torch.randint(0, 40, (3000,), device=DEVICE))
    query, ids = unit(BATCH), torch.arange(BATCH, device=DEVICE)
    found = queue.nearest(query, k, ids=ids)
    allowed = (queue.ids != ids[:, None]) & (torch.arange(ROWS, device=DEVICE) < 3000)
    exact = (query.double() @ queue.keys.double().T).masked_fill(~allowed, -torch.inf)
    assert found.valid.all()
    torch.testing.assert_close(found.similarity.double(), exact.topk(k).values, rtol=0, atol=1e-6)
    assert allowed.gather(1, found.indices).all()


@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("rows", [16_384, 1_048_576])
def test_lookup_takes_no_more_memory_than_planned(rows: int, k: int) -> None:
    batch, dim = 256, 128
    queue = NNSupportQueue(rows, dim).to(DEVICE)
    queue.enqueue(unit(batch, dim), torch.arange(batch, device=DEVICE))
    query, ids = unit(batch, dim), torch.arange(batch, device=DEVICE)
    queue.nearest(query, k, ids=ids)  # libraries take their own memory once
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    queue.nearest(query, k, ids=ids)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= estimate(rows, dim, batch, k, device="cuda").workspace_bytes


# --- a step --------------------------------------------------------------------------------------


class Step:
    """Lookup, loss, gradient and enqueue, with its inputs in fixed places."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.queue = NNSupportQueue(ROWS, DIM).to(DEVICE)
        self.queue.load_state_dict(state)
        self.criterion = IIVCLLoss(num_neighbors=5)
        self.query, self.key = unit(BATCH).requires_grad_(), unit(BATCH)
        self.ids = torch.arange(BATCH, device=DEVICE)

    def feed(self, query: Tensor, key: Tensor, ids: Tensor) -> None:
        with torch.no_grad():
            self.query.copy_(query)
        self.key.copy_(key)
        self.ids.copy_(ids)

    def __call__(self) -> tuple[Tensor, Tensor]:
        loss = self.criterion(self.query, self.key, self.queue, ids=self.ids).loss
        (gradient,) = torch.autograd.grad(loss, self.query)
        self.queue.enqueue(self.key, self.ids)
        return loss, gradient


def filled_state() -> dict[str, Tensor]:
    queue = NNSupportQueue(ROWS, DIM).to(DEVICE)
    queue.enqueue(unit(ROWS - 70), torch.randint(0, 500, (ROWS - 70,), device=DEVICE))
    return copy.deepcopy(queue.state_dict())


def compare_steps(one: Step, run: Callable[[], tuple[Tensor, Tensor]], other: Step) -> None:
    """Over the wrap of the ring and on, both do the same."""
    for _ in range(6):
        batch = unit(BATCH), unit(BATCH), torch.randint(0, 500, (BATCH,), device=DEVICE)
        one.feed(*batch)
        other.feed(*batch)
        for actual, expected in zip(run(), other(), strict=True):
            torch.testing.assert_close(actual, expected)
    for name, value in other.queue.state_dict().items():
        torch.testing.assert_close(one.queue.state_dict()[name], value)


def test_a_cuda_graph_replays_lookup_loss_and_enqueue() -> None:
    state = filled_state()
    step = Step(state)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up, as capturing wants it
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    step.queue.load_state_dict(state)

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return outputs

    compare_steps(step, replay, Step(state))


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning:torch._inductor")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_the_step_compiles_into_one_graph(mode: str) -> None:
    state = filled_state()
    step = Step(state)

    def forward(query: Tensor, key: Tensor, ids: Tensor) -> Tensor:
        loss = step.criterion(query, key, step.queue, ids=ids).loss
        step.queue.enqueue(key, ids)
        return loss

    compiled = torch.compile(forward, fullgraph=True, mode=mode)

    def run() -> tuple[Tensor, Tensor]:
        loss = compiled(step.query, step.key, step.ids)
        return loss.detach().clone(), torch.autograd.grad(loss, step.query)[0]

    compare_steps(step, run, Step(state))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_part_of_a_step_waits_for_the_gpu() -> None:
    encoder = nn.Sequential(backbones.slow_resnet(18), backbones.ProjectionHead(512, 64, DIM))
    encoder = encoder.to(DEVICE, memory_format=torch.channels_last_3d)
    key_encoder = momentum_copy(encoder)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9, fused=True)
    queue, criterion = NNSupportQueue(ROWS, DIM).to(DEVICE), IIVCLLoss(num_neighbors=5)
    preset = augment.rho_moco(64)
    clips = torch.randint(0, 256, (8, 3, 4, 64, 85), dtype=torch.uint8, device=DEVICE)
    ids = torch.arange(8, device=DEVICE)

    def step() -> None:
        views = preset(clips), preset(clips)
        with torch.autocast(DEVICE, torch.bfloat16):
            query = encoder(views[0])
            with torch.no_grad():
                momentum_update_(key_encoder, encoder, 0.99)
                key = key_encoder(views[1])
        out = criterion(query, key, queue, ids=ids)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        queue.enqueue(key, ids)

    step()
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- losses, momentum ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", ["dense", 700])
@pytest.mark.parametrize("form", FORMS)
def test_losses_equal_those_of_float64_on_the_cpu(form: Any, chunk_size: Any) -> None:
    query, keys = unit(BATCH), unit(2000)
    positives = torch.rand(BATCH, 2000, device=DEVICE) < 0.01
    positives[:, 0] = True

    def gradient_of(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
        at = at.detach().clone().requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16):
            value = loss(at)
        return value.detach(), torch.autograd.grad(value, at)[0]

    def several(at: Tensor) -> Tensor:
        return multi_positive_info_nce(
            at, keys.to(at), positives.to(at.device), form=form, chunk_size=chunk_size
        )

    def single(at: Tensor) -> Tensor:
        return info_nce(at, keys[:BATCH].to(at), keys.to(at), form=form, chunk_size=chunk_size)

    for loss in (several, single):
        expected = gradient_of(loss, query.double().cpu())
        actual = gradient_of(loss, query)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double().cpu(), e, rtol=1e-4, atol=1e-6)


def test_momentum_update_is_that_of_the_cpu() -> None:
    encoder = backbones.slow_resnet(18)
    key_encoder = backbones.slow_resnet(18).requires_grad_(False)
    on_gpu = copy.deepcopy(encoder).to(DEVICE), copy.deepcopy(key_encoder).to(DEVICE)
    momentum_update_(key_encoder, encoder, 0.99)
    momentum_update_(on_gpu[1], on_gpu[0], 0.99)
    for a, e in zip(on_gpu[1].parameters(), key_encoder.parameters(), strict=True):
        torch.testing.assert_close(a.cpu(), e)


@pytest.mark.parametrize("distributed", ["gather", "shard"])
def test_queues_over_nccl(distributed: Any) -> None:
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        over_ranks = NNSupportQueue(ROWS, DIM, distributed=distributed).to(DEVICE)
        alone = NNSupportQueue(ROWS, DIM, distributed="local").to(DEVICE)
        ids = torch.randint(0, 50, (600,), device=DEVICE)
        query, keys = unit(BATCH), unit(600)
        for queue in (over_ranks, alone):
            queue.enqueue(keys, ids)
        for actual, expected in zip(
            over_ranks.nearest(query, 5, ids=ids[:BATCH]),
            alone.nearest(query, 5, ids=ids[:BATCH]),
            strict=True,
        ):
            torch.testing.assert_close(actual, expected)
    finally:
        dist.destroy_process_group()


# --- augmentation --------------------------------------------------------------------------------


def on_device(params: Any) -> Any:
    if isinstance(params, Tensor):
        return params.to(DEVICE)
    values = [on_device(value) for value in params]
    return type(params)(*values) if hasattr(params, "_fields") else tuple(values)


@pytest.mark.parametrize("name", ["moco_v2", "rho_moco", "cvrl", "evaluation"])
def test_every_step_of_a_preset_equals_that_of_the_cpu(name: str) -> None:
    preset = getattr(augment, name)(48)
    video = torch.randint(0, 256, (12, 3, 4, 64, 85), dtype=torch.uint8)
    for transform, params in zip(preset, preset.make_params(video), strict=True):
        expected = transform.apply(video, params)
        for placed in (params, on_device(params)):
            actual = transform.apply(video.to(DEVICE), placed).cpu()
            assert actual.dtype == expected.dtype
            atol = 1 if expected.dtype == torch.uint8 else 2e-4
            torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)
        video = expected


@pytest.mark.parametrize("name", ["rho_moco", "cvrl"])
def test_compiled_colours_equal_those_of_the_cpu(name: str) -> None:
    colours = getattr(augment, name)(48)[2:]
    video = torch.randint(0, 256, (12, 3, 4, 48, 48), dtype=torch.uint8)
    params = colours.make_params(video)
    compiled = torch.compile(colours.apply, fullgraph=True)
    actual = compiled(video.to(DEVICE), on_device(params)).cpu()
    torch.testing.assert_close(actual, colours.apply(video, params), rtol=0, atol=2e-3)


# --- CUDA graph ----------------------------------------------------------------------------------


def test_a_step_in_a_graph_trains_as_the_plain_step_does() -> None:
    """Same weights, same batches: the queue and the loss of every step are the same."""

    def trainer() -> tuple[dict[str, Any], Callable[[], Tensor]]:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, DIM)).to(DEVICE)
        key_encoder, queue = momentum_copy(encoder), NNSupportQueue(256, DIM).to(DEVICE)
        held = {
            "views": torch.zeros(2, BATCH, 32, device=DEVICE),
            "ids": torch.zeros(BATCH, dtype=torch.int64, device=DEVICE),
            "momentum": torch.zeros((), device=DEVICE),
            "queue": queue,
        }
        lr = torch.tensor(1e-3, device=DEVICE)
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=lr, capturable=True)
        criterion = IIVCLLoss(num_neighbors=3)

        def step() -> Tensor:
            optimizer.zero_grad()
            momentum_update_(key_encoder, encoder, held["momentum"])
            query = encoder(held["views"][0])
            with torch.no_grad():
                key = F.normalize(key_encoder(held["views"][1]), dim=1)
            loss = criterion(query, key, queue, ids=held["ids"]).loss
            loss.backward()
            optimizer.step()
            queue.enqueue(key, held["ids"])
            return loss.detach()

        return held, step

    (plain, plain_step), (held, step) = trainer(), trainer()
    graph, out = torch.cuda.CUDAGraph(), None
    for i in range(12):
        views, ids = torch.randn(2, BATCH, 32), torch.arange(BATCH) + i * BATCH
        for inputs in (plain, held):
            inputs["views"].copy_(views)
            inputs["ids"].copy_(ids)
            inputs["momentum"].fill_(0.9 + 0.005 * i)
        expected = plain_step().clone()
        if i < 3:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                got = step()
            torch.cuda.current_stream().wait_stream(side)
        else:
            if out is None:
                with torch.cuda.graph(graph):
                    out = step()
            graph.replay()
            got = out
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(held["queue"].keys, plain["queue"].keys, rtol=1e-3, atol=1e-4)
    assert torch.equal(held["queue"].ids, plain["queue"].ids)
    assert len(held["queue"]) == 256


def test_the_example_of_a_graph_runs(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "examples" / "cuda_graph.py"
    run = subprocess.run(
        [sys.executable, str(script), "--steps", "8"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "step 7: loss" in run.stdout
