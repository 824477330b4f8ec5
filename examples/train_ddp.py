"""Pretrain with IIVCL on several processes, one per GPU; without GPUs, on the CPU with gloo.

    torchrun --nproc-per-node 2 examples/train_ddp.py --steps 4
    torchrun --nproc-per-node 8 examples/train_ddp.py --data my_videos/ --queue shard --out run/

Read train_minimal.py first: this is its loop with what several processes need. Copy and change it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.data import ClipRecipe, VideoClips, make_synthetic_videos
from iivcl.distributed import all_gather_cat, batch_shuffle, batch_unshuffle, rank, world_size
from iivcl.evaluation import extract_features
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_

NUM_FRAMES, STRIDE, SIZE, DIM = 8, 2, 32, 128
QUEUE_SIZE = 1024  # rows; of every process, for --queue shard and local
MOMENTUM, LEARNING_RATE, INTER_START = 0.98, 0.05, 0.4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of videos; default: generated ones")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8, help="videos per process")
    parser.add_argument("--queue", default="gather", choices=("gather", "local", "shard"))
    parser.add_argument("--batch-norm", default="shuffle", choices=("shuffle", "sync"))
    parser.add_argument("--out", type=Path, help="folder of checkpoints; goes on from one found")
    args = parser.parse_args()

    use_cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if use_cuda else "gloo")  # torchrun has set the environment
    device = (
        torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_cuda else torch.device("cpu")
    )
    if use_cuda:
        torch.cuda.set_device(device)
    elif args.batch_norm == "sync":
        parser.error("SyncBatchNorm works on GPUs only; use --batch-norm shuffle")
    torch.manual_seed(rank())  # ranks augment differently; DDP starts them from rank 0's weights

    # Data: a sampler gives each process its share of the videos, and all the same number of them.
    if args.data is None:
        args.data = Path.home() / ".cache" / "iivcl" / "moving-shapes-few"
        if rank() == 0:
            make_synthetic_videos(args.data, 96)
        dist.barrier()  # the others wait until the files are there
    crop = augment.RandomResizedCrop(SIZE, scale=(0.5, 1.0))
    colours = augment.rho_moco(SIZE)[2:]
    recipe = ClipRecipe(num_frames=NUM_FRAMES, stride=STRIDE)
    train_set = VideoClips(args.data, recipe, transform=crop)
    sampler = DistributedSampler(train_set, shuffle=True)
    loader = DataLoader(train_set, args.batch_size, sampler=sampler, drop_last=True, num_workers=1)
    if len(loader) == 0:
        parser.error(f"{len(sampler)} videos per process are less than a batch")

    backbone = backbones.slow_resnet(18)
    head = backbones.ProjectionHead(backbone.feature_dim, 512, DIM)
    encoder = nn.Sequential(backbone, head).to(device)
    if args.batch_norm == "sync":
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    model = DistributedDataParallel(encoder)  # gives every process the weights of rank 0
    key_encoder = momentum_copy(model)  # so copy after wrapping
    queue = NNSupportQueue(QUEUE_SIZE, DIM, distributed=args.queue).to(device)
    criterion = IIVCLLoss(batch_negatives=True)
    # The learning rate follows the number of videos per step over all processes.
    lr = LEARNING_RATE * args.batch_size * world_size() / 64
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

    # Queues and the key encoder's running statistics may differ, so every rank keeps its own file.
    parts = {
        "encoder": encoder, "key_encoder": key_encoder, "queue": queue,
        "optimizer": optimizer, "schedule": schedule,
    }  # fmt: skip
    checkpoint = None if args.out is None else args.out / f"rank{rank()}-of-{world_size()}.pt"
    epoch = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        epoch = state.pop("epoch")
        restore_random_state(state.pop("random"), device)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    epochs = all_gather_cat(torch.tensor([epoch], device=device))
    if (epochs != epoch).any():
        raise SystemExit(f"checkpoints of epochs {epochs.tolist()}; were some of them deleted?")

    step = epoch * len(loader)
    while step < args.steps:
        train_set.set_epoch(epoch)  # other clips
        sampler.set_epoch(epoch)  # another order, and another share for each process
        for clips, ids in loader:  # (B, 2, C, T, H, W) uint8 and (B,), of this process
            views, ids = colours(clips.to(device).flatten(0, 1)), ids.to(device)
            query = F.normalize(model(views), dim=1).view(-1, 2, DIM)  # (B, 2, D)
            with torch.no_grad():
                momentum = cosine_momentum(step, args.steps, base=MOMENTUM)
                momentum_update_(key_encoder, model, momentum)
                if args.batch_norm == "shuffle":  # keys are normalised in other company
                    shuffled, permutation = batch_shuffle(views)
                    key = batch_unshuffle(key_encoder(shuffled), permutation)
                else:
                    key = key_encoder(views)
                key = F.normalize(key, dim=1).view(-1, 2, DIM)  # (B, 2, D)
            outs = [criterion(query[:, i], key[:, 1 - i], queue, ids=ids) for i in (0, 1)]
            inter_weight = float(step >= INTER_START * args.steps)
            loss = sum(out.intra + inter_weight * out.inter for out in outs) / 2
            optimizer.zero_grad()
            loss.backward()  # DDP averages the gradient over the processes
            optimizer.step()
            schedule.step()
            queue.enqueue(key.flatten(0, 1), ids.repeat_interleave(2))
            step += 1
            if step % 50 == 0 or step == args.steps:
                report(step, loss.detach())
            if step == args.steps:
                break
        queue.assert_synced()  # a few numbers per epoch; raises when gathered queues differ
        epoch += 1
        if checkpoint is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"epoch": epoch, "random": random_state(device)}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            dist.barrier()  # all are written before any of the last epoch's is replaced
            checkpoint.with_suffix(".tmp").replace(checkpoint)

    # Features of all videos on every rank: what the sampler gave twice counts once.
    recipe = ClipRecipe(num_frames=NUM_FRAMES, stride=STRIDE, sampling="uniform")
    videos = VideoClips(args.data, recipe, transform=augment.evaluation(SIZE))
    share = DataLoader(videos, 16, sampler=DistributedSampler(videos, shuffle=False))
    features = extract_features(backbone, share, device=device, distributed="gather").features
    if rank() == 0:
        print(f"features {tuple(features.shape)} of {len(videos)} videos")
    dist.destroy_process_group()


def report(step: int, loss: torch.Tensor) -> None:
    dist.all_reduce(loss)  # the mean over ranks is the loss of the whole batch
    if rank() == 0:
        print(f"step {step}: loss {loss.item() / world_size():.3f}")


def random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


if __name__ == "__main__":
    main()
