"""Checkpoints of a run: everything that changes, so that it goes on as if it had not been stopped.

A checkpoint is the folder `step-00000120` with the files of torch.distributed.checkpoint and the
trained backbone alone as `encoder.pt`. It is written under another name and renamed when all of it
is on the disk. What is the same on all ranks is saved once: torch.distributed.checkpoint keeps one
copy of a tensor that has the same name everywhere, WHATEVER the others hold. So what differs by
rank stands under the rank's own name: the random state, the buffers of batch norm, the rows of a
queue that is not gathered.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from _resume import CheckpointError, cause, need, on_rank_0, replacing, say
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from iivcl import MoCoQueue, NNSupportQueue
from iivcl.distributed import rank, world_size

State = dict[str, Any]  # of tensors alone, nested: nothing that would have to be unpickled


@dataclass
class Run:
    """Everything that changes while a run goes on."""

    encoder: nn.Module  # backbone and heads, wrapped or not
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    hosts: dist.ProcessGroup  # for agreements that need no GPU
    seed: int
    key_encoder: nn.Module | None = None
    queue: NNSupportQueue | None = None  # of pretraining
    videos: MoCoQueue | None = None  # rings in step with the queue: of which video each row is,
    labels: MoCoQueue | None = None  # and of which class
    step: int = 0
    ranks: int = 1  # that made the last checkpoint

    def enqueue(self, keys: Tensor, ids: Tensor, videos: Tensor, labels: Tensor) -> None:
        """Write keys (N, D), and in step with them what is known of each, (N,)."""
        self.queue.enqueue(keys, ids)
        self.videos.enqueue(torch.ones_like(keys[:, :1]), videos)
        self.labels.enqueue(torch.ones_like(keys[:, :1]), labels)

    def rings(self) -> dict[str, MoCoQueue]:
        """The queue and its rings; none where the run has no queue."""
        rings = {"queue": self.queue, "videos": self.videos, "labels": self.labels}
        return {} if self.queue is None else rings

    def shares_rings(self) -> bool:
        return self.queue is not None and self.queue.distributed == "gather"


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.suffix != ".tmp"), reverse=True)


def save(
    run: Run,
    folder: Path,
    *,
    keep: int,
    about: dict[str, Any],
    also: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint of this step and remove all but the last ``keep``.

    Args:
        run: What to save; all ranks call this.
        folder: Where checkpoints are.
        keep: How many to keep.
        about: Plain values that go into ``encoder.pt`` beside the weights.
        also: Content of further files by their names, the same on all ranks or on rank 0 alone.

    Raises:
        CheckpointError: It could not be written; those before are untouched.
    """
    path = folder / f"step-{run.step:08d}"
    unfinished = path.with_suffix(".tmp")
    whole = {"encoder.pt": {"model": encoder_weights(run.encoder), **about}, **(also or {})}

    def finish() -> None:
        for name, content in whole.items():
            torch.save(content, unfinished / name)
            flush(unfinished / name)  # DCP has flushed its own
        shutil.rmtree(path, ignore_errors=True)  # a damaged one, or it would have been resumed
        os.replace(unfinished, path)
        flush(folder)
        for old in checkpoints(folder)[keep:]:
            doomed = old.with_suffix(".tmp")  # never half a checkpoint under a whole one's name
            os.replace(old, doomed)
            shutil.rmtree(doomed)

    try:
        on_rank_0(lambda: unfinished.mkdir(parents=True), run.hosts)
        state = {**shared_state(run), f"rank{rank()}": own_state(run)}
        dcp.save(state, checkpoint_id=unfinished, process_group=run.hosts)
        on_rank_0(finish, run.hosts)
    except (CheckpointError, dcp.CheckpointException) as error:
        if rank() == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        last = checkpoints(folder)
        intact = f"the last one is whole: {last[0]}" if last else "there is none before it"
        raise CheckpointError(f"{path} cannot be written: {cause(error)}; {intact}") from error


def resume(run: Run, folder: Path) -> Path | None:
    """Load the newest checkpoint that is whole; None when there is none at all.

    Raises:
        CheckpointError: There are some, and none is whole.
    """
    on_rank_0(lambda: [shutil.rmtree(path) for path in folder.glob("*.tmp")], run.hosts)
    found = checkpoints(folder)
    for path in found:
        try:
            load(run, path)
            return path
        except (CheckpointError, dcp.CheckpointException) as error:
            say(f"{path} is not whole, trying the one before: {cause(error)}")
    if found:
        raise CheckpointError(f"no checkpoint in {folder} is whole; remove it to begin anew")
    return None


