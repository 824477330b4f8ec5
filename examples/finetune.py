"""Finetune a video encoder to recognise actions, and test it: from a checkpoint to a classifier.

    python examples/finetune.py run/encoder.pt videos.csv --out finetuned/
    python examples/finetune.py run/encoder.pt UCF-101/ --out ucf/ --set ucf101 --lists lists/
    torchrun --nproc-per-node 8 examples/finetune.py slow_r50=MoCo.pyth k400/ --set kinetics ...

CHECKPOINT is the `encoder.pt` of a run, a published one, or "random". DATA is what `evaluate.py`
takes, with a split. A run that was stopped goes on with --resume auto, bit for bit. `result.json`
has the test of the last and of the best epoch, with the whole protocol.

This file is the settings and the loop. `_recognize.py` has the videos and the test, `_classify.py`
the classifier and its training views, `_optimizer.py` learning rates; `_resume.py` and
`_checkpoints.py` let it go on: copy all the `_` files with it.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from _checkpoints import Run, encoder_weights, publish, resume, save, seed_rank
from _classify import ZOOM, Classifier, TrainingViews, to_input, training_recipe
from _data import Data
from _features import absolute, open_encoder, parts, saved_with, width_of
from _optimizer import (
    average_gradients,
    drops,
    half_cosine,
    make_optimizer,
    parameter_groups,
    set_rate,
)
from _recognize import Videos, protocol, test, validate
from _report import Report
from _resume import (
    FREE,
    TO_BE_CONTINUED,
    Signals,
    begin_folder,
    is_due,
    need,
    refusing,
    say,
    start,
)
from _settings import begin_parser, check_run
from _sides import add_set
from _watch import Log, Trouble, check_finite
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from iivcl.distributed import rank, world_size

UCF101 = {  # the paper of rho-MoCo, arXiv 2104.14558: UCF101 and HMDB51
    "epochs": 200, "batch_size": 64, "base_lr": 0.025, "schedule": "drops",
    "drop_epochs": [60, 120, 180], "weight_decay": 0.0, "dropout": 0.8,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "ucf101": UCF101,
    "hmdb51": UCF101,
    "ssv2": {  # its released configuration; the flip would turn left into right
        "epochs": 22, "batch_size": 64, "base_lr": 0.12, "schedule": "drops",
        "drop_epochs": [14, 18], "warmup_epochs": 0.19, "weight_decay": 1e-6, "dropout": 0.5,
        "flip": 0.0, "clips": 1, "crops": 1,
    },
    "k400": {  # the linear protocol: the encoder stays as it is
        "tune": "head", "epochs": 60, "batch_size": 512, "base_lr": 4.0, "schedule": "cosine",
        "warmup_epochs": 8.0, "weight_decay": 0.0, "dropout": 0.0,
    },
}  # fmt: skip
# Settings that may differ when a run goes on; those of the test are of the last one.
MAY_DIFFER = FREE | {"checkpoint", "lists", "clips", "crops"}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=tuple(PRESETS))
    first.add_argument("--set")
    given = first.parse_known_args(argv)[0]
    of_set = {"hmdb51": "hmdb51", "ssv2": "ssv2", "kinetics": "k400"}.get(given.set, "ucf101")
    preset = PRESETS[given.preset or of_set]
    usage = "%(prog)s CHECKPOINT DATA --out OUT [options]"
    parser, add = begin_parser(usage, __doc__, preset, width=30)
    parser.add_argument("checkpoint", help="encoder.pt of a run, one of others, or random")
    parser.add_argument("data", help="manifest, or folder of videos")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    add("--resume", None, "go on from the newest whole checkpoint in --out", choices=("auto",))
    add("--preset", of_set, "recipe; default: that of --set", choices=tuple(PRESETS))
    add("--backbone", None, "if not said there: in iivcl.backbones, or my_module:my_function")
    add("--prefix", None, "of the weights in the file, where several encoders are")
    add_set(add)
    add("--train", "train", "split of a manifest to train on")
    add("--test", "test", "split of a manifest to test on")
    add("--hold-out", 0.0, "share of training, by whole groups, that chooses the best", type=float)
    add("--frames", None, "per clip; default: as in pretraining", type=int)
    add("--stride", None, "frames from one to the next; default: as in pretraining", type=float)
    add("--size", None, "pixels of a crop; default: as in pretraining", type=int)
    shorts = ("loop", "clamp", "mirror", "error")
    add("--short", "loop", "what fills a clip of a shorter video", choices=shorts)
    add("--clips", 10, "per video in the test, spread evenly", type=int)
    add("--crops", 3, "per clip in the test, along its longer side", type=int, choices=(1, 3))
    add("--tune", "all", "what is trained", choices=("all", "head"))
    add("--epochs", None, "length of the run", type=int)
    add("--warmup-epochs", 0.0, "in which the learning rate rises", type=float)
    add("--batch-size", None, "videos per step, over all ranks", type=int)
    add("--accumulate", 1, "parts that a step is computed in", type=int)
    add("--optimizer", "sgd", "with nesterov 0.9, or", choices=("sgd", "adamw"))
    of_preset = f"default: {preset['base_lr']} x batch size / {preset['batch_size']}"
    add("--lr", None, of_preset, type=float)
    add("--schedule", None, "of the learning rate", choices=("cosine", "drops"))
    add("--drop-epochs", [], "where it falls to a tenth", type=int, nargs="*")
    add("--layer-decay", 1.0, "learning rate of a layer over that of the next", type=float)
    add("--weight-decay", None, "not of norms and biases", type=float)
    add("--dropout", None, "before the last layer", type=float)
    add("--label-smoothing", 0.0, "share spread over all classes", type=float)
    add("--mixup", 0.0, "alpha of its Beta distribution; 0 for none", type=float)
    add("--rand-augment", 0, "magnitude of its two operations, to 30; 0 for none", type=int)
    add("--flip", 0.5, "probability", type=float)
    zoom = [round(z, 3) for z in ZOOM]
    add("--zoom", zoom, "short side over side of a crop, drawn between", type=float, nargs=2)
    add("--batch-norm", "local", "statistics of a rank, or of all", choices=("local", "sync"))
    precisions, layouts = ("float32", "bfloat16", "float16"), ("channels_last_3d", "contiguous")
    add("--precision", "float32", "of the network", choices=precisions)
    add("--memory-format", "channels_last_3d", "of clips and weights", choices=layouts)
    add("--workers", 4, "processes that read videos, per rank", type=int)
    choices = ("raise", "substitute", "skip")
    add("--on-error", "substitute", "a training video that cannot be read", choices=choices)
    add("--seed", 0, "of all that is drawn", type=int)
    add("--log-every", 10, "steps", type=int)
    add("--save-every", None, "steps; default: once an epoch", type=int)
    add("--keep", 3, "checkpoints", type=int)
    add("--validate-every", 1, "epochs, by the middle of every video; 0 for never", type=int)
    args = parser.parse_args(argv)
    args.checkpoint, args.data = absolute(args.checkpoint), Path(args.data).resolve()
    args.lists = os.path.abspath(args.lists or args.data) if args.set else None
    if args.lr is None:
        args.lr = preset["base_lr"] * args.batch_size / preset["batch_size"]
    return args


def settle(args: argparse.Namespace) -> None:
    """Fill in what the checkpoint says, and refuse what does not go together."""
    of_file = {} if args.checkpoint == "random" else saved_with(args.checkpoint, args.backbone)
    args.backbone = parts(args.checkpoint)[0] or of_file.get("backbone") or args.backbone
    for name in ("backbone", "frames", "stride", "size"):
        if getattr(args, name) is None:
            setattr(args, name, of_file.get(name))
        need(getattr(args, name), f"{args.checkpoint} does not say it: give --{name}")
    check_run(args, "clips")
    for name, most in (("dropout", 1), ("label_smoothing", 1), ("hold_out", 1), ("flip", 1.1)):
        option, value = "--" + name.replace("_", "-"), getattr(args, name)
        need(0 <= value < most, f"{option} must be in [0, 1{')]'[most > 1]}; got {value}")
    need(1 <= args.zoom[0] <= args.zoom[1], f"--zoom must rise from at least 1; got {args.zoom}")
    need(
        0 <= args.rand_augment <= 30, f"--rand-augment must be in [0, 30]; got {args.rand_augment}"
    )
    need(0 < args.layer_decay <= 1, f"--layer-decay must be in (0, 1]; got {args.layer_decay}")
    need(args.mixup >= 0, f"--mixup must be at least 0; got {args.mixup}")
    falls = args.schedule == "drops"
    given = args.drop_epochs != PRESETS[args.preset].get("drop_epochs", [])
    need(falls or not given, f"--schedule {args.schedule} ignores --drop-epochs "
         f"{args.drop_epochs}: give --schedule drops, or leave them out")  # fmt: skip
    if falls and not any(epoch < args.epochs for epoch in args.drop_epochs):
        say(f"the learning rate never falls: none of --drop-epochs {args.drop_epochs} is below "
            f"--epochs {args.epochs}; --schedule cosine fits any length")  # fmt: skip


def build(
    backbone: nn.Module, classes: int, args: argparse.Namespace, device: torch.device, hosts: Any
) -> Run:
    """Make everything that changes, as it is at step 0."""
    with refusing(ValueError):  # of clips that the encoder does not take
        width = width_of(backbone, args, "cpu")
    torch.manual_seed(args.seed)  # the same last layer on all ranks
    frozen = args.tune == "head"
    model: nn.Module = Classifier(backbone, width, classes, dropout=args.dropout, frozen=frozen)
    model = model.to(device, memory_format=layout(args))
    if args.batch_norm == "sync":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    groups = parameter_groups(
        model.backbone, model.head, lr=args.lr, weight_decay=args.weight_decay,
        layer_decay=args.layer_decay,
    )  # fmt: skip
    optimizer = make_optimizer(groups, args.optimizer, args.lr)
    if world_size() > 1:
        model = DistributedDataParallel(model)
    seed_rank(args.seed, step=0)  # ranks drop and mix differently
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == "float16")
    return Run(encoder=model.train(), optimizer=optimizer, scaler=scaler, device=device,
               hosts=hosts, seed=args.seed)  # fmt: skip


def layout(args: argparse.Namespace) -> torch.memory_format:
    last = args.memory_format == "channels_last_3d"
    return torch.channels_last_3d if last else torch.contiguous_format


def train(args: argparse.Namespace, device: torch.device, hosts: dist.ProcessGroup) -> int:
    settle(args)
    videos = Videos(args)
    backbone, about_encoder = open_encoder(args.checkpoint, args)
    args.weights = about_encoder["weights_sha256"]  # a run goes on with the weights it began with
    recipe = training_recipe(args, args.zoom)
    views = TrainingViews(args.size, zoom=args.zoom, flip=args.flip, magnitude=args.rand_augment)
    signals = Signals()
    loaded = Data(args, videos=videos.train, recipe=recipe, transform=views)
    run = build(backbone, videos.classes, args, device, hosts)
    begin_folder(args, videos.files, hosts, free=MAY_DIFFER)
    source = resume(run, args.out / "checkpoints") if args.resume else None
    best: Report = {"step": 0, "top1": -1.0, "files": {}}
    if source is not None and (source / "best_classifier.pt").exists():
        names = ("best_classifier.pt", "best_encoder.pt")
        best["files"] = {name: torch.load(source / name, weights_only=True) for name in names}
        best |= {name: best["files"][names[0]][name] for name in ("step", "top1")}
    total = args.epochs * loaded.steps
    say(f"{loaded.num_videos} videos to train on, {loaded.steps} steps an epoch; "
        f"{len(videos.test.paths)} to test")  # fmt: skip
    say(f"going on from {source}" if source else "beginning at step 0")
    log = Log(args.out, run.step, clips_per_step=args.batch_size)
    recent: list[tuple[int, Tensor, Tensor]] = []  # steps since the last check: loss and videos
    bar = tqdm(initial=run.step, total=total, disable=rank() > 0, unit="step",
               mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip

    while run.step < total:
        epoch, first = divmod(run.step, loaded.steps)
        for batches, waited in loaded.steps_from(epoch, first):
            log.waited(waited)
            rate = learning_rate(run.step, loaded.steps, args)
            set_rate(run.optimizer, rate)
            losses, hits = take_step(run, batches, videos.classes, args)
            run.step += 1
            numbers = torch.cat([batch[1] for batch in batches])
            recent.append((run.step, losses, numbers))

            stops = signals.seen_by_any(hosts)
            ends_epoch = run.step % loaded.steps == 0
            saves = stops or is_due(run.step, args.save_every or loaded.steps, total)
            looks = ends_epoch or is_due(run.step, args.log_every, total)
            line: dict[str, float] = {}
            if looks or saves:
                check_finite(run, recent, loaded.set.path)
                recent.clear()
                line = {"epoch": run.step / loaded.steps, **means(losses, hits)}
                line["learning_rate"] = rate
            if ends_epoch and is_due(epoch + 1, args.validate_every, args.epochs):
                line |= validate(run, videos, args)
                if line["validation_top1"] > best["top1"]:
                    best = {"step": run.step, "top1": line["validation_top1"]}
                    files = files_of(run, videos, args, **best)
                    best["files"] = {f"best_{name}": content for name, content in files.items()}
            if looks:
                log.write(run.step, line)
                bar.set_postfix(log.shown)
            bar.update()
            if saves:
                also = files_of(run, videos, args, step=run.step) | best["files"]
                save(run, args.out / "checkpoints", keep=args.keep, about=about(args), also=also)
            if stops and run.step < total:
                bar.close()
                log.close()
                say(f"stopped at step {run.step} of {total}; --resume auto goes on")
                return TO_BE_CONTINUED
    bar.close()
    log.close()
    publish(args.out, hosts)
    signals.end_here()
    report = {"encoder": about_encoder, "data": videos.about, "protocol": protocol(args, videos)}
    test(run, videos, report, args)
    say(f"finished: {args.out / 'result.json'}")
    return 0


def learning_rate(step: int, steps: int, args: argparse.Namespace) -> float:
    warmup = round(args.warmup_epochs * steps)
    if args.schedule == "drops":
        at = [epoch * steps for epoch in args.drop_epochs]
        return drops(step, at, warmup=warmup, lr=args.lr)
    return half_cosine(step, args.epochs * steps, warmup=warmup, lr=args.lr)


def take_step(
    run: Run, batches: list[Any], classes: int, args: argparse.Namespace
) -> tuple[Tensor, Tensor]:
    """Update the weights once, and give the mean loss and the share of right guesses: ()."""
    half = args.precision != "float32"
    dtype = getattr(torch, args.precision) if half else None
    losses, hits = [], []
    for number, batch in enumerate(batches, start=1):
        clips, _, labels, _ = (x.to(run.device, non_blocking=True) for x in batch)
        clips, target = to_input(clips.flatten(0, 1)), labels  # (B, 3, T, H, W) and (B,)
        if args.mixup:
            mix = v2.MixUp(num_classes=classes, alpha=args.mixup)
            clips, target = mix(tv_tensors.Video(clips), labels)  # target (B, classes)
        clips = clips.as_subclass(Tensor).contiguous(memory_format=layout(args))
        average_gradients(run.encoder, now=number == len(batches))
        with torch.autocast(run.device.type, dtype, half):
            logits = run.encoder(clips).float()  # (B, classes)
            loss = F.cross_entropy(logits, target, label_smoothing=args.label_smoothing)
        run.scaler.scale(loss / len(batches)).backward()
        losses.append(loss.detach())
        hits.append((logits.detach().argmax(1) == labels).float().mean())
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    return torch.stack(losses).mean(), torch.stack(hits).mean()


def means(loss: Tensor, hits: Tensor) -> dict[str, float]:
    """Average the numbers of one step over the ranks."""
    numbers = torch.stack([loss, hits])
    if world_size() > 1:
        dist.all_reduce(numbers)
    return dict(zip(("loss", "training_top1"), (numbers / world_size()).tolist(), strict=True))


def about(args: argparse.Namespace) -> dict[str, Any]:
    """What must be known to use the encoder."""
    names = ("backbone", "frames", "stride", "size")
    return {"method": "finetune", **{name: getattr(args, name) for name in names}}


def files_of(run: Run, videos: Videos, args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Give what others read: the classifier, and its encoder alone. All ranks call this."""
    weights = encoder_weights(run.encoder, "")
    of_encoder = {n[9:]: tensor for n, tensor in weights.items() if n.startswith("backbone.")}
    classes = videos.all.classes or [str(number) for number in range(videos.classes)]
    return {
        "classifier.pt": {"model": weights, "classes": classes, **about(args), **more},
        "encoder.pt": {"model": of_encoder, **about(args)},
    }


def main(argv: list[str] | None = None) -> int:
    return start(partial(train, parse_args(argv)), Trouble)


if __name__ == "__main__":
    sys.exit(main())
