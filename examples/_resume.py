"""What lets a run of an example that was stopped go on as if nothing had happened.

Data begin at any step of an epoch. Checkpoints are complete: everything in `Run`. Signals let the
step that is being made come to its end.

A checkpoint is the folder `step-00000120` with the files of torch.distributed.checkpoint, the
trained backbone alone as `encoder.pt`, and `files.json` with the size of every file. It is written
under another name and renamed when it is complete. What is the same on all ranks is saved once:
torch.distributed.checkpoint keeps one copy of a tensor that has the same name everywhere, WHATEVER
the others hold. So what differs by rank stands under the rank's own name: the random state, the
buffers of batch norm, the rows of a queue that is not gathered.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
import traceback
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
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.data import DataLoader, Sampler

import iivcl
from iivcl import MoCoQueue, NNSupportQueue, augment
from iivcl.data import (
    ClipRecipe,
    DecodeError,
    Manifest,
    TarClips,
    VideoClips,
    collate_clips,
    find_videos,
    read_manifest,
)
from iivcl.distributed import rank, world_size

State = dict[str, Any]  # of tensors alone, nested: nothing that would have to be unpickled
# Settings that may differ when a run goes on, for they change no result. Of the data, the list of
# files is compared.
FREE = {"data", "out", "resume", "workers", "log_every", "save_every", "keep", "knn_every"}
TO_BE_CONTINUED = 75  # exit status of a run that was told to stop and has saved: start it again


class Batches(Sampler[list[int]]):
    """The videos of every part of a step that this rank reads, from any step of an epoch on.

    All videos are put in an order that depends on (seed, epoch) alone. A step takes the next
    ``batch_size`` of them, whatever the number of ranks, and each rank its share of these. What is
    left at the end of an epoch is left out.
    """

    def __init__(self, num_videos: int, args: argparse.Namespace) -> None:
        self.num_videos, self.batch_size, self.seed = num_videos, args.batch_size, args.seed
        self.share = args.batch_size // world_size()  # videos of a rank
        self.part = self.share // args.accumulate  # videos of one forward pass
        self.epoch = self.step = 0

    def __len__(self) -> int:
        return (self.num_videos // self.batch_size - self.step) * (self.share // self.part)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed((self.seed << 32) + self.epoch)
        order = torch.randperm(self.num_videos, generator=generator)
        steps = order[: len(order) // self.batch_size * self.batch_size].view(-1, self.batch_size)
        for videos in steps[self.step :, rank() * self.share : (rank() + 1) * self.share]:
            yield from (part.tolist() for part in videos.split(self.part))


class Data:
    """The training set, as a loader that begins at any step of an epoch.

    Its videos, recipe and transform are those of pretraining where none are given.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        *,
        videos: Manifest | None = None,
        recipe: ClipRecipe | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        recipe = recipe or ClipRecipe(
            num_frames=args.frames, stride=args.stride, clips_per_video=args.clips,
            short_side=args.size * 8 // 7,
        )  # fmt: skip
        # Crops are drawn by the workers, for files differ in size; colours on the device.
        transform = transform or augment.rho_moco(args.size)[:2]
        how: dict[str, Any] = {"transform": transform, "on_error": args.on_error, "seed": args.seed}
        self.share, self.parts = args.batch_size // world_size(), args.accumulate
        need(args.data.exists(), f"--data {args.data} does not exist")
        shards = sorted(args.data.glob("*.tar")) if args.data.is_dir() else [args.data]
        self.is_tar = videos is None and bool(shards) and shards[0].suffix == ".tar"
        with refusing(ValueError):
            batches = (
                self._open_shards(shards, recipe, how)
                if self.is_tar
                else self._open_files(args, videos or read_videos(args.data), recipe, how)
            )
        self.steps = self.num_videos // args.batch_size  # of an epoch
        need(
            self.steps > 0,
            f"{args.data} holds {self.num_videos} videos, and a step takes {args.batch_size}: "
            "give more videos, or a smaller --batch-size",
        )
        self.loader: DataLoader[Any] = DataLoader(
            self.set, **batches, num_workers=args.workers, persistent_workers=args.workers > 0,
            collate_fn=collate_clips, pin_memory=torch.cuda.is_available(),
            worker_init_fn=stay_alive, generator=torch.Generator(),  # not the global one, see Run
        )  # fmt: skip

    def _open_files(
        self, args: argparse.Namespace, manifest: Manifest, recipe: ClipRecipe, how: dict[str, Any]
    ) -> dict[str, Any]:
        self.set: Any = VideoClips(manifest, recipe, **how)
        root = args.data if args.data.is_dir() else args.data.parent
        self.files = [os.path.relpath(path, root) for path in manifest.paths]
        self.labels, self.num_videos = manifest.labels, len(self.files)
        self.batches = Batches(self.num_videos, args)
        return {"batch_sampler": self.batches}

    def _open_shards(
        self, shards: list[Path], recipe: ClipRecipe, how: dict[str, Any]
    ) -> dict[str, Any]:
        part = self.share // self.parts
        self.set = TarClips(shards, recipe, batch_size=part, describe=read_class, **how)
        self.files, self.labels = [shard.name for shard in shards], None
        self.num_videos = len(self.set) * world_size()
        return {"batch_size": part, "drop_last": True}

    def steps_from(self, epoch: int, step: int) -> Iterator[tuple[list[Any], float]]:
        """Yield the parts of every step of an epoch, and the seconds that were waited for them."""
        if self.is_tar:
            self.set.set_epoch(epoch, start=step * self.share)
        else:
            self.set.set_epoch(epoch)
            self.batches.epoch, self.batches.step = epoch, step
        with self.set.name_crashes():
            batches = iter(self.loader)
            for _ in range(step, self.steps):
                begin = time.perf_counter()
                parts = list(itertools.islice(batches, self.parts))
                yield parts, time.perf_counter() - begin


