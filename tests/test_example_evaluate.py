"""The example that measures an encoder, held to loops over the videos and to its own results."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pretraining
import pytest
import tiny_encoder
import torch
import torch.nn.functional as F
from example_runs import EXAMPLES
from loading import workers_end
from PIL import Image
from sklearn.covariance import shrunk_covariance
from torch.utils._python_dispatch import TorchDispatchMode

from iivcl import augment
from iivcl.data import (
    ClipRecipe,
    Manifest,
    VideoClips,
    make_synthetic_videos,
    open_video,
    read_manifest,
)
from iivcl.evaluation import knn_classify

Report = dict[str, Any]
VIEWS = {"frames": 4, "stride": 1.0, "size": 32}
FAST = ["--workers=0", "--clips=3", "--backbone=tiny_encoder:with_norm"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen videos of three classes; of each class, the first four are the gallery."""
    folder = tmp_path_factory.mktemp("evaluate") / "videos"
    make_synthetic_videos(folder, 18, num_classes=3, num_frames=12)
    rows = list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))
    seen: Counter[str] = Counter()
    lines = ["path,label,split"]
    for row in rows:
        seen[row["label"]] += 1
        split = "train" if seen[row["label"]] <= 4 else "test"
        lines.append(f"{row['path']},{row['label']},{split}")
    (folder / "split.csv").write_text("\n".join(lines))
    return folder


