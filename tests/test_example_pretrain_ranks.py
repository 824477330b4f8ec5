"""The pretraining example in processes of its own: killed, signalled, on other numbers of ranks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pretraining
import pytest
import torch
from example_runs import EXAMPLES
from pretraining import SMALL, assert_same_run, log, pretrain, tensors, timeless

from iivcl.data import make_synthetic_videos
from iivcl.testing import run_on_ranks

pytestmark = pytest.mark.slow

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "videos"
    make_synthetic_videos(root, 22, num_classes=2, num_frames=12, size=32)
    return root


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    if Path("/sys/class/net/lo").exists():  # whatever the machine's name resolves to
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return {**env, **more}


def begin(data: Path, out: Path, *options: str, ranks: int = 1) -> subprocess.Popen[str]:
    python = TORCHRUN if ranks > 1 else (sys.executable,)
    command = [*python, EXAMPLES / "pretrain.py", f"--data={data}", f"--out={out}", *SMALL]
    return subprocess.Popen(
        [*map(str, command), *options], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def lines_of(out: Path) -> int:
    file = out / "log.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """All processes that a process has started, and those that these have."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def ranks_of(torchrun: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks, without the workers of their loaders."""
    others = [pid for child in children(torchrun.pid) for pid in children(child)]
    return [pid for pid in children(torchrun.pid) if pid not in others]


