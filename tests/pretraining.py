"""What the tests of `examples/pretrain.py` share: short runs within this process or on ranks."""

from __future__ import annotations

import gc
import io
import json
import resource
import signal
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.fsdp
from example_runs import load

from iivcl import MoCoQueue, NNSupportQueue

SMALL = [
    "--frames=4", "--stride=1", "--size=32", "--backbone=tiny_encoder:with_norm", "--dim=8",
    "--batch-size=4", "--queue-size=24", "--epochs=2", "--warmup-epochs=0", "--log-every=1",
    "--workers=0", "--collapse-std=0", "--lr=0.05", "--momentum=0.9", "--knn-every=0",
]  # fmt: skip
SHARDS_WEIGHTS = hasattr(torch.distributed.fsdp, "fully_shard")  # from torch 2.6 on
SPEED = {"clips_per_second", "data_wait"}  # numbers of the log that no two runs share


@contextmanager
def kept_signals() -> Iterator[None]:
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def told_to_stop(module: Any, stop: int | None) -> Iterator[None]:
    """Tell a run of a module to stop at one step, if at all, and take its handlers back."""
    original, steps = module.Signals, 0

    class Told(original):  # type: ignore[misc, valid-type]
        def seen_by_any(self, hosts: Any) -> bool:
            nonlocal steps
            steps += 1
            self.seen = self.seen or steps == stop
            return bool(super().seen_by_any(hosts))

    module.Signals = Told
    try:
        with kept_signals():
            yield
    finally:
        module.Signals = original


def end_group() -> None:
    """Leave nothing of a run's process group: a worker forked later that collected it would die."""
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()


def pretrain(data: Path, out: Path, *options: str, stop: int | None = None) -> int:
    """Run the example in this process; ``stop`` is the step at which it is told to stop.

    Without a process group it joins one of its own, as it does when it is started alone.
    """
    module = load()
    args = [f"--data={data}", f"--out={out}", *SMALL, *options]
    group_is_mine = not dist.is_initialized()
    try:
        with told_to_stop(module, stop):
            if group_is_mine:
                return int(module.main(args))
            settings = module.parse_args(args)
            return int(module.train(settings, torch.device("cpu"), dist.group.WORLD))
    finally:
        if group_is_mine:
            end_group()


def on_ranks(rank: int, world: int, jobs: list[tuple[Any, ...]]) -> list[int | str]:
    """Run several (data, out, options, stop) one after the other; what went wrong is returned."""
    results: list[int | str] = []
    for data, out, options, stop in jobs:
        try:
            results.append(pretrain(data, out, *options, stop=stop))
        except (SystemExit, Exception) as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


def gradients_of_parts(rank: int, world: int) -> list[list[torch.Tensor]]:
    """Give the gradient of a step of two parts, replicated and, where it can be, sharded."""
    gradients = []
    for sharded in (False, True)[: 1 + SHARDS_WEIGHTS]:
        torch.manual_seed(0)
        model: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        if sharded:
            encoder = torch.nn.Module()
            encoder.backbone, encoder.forward = model, model.forward
            load().shard(encoder, torch.device("cpu"))
            model = encoder
        else:
            model = torch.nn.parallel.DistributedDataParallel(model)
        for part in range(2):
            load("_optimizer").average_gradients(model, now=part == 1)
            model(torch.full((1, 4), 1.0 + rank + 2 * part)).square().sum().backward()
        whole = [getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()]
        gradients.append(whole)
    return gradients


def purity_of_labelled(rank: int, world: int) -> float:
    """Log the purity of neighbours of which only those of rank 0 have a label, and are alike."""
    queue, labels = NNSupportQueue(4, 3), MoCoQueue(4, 1)
    keys = torch.eye(3)[[0, 1]]
    queue.enqueue(keys, torch.tensor([10, 11]) + 2 * rank)
    labels.enqueue(keys[:, :1], torch.tensor([5, 5]) if rank == 0 else torch.tensor([-1, -1]))
    run, watch = SimpleNamespace(queue=queue, labels=labels), load("_watch")
    own, known = torch.tensor([0, 1]), torch.tensor([5, 5] if rank == 0 else [-1, -1])
    found = watch.look_up(run, keys, own)
    line = watch.describe(run, {"loss": torch.ones(())}, keys[:, None], found, own, known)
    return float(line["neighbor_purity"])


@contextmanager
def small_disk(folder: Path, bytes_of_a_file: int = 6_000) -> Iterator[None]:
    """No file may grow over some bytes, which is what a full disk does to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_shards(videos: Path, folder: Path) -> Path:
    """Put the videos into two shards, each with its class beside it: 0 or 1."""
    folder.mkdir()
    paths = sorted(videos.glob("*/*.mp4"))
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number, path in enumerate(paths[shard::2]):
                archive.add(path, f"{number:06d}.mp4")
                label = str(int(path.parent.name == "up_down")).encode()
                member = tarfile.TarInfo(f"{number:06d}.cls")
                member.size = len(label)
                archive.addfile(member, io.BytesIO(label))
    return folder


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict[str, Any]]:
    """The log without what depends on the speed of the machine."""
    return [{k: v for k, v in line.items() if k not in SPEED} for line in log(out)]


def tensors(out: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint, by its full name; of the last one by default."""
    folder = out / "checkpoints"
    path = max(folder.glob("step-*[0-9]")) if step is None else folder / f"step-{step:08d}"
    entries = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.load(state, checkpoint_id=path)
    return state


def assert_same_run(out: Path, other: Path) -> None:
    """The logs and the last checkpoints agree, bit for bit."""
    assert timeless(out) == timeless(other)
    mine, theirs = tensors(out), tensors(other)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert different == []