def read_videos(data: Path) -> Manifest:
    """List the videos of a manifest, or of a folder, whose folders of files are the classes."""
    if not data.is_dir():
        return read_manifest(data)
    paths = find_videos(data)
    classes = sorted({os.path.dirname(path) for path in paths})
    place = {folder: number for number, folder in enumerate(classes)}
    labels = [place[os.path.dirname(path)] if len(classes) > 1 else -1 for path in paths]
    return Manifest(
        paths, torch.tensor(labels, dtype=torch.int64), torch.arange(len(paths)), classes
    )


def read_class(files: dict[str, bytes]) -> int:
    """Read the number of the class that stands beside a video in a shard, -1 without one."""
    return int(files.get("cls", b"-1"))


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

    def end_here(self) -> None:
        """Let signals end the process again: nothing is left that would be lost."""
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

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


def begin_folder(
    args: argparse.Namespace,
    files: list[str],
    hosts: dist.ProcessGroup,
    *,
    free: set[str] = FREE,
) -> None:
    """Write ``config.json`` of a new run, or compare it with that of the run that goes on."""
    names = "\0".join(files).encode(errors="surrogateescape")
    config = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "files": {"count": len(files), "sha256": hashlib.sha256(names).hexdigest()},
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (torch, torchvision, av, iivcl)},
        },
        "ranks": world_size(),
    }
    path = args.out / "config.json"

    def write() -> None:
        if not path.exists():
            args.out.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(config, indent=1) + "\n")
            return
        if not args.resume:
            raise CheckpointError(f"--out {args.out} holds a run: go on with --resume auto")
        before = json.loads(path.read_text())
        settings = before["settings"].keys() | config["settings"].keys()
        differ = [
            f"--{name.replace('_', '-')} {new} (was {old})"
            for name in sorted(settings - free)
            if (new := config["settings"].get(name)) != (old := before["settings"].get(name))
        ]
        if config["files"] != before["files"]:
            counts = config["files"]["count"], before["files"]["count"]
            differ.append("the list of files ({} now, {} before)".format(*counts))
        if differ:
            raise CheckpointError(f"{args.out} was begun with other settings: {', '.join(differ)}")

    with refusing(CheckpointError):
        on_rank_0(write, hosts)