def kill_all(process: subprocess.Popen[str]) -> None:
    for pid in (process.pid, *children(process.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while alive := [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [(1, ("--method=iivcl",)), (2, ("--queue=shard", "--accumulate=2"))],
    ids=["one process", "two ranks"],
)
def test_a_run_killed_at_random_is_the_run_that_was_not(
    ranks: int, options: tuple[str, ...], videos: Path, tmp_path: Path
) -> None:
    options = (*options, "--epochs=4", "--save-every=3", "--workers=1", "--resume=auto")
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    status, _, error = end(begin(videos, unbroken, *options, ranks=ranks))
    assert status == 0, error
    draw = random.Random(0)
    for earliest in (2, 8, 14):
        process = begin(videos, killed, *options, ranks=ranks)
        step = earliest + draw.randrange(5)
        wait_for(lambda step=step: lines_of(killed) >= step, process)
        time.sleep(draw.uniform(0, 0.15))  # reading, training, logging, saving
        if ranks > 1 and earliest == 8:  # one rank alone: torchrun ends the others
            os.kill(ranks_of(process)[1], signal.SIGKILL)
            assert end(process)[0] != 0
        else:
            kill_all(process)
    status, out, error = end(begin(videos, killed, *options, ranks=ranks))
    assert status == 0, error
    assert "going on from" in out
    assert_same_run(killed, unbroken)
    steps = [line["step"] for line in log(killed)]
    assert steps == list(range(1, 21))


VARIANTS = {
    "gather": ("--method=iivcl", "--precision=bfloat16"),
    "shard": ("--queue=shard",),
    "local": ("--method=nnclr", "--queue=local", "--accumulate=2"),
    "fsdp": ("--fsdp", "--knn-every=1"),
}
if not pretraining.SHARDS_WEIGHTS:
    del VARIANTS["fsdp"]


@pytest.fixture(scope="module")
def of_two_ranks(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on two ranks: unbroken and stopped after step 4, left open, and begun on one rank."""
    root = tmp_path_factory.mktemp("ranks")
    shard = ("--queue=shard",)
    assert pretrain(videos, root / "shard from one", *shard, stop=6) == 75
    assert pretrain(videos, root / "from one", *VARIANTS["gather"], "--queue-size=96", stop=4) == 75
    jobs = []
    for name, options in VARIANTS.items():
        for out, stops in ((root / name, (None,)), (root / f"{name} broken", (4, None))):
            jobs += [(videos, out, (*options, "--resume=auto"), stop) for stop in stops]
    jobs += [(videos, root / f"{name} open", VARIANTS[name], 6) for name in ("shard", "local")]
    wide = (*VARIANTS["gather"], "--queue-size=96")
    jobs.append((videos, root / "from one", (*wide, "--resume=auto"), None))
    jobs.append((videos, root / "from two", wide, 4))
    jobs.append((videos, root / "shard from one", (*shard, "--resume=auto"), 1))
    shards = pretraining.write_shards(videos, root / "tars")
    jobs += [(shards, root / "within an epoch", (), 3), (shards, root / "at its end", (), 5)]
    results = run_on_ranks(2, pretraining.on_ranks, jobs)
    assert results == [[0, 75, 0] * len(VARIANTS) + [75, 75, 0, 75, 75, 75, 75]] * 2
    return root


def test_gradients_of_a_step_in_parts_are_averaged_over_ranks() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    for number in (1.0, 2.0, 3.0, 4.0):  # of both ranks and parts
        model(torch.full((1, 4), number)).square().sum().backward()
    expected = [p.grad / 2 for p in model.parameters()]
    for gradients in run_on_ranks(2, pretraining.gradients_of_parts):
        for found in gradients:
            torch.testing.assert_close(found, expected)


def test_what_one_rank_does_not_know_is_the_mean_of_the_others() -> None:
    assert run_on_ranks(2, pretraining.purity_of_labelled) == [1.0, 1.0]


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_that_were_told_to_stop_go_on_bit_for_bit(name: str, of_two_ranks: Path) -> None:
    assert_same_run(of_two_ranks / f"{name} broken", of_two_ranks / name)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_differs_by_rank_is_saved_of_every_rank(name: str, of_two_ranks: Path) -> None:
    state = tensors(of_two_ranks / name)
    own = {key.removeprefix("rank0.") for key in state if key.startswith("rank0.")}
    assert own == {key.removeprefix("rank1.") for key in state if key.startswith("rank1.")}
    different = {
        key for key in own if not torch.equal(state[f"rank0.{key}"], state[f"rank1.{key}"])
    }
    assert "random.cpu" in different
    assert any(key.startswith("buffers.") and "running" in key for key in different)
    rows = {"rings.queue.keys", "rings.videos.ids"}
    assert rows <= different if name in ("shard", "local") else not rows & own
    assert any(key.startswith("optimizer.") for key in state)


@pytest.mark.skipif(not pretraining.SHARDS_WEIGHTS, reason="needs torch >= 2.6")
def test_sharded_weights_learn_what_replicated_ones_do(of_two_ranks: Path) -> None:
    weights = [
        {name: value.shape for name, value in tensors(of_two_ranks / run).items()
         if name.startswith(("encoder.", "key_encoder.", "optimizer."))}
        for run in ("fsdp", "gather")
    ]  # fmt: skip
    assert weights[0] == weights[1]
    losses = [[line["loss"] for line in log(of_two_ranks / name)][:2] for name in VARIANTS]
    assert losses[3] == pytest.approx(losses[1], rel=1e-4)  # before a shard of the queue is full


@pytest.mark.parametrize("begun", ["from one", "from two"])
def test_another_number_of_ranks_reads_the_same_videos_in_the_same_order(
    begun: str, of_two_ranks: Path, videos: Path, tmp_path: Path
) -> None:
    wide = (*VARIANTS["gather"], "--queue-size=96")  # rows of the whole run
    out = of_two_ranks / begun
    if begun == "from two":
        assert pretrain(videos, out, *wide, "--resume=auto") == 0
    assert pretrain(videos, tmp_path / "alone", *wide) == 0
    mine, theirs = tensors(out), tensors(tmp_path / "alone")
    for name in ("rings.videos.ids", "rings.labels.ids", "rings.queue.ids", "rings.queue.stamps"):
        assert torch.equal(mine[name], theirs[name]), name
    schedule = ("step", "learning_rate", "momentum", "inter_weight")
    for line, expected in zip(timeless(out), timeless(tmp_path / "alone"), strict=True):
        assert all(line[name] == expected[name] for name in schedule)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("shard open", 2, 1), ("shard from one", 1, 2)]
)
def test_shards_are_dealt_to_another_number_of_ranks(
    name: str, before: int, after: int, of_two_ranks: Path, videos: Path
) -> None:
    out = of_two_ranks / name
    if after == 1:
        assert pretrain(videos, out, *VARIANTS["shard"], "--resume=auto", stop=1) == 75

    def rows(step: int, ranks: int, ring: str) -> list[tuple[float, ...]]:
        state, found = tensors(out, step), []
        for r in range(ranks):
            parts = {key: state[f"rank{r}.rings.{ring}.{key}"] for key in ("stamps", "ids", "keys")}
            assert torch.equal(parts["ids"], state[f"rank{r}.rings.queue.ids"]) or ring == "labels"
            found += zip(*(part.tolist() for part in parts.values()), strict=True)
        return sorted(found)

    for ring in ("queue", "videos", "labels"):
        old, new = rows(6, before, ring), rows(7, after, ring)
        assert len(old) == len(new) == 24
        assert new[:16] == old[8:]  # the oldest of all have made way for the 8 keys of a step
        assert [stamp for stamp, *_ in new] == [4] * 8 + [5] * 8 + [6] * 8


def test_local_queues_stay_with_their_ranks(of_two_ranks: Path, videos: Path) -> None:
    message = "step-00000006 has the local queues of 2 ranks, which belong to their ranks: resume"
    with pytest.raises(SystemExit, match=rf"{message} with 2 ranks; got 1$"):
        pretrain(videos, of_two_ranks / "local open", *VARIANTS["local"], "--resume=auto")


def test_shards_within_an_epoch_stay_with_their_ranks(of_two_ranks: Path) -> None:
    shards = of_two_ranks / "tars"
    with pytest.raises(SystemExit, match="is within an epoch, whose shards are dealt to 2 ranks"):
        pretrain(shards, of_two_ranks / "within an epoch", "--resume=auto")
    out = of_two_ranks / "at its end"
    assert pretrain(shards, out, "--queue-size=24", "--resume=auto") == 0
    assert [line["step"] for line in log(out)] == list(range(1, 11))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_ranks_that_are_signalled_make_their_step_save_and_end(
    number: signal.Signals, videos: Path, tmp_path: Path
) -> None:
    """SIGTERM to torchrun, which passes it on to the groups of its ranks; SIGUSR1 to one rank."""
    out = tmp_path / "run"
    options = ("--epochs=2000", "--workers=2", "--save-every=100000")
    process = begin(videos, out, *options, ranks=2)
    wait_for(lambda: lines_of(out) >= 3, process)
    everyone = children(process.pid)
    assert len(everyone) == 2 + 2 * 2
    os.kill(process.pid if number == signal.SIGTERM else ranks_of(process)[1], number)
    status, printed, error = end(process)
    assert status != 0
    steps = [path.name for path in (out / "checkpoints").iterdir()]
    assert steps == [f"step-{log(out)[-1]['step']:08d}"], error
    assert f"stopped at step {log(out)[-1]['step']} of 10000; --resume auto goes on" in printed
    assert "killed by signal" not in error  # the workers of the loaders read on
    assert_gone(everyone)


@pytest.mark.parametrize("on_error", ["raise", "substitute"])
def test_a_corrupt_file_on_one_rank_is_named_and_ends_both_or_none(
    on_error: str, videos: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    paths = [*sorted(videos.glob("*/*.mp4")), bad]
    manifest = tmp_path / "train.csv"
    manifest.write_text("path\n" + "".join(f"{path}\n" for path in paths[-20:]))
    options = (f"--on-error={on_error}", "--workers=1")
    status, _, error = end(begin(manifest, tmp_path / "run", *options, ranks=2))
    assert (status == 0) == (on_error == "substitute"), error
    assert f"{bad}: " in error


SRUN = """#!/bin/bash
# Starts the tasks of one node, and ends with the highest of their statuses.
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    echo $! >> "$STAND_INS/tasks"
done
highest=0
for job in $(jobs -p); do
    wait "$job"; status=$?
    if ((status > highest)); then highest=$status; fi
done
exit $highest
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$STAND_INS/told"
if [ "$1" = show ]; then echo localhost; fi
"""


def test_a_slurm_job_saves_before_its_time_is_over_and_is_requeued(
    videos: Path, tmp_path: Path
) -> None:
    """With stand-ins for srun, scontrol and the signal of Slurm."""
    stand_ins, out = tmp_path / "bin", tmp_path / "run"
    stand_ins.mkdir()
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    env = environment(
        PATH=f"{stand_ins}{os.pathsep}{os.environ['PATH']}", STAND_INS=str(stand_ins),
        SLURM_JOB_ID=str(os.getpid()), SLURM_JOB_NODELIST="localhost", SLURM_NTASKS="2",
    )  # fmt: skip

    def job(*options: str) -> subprocess.Popen[str]:
        command = ["bash", "examples/pretrain.sbatch", f"--data={videos}", f"--out={out}", *SMALL]
        return subprocess.Popen(
            [*command, *options], env=env, text=True, cwd=EXAMPLES.parent,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    options = ("--epochs=16", "--workers=1", "--save-every=100000")
    process = job(*options)
    wait_for(lambda: lines_of(out) >= 3, process)
    for pid in (stand_ins / "tasks").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    status, printed, error = end(process)
    assert status == 75, error
    last = log(out)[-1]["step"]
    assert f"stopped at step {last} of 80" in printed
    assert (stand_ins / "told").read_text().splitlines() == [
        "show hostnames localhost", f"requeue {os.getpid()}",
    ]  # fmt: skip
    process = job(*options)  # the job starts again
    status, printed, error = end(process)
    assert status == 0, error
    assert f"step-{last:08d}" in printed
    assert [line["step"] for line in log(out)] == list(range(1, 81))
    assert (stand_ins / "told").read_text().count("requeue") == 1


def test_compiled_encoders_and_colours(videos: Path, tmp_path: Path) -> None:
    process = begin(videos, tmp_path / "run", "--compile", "--epochs=1")
    status, _, error = end(process)
    assert status == 0, error
    plain = tmp_path / "plain"
    assert pretrain(videos, plain, "--epochs=1") == 0
    for mine, theirs in zip(log(tmp_path / "run"), log(plain), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-3)
    weights = [
        torch.load(out / "encoder.pt", weights_only=True)["model"]
        for out in (tmp_path / "run", plain)
    ]
    assert list(weights[0]) == list(weights[1])
