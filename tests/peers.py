"""Other libraries' losses and ours on the same numbers: one list for the tests and the report.

The functions on our side are those of ``docs/how-to/losses.md``, run as they stand on the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from lightly.models.modules import NNMemoryBankModule
from pytorch_metric_learning import losses as pml
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from iivcl import NNSupportQueue

BATCH, DIM, ROWS, SIZE = 8, 16, 48, 64
LIGHTLY, PML, RESTATED = "lightly", "pytorch-metric-learning", "restated in torch"


class Comparison(NamedTuple):
    method: str
    peer: str
    call: str  # on the peer's side
    ours: str
    losses: Callable[[], tuple[Tensor, Tensor, list[Tensor]]]  # ours, theirs, what they depend on

    def differences(self) -> tuple[float, float]:
        """Largest absolute difference of the value and of any entry of a gradient."""
        ours, theirs, inputs = self.losses()
        gradients = (torch.autograd.grad(loss, inputs) for loss in (ours, theirs))
        return (
            (ours - theirs).abs().item(),
            max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)),
        )


def run_page(path: Path) -> SimpleNamespace:
    """Run the Python blocks of a page and return its names."""
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for block in re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S):
            exec(compile(block, str(path), "exec"), names)
    return SimpleNamespace(**names)


methods = run_page(Path(__file__).parents[1] / "docs" / "how-to" / "losses.md")


def embeddings(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def queue_of(rows: int, seed: int = 10, num_ids: int | None = None) -> NNSupportQueue:
    queue = NNSupportQueue(SIZE, DIM)
    ids = None if num_ids is None else torch.arange(rows) % num_ids
    queue.enqueue(embeddings(seed, rows, DIM), ids)
    return queue


def unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.double(), dim=1)


def explicit_pairs(
    criterion: torch.nn.Module, query: Tensor, keys: Tensor, positive: Tensor, negative: Tensor
) -> Tensor:
    """Call a loss of pytorch-metric-learning with (B, M) masks of the pairs."""
    pairs = (*positive.nonzero(as_tuple=True), *negative.nonzero(as_tuple=True))
    loss: Tensor = criterion(query, indices_tuple=pairs, ref_emb=keys)
    return loss


# --- one function per comparison -----------------------------------------------------------------


def moco() -> tuple[Tensor, Tensor, list[Tensor]]:
    query, key = embeddings(0, BATCH, DIM).requires_grad_(), embeddings(1, BATCH, DIM)
    queue = queue_of(SIZE)  # full: lightly's bank has no other state
    peer = NTXentLoss(temperature=0.1, memory_bank_size=(SIZE, DIM))
    peer.memory_bank.bank = queue.keys.double()
    return methods.moco(query, key, queue, temperature=0.1), peer(query, key), [query]


def rho_moco_pairs() -> tuple[Tensor, Tensor, list[Tensor]]:
    query, keys = embeddings(0, BATCH, DIM).requires_grad_(), embeddings(1, BATCH, 3, DIM)
    queue = queue_of(ROWS)
    # The rows of the queue are of unit length in float32; to normalise them again would move them.
    criterion = pml.NTXentLoss(0.1, distance=DotProductSimilarity(normalize_embeddings=False))
    everything = torch.cat([unit(keys.flatten(0, 1)), queue.keys[:ROWS].double()])
    own = torch.eye(BATCH, dtype=torch.bool).repeat_interleave(3, dim=1)
    in_queue = torch.ones(BATCH, ROWS, dtype=torch.bool)
    theirs = explicit_pairs(
        criterion,
        F.normalize(query, dim=1),
        everything,
        torch.cat([own, ~in_queue], 1),
        torch.cat([torch.zeros_like(own), in_queue], 1),
    )
    return methods.rho_moco(query, keys, queue, temperature=0.1), theirs, [query]


def rho_moco_stacked() -> tuple[Tensor, Tensor, list[Tensor]]:
    query, keys = embeddings(0, BATCH, DIM).requires_grad_(), embeddings(1, BATCH, 3, DIM)
    queue = queue_of(ROWS)
    q = F.normalize(query, dim=1)
    negatives = q @ queue.keys[:ROWS].double().T
    logits = [
        torch.cat([(q * unit(keys[:, view])).sum(1, keepdim=True), negatives], 1)
        for view in range(3)
    ]
    target = torch.zeros(3 * BATCH, dtype=torch.int64)
    theirs = F.cross_entropy(torch.cat(logits) / 0.1, target)
    return methods.rho_moco(query, keys, queue, temperature=0.1), theirs, [query]


def simclr() -> tuple[Tensor, Tensor, list[Tensor]]:
    a, b = (embeddings(seed, BATCH, DIM).requires_grad_() for seed in (0, 1))
    theirs = NTXentLoss(temperature=0.2)(a, b)
    return methods.simclr(a, b, temperature=0.2), theirs, [a, b]


def nnclr_lightly() -> tuple[Tensor, Tensor, list[Tensor]]:
    z_a, z_b, p_a, p_b = (embeddings(seed, BATCH, DIM).requires_grad_() for seed in range(4))
    queue = queue_of(SIZE)
    bank, criterion = NNMemoryBankModule(size=(SIZE, DIM)), NTXentLoss(temperature=0.1)
    bank.bank = queue.keys.double()
    nearest_a, nearest_b = bank(z_a.detach()), bank(z_b.detach())
    theirs = (criterion(nearest_a, p_b) + criterion(nearest_b, p_a)) / 2
    ours = methods.nnclr(z_a, z_b, p_a, p_b, queue, temperature=0.1, contrast=methods.simclr)
    return ours, theirs, [p_a, p_b]


def nnclr_paper() -> tuple[Tensor, Tensor, list[Tensor]]:
    z_a, z_b, p_a, p_b = (embeddings(seed, BATCH, DIM).requires_grad_() for seed in range(4))
    queue = queue_of(ROWS)
    bank, target = unit(queue.keys[:ROWS]), torch.arange(BATCH)
    terms = []
    for z, p in ((z_a, p_b), (z_b, p_a)):
        nearest = bank[(unit(z.detach()) @ bank.T).argmax(1)]
        logits = nearest @ F.normalize(p, dim=1).T / 0.1
        terms += [F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)]
    ours = methods.nnclr(z_a, z_b, p_a, p_b, queue, temperature=0.1)
    return ours, torch.stack(terms).mean(), [p_a, p_b]


def supcon() -> tuple[Tensor, Tensor, list[Tensor]]:
    clips = embeddings(0, 2 * BATCH, DIM).requires_grad_()
    labels = torch.tensor([0, 1, 1, 2, 0, 3, 4, 1]).repeat(2)
    theirs = pml.SupConLoss(temperature=0.1, reducer=MeanReducer())(clips, labels)
    return methods.supcon(clips, labels, temperature=0.1), theirs, [clips]


def ubernce() -> tuple[Tensor, Tensor, list[Tensor]]:
    query, key = embeddings(0, BATCH, DIM).requires_grad_(), embeddings(1, BATCH, DIM)
    labels, queue = torch.tensor([0, 1, 1, 2, 0, 3, 4, 9]), queue_of(ROWS, num_ids=5)
    own = torch.eye(BATCH, dtype=torch.bool)
    same_class = labels[:, None] == queue.ids[:ROWS]
    theirs = explicit_pairs(
        pml.SupConLoss(temperature=0.1, reducer=MeanReducer()),
        query,
        torch.cat([key, queue.keys[:ROWS].double()]),
        torch.cat([own, same_class], 1),
        torch.cat([torch.zeros_like(own), ~same_class], 1),
    )
    return methods.ubernce(query, key, queue, labels, temperature=0.1), theirs, [query]


def coclr() -> tuple[Tensor, Tensor, list[Tensor]]:
    query, key = embeddings(0, BATCH, DIM).requires_grad_(), embeddings(1, BATCH, DIM)
    rgb, flow = queue_of(ROWS, num_ids=24), queue_of(ROWS, seed=11, num_ids=24)
    ids, flow_key = torch.arange(BATCH), embeddings(2, BATCH, DIM)
    # Row by row: the probability of all positives together, under one softmax.
    likelihoods = []
    for b in range(BATCH):
        same_video = rgb.ids[:ROWS] == ids[b]
        similarity = unit(flow_key[b : b + 1])[0] @ unit(flow.keys[:ROWS]).T
        mined = similarity.masked_fill(same_video, -torch.inf).topk(5).indices
        chosen = same_video.clone()
        chosen[mined] = True
        q = F.normalize(query[b], dim=0)
        logits = torch.cat([unit(key[b : b + 1]), unit(rgb.keys[:ROWS])]) @ q / 0.07
        positive = torch.cat([torch.ones(1, dtype=torch.bool), chosen])
        likelihoods.append(logits.softmax(0)[positive].sum())
    found = flow.nearest(flow_key, k=5, ids=ids)
    ours = methods.coclr(query, key, rgb, ids, found, temperature=0.07)
    return ours, -torch.stack(likelihoods).log().mean(), [query]


COMPARISONS = [
    Comparison("MoCo", LIGHTLY, "`NTXentLoss(memory_bank_size=(K, D))`", "`moco`", moco),
    Comparison("rho-MoCo", PML, "`NTXentLoss`, explicit pairs", "`rho_moco`", rho_moco_pairs),
    Comparison(
        "rho-MoCo, as PySlowFast stacks it",
        RESTATED,
        "one `cross_entropy` of all [positive, queue] rows",
        "`rho_moco`",
        rho_moco_stacked,
    ),
    Comparison("SimCLR, CVRL", LIGHTLY, "`NTXentLoss()`", "`simclr`", simclr),
    Comparison(
        "NNCLR, as lightly has it",
        LIGHTLY,
        "`NNMemoryBankModule`, `NTXentLoss()`",
        "`nnclr(contrast=simclr)`",
        nnclr_lightly,
    ),
    Comparison(
        "NNCLR, as the paper has it",
        RESTATED,
        "`argmax`, `cross_entropy` of rows and of columns",
        "`nnclr`",
        nnclr_paper,
    ),
    Comparison("SupCon", PML, "`SupConLoss(reducer=MeanReducer())`", "`supcon`", supcon),
    Comparison(
        "UberNCE", PML, "`SupConLoss(reducer=MeanReducer())`, explicit pairs", "`ubernce`", ubernce
    ),
    Comparison("CoCLR", RESTATED, "`topk`, sum of `softmax`, `log`", "`coclr`", coclr),
]
