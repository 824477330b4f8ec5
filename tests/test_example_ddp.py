"""The example of several processes, started by torchrun as a user starts it, on the CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from iivcl.data import make_synthetic_videos

EXAMPLE = Path(__file__).parent.parent / "examples" / "train_ddp.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", str(EXAMPLE), *map(str, arguments)]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if Path("/sys/class/net/lo").exists():  # whatever the machine's name resolves to
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_two_processes_train_one_encoder_and_keep_one_queue(tmp_path: Path) -> None:
    make_synthetic_videos(tmp_path / "videos", 17, num_classes=2)  # odd: the sampler repeats one
    out = tmp_path / "run"
    done = run(
        "--data", tmp_path / "videos", "--steps", 4, "--batch-size", 4, "--out", out
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    step, features = done.stdout.splitlines()
    assert re.fullmatch(r"step 4: loss \d+\.\d{3}", step)
    assert features == "features (17, 512) of 17 videos"

    states = [torch.load(out / f"rank{rank}-of-2.pt", weights_only=True) for rank in (0, 1)]
    assert sorted(path.name for path in out.iterdir()) == ["rank0-of-2.pt", "rank1-of-2.pt"]
    trained, copies = ([state[name] for state in states] for name in ("encoder", "queue"))
    for name, value in trained[0].items():
        if "running" not in name:  # statistics are every rank's own
            assert torch.equal(value, trained[1][name]), name
    for name, value in copies[0].items():
        assert torch.equal(value, copies[1][name]), name
    assert int((copies[0]["stamps"] >= 0).sum()) == 4 * 2 * 4 * 2  # steps, ranks, videos, clips
