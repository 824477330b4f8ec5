"""What `finetune.py` trains on, and how it tests: views, measures, the protocol in words."""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path

import torch
import torch.distributed as dist
from _checkpoints import Run, averaged_buffers, unwrap
from _classify import Softmax, subset
from _features import Rows, read_means, versions
from _report import Report, accuracy, json_text, plain
from _resume import need, on_rank_0, refusing, say, write_whole
from _sides import read_sides
from torch import nn

from iivcl import data
from iivcl.distributed import rank, world_size
from iivcl.evaluation import confusion_matrix


class Videos:
    """What is trained on, what chooses the best epoch, and what is tested, of one list."""

    def __init__(self, args: argparse.Namespace) -> None:
        how = vars(args) | {"gallery": args.train, "query": args.test, "leave_one_out": False}
        sides = argparse.Namespace(**how | {"hold_out": None})
        self.all, is_test, self.about = read_sides(sides, names=("training", "the test"))
        need(is_test is not None, f"{args.data} has no split: --set, or a manifest with a column "
             "split, says what is trained on")  # fmt: skip
        self.test = subset(self.all, is_test.nonzero().flatten())
        self.train = subset(self.all, (~is_test).nonzero().flatten())
        self.chooses, self.selection = self.test, "on the test: a biased figure; `last` is not"
        if args.hold_out:
            generator = torch.Generator().manual_seed(args.seed)
            with refusing(ValueError):
                parts = self.train.hold_out(args.hold_out, generator=generator)
            gone = set(self.train.labels.tolist()) - set(parts[0].labels.tolist())
            names = ", ".join(
                self.all.classes[c] if self.all.classes else str(c) for c in sorted(gone)
            )
            need(not gone, f"--hold-out {args.hold_out} leaves no training video of: {names}")
            self.train, self.chooses = parts
            self.selection = f"on {len(self.chooses.paths)} videos held out of training by groups"
        self.classes = int(self.all.labels.max()) + 1
        root = args.data if args.data.is_dir() else args.data.parent
        self.files = [
            f"{os.path.relpath(path, root)} {label} {side}" for path, label, side in zip(
                self.all.paths, self.all.labels.tolist(), is_test.tolist(), strict=True
            )
        ]  # fmt: skip


def scores_of(
    models: dict[str, nn.Module], videos: data.Manifest, run: Run, args: argparse.Namespace,
    text: str, **views: int,
) -> dict[str, Rows]:  # fmt: skip
    """Give the mean softmax (N, classes) over the views of every video, and which video it is."""
    clips = views["clips"] * views["crops"]
    more: Report = {
        "batch_size": max(1, args.batch_size // world_size() // clips),
        "on_error": "raise" if args.on_error == "raise" else "skip",
    }
    settings = argparse.Namespace(**vars(args) | views | more)
    modules = {name: Softmax(model) for name, model in models.items()}
    return read_means(modules, videos, settings, run.device, text)


def validate(run: Run, videos: Videos, args: argparse.Namespace) -> dict[str, float]:
    """Measure what chooses the best epoch: one view from the middle of every video."""
    with averaged_buffers(run.encoder):
        models = {"": unwrap(run.encoder)}
        found = scores_of(models, videos.chooses, run, args, "validation", clips=1, crops=1)
    top1 = torch.zeros((), dtype=torch.float64)
    for scores, places, _ in found.values():
        if rank() == 0:
            top1.fill_(accuracy(scores, videos.chooses.labels[places], [1])["top1"])
    dist.broadcast(top1, 0, group=run.hosts)
    return {"validation_top1": top1.item()}


def test(run: Run, videos: Videos, report: Report, args: argparse.Namespace) -> None:
    """Test the last and the best classifier, as they are in their files, and write the result."""
    files = {"last": "classifier.pt", "best": "best_classifier.pt"}
    models, steps = {}, {}
    for name, file in files.items():
        if (args.out / file).exists():
            content = torch.load(args.out / file, weights_only=True)
            models[name], steps[name] = copy.deepcopy(unwrap(run.encoder)), content["step"]
            models[name].load_state_dict(content["model"])
    found = scores_of(models, videos.test, run, args, "test", clips=args.clips, crops=args.crops)

    def write() -> None:
        results: Report = {}
        for name, (scores, places, repeats) in found.items():
            labels = videos.test.labels[places]
            tops = [k for k in (1, 5) if k <= videos.classes]
            confusion = confusion_matrix(scores, labels)
            results[name] = {
                "step": steps[name],
                "counts": {
                    "tested": len(scores), "skipped": len(videos.test.paths) - len(scores),
                    "repeated_views": int(repeats.sum()),
                },
                **accuracy(scores, labels, tops),
                "recall_of_classes": (confusion.diagonal().double() / confusion.sum(1)).tolist(),
                "confusion": confusion.tolist(),  # a row per class, a column per guess
            }  # fmt: skip
        gone = sorted(set(range(len(videos.test.paths))) - set(places.tolist()))
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        whole = {
            "results": results, **report, "classes": videos.all.classes,
            "skipped": [videos.test.paths[i] for i in gone], "device": str(run.device),
            "ranks": world_size(), "versions": versions(), "settings": settings,
        }  # fmt: skip
        write_whole(args.out / "result.json", json_text(plain(whole)))
        for name, result in results.items():
            numbers = {k: v for k, v in result.items() if isinstance(v, float)}
            say(f"{name}, step {result['step']}: "
                + ", ".join(f"{k} {v:.4f}" for k, v in numbers.items()))  # fmt: skip

    on_rank_0(write, run.hosts)


def protocol(args: argparse.Namespace, videos: Videos) -> Report:
    """Spell out all that differs between papers."""
    schedule = f"falls to a tenth at epochs {args.drop_epochs}"
    crops = "the middle" if args.crops == 1 else "both ends and the middle of the longer side"
    size = args.size
    return {
        "training": {
            "videos": len(videos.train.paths), "tuned": args.tune, "epochs": args.epochs,
            "clip": "one with a random start, uniform", "frames": args.frames,
            "stride": args.stride, "short_videos": args.short,
            "crop": f"a square of {size} from a random place of a short side of {size} times "
            f"{args.zoom[0]} to {args.zoom[1]}", "flip": args.flip,
            "rand_augment": args.rand_augment or "none", "mixup": args.mixup or "none",
            "label_smoothing": args.label_smoothing, "dropout": args.dropout,
            "optimizer": {"sgd": "SGD, nesterov 0.9", "adamw": "AdamW"}[args.optimizer],
            "batch_size": args.batch_size, "lr": args.lr, "warmup_epochs": args.warmup_epochs,
            "schedule": schedule if args.schedule == "drops" else "half a cosine",
            "layer_decay": args.layer_decay,
            "weight_decay": f"{args.weight_decay}, of norms and biases 0",
            "batch_norm": "as pretrained" if args.tune == "head" else args.batch_norm,
        },
        "test": {
            "videos": len(videos.test.paths), "clips": args.clips, "crops": args.crops,
            "clip_starts": "floor(v M / (V - 1) + 1/2), M the last that fits; of one clip M / 2",
            "short_videos": args.short,
            "pixels": f"short side {round(size * 8 / 7)}, squares of {size}: {crops}",
            "video": "mean of the softmax over its views",
        },
        "selection": {
            "last": "none: the last epoch", "best": videos.selection,
            "by": f"top-1 of one view from the middle, every {args.validate_every} epochs",
        },
        "normalisation": "mean 0.45, std 0.225", "precision": args.precision,
    }  # fmt: skip
