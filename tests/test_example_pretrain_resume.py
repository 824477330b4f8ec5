"""Nothing is lost: what is saved, what is refused, and that a resumed run is the unbroken one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pretraining
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pretraining import assert_same_run, log, pretrain, small_disk, tensors, timeless

from iivcl import MoCoQueue
from iivcl.data import make_synthetic_videos

VARIANTS = {
    "iivcl": ("--knn-every=1",),
    "accumulated": ("--method=nnclr", "--accumulate=2", "--optimizer=adamw"),
    "shard": ("--queue=shard", "--precision=float16"),
    "fsdp": ("--method=rho-moco", "--fsdp", "--queue=local"),
    "tar shards": ("--workers=1", "--accumulate=2"),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "videos"
    make_synthetic_videos(root, 22, num_classes=2, num_frames=12, size=32)
    return root


@pytest.fixture(scope="module")
def finished(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with a checkpoint at every second step."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert pretrain(videos, out, "--save-every=2", "--keep=9") == 0
    return out


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The same run as a kill at step 7 leaves it: the last checkpoint is of step 6."""
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("step-00000008", "step-00000010"):
        shutil.rmtree(out / "checkpoints" / name)
    (out / "encoder.pt").unlink()
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(lines[:7]) + lines[7][:20])  # half a line
    return out


FAST = ("iivcl", "tar shards")  # of videos and of a stream; CI runs the others as well


@pytest.mark.parametrize(
    "variant", [v if v in FAST else pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS]
)
def test_a_run_that_is_told_to_stop_goes_on_bit_for_bit(
    variant: str, videos: Path, tmp_path: Path
) -> None:
    if variant == "fsdp" and not pretraining.SHARDS_WEIGHTS:
        pytest.skip("needs torch >= 2.6")
    options, broken = VARIANTS[variant], tmp_path / "broken"
    data = pretraining.write_shards(videos, tmp_path / "shards") if "tar" in variant else videos
    assert pretrain(data, tmp_path / "unbroken", *options) == 0
    for steps in (3, 4):  # stopped within both epochs
        assert pretrain(data, broken, *options, "--resume=auto", stop=steps) == 75
    assert pretrain(data, broken, *options, "--resume=auto") == 0
    assert_same_run(broken, tmp_path / "unbroken")
    mine, theirs = (
        torch.load(out / "encoder.pt", weights_only=True) for out in (broken, tmp_path / "unbroken")
    )
    assert all(torch.equal(mine["model"][name], theirs["model"][name]) for name in mine["model"])


def test_a_run_that_was_killed_goes_on_bit_for_bit(
    stopped: Path, finished: Path, videos: Path
) -> None:
    again = ("--save-every=2", "--keep=9", "--resume=auto")
    assert pretrain(videos, stopped, *again, "--workers=2") == 0  # read by others than before
    assert_same_run(stopped, finished)
    steps = [line["step"] for line in log(stopped)]
    assert steps == sorted(set(steps))
    assert pretrain(videos, stopped, *again) == 0
    assert_same_run(stopped, finished)  # there was nothing left to do


def test_all_that_changes_is_in_the_checkpoint(finished: Path) -> None:
    early, late = tensors(finished, 4), tensors(finished, 8)
    assert early.keys() == late.keys()
    changed = [name for name in early if not torch.equal(early[name], late[name])]
    for part in (
        "step", "encoder.backbone.", "encoder.head.", "key_encoder.", "optimizer.",
        "rings.queue.keys", "rings.queue.ids", "rings.queue.stamps", "rings.queue.step",
        "rings.videos.ids", "rings.labels.ids", "rank0.random.cpu", "rank0.buffers.",
        "rank0.key_buffers.",
    ):  # fmt: skip
        assert any(name.startswith(part) for name in changed), part


