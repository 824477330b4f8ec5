"""The pretraining example: methods, settings, what is logged, drawn and exported."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pretraining
import pytest
import tiny_encoder
import torch
from example_runs import EXAMPLES
from PIL import Image
from pretraining import log, pretrain, tensors, timeless
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from iivcl import NNSupportQueue
from iivcl.data import make_synthetic_videos

NUMBERS = {
    "step", "epoch", "loss", "embedding_std", "effective_rank", "neighbor_similarity",
    "neighbor_age", "self_match_rate", "neighbor_purity", "learning_rate", "momentum",
    "inter_weight", "clips_per_second", "data_wait",
}  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "videos"
    make_synthetic_videos(root, 22, num_classes=2, num_frames=12, size=32)
    return root


@pytest.mark.parametrize("method", ["iivcl", "rho-moco", "simclr", "nnclr"])
def test_ten_steps_of_every_method(
    method: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert pretrain(videos, out, f"--method={method}", "--knn-every=1", "--clips=3") == 0
    lines = log(out)
    assert [line["step"] for line in lines] == list(range(1, 11))
    parts = {"intra", "inter"} if method in ("iivcl", "rho-moco") else set()
    for line in lines:
        assert line.keys() - {"knn_accuracy"} == NUMBERS | parts
        assert math.isfinite(line["loss"])
        assert line["self_match_rate"] in (0.0, None)  # None while there are no neighbours
    assert [line["step"] for line in lines if "knn_accuracy" in line] == [5, 10]
    assert lines[0]["neighbor_purity"] is None
    assert all(0 <= line["neighbor_purity"] <= 1 for line in lines[1:])
    if method == "iivcl":
        assert [line["inter_weight"] for line in lines] == [0] * 4 + [1] * 6
        assert lines[-1]["inter"] > 0
    if method == "rho-moco":
        assert all(line["inter"] == 0 for line in lines)

    state = tensors(out)
    assert int(state["step"]) == 10
    assert any(name.startswith("key_encoder.") for name in state) == bool(parts)
    assert torch.equal(state["rings.queue.stamps"], state["rings.videos.stamps"])
    assert state["rings.queue.keys"].shape == (24, 8)
    for path in (out / "encoder.pt", out / "checkpoints" / "step-00000005" / "encoder.pt"):
        saved = torch.load(path, weights_only=True)
        tiny_encoder.with_norm().load_state_dict(saved.pop("model"))
        assert saved == {
            "method": method, "backbone": "tiny_encoder:with_norm", "frames": 4, "stride": 1.0,
            "size": 32,
        }  # fmt: skip
    pictures = sorted((out / "neighbors").iterdir())
    assert [path.name for path in pictures] == ["step-00000005.png", "step-00000010.png"]
    for path in pictures:
        with Image.open(path) as image:
            assert np.asarray(image).std() > 10
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) == lines[-1].keys() - {"step"}
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in lines]
    )
    assert [event.step for event in board.Images("neighbors")] == [5, 10]
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["method"] == method
    assert config["versions"].keys() == {"python", "torch", "torchvision", "av", "iivcl"}
    assert config["files"]["count"] == 22
    printed = capsys.readouterr()
    assert "22 videos, 5 steps an epoch; 2 videos are left out of each" in printed.out
    assert "clips/s=" in printed.err
    assert "wait=" in printed.err


def test_presets_are_where_settings_begin() -> None:
    module = pretraining.load()
    for name, preset in module.PRESETS.items():
        args = module.parse_args(["--data=x", "--out=y", f"--preset={name}"])
        assert {option: getattr(args, option) for option in preset} == preset
        overridden = ["--frames=4", "--size=64", "--backbone=r3d_18", "--epochs=3", "--stride=1.5"]
        other = module.parse_args(["--data=x", "--out=y", f"--preset={name}", *overridden])
        given = (other.frames, other.size, other.backbone, other.epochs, other.stride)
        assert given == (4, 64, "r3d_18", 3, 1.5)
        assert preset["backbone"] in module.backbones.__all__
        module.settle(args)
    assert args.lr == pytest.approx(0.4)  # of 512 videos
    assert args.batch_norm == ("sync" if torch.cuda.is_available() else "shuffle")


def test_order_of_videos_is_that_of_the_unbroken_run_wherever_it_is_taken_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = pretraining.load("_data")
    args = pretraining.load().parse_args(["--data=x", "--out=y", "--batch-size=4"])
    steps = 22 // 4

    def read(ranks: int, accumulate: int, epoch: int, step: int) -> list[list[int]]:
        """The videos of every step from one on, in the order of the queue."""
        args.accumulate, of_ranks = accumulate, []
        monkeypatch.setattr(reading, "world_size", lambda: ranks)
        for r in range(ranks):
            monkeypatch.setattr(reading, "rank", lambda r=r: r)
            batches = reading.Batches(22, args)
            batches.epoch, batches.step = epoch, step
            parts = list(batches)
            assert len(parts) == len(batches)
            chunks = [parts[i : i + accumulate] for i in range(0, len(parts), accumulate)]
            of_ranks.append([list(chain(*chunk)) for chunk in chunks])
        return [list(chain(*shares)) for shares in zip(*of_ranks, strict=True)]

    orders = []
    for epoch in (0, 1):
        unbroken = read(1, 1, epoch, 0)
        orders.append(list(chain(*unbroken)))
        assert len(unbroken) == steps
        assert len(set(orders[-1])) == 4 * steps  # none twice
        for step in range(steps + 1):
            for ranks, accumulate in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1)):
                assert read(ranks, accumulate, epoch, step) == unbroken[step:]
    assert orders[0] != orders[1]


def test_of_a_manifest_with_a_split_only_the_training_part_is_read(
    videos: Path, tmp_path: Path
) -> None:
    paths = [str(path.resolve()) for path in sorted(videos.rglob("*.mp4"))]
    seen = set(paths[::2])
    rows = [f"{path},{'train' if path in seen else 'test'}" for path in paths]
    (tmp_path / "set.csv").write_text("\n".join(["path,split", *rows]))
    module = pretraining.load("_data")
    whole = module.read_videos(tmp_path / "set.csv")
    assert set(module.training_part(whole).paths) == seen < set(whole.paths)


def test_a_step_in_parts_is_the_step_as_a_whole(videos: Path, tmp_path: Path) -> None:
    """With queue negatives alone and no batch norm: one update, one enqueue, one schedule step."""
    options = ("--method=rho-moco", "--backbone=tiny_encoder:without_norm", "--batch-size=8")
    options += ("--batch-norm=local", "--head-norm=none")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    no_colours = pytest.MonkeyPatch()  # drawn per part, and so not the same
    presets = pretraining.load().augment
    no_colours.setattr(presets, "rho_moco", lambda size, old=presets.rho_moco: Plain(old(size)))
    try:
        pretrain(videos, whole, *options)
        pretrain(videos, parts, *options, "--accumulate=4")
    finally:
        no_colours.undo()
    mine, theirs = tensors(whole), tensors(parts)
    for name, value in mine.items():
        if "rank0" not in name:
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-5)
    for name in ("step", "loss", "intra", "learning_rate", "momentum"):
        expected = [line[name] for line in timeless(whole)]
        assert [line[name] for line in timeless(parts)] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("clips", [2, 3])
def test_positives_are_the_rows_that_a_clip_and_the_others_of_its_video_find(clips: int) -> None:
    module, g = pretraining.load(), torch.Generator().manual_seed(0)
    queue, ids, k = NNSupportQueue(40, 6), torch.arange(8), 7
    queue.enqueue(torch.randn(40, 6, generator=g), torch.arange(40) // 2)
    key = F.normalize(torch.randn(8, clips, 6, generator=g), dim=2)
    run, args = SimpleNamespace(queue=queue), SimpleNamespace(clips=clips, neighbors=k)
    accepted = module.agreed_neighbors(key, ids, run, args)
    kept = 0
    for i, found in enumerate(accepted):
        others = torch.cat([key[:, :i], key[:, i + 1 :]], dim=1).mean(1)
        own, rest = (queue.nearest(x, k, ids=ids).indices.tolist() for x in (key[:, i], others))
        for b in range(8):
            common = [row for row in rest[b] if row in own[b]]  # best first, to the others
            assert found.indices[b][found.valid[b]].tolist() == common
            kept += len(common)
    assert 0 < kept < 8 * clips * k


def test_agreed_rows_are_the_default_and_all_rows_a_choice(videos: Path, tmp_path: Path) -> None:
    """The runs part when neighbours count, and not before."""
    losses = {}
    for accept in ("default", "agreed", "all"):
        options = () if accept == "default" else (f"--accept={accept}",)
        pretrain(videos, tmp_path / accept, "--inter-start=0.5", *options)
        losses[accept] = [line["loss"] for line in timeless(tmp_path / accept)]
    assert losses["default"] == losses["agreed"] != losses["all"]
    assert losses["agreed"][0] == losses["all"][0]


class Plain:
    """A preset whose colours are left alone: its geometry, then the mean and std."""

    def __init__(self, preset: Any) -> None:
        self.preset = preset

    def __getitem__(self, part: slice) -> Any:
        if part.start is None:
            return self.preset[part]
        return pretraining.load().augment.Compose(self.preset[2], self.preset[-1])


def test_sets_of_all_kinds(videos: Path, tmp_path: Path) -> None:
    paths = sorted(videos.glob("*/*.mp4"))
    manifest = tmp_path / "train.csv"
    rows = [f"{path},{path.parent.name},group{i // 2}\n" for i, path in enumerate(paths)]
    manifest.write_text("path,label,group\n" + "".join(rows))
    shards = pretraining.write_shards(videos, tmp_path / "shards")
    for data in (manifest, shards):
        out = tmp_path / f"run-{data.name}"
        assert pretrain(data, out, "--epochs=1", "--knn-every=1") == 0
        assert [line["step"] for line in log(out)] == [1, 2, 3, 4, 5]
        assert ("knn_accuracy" in log(out)[-1]) == (data == manifest)  # of shards nothing is listed
        assert all(0 <= line["neighbor_purity"] <= 1 for line in log(out)[1:])
        with Image.open(out / "neighbors" / "step-00000005.png") as image:
            frames = np.asarray(image)[8:72, 8:200]  # of the first query
        assert len(np.unique(frames)) > 50
        state = tensors(out)
        labels = state["rings.labels.ids"]
        assert set(labels.tolist()) == {0, 1}
        if data == manifest:  # two videos share an id
            ids, indices = state["rings.queue.ids"], state["rings.videos.ids"]
            assert torch.equal(ids, indices // 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "0.5", "0.2"], "--crop must rise within (0, 1]; got 0.5 0.2"),
        (["--batch-size=6", "--accumulate=4"],
         "--batch-size 6 cannot be divided into 4 equal parts (1 ranks x --accumulate 4)"),
        (["--method=simclr", "--batch-norm=shuffle"],
         "--method simclr has no key encoder whose batch could be shuffled: use --batch-norm sync "
         "or local"),
        (["--batch-norm=sync"], "--batch-norm sync works on GPUs only"),
        (["--warmup-epochs=2"], "--warmup-epochs 2 must be below --epochs 2"),
        (["--neighbors=25"], "--neighbors 25 are more than --queue-size 24"),
        (["--method=nnclr", "--queue=shard"],
         "--method nnclr takes neighbours out of the queue of its own rank: use --queue gather"),
        (["--fsdp", "--precision=float16"], "--fsdp scales no loss: use bfloat16"),
        (["--clips=1"], "--clips must be at least 2; got 1"),
        (["--log-every=0"], "--log-every must be above 0; got 0"),
        (["--backbone=r50"], "--backbone r50 is not in iivcl.backbones; a function of your own is "
         "my_module:my_function"),
        (["--data=/no/such/folder"], "--data /no/such/folder does not exist"),
        (["--save-every=-5"], "--save-every must be above 0; got -5"),
        (["--save-every=0"], "--save-every must be above 0; got 0"),
        (["--lr=-1"], "--lr must be at least 0; got -1.0"),
        (["--weight-decay=-1"], "--weight-decay must be at least 0; got -1.0"),
        (["--workers=-1"], "--workers must be at least 0; got -1"),
        (["--seed=8589934592"], "--seed must be in [0, 4294967296); got 8589934592"),
        (["--temperature=0"], "--temperature must be above 0; got 0.0"),
        (["--momentum=1.5"], "--momentum must be in [0, 1]; got 1.5"),
        (["--neighbors=-1"], "--neighbors must be at least 0; got -1"),
        (["--backbone=no_module:encoder"],
         "--backbone no_module:encoder: ModuleNotFoundError: No module named 'no_module'"),
        (["--backbone=tiny_encoder:gone"], "--backbone tiny_encoder:gone: AttributeError: module "
         "'tiny_encoder' has no attribute 'gone'"),
        (["--backbone=ProjectionHead"], "--backbone ProjectionHead: TypeError: "
         "ProjectionHead.__init__() missing 3 required positional arguments: 'in_dim', "
         "'hidden_dim', and 'out_dim'"),
        (["--backbone=r3d_18", "--frames=2"], "`video` must have at least 8 frames of 16x16 pixels"
         " for the strides of this backbone; got 2 frames of 32x32"),
        (["--init=/gone.pt"], "[Errno 2] No such file or directory: '/gone.pt'"),
        (["--batch-size=23"], "{videos} holds 22 videos, and a step takes 23: give more videos, or "
         "a smaller --batch-size"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(
    options: list[str], message: str, videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as error:
        pretrain(videos, tmp_path / "run", *options)
    assert error.value.code == "error: " + message.format(videos=videos)
    assert not (tmp_path / "run").exists()  # which another run may now begin


def settled(*options: str) -> Any:
    module = pretraining.load()
    args = module.parse_args(["--data=x", "--out=y", *pretraining.SMALL, *options])
    module.settle(args)
    return args


@pytest.mark.parametrize(
    ("options", "form"),
    [(["--method=iivcl"], "out"), (["--method=rho-moco", "--clips=4"], "per_positive"),
     (["--method=rho-moco", "--form=in"], "in")],
)  # fmt: skip
def test_the_form_of_several_positives_is_that_of_the_method(options: list[str], form: str) -> None:
    assert settled(*options).form == form


@pytest.mark.parametrize(
    ("options", "fewer"),
    [(["--method=simclr"], True), (["--method=nnclr"], True), (["--method=iivcl"], False),
     (["--method=iivcl", "--negatives=queue+batch"], True)],
)  # fmt: skip
def test_parts_that_have_fewer_negatives_say_so(
    options: list[str], fewer: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settled(*options, "--accumulate=2")
    said = "--accumulate 2: the negatives of a batch are those of a part, 2 videos and not 4\n"
    assert capsys.readouterr().out == (said if fewer else "")


def test_online_knn_leaves_out_a_batch_that_cannot_be_read(videos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(videos, tmp_path / "videos"))
    for path in sorted(data.glob("*/*.mp4"))[16:]:  # all of the second batch
        path.write_bytes(b"no video")
    assert pretrain(data, tmp_path / "run", "--epochs=1", "--knn-every=1") == 0
    assert 0 <= log(tmp_path / "run")[-1]["knn_accuracy"] <= 1


def test_a_folder_may_be_named_like_a_shard(videos: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(videos, tmp_path / "x.tar" / "set"))
    assert pretrain(data, tmp_path / "run", "--epochs=1") == 0
    assert pretrain(tmp_path, tmp_path / "whole", "--epochs=1") == 0  # which has it as a class
    shards = pretraining.write_shards(videos, tmp_path / "x.tar" / "shards")
    content = pretraining.load("_watch").content_of
    [first, *_] = sorted(videos.glob("*/*.mp4"))
    assert content(f"{shards}/0.tar/000000.mp4") == first.read_bytes()
    assert content(str(data / "gone.mp4")) == str(data / "gone.mp4")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what a CPU does")
@pytest.mark.parametrize(
    "options",
    [("--precision=bfloat16", "--optimizer=adamw"), ("--precision=float16", "--form=in"),
     ("--queue=shard", "--negatives=queue+batch", "--memory-format=contiguous"),
     ("--queue=local", "--fsdp")],
    ids=lambda options: options[0],
)  # fmt: skip
def test_ways_to_run(options: tuple[str, ...], videos: Path, tmp_path: Path) -> None:
    if "--fsdp" in options and not pretraining.SHARDS_WEIGHTS:
        with pytest.raises(SystemExit, match=r"--fsdp needs torch >= 2\.6; got"):
            pretrain(videos, tmp_path / "run", *options)
        return
    assert pretrain(videos, tmp_path / "run", "--epochs=1", *options) == 0
    assert all(math.isfinite(line["loss"]) for line in log(tmp_path / "run"))


def test_norms_and_biases_do_not_decay(videos: Path, tmp_path: Path) -> None:
    """With a learning rate, a decay and no gradient, what decays shrinks and the rest stays."""
    module = pretraining.load()
    args = module.parse_args(
        [f"--data={videos}", f"--out={tmp_path}", *pretraining.SMALL, "--weight-decay=0.5"]
    )
    args.batch_norm = "local"
    run = module.build(args, torch.device("cpu"), None)
    before = {name: p.detach().clone() for name, p in run.encoder.named_parameters()}
    for parameter in run.encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    for name, parameter in run.encoder.named_parameters():
        shrunk = not torch.equal(parameter, before[name])
        assert shrunk == (parameter.ndim > 1), name


def test_exported_names_are_those_of_the_plain_backbone(tmp_path: Path) -> None:
    module, checkpoints = pretraining.load(), pretraining.load("_checkpoints")
    args = module.parse_args(["--data=x", "--out=y", *pretraining.SMALL])
    args.batch_norm = "local"
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain = module.build(args, torch.device("cpu"), None).encoder
        expected = checkpoints.encoder_weights(plain)
        assert expected.keys() == tiny_encoder.with_norm().state_dict().keys()
        compiled = module.build(args, torch.device("cpu"), None).encoder
        compiled.compile(backend="eager")
        compiled(torch.zeros(2, 3, 4, 32, 32))
        wrapped = torch.nn.parallel.DistributedDataParallel(
            module.build(args, torch.device("cpu"), None).encoder
        )
        encoders = [compiled, wrapped]
        if pretraining.SHARDS_WEIGHTS:
            args.fsdp = True
            encoders.append(module.build(args, torch.device("cpu"), None).encoder)
        for encoder in encoders:
            weights = checkpoints.encoder_weights(encoder)
            assert list(weights) == list(expected)
            for name, value in weights.items():
                if "running" not in name and "tracked" not in name:
                    assert torch.equal(value, expected[name]), name
    finally:
        torch.distributed.destroy_process_group()


def test_online_knn_is_that_of_the_exported_encoder(videos: Path, tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    from iivcl import augment
    from iivcl.data import ClipRecipe, VideoClips
    from iivcl.evaluation import extract_features

    pretrain(videos, tmp_path / "run", "--knn-every=1", "--size=48")
    said = [line["knn_accuracy"] for line in log(tmp_path / "run") if "knn_accuracy" in line]
    recipe = ClipRecipe(num_frames=4, stride=1, clips_per_video=1, sampling="uniform")
    dataset = VideoClips(videos, recipe, transform=augment.evaluation(48))
    labels = torch.tensor(["up_down" in dataset.path(i) for i in range(len(dataset))]).long()
    for step, accuracy in zip((5, 10), said, strict=True):
        encoder = tiny_encoder.with_norm()
        file = tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "encoder.pt"
        encoder.load_state_dict(torch.load(file, weights_only=True)["model"])
        features = extract_features(encoder, DataLoader(dataset, 16), device="cpu").features
        assert reference_knn(features.double(), labels) == pytest.approx(accuracy)


def reference_knn(features: torch.Tensor, labels: torch.Tensor, k: int = 20) -> float:
    features = F.normalize(features, dim=1)
    right = 0
    for i in range(len(features)):
        others = [j for j in range(len(features)) if j != i]
        others.sort(key=lambda j: -float(features[i] @ features[j]))
        votes = torch.zeros(int(labels.max()) + 1, dtype=torch.float64)
        for j in others[:k]:
            votes[labels[j]] += torch.exp(features[i] @ features[j] / 0.07)
        right += int(votes.argmax() == labels[i])
    return right / len(features)


def test_a_run_begins_with_weights_of_a_file(tmp_path: Path) -> None:
    module, backbones = pretraining.load(), pretraining.load().backbones
    torch.manual_seed(5)
    published = backbones.mc3_18().state_dict()
    torch.save({"model": published, "method": "iivcl"}, tmp_path / "encoder.pt")
    argv = ["--data=x", "--out=y", "--backbone=mc3_18", f"--init={tmp_path / 'encoder.pt'}"]
    encoder = module.Encoder(module.parse_args(argv))
    assert encoder.backbone.state_dict().keys() == published.keys()
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, published[name]), name
    argv[2] = "--backbone=r2plus1d_18"
    with pytest.raises(SystemExit, match=r"^error: `path` .* holds another network than"):
        module.Encoder(module.parse_args(argv))


def test_a_picture_shows_the_videos_that_were_found(videos: Path, tmp_path: Path) -> None:
    watch = pretraining.load("_watch")
    module = pretraining.load()
    args = module.parse_args([f"--data={videos}", f"--out={tmp_path}", *pretraining.SMALL])
    args.batch_norm = "local"
    run, data = module.build(args, torch.device("cpu"), None), module.Data(args)
    shown, rows = torch.tensor([3, 7]), torch.tensor([11, 5, 9])
    run.queue.enqueue(torch.eye(3, 8), rows)
    run.videos.enqueue(torch.ones(3, 1), rows)
    found = run.queue.nearest(torch.eye(2, 8), 4, ids=shown)  # the fourth does not exist
    sheet = np.asarray(watch.contact_sheet(run, shown, found, data))
    cell = watch.FRAMES * watch.PIXELS + 8
    for row, queried in enumerate((3, 7)):
        neighbors = [int(rows[i]) for i in found.indices[row, :3]]
        for column, video in enumerate([queried, *neighbors]):
            frames = watch.thumbnails(data.set.path(video))  # (3, 3, 64, 64)
            expected = frames.permute(2, 0, 3, 1).flatten(1, 2).numpy()
            y, x = 8 + row * (watch.PIXELS + 20), 8 + column * cell
            assert np.array_equal(sheet[y : y + 64, x : x + 192], expected)
        assert sheet[8 + row * 84 : 72 + row * 84, 8 + 4 * cell :].min() == 255  # nothing there


def test_the_plan_of_a_large_run_is_what_the_script_calculates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = EXAMPLES.parent
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    scale = importlib.import_module("scale")
    scale.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    page = (root / "docs" / "how-to" / "scale.md").read_text()
    assert len(tables) == 3
    assert all(table in page for table in tables)
    # A machine that is twice as fast needs twice the readers.
    before = scale.reading(scale.RECIPES[0])["original"][0]
    monkeypatch.setattr(scale, "GPU_FLOPS", 2 * scale.GPU_FLOPS)
    assert scale.reading(scale.RECIPES[0])["original"][0] == pytest.approx(2 * before)
