"""Pretrain a video encoder: from a folder of videos to an encoder, on one GPU or on many.

    python examples/pretrain.py --data my_videos/ --out run/
    python examples/pretrain.py --data my_videos/ --out run/ --resume auto   # after it was stopped
    torchrun --nproc-per-node 8 examples/pretrain.py --data shards/ --out run/ --preset paper
    sbatch examples/pretrain.sbatch --data shards/ --out run/ --preset paper

This file is the settings, the methods and the loop: read it from top to bottom, copy it, change it.
Copy the files beside it with it: `_data.py` reads videos, `_checkpoints.py` and `_resume.py` let a
stopped run go on, `_watch.py` has numbers, pictures and health, `_optimizer.py` learning rates,
`_features.py` makes encoders, `_settings.py` and `_report.py` are shared by several scripts.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from _checkpoints import Run, publish, resume, save, seed_rank
from _data import Data
from _features import build as build_backbone
from _features import width_of
from _optimizer import (
    average_gradients,
    half_cosine,
    layers,
    make_optimizer,
    parameter_groups,
    set_rate,
)
from _resume import TO_BE_CONTINUED, Signals, begin_folder, is_due, need, refusing, say, start
from _settings import begin_parser, check_run
from _watch import (
    Log,
    Trouble,
    check_finite,
    check_spread,
    contact_sheet,
    describe,
    knn_accuracy,
    look_up,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from iivcl import IIVCLLoss, MoCoQueue, NNSupportQueue, augment, backbones
from iivcl.distributed import all_gather_cat, batch_shuffle, batch_unshuffle, rank, world_size
from iivcl.losses import multi_positive_info_nce
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_
from iivcl.queues import Neighbors, agreed

PRESETS: dict[str, dict[str, Any]] = {
    "small": {  # a GPU or a few, some thousand videos
        "backbone": "r2plus1d_18", "frames": 16, "stride": 2.0, "size": 112, "batch_size": 64,
        "queue_size": 16_384, "epochs": 100, "warmup_epochs": 10, "head_norm": "batch",
    },
    "paper": {  # rho-MoCo, arXiv 2104.14558: Kinetics-400 on 64 GPUs
        "backbone": "slow_r50", "frames": 8, "stride": 8.0, "size": 224, "batch_size": 512,
        "queue_size": 65_536, "epochs": 200, "warmup_epochs": 35, "precision": "bfloat16",
        "head_norm": "none",
    },
}  # fmt: skip


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset", default="small", choices=tuple(PRESETS))
    preset = PRESETS[first.parse_known_args(argv)[0].preset]
    parser, add = begin_parser("%(prog)s --data DATA --out OUT [options]", __doc__, preset)
    parser.add_argument("--data", type=Path, required=True, help="folder, manifest or tar shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    add("--resume", None, "go on from the newest whole checkpoint in --out", choices=("auto",))
    add("--method", "iivcl", "loss", choices=tuple(METHODS))
    add("--preset", "small", "encoder, size of clips, length", choices=tuple(PRESETS))
    add("--frames", None, "per clip", type=int)
    add("--stride", None, "frames from one to the next", type=float)
    add("--clips", 2, "per video (rho)", type=int)
    add("--size", None, "pixels of a clip", type=int)
    add("--crop", [0.2, 0.766], "share of a frame that a clip keeps", type=float, nargs=2)
    add("--backbone", None, "name in iivcl.backbones, or my_module:my_function")
    add("--init", None, "weights of the backbone to begin with", type=Path)
    add("--dim", 128, "of the embedding", type=int)
    add("--head-norm", None, "of the hidden layers of the head", choices=("batch", "none"))
    add("--batch-norm", None, "default: sync on GPUs", choices=("local", "shuffle", "sync"))
    add("--queue-size", None, "rows, over all ranks", type=int)
    add("--queue", "gather", "what ranks hold of it", choices=("gather", "shard", "local"))
    add("--negatives", "queue", "where from", choices=("queue", "queue+batch"))
    add("--temperature", 0.1, "of the loss", type=float)
    forms = ("out", "in", "per_positive")
    add("--form", None, "of several positives; default: out, of rho-moco the last", choices=forms)
    add("--momentum", 0.994, "of the key encoder, rising to 1", type=float)
    add("--neighbors", 5, "positives of other videos", type=int)
    add("--accept", "agreed", "those that both clips find, or all", choices=("agreed", "all"))
    add("--inter-weight", 1.0, "of their term", type=float)
    add("--inter-start", 0.4, "share of the steps without it", type=float)
    add("--batch-size", None, "videos per step, over all ranks", type=int)
    add("--accumulate", 1, "parts that a step is computed in", type=int)
    add("--epochs", None, "length of the run", type=int)
    add("--warmup-epochs", None, "in which the learning rate rises", type=int)
    add("--optimizer", "sgd", "with momentum, or", choices=("sgd", "adamw"))
    add("--lr", None, "default: 0.4 (AdamW 0.001) x batch size / 512", type=float)
    add("--weight-decay", 1e-4, "not of norms and biases", type=float)
    precisions, layouts = ("float32", "bfloat16", "float16"), ("channels_last_3d", "contiguous")
    add("--precision", "float32", "of the encoders", choices=precisions)
    add("--memory-format", "channels_last_3d", "of clips and weights", choices=layouts)
    add("--compile", False, "compile the encoders and the colours", action="store_true")
    add("--fsdp", False, "shard the encoders over the ranks, torch >= 2.6", action="store_true")
    add("--workers", 4, "processes that read videos, per rank", type=int)
    choices = ("raise", "substitute", "skip")
    add("--on-error", "substitute", "a video that cannot be read", choices=choices)
    add("--seed", 0, "of all that is drawn", type=int)
    add("--log-every", 10, "steps", type=int)
    add("--save-every", None, "steps; default: once an epoch", type=int)
    add("--keep", 3, "checkpoints", type=int)
    add("--knn-every", 10, "epochs, where labels exist; 0 for never", type=int)
    add("--collapse-std", None, "stop below it after warm-up; 0.1 / sqrt(dim)", type=float)
    return parser.parse_args(argv)


def settle(args: argparse.Namespace) -> None:
    """Fill in what follows from other settings, and refuse what does not go together."""
    ranks, gpu = world_size(), torch.cuda.is_available()
    has_key_encoder = args.method in HAS_KEY_ENCODER
    if args.method == "rho-moco":
        args.neighbors = 0
    if args.form is None:
        args.form = "per_positive" if args.method == "rho-moco" else "out"
    if args.lr is None:
        args.lr = (0.4 if args.optimizer == "sgd" else 1e-3) * args.batch_size / 512
    if args.collapse_std is None:
        args.collapse_std = 0.1 / math.sqrt(args.dim)
    if args.batch_norm is None:
        # Shuffling sends every clip to every rank: on many it costs more than the step.
        args.batch_norm = "sync" if gpu else "shuffle" if has_key_encoder else "local"
    check_run(args, "dim", "queue_size", "temperature")
    low, high = args.crop
    wrong = {
        f"--crop must rise within (0, 1]; got {low} {high}": not 0 < low <= high <= 1,
        f"--clips must be at least 2; got {args.clips}": args.clips < 2,
        f"--momentum must be in [0, 1]; got {args.momentum}": not 0 <= args.momentum <= 1,
        f"--neighbors must be at least 0; got {args.neighbors}": args.neighbors < 0,
        f"--queue-size {args.queue_size} cannot be divided by {ranks} ranks":
            args.queue == "shard" and args.queue_size % ranks,
        f"--neighbors {args.neighbors} are more than --queue-size {args.queue_size}":
            args.neighbors > args.queue_size,
        "--method nnclr takes neighbours out of the queue of its own rank: use --queue gather":
            args.method == "nnclr" and args.queue == "shard",
        f"--method {args.method} has no key encoder whose batch could be shuffled: use "
        "--batch-norm sync or local": args.batch_norm == "shuffle" and not has_key_encoder,
        "--fsdp scales no loss: use bfloat16": args.fsdp and args.precision == "float16",
    }  # fmt: skip
    for message, holds in wrong.items():
        need(not holds, message)
    if args.accumulate > 1 and (not has_key_encoder or args.negatives == "queue+batch"):
        say(f"--accumulate {args.accumulate}: the negatives of a batch are those of a part, "
            f"{args.batch_size // args.accumulate} videos and not {args.batch_size}")  # fmt: skip


# Methods: each makes a loss, and keys for the queue, of B videos of V clips.


class Encoder(nn.Module):
    """Backbone and projection head, and for NNCLR a prediction head."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.backbone = build_backbone(args.backbone, args.seed)  # alike on all ranks, as the head
        if args.init is not None:
            with refusing(ValueError, OSError):
                report = backbones.load_weights(self.backbone, args.init)
            say(f"weights of {args.init}; not used: {len(report.unused)} tensors")
        with refusing(ValueError):  # of clips that the encoder does not take
            width = width_of(self.backbone, args, "cpu")
        # In short runs on few videos, a head without norm leaves all embeddings alike for long.
        norm = "batch" if args.head_norm == "batch" else None
        self.head = backbones.ProjectionHead(width, width, args.dim, norm=norm)
        nnclr = args.method == "nnclr"
        self.predictor = backbones.PredictionHead(args.dim, 4 * args.dim) if nnclr else None

    def forward(self, clips: Tensor, *, head: bool = True) -> Any:
        """Map (N, C, T, H, W) to embeddings (N, D), or without the head to (N, feature_dim)."""
        features = self.backbone(clips)  # (N, feature_dim)
        if not head:
            return features
        z = self.head(features)  # (N, D)
        return z if self.predictor is None else (z, self.predictor(z))


