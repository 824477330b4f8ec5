"""Measure what a frozen video encoder is worth: retrieval, nearest neighbours, a linear probe.

    python examples/evaluate.py run/encoder.pt videos.csv --out result.json --beside random pixels
    python examples/evaluate.py run/encoder.pt UCF-101/ --set ucf101 --lists ucfTrainTestlist/
    python examples/evaluate.py slow.pyth set/ --backbone slow_r50 --frames 8 --stride 8 --size 224
    python examples/evaluate.py --again result.json    # is every number found again?

DATA is a manifest, whose column `split` says what is gallery (train) and what is query (test); or a
folder of one folder per class; or with --set the folder of a published set. Without a split every
video is searched among all others. The result states the whole protocol. Under torchrun the videos
are dealt to the ranks, and each counts once.

This file is the settings, the measures and the result; `_features.py` takes features, `_sides.py`
tells gallery and queries apart, `_classify.py` has the linear protocol. Copy the `_` files with it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from _classify import sgd_probe, sgd_settings
from _features import Rows, absolute, features_of, open_encoder, parts, saved_with, versions
from _pictures import draw_pictures
from _report import Report, accuracy, differences, json_text, plain
from _resume import need, refusing, say, write_whole
from _settings import begin_parser
from _sides import add_set, read_sides
from torch import Tensor

from iivcl import data
from iivcl.distributed import rank, world_size
from iivcl.evaluation import (
    RetrievalMetrics,
    confusion_matrix,
    fit_linear_probe,
    fit_whitening,
    knn_classify,
    retrieval_metrics,
)

KS = (1, 5, 10, 20, 50)
ITERATIONS = 200  # at most, of the probe's L-BFGS
SHRINKAGE = 0.1  # of whitening
FREE = {"out", "again", "pictures", "cache", "workers"}  # settings that change no result


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    usage = "%(prog)s CHECKPOINT DATA [options]\n       %(prog)s --again RESULT [--out OUT]"
    parser, add = begin_parser(usage, __doc__)
    parser.add_argument("checkpoint", nargs="?", help="encoder.pt of pretrain.py, or others'")
    parser.add_argument("data", nargs="?", help="manifest, or folder of videos")
    add("--out", None, "JSON file to write", type=Path)
    add("--again", None, "measure as this JSON file says, and compare", type=Path)
    add(
        "--pictures",
        None,
        "folder for neighbors.png, features.png, tsne.png of CHECKPOINT",
        type=Path,
    )
    add("--beside", (), "random, pixels, or [BACKBONE=]FILE of another encoder", nargs="+")
    add("--backbone", None, "if not said there: in iivcl.backbones, or my_module:my_function")
    add("--prefix", None, "of the weights in the file, where several encoders are")
    add_set(add)
    add("--gallery", "train", "split of a manifest to search, and to train the probe on")
    add("--query", "test", "split of a manifest to measure")
    add("--hold-out", None, "share of the videos, by whole groups, as queries instead", type=float)
    add("--leave-one-out", False, "search among all others instead", action="store_true")
    add("--clips", 10, "per video, spread evenly", type=int)
    add("--crops", 1, "per clip, along its longer side", type=int, choices=(1, 3))
    add("--frames", None, "per clip; default: as in pretraining", type=int)
    add("--stride", None, "frames from one to the next; default: as in pretraining", type=float)
    add("--size", None, "pixels of a crop; default: as in pretraining", type=int)
    shorts = ("loop", "clamp", "mirror", "error")
    add("--short", "loop", "what fills a clip of a shorter video", choices=shorts)
    add("--center", False, "in retrieval, take its mean off each side", action="store_true")
    add("--k", 20, "neighbours that vote", type=int)
    add("--temperature", 0.07, "of the votes", type=float)
    add("--weight-decay", 1e-3, "of the probe on stored features", type=float)
    add("--sgd-epochs", 0, "of the papers' linear protocol, theirs 60: fresh clips", type=int)
    add("--sgd-lr", 4.0, "at batch 512", type=float)
    add("--sgd-batch-size", 512, "over all ranks, at most the gallery", type=int)
    precisions = ("float32", "bfloat16", "float16")
    add("--precision", "float32", "of the encoders", choices=precisions)
    add("--batch-size", 16, "videos at a time, per rank", type=int)
    add("--on-error", "skip", "a video that cannot be read", choices=("skip", "raise"))
    add("--seed", 0, "of the random start and of --hold-out", type=int)
    add("--workers", 4, "processes that read videos, per rank", type=int)
    add("--cache", "~/.cache/iivcl/features", "folder of features; '' for none")
    args = parser.parse_args(argv)
    if args.again is not None:
        return args
    if args.data is None:
        parser.error("CHECKPOINT and DATA, or --again RESULT, are needed")
    args.checkpoint, args.data = absolute(args.checkpoint), os.path.abspath(args.data)
    args.beside = [absolute(source) for source in args.beside]
    args.lists = os.path.abspath(args.lists or args.data) if args.set else None
    return args


# The measures.


def protocol(args: argparse.Namespace, rule: str, in_gallery: int) -> Report:
    """Spell out all that differs between papers."""
    crops = "the middle" if args.crops == 1 else "both ends and the middle of the longer side"
    return {
        "sides": rule,
        "layer": "output of the backbone as it pools it, before any head",
        "views": {
            "clips": args.clips, "crops": args.crops, "frames": args.frames, "stride": args.stride,
            "clip_starts": "floor(v M / (V - 1) + 1/2), M the last that fits; of one clip M / 2",
            "short_videos": args.short,
            "pixels": f"short side {round(args.size * 8 / 7)}, squares of {args.size}: {crops}",
            "normalisation": "mean 0.45, std 0.225",
        },
        "video": "mean of the features of its views; one query, one vote and one sample a video",
        "retrieval": {
            "similarity": "cosine",
            "centering": "each side by its own mean" if args.center else "none",
            "average": "videos",
        },
        "whitened": {"of": "retrieval", "fitted_on": "the gallery", "shrinkage": SHRINKAGE},
        "knn": {
            "similarity": "cosine", "centering": "none", "k": args.k,
            "votes": "exp(cosine / temperature)", "temperature": args.temperature,
        },
        "probe": {
            "loss": "cross-entropy + weight_decay / 2 |W|^2", "weight_decay": args.weight_decay,
            "solver": f"L-BFGS, at most {ITERATIONS} iterations",
            "standardisation": "mean and std of the gallery",
            "selection": "none: no setting is chosen by a result",
        },
        "sgd_probe": sgd_settings(args, in_gallery) if args.sgd_epochs else None,
        "precision": args.precision, "batch_size": args.batch_size,
    }  # fmt: skip


def measure(
    rows: Rows,
    videos: data.Manifest,
    is_query: Tensor | None,
    args: argparse.Namespace,
    by_sgd: tuple[Tensor, Tensor] | None = None,
) -> Report:
    """Compute every number of one encoder; ``by_sgd`` are scores and places of its queries."""
    features, places, repeats = rows
    labels = videos.labels[places]
    classes = int(videos.labels.max()) + 1
    query, query_labels = features, labels
    gallery, gallery_labels, others = None, None, len(features) - 1
    if is_query is not None:
        side = is_query[places]
        need(0 < int(side.sum()) < len(side), "no video of the gallery, or of the queries, is left")
        (query, gallery), (query_labels, gallery_labels) = (
            (x[side], x[~side]) for x in (features, labels)
        )
        others = len(gallery)
    bank_labels = labels if gallery_labels is None else gallery_labels
    ks = [k for k in KS if k <= others]
    found = retrieval_metrics(
        query, query_labels, gallery, gallery_labels, ks=ks, center=args.center
    )
    alike = bank_labels.bincount(minlength=classes)[query_labels] - int(gallery is None)
    scores = knn_classify(
        query, gallery, bank_labels, num_classes=classes, k=min(args.k, others),
        temperature=args.temperature,
    )  # fmt: skip
    tops = [k for k in (1, 5) if k <= classes]
    report: Report = {
        "counts": {
            "queries": found.num_queries, "gallery": found.num_gallery,
            "queries_without_relevant": found.num_unmatched,
            "skipped": len(videos.paths) - len(features), "repeated_views": int(repeats.sum()),
        },
        "chance": (alike.double() / others).mean().item(),
        "retrieval": ranked(found),
        "whitened": whitened(query, query_labels, gallery, gallery_labels, ks),
        "knn": {"k": min(args.k, others), **accuracy(scores, query_labels, tops)},
        "probe": None,  # without a gallery apart there is nothing to train it on
        "sgd_probe": None,
    }  # fmt: skip
    if gallery is not None:
        probe = fit_linear_probe(
            gallery, bank_labels, num_classes=classes, weight_decay=args.weight_decay,
            max_iterations=ITERATIONS,
        )  # fmt: skip
        scores = probe(query)
        lacking = bank_labels.bincount(minlength=classes) == 0
        # A class that the gallery lacks keeps its number, and is not guessed.
        scores[:, lacking] = -torch.inf
        report["probe"] = accuracy(scores, query_labels, tops)
    if by_sgd is not None:
        scores_of_sgd, places_of_sgd = by_sgd
        scores_of_sgd[:, lacking] = -torch.inf
        report["sgd_probe"] = accuracy(scores_of_sgd, videos.labels[places_of_sgd], tops)
    report["confusion"] = {  # a row per class, a column per guess
        "of": "knn" if gallery is None else "probe",
        "counts": confusion_matrix(scores, query_labels).tolist(),
    }
    return report


def ranked(found: RetrievalMetrics) -> Report:
    return {
        **{f"R@{k}": value for k, value in found.recall.items()},
        "mAP": found.mean_average_precision,
        "MAP@R": found.map_at_r, "R-precision": found.r_precision,
    }  # fmt: skip


def whitened(
    query: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None,
    gallery_labels: Tensor | None,
    ks: list[int],
) -> Report | None:
    """Measure retrieval in whitened features; None where all features are alike."""
    try:
        whiten = fit_whitening(query if gallery is None else gallery, shrinkage=SHRINKAGE)
    except ValueError:
        return None
    bank = None if gallery is None else whiten(gallery.float())
    found = retrieval_metrics(whiten(query.float()), query_labels, bank, gallery_labels, ks=ks)
    return ranked(found)


def evaluate(args: argparse.Namespace, before: Report | None, device: str) -> Report | None:
    """Make the whole report, on rank 0; ``before`` is the report that it must come out as."""
    sources = list(dict.fromkeys([args.checkpoint, *args.beside]))
    args.backbone = args.backbone or parts(args.checkpoint)[0] or None
    for source in sources:  # the settings of the first checkpoint that has them
        of_file = {} if source in ("random", "pixels") else saved_with(source, args.backbone)
        for name in ("backbone", "frames", "stride", "size"):
            if getattr(args, name) is None:
                setattr(args, name, of_file.get(name))
    for name in ("frames", "stride", "size"):
        need(getattr(args, name), f"no checkpoint says it: give --{name}")
    need(args.sgd_epochs >= 0, f"--sgd-epochs must be at least 0; got {args.sgd_epochs}")
    opened = {source: open_encoder(source, args) for source in sources}
    videos, is_query, about_data = read_sides(args)
    in_gallery = 0 if is_query is None else int((~is_query).sum())
    need(in_gallery or not args.sgd_epochs, "--sgd-epochs needs a split: there is no gallery")
    report: Report = {
        "encoders": {source: about for source, (_, about) in opened.items()},
        "data": about_data,
        "protocol": protocol(args, about_data["split"], in_gallery),
    }
    for what in report if before else ():
        need(plain(report[what]) == before[what], f"not what was measured: {what}: "
             + "; ".join(differences(before[what], plain(report[what]))))  # fmt: skip
    with refusing(ValueError, OSError, data.DecodeError):
        modules = {source: module for source, (module, _) in opened.items()}
        found = features_of(modules, videos, args, device)
        by_sgd: dict[str, tuple[Tensor, Tensor]] = {}
        if args.sgd_epochs:
            by_sgd = sgd_probe(modules, videos, is_query, args, device)
        if rank() > 0:
            return None
        features, places, _ = found[args.checkpoint]
        if args.pictures is not None:
            draw_pictures(args.pictures, features, places, videos, is_query, args.center)
        gone = sorted(set(range(len(videos.paths))) - set(places.tolist()))
        results = {
            name: measure(rows, videos, is_query, args, by_sgd.get(name))
            for name, rows in found.items()
        }
    settings = {k: v for k, v in vars(args).items() if k not in FREE}
    return plain({
        "results": results, **report, "classes": videos.classes,
        "skipped": [videos.paths[i] for i in gone], "device": device, "ranks": world_size(),
        "versions": versions(), "settings": settings,
    })  # fmt: skip


def show(report: Report) -> None:
    """Print one table of all encoders, and what is confused most by the first."""
    lines = [["", "R@1", "R@5", "mAP", "white", "kNN", "probe", "SGD"]]
    for source, result in report["results"].items():
        name = source if source in ("random", "pixels") else os.path.relpath(source)
        retrieval, probes = result["retrieval"], (result["probe"], result["sgd_probe"])
        whitened = (result["whitened"] or {}).get("R@1")
        numbers = [retrieval.get("R@1"), retrieval.get("R@5"), retrieval["mAP"], whitened,
                   result["knn"]["top1"], *((p or {}).get("top1") for p in probes)]  # fmt: skip
        lines.append([name, *("-" if n is None else f"{n:.4f}" for n in numbers)])
    width = max(len(line[0]) for line in lines)
    for name, *cells in lines:
        say(" ".join([name.ljust(width), *(cell.rjust(7) for cell in cells)]))
    first = next(iter(report["results"].values()))
    counts = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in first["counts"].items())
    print("white: R@1 of whitened features")
    print(f"chance of R@1 {first['chance']:.4f}; {counts}")
    confusion = torch.tensor(first["confusion"]["counts"])
    most = (confusion - confusion.diag().diag()).flatten().topk(min(3, confusion.numel()))
    names = report["classes"] or list(range(len(confusion)))
    for number, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
        if number:
            row, column = divmod(place, len(confusion))
            say(f"{names[row]} taken for {names[column]}: {number}")


def main(argv: list[str] | None = None) -> int:
    args, before = parse_args(argv), None
    if args.out is not None:
        folder = args.out.resolve().parent
        need(folder.is_dir() and os.access(folder, os.W_OK) and not args.out.is_dir(),
             f"--out {args.out} cannot be written")  # fmt: skip
    if args.again is not None:
        with refusing(OSError, ValueError):
            before = json.loads(args.again.read_text())
        known = ("results", "encoders", "data", "protocol", "settings")
        need(isinstance(before, dict) and all(isinstance(before.get(k), dict) for k in known)
             and {"checkpoint", "data"} <= before["settings"].keys(),
             f"--again {args.again} is no result of evaluate.py")  # fmt: skip
        # Without the cache, for the numbers are to be found again and not looked up.
        args = argparse.Namespace(**vars(args) | before["settings"] | {"cache": ""})
    gpu, many = torch.cuda.is_available(), "RANK" in os.environ
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu"
    torch.backends.cudnn.deterministic = True
    if gpu:
        torch.cuda.set_device(device)
    if many:
        dist.init_process_group("nccl" if gpu else "gloo")
    try:
        report = evaluate(args, before, device)
        if report is None:
            return 0
        if args.out is not None:
            with refusing(OSError):
                write_whole(args.out, json_text(report))
        show(report)
        if args.out is not None:
            say(f"result: {args.out}")
        changed = [] if before is None else list(differences(before["results"], report["results"]))
        for line in changed:
            say(line)
        if before is not None:
            say(f"{len(changed)} numbers differ" if changed else "every number was found again")
        return int(bool(changed))
    finally:
        if many:
            dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
