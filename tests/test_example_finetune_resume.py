"""A finetuning that was stopped or killed is the one that was not; and on two ranks it is one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import finetuning
import pretraining
import pytest
import torch
from example_runs import EXAMPLES
from finetuning import finetune, read
from pretraining import assert_same_run

VARIANTS = {
    "sgd": (),
    "all": (
        "--optimizer=adamw", "--lr=1e-3", "--layer-decay=0.7", "--weight-decay=0.05", "--mixup=0.8",
        "--rand-augment=9", "--label-smoothing=0.1", "--warmup-epochs=0.5", "--accumulate=2",
        "--precision=bfloat16", "--hold-out=0.3", "--workers=1",
    ),
    "head": ("--tune=head", "--precision=float16", "--schedule=drops", "--drop-epochs", "1",
             "--crops=3", "--memory-format=contiguous"),
}  # fmt: skip
FILES = ("classifier.pt", "encoder.pt", "best_classifier.pt", "best_encoder.pt")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuning.write_set(tmp_path_factory.mktemp("finetune") / "videos")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuning.write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.pt")


@pytest.fixture(scope="module")
def finished(manifest: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert finetune(encoder, manifest, out) == 0
    return out


def results(out: Path) -> object:
    report = json.loads((out / "result.json").read_text())
    del report["settings"]["out"], report["settings"]["resume"]
    return report


def assert_same(out: Path, other: Path) -> None:
    """Checkpoints, logs, files and results agree, bit for bit."""
    assert_same_run(out, other)
    assert results(out) == results(other)
    for file in FILES:
        mine, theirs = read(out / file), read(other / file)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine["model"][n], theirs["model"][n]) for n in mine["model"])
        assert [mine.get(k) for k in ("step", "top1")] == [theirs.get(k) for k in ("step", "top1")]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_is_told_to_stop_goes_on_bit_for_bit(
    variant: str, manifest: Path, encoder: Path, tmp_path: Path
) -> None:
    options, broken = VARIANTS[variant], tmp_path / "broken"
    assert finetune(encoder, manifest, tmp_path / "unbroken", *options) == 0
    steps = len(pretraining.log(tmp_path / "unbroken"))
    for stop in (1, steps // 2):
        assert finetune(encoder, manifest, broken, *options, "--resume=auto", stop=stop) == 75
        assert not (broken / "result.json").exists()
    assert finetune(encoder, manifest, broken, *options, "--resume=auto") == 0
    assert_same(broken, tmp_path / "unbroken")


@pytest.mark.slow
def test_the_best_epoch_before_a_stop_is_still_the_best_after_it(
    manifest: Path, encoder: Path, finished: Path, tmp_path: Path
) -> None:
    """The first epoch is made the best; what is learned afterwards is worse."""
    out, patch, said = tmp_path / "run", pytest.MonkeyPatch(), iter((0.9, 0.4))
    patch.setattr(pretraining.load("finetune"), "validate",
                  lambda *arguments: {"validation_top1": next(said)})  # fmt: skip
    try:
        assert finetune(encoder, manifest, out, stop=5) == 75
        assert finetune(encoder, manifest, out, "--resume=auto") == 0
    finally:
        patch.undo()
    best = read(out / "best_classifier.pt")
    assert (best["step"], best["top1"]) == (3, 0.9)
    results = json.loads((out / "result.json").read_text())["results"]
    assert (results["best"]["step"], results["last"]["step"]) == (3, 6)


@pytest.mark.slow  # starts real processes
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    manifest: Path, encoder: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, EXAMPLES / "finetune.py", encoder, manifest, f"--out={out}",
        *finetuning.SMALL, "--resume=auto",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*[0-9]")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"going on from {out / 'checkpoints'}" in done.stdout
    assert_same(out, finished)


@pytest.mark.slow
def test_a_finished_run_is_tested_again_by_other_views(
    finished: Path, manifest: Path, encoder: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    assert finetune(encoder, manifest, out, "--resume=auto", "--clips=5", "--crops=3") == 0
    report = json.loads((out / "result.json").read_text())
    views = report["protocol"]["test"]
    assert (views["clips"], views["crops"]) == (5, 3)
    assert_same_run(out, finished)
    with pytest.raises(SystemExit, match=f"--out {out} holds a run: go on with --resume auto"):
        finetune(encoder, manifest, out)
    with pytest.raises(SystemExit, match=r"was begun with other settings: --dropout 0\.5 \(was 0"):
        finetune(encoder, manifest, out, "--resume=auto", "--dropout=0.5")
    other = finetuning.write_encoder(tmp_path / "encoder.pt", seed=2)
    with pytest.raises(SystemExit, match=r"was begun with other settings: --weights "):
        finetune(other, manifest, out, "--resume=auto")
    assert json.loads((out / "result.json").read_text()) == report


@pytest.mark.slow
def test_what_is_written_is_read_by_the_others(
    finished: Path, manifest: Path, encoder: Path, tmp_path: Path
) -> None:
    """The encoder alone and the classifier are measured, and finetuned from, under their names."""
    evaluate = pretraining.load("evaluate").main
    reports = []
    for name in ("encoder.pt", "classifier.pt"):
        out = tmp_path / f"{name}.json"
        arguments = [finished / name, manifest, f"--out={out}", "--cache=", "--workers=0"]
        arguments.append("--backbone=tiny_encoder:with_norm")
        assert evaluate(list(map(str, arguments))) == 0
        reports.append(json.loads(out.read_text()))
        [about] = reports[-1]["encoders"].values()
        assert about["encoder"] == "finetuned on labels"
    [first], [second] = (report["results"].values() for report in reports)
    assert first == second
    assert finetune(finished / "classifier.pt", manifest, tmp_path / "again", "--epochs=1") == 0
    begun = json.loads((tmp_path / "again" / "result.json").read_text())["encoder"]
    assert begun["weights_sha256"] == about["weights_sha256"]


@pytest.mark.slow  # starts real processes
def test_two_ranks_make_the_steps_of_one(
    manifest: Path, encoder: Path, finished: Path, tmp_path: Path
) -> None:
    """Without what differs by rank, dropout and batch norm, and with each video counted once."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    if Path("/sys/class/net/lo").exists():
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rows = manifest.read_text().splitlines()
    tests = [row for row in rows if row.endswith("test")]
    odd = manifest.with_name("odd.csv")  # five videos to test
    odd.write_text("\n".join([row for row in rows if row != tests[-1]]))
    options = ("--backbone=tiny_encoder:without_norm", "--frames=4", "--stride=1", "--size=32",
               "--dropout=0")  # fmt: skip
    assert finetune("random", odd, tmp_path / "one", *options) == 0
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        EXAMPLES / "finetune.py", "random", odd, f"--out={tmp_path / 'two'}",
        *finetuning.SMALL, *options,
    ]  # fmt: skip
    done = subprocess.run(
        list(map(str, command)), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one, two = (read(tmp_path / name / "classifier.pt")["model"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    reports = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two")]
    assert sum(map(sum, reports[0]["results"]["last"]["confusion"])) == 5
    assert reports[0]["results"]["last"] == reports[1]["results"]["last"]
    assert [report["ranks"] for report in reports] == [1, 2]
