"""Budgets of operations: how much a step of training may launch on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operations import count
from torch import Tensor, nn

from iivcl import IIVCLLoss, NNSupportQueue, _engine
from iivcl.losses import info_nce
from iivcl.momentum import momentum_copy, momentum_update_
from iivcl.queues import _plan, exact_topk

BATCH, ROWS, DIM = 64, 4096, 16
FEW = 512  # rows that a lookup does not cut into blocks


@pytest.fixture(autouse=True)
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of accelerators, on tensors of the CPU."""
    monkeypatch.setattr(_engine, "on_cpu", lambda tensor: False)
    monkeypatch.setattr(_plan, "_FEW_SIMILARITIES", 2 * BATCH * FEW)


def inputs() -> tuple[Tensor, Tensor, NNSupportQueue, Tensor]:
    torch.manual_seed(0)
    queue, ids = NNSupportQueue(ROWS, DIM), torch.randint(ROWS // 8, (BATCH,))
    queue.enqueue(torch.randn(ROWS, DIM), torch.arange(ROWS) // 8)
    key = F.normalize(torch.randn(BATCH, DIM), dim=1)
    return key.clone().requires_grad_(), key, queue, ids


def operations() -> dict[str, Callable[[], object]]:
    (query, key, queue, ids), criterion = inputs(), IIVCLLoss()
    found = queue.nearest(key, 5, ids=ids)
    encoder = nn.Linear(DIM, DIM)
    key_encoder = momentum_copy(encoder)
    return {
        "exact_topk": lambda: exact_topk(key, queue.keys, 5),
        "exact_topk of few": lambda: exact_topk(key, queue.keys[:FEW], 5),
        "nearest, ids": lambda: queue.nearest(key, 5, ids=ids),
        "one positive, forward and backward": lambda: torch.autograd.grad(
            info_nce(query, key, queue.keys), query
        ),
        "loss with neighbours, forward and backward": lambda: torch.autograd.grad(
            criterion(query, key, queue, ids=ids, neighbors=found).loss, query
        ),
        "loss with lookup, forward and backward": lambda: torch.autograd.grad(
            criterion(query, key, queue, ids=ids).loss, query
        ),
        "enqueue": lambda: queue.enqueue(key, ids),
        "momentum": lambda: momentum_update_(key_encoder, encoder, 0.99),
        "momentum in a tensor": lambda: momentum_update_(key_encoder, encoder, torch.tensor(0.99)),
    }


BUDGETS = {
    "exact_topk": 8,
    "exact_topk of few": 2,  # the product and topk
    "nearest, ids": 20,
    "one positive, forward and backward": 35,
    "loss with neighbours, forward and backward": 83,  # dense torch takes 67, each with autograd's
    "loss with lookup, forward and backward": 86,
    "enqueue": 16,
    "momentum": 2,
    "momentum in a tensor": 4,  # three for all the weights together, and 1 - momentum
}


@pytest.mark.parametrize("name", BUDGETS)
def test_no_more_operations_than_the_budget(name: str) -> None:
    counts = count(operations()[name])
    assert 0 < sum(counts.values()) <= BUDGETS[name], counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_no_more_kernels_than_the_budget_in_a_compiled_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Inductor schedules them on the CPU, and what the operators launch that it cannot join."""
    from torch._inductor.scheduler import NopKernelSchedulerNode, Scheduler

    kernels: list[str] = []
    generate = Scheduler.codegen

    def listed(self: Any) -> Any:
        for node in self.nodes:
            is_kernel = not isinstance(node, NopKernelSchedulerNode)
            # What several outputs of one operator are called is no kernel.
            if is_kernel and not (node.is_extern() and "MultiOutput" in str(type(node.node))):
                kernels.append(str(getattr(node.node, "python_kernel_name", None)))
        return generate(self)

    monkeypatch.setattr(Scheduler, "codegen", listed)
    lookup = sum(count(operations()["nearest, ids"]).values())
    query, key, queue, ids = inputs()

    def loss(query: Tensor, key: Tensor, ids: Tensor) -> Tensor:
        return IIVCLLoss()(query, key, queue, ids=ids).loss

    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        compiled = torch.compile(loss, fullgraph=True)(query, key, ids)
        (gradient,) = torch.autograd.grad(compiled, query)
    torch._dynamo.reset()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(query, key, ids), query)[0])
    opaque = [name for name in kernels if "iivcl" in name]
    assert opaque == ["torch.ops.iivcl.search.default"]
    assert len(kernels) - 1 + lookup <= 45, kernels  # some of the lookup's are counted twice


def test_the_counter_opens_operators_and_passes_over_views() -> None:
    rows = torch.randn(4, 3)
    assert count(lambda: rows.T[1:].unflatten(1, (2, 2)).detach()).total() == 0
    assert count(lambda: rows.add_(1).mul(2)) == {"add_": 1, "mul": 1}
    queue = NNSupportQueue(8, 3)
    queue.enqueue(rows)
    opened = count(lambda: queue.candidates().log_sum_exp(rows, chunk_size=8))
    assert opened["mm"] == 1
    twice = count(lambda: queue.candidates().log_sum_exp(rows, chunk_size=4))
    assert twice["mm"] == 2
