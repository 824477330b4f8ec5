"""What lets a run of `pretrain.py` that was stopped go on as if nothing had happened.

Checkpoints are complete: everything in `Run`. Signals let the step that is being made come to its
end.

A checkpoint is the folder `step-00000120` with the files of torch.distributed.checkpoint and the
trained backbone alone as `encoder.pt`. It is written under another name and renamed when all of it
is on the disk. What is the same on all ranks is saved once: torch.distributed.checkpoint keeps one
copy of a tensor that has the same name everywhere, WHATEVER the others hold. So what differs by
rank stands under the rank's own name: the random state, the buffers of batch norm, the rows of a
queue that is not gathered.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torchvision
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import iivcl
from iivcl import MoCoQueue, NNSupportQueue
from iivcl.distributed import rank, world_size

State = dict[str, Any]  # of tensors alone, nested: nothing that would have to be unpickled
# Settings that may differ when a run goes on, for they change no result. Of the data, the list of
# files is compared.
FREE = {"data", "out", "resume", "workers", "log_every", "save_every", "keep", "knn_every"}


@dataclass
class Run:
    """Everything that changes while a run goes on."""

    encoder: nn.Module  # backbone and heads, wrapped or not
    key_encoder: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    queue: NNSupportQueue
    videos: MoCoQueue  # rings in step with the queue: of which video each row is,
    labels: MoCoQueue  # and of which class
    device: torch.device
    hosts: dist.ProcessGroup  # for agreements that need no GPU
    seed: int
    step: int = 0
    ranks: int = 1  # that made the last checkpoint

    def enqueue(self, keys: Tensor, ids: Tensor, videos: Tensor, labels: Tensor) -> None:
        """Write keys (N, D), and in step with them what is known of each, (N,)."""
        self.queue.enqueue(keys, ids)
        self.videos.enqueue(torch.ones_like(keys[:, :1]), videos)
        self.labels.enqueue(torch.ones_like(keys[:, :1]), labels)

    def rings(self) -> dict[str, MoCoQueue]:
        return {"queue": self.queue, "videos": self.videos, "labels": self.labels}


class Signals:
    """Notes that the run was told to stop; a handler that did more could break what it interrupts.

    Slurm sends SIGUSR1 when asked to, torchrun passes SIGTERM on, and a terminal sends SIGINT.
    """

    def __init__(self) -> None:
        self.seen = False
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.seen = True

    def seen_by_any(self, hosts: dist.ProcessGroup) -> bool:
        """Whether a rank was told to stop: all ranks stop after the same step."""
        seen = torch.tensor(int(self.seen))
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=hosts)
        return bool(seen)


def stay_alive(worker: int) -> None:
    """Let the workers of a loader read on when the run is told to stop: the last step needs them.

    torchrun and terminals signal whole process groups, so workers get a group of their own. They
    end with the process that started them.
    """
    os.setsid()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


# Refusals, and what rank 0 does for all.


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; all ranks raise it together."""


def say(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)


def need(condition: bool, otherwise: str) -> None:
    """End all ranks with one message unless a condition holds."""
    if not condition:
        raise SystemExit(f"error: {otherwise}" if rank() == 0 else 1)


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """End all ranks with the message of an error that is the user's to mend."""
    try:
        yield
    except errors as error:
        need(False, str(error))


def on_rank_0(action: Callable[[], object], hosts: dist.ProcessGroup) -> None:
    """Run something on rank 0; all ranks wait for it, and fail if it does."""
    failure: list[str | None] = [None]
    if rank() == 0:
        try:
            action()
        except Exception as error:  # whatever it is, the others must not wait for ever
            failure = [reason(error)]
    dist.broadcast_object_list(failure, group=hosts)
    if failure[0] is not None:
        raise CheckpointError(failure[0])


def reason(error: Exception) -> str:
    """Say in one line why, of an error on one rank or of those on several."""
    if isinstance(error, dcp.CheckpointException):
        return "; ".join(dict.fromkeys(reason(failure[0]) for failure in error.failures.values()))
    known = isinstance(error, (CheckpointError, OSError))
    return str(error) if known else f"{type(error).__name__}: {error}"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its name never stands on half of it."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def begin_folder(args: argparse.Namespace, files: list[str], hosts: dist.ProcessGroup) -> None:
    """Write ``config.json`` of a new run, or compare it with that of the run that goes on."""
    names = "\0".join(files).encode(errors="surrogateescape")
    versions = {m.__name__: m.__version__ for m in (torch, torchvision, av, iivcl)}
    config = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "files": {"count": len(files), "sha256": hashlib.sha256(names).hexdigest()},
        "versions": {"python": platform.python_version(), **versions},
        "ranks": world_size(),
    }
    path = args.out / "config.json"

    def write_or_compare() -> None:
        if not path.exists() and not (args.out / "checkpoints").exists():
            args.out.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(config, indent=1) + "\n")
            return
        if not args.resume:
            raise CheckpointError(f"--out {args.out} holds a run: go on with --resume auto")
        before, now = json.loads(path.read_text()), config
        differ = [
            f"--{name.replace('_', '-')} {now['settings'].get(name)} "
            f"(was {before['settings'].get(name)})"
            for name in sorted((before["settings"] | now["settings"]).keys() - FREE)
            if now["settings"].get(name) != before["settings"].get(name)
        ]
        if now["files"] != before["files"]:
            counts = f"{now['files']['count']} now, {before['files']['count']} before"
            differ.append(f"the list of files ({counts})")
        if differ:
            raise CheckpointError(f"{args.out} was begun with other settings: {', '.join(differ)}")

    with refusing(CheckpointError):
        on_rank_0(write_or_compare, hosts)


# Checkpoints.


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.suffix != ".tmp"), reverse=True)


def save(run: Run, folder: Path, *, keep: int, about: dict[str, Any]) -> None:
    """Write a checkpoint of this step and remove all but the last ``keep``.

    Args:
        run: What to save; all ranks call this.
        folder: Where checkpoints are.
        keep: How many to keep.
        about: Plain values that go into ``encoder.pt`` beside the weights.

    Raises:
        CheckpointError: It could not be written; those before are untouched.
    """
    path = folder / f"step-{run.step:08d}"
    unfinished = path.with_suffix(".tmp")
    weights = encoder_weights(run.encoder)

    def finish() -> None:
        torch.save({"model": weights, **about}, unfinished / "encoder.pt")
        flush(unfinished / "encoder.pt")  # DCP has flushed the others
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
        raise CheckpointError(f"{path} cannot be written: {reason(error)}; {intact}") from error


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
            say(f"{path} is not whole, trying the one before: {reason(error)}")
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
    if run.queue.distributed == "gather":
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
    if run.queue.distributed != "gather":
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


def encoder_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Give the state dict of the plain backbone, however it is wrapped; all ranks call this."""
    with averaged_buffers(encoder):
        state = unwrap(encoder).backbone.state_dict()
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


def publish_encoder(out: Path, hosts: dist.ProcessGroup) -> None:
    """Copy the encoder of the last checkpoint to the folder of the run."""

    def publish() -> None:
        unfinished = out / "encoder.pt.tmp"
        shutil.copyfile(checkpoints(out / "checkpoints")[0] / "encoder.pt", unfinished)
        os.replace(unfinished, out / "encoder.pt")

    on_rank_0(publish, hosts)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