def test_the_last_checkpoints_are_kept(videos: Path, tmp_path: Path) -> None:
    pretrain(videos, tmp_path / "run", "--save-every=1", "--keep=2")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000009", "step-00000010"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Any] = {
    "a file is cut short": (lambda p: cut(p / "__0_0.distcp"), "Error"),
    "a file is missing": (lambda p: (p / "__0_0.distcp").unlink(), "No such file or directory"),
    "no list of what is where": (lambda p: (p / ".metadata").unlink(), ".metadata"),
    "the list is cut short": (lambda p: cut(p / ".metadata"), "truncated"),
    "a file of zeros": (
        lambda p: (p / "__0_0.distcp").write_bytes(bytes((p / "__0_0.distcp").stat().st_size)),
        "Error",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: str, stopped: Path, finished: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = stopped / "checkpoints" / "step-00000006"
    harm, message = DAMAGES[damage]
    harm(newest)
    left = stopped / "checkpoints" / "step-00000008.tmp"  # of a run killed while it saved
    left.mkdir()
    assert pretrain(videos, stopped, "--save-every=2", "--keep=9", "--resume=auto") == 0
    printed = capsys.readouterr().out
    assert f"{newest} is not whole, trying the one before: " in printed
    assert message in printed
    assert f"going on from {newest.with_name('step-00000004')}" in printed
    assert not left.exists()
    assert_same_run(stopped, finished)


def test_no_checkpoint_that_is_whole_is_an_error(
    stopped: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (stopped / "checkpoints").iterdir():
        cut(path / "__0_0.distcp")
    assert pretrain(videos, stopped, "--save-every=2", "--keep=9", "--resume=auto") == 1
    message = f"no checkpoint in {stopped / 'checkpoints'} is whole; remove it to begin anew"
    assert message in capsys.readouterr().err
    shutil.rmtree(stopped / "checkpoints")
    assert pretrain(videos, stopped, "--epochs=2", "--resume=auto", stop=1) == 75  # from the start
    assert [line["step"] for line in log(stopped)] == [1]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    user, modes = os.geteuid(), {path: path.stat().st_mode for path in (folder, *folder.parents)}
    if user == 0:  # whom no mode keeps from writing: another user then, who may look into all
        for path, mode in modes.items():
            path.chmod(mode | 0o055)
        os.seteuid(65534)
    else:
        folder.chmod(0o555)
    try:
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes.items() if user == 0 else [(folder, 0o755)]:
            path.chmod(mode)


@pytest.mark.parametrize(
    ("hindered", "why"), [(small_disk, "File too large"), (read_only, "Permission denied")]
)
def test_what_cannot_be_saved_leaves_the_last_checkpoint_whole(
    hindered: Callable[[Path], AbstractContextManager[None]], why: str, stopped: Path,
    finished: Path, videos: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    again = ("--save-every=2", "--keep=9", "--resume=auto")
    module = pretraining.load()
    checkpoints = stopped / "checkpoints"

    def save(*arguments: Any, save: Any = module.save, **options: Any) -> None:
        with hindered(checkpoints):
            save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save", save)
        assert pretrain(videos, stopped, *again) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"rank 0: {checkpoints / 'step-00000008'} cannot be written: " in error
    assert why in error
    assert error.endswith(f"the last one is whole: {checkpoints / 'step-00000006'}")
    assert not list(checkpoints.glob("*.tmp"))
    assert pretrain(videos, stopped, *again) == 0
    assert_same_run(stopped, finished)


def test_of_a_file_that_cannot_be_written_nothing_is_left(tmp_path: Path) -> None:
    write_whole = pretraining.load("_resume").write_whole
    write_whole(tmp_path / "result.json", "before")
    with pytest.raises(OSError, match="File too large"), small_disk(tmp_path):
        write_whole(tmp_path / "result.json", "x" * 7_000)
    assert os.listdir(tmp_path) == ["result.json"]
    assert (tmp_path / "result.json").read_text() == "before"


def test_half_a_picture_is_not_left_in_a_run(tmp_path: Path) -> None:
    watch = pretraining.load("_watch").Log(tmp_path, 0, clips_per_step=8)
    sheet = Image.effect_noise((128, 128), 90)
    with pytest.raises(OSError, match="File too large"), small_disk(tmp_path):
        watch.write(1, {}, sheet)
    watch.close()
    assert list((tmp_path / "neighbors").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: \[Errno 20\] Not a directory: .*run"):
        pretrain(videos, tmp_path / "file" / "run")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_with_another_run_is_refused(finished: Path, videos: Path) -> None:
    before = (finished / "log.jsonl").read_text()
    with pytest.raises(SystemExit, match=f"--out {finished} holds a run: go on with --resume auto"):
        pretrain(videos, finished)
    assert (finished / "log.jsonl").read_text() == before


def test_checkpoints_without_their_settings_are_not_gone_on_from(
    stopped: Path, videos: Path
) -> None:
    (stopped / "config.json").unlink()
    with pytest.raises(SystemExit, match=f"--out {stopped} holds a run"):
        pretrain(videos, stopped)
    with pytest.raises(SystemExit, match=r"No such file or directory: .*config\.json"):
        pretrain(videos, stopped, "--resume=auto")


def test_a_run_begins_with_the_encoder_of_another(
    finished: Path, videos: Path, tmp_path: Path
) -> None:
    init = f"--init={finished / 'encoder.pt'}"
    assert pretrain(videos, tmp_path / "run", init, "--lr=0", "--epochs=1") == 0
    mine, theirs = (
        torch.load(out / "encoder.pt", weights_only=True)["model"]
        for out in (tmp_path / "run", finished)
    )
    weights = [name for name, value in mine.items() if torch.equal(value, theirs[name])]
    assert [name for name in mine if "running" not in name and "tracked" not in name] == weights


def test_a_run_does_not_go_on_with_other_settings_or_files(
    stopped: Path, videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as error:
        pretrain(videos, stopped, "--resume=auto", "--temperature=0.2", "--form=in", "--keep=1")
    assert error.value.code == (
        f"error: {stopped} was begun with other settings: --form in (was out), --temperature 0.2 "
        "(was 0.1)"
    )
    fewer = Path(shutil.copytree(videos, tmp_path / "fewer"))
    pretrain(fewer, stopped, "--resume=auto", stop=1)  # the same files elsewhere
    next(fewer.glob("*/*.mp4")).unlink()
    with pytest.raises(SystemExit, match=r"the list of files \(21 now, 22 before\)"):
        pretrain(fewer, stopped, "--resume=auto")


def test_a_loss_that_is_not_finite_stops_the_run(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    module = pretraining.load()
    patch, calls = pytest.MonkeyPatch(), 0

    def ill(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        output = module.momentum_contrast(*arguments)
        if calls == 7:
            output.terms["loss"] = output.terms["loss"] * torch.nan
        return output

    patch.setitem(module.METHODS, "iivcl", ill)
    try:
        assert pretrain(videos, out, "--log-every=10") == 1
    finally:
        patch.undo()
    error = capsys.readouterr().err
    message = "rank 0: step 7: the loss is not finite; here it is nan; its videos:\n"
    assert message in error
    named = error.partition(message)[2].splitlines()[:4]
    args = module.parse_args([f"--data={videos}", "--out=x", *pretraining.SMALL])
    data = pretraining.load("_data").Data(args)
    data.batches.epoch, data.batches.step = 1, 1
    expected = next(iter(data.batches))
    assert [line.strip() for line in named] == [data.set.path(i) for i in expected]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000005"]


def test_weights_that_are_not_finite_are_not_saved(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(videos, tmp_path / "run", "--lr=1e38", "--save-every=1") == 1
    assert "is not finite" in capsys.readouterr().err
    for path in (tmp_path / "run").glob("checkpoints/*/encoder.pt"):
        assert all(
            x.isfinite().all() for x in torch.load(path, weights_only=True)["model"].values()
        )


def test_collapse_stops_the_run(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--backbone=tiny_encoder:collapsed", "--warmup-epochs=1", "--collapse-std=0.01")
    assert pretrain(videos, tmp_path / "run", *options) == 1
    error = capsys.readouterr().err
    assert "rank 0: step 6: the embeddings have collapsed, their std is " in error
    assert "below 0.01; its videos:\n" in error
    assert error.count(".mp4") == 4


@pytest.mark.parametrize(("on_error", "status"), [("raise", 1), ("skip", 0), ("substitute", 0)])
def test_a_corrupt_file_ends_the_run_by_name_or_is_left_out(
    on_error: str, status: int, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(videos, tmp_path / "videos"))
    paths = sorted(data.glob("*/*.mp4"))
    for path in paths[3:5]:
        path.write_bytes(b"no video")
    options = (f"--on-error={on_error}", "--batch-size=11", "--epochs=1", "--knn-every=1")
    options += ("--batch-norm=local",)
    assert pretrain(data, tmp_path / "run", *options, "--workers=1") == status
    error = capsys.readouterr().err
    assert any(str(path) in error for path in paths[3:5]) == (on_error == "raise")


@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(1, 4), after=st.sampled_from([1, 2, 3, 4]), steps=st.integers(0, 9),
    batch=st.integers(1, 5),
)  # fmt: skip
def test_rows_that_are_dealt_anew_are_the_same_in_order_of_age(
    before: int, after: int, steps: int, batch: int
) -> None:
    deal, size = pretraining.load("_checkpoints").deal, 12
    queues = [MoCoQueue(size, 2) for _ in range(before)]
    for step in range(steps):
        for r, queue in enumerate(queues):
            first = (step * before + r) * batch
            queue.enqueue(torch.randn(batch, 2), torch.arange(first, first + batch))
    shards = [queue.state_dict() for queue in queues]
    if before * size % after:
        return
    dealt = [MoCoQueue(before * size // after, 2) for _ in range(after)]
    for r, queue in enumerate(dealt):
        queue.load_state_dict(deal(shards, r, after))
    rows = [
        sorted((int(s), int(i), *k.tolist()) for q in some for s, i, k in
               zip(q.stamps, q.ids, q.keys, strict=True) if s >= 0)
        for some in (queues, dealt)
    ]  # fmt: skip
    assert rows[0] == rows[1]
    for queue in dealt:
        stamps = queue.stamps[queue.valid]
        assert torch.equal(stamps, stamps.sort().values)
        assert int(queue.step) == steps
        assert len(queue) in (len(rows[0]) // after, -(-len(rows[0]) // after))
        oldest = int(stamps[0]) if len(queue) == queue.size else None
        queue.enqueue(torch.ones(1, 2), torch.tensor([-5]) if steps else None)
        if oldest is not None:  # it is the oldest that was written over
            assert int(queue.stamps[0]) == steps
            assert len(queue) == queue.size
        else:
            assert len(queue) == len(stamps) + 1


def test_new_ranks_draw_from_the_seed_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = pretraining.load("_checkpoints")

    def draw(rank: int, seed: int, step: int) -> list[float]:
        monkeypatch.setattr(checkpoints, "rank", lambda: rank)
        checkpoints.seed_rank(seed, step)
        return [float(x) for x in torch.rand(3)]

    with torch.random.fork_rng([]):
        drawn = [draw(*which) for which in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 5))]
        assert len({number for numbers in drawn for number in numbers}) == 12
        assert draw(1, 0, 0) == drawn[1]


def test_log_of_a_run_is_cut_back_and_its_file_never_half_written(tmp_path: Path) -> None:
    watch = pretraining.load("_watch")
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 30)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 4')
    watch.Log(tmp_path, 20, clips_per_step=8).close()
    assert [line["step"] for line in timeless(tmp_path)] == [10, 20]
    assert not list(tmp_path.glob("*.tmp"))
