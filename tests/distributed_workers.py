"""What the ranks of the distributed tests run; spawned processes import it by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from iivcl import IIVCLLoss, NNSupportQueue
from iivcl import distributed as D
from iivcl.data import ClipRecipe, TarClips

DIM = 6


def batches(world: int, steps: int, uneven: bool = False) -> list[list[tuple[Tensor, Tensor]]]:
    """The same batches on every rank: per step, per rank, (keys, ids)."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for step in range(steps):
        sizes = [3 + (r + step) % 3 if uneven else 4 for r in range(world)]
        result.append(
            [
                (
                    torch.randn(size, DIM, generator=generator),
                    torch.randint(30, (size,), generator=generator),
                )
                for size in sizes
            ]
        )
    return result


def fill(queue: NNSupportQueue, world: int, steps: int, *, uneven: bool = False) -> None:
    for step in batches(world, steps, uneven):
        queue.enqueue(*step[D.rank()])


def collectives(rank: int, world: int) -> Any:
    rows = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    gathered = D.all_gather_cat(rows)
    (gathered * torch.arange(len(gathered))[:, None] * (rank + 1)).sum().backward()
    shuffled, permutation = D.batch_shuffle(torch.arange(4.0) + 10 * rank)
    restored = D.batch_unshuffle(shuffled, permutation)
    return D.rank(), D.world_size(), gathered.detach(), rows.grad, shuffled, restored


def uneven_shuffle(rank: int, world: int) -> list[str]:
    rows = torch.zeros(4 + rank % 2)
    messages = []
    for function, *arguments in ((D.batch_shuffle,), (D.batch_unshuffle, torch.arange(4 * world))):
        try:
            function(rows, *arguments)
        except ValueError as error:
            messages.append(str(error))
    return messages


def gather_queue(rank: int, world: int, uneven: bool) -> Any:
    queue = NNSupportQueue(17, DIM, distributed="gather")
    fill(queue, world, 4, uneven=uneven)
    queue.assert_synced()
    return queue.state_dict()


def local_queue(rank: int, world: int) -> Any:
    queue = NNSupportQueue(17, DIM, distributed="local")
    fill(queue, world, 4)
    queue.assert_synced()  # has nothing to say of local queues
    return queue.state_dict()


def out_of_sync(rank: int, world: int) -> Any:
    queue = NNSupportQueue(17, DIM)
    fill(queue, world, 2)
    if rank == 1:
        queue.keys[0, 0] += 1e-7
    try:
        queue.assert_synced()
    except RuntimeError as error:
        return str(error)
    return None


def shard_lookup(rank: int, world: int, k: int, min_age: int, uneven: bool) -> Any:
    queue = NNSupportQueue(5, DIM, distributed="shard")
    fill(queue, world, 2)
    query, ids = batches(world, 3, uneven)[2][rank]
    return (
        queue.keys,
        queue.ids,
        queue.valid,
        queue.ages,
        queue.nearest(query, k, ids=ids, min_age=min_age),
    )


class Step(nn.Module):
    """An encoder with its queue inside, as users wrap them together in DDP."""

    def __init__(self, distribution: Any, size: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIM, DIM, bias=False, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros(()))  # gives DDP something to broadcast
        self.queue = NNSupportQueue(size, DIM, distributed=distribution)

    def forward(self, inputs: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(inputs)
        return encoded


def ddp_keeps_queues(rank: int, world: int, distribution: Any) -> Any:
    torch.manual_seed(0)
    module = DistributedDataParallel(Step(distribution, 8))  # broadcasts buffers by default
    for step in batches(world, 3):
        keys, ids = step[rank]
        module(keys.double()).sum().backward()
        module.module.queue.enqueue(keys, ids)
    module(keys.double())
    return module.module.queue.state_dict()


def loss_of_all(
    rank: int, world: int, distribution: Any, options: dict[str, Any], uneven: bool
) -> Any:
    """One DDP step of the loss on this rank's rows: loss, terms and the averaged gradient."""
    torch.manual_seed(0)
    module = Step(distribution, 20 // world if distribution == "shard" else 20)
    fill(module.queue, world, 2)
    module = DistributedDataParallel(module)
    inputs, ids = batches(world, 3, uneven)[2][rank]
    query = module(inputs.double())
    out = IIVCLLoss(**options)(query, inputs.flip(1).double(), module.module.queue, ids=ids)
    out.loss.backward()
    return out.loss.item(), out.intra.item(), out.inter.item(), module.module.encoder.weight.grad


def learned_temperature(rank: int, world: int, distribution: Any, uneven: bool) -> Any:
    """The gradient of a temperature that is trained inside DDP beside the encoder."""
    torch.manual_seed(0)
    module = Step(distribution, 20 // world if distribution == "shard" else 20)
    module.temperature = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))
    fill(module.queue, world, 2)
    module = DistributedDataParallel(module)
    inputs, ids = batches(world, 3, uneven)[2][rank]
    criterion = IIVCLLoss(
        num_neighbors=3, batch_negatives=True, temperature=module.module.temperature
    )
    query, key = module(inputs.double()), inputs.flip(1).double()
    criterion(query, key, module.module.queue, ids=ids).loss.backward()
    return module.module.temperature.grad


def run_jobs(rank: int, world: int, jobs: list[tuple[Any, ...]]) -> list[Any]:
    """Several of the above, one after the other."""
    return [worker(rank, world, *arguments) for worker, *arguments in jobs]


def places_in_shards(rank: int, world_size: int, folder: Path) -> list[int]:
    """Read the shards of this rank, whichever the process group says that it is."""
    dataset = TarClips(folder, ClipRecipe(num_frames=4, stride=3, short_side=48), batch_size=2)
    return [index for _, index in dataset]
