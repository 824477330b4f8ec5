"""Finetune a video encoder to detect actions, as in AVA: who does what, box by box.

    python examples/finetune_detection.py run/encoder.pt videos/ --out run-ava/
        --train ava_train_v2.2.csv --test ava_val_v2.2.csv
        --test-boxes ava_detection_val_boxes_and_labels.csv
        --actions ava_action_list_v2.2_for_activitynet_2019.pbtxt
        --exclude ava_train_excluded_timestamps_v2.2.csv ava_val_excluded_timestamps_v2.2.csv
    torchrun --nproc-per-node 8 examples/finetune_detection.py slow_r50=MoCo.pyth videos/ ...

CHECKPOINT is the `encoder.pt` of a run, a published one, or "random". VIDEOS is a folder whose
files, or folders of images, are named as in the lists. Boxes are given: in training the annotated
ones, in the test those of a detector of persons; without --test-boxes the annotated ones, which is
easier. `result.json` has the test of the last and of the best epoch with the whole protocol,
`detections.csv` the last detections, as AVA's evaluation takes them.

This file is the settings, the detector, the loop and the test; `_keyframes.py` has the clips. Copy
the `_` files with it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from _checkpoints import seed_rank
from _data import Batches
from _features import absolute, build, file_hash, parts, saved_with, versions
from _keyframes import Keyframes, batches_of_videos, open_loader
from _optimizer import drops, make_optimizer, parameter_groups, set_rate
from _report import Report, json_text
from _resume import need, refusing, replacing, say, start, write_whole
from _settings import begin_parser
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from iivcl import augment, backbones, data
from iivcl.distributed import rank, world_size
from iivcl.evaluation import detection_map

TO_INPUT = augment.evaluation(224)[2:]  # to floating point, and normalised
FREE = {"out", "resume", "videos", "workers", "test_every"}  # settings that change no result


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    usage = "%(prog)s CHECKPOINT VIDEOS --out OUT --train CSV --test CSV [options]"
    parser, add = begin_parser(usage, __doc__)
    parser.add_argument("checkpoint", help="[BACKBONE=]FILE, or random")
    parser.add_argument("videos", type=Path, help="folder")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--train", required=True, metavar="CSV", help="annotated boxes")
    parser.add_argument("--test", required=True, metavar="CSV", help="annotated boxes")
    add("--test-boxes", None, "CSV of boxes and scores of a detector")
    add("--min-score", 0.8, "least score of --test-boxes", type=float)
    add("--actions", None, "label map of the actions that are measured; default: all")
    add("--num-actions", 80, "numbers of actions, from 1", type=int)
    add("--exclude", [], "CSV of keyframes that do not count", nargs="+")
    rules = ("false", "ignored")  # SlowFast's; AVA's since 2020
    add("--unlisted", "false", "detections in keyframes that --test does not list", choices=rules)
    add("--iou", 0.5, "least overlap of a detection with the box that it finds", type=float)
    add("--resume", None, "go on after the last whole epoch in --out", choices=("auto",))
    add("--backbone", None, "if not said there: in iivcl.backbones, or my_module:my_function")
    add("--prefix", None, "of the weights in the file, where several encoders are")
    add("--begin", 0.0, "second at which the files begin: 900 where AVA's were cut", type=float)
    add("--frames", None, "per clip; default: as in pretraining", type=int)
    add("--stride", None, "frames from one to the next; default: as in pretraining", type=float)
    add("--rate", None, "frames a second that --stride counts; default: the video's", type=float)
    add("--size", 224, "pixels of a clip in training", type=int)
    add("--zoom", [256, 320], "short side before it is cut, between", type=int, nargs=2)
    add("--test-size", 256, "short side in the test, which sees whole frames", type=int)
    add("--epochs", 20, "length of the run", type=int)
    add("--warmup-epochs", 5.0, "in which the learning rate rises", type=float)
    add("--drop-epochs", [10, 15], "where it falls to a tenth", type=int, nargs="*")
    add("--batch-size", 64, "clips per step, over all ranks", type=int)
    add("--lr", None, "default: 0.1 x batch size / 64", type=float)
    add("--layer-decay", 1.0, "learning rate of a layer over that of the next", type=float)
    add("--weight-decay", 1e-7, "not of norms and biases", type=float)
    add("--dropout", 0.5, "before the last layer", type=float)
    add("--precision", "float32", "of the network", choices=("float32", "bfloat16"))
    add("--test-every", 1, "epochs; the last is tested always", type=int)
    add("--seed", 0, "of all that is drawn", type=int)
    add("--workers", 4, "processes that read videos, per rank", type=int)
    args = parser.parse_args(argv)
    args.checkpoint = absolute(args.checkpoint)
    args.accumulate = 1  # parts of a step, see Batches
    if args.lr is None:
        args.lr = 0.1 * args.batch_size / 64
    return args


def settle(args: argparse.Namespace) -> None:
    """Fill in what the checkpoint says, and refuse what does not go together."""
    of_file = {} if args.checkpoint == "random" else saved_with(args.checkpoint, args.backbone)
    args.backbone = parts(args.checkpoint)[0] or of_file.get("backbone") or args.backbone
    for name in ("backbone", "frames", "stride"):
        if getattr(args, name) is None:
            setattr(args, name, of_file.get(name))
        need(getattr(args, name), f"{args.checkpoint} does not say it: give --{name}")
    for name in ("num_actions", "frames", "stride", "size", "epochs", "batch_size", "lr",
                 "test_every", "test_size"):  # fmt: skip
        option = "--" + name.replace("_", "-")
        need(getattr(args, name) > 0, f"{option} must be above 0; got {getattr(args, name)}")
    low, high = args.zoom
    need(args.size <= low <= high, f"--zoom must rise from at least --size {args.size}; "
         f"got {low} {high}")  # fmt: skip
    need(0 < args.iou <= 1, f"--iou must be in (0, 1]; got {args.iou}")
    need(0 <= args.dropout < 1, f"--dropout must be in [0, 1); got {args.dropout}")
    need(0 < args.layer_decay <= 1, f"--layer-decay must be in (0, 1]; got {args.layer_decay}")
    need(args.weight_decay >= 0, f"--weight-decay must be at least 0; got {args.weight_decay}")
    need(args.rate is None or args.rate > 0, f"--rate must be above 0; got {args.rate}")
    need(0 <= args.warmup_epochs < args.epochs, "--warmup-epochs must be at least 0 and below "
         f"--epochs {args.epochs}; got {args.warmup_epochs}")  # fmt: skip
    need(0 <= args.seed < 2**32, f"--seed must be in [0, {2**32}); got {args.seed}")
    need(args.workers >= 0, f"--workers must be at least 0; got {args.workers}")
    need(args.batch_size % world_size() == 0,
         f"--batch-size {args.batch_size} cannot be divided by {world_size()} ranks")  # fmt: skip


# The data.


class Lists:
    """What the files say: boxes to train on, boxes to classify in the test, and what they do."""

    def __init__(self, args: argparse.Namespace) -> None:
        with refusing(ValueError, OSError):
            read = partial(data.read_ava_boxes, num_actions=args.num_actions)
            train, self.truth = read(args.train), read(args.test)
            given = self.truth if args.test_boxes is None else read(args.test_boxes, last="score")
            self.excluded = {k for file in args.exclude for k in data.read_ava_keyframes(file)}
            listed = data.read_ava_keyframes(args.test)
            self.counting = listed if args.unlisted == "ignored" else None  # all
            numbers = range(1, args.num_actions + 1)
            self.names = {n: str(n) for n in numbers}
            if args.actions is not None:
                self.names = data.read_ava_actions(args.actions)
        need(self.names.keys() <= set(numbers), f"{args.actions} has actions beyond --num-actions")
        sure = given.select(given.scores >= args.min_score)
        self.train, self.test = self._that_count(train), self._that_count(sure)
        true = self._that_count(self.truth).actions[:, [n - 1 for n in self.names]]
        need(len(self.train.boxes) > 0, f"{args.train} has no box that counts")
        need(bool(true.any()), f"{args.test} has no box that counts with an action of --actions")
        need(len(self.test.boxes) > 0, "the test has no box: a lower --min-score lets more pass")
        shared = set(self.test.keyframes) & set(self.truth.keyframes)
        need(bool(shared), f"{args.test_boxes} has none of the keyframes of {args.test}")
        files = [args.train, args.test, args.test_boxes, args.actions, *args.exclude]
        self.about: Report = {
            "files": {file: file_hash(Path(file)) for file in files if file},
            "boxes_in_training": len(self.train.boxes), "boxes_in_test": len(self.test.boxes),
            "boxes_below_min_score": len(given.boxes) - len(sure.boxes),
            "excluded_keyframes": len(self.excluded),
        }  # fmt: skip

    def _that_count(self, boxes: data.ActionBoxes) -> data.ActionBoxes:
        return boxes.select(torch.tensor([k not in self.excluded for k in boxes.keyframes]).bool())


# The detector.


class Detector(nn.Module):
    """An encoder, and a head that classifies boxes in its feature map."""

    def __init__(self, encoder: Any, args: argparse.Namespace) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = backbones.RoIActionHead(
            encoder.feature_dim, args.num_actions, stride=encoder.strides[1], dropout=args.dropout
        )

    def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:
        """Map clips (B, 3, T, H, W) uint8 and boxes (N, 5) to logits (N, A)."""
        return self.head(self.encoder.features(TO_INPUT(clips)), boxes)


def open_encoder(args: argparse.Namespace) -> tuple[nn.Module, Report]:
    """Make the encoder, with res5 dilated where it can be, and say what it is."""
    torch.manual_seed(args.seed)
    about: Report = {"encoder": args.checkpoint, "backbone": args.backbone, "res5_dilation": None}
    if args.backbone == "slow_r50":
        about["res5_dilation"] = 2
        encoder: nn.Module = backbones.slow_r50(res5_dilation=2)
    else:
        encoder = build(args.backbone, args.seed)
    has_map = all(hasattr(encoder, name) for name in ("features", "feature_dim", "strides"))
    need(has_map, f"--backbone {args.backbone} is no VideoEncoder, which has a map of features")
    if args.checkpoint != "random":
        file = parts(args.checkpoint)[1]
        with refusing(ValueError, OSError):
            report = backbones.load_weights(encoder, file, prefix=args.prefix)
        about |= {"prefix": report.prefix, "sha256": file_hash(Path(file))}
    return encoder, about


# The run.


def train(args: argparse.Namespace, device: torch.device, hosts: dist.ProcessGroup) -> int:
    settle(args)
    lists = Lists(args)
    training = Keyframes(lists.train, args, train=True)
    testing = Keyframes(lists.test, args, train=False)
    batches = Batches(len(training), args)
    steps = len(batches)
    need(steps > 0, f"{args.train} has {len(training)} keyframes, and a step takes "
         f"{args.batch_size}: use a smaller --batch-size")  # fmt: skip
    encoder, about_encoder = open_encoder(args)
    detector = Detector(encoder, args).to(device)
    groups = parameter_groups(
        detector.encoder, detector.head, lr=args.lr, weight_decay=args.weight_decay,
        layer_decay=args.layer_decay,
    )  # fmt: skip
    optimizer = make_optimizer(groups, "sgd", args.lr)
    progress: Report = {"history": [], "last": {}, "best": {"mAP": -1.0}}  # by epochs
    if (state := begin(args, lists)) is not None:
        detector.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = state["progress"]
    model: nn.Module = DistributedDataParallel(detector) if world_size() > 1 else detector
    say(f"{len(training)} keyframes to train on, {steps} steps an epoch; {len(testing)} to test")
    first = len(progress["history"])
    bar = tqdm(initial=first * steps, total=args.epochs * steps, disable=rank() > 0, unit="step",
               mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip

    for epoch in range(first, args.epochs):
        batches.epoch = training.epoch = epoch
        seed_rank(args.seed, epoch)
        line: Report = {"epoch": epoch + 1}
        line |= train_epoch(model, optimizer, open_loader(training, batches), epoch, args, bar)
        is_best = False
        if (epoch + 1) % args.test_every == 0 or epoch + 1 == args.epochs:
            found = detect(detector, testing, args)
            progress["last"] = {"epoch": epoch + 1, **measure(found, lists, args)}
            line["mAP"] = progress["last"]["mAP"]
            is_best = line["mAP"] > progress["best"]["mAP"]
            progress["best"] = progress["last"] if is_best else progress["best"]
            bar.set_postfix({"loss": f"{line['loss']:.3f}", "mAP": f"{line['mAP']:.3f}"})
        progress["history"].append(line)
        if rank() == 0:
            with refusing(OSError):
                if epoch + 1 == args.epochs:
                    write_whole(args.out / "detections.csv", as_csv(found, lists))
                save(args, lists, detector, optimizer, progress, is_best)
    bar.close()
    if rank() == 0:
        results = {name: progress[name] for name in ("last", "best")}
        report = {
            "results": results, "encoder": about_encoder, "data": lists.about,
            "protocol": protocol(args), "settings": settings_of(args), "versions": versions(),
            "device": str(device), "ranks": world_size(),
        }  # fmt: skip
        with refusing(OSError):
            write_whole(args.out / "result.json", json_text(report))
        for name, result in results.items():
            say(f"mAP of the {name} epoch, {result['epoch']}: {result['mAP']:.4f}")
        say(f"finished: {args.out / 'result.json'}")
    return 0


def begin(args: argparse.Namespace, lists: Lists) -> Report | None:
    """Make the folder of the run, or read how far it has come."""
    last = args.out / "last.pt"
    need(
        args.resume or not last.exists(), f"--out {args.out} holds a run: go on with --resume auto"
    )
    with refusing(OSError):
        args.out.mkdir(parents=True, exist_ok=True)
    need(os.access(args.out, os.W_OK), f"--out {args.out} cannot be written")
    if not last.exists():
        return None
    try:
        state: Report = torch.load(last, "cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes its reader stumble over
        need(False, f"{last} is no checkpoint, or not whole ({type(error).__name__})")
    now = settings_of(args)
    differ = [
        f"--{name.replace('_', '-')} {now[name]} (was {before})"
        for name, before in state["settings"].items()
        if now[name] != before
    ]
    need(not differ, f"{args.out} was begun with other settings: {', '.join(differ)}")
    before = state.get("files", {})
    changed = [f for f, digest in lists.about["files"].items() if before.get(f, digest) != digest]
    need(not changed, f"{', '.join(changed)} was another list when {args.out} was begun: bring it "
         "back, or begin anew in another --out")  # fmt: skip
    return state


def settings_of(args: argparse.Namespace) -> Report:
    return {name: value for name, value in vars(args).items() if name not in FREE}


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Any,
    epoch: int,
    args: argparse.Namespace,
    bar: Any,
) -> dict[str, float]:
    """Update the weights once per batch, and give the mean loss and the last learning rate."""
    model.train()
    losses, steps = [], len(loader)
    for step, (clips, boxes, actions, _) in enumerate(loader, start=epoch * steps):
        rate = drops(step, [e * steps for e in args.drop_epochs], lr=args.lr,
                     warmup=round(args.warmup_epochs * steps))  # fmt: skip
        set_rate(optimizer, rate)
        logits = classify(model, clips, boxes, args)  # (N, A)
        target = actions.to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        loss = loss / max(1, target.numel())  # the mean; of no box 0
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        bar.update()
    mean = torch.stack(losses).mean()
    if world_size() > 1:
        dist.all_reduce(mean)
    loss_of_all = mean.item() / world_size()
    need(math.isfinite(loss_of_all), f"the loss is {loss_of_all} in epoch {epoch + 1}: lower --lr")
    return {"loss": loss_of_all, "learning_rate": rate}


def classify(model: nn.Module, clips: Tensor, boxes: Tensor, args: argparse.Namespace) -> Tensor:
    """Map a batch of a loader to logits (N, A), float32."""
    device = next(model.parameters()).device
    clips, boxes = clips.to(device, non_blocking=True), boxes.to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, args.precision == "bfloat16"):
        logits: Tensor = model(clips, boxes)
    return logits.float()


def save(
    args: argparse.Namespace,
    lists: Lists,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Report,
    is_best: bool,
) -> None:
    """Write the epoch that is over, and its detector by itself if it is the best so far."""
    about = {name: getattr(args, name) for name in ("backbone", "frames", "stride", "size")}
    weights = {"model": model.state_dict(), "method": "detection", **about}
    lines = "".join(json.dumps(line) + "\n" for line in progress["history"])
    write_whole(args.out / "log.jsonl", lines)
    whole = {**weights, "optimizer": optimizer.state_dict(), "progress": progress,
             "settings": settings_of(args), "files": lists.about["files"]}  # fmt: skip
    # First the best, for a run that ends between the two repeats this epoch.
    for name, content in (("best.pt", weights), ("last.pt", whole)):
        if name == "last.pt" or is_best:
            save_whole(args.out / name, content)


def save_whole(path: Path, content: Report) -> None:
    """Write a file of tensors so that its name never stands on half of it."""
    try:
        with replacing(path) as unfinished:
            torch.save(content, unfinished)
    except RuntimeError as error:  # torch's way to say that the disk is full
        first = str(error).partition("\n")[0]
        raise OSError(f"{path} cannot be written; is the disk full? {first}") from error


# The test.


@torch.no_grad()
def detect(detector: Detector, keyframes: Keyframes, args: argparse.Namespace) -> data.ActionBoxes:
    """Classify all boxes of the test; all ranks get all of them."""
    detector.eval()
    for buffer in detector.buffers() if world_size() > 1 else []:
        dist.broadcast(buffer, 0)  # ranks see other clips, and the statistics of rank 0 are saved
    loader = open_loader(keyframes, batches_of_videos(keyframes, args.batch_size))
    parts_of_rank = [(torch.empty(0).long(), torch.empty(0, args.num_actions))]
    for clips, boxes, _, rows in tqdm(loader, "test", disable=rank() > 0, leave=False):
        parts_of_rank.append((rows, classify(detector, clips, boxes, args).sigmoid().cpu()))
    found = [tuple(torch.cat(column) for column in zip(*parts_of_rank, strict=True))]
    if world_size() > 1:
        found = found * world_size()
        dist.all_gather_object(found, found[rank()])
    scores = torch.full((len(keyframes.boxes.boxes), args.num_actions), torch.nan)
    for rows, of_rows in found:
        scores[rows] = of_rows
    return keyframes.boxes._replace(actions=scores)


def measure(found: data.ActionBoxes, lists: Lists, args: argparse.Namespace) -> Report:
    metrics = detection_map(
        found, lists.truth, iou=args.iou, classes=lists.names, keyframes=lists.counting,
        exclusions=lists.excluded,
    )  # fmt: skip
    return {
        "mAP": metrics.mean_average_precision,
        "average_precision": {lists.names[n]: p for n, p in metrics.average_precision.items()},
        "true_boxes": {lists.names[n]: count for n, count in metrics.num_truth.items()},
        "actions_that_occur": len(metrics.average_precision), "actions": len(lists.names),
        "keyframes": metrics.num_keyframes, "detected_boxes": len(found.boxes),
    }  # fmt: skip


def protocol(args: argparse.Namespace) -> Report:
    """Spell out all that differs between papers."""
    low, high = args.zoom
    of_detector = f"of a detector of persons, with a score of at least {args.min_score}"
    return {
        "measure": {
            "name": "frame-mAP: mean of the average precisions of the actions that occur",
            "average_precision": "area under all points of the curve, as PASCAL VOC since 2010",
            "matching": "by score, to the true box of the keyframe and action that it overlaps "
            "most; who finds one that is found is false",
            "iou": args.iou,
            "actions": "those of --actions" if args.actions else "all",
            "detections_per_keyframe": "all: every box with every action",
            "detections_in_unlisted_keyframes": args.unlisted,
        },
        "boxes": {
            "training": "annotated", "test": of_detector if args.test_boxes else "annotated",
        },
        "clip": {
            "frames": args.frames, "stride": args.stride, "frames_a_second": args.rate or "video's",
            "place": "the keyframe is frame T // 2; beyond the video its ends repeat",
            "files_begin_at_second": args.begin, "normalisation": "mean 0.45, std 0.225",
        },
        "training": {
            "pixels": f"short side drawn from {low} to {high}, squares of {args.size} cut at "
            "random, every other mirrored; boxes with them, without those of less than a pixel",
            "loss": "binary cross-entropy, mean over the boxes and actions of a rank",
            "optimizer": "SGD, Nesterov momentum 0.9", "learning_rate": args.lr,
            "schedule": f"linear over {args.warmup_epochs:g} epochs, a tenth after each of "
            f"{args.drop_epochs}",
            "weight_decay": args.weight_decay, "layer_decay": args.layer_decay,
            "epochs": args.epochs, "batch_size": args.batch_size,
        },
        "head": "mean over time, RoIAlign (aligned) to 7 x 7, maximum, dropout "
        f"{args.dropout}, linear; a sigmoid for every action",
        "test": {"pixels": f"short side {args.test_size}, whole frames, not mirrored", "clips": 1},
        "selection": "last: none; best: the epoch of the highest mAP in this very test",
        "precision": args.precision,
    }  # fmt: skip


def as_csv(found: data.ActionBoxes, lists: Lists) -> str:
    """Write detections as AVA's evaluation takes them: video, second, box, action, score."""
    rows = []
    scores = found.actions.tolist()
    for (video, second), box, of_box in zip(
        found.keyframes, found.boxes.tolist(), scores, strict=True
    ):
        when = f"{int(second):04}" if second.is_integer() else f"{second:.6f}"
        where = ",".join([video, when, *(f"{edge:.6g}" for edge in box)])
        rows += [f"{where},{number},{of_box[number - 1]:.6g}\n" for number in lists.names]
    return "".join(rows)


def main(argv: list[str] | None = None) -> int:
    return start(partial(train, parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
