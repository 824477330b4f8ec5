"""Pretrain a video encoder with IIVCL, then find videos of the same class by nearest neighbour.

    python examples/train_minimal.py                     # generated moving shapes, 8 classes
    python examples/train_minimal.py --classes 16        # harder: some classes differ by direction
    python examples/train_minimal.py --data my_videos/   # your own files, in folders of any depth

Copy this file and change it: it is one training loop, read from top to bottom.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.data import ClipRecipe, VideoClips, find_videos, make_synthetic_videos
from iivcl.diagnostics import neighbor_purity
from iivcl.evaluation import extract_features, retrieval_recall
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_

NUM_FRAMES, STRIDE, SIZE = 16, 1, 32  # frames per clip, frames from one to the next, pixels
WIDTH, DIM = 16, 128  # channels of the encoder's first block, numbers of an embedding
QUEUE_SIZE, NUM_NEIGHBORS, TEMPERATURE = 512, 5, 0.1
MOMENTUM = 0.98  # of the key encoder, rising to 1; a longer run wants it nearer to 1
INTER_START = 0.4  # share of the steps before neighbours count: until then they are noise
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 1e-4


class SmallEncoder(nn.Sequential):
    """A small R(2+1)D for small videos; any model of `iivcl.backbones` takes its place."""

    feature_dim = 4 * WIDTH

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 1, 1), (WIDTH, 2, 2), (2 * WIDTH, 4, 2)):
            width = outputs * WIDTH
            space = nn.Conv3d(inputs, width, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False)
            time = nn.Conv3d(width, width, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
            for convolution in (space, time):
                layers += [convolution, nn.BatchNorm3d(width), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of videos; class = parent folder")
    parser.add_argument("--classes", type=int, default=8, help="of the generated set, 2 to 16")
    parser.add_argument("--backbone", default="small", help="or a name in iivcl.backbones")
    parser.add_argument("--steps", type=int, default=210)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write the trained encoder to")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(max(1, torch.get_num_threads() - 2))  # two cores decode

    # Data: one video in four is held out. Classes serve the measurement alone.
    if args.data is None:
        args.data = Path.home() / ".cache" / "iivcl" / f"moving-shapes-{args.classes}"
        make_synthetic_videos(args.data, 110 * args.classes, num_classes=args.classes)
    paths = [Path(path) for path in find_videos(args.data)]
    shuffled = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    paths = [paths[i] for i in shuffled]
    classes = sorted({path.parent for path in paths})
    labels = torch.tensor([classes.index(path.parent) for path in paths])
    test, train = slice(len(paths) // 4), slice(len(paths) // 4, None)
    if len(paths[train]) < args.batch_size:
        parser.error(f"{args.data} holds {len(paths)} videos; give more, or a smaller --batch-size")
    # Crops are drawn in the workers, where files differ in size; colours in batches on the device.
    # No flip: it would turn one motion into another. For real videos see augment.rho_moco.
    crop = augment.RandomResizedCrop(SIZE, scale=(0.7, 1.0))
    jitter = augment.ColorJitter(brightness=0.6, contrast=0.6, saturation=0.8, hue=0.5)
    normalize = augment.Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
    colours = augment.Compose(augment.ToFloat(), jitter, augment.RandomGrayscale(p=0.3), normalize)
    recipe = ClipRecipe(num_frames=NUM_FRAMES, stride=STRIDE)
    train_set = VideoClips(paths[train], recipe, transform=crop, seed=args.seed)
    workers = {"num_workers": 2, "persistent_workers": True}
    loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True, **workers)

    backbone = SmallEncoder() if args.backbone == "small" else getattr(backbones, args.backbone)()
    head = backbones.ProjectionHead(backbone.feature_dim, 256, DIM, num_layers=2, norm="batch")
    encoder = nn.Sequential(backbone, head).to(args.device, memory_format=torch.channels_last_3d)
    key_encoder = momentum_copy(encoder)
    queue = NNSupportQueue(QUEUE_SIZE, DIM).to(args.device)
    loss_fn = IIVCLLoss(num_neighbors=NUM_NEIGHBORS, temperature=TEMPERATURE, batch_negatives=True)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)

    def features(model: nn.Module, num_frames: int) -> Tensor:  # (N, feature_dim)
        middle = augment.Compose(augment.ResizeShortSide(SIZE), augment.CenterCrop(SIZE))
        whole = ClipRecipe(num_frames=num_frames, stride=STRIDE, sampling="uniform")
        batches = DataLoader(VideoClips(paths, whole, transform=middle), 64, **workers)
        model = nn.Sequential(augment.ToFloat(), normalize, model)
        return extract_features(model, tqdm(batches, "features"), device=args.device).features

    def recall(x: Tensor) -> float:  # R@1 of the held-out videos among the training videos
        return retrieval_recall(x[test], labels[test], x[train], labels[train], ks=(1,))[1]

    random_init = recall(features(backbone, NUM_FRAMES))
    step, progress = 0, tqdm(total=args.steps, desc="pretrain")
    while step < args.steps:
        train_set.set_epoch(step // len(loader))
        for clips, ids in loader:  # (B, 2, 3, T, H, W) uint8 and (B,)
            views, ids = colours(clips.to(args.device).flatten(0, 1)), ids.to(args.device)
            query = F.normalize(encoder(views), dim=1).view(-1, 2, DIM)  # (B, 2, D)
            with torch.no_grad():
                momentum = cosine_momentum(step, args.steps, base=MOMENTUM)
                momentum_update_(key_encoder, encoder, momentum)
                key = F.normalize(key_encoder(views), dim=1).view(-1, 2, DIM)  # (B, 2, D)
            outs = [loss_fn(query[:, i], key[:, 1 - i], queue, ids=ids) for i in (0, 1)]
            inter_weight = float(step >= INTER_START * args.steps)
            loss = sum(out.intra + inter_weight * out.inter for out in outs) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            known = labels[train].to(args.device)  # neighbours are rows of the queue as it is now
            purity = neighbor_purity(outs[0].neighbors, known[queue.ids], known[ids]).item()
            queue.enqueue(key.flatten(0, 1), ids.repeat_interleave(2))
            progress.set_postfix(loss=loss.item(), purity=purity, refresh=False)
            progress.update()
            step += 1
            if step == args.steps:
                break
    progress.close()

    if args.out is not None:  # renamed when complete, so that no half file is ever left
        unfinished = args.out.with_name(args.out.name + ".tmp")
        torch.save(encoder.state_dict(), unfinished)
        unfinished.replace(args.out)
    trained = recall(features(backbone, NUM_FRAMES))
    one_frame = features(nn.Flatten(), num_frames=1)  # what is known without seeing motion
    mean_colour = one_frame.view(len(paths), 3, -1).mean(2)
    chance = (labels[test, None] == labels[train]).float().mean()
    print(f"no motion: one frame {recall(one_frame):.3f}, mean colour {recall(mean_colour):.3f}")
    print(f"retrieval R@1: random init {random_init:.3f} -> trained {trained:.3f}", end=" ")
    print(f"(chance {chance:.3f}, {len(paths[test])} videos)")


if __name__ == "__main__":
    main()