class Output(NamedTuple):
    """What a method gives."""

    terms: dict[str, Tensor]  # "loss", whose gradient is taken, and its parts
    query: Tensor  # (B, V, D), trained
    key: Tensor  # (B, V, D), for the queue


def momentum_contrast(
    views: Tensor, ids: Tensor, run: Run, inter_weight: float, args: argparse.Namespace
) -> Output:
    """Contrast a clip with momentum keys: rho-MoCo, and with neighbours as positives IIVCL."""
    query = unit(run.encoder(views), args)  # (B, V, D)
    with torch.no_grad():
        if args.batch_norm == "shuffle":  # keys are normalised in other company
            shuffled, permutation = batch_shuffle(views)
            key = batch_unshuffle(run.key_encoder(shuffled), permutation)
        else:
            key = run.key_encoder(views)
        key = unit(key, args)  # (B, V, D)
    criterion = IIVCLLoss(
        num_neighbors=args.neighbors, temperature=args.temperature, form=args.form,
        batch_negatives=args.negatives == "queue+batch",
    )  # fmt: skip
    found: list[Neighbors | None] = [None] * args.clips  # what the others of a clip find
    if args.neighbors and args.accept == "agreed":
        found = [*agreed_neighbors(key, ids, run, args)]
    outs = []
    for i in range(args.clips):
        others = torch.cat([key[:, :i], key[:, i + 1 :]], dim=1)  # (B, V - 1, D)
        outs.append(criterion(query[:, i], others, run.queue, ids=ids, neighbors=found[i]))
    intra = torch.stack([out.intra for out in outs]).mean()
    inter = torch.stack([out.inter for out in outs]).mean()
    terms = {"loss": intra + inter_weight * inter, "intra": intra, "inter": inter}
    return Output(terms, query, key)


