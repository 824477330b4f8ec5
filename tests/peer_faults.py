"""Where other libraries go wrong, each shown by running them; ours does the same beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import NNMemoryBankModule
from lightly.models.modules.memory_bank import MemoryBankModule
from peers import LIGHTLY, PML, embeddings, methods
from pytorch_metric_learning import losses as pml
from torch import Tensor

from iivcl import MoCoQueue, NNSupportQueue
from iivcl.losses import info_nce


class Fault(NamedTuple):
    peer: str
    call: str
    run: str  # what is done, and what the two figures are
    theirs: str
    ours: str
    measure: Callable[[], tuple[str, str]]  # theirs, ours


def names_in_state_dict() -> tuple[str, str]:
    bank, queue = MemoryBankModule((8, 4)), MoCoQueue(8, 4)
    return str(len(bank.state_dict())), str(len(queue.state_dict()))


def newest_rows_after_a_wrap() -> tuple[str, str]:
    angle = torch.arange(9) / 9
    keys = torch.stack([angle.cos(), angle.sin()], 1)  # (9, 2), of unit length, all different
    bank, queue = MemoryBankModule((8, 2)), MoCoQueue(8, 2)
    for batch in keys.split(3):
        bank(batch, update=True)
        queue.enqueue(batch)

    def held(rows: Tensor) -> str:
        return str(int((torch.cdist(keys[1:], rows) < 1e-3).any(1).sum()))

    return held(bank.bank), held(queue.keys)


def neighbours_in_an_empty_bank() -> tuple[str, str]:
    query = embeddings(0, 4, 16).float()
    theirs = NNMemoryBankModule((32, 16))(query)
    ours = NNSupportQueue(32, 16).nearest(query)
    return str(int((theirs.norm(dim=1) > 0).sum())), str(int(ours.valid.sum()))


def same_inputs_twice() -> tuple[str, str]:
    query, key = embeddings(0, 4, 8).float().requires_grad_(), embeddings(1, 4, 8).float()
    criterion, queue = NTXentLoss(memory_bank_size=(16, 8)), MoCoQueue(16, 8)
    queue.enqueue(embeddings(2, 16, 8))
    return (
        equal(criterion(query, key), criterion(query, key)),
        equal(methods.moco(query, key, queue), methods.moco(query, key, queue)),
    )


def half_precision_against_a_bank() -> tuple[str, str]:
    query, key = embeddings(0, 4, 8).half(), embeddings(1, 4, 8).half()
    queue = MoCoQueue(16, 8)
    queue.enqueue(embeddings(2, 16, 8))
    try:
        theirs = NTXentLoss(memory_bank_size=(16, 8))(query, key)
    except RuntimeError as error:
        return type(error).__name__, finite(methods.moco(query, key, queue))
    return finite(theirs), finite(methods.moco(query, key, queue))


def zero_embedding_in_half_precision() -> tuple[str, str]:
    a, b = embeddings(0, 4, 8).half(), embeddings(1, 4, 8).half()
    a[0] = 0
    return finite(NTXentLoss()(a, b)), finite(methods.simclr(a, b))


def next_loss_after_reload() -> tuple[str, str]:
    first, second = embeddings(0, 2, 3, 8).float()
    labels = torch.arange(3)
    memories = [pml.CrossBatchMemory(pml.NTXentLoss(), 8, 16) for _ in range(2)]
    memories[0](first, labels)
    memories[1].load_state_dict(memories[0].state_dict())
    theirs = equal(memories[0](second, labels), memories[1](second, labels))

    queues = [MoCoQueue(16, 8) for _ in range(2)]
    queues[0].enqueue(first)
    queues[1].load_state_dict(queues[0].state_dict())
    ours = equal(*(methods.moco(second, first, queue) for queue in queues))
    return theirs, ours


def hard_positive_at_low_temperature() -> tuple[str, str]:
    """The query is equal to a negative and at a right angle to its positive."""
    keys = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    zero = torch.tensor([0])
    pairs = (zero, zero, torch.tensor([0, 0]), torch.tensor([1, 2]))

    def value_and_gradient(loss: Callable[[Tensor], Tensor]) -> str:
        query = torch.tensor([[1.0, 0.0]], requires_grad=True)
        value = loss(query)
        (gradient,) = torch.autograd.grad(value, query)
        return f"{value.item():.1f}, {gradient.norm().item():.1f}"

    def theirs(query: Tensor) -> Tensor:
        loss: Tensor = pml.NTXentLoss(0.01)(query, indices_tuple=pairs, ref_emb=keys)
        return loss

    def ours(query: Tensor) -> Tensor:
        return info_nce(query, keys[:1], keys[1:], temperature=0.01)

    return value_and_gradient(theirs), value_and_gradient(ours)


def one_positive_and_one_negative() -> tuple[str, str]:
    query, keys, zero = torch.tensor([[1.0, 0.0]]), torch.eye(2), torch.tensor([0])
    pairs = (zero, zero, zero, torch.tensor([1]))
    theirs = pml.NTXentLoss(1.0)(query, indices_tuple=pairs, ref_emb=keys)
    ours = info_nce(query, keys[:1], keys[1:], temperature=1.0)
    return f"{theirs.item():.4f}", f"{ours.item():.4f}"


def equal(first: Tensor, second: Tensor) -> str:
    return "equal" if torch.equal(first, second) else "different"


def finite(loss: Tensor) -> str:
    return "finite" if loss.isfinite() else "not finite"


FAULTS = [
    Fault(
        LIGHTLY,
        "`MemoryBankModule`",
        "names in its `state_dict`",
        "0",
        "6",
        names_in_state_dict,
    ),
    Fault(
        LIGHTLY,
        "`MemoryBankModule`",
        "nine keys in batches of three into a bank of 8: how many of the newest eight it holds",
        "7",
        "8",
        newest_rows_after_a_wrap,
    ),
    Fault(
        LIGHTLY,
        "`NNMemoryBankModule`",
        "four queries to a new bank: how many get a neighbour, which can only be a random vector",
        "4",
        "0",
        neighbours_in_an_empty_bank,
    ),
    Fault(
        LIGHTLY,
        "`NTXentLoss` with a bank",
        "two calls on the same inputs: the losses are",
        "different",
        "equal",
        same_inputs_twice,
    ),
    Fault(
        LIGHTLY,
        "`NTXentLoss` with a bank",
        "float16 embeddings, without autocast: the loss is",
        "RuntimeError",
        "finite",
        half_precision_against_a_bank,
    ),
    Fault(
        LIGHTLY,
        "`NTXentLoss`",
        "float16 embeddings of which one is zero: the loss is",
        "not finite",
        "finite",
        zero_embedding_in_half_precision,
    ),
    Fault(
        PML,
        "`CrossBatchMemory`",
        "state of a memory of three rows loaded into a new one: the next losses of the two are",
        "different",
        "equal",
        next_loss_after_reload,
    ),
    Fault(
        PML,
        "`NTXentLoss`",
        "temperature 0.01, cosine 0 to the positive and 1 to a negative, where the loss is 100 and "
        "the norm of its gradient 100: loss and norm in float32",
        "87.3, 0.0",
        "100.0, 100.0",
        hard_positive_at_low_temperature,
    ),
    Fault(
        PML,
        "`NTXentLoss`",
        "one positive at cosine 1, one negative at cosine 0, temperature 1, where the loss is "
        "log(1 + 1/e) = 0.3133: loss",
        "0.0000",
        "0.3133",
        one_positive_and_one_negative,
    ),
]