def publish(out: Path, hosts: dist.ProcessGroup) -> None:
    """Copy what others read of the last checkpoint, its ``.pt`` files, to the folder of the run."""

    def copy() -> None:
        for file in checkpoints(out / "checkpoints")[0].glob("*.pt"):
            unfinished = out / f"{file.name}.tmp"
            shutil.copyfile(file, unfinished)
            os.replace(unfinished, out / file.name)

    on_rank_0(copy, hosts)


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its name never stands on half of it."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


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
        need(False, cause(error))


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; all ranks raise it together."""


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

    def begin() -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)

    def finish() -> None:
        for name, content in whole.items():
            torch.save(content, unfinished / name)
        sizes = {file.name: file.stat().st_size for file in unfinished.iterdir()}
        (unfinished / "files.json").write_text(json.dumps(sizes))
        for name in (*whole, "files.json"):
            flush(unfinished / name)
        shutil.rmtree(path, ignore_errors=True)  # a damaged one, or it would have been resumed
        os.replace(unfinished, path)
        flush(folder)
        for old in checkpoints(folder)[keep:]:
            doomed = old.with_suffix(".tmp")  # never half a checkpoint under a whole one's name
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(old, doomed)
            shutil.rmtree(doomed)

    try:
        on_rank_0(begin, run.hosts)
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
        fault = [damage(path)]
        dist.broadcast_object_list(fault, group=run.hosts)
        if fault[0] is None:
            try:
                load(run, path)
                return path
            except dcp.CheckpointException as error:
                fault = [cause(error)]
        say(f"{path} is not whole, trying the one before: {fault[0]}")
    if found:
        raise CheckpointError(f"no checkpoint in {folder} is whole; remove it to begin anew")
    return None


def load(run: Run, path: Path) -> None:
    """Load one checkpoint, of the same number of ranks or of another."""
    entries = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    ranks = sum(name.startswith("rank") and name.endswith(".random.cpu") for name in entries)
    state, own = shared_state(run), own_state(run)
    rows_of_all: State = {}
    if ranks != world_size():
        del own["random"]
        if own.pop("rings", None):
            if run.queue.distributed == "local":
                raise CheckpointError(
                    f"{path} has the local queues of {ranks} ranks, which belong to their ranks: "
                    f"resume with {ranks} ranks; got {world_size()}"
                )
            rows_of_all = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype)
                for name, entry in entries.items()
                if name.startswith("rank") and ".rings." in name
            }
    source = f"rank{rank() % ranks}"  # new ranks begin with the statistics of an old one
    state = {**state, **rows_of_all, source: own}
    dcp.load(state, checkpoint_id=path, process_group=run.hosts)

    # Parameters and buffers were loaded in place; what follows is no tensor of its own.
    run.step, run.ranks = int(state["step"]), ranks
    optimizer = get_optimizer_state_dict(unwrap(run.encoder), run.optimizer)
    set_optimizer_state_dict(
        unwrap(run.encoder), run.optimizer, {**optimizer, "state": state["optimizer"]}
    )
    if run.scaler.is_enabled():
        scale, tracker = state["scaler"].tolist()
        run.scaler.load_state_dict(
            {**run.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)}
        )
    for name, ring in run.rings().items():
        if rows_of_all:
            shards = [
                {key: state[f"rank{r}.rings.{name}.{key}"] for key in ring.state_dict()}
                for r in range(ranks)
            ]
            ring.load_state_dict(deal(shards, rank(), world_size()))
        else:
            ring.load_state_dict((own if "rings" in own else state)["rings"][name])
    if "random" in own:
        torch.set_rng_state(own["random"]["cpu"])
        if "cuda" in own["random"]:
            torch.cuda.set_rng_state(own["random"]["cuda"], run.device)
    else:
        seed_rank(run.seed, run.step)


def shared_state(run: Run) -> State:
    """What all ranks hold alike, or each a part of as sharded tensors."""
    state: State = {
        "step": torch.tensor(run.step),
        "encoder": dict(unwrap(run.encoder).named_parameters()),
        "optimizer": get_optimizer_state_dict(unwrap(run.encoder), run.optimizer)["state"],
    }
    state["encoder"] = {name: p.detach() for name, p in state["encoder"].items()}
    if run.key_encoder is not None:
        state["key_encoder"] = dict(run.key_encoder.named_parameters())
    if run.scaler.is_enabled():
        scaler = run.scaler.state_dict()
        state["scaler"] = torch.tensor(
            [scaler["scale"], scaler["_growth_tracker"]], dtype=torch.float64
        )
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


def deal(shards: list[dict[str, Tensor]], rank: int, world_size: int) -> dict[str, Tensor]:
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


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, newest first."""
    return sorted((p for p in folder.glob("step-*") if p.suffix != ".tmp"), reverse=True)


def damage(path: Path) -> str | None:
    """Say what is wrong with the files of a checkpoint, if anything is."""
    try:
        sizes = json.loads((path / "files.json").read_text())
    except (OSError, ValueError) as error:
        return f"files.json cannot be read ({error})"
    for name, size in sizes.items():
        file = path / name
        found = file.stat().st_size if file.exists() else 0
        if found != size:
            return f"{name} has {found} of {size} bytes"
    return None


def on_rank_0(action: Callable[[], object], hosts: dist.ProcessGroup) -> None:
    """Run something on rank 0; all ranks wait for it, and fail if it does."""
    failure: list[str | None] = [None]
    if rank() == 0:
        try:
            action()
        except Exception as error:  # whatever it is, the others must not wait for ever
            known = isinstance(error, (CheckpointError, OSError))
            failure = [str(error) if known else f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(failure, group=hosts)
    if failure[0] is not None:
        raise CheckpointError(failure[0])


def cause(error: BaseException) -> str:
    """Find the one line that says why, in what several ranks or a worker of a loader raised."""
    if not isinstance(error, dcp.CheckpointException):
        text = str(error).strip()
        is_report = "\nOriginal Traceback" in text  # of a worker
        return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1]) if is_report else text
    causes = [failure[0] for failure in error.failures.values()]
    return "; ".join(dict.fromkeys(f"{type(c).__name__}: {c}" for c in causes))


def start(train: Callable[[torch.device, dist.ProcessGroup], int], *errors: type[Exception]) -> int:
    """Join the other processes, if there are any, and train; what ends it early is one message."""
    local, gpu = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.is_available()
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if gpu else "gloo", **alone)
    try:
        status = train(device, dist.new_group(backend="gloo"))
    except (CheckpointError, DecodeError, OSError, *errors) as error:
        traceback.clear_frames(error.__traceback__)  # the bar among them is drawn no more
        print(f"rank {rank()}: {cause(error)}", file=sys.stderr, flush=True)
        return 1
    dist.destroy_process_group()
    return status


def is_due(now: int, every: int, last: int) -> bool:
    return every > 0 and (now % every == 0 or now == last)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
