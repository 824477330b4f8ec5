"""The example that finetunes, held to loops over the videos, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import finetuning
import pretraining
import pytest
import tiny_encoder
import torch
from finetuning import finetune, read
from torch import nn
from torch.nn import functional as F

from iivcl import augment
from iivcl.data import ClipRecipe, open_video, read_manifest

finetune_module = pretraining.load("finetune")
classify = pretraining.load("_classify")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuning.write_set(tmp_path_factory.mktemp("finetune") / "videos")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetuning.write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.pt")


def settings(*options: str) -> Any:
    args = finetune_module.parse_args(
        ["random", "set", "--out=x", *finetuning.SMALL, "--frames=4", "--stride=1", "--size=32",
         "--backbone=tiny_encoder:with_norm", *options]
    )  # fmt: skip
    finetune_module.settle(args)
    return args


def reference_scores(classifier: Path, paths: list[str], clips: int) -> torch.Tensor:
    """The mean softmax over the views of every video, in loops."""
    content = read(classifier)
    encoder, head = tiny_encoder.with_norm().eval(), nn.Linear(16, 3)
    parts = {"backbone.": encoder, "head.": head}
    for prefix, module in parts.items():
        names = [name for name in content["model"] if name.startswith(prefix)]
        module.load_state_dict({n[len(prefix) :]: content["model"][n] for n in names})
    recipe = ClipRecipe(num_frames=4, stride=1, clips_per_video=clips, sampling="uniform")
    rows = []
    for path in paths:
        with open_video(path) as video:
            views = augment.evaluation(32)(recipe.read(video))
        scores = [F.softmax(head(encoder(view[None]))[0], dim=0) for view in views]
        rows.append(torch.stack(scores).mean(0))
    return torch.stack(rows).detach()


def test_a_short_run_and_its_test_are_those_of_loops(
    manifest: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert finetune(encoder, manifest, out) == 0
    result = json.loads((out / "result.json").read_text())
    listed = read_manifest(manifest)
    test = listed.split("test")
    lines = pretraining.log(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    said = {line["step"]: line["validation_top1"] for line in lines if "validation_top1" in line}
    assert list(said) == [3, 6]
    assert result["results"]["best"]["step"] == max(said, key=lambda step: (said[step], -step))
    for name, file in (("last", "classifier.pt"), ("best", "best_classifier.pt")):
        scores, found = reference_scores(out / file, test.paths, 2), result["results"][name]
        guesses = scores.argmax(1).tolist()
        truth = test.labels.tolist()
        right = [guess == label for guess, label in zip(guesses, truth, strict=True)]
        assert found["top1"] == pytest.approx(sum(right) / 6)
        assert found["counts"] == {"tested": 6, "skipped": 0, "repeated_views": 0}
        of_classes = [
            [r for r, label in zip(right, truth, strict=True) if label == c] for c in range(3)
        ]
        assert found["recall_of_classes"] == [sum(hits) / len(hits) for hits in of_classes]
        assert found["mean_of_classes"] == pytest.approx(sum(found["recall_of_classes"]) / 3)
        for label, guess in ((0, 0), (1, 2)):
            pairs = list(zip(truth, guesses, strict=True))
            assert found["confusion"][label][guess] == pairs.count((label, guess))
        content = read(out / file)
        assert content["classes"] == listed.classes == result["classes"]
        middle = reference_scores(out / file, test.paths, 1).argmax(1)
        top1 = (middle == test.labels).double().mean().item()
        assert said[content["step"]] == pytest.approx(top1)
        own = read(out / file.replace("classifier", "encoder"))
        assert own["backbone"] == "tiny_encoder:with_norm"
        for weight, value in own["model"].items():
            assert torch.equal(value, content["model"][f"backbone.{weight}"])
    with pytest.raises(SystemExit, match=r"--again .*result\.json is no result of evaluate\.py$"):
        pretraining.load("evaluate").main([f"--again={out / 'result.json'}"])
    begun = read(encoder)["model"]
    assert any(not torch.equal(begun[name], own["model"][name]) for name in begun)
    assert list((out / "tensorboard").iterdir())
    printed = capsys.readouterr()
    assert "12 videos to train on, 3 steps an epoch; 6 to test" in printed.out
    assert re.search(r"last, step 6: top1 \d\.\d{4}, mean_of_classes", printed.out)
    assert "step/s" in printed.err
    assert not list(out.rglob("*.tmp"))


PRESETS = {
    "ucf101": {"lr": 0.025, "weight_decay": 0.0, "dropout": 0.8, "clips": 10, "crops": 3},
    "hmdb51": {"lr": 0.025, "epochs": 200, "batch_size": 64, "flip": 0.5, "tune": "all"},
    "ssv2": {"flip": 0.0, "clips": 1, "crops": 1, "epochs": 22, "tune": "all"},
    "k400": {"lr": 4.0, "batch_size": 512, "epochs": 60, "weight_decay": 0.0, "tune": "head"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_recipes_and_every_part_can_be_changed(name: str) -> None:
    parse = finetune_module.parse_args
    args = parse(["random", "set", "--out=x", f"--preset={name}"])
    assert {key: getattr(args, key) for key in PRESETS[name]} == PRESETS[name]
    args = parse(["random", "set", "--out=x", f"--preset={name}", "--batch-size=8", "--flip=0.3"])
    preset = finetune_module.PRESETS[name]
    assert args.lr == pytest.approx(preset["base_lr"] * 8 / preset["batch_size"])
    assert args.flip == 0.3
    of_set = {"k400": "kinetics"}.get(name, name)
    assert parse(["random", "set", "--out=x", f"--set={of_set}"]).preset == name


def test_learning_rates_of_the_recipes() -> None:
    rate = finetune_module.learning_rate
    args = finetune_module.parse_args(["random", "set", "--out=x"])
    at = {epoch: rate(epoch * 5, 5, args) for epoch in (0, 59, 60, 120, 180, 199)}
    expected = [0.025, 0.025, 0.0025, 0.00025, 0.000025, 0.000025]
    assert list(at.values()) == pytest.approx(expected)
    args = finetune_module.parse_args(["random", "set", "--out=x", "--preset=k400"])
    rates = [rate(step, 5, args) for step in range(300)]
    assert rates[:40] == pytest.approx([4.0 * (step + 1) / 40 for step in range(40)])
    assert rates[40:] == sorted(rates[40:], reverse=True)
    assert rates[170] == pytest.approx(2.0)


def test_a_frozen_encoder_is_left_as_it_is() -> None:
    args = settings("--tune=head")
    run = finetune_module.build(tiny_encoder.with_norm(), 3, args, torch.device("cpu"), None)
    before = {name: value.clone() for name, value in run.encoder.state_dict().items()}
    batch = (torch.randint(0, 256, (4, 1, 3, 4, 32, 32), dtype=torch.uint8), torch.arange(4),
             torch.tensor([0, 1, 2, 0]), torch.arange(4))  # fmt: skip
    finetune_module.take_step(run, [batch], 3, args)
    for name, value in run.encoder.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone."), name


def test_a_step_in_parts_is_the_step_as_a_whole() -> None:
    clips = torch.randint(0, 256, (4, 1, 3, 4, 32, 32), dtype=torch.uint8)
    columns = (clips, torch.arange(4), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    results = []
    for parts in (1, 2, 4):
        args = settings(
            "--dropout=0", f"--accumulate={parts}", "--label-smoothing=0.1", "--layer-decay=0.5"
        )
        torch.manual_seed(3)
        encoder = tiny_encoder.without_norm()
        run = finetune_module.build(encoder, 3, args, torch.device("cpu"), None)
        batches = list(zip(*(column.chunk(parts) for column in columns), strict=True))
        loss, hits = finetune_module.take_step(run, batches, 3, args)
        results.append({"loss": loss, "hits": hits, **run.encoder.state_dict()})
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


def test_mixed_clips_have_the_loss_of_mixed_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    args = settings("--mixup=0.8", "--dropout=0", "--label-smoothing=0.2")
    model = tiny_encoder.without_norm()
    run = finetune_module.build(model, 3, args, torch.device("cpu"), None)
    clips = torch.randint(0, 256, (2, 1, 3, 4, 32, 32), dtype=torch.uint8)
    batch = (clips, torch.arange(2), torch.tensor([0, 2]), torch.arange(2))
    seen: list[torch.Tensor] = []
    run.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    run.encoder.register_forward_hook(lambda module, given, logits: seen.append(logits))
    loss, _ = finetune_module.take_step(run, [batch], 3, args)
    mixed, logits = seen
    plain = classify.to_input(clips[:, 0])
    share = ((mixed - plain[[1, 0]]) / (plain - plain[[1, 0]])).nanmedian()
    assert 0 < share < 1
    target = share * torch.eye(3)[[0, 2]] + (1 - share) * torch.eye(3)[[2, 0]]
    target = 0.8 * target + 0.2 / 3
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-4, atol=1e-6)


def test_training_views_are_squares_of_the_zoom() -> None:
    """On a ramp of columns and rows, the corners of a crop say what was cut out."""
    height, width = 80, 120
    ramp = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    clips = torch.cat([ramp, ramp[:1]]).to(torch.uint8)[None, :, None].repeat(64, 1, 3, 1, 1)
    torch.manual_seed(0)
    views = classify.TrainingViews(32, zoom=(1.25, 2.0), flip=0.5)(clips).float()
    assert views.shape == (64, 3, 3, 32, 32)
    assert torch.equal(views[:, :, 0], views[:, :, 2])  # one box for all frames of a clip
    rows, columns = views[:, 0, 0, :, 5], views[:, 1, 0, 5]
    tall, wide = (x[:, -1] - x[:, 0] for x in (rows, columns))
    side = tall * 32 / 31  # from the middle of a pixel to that of another
    assert (side.min() > 80 / 2.0 - 3) & (side.max() < 80 / 1.25 + 3)
    assert side.max() - side.min() > 15
    assert (wide.abs() - tall).abs().max() <= 2
    flipped = wide < 0
    assert 10 < flipped.sum() < 54
    left = columns.amin(1)
    assert left.max() - left.min() > 30  # the places of 120 - side columns
    assert (columns.amax(1).max() > 110) & (left.min() < 10)
    torch.manual_seed(0)
    still = classify.TrainingViews(32, zoom=(1.0, 1.0), flip=0.0)(clips[..., :80])
    assert torch.equal(still, augment.functional.resize_short_side(clips[..., :80], 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{encoder}", "{lacking}"],
         r"the test have classes that no video of training has: up_down$"),
        (["{encoder}", "{plain}"], r"plain\.csv has no split: --set, or a manifest with a column "),
        (["{encoder}", "{set}", "--test=val"], r"`name` must be .*'test'.*'val'$"),
        (["gone.pt", "{set}"], r"no such file: .*gone\.pt$"),
        (["{encoder}", "gone.csv"], r"no such file or folder: .*gone\.csv$"),
        (["{other}", "{set}"],
         r"other\.pt' holds another network than `backbone`; 100 tensors .* in the file$"),
        (["random", "{set}", "--backbone="], r"random does not say it: give --backbone$"),
        (["{encoder}", "{set}", "--hold-out=0.9"],
         r"--hold-out 0\.9 leaves no training video of: \w+, \w+"),
        (["random", "{set}", "--backbone=r3d_18", "--frames=4", "--stride=1", "--size=32"],
         r"`video` must have at least 8 frames of 16x16 pixels for the strides of this backbone; "),
        (["{encoder}", "{set}", "--batch-size=13"], r"holds 12 videos, and a step takes 13"),
        (["{encoder}", "{set}", "--batch-size=6", "--accumulate=4"], r"cannot be divided into 4"),
        (["{encoder}", "{set}", "--warmup-epochs=2"], r"must be below --epochs 2$"),
        (["{encoder}", "{set}", "--dropout=1"], r"--dropout must be in \[0, 1\); got 1\.0$"),
        (["{encoder}", "{set}", "--zoom", "2", "1"], r"--zoom must rise from at least 1; got "),
        (["{encoder}", "{set}", "--save-every=-5"], r"--save-every must be above 0; got -5$"),
        (["{encoder}", "{set}", "--save-every=0"], r"--save-every must be above 0; got 0$"),
        (["{encoder}", "{set}", "--weight-decay=-1"], r"--weight-decay must be at least 0; got -1"),
        (["{encoder}", "{set}", "--lr=-1"], r"--lr must be at least 0; got -1\.0$"),
        (["{encoder}", "{set}", "--workers=-1"], r"--workers must be at least 0; got -1$"),
        (["{encoder}", "{set}", "--seed=4294967296"], r"--seed must be in \[0, 4294967296\); got "),
        (["{encoder}", "{set}", "--drop-epochs", "1"],
         r"--schedule cosine ignores --drop-epochs \[1\]: give --schedule drops, or leave them "),
        (["{encoder}", "{set}", "--test=train"],
         r"12 files are in training and in the test, such as .*\.mp4: list each on one side$"),
        (["{named}", "{set}"], r"named\.pt is of an encoder of your own: give --backbone "
         r"named_by_a_file:make, or named_by_a_file:make=.*named\.pt$"),
        (["{encoder}", "{set}", "--out={folder}/set.csv/run"], r"Not a directory: "),
        (["{encoder}", "{set}", "--out={folder}/old"], r"old holds a run: go on with --resume "),
    ],
)  # fmt: skip
def test_what_cannot_work_ends_in_one_line_and_leaves_nothing(
    manifest: Path, encoder: Path, tmp_path: Path, arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines = manifest.read_text().splitlines()
    folder = manifest.parent
    rows = [f"{folder}/{line}" for line in lines[1:]]
    (tmp_path / "set.csv").write_text("\n".join([lines[0], *rows]))
    gone = [row for row in rows if not ("up_down" in row and row.endswith("train"))]
    (tmp_path / "lacking.csv").write_text("\n".join([lines[0], *gone]))
    plain = [row.rpartition(",")[0] for row in rows]
    (tmp_path / "plain.csv").write_text("\n".join(["path,label", *plain]))
    files = {name: tmp_path / f"{name}.csv" for name in ("set", "lacking", "plain")}
    for name, of in (("named", "named_by_a_file:make"), ("other", "mc3_18")):
        files[name] = finetuning.write_encoder(tmp_path / f"{name}.pt", of=of)
    (tmp_path / "named_by_a_file.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    given = [a.format(encoder=encoder, folder=tmp_path, **files) for a in arguments]
    with pytest.raises(SystemExit) as error:
        finetune(given[0], Path(given[1]), tmp_path / "run", *given[2:])
    assert isinstance(error.value.code, str)
    assert error.value.code.startswith("error: ")
    assert len(error.value.code.splitlines()) == 1
    assert re.search(message, error.value.code), error.value.code
    assert sorted(tmp_path.rglob("*")) == before
    assert "named_by_a_file" not in sys.modules


def test_a_test_of_single_videos_leaves_out_one_that_cannot_be_read(
    manifest: Path, encoder: Path, tmp_path: Path
) -> None:
    bad = manifest.with_name("bad.mp4")
    bad.write_bytes(b"no video")
    listed = manifest.with_name("with_bad.csv")
    listed.write_text(f"{manifest.read_text()}\n{bad.name},up_down,test")
    options = ("--clips=4", "--epochs=1")  # of a batch of four views
    assert finetune(encoder, listed, tmp_path / "run", *options) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["results"]["last"]["counts"]["tested"] == 6
    assert result["skipped"] == [str(bad)]


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--schedule=drops"], "the learning rate never falls: none of --drop-epochs [60, 120, 180] "
      "is below --epochs 2; --schedule cosine fits any length\n"),
     (["--schedule=drops", "--drop-epochs", "1"], ""), ([], "")],
)  # fmt: skip
def test_a_learning_rate_that_never_falls_is_said(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(*options)
    assert capsys.readouterr().out == said


def test_a_video_shorter_than_a_clip_is_an_error_by_name_where_that_is_asked(
    manifest: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--frames=13", "--short=error", "--on-error=raise")
    assert finetune(encoder, manifest, tmp_path / "run", *options) == 1
    [error] = [ln for ln in capsys.readouterr().err.splitlines() if ln.startswith("rank 0")]
    assert re.search(r"\.mp4: a clip of 13 frames .* but the video has 12 frames", error)


def test_help_fits_a_screen_and_a_half(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("finetune", "evaluate"):
        with pytest.raises(SystemExit):
            pretraining.load(name).parse_args(["--help"])
        assert len(capsys.readouterr().out.splitlines()) <= 75
