"""What each rank does in the test of sharded encoders; the processes that are started import it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from iivcl.momentum import momentum_copy, momentum_update_

MOMENTUM = 0.75


def encoders() -> tuple[nn.Sequential, nn.Module]:
    """The same two on every rank and in the test: a source and a target of other weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        source = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        target = momentum_copy(source)
        with torch.no_grad():
            for tensor in (*target.parameters(), source[1].running_mean):
                tensor.add_(torch.randn_like(tensor))
    return source, target


def sharded_update(rank: int, world: int) -> Any:
    """Gather what an update leaves on shards, before and after passes, and what is refused."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    mesh = init_device_mesh("cpu", (world,))

    def shard(module: nn.Sequential) -> nn.Module:
        fully_shard(module[2], mesh=mesh)
        return fully_shard(module, mesh=mesh)

    states = []
    for runs_first in (False, True):
        source, target = (shard(module) for module in encoders())
        if runs_first:  # the root stays gathered after a forward pass that no backward one follows
            with torch.no_grad():
                for module in (target.eval(), source.eval()):
                    module(torch.ones(2, 4))
        momentum_update_(target, source, MOMENTUM, buffers="average")
        states.append(
            {
                name: value.full_tensor() if hasattr(value, "full_tensor") else value
                for name, value in target.state_dict().items()
            }
        )
    plain = encoders()[1]
    old = FullyShardedDataParallel(encoders()[0], device_id=torch.device("cpu"))
    return states, [
        refusal(momentum_copy, source),
        refusal(momentum_update_, plain, source, MOMENTUM),
        refusal(momentum_update_, plain, old, MOMENTUM),
    ]


def refusal(function: Any, *arguments: Any) -> str:
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return "not refused"