def write_encoder(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = tiny_encoder.with_norm().state_dict()
    about = {"method": "iivcl", "backbone": "tiny_encoder:with_norm"}
    torch.save({"model": model, **about, **VIEWS}, path)
    return path


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return write_encoder(tmp_path / "encoder.pt", 1)


def evaluate(*arguments: object) -> int:
    return int(pretraining.load("evaluate").main([str(a) for a in arguments]))


def result_of(out: Path, *arguments: object, cache: object = "") -> Report:
    assert evaluate(*FAST, f"--out={out}", f"--cache={cache}", *arguments) == 0
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def reference_features(encoder: Path, manifest: Manifest, clips: int) -> torch.Tensor:
    model = tiny_encoder.with_norm().eval()
    model.load_state_dict(torch.load(encoder, weights_only=True)["model"])
    recipe = ClipRecipe(num_frames=4, stride=1, clips_per_video=clips, sampling="uniform")
    rows = []
    for path in manifest.paths:
        with open_video(path) as video:
            views = augment.evaluation(32)(recipe.read(video))
        rows.append(torch.stack([model(view[None])[0] for view in views]).mean(0))
    return torch.stack(rows).detach().double()


def test_its_numbers_are_those_of_loops_over_the_videos(
    videos: Path, encoder: Path, tmp_path: Path
) -> None:
    report = result_of(tmp_path / "r.json", encoder, videos / "split.csv")
    found = report["results"][str(encoder)]
    manifest = read_manifest(videos / "split.csv")
    features = reference_features(encoder, manifest, 3)
    unit = F.normalize(features, dim=1)
    sides = {
        name: [i for i, s in enumerate(manifest.splits) if s == name] for name in ("train", "test")
    }
    label = manifest.labels.tolist()
    hits, votes, precisions = {1: 0, 5: 0, 10: 0}, 0, []
    for query in sides["test"]:
        ranked = sorted(sides["train"], key=lambda row: -float(unit[query] @ unit[row]))
        relevant = [label[row] == label[query] for row in ranked]
        for k in hits:
            hits[k] += any(relevant[:k])
        at = [n for n, r in enumerate(relevant) if r]
        precisions.append(sum((i + 1) / (n + 1) for i, n in enumerate(at)) / len(at))
        scores = torch.zeros(3, dtype=torch.float64)
        for row in ranked[:12]:
            scores[label[row]] += torch.exp(unit[query] @ unit[row] / 0.07)
        votes += int(scores.argmax()) == label[query]
    for k, count in hits.items():
        assert found["retrieval"][f"R@{k}"] == count / 6
    assert "R@20" not in found["retrieval"]  # of 12 videos
    assert found["retrieval"]["mAP"] == pytest.approx(sum(precisions) / 6)
    assert found["whitened"]["R@1"] == recall_whitened(features, sides, label)
    assert found["knn"]["k"] == 12
    assert found["knn"]["top1"] == votes / 6
    counts = torch.tensor(found["confusion"]["counts"])
    assert found["confusion"]["of"] == "probe"
    assert counts.sum(1).tolist() == [2, 2, 2]
    assert int(counts.diagonal().sum()) / 6 == pytest.approx(found["probe"]["top1"])
    assert report["classes"] == manifest.classes
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["counts"] == {
        "queries": 6, "gallery": 12, "queries_without_relevant": 0, "skipped": 0,
        "repeated_views": 0,
    }  # fmt: skip


def recall_whitened(features: torch.Tensor, sides: dict[str, list[int]], label: list[int]) -> float:
    """Take R@1 by cosines x S^-1 y of what is left of features minus the mean of the gallery."""
    gallery = features[sides["train"]]
    x = (features - gallery.mean(0)).double().numpy()
    S = shrunk_covariance(np.cov(gallery.double().numpy().T, bias=True), shrinkage=0.1)
    product = x @ np.linalg.solve(S, x.T)
    cosine = product / np.sqrt(np.outer(product.diagonal(), product.diagonal()))
    nearest = {q: max(sides["train"], key=lambda row: cosine[q, row]) for q in sides["test"]}
    return sum(label[q] == label[row] for q, row in nearest.items()) / len(nearest)


def test_features_that_are_all_alike_are_measured_and_not_whitened() -> None:
    """As those of an encoder that has collapsed."""
    whitened, labels = pretraining.load("evaluate").whitened, torch.tensor([0, 1, 1])
    assert whitened(torch.ones(3, 4), labels, None, None, [1]) is None
    assert whitened(torch.eye(3, 4), labels, torch.ones(3, 4), labels, [1]) is None
    assert whitened(torch.eye(3, 4), labels, torch.eye(3, 4), labels, [1])["R@1"] == 1


def test_a_result_alone_gives_every_number_again(
    videos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_encoder(tmp_path / "other.pt", 2)
    first = tmp_path / "first.json"
    weights = torch.load(other, weights_only=True)[
        "model"
    ]  # as others save them, beside a momentum encoder
    states = {f"encoder_{part}.{name}": w + (part == "k") for part in "qk"
              for name, w in weights.items()}  # fmt: skip
    torch.save({"epoch": 7, "state_dict": states}, tmp_path / "foreign.pt")
    foreign = f"tiny_encoder:with_norm={tmp_path / 'foreign.pt'}"
    options = ["--beside", "random", "pixels", other, foreign, "--hold-out=0.4", "--center"]
    options += ["--crops=3"]
    options += ["--sgd-epochs=2", "--sgd-batch-size=5", "--sgd-lr=20"]
    report = result_of(first, encoder, videos / "manifest.csv", *options)
    assert list(report["results"]) == [str(encoder), "random", "pixels", str(other), foreign]
    assert report["results"][foreign] == report["results"][str(other)]
    assert report["encoders"][foreign]["encoder"] == "that under 'state_dict.encoder_q.'"
    assert len({json.dumps(result) for result in report["results"].values()}) > 2
    assert report["protocol"]["retrieval"]["centering"] == "each side by its own mean"
    again = tmp_path / "again.json"
    capsys.readouterr()
    assert evaluate("--again", first, "--out", again, "--workers=0") == 0
    assert json.loads(again.read_text()) == report
    printed = capsys.readouterr().out
    assert printed.endswith("every number was found again\n")
    assert_table(printed, report, [os.path.relpath(encoder), "random", "pixels"])

    report["results"]["pixels"]["retrieval"]["R@1"] = 2.0
    first.write_text(json.dumps(report))
    assert evaluate("--again", first, "--workers=0") == 1
    assert "pixels, retrieval, R@1: 2.0 before" in capsys.readouterr().out
    write_encoder(encoder, 3)
    with pytest.raises(SystemExit, match=r"not what was measured: encoders: .*sha256"):
        evaluate("--again", first, "--workers=0")


def assert_table(printed: str, report: Report, names: list[str]) -> None:
    """A row per encoder, beside one another under the same protocol."""
    head, *rows = printed.splitlines()
    assert head.split() == ["R@1", "R@5", "mAP", "white", "kNN", "probe", "SGD"]
    rows = rows[: len(report["results"])]
    assert [row.split()[0] for row in rows[:3]] == names
    for row, found in zip(rows, report["results"].values(), strict=True):
        numbers = [*(found["retrieval"][name] for name in ("R@1", "R@5", "mAP")),
                   found["whitened"]["R@1"],
                   *(found[name]["top1"] for name in ("knn", "probe", "sgd_probe"))]  # fmt: skip
        assert row.split()[1:] == [f"{number:.4f}" for number in numbers]


def test_a_result_states_all_that_differs_between_papers(
    videos: Path, encoder: Path, tmp_path: Path
) -> None:
    report = result_of(tmp_path / "r.json", encoder, videos / "split.csv", "--sgd-epochs=1")
    [about] = report["encoders"].values()
    assert {"encoder", "step", "sha256", "weights_sha256", "backbone"} <= about.keys()
    protocol = report["protocol"]
    assert {"sides", "layer", "video", "precision"} <= protocol.keys()
    assert protocol["views"].keys() == {
        "clips", "crops", "frames", "stride", "clip_starts", "short_videos", "pixels",
        "normalisation",
    }  # fmt: skip
    assert {"similarity", "centering", "average"} <= protocol["retrieval"].keys()
    assert {"similarity", "centering", "k", "votes", "temperature"} <= protocol["knn"].keys()
    assert {"loss", "solver", "weight_decay", "standardisation", "selection"} <= protocol[
        "probe"
    ].keys()
    assert protocol["sgd_probe"].keys() >= {
        "source", "optimizer", "lr", "lr_rule", "schedule", "epochs", "warmup_epochs", "batch_size",
        "weight_decay", "dropout", "training_views", "initial_weights", "encoder", "features",
        "test", "selection", "seed",
    }  # fmt: skip
    assert protocol["sgd_probe"]["lr"] == 4.0 * 12 / 512  # of 12 videos, and not of 512
    assert {"split", "sha256", "videos", "unlabelled"} <= report["data"].keys()
    [found] = report["results"].values()
    assert {"queries", "gallery", "skipped", "repeated_views"} <= found["counts"].keys()
    assert report["versions"].keys() >= {"torch", "torchvision", "av", "iivcl", "python"}
    assert report["settings"]["seed"] == 0


def test_the_linear_protocol_is_that_of_a_loop(
    videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer on the frozen encoder, and whatever stands beside it changes nothing."""
    options = ["--sgd-epochs=3", "--sgd-batch-size=4", "--sgd-lr=64"]
    out, source = tmp_path / "r.json", videos / "split.csv"
    classify, trained = pretraining.load("_classify"), []
    monkeypatch.setattr(classify, "Softmax", lambda model, old=classify.Softmax: (
        trained.append(model), old(model))[1])  # fmt: skip
    report = result_of(out, encoder, source, *options, "--beside", "pixels", "random")

    manifest = read_manifest(source)
    train, test = manifest.split("train"), manifest.split("test")
    model = tiny_encoder.with_norm().eval()
    model.load_state_dict(torch.load(encoder, weights_only=True)["model"])
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 3)
    torch.nn.init.normal_(head.weight, std=0.01)
    torch.nn.init.zeros_(head.bias)
    sgd = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9, nesterov=True)
    recipe = ClipRecipe(num_frames=4, stride=1, clips_per_video=1, short_side=46)
    clips = VideoClips(train, recipe, transform=classify.TrainingViews(32))
    rates = [1.0]  # 3 epochs x 8 / 60 are 1 step of warm-up
    rates += [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    for step, rate in enumerate(rates):
        epoch, place = divmod(step, 3)
        clips.set_epoch(epoch)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))
        batch = [clips[i] for i in order[4 * place : 4 * place + 4].tolist()]
        views = torch.cat([one[0] for one in batch]).float() / 255
        with torch.no_grad():
            features = model((views - 0.45) / 0.225)
        loss = F.cross_entropy(head(features), torch.tensor([one[2] for one in batch]))
        sgd.param_groups[0]["lr"] = 0.5 * rate
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    right = 0
    for path, label in zip(test.paths, test.labels.tolist(), strict=True):
        every = ClipRecipe(num_frames=4, stride=1, clips_per_video=3, sampling="uniform")
        with open_video(path) as video:
            views = augment.evaluation(32)(every.read(video))
        with torch.no_grad():
            right += int(head(model(views)).softmax(1).mean(0).argmax()) == label
    assert report["results"][str(encoder)]["sgd_probe"]["top1"] == right / 6
    layer = trained[0].head
    torch.testing.assert_close(layer.weight, head.weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(layer.bias, head.bias, rtol=1e-3, atol=1e-5)


def test_votes_are_the_same_however_the_search_is_parted() -> None:
    """Bit for bit; and no part holds the similarity of all queries to the whole gallery."""
    torch.manual_seed(0)
    gallery, query = torch.randn(4_000, 8), torch.randn(700, 8)
    labels = torch.randint(0, 5, (4_000,))
    with Largest() as largest:
        whole = knn_classify(query, gallery, labels, k=20)
    assert largest.numel < len(query) * len(gallery) / 2
    for rows in (1, 37):
        parts = [knn_classify(part, gallery, labels, k=20) for part in query[:100].split(rows)]
        assert torch.equal(torch.cat(parts), whole[:100])
    cosine = F.normalize(query, dim=1) @ F.normalize(gallery, dim=1).T  # held whole
    found = cosine.topk(20, dim=1)
    votes = torch.zeros(700, 5).scatter_add_(
        1, labels[found.indices], (found.values / 0.07).softmax(1)
    )
    torch.testing.assert_close(whole, votes, rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_features_are_kept_by_the_weights_that_made_them(
    videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another encoder under the same name never gets the features of the first."""
    cache, out, source = tmp_path / "cache", tmp_path / "r.json", videos / "split.csv"
    first = result_of(out, encoder, source, cache=cache)
    write_encoder(encoder, 2)
    second = result_of(out, encoder, source, cache=cache)
    assert second["results"] == result_of(out, encoder, source)["results"]
    assert second["results"] != first["results"]
    assert len(list(cache.iterdir())) == 2

    def read(*args: object, **how: object) -> None:
        raise AssertionError("a video was read")

    monkeypatch.setattr(pretraining.load("_features").data, "VideoClips", read)
    assert result_of(out, encoder, source, cache=cache) == second
    write_encoder(encoder, 1)
    assert result_of(out, encoder, source, cache=cache) == first
    with pytest.raises(AssertionError, match="was read"):  # other views are other features
        result_of(out, encoder, source, "--stride=2", cache=cache)


def test_what_pretraining_says_on_its_way_is_what_is_measured(videos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pretraining.pretrain(videos, run, "--knn-every=1", "--size=48") == 0
    said = {n["step"]: n["knn_accuracy"] for n in pretraining.log(run) if "knn_accuracy" in n}
    assert len(said) == 2
    for step, accuracy in said.items():
        file = run / "checkpoints" / f"step-{step:08d}" / "encoder.pt"
        report = result_of(tmp_path / "r.json", file, videos, "--clips=1")
        assert report["results"][str(file)]["knn"]["top1"] == accuracy
        assert report["encoders"][str(file)]["step"] == step
        assert report["data"]["split"] == "leave one out"
        assert report["results"][str(file)]["probe"] is None
    report = result_of(tmp_path / "r.json", run / "encoder.pt", videos)
    about = report["encoders"][str(run / "encoder.pt")]
    assert about["step"] == max(said)
    assert about["encoder"] == "query"


NAMED = (
    r"named\.pt is of an encoder of your own: give --backbone named_by_a_file:make, or "
    r"named_by_a_file:make=.*named\.pt$"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.pt", "{videos}"], r"no such file: .*gone\.pt$"),
        (["{encoder}", "gone"], r"no such file or folder: .*gone$"),
        (["{videos}/split.csv", "{videos}"], r"split\.csv is no checkpoint, or not whole \(\w+\)$"),
        (["{encoder}", "{videos}", "--out=gone/r.json"], r"--out gone/r\.json cannot be written$"),
        (["{encoder}", "{videos}", "--out={videos}"], r"--out .* cannot be written$"),
        (["{encoder}", "{videos}", "--beside", "mc3_18={encoder}"],
         r"encoder\.pt' holds another network than `backbone`; 100 tensors .* in the file$"),
        (["random", "{videos}", "--backbone=resnet", "--frames=4", "--stride=1", "--size=32"],
         r"--backbone resnet is not in iivcl\.backbones; "),
        (["{plain}", "{videos}"], r"no checkpoint says it: give --frames$"),
        (["{plain}", "{videos}", "--backbone=", "--frames=4", "--stride=1", "--size=32"],
         r"plain\.pt does not say its backbone: give --backbone, or BACKBONE=FILE$"),
        (["{encoder}", "{lacking}"],
         r"the queries have classes that no video of the gallery has: up_down$"),
        (["{encoder}", "{videos}/split.csv", "--query=val"], r"`name` must be .*'test'.*'val'$"),
        (["{encoder}", "{videos}", "--set=ucf101"], r"(No such file|not found|classInd).*"),
        (["{encoder}", "{videos}", "--sgd-epochs=1"],
         r"--sgd-epochs needs a split: there is no gallery$"),
        (["{loud}", "{videos}/split.csv", "--sgd-epochs=2", "--sgd-lr=4e40",
          "--sgd-batch-size=4"],
         r"the linear protocol diverges on .*loud\.pt: give a smaller --sgd-lr$"),
        (["{encoder}", "{videos}", "--frames=13", "--short=error", "--on-error=raise"],
         r"\.mp4: a clip of 13 frames .* needs frame 12, but the video has 12 frames; "),
        (["{encoder}", "{unreadable}", "--workers=1"], r"none of the 4 videos of a batch can be "),
        (["{encoder}", "{unreadable}"],
         r"none of the 4 videos of a batch can be read: .*0.mp4: No such file"),
        (["{encoder}", "{unreadable}", "--batch-size=1"],
         r"none of the 1 videos of a batch can be read: .*0.mp4: No such file"),
        (["{named}", "{videos}"], NAMED),
        (["{named}", "{videos}", "--backbone="], NAMED),
        (["{encoder}", "{videos}", "--beside", "{named}"], NAMED),
        (["{encoder}", "{videos}/split.csv", "--query=train"],
         r"12 files are in the gallery and in the queries, such as .*\.mp4: list each on one "),
        (["{encoder}", "{twice}"], r"1 files are in the gallery and in the queries, such as .*0\."),
        (["{encoder}", "{videos}/split.csv", "--leave-one-out", "--hold-out=0.3"],
         r"--hold-out and --leave-one-out exclude one another: give one of them$"),
        (["{encoder}", "{videos}", "--set=ucf101", "--leave-one-out"], r"--set and --leave-one-o"),
        (["{encoder}", "{videos}", "--set=ucf101", "--hold-out=0.3"], r"--set and --hold-out "),
        (["{encoder}", "{videos}/split.csv", "--sgd-epochs=-1"],
         r"--sgd-epochs must be at least 0; got -1$"),
        (["--again={other}"], r"--again .*other\.json is no result of evaluate\.py$"),
        (["--again={encoder}"], r"."),
        (["--again={lacking}"], r"."),
    ],
)  # fmt: skip
def test_what_cannot_work_ends_in_one_line_and_leaves_nothing(
    videos: Path, encoder: Path, tmp_path: Path, arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saved = torch.load(encoder, weights_only=True)
    torch.save(saved["model"], tmp_path / "plain.pt")
    saved["model"]["1.1.weight"] *= 1e6  # features at which no step of such a rate is finite
    torch.save(saved, tmp_path / "loud.pt")
    classes = ("left_right", "up_down")
    rows = [f"{p},{p.parent.name}" for name in classes for p in sorted((videos / name).iterdir())]
    lines = [row + (",train" if "left_right" in row else ",test") for row in rows]
    (tmp_path / "lacking.csv").write_text("\n".join(["path,label,split", *lines, lines[0]]))
    broken = [f"{n}.mp4,{n % 2}" for n in range(4)]
    (tmp_path / "unreadable.csv").write_text("\n".join(["path,label", *broken]))
    twice = [f"{n // 2}.mp4,0,{('train', 'test')[n > 0]}" for n in range(4)]
    (tmp_path / "twice.csv").write_text("\n".join(["path,label,split", *twice]))
    torch.save({**saved, "backbone": "named_by_a_file:make"}, tmp_path / "named.pt")
    (tmp_path / "named_by_a_file.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "other.json").write_text('{"settings": {"a": 1}}')
    files = {name: tmp_path / f"{name}.csv" for name in ("lacking", "unreadable", "twice")}
    files |= {name: tmp_path / f"{name}.pt" for name in ("plain", "loud", "named")}
    files["other"] = tmp_path / "other.json"
    names = {"videos": videos, "encoder": encoder, **files}
    before = sorted(tmp_path.iterdir())
    given = [argument.format(**names) for argument in arguments]
    with pytest.raises(SystemExit) as error, workers_end():
        evaluate(f"--out={tmp_path / 'r.json'}", *FAST, "--cache=", *given)
    assert isinstance(error.value.code, str)
    assert error.value.code.startswith("error: ")
    assert len(error.value.code.splitlines()) == 1
    assert re.search(message, error.value.code), error.value.code
    assert sorted(tmp_path.iterdir()) == before
    assert "named_by_a_file" not in sys.modules


def test_videos_read_one_by_one_leave_out_what_cannot_be_read(
    videos: Path, encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    listed = "".join(f"{path},{path.parent.name}\n" for path in sorted(videos.glob("*/*.mp4")))
    (tmp_path / "bad.csv").write_text(f"path,label\nbad.mp4,up_down\n{listed}")
    one, all_at_once = (
        result_of(tmp_path / "r.json", encoder, tmp_path / "bad.csv", f"--batch-size={size}")
        for size in (1, 19)
    )
    assert one["skipped"] == all_at_once["skipped"] == [str(tmp_path / "bad.mp4")]
    counts = [r["results"][str(encoder)]["counts"] for r in (one, all_at_once)]
    assert counts[0] == counts[1]
    assert counts[0]["queries"] == 18


def test_features_without_a_video_that_was_skipped_are_not_kept(
    videos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    listed = "".join(f"{path},{path.parent.name}\n" for path in sorted(videos.glob("*/*.mp4")))
    (tmp_path / "bad.csv").write_text(f"path,label\nbad.mp4,up_down\n{listed}")
    given = [encoder, tmp_path / "bad.csv"]
    result_of(tmp_path / "r.json", *given, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert "features are not kept in --cache: 1 videos were skipped\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"bad\.mp4: Invalid data"):
        result_of(tmp_path / "r.json", *given, "--on-error=raise", cache=tmp_path / "cache")


def test_a_cache_that_cannot_be_written_loses_no_result(
    videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cache, features = tmp_path / "cache", pretraining.load("_features")

    def save(*arguments: Any, save: Any = torch.save) -> None:
        with pretraining.small_disk(cache, 1_000):
            save(*arguments)

    monkeypatch.setattr(features.torch, "save", save)
    result_of(tmp_path / "r.json", encoder, videos, cache=cache)
    printed = capsys.readouterr().out
    assert f"features are not kept in --cache {cache}: " in printed
    assert "chance of R@1" in printed
    assert list(cache.iterdir()) == []


def test_names_that_are_no_utf_8_are_measured_and_shown(
    videos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two classes with the same videos, whose names no terminal shows."""
    for name in (b"caf\xe9", b"th\xe9"):
        shutil.copytree(videos / "up_down", tmp_path / "set" / os.fsdecode(name))
    report = result_of(tmp_path / "r.json", encoder, tmp_path / "set")
    assert [os.fsencode(name) for name in report["classes"]] == [b"caf\xe9", b"th\xe9"]
    printed = capsys.readouterr().out
    assert "caf? taken for th?: " in printed


def test_a_result_is_written_before_it_is_shown(
    videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(report: Report) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(pretraining.load("evaluate"), "show", show)
    with pytest.raises(BrokenPipeError):
        result_of(tmp_path / "r.json", encoder, videos)
    assert str(encoder) in json.loads((tmp_path / "r.json").read_text())["results"]


def test_a_folder_of_classes_is_parted_by_a_share(
    videos: Path, encoder: Path, tmp_path: Path
) -> None:
    report = result_of(tmp_path / "r.json", encoder, videos, "--hold-out=0.4")
    assert report["data"]["split"] == "0.4 of the videos held out by groups, seed 0"
    counts = report["results"][str(encoder)]["counts"]
    assert counts["gallery"] + counts["queries"] == 18


def test_a_class_that_one_half_lacks_shifts_no_name() -> None:
    sides = pretraining.load("_sides")
    gallery = Manifest(["a", "b"], torch.tensor([0, 1]), torch.arange(2), ["run", "wave"])
    query = Manifest(["c", "d"], torch.tensor([1, -1]), torch.arange(2), ["jump", "wave"])
    joined, is_query = sides.join([gallery, query])
    assert joined.classes == ["jump", "run", "wave"]
    assert joined.labels.tolist() == [1, 2, 2, -1]
    assert is_query.tolist() == [False, False, True, True]
    assert joined.ids.tolist() == [0, 1, 2, 3]
    numbered = query._replace(classes=[])  # by numbers, as in Diving48
    assert sides.join([numbered, numbered])[0].labels.tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize("lacking", ["gallery", "queries"])
def test_guesses_stand_under_the_names_of_their_classes(
    lacking: str, tmp_path: Path, encoder: Path
) -> None:
    """Of four classes, one that a half lacks keeps its row and its column, and is not guessed."""
    module = pretraining.load("evaluate")
    labels = torch.tensor([0, 1, 2, 3] * 4)
    is_query = torch.arange(16) >= 8
    kept = ~((labels == 1) & (is_query == (lacking == "queries")))
    labels, is_query = labels[kept], is_query[kept]
    features = torch.eye(4)[labels] + 0.01 * torch.randn(len(labels), 4)
    names = ["a", "b", "c", "d"]
    videos = Manifest([""] * len(labels), labels, torch.arange(len(labels)), names)
    args = module.parse_args([str(encoder), str(tmp_path)])
    places = torch.arange(len(labels))
    rows = features, places, torch.zeros(len(labels), dtype=torch.bool)
    scores = torch.full((int(is_query.sum()), 4), 0.1)
    scores[:, 1] = 0.5  # a classifier may know a class that was never seen
    report = module.measure(rows, videos, is_query, args, (scores, places[is_query]))
    counts = torch.tensor(report["confusion"]["counts"])
    seen = labels[is_query].bincount(minlength=4)
    assert counts.sum(1).tolist() == seen.tolist()
    right = seen.clone()
    if lacking == "gallery":
        right[1] = 0
        assert counts[:, 1].sum() == 0
        assert report["sgd_probe"]["top1"] == pytest.approx(2 / 8)  # not the class that it lacks
    assert counts.diagonal().tolist() == right.tolist()


@pytest.mark.parametrize("shape", [(2, 3, 2, 40, 72), (1, 3, 1, 72, 40), (1, 3, 1, 41, 41)])
def test_three_crops_are_the_ends_and_the_middle_of_the_longer_side(shape: tuple[int, ...]) -> None:
    clips = torch.randint(0, 256, shape, dtype=torch.uint8)
    views = pretraining.load("_features").three_crops(clips, 32)
    resize, _, *to_float = augment.evaluation(32)
    whole = augment.Compose(*to_float)(resize(clips))  # (V, 3, T, H, W)
    height, width = whole.shape[-2:]
    assert len(views) == 3 * len(clips)
    middle = augment.evaluation(32)(clips)
    for clip in range(len(clips)):
        first, second, third = views[3 * clip : 3 * clip + 3]
        torch.testing.assert_close(second, middle[clip], rtol=0, atol=0)
        y, x = ((height - 32) // 2, 0) if width >= height else (0, (width - 32) // 2)
        torch.testing.assert_close(first, whole[clip, ..., y : y + 32, x : x + 32])
        y, x = (y, width - 32) if width >= height else (height - 32, x)
        torch.testing.assert_close(third, whole[clip, ..., y : y + 32, x : x + 32])


@pytest.mark.parametrize("clips", [3, 1])
def test_videos_whose_views_repeat_and_those_left_out_are_counted(
    clips: int, videos: Path, encoder: Path, tmp_path: Path
) -> None:
    """Of videos of 12 frames, all clips of 12 frames are one."""
    listed = "".join(f"{path},{path.parent.name}\n" for path in sorted(videos.glob("*/*.mp4")))
    unlabelled = next(videos.glob("up_down/*"))
    text = f"path,label\ngone.mp4,up_down\n{unlabelled},\n{listed}"
    (tmp_path / "videos.csv").write_text(text)
    report = result_of(
        tmp_path / "r.json", encoder, tmp_path / "videos.csv", "--frames=12", f"--clips={clips}"
    )
    found = report["results"][str(encoder)]
    assert found["counts"]["repeated_views"] == (18 if clips > 1 else 0)
    assert found["counts"]["skipped"] == 1
    assert report["skipped"] == [str(tmp_path / "gone.mp4")]
    assert report["data"]["unlabelled"] == 1
    assert found["counts"]["queries"] == found["counts"]["gallery"] == 18


def write_official(name: str, videos: Path, root: Path, lists: Path) -> None:
    """Lay the generated videos out as a published set is, under names of its kind."""
    lists.mkdir()
    classes = sorted(path.name for path in videos.iterdir() if path.is_dir())
    lines: dict[str, list[Any]] = {"train": [], "test": [], "labels": []}
    for number, one in enumerate(classes):
        for video, path in enumerate(sorted((videos / one).iterdir())):
            part = "train" if video < 4 else "test"
            place, youtube = 100 * number + video, f"{'-_aB'[video % 4]}x{number}{video:08}"
            file, line = {
                "ucf101": (f"{one}/v_{one}_g{video:02}_c01.mp4",
                           f"{one}/v_{one}_g{video:02}_c01.avi"
                           + (f" {number + 1}" if part == "train" else "")),
                "hmdb51": (f"{one}/a_({video})_cm_np1.mp4", ""),
                "kinetics": (f"{'train' if part == 'train' else 'val'}/{one}/"
                             f"{youtube}_000003_000013.mp4",
                             f"{one},{youtube},3,13,{part}"),
                "ssv2": (f"{place}.webm", {"id": str(place), "label": "x",
                                           "template": f"Moving [something] {one}",
                                           "placeholders": ["x"]}),
                "diving48": (f"d_{place:05}.mp4", {"vid_name": f"d_{place:05}", "label": number,
                                                    "start_frame": 0, "end_frame": 12}),
            }[name]  # fmt: skip
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).symlink_to(path)
            lines[part].append(line)
    if name == "ucf101":
        (lists / "classInd.txt").write_text("".join(f"{n} {c}\n" for n, c in enumerate(classes, 1)))
        for part in ("train", "test"):
            (lists / f"{part}list03.txt").write_text("\n".join(lines[part]) + "\n")
    if name == "hmdb51":
        for one in classes:
            rows = [f"a_({n})_cm_np1.avi {1 + (n >= 4)} \n" for n in range(6)]
            (lists / f"{one}_test_split2.txt").write_text("".join(rows) + "gone.avi 0 \n")
    if name == "kinetics":
        head = "label,youtube_id,time_start,time_end,split"
        lost = f"{classes[0]},lostlostlos,0,10,train"
        (lists / "train.csv").write_text("\n".join([head, *lines["train"], lost]))
        (lists / "val.csv").write_text("\n".join([head, *lines["test"]]))
    if name == "ssv2":
        labels = {f"Moving something {one}": str(n) for n, one in enumerate(classes)}
        for part, content in (("labels", labels), ("train", lines["train"]),
                              ("validation", lines["test"])):  # fmt: skip
            (lists / f"something-something-v2-{part}.json").write_text(json.dumps(content))
    if name == "diving48":
        for part in ("train", "test"):
            (lists / f"Diving48_V2_{part}.json").write_text(json.dumps(lines[part]))


OFFICIAL = {
    "ucf101": (["--split=3", "--suffix=.mp4"], ", number 3"),
    "hmdb51": (["--split=2", "--suffix=.mp4"], ", number 2"),
    "kinetics": ([], ""),
    "ssv2": ([], ""),
    "diving48": ([], ""),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_splits_are_read_by_name(
    name: str, videos: Path, encoder: Path, tmp_path: Path
) -> None:
    """The sides of a published set in its own layout are those of the column of a manifest."""
    options, number = OFFICIAL[name]
    write_official(name, videos, tmp_path / "root", tmp_path / "lists")
    module, sides = pretraining.load("evaluate"), pretraining.load("_sides")
    column = sides.read_sides(module.parse_args([str(encoder), str(videos / "split.csv")]))
    given = [str(encoder), str(tmp_path / "root"), f"--set={name}", *options]
    args = module.parse_args([*given, f"--lists={tmp_path / 'lists'}"])
    found, is_query, about = sides.read_sides(args)
    assert about["split"] == f"official split of {name}{number}"
    assert about["videos"] == 18

    def real(manifest: Manifest, query: torch.Tensor) -> set[tuple[str, int, bool]]:
        paths = [str(Path(path).resolve()) for path in manifest.paths]
        return set(zip(paths, manifest.labels.tolist(), query.tolist(), strict=True))

    assert real(found, is_query) == real(*column[:2])
    named = column[0].classes
    classes = {"ssv2": [f"Moving something {one}" for one in named], "diving48": []}
    assert found.classes == classes.get(name, named)
    if name == "ssv2":  # the files as they are named since
        for file in (tmp_path / "lists").iterdir():
            file.rename(file.with_name(file.name.removeprefix("something-something-v2-")))
        again = sides.read_sides(args)
        assert again[2] == about
    if name == "ucf101":
        result = result_of(tmp_path / "r.json", *given, f"--lists={tmp_path / 'lists'}")
        by_column = result_of(tmp_path / "r.json", encoder, videos / "split.csv")
        of_set, expected = (r["results"][str(encoder)] for r in (result, by_column))
        assert of_set["counts"] == expected["counts"]
        assert of_set["retrieval"] == expected["retrieval"]
        assert of_set["knn"] == expected["knn"]


def test_pictures_show_hits_and_misses_and_the_features(
    videos: Path, encoder: Path, tmp_path: Path
) -> None:
    pictures, frames = tmp_path / "pictures", pretraining.load("_watch").FRAMES
    report = result_of(tmp_path / "r.json", encoder, videos / "split.csv", f"--pictures={pictures}")
    hits = round(6 * report["results"][str(encoder)]["retrieval"]["R@1"])
    shown = min(4, hits) + min(4, 6 - hits)
    drawn = pretraining.load("_pictures")
    with Image.open(pictures / "neighbors.png") as image:
        assert image.size[1] == 8 + shown * (drawn.PIXELS + 20)
        pixels = torch.from_numpy(np.array(image))
    first = 8 + frames * drawn.PIXELS + 8  # the frame of the nearest of every query
    colours = [pixels[8 + row * (drawn.PIXELS + 20), first].tolist() for row in range(shown)]
    same = [int(drawn.SAME[i : i + 2], 16) for i in (1, 3, 5)]
    assert [colour == same for colour in colours] == [True] * min(4, hits) + [False] * min(
        4, 6 - hits
    )
    for name in ("features.png", "tsne.png"):
        with Image.open(pictures / name) as image:
            assert np.asarray(image).std() > 5


def test_a_map_has_the_class_of_every_video_at_its_place() -> None:
    drawn, names = pretraining.load("_pictures"), ["one", "two"]
    points = torch.tensor([[0.0, 0.0], [4.0, 2.0], [2.0, 4.0], [2.0, 2.0]])
    labels = torch.tensor([0, 1, 1, 0])
    image = np.asarray(drawn.draw_map(points, "text", labels, names, pixels=200))
    places = (100 + 200 * (points - points.mean(0)) / (2.1 * 2)).round().long().tolist()
    colours = [tuple(image[y, x]) for x, y in places]
    assert colours[0] == colours[3] != colours[1] == colours[2]
    assert len(set(colours)) == 2


def test_a_picture_that_needs_what_is_not_there_is_named(
    videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    result_of(tmp_path / "r.json", encoder, videos / "split.csv", f"--pictures={tmp_path / 'p'}")
    assert "no t-SNE: pip install scikit-learn" in capsys.readouterr().out
    drawn = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert drawn == ["features.png", "neighbors.png"]


@pytest.mark.slow  # starts real processes
def test_two_processes_count_each_video_once(
    videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(videos.glob("*/*.mp4"))[::4]  # five
    rows = [
        f"{path},{number % 2},{'train' if number < 3 else 'test'}\n"
        for number, path in enumerate(paths)
    ]
    (tmp_path / "five.csv").write_text("".join(["path,label,split\n", *rows]))
    given = [encoder, tmp_path / "five.csv"]
    given += ["--sgd-epochs=2", "--sgd-batch-size=2"]
    alone = result_of(tmp_path / "alone.json", *given)
    both, script = tmp_path / "both.json", EXAMPLES / "evaluate.py"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, script, *given, f"--out={both}", "--cache=", *FAST]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(both.read_text())
    counts = report["results"][str(encoder)]["counts"]
    assert (counts["gallery"], counts["queries"], counts["skipped"]) == (3, 2, 0)
    assert report["results"] == alone["results"]


@pytest.mark.slow  # starts real processes
@pytest.mark.parametrize("on_error", ["skip", "raise"])
def test_a_rank_that_can_read_no_video_takes_part_or_says_why(
    on_error: str, videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 skips all of its videos; or rank 1 meets the one that ends both."""
    paths, bad = sorted(videos.glob("*/*.mp4"))[::4], tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    rows = [(path, n % 2, "train" if n < 3 else "test") for n, path in enumerate(paths)]
    lines = [f"{path},{label},{split}\n" for path, label, split in rows]
    if on_error == "skip":  # every second one is of rank 0
        lines = [x for n, x in enumerate(lines) for x in (f"{tmp_path}/{n}.mp4,0,train\n", x)]
    else:
        lines[1:1] = [f"{bad},0,train\n"]
    (tmp_path / "set.csv").write_text("".join(["path,label,split\n", *lines]))
    given = [encoder, tmp_path / "set.csv", f"--on-error={on_error}", "--batch-size=1"]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, EXAMPLES / "evaluate.py", *FAST, *given, "--cache="]
    command.append(f"--out={tmp_path / 'both.json'}")
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if on_error == "raise":
        assert done.returncode != 0
        assert f"rank 1: {bad}: Invalid data" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "both.json").read_text())
    assert report["results"][str(encoder)]["counts"]["skipped"] == 5
    assert report["results"] == result_of(tmp_path / "alone.json", *given)["results"]


def test_the_width_of_an_encoder_is_found_without_a_change_to_it() -> None:
    model = tiny_encoder.with_norm()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = argparse.Namespace(frames=4, size=32)
    assert pretraining.load("_features").width_of(model, args, "cpu") == 16
    assert [module.training for module in model.children()] == [True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_encoder_of_the_first_run_is_measured_as_well(videos: Path, tmp_path: Path) -> None:
    """`train_minimal.py` writes backbone and head, and nothing beside them."""
    minimal = pretraining.load("train_minimal")
    backbone = minimal.SmallEncoder()
    head = torch.nn.Linear(backbone.feature_dim, 8)
    torch.save(torch.nn.Sequential(backbone, head).state_dict(), tmp_path / "encoder.pt")
    report = result_of(
        tmp_path / "r.json", tmp_path / "encoder.pt", videos, "--frames=8", "--stride=1",
        "--size=32", "--clips=1", "--backbone=train_minimal:SmallEncoder",
    )  # fmt: skip
    about = report["encoders"][str(tmp_path / "encoder.pt")]
    assert about["encoder"] == "that under '0.'"
    weights = pretraining.load("_features").weights_hash(backbone)
    assert about["weights_sha256"] == weights