def load(run: Run, path: Path) -> None:
    """Load one checkpoint, of the same number of ranks or of another."""
    reader = dcp.FileSystemReader(path)
    on_rank_0(reader.read_metadata, run.hosts)  # so that all ranks fail if it cannot be read
    entries = reader.read_metadata().state_dict_metadata
    ranks = sum(name.endswith(".random.cpu") for name in entries)
    shared, own = shared_state(run), own_state(run)
    rows_of_all: State = {}
    if ranks != world_size():
        del own["random"]
        if own.pop("rings", None):
            need(
                run.queue.distributed != "local",
                f"{path} has the local queues of {ranks} ranks, which belong to their ranks: "
                f"resume with {ranks} ranks; got {world_size()}",
            )
            rows_of_all = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype)
                for name, entry in entries.items()
                if ".rings." in name
            }
    # Into the tensors that are there. New ranks begin with the statistics of an old one.
    state = {**shared, **rows_of_all, f"rank{rank() % ranks}": own}
    dcp.load(state, checkpoint_id=path, process_group=run.hosts)

    run.step, run.ranks = int(shared["step"]), ranks
    scaler = {name: value.item() for name, value in shared.get("scaler", {}).items()}
    run.scaler.load_state_dict(scaler)
    for name, ring in run.rings().items():
        if rows_of_all:
            shards = [
                {key: rows_of_all[f"rank{r}.rings.{name}.{key}"] for key in ring.state_dict()}
                for r in range(ranks)
            ]
            ring.load_state_dict(deal(shards, rank(), world_size()))
        else:
            ring.load_state_dict((own if "rings" in own else shared)["rings"][name])
    if "random" not in own:
        seed_rank(run.seed, run.step)
        return
    torch.set_rng_state(own["random"]["cpu"])
    if "cuda" in own["random"]:
        torch.cuda.set_rng_state(own["random"]["cuda"], run.device)


def shared_state(run: Run) -> State:
    """What all ranks hold alike, or each a part of as sharded tensors."""
    encoder = unwrap(run.encoder)
    state: State = {
        "step": torch.tensor(run.step),
        "encoder": parameters(encoder),
        "optimizer": get_optimizer_state_dict(encoder, run.optimizer)["state"],
    }
    if run.key_encoder is not None:
        state["key_encoder"] = parameters(run.key_encoder)
    if run.scaler.is_enabled():
        state["scaler"] = {n: torch.tensor(x) for n, x in run.scaler.state_dict().items()}
    if run.shares_rings():
        state["rings"] = {name: ring.state_dict() for name, ring in run.rings().items()}
    return state


def own_state(run: Run) -> State:
    """What this rank alone holds."""
    state: State = {
        "random": {"cpu": torch.get_rng_state()},
        "buffers": dict(unwrap(run.encoder).named_buffers()),
    }
    if run.device.type == "cuda":
        state["random"]["cuda"] = torch.cuda.get_rng_state(run.device)
    if run.key_encoder is not None:
        state["key_buffers"] = dict(run.key_encoder.named_buffers())
    if run.rings() and not run.shares_rings():
        state["rings"] = {name: ring.state_dict() for name, ring in run.rings().items()}
    return state


def parameters(module: nn.Module) -> State:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def deal(shards: list[State], rank: int, world_size: int) -> State:
    """Deal the rows of all shards to another number of ranks: in turn, from the oldest on."""
    stamps = torch.cat([shard["stamps"] for shard in shards])
    oldest_first = stamps.argsort(stable=True)
    rows = oldest_first[stamps[oldest_first] >= 0][rank::world_size]
    size = len(stamps) // world_size
    dealt = {name: shards[0][name] for name in ("step", "has_ids")}
    dealt["cursor"] = torch.tensor(len(rows) % size)
    for name, empty in (("keys", 0), ("ids", -1), ("stamps", -1)):
        values = torch.cat([shard[name] for shard in shards])[rows]
        dealt[name] = values.new_full((size, *values.shape[1:]), empty)
        dealt[name][: len(rows)] = values
    return dealt


def seed_rank(seed: int, step: int) -> None:
    """Start the random state of this rank, as it is at the start of a run or of a new rank."""
    [state] = np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)
    torch.manual_seed(int(state >> np.uint64(1)))


def encoder_weights(encoder: nn.Module, part: str = "backbone") -> dict[str, Tensor]:
    """Give the state dict of the plain backbone, however it is wrapped; all ranks call this."""
    with averaged_buffers(encoder):
        state = unwrap(encoder).get_submodule(part).state_dict()
        whole = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in state.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in whole.items()}


@contextmanager
def averaged_buffers(encoder: nn.Module) -> Iterator[None]:
    """Give every rank the mean of the running statistics, and take it back afterwards."""
    buffers = [b for b in unwrap(encoder).buffers() if b.is_floating_point()]
    own = [buffer.clone() for buffer in buffers]
    for buffer in buffers if world_size() > 1 else []:
        dist.all_reduce(buffer)
        buffer /= world_size()
    try:
        yield
    finally:
        for buffer, value in zip(buffers, own, strict=True):
            buffer.copy_(value)


def unwrap(module: nn.Module) -> Any:
    """Take off DistributedDataParallel; compiling and sharding are done in place."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


def publish(out: Path, hosts: dist.ProcessGroup) -> None:
    """Copy what others read of the last checkpoint, its ``.pt`` files, to the folder of the run."""

    def copy() -> None:
        for file in checkpoints(out / "checkpoints")[0].glob("*.pt"):
            with replacing(out / file.name) as unfinished:
                shutil.copyfile(file, unfinished)

    on_rank_0(copy, hosts)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
