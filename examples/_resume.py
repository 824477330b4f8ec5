"""How a run is started and stopped, and goes on: processes, signals, folder, refusals."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torchvision

import iivcl
from iivcl.data import DecodeError
from iivcl.distributed import rank, world_size

# Settings that may differ when a run goes on, for they change no result. Of the data, the list of
# files is compared.
FREE = {"data", "out", "resume", "workers", "log_every", "save_every", "keep", "knn_every"}
TO_BE_CONTINUED = 75  # exit status of a run that was told to stop and has saved: start it again


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


def is_due(now: int, every: int, last: int) -> bool:
    return every > 0 and (now % every == 0 or now == last)


def stay_alive(worker: int) -> None:
    """Let the workers of a loader read on when the run is told to stop: the last step needs them.

    torchrun and terminals signal whole process groups, so workers get a group of their own. They
    end with the process that started them.
    """
    os.setsid()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; all ranks raise it together."""


def say(text: str) -> None:
    if rank() == 0:
        print(printable(text), flush=True)


def printable(text: str) -> str:
    """Replace what the terminal cannot show, such as a name of a file that is no UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


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
        if rank() > 0 and not isinstance(error, CheckpointError):  # perhaps this rank's alone
            print(f"rank {rank()}: {cause(error)}", file=sys.stderr, flush=True)
        need(False, cause(error))


def on_rank_0(action: Callable[[], object], hosts: dist.ProcessGroup) -> None:
    """Run something on rank 0; all ranks wait for it, and fail if it does."""
    failure: list[str | None] = [None]
    if rank() == 0:
        try:
            action()
        except Exception as error:  # whatever it is, the others must not wait for ever
            failure = [cause(error)]
    dist.broadcast_object_list(failure, group=hosts)
    if failure[0] is not None:
        raise CheckpointError(failure[0])


def cause(error: BaseException) -> str:
    """Find the one line that says why, in what several ranks or a worker of a loader raised."""
    if isinstance(error, dcp.CheckpointException):
        of_ranks = [failure[0] for failure in error.failures.values()]
        lines = [f"{type(e).__name__}: {str(e).partition(chr(10))[0]}" for e in of_ranks]
        return "; ".join(dict.fromkeys(lines))
    text = str(error).strip()
    if "\nOriginal Traceback" in text:  # of a worker
        return re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    says_what = type(error).__module__ != "builtins" or isinstance(error, (OSError, ValueError))
    return text if says_what else f"{type(error).__name__}: {text}"


def write_whole(path: Path, text: str) -> None:
    """Write a file so that its name never stands on half of it."""
    with replacing(path) as unfinished:
        unfinished.write_text(text)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write a file under, which becomes its own name once all of it is there."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)  # half of it


def begin_folder(
    args: argparse.Namespace,
    files: list[str],
    hosts: dist.ProcessGroup,
    *,
    free: set[str] = FREE,
) -> None:
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
            for name in sorted((before["settings"] | now["settings"]).keys() - free)
            if now["settings"].get(name) != before["settings"].get(name)
        ]
        if now["files"] != before["files"]:
            counts = f"{now['files']['count']} now, {before['files']['count']} before"
            differ.append(f"the list of files ({counts})")
        if differ:
            raise CheckpointError(f"{args.out} was begun with other settings: {', '.join(differ)}")

    with refusing(CheckpointError):
        on_rank_0(write_or_compare, hosts)
