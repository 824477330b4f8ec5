"""The example that measures an encoder, held to loops over the videos and to its own results."""

from __future__ import annotations

import csv
import json
import re
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
from PIL import Image

from iivcl import augment
from iivcl.data import ClipRecipe, Manifest, make_synthetic_videos, open_video, read_manifest

Report = dict[str, Any]
VIEWS = {"frames": 4, "stride": 1.0, "size": 32}
FAST = ["--workers=0", "--clips=3"]


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
    model.load_state_dict(torch.load(encoder)["model"])
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
    unit = F.normalize(reference_features(encoder, manifest, 3), dim=1)
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


def test_a_result_alone_gives_every_number_again(
    videos: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_encoder(tmp_path / "other.pt", 2)
    first = tmp_path / "first.json"
    options = ["--beside", "random", "pixels", other, "--hold-out=0.4", "--center", "--crops=3"]
    report = result_of(first, encoder, videos / "manifest.csv", *options)
    assert list(report["results"]) == [str(encoder), "random", "pixels", str(other)]
    assert len({json.dumps(result) for result in report["results"].values()}) > 2
    assert report["protocol"]["retrieval"]["centering"] == "each side by its own mean"
    again = tmp_path / "again.json"
    assert evaluate("--again", first, "--out", again, "--workers=0") == 0
    assert json.loads(again.read_text()) == report
    assert capsys.readouterr().out.endswith("every number was found again\n")

    report["results"]["pixels"]["retrieval"]["R@1"] = 2.0
    first.write_text(json.dumps(report))
    assert evaluate("--again", first, "--workers=0") == 1
    assert "pixels, retrieval, R@1: 2.0 before" in capsys.readouterr().out
    write_encoder(encoder, 3)
    with pytest.raises(SystemExit, match=r"not what was measured: encoders: .*sha256"):
        evaluate("--again", first, "--workers=0")


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
        (["{encoder}", "{videos}", "--backbone=resnet", "--beside", "random"],
         r"--backbone resnet is not in iivcl\.backbones; "),
        (["{plain}", "{videos}"], r"no checkpoint says it: give --frames$"),
        (["{plain}", "{videos}", "--frames=4", "--stride=1", "--size=32"],
         r"plain\.pt does not say its backbone: give --backbone, or BACKBONE=FILE$"),
        (["{encoder}", "{lacking}"],
         r"classes of the queries that no video of the gallery has: up_down$"),
        (["{encoder}", "{videos}/split.csv", "--query=val"], r"`name` must be .*'test'.*'val'$"),
        (["{encoder}", "{videos}", "--set=ucf101"], r"(No such file|not found|classInd).*"),
        (["{encoder}", "{unreadable}"], r"none of the 4 videos of a batch can be read$"),
        (["--again={encoder}"], r"."),
        (["--again={lacking}"], r"."),
    ],
)  # fmt: skip
def test_what_cannot_work_ends_in_one_line_and_leaves_nothing(
    videos: Path, encoder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    torch.save(torch.load(encoder)["model"], tmp_path / "plain.pt")
    classes = ("left_right", "up_down")
    rows = [f"{p},{p.parent.name}" for name in classes for p in sorted((videos / name).iterdir())]
    lines = [row + (",train" if "left_right" in row else ",test") for row in rows]
    (tmp_path / "lacking.csv").write_text("\n".join(["path,label,split", *lines, lines[0]]))
    broken = [f"{n}.mp4,{n % 2}" for n in range(4)]
    (tmp_path / "unreadable.csv").write_text("\n".join(["path,label", *broken]))
    files = {name: tmp_path / f"{name}.csv" for name in ("lacking", "unreadable")}
    names = {"videos": videos, "encoder": encoder, "plain": tmp_path / "plain.pt", **files}
    before = sorted(tmp_path.iterdir())
    given = [argument.format(**names) for argument in arguments]
    with pytest.raises(SystemExit) as error:
        evaluate(f"--out={tmp_path / 'r.json'}", *FAST, "--cache=", *given)
    assert isinstance(error.value.code, str)
    assert error.value.code.startswith("error: ")
    assert len(error.value.code.splitlines()) == 1
    assert re.search(message, error.value.code), error.value.code
    assert sorted(tmp_path.iterdir()) == before


def test_a_class_that_one_half_lacks_shifts_no_name() -> None:
    sides = pretraining.load("_sides")
    gallery = Manifest(["a", "b"], torch.tensor([0, 1]), torch.arange(2), ["run", "wave"])
    query = Manifest(["c", "d"], torch.tensor([1, -1]), torch.arange(2), ["jump", "wave"])
    joined, is_query = sides.join([gallery, query])
    assert joined.classes == ["jump", "run", "wave"]
    assert joined.labels.tolist() == [1, 2, 2, -1]
    assert is_query.tolist() == [False, False, True, True]
    numbered = query._replace(classes=[])  # by numbers, as in Diving48
    assert sides.join([numbered, numbered])[0].labels.tolist() == [1, -1, 1, -1]


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


def test_official_splits_are_read_by_name(videos: Path, encoder: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in videos.iterdir() if path.is_dir())
    root, lists = tmp_path / "root", tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n} {c}\n" for n, c in enumerate(names, 1)))
    parts: dict[str, list[str]] = {"train": [], "test": []}
    for name in names:
        (root / name).mkdir(parents=True)
        lines = []
        for number, path in enumerate(sorted((videos / name).iterdir())):
            part = "train" if number < 4 else "test"
            file = f"v_{name}_g{number:02}_c01.mp4"
            (root / name / file).symlink_to(path)
            parts[part].append(f"{name}/{file.replace('.mp4', '.avi')}\n")
            lines.append(f"{file.replace('.mp4', '.avi')} {1 + (part == 'test')}\n")
        (lists / f"{name}_test_split2.txt").write_text("".join(lines))
    for part, rows in parts.items():
        (lists / f"{part}list01.txt").write_text("".join(rows))
    out, how = tmp_path / "r.json", (f"--lists={lists}", "--suffix=.mp4")
    by_column = result_of(out, encoder, videos / "split.csv")["results"][str(encoder)]
    for options, rule in (
        (["--set=ucf101"], "official split of ucf101, number 1"),
        (["--set=hmdb51", "--split=2"], "official split of hmdb51, number 2"),
    ):
        report = result_of(out, encoder, root, *how, *options)
        found = report["results"][str(encoder)]
        assert report["data"]["split"] == rule
        assert found["counts"] == by_column["counts"]
        assert found["retrieval"] == by_column["retrieval"]
        assert found["confusion"] == by_column["confusion"]


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
    with Image.open(pictures / "features.png") as image:
        assert np.asarray(image).std() > 5


@pytest.mark.slow  # starts real processes
def test_two_processes_count_each_video_once(
    videos: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(videos.glob("*/*.mp4"))[::4]  # five
    rows = [f"{path},{number % 2}\n" for number, path in enumerate(paths)]
    (tmp_path / "five.csv").write_text("".join(["path,label\n", *rows]))
    given = [encoder, tmp_path / "five.csv"]
    alone = result_of(tmp_path / "alone.json", *given)
    both, script = tmp_path / "both.json", EXAMPLES / "evaluate.py"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, script, *given, f"--out={both}", "--cache=", *FAST]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(both.read_text())
    assert report["results"][str(encoder)]["counts"]["queries"] == 5
    assert report["results"] == alone["results"]


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
