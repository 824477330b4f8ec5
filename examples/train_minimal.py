"""Pretrain a video encoder with IIVCL, then find videos of the same class by nearest neighbour.

    python examples/train_minimal.py                     # generated moving shapes, 8 classes
    python examples/train_minimal.py --classes 16        # harder: some classes differ by direction
    python examples/train_minimal.py --data my_videos/   # your own files, in folders of any depth

Copy this file and change it: it is one training loop, read from top to bottom.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.data import VideoClips, make_synthetic_videos
from iivcl.data._manifest import find_videos
from iivcl.diagnostics import neighbor_purity
from iivcl.evaluation import extract_features, retrieval_recall
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_

NUM_FRAMES, STRIDE, SIZE = 16, 1, 32  # frames per clip, frames from one to the next, pixels
WIDTH, DIM = 16, 128  # channels of the encoder's first block, numbers of an embedding
QUEUE_SIZE, NUM_NEIGHBORS, TEMPERATURE = 512, 5, 0.1
MOMENTUM = 0.98  # of the key encoder, rising to 1; a longer run wants it nearer to 1
INTER_START = 0.4  # share of the steps before neighbours count: until then they are noise
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-4


class SmallEncoder(nn.Sequential):
    """A small R(2+1)D for small videos; any model of `iivcl.backbones` takes its place."""

    def __init__(self) -> None:
        def block(inputs: int, outputs: int, time_stride: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv3d(inputs, outputs, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
                nn.BatchNorm3d(outputs),
                nn.ReLU(inplace=True),
                nn.Conv3d(outputs, outputs, (3, 1, 1), (time_stride, 1, 1), (1, 0, 0), bias=False),
                nn.BatchNorm3d(outputs),
                nn.ReLU(inplace=True),
            )

        blocks = [block(3, WIDTH, 1), block(WIDTH, 2 * WIDTH, 2), block(2 * WIDTH, 4 * WIDTH, 2)]
        super().__init__(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.feature_dim = 4 * WIDTH


class Features(nn.Module):
    """The encoder's features beside two that know no motion: one frame, and the mean colour."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, clips: Tensor) -> Tensor:  # (B, 3, T, H, W)
        one_frame, mean_colour = clips[:, :, NUM_FRAMES // 2].flatten(1), clips.mean((2, 3, 4))
        return torch.cat([self.backbone(clips), one_frame, mean_colour], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of videos; class = parent folder")
    parser.add_argument("--classes", type=int, default=8, help="of the generated set, 2 to 16")
    parser.add_argument("--backbone", default="small", help="or a name in iivcl.backbones")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the trained encoder to")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    # Data: one video in four is held out. Classes serve the measurements alone.
    if args.data is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        args.data = cache / "iivcl" / f"moving-shapes-{args.classes}"
        make_synthetic_videos(args.data, 110 * args.classes, num_classes=args.classes)
    paths = [Path(path) for path in find_videos(args.data)]
    classes = sorted({path.parent for path in paths})
    shuffled = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    paths = [paths[i] for i in shuffled]
    labels = torch.tensor([classes.index(path.parent) for path in paths])
    test, train = slice(len(paths) // 4), slice(len(paths) // 4, None)

    # Crops are drawn in the workers, where files differ in size; colours in one batch on the device.
    # No flip, which would turn one motion into another. Real videos: augment.rho_moco(SIZE).
    crop = augment.RandomResizedCrop(SIZE, scale=(0.6, 1.0))
    colours = augment.Compose(
        augment.ToFloat(),
        augment.ColorJitter(brightness=0.6, contrast=0.6, saturation=0.8, hue=0.5),
        augment.RandomGrayscale(p=0.3),
        augment.Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225)),
    )
    clip = {"num_frames": NUM_FRAMES, "stride": STRIDE}
    train_set = VideoClips(paths[train], **clip, transform=crop, seed=args.seed)
    workers = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
    loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True, **workers)
    if len(loader) == 0:
        parser.error(f"--batch-size is {args.batch_size}, but only {len(train_set)} videos train")

    # Model.
    backbone = SmallEncoder() if args.backbone == "small" else getattr(backbones, args.backbone)()
    head = backbones.ProjectionHead(backbone.feature_dim, 256, DIM, num_layers=2, norm="batch")
    encoder = nn.Sequential(backbone, head).to(args.device)
    key_encoder = momentum_copy(encoder)
    queue = NNSupportQueue(QUEUE_SIZE, DIM).to(args.device)
    criterion = IIVCLLoss(
        num_neighbors=NUM_NEIGHBORS, temperature=TEMPERATURE, batch_negatives=True
    )
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

    def retrieval() -> list[float]:
        """R@1 of the held-out videos among the training videos, for each kind of feature."""
        middle = augment.Compose(augment.ResizeShortSide(SIZE), augment.CenterCrop(SIZE))
        videos = VideoClips(paths, **clip, sampling="uniform", transform=middle)
        batches = tqdm(DataLoader(videos, 64, num_workers=args.workers), "features")
        model = nn.Sequential(augment.ToFloat(), colours[-1], Features(backbone))
        features = extract_features(model, batches, device=args.device).features
        kinds = features.split([backbone.feature_dim, 3 * SIZE * SIZE, 3], dim=1)
        return [
            retrieval_recall(x[test], labels[test], x[train], labels[train], ks=(1,))[1]
            for x in kinds
        ]

    random_init, one_frame, mean_colour = retrieval()

    # Pretraining.
    step, progress = 0, tqdm(total=args.steps, desc="pretrain")
    while step < args.steps:
        train_set.set_epoch(step // len(loader))
        for clips, ids in loader:  # (B, 2, 3, T, H, W) uint8 and (B,)
            clips, ids = clips.to(args.device), ids.to(args.device)
            query = F.normalize(encoder(colours(clips[:, 0])), dim=1)  # (B, D)
            with torch.no_grad():
                momentum = cosine_momentum(step, args.steps, base=MOMENTUM)
                momentum_update_(key_encoder, encoder, momentum)
                key = F.normalize(key_encoder(colours(clips[:, 1])), dim=1)  # (B, D)
            out = criterion(query, key, queue, ids=ids)
            loss = out.intra + (step >= INTER_START * args.steps) * out.inter
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            queue.enqueue(key, ids)
            step += 1
            progress.update()
            if step % 20 == 0:
                train_labels = labels[train].to(args.device)
                purity = neighbor_purity(out.neighbors, train_labels[queue.ids], train_labels[ids])
                progress.set_postfix(intra=out.intra.item(), inter=out.inter.item(), purity=purity.item())
            if step == args.steps:
                break
    progress.close()

    if args.out is not None:  # under a temporary name first, so that no half file is ever left
        torch.save(encoder.state_dict(), args.out.with_name(args.out.name + ".tmp"))
        args.out.with_name(args.out.name + ".tmp").replace(args.out)
    trained, *_ = retrieval()
    chance = labels.bincount().max().item() / len(labels)
    print(f"neighbour purity {purity.item():.3f}; without motion: one frame {one_frame:.3f}, mean colour {mean_colour:.3f}")
    print(
        f"retrieval R@1: random init {random_init:.3f} -> trained {trained:.3f} "
        f"(chance {chance:.3f}, {len(labels[test])} videos)"
    )


if __name__ == "__main__":
    main()