def agreed_neighbors(
    key: Tensor, ids: Tensor, run: Run, args: argparse.Namespace
) -> list[Neighbors]:
    """Find for each clip the rows that its key and the mean of the others of its video agree on.

    They err less often than what one finds: docs/explanation/evidence.md.
    """
    look_up = partial(run.queue.nearest, k=args.neighbors, ids=ids)
    own = [look_up(clip) for clip in key.unbind(1)]
    rest = own[::-1]
    if args.clips > 2:
        rest = [look_up(key.sum(1) - clip) for clip in key.unbind(1)]
    return [agreed(theirs, mine)[0] for theirs, mine in zip(rest, own, strict=True)]


def batch_contrast(
    views: Tensor, ids: Tensor, run: Run, inter_weight: float, args: argparse.Namespace
) -> Output:
    """Contrast a clip with all others of the batch of all ranks: SimCLR, arXiv 2002.05709."""
    query = unit(run.encoder(views), args)  # (B, V, D)
    own, own_ids = query.flatten(0, 1), ids.repeat_interleave(args.clips)  # (N, D) and (N,)
    everyone, all_ids = all_gather_cat(own), all_gather_cat(own_ids)  # (M, D) and (M,)
    row, column = places(own, everyone)
    positive = (row // args.clips == column // args.clips) & (row != column)  # (N, M)
    ignored = (own_ids[:, None] == all_ids) & ~positive  # itself, and videos of its group
    loss = multi_positive_info_nce(
        own, everyone, positive, ignore_mask=ignored, temperature=args.temperature, form=args.form
    )
    return Output({"loss": loss}, query, query.detach())  # the queue is for watching alone


def neighbor_contrast(
    views: Tensor, ids: Tensor, run: Run, inter_weight: float, args: argparse.Namespace
) -> Output:
    """Predict from a clip the nearest neighbour of another: NNCLR, arXiv 2104.14548."""
    query, prediction = (unit(x, args) for x in run.encoder(views))  # (B, V, D)
    key, all_ids = query.detach(), all_gather_cat(ids)
    row, column = places(ids, all_ids)
    positive = row == column  # (B, M)
    ignored = (ids[:, None] == all_ids) & ~positive
    losses = []
    for i, j in itertools.permutations(range(args.clips), 2):
        found = run.queue.nearest(key[:, i], ids=ids)
        neighbor = torch.where(found.valid, run.queue.keys[found.indices[:, 0]], key[:, i])
        loss = multi_positive_info_nce(
            prediction[:, j], all_gather_cat(neighbor), positive, ignore_mask=ignored,
            temperature=args.temperature, form=args.form,
        )  # fmt: skip
        losses.append(loss)
    return Output({"loss": torch.stack(losses).mean()}, query, key)


HAS_KEY_ENCODER = ("iivcl", "rho-moco")
METHODS = {
    "iivcl": momentum_contrast,
    "rho-moco": momentum_contrast,  # with no neighbours
    "simclr": batch_contrast,
    "nnclr": neighbor_contrast,
}


def unit(embeddings: Tensor, args: argparse.Namespace) -> Tensor:
    """Normalise (B * V, D) in float32 and give every video a row: (B, V, D)."""
    return F.normalize(embeddings.float(), dim=1).unflatten(0, (-1, args.clips))


def places(own: Tensor, everyone: Tensor) -> tuple[Tensor, Tensor]:
    """Number this rank's rows among those of all, (N, 1), and those of all, (1, M)."""
    column = torch.arange(len(everyone), device=own.device)
    return column[rank() * len(own) :][: len(own), None], column[None]


# The run.


def build(args: argparse.Namespace, device: torch.device, hosts: dist.ProcessGroup) -> Run:
    """Make everything that changes, as it is at step 0."""
    encoder: nn.Module = Encoder(args).to(device, memory_format=layout(args))
    if args.batch_norm == "sync":
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    key_encoder = momentum_copy(encoder) if args.method in HAS_KEY_ENCODER else None
    for module in filter(None, (encoder, key_encoder)):
        if args.fsdp:
            shard(module, device)
        if args.compile:
            module.compile()  # in place: no name changes
    groups = parameter_groups(encoder, lr=args.lr, weight_decay=args.weight_decay)
    optimizer = make_optimizer(groups, args.optimizer, args.lr)
    if world_size() > 1 and not args.fsdp:
        encoder = DistributedDataParallel(encoder)
    rows = args.queue_size // (world_size() if args.queue == "shard" else 1)
    seed_rank(args.seed, step=0)  # ranks augment differently
    return Run(
        encoder=encoder,
        key_encoder=key_encoder,
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(device.type, enabled=args.precision == "float16"),
        queue=NNSupportQueue(rows, args.dim, distributed=args.queue).to(device),
        videos=MoCoQueue(rows, 1, distributed=args.queue).to(device),
        labels=MoCoQueue(rows, 1, distributed=args.queue).to(device),
        device=device,
        hosts=hosts,
        seed=args.seed,
    )


def layout(args: argparse.Namespace) -> torch.memory_format:
    last = args.memory_format == "channels_last_3d" and not args.fsdp  # which shards rows only
    return torch.channels_last_3d if last else torch.contiguous_format


def shard(encoder: nn.Module, device: torch.device) -> None:
    """Shard every layer of the backbone on its own, and what is left together."""
    need(hasattr(dist.fsdp, "fully_shard"), f"--fsdp needs torch >= 2.6; got {torch.__version__}")
    mesh = dist.device_mesh.init_device_mesh(device.type, (world_size(),))
    for module in (*(layer[0] for layer in layers(encoder.backbone)), encoder):
        # Resharded at once, also the last: between two passes every parameter is this rank's part.
        dist.fsdp.fully_shard(module, mesh=mesh, reshard_after_forward=True)


def train(args: argparse.Namespace, device: torch.device, hosts: dist.ProcessGroup) -> int:
    settle(args)
    signals, data = Signals(), Data(args)
    run = build(args, device, hosts)
    begin_folder(args, data.files, hosts)
    source = resume(run, args.out / "checkpoints") if args.resume else None
    need(
        not data.is_tar or run.ranks == world_size() or run.step % data.steps == 0,
        f"{source} is within an epoch, whose shards are dealt to {run.ranks} ranks: resume with as "
        f"many; got {world_size()}",
    )
    say(f"{data.num_videos} videos, {data.steps} steps an epoch; "
        f"{data.num_videos % args.batch_size} videos are left out of each")  # fmt: skip
    say(f"going on from {source}" if source else "beginning at step 0")
    total = args.epochs * data.steps
    log = Log(args.out, run.step, clips_per_step=args.batch_size * args.clips)
    bar = tqdm(initial=run.step, total=total, disable=rank() > 0, unit="step",
               mininterval=0.5 if sys.stderr.isatty() else 30)  # fmt: skip
    with closing(log), bar:
        take_steps(args, run, data, signals, log, bar)
    if run.step < total:
        say(f"stopped at step {run.step} of {total}; --resume auto goes on")
        return TO_BE_CONTINUED
    publish(args.out, hosts)
    say(f"finished: {args.out / 'encoder.pt'}")
    return 0


def take_steps(
    args: argparse.Namespace, run: Run, data: Data, signals: Signals, log: Log, bar: tqdm[Any]
) -> None:
    """Train from the step of the run to the last, or until told to stop."""
    total, warmup = args.epochs * data.steps, args.warmup_epochs * data.steps
    names = ("method", "backbone", "frames", "stride", "size")  # to be known of the encoder
    about = {name: getattr(args, name) for name in names}
    colours = augment.rho_moco(args.size)[2:]
    apply = torch.compile(colours.apply, fullgraph=True) if args.compile else colours.apply
    half = args.precision != "float32"
    dtype = getattr(torch, args.precision) if half else None
    autocast = torch.autocast(run.device.type, dtype, half)
    recent: list[tuple[int, Tensor, Tensor]] = []  # steps since the last check: loss and videos

    while run.step < total:
        epoch, first = divmod(run.step, data.steps)
        for parts, waited in data.steps_from(epoch, first):
            log.waited(waited)
            rate = half_cosine(run.step, total, warmup=warmup, lr=args.lr)
            set_rate(run.optimizer, rate)
            momentum = cosine_momentum(run.step, total, base=args.momentum)
            inter_weight = args.inter_weight * (run.step >= args.inter_start * total)
            if run.key_encoder is not None:
                momentum_update_(run.key_encoder, run.encoder, momentum)
            keys, rows, of_parts = [], [], []
            for number, part in enumerate(parts, start=1):
                part = (x.to(run.device, non_blocking=True) for x in part)
                clips, videos, labels, *group_ids = part
                ids = group_ids[0] if group_ids else videos  # (B,)
                clips = clips.flatten(0, 1)  # (B * V, C, T, H, W) uint8
                views = apply(clips, colours.make_params(clips))
                views = views.contiguous(memory_format=layout(args))
                average_gradients(run.encoder, now=number == len(parts))
                with autocast:
                    out = METHODS[args.method](views, ids, run, inter_weight, args)
                run.scaler.scale(out.terms["loss"] / len(parts)).backward()
                keys.append(out.key.flatten(0, 1))
                rows.append(torch.stack([ids, videos, labels]).repeat_interleave(args.clips, 1))
                of_parts.append({name: term.detach() for name, term in out.terms.items()})
            run.scaler.step(run.optimizer)
            run.scaler.update()
            run.optimizer.zero_grad()
            run.step += 1
            terms = {n: torch.stack([part[n] for part in of_parts]).mean() for n in of_parts[0]}
            recent.append((run.step, terms["loss"], torch.cat([p[1] for p in parts])))

            stops = signals.seen_by_any(run.hosts)
            ends_epoch = run.step % data.steps == 0
            saves = stops or is_due(run.step, args.save_every or data.steps, total)
            looks = ends_epoch or is_due(run.step, args.log_every, total)
            if looks or saves:  # before the queue has the keys of this step
                check_finite(run, recent, data.set.path)
                found = look_up(run, out.key[:, 0], ids)
                line = describe(run, terms, out.query, found, ids, labels)
                if run.step > warmup:
                    check_spread(recent, data.set.path, line["embedding_std"], args.collapse_std)
                recent.clear()
                line |= {"learning_rate": rate, "momentum": momentum, "inter_weight": inter_weight}
            sheet = contact_sheet(run, videos, found, data) if ends_epoch else None
            run.enqueue(torch.cat(keys), *torch.cat(rows, dim=1))

            if ends_epoch and is_due(epoch + 1, args.knn_every, args.epochs):
                line |= knn_accuracy(run, data, args)
            if looks:
                log.write(run.step, {"epoch": run.step / data.steps, **line}, sheet)
                bar.set_postfix(log.shown)
            bar.update()
            if saves:
                save(run, args.out / "checkpoints", keep=args.keep, about=about)
            if stops:
                return


def main(argv: list[str] | None = None) -> int:
    return start(partial(train, parse_args(argv)), Trouble)


if __name__ == "__main__":
    sys.exit(main())
