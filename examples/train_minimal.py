"""Pretrain a video encoder with IIVCL, then find videos of the same class by nearest neighbour.

    python examples/train_minimal.py                     # generated moving shapes, 8 classes
    python examples/train_minimal.py --classes 16        # harder: some classes differ by direction
    python examples/train_minimal.py --data my_videos/   # your own files; class = parent folder
    python examples/train_minimal.py --data videos.csv   # a list: path, and label, group, split

Copy this file and change it: it is one training loop, read from top to bottom.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones, data
from iivcl.diagnostics import embedding_std, neighbor_purity
from iivcl.evaluation import extract_features, retrieval_recall
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_


class Setting(NamedTuple):
    """What depends on the videos."""

    steps: int
    stride: int  # frames from one frame of a clip to the next: a clip must show the motion
    size: int  # pixels
    scale: tuple[float, float]  # share of the picture that a crop keeps
    colour: dict[str, float]  # how much each may change
    learning_rate: float


# Shapes differ by motion alone, hence strong colours, and no flip, which would turn one motion
# into another. On real videos a short run with strong changes ends with all videos alike. With a
# GPU and hours: size 112 and the crops and colours of `augment.rho_moco`.
VIVID = {"brightness": 0.6, "contrast": 0.6, "saturation": 0.8, "hue": 0.5}
MILD = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
SHAPES = Setting(210, 1, 32, (0.7, 1.0), VIVID, 3e-3)
REAL = Setting(4800, 2, 40, (0.4, 1.0), MILD, 1e-3)

NUM_FRAMES, WIDTH, DIM = 16, 16, 128  # of a clip; channels of the first block; of an embedding
INTER_START, INTER_WEIGHT, TEMPERATURE = 0.4, 4.0, 0.1  # share of steps before inter; its weight
QUEUE_SIZE, MOMENTUM = 512, 0.98  # of the key encoder, rising to 1; nearer to 1 in a longer run


class SmallEncoder(nn.Sequential):
    """A small R(2+1)D; any model of `iivcl.backbones` takes its place."""

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

    def forward(self, clips: Tensor) -> Tensor:
        """See what changes in (B, 3, T, H, W), and no clothes or walls: (B, feature_dim)."""
        return super().forward(clips.diff(dim=2))


def read_videos(source: Path) -> tuple[data.Manifest, data.Manifest]:
    """List the videos to train on and those held out; no group has videos in both."""
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    if source.is_dir():
        paths = data.find_videos(source)
        if len(paths) < 2:
            raise ValueError(f"at least 2 videos are needed; {source} has {len(paths)}")
        classes, labels = np.unique([str(Path(path).parent) for path in paths], return_inverse=True)
        ids = torch.arange(len(paths))
        videos = data.Manifest(paths, torch.from_numpy(labels), ids, classes.tolist())
    else:
        videos = data.read_manifest(source)  # whose ids are the groups
    if not set(videos.splits) - {"train"}:
        return videos.hold_out(0.25, generator=torch.Generator().manual_seed(0))
    if "train" not in videos.splits:
        raise ValueError(f"{source} has no split 'train', but {sorted(set(videos.splits))}")
    videos = videos._replace(splits=[s if s == "train" else "test" for s in videos.splits])
    return videos.split("train"), videos.split("test")


class SideBySide(nn.ModuleDict):
    """Several models of the same clips."""

    def forward(self, clips: Tensor) -> Tensor:
        """Put their features, (B, D) each, beside each other."""
        features = [model(clips) for model in self.values()]
        self.widths = [part.shape[1] for part in features]
        return torch.cat(features, dim=1)


def main() -> None:
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    add = parser.add_argument
    encoders = ("small", "mc3_18", "r2plus1d_18", "r3d_18", "s3d", "slow_r50", "swin3d_t")
    add("--data", type=Path, help="folder of videos, or a .csv or .jsonl list")
    add("--classes", type=int, default=8, choices=range(2, 17), metavar="2..16", help="generated")
    add("--backbone", default="small", choices=encoders, help="for a CPU: small")
    add("--steps", type=int, help="default: 210; of your own 4800, or 10 epochs")
    add("--batch-size", type=int, default=32, help="videos; of each, two clips")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda")
    add("--seed", type=int, default=0, help="of all that is drawn")
    add("--out", type=Path, help="file to write the trained encoder to")
    args = parser.parse_args()
    if args.out is not None and (args.out.is_dir() or not args.out.parent.is_dir()):
        parser.error(f"--out: not a file in a folder that is there: {args.out}")
    torch.manual_seed(args.seed)
    torch.set_num_threads(max(1, torch.get_num_threads() - 2))  # two cores decode

    # Data: one group of videos in four is held out. Classes serve the measurement alone.
    setting = SHAPES if args.data is None else REAL
    if args.data is None:
        args.data = Path.home() / ".cache" / "iivcl" / f"shapes-{args.classes}"
        print(f"videos: generated once, in {args.data}")
        data.make_synthetic_videos(args.data, 110 * args.classes, num_classes=args.classes)
    try:
        train, test = read_videos(args.data)
    except (OSError, ValueError) as error:
        parser.error(f"--data: {error}")
    if not 1 <= args.batch_size <= len(train.paths):
        parser.error(f"--batch-size must be 1 to {len(train.paths)}, the videos to train on")
    has_classes = len(train.labels.unique()) > 1 and min(train.labels.min(), test.labels.min()) >= 0
    # Crops are drawn in the workers, where files differ in size; colours in batches on the device.
    crop = augment.RandomResizedCrop(setting.size, scale=setting.scale)
    normalize = augment.Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
    jitter = augment.ColorJitter(**setting.colour)
    colours = augment.Compose(augment.ToFloat(), jitter, augment.RandomGrayscale(p=0.3), normalize)
    size, stride = setting.size, setting.stride
    recipe = data.ClipRecipe(num_frames=NUM_FRAMES, stride=stride, short_side=size * 5 // 4)
    sets = [data.VideoClips(train, recipe, transform=crop, on_error="skip", seed=args.seed)]
    workers = {"num_workers": 2, "collate_fn": data.collate_clips, "persistent_workers": True}
    loader = DataLoader(sets[0], args.batch_size, shuffle=True, drop_last=True, **workers)
    steps = max(setting.steps, 10 * len(loader)) if args.steps is None else args.steps
    if steps < 1:
        parser.error(f"--steps must be at least 1; got {steps}")

    backbone = SmallEncoder() if args.backbone == "small" else getattr(backbones, args.backbone)()
    head = backbones.ProjectionHead(backbone.feature_dim, 256, DIM, num_layers=2, norm="batch")
    encoder = nn.Sequential(backbone, head).to(args.device, memory_format=torch.channels_last_3d)
    key_encoder, untrained = momentum_copy(encoder), momentum_copy(backbone)
    queue = NNSupportQueue(QUEUE_SIZE, DIM).to(args.device)
    loss_fn = IIVCLLoss(temperature=TEMPERATURE, batch_negatives=True)
    weight = INTER_WEIGHT if args.backbone == "small" else 1.0  # more where changes are seen
    optimizer = torch.optim.AdamW(encoder.parameters(), setting.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    row_labels = torch.full_like(queue.ids, -1)  # of the queue, for purity alone
    step, progress = 0, tqdm(total=steps, desc="pretrain")
    while step < steps:
        sets[0].set_epoch(step // len(loader))
        for clips, _, labels, ids in loader:  # (B, 2, 3, T, H, W) uint8, and (B,)
            labels, ids = labels.to(args.device), ids.to(args.device)
            views = colours(clips.to(args.device).flatten(0, 1))
            query = F.normalize(encoder(views), dim=1).view(-1, 2, DIM)  # (B, 2, D)
            with torch.no_grad():
                momentum_update_(key_encoder, encoder, cosine_momentum(step, steps, base=MOMENTUM))
                key = F.normalize(key_encoder(views), dim=1).view(-1, 2, DIM)  # (B, 2, D)
            outs = [loss_fn(query[:, i], key[:, 1 - i], queue, ids=ids) for i in (0, 1)]
            inter_weight = weight * (step >= INTER_START * steps)
            loss = sum(out.intra + inter_weight * out.inter for out in outs) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            spread = embedding_std(query[:, 0]).item()  # 0: all are alike; at best 1 / sqrt(DIM)
            near, shown = outs[0].neighbors, {"loss": loss.item(), "std": spread}
            purity = neighbor_purity(near, row_labels, labels)
            similarity = near.similarity[near.valid].mean()
            shown |= {"purity": purity.item()} if has_classes else {"similarity": similarity.item()}
            rows = (queue.cursor + torch.arange(2 * len(ids), device=args.device)) % QUEUE_SIZE
            row_labels[rows] = labels.repeat_interleave(2)
            queue.enqueue(key.flatten(0, 1), ids.repeat_interleave(2))
            progress.set_postfix(shown, refresh=False)
            progress.update()
            if (step := step + 1) == steps:
                break
    progress.close()
    if args.out is not None:  # renamed when complete, so that no half file is ever left
        unfinished = args.out.with_name(args.out.name + ".tmp")
        torch.save(encoder.state_dict(), unfinished)
        unfinished.replace(args.out)
        print(f"encoder: {args.out}")
    if has_classes:  # R@1: has the nearest training video the class of the held-out one?
        frame = nn.AvgPool3d(1, stride=(NUM_FRAMES, 1, 1))  # the first: nothing moves
        colour = nn.Sequential(frame, nn.AdaptiveAvgPool3d(1))
        models = {"random init": untrained, "trained": backbone, "frame": frame, "colour": colour}
        models = SideBySide({name: nn.Sequential(m, nn.Flatten()) for name, m in models.items()})
        middle = augment.Compose(augment.ResizeShortSide(size), augment.CenterCrop(size))
        found = []
        for part, videos in (("held out", test), ("gallery", train)):
            whole = replace(recipe, sampling="uniform")
            sets.append(data.VideoClips(videos, whole, transform=middle, on_error="skip"))
            batches = tqdm(DataLoader(sets[-1], 64, **workers), part)
            model = nn.Sequential(augment.ToFloat(), normalize, models)
            found.append(extract_features(model, batches, device=args.device))
        (query, _, labels), (gallery, _, gallery_labels) = found
        pairs = zip(*(side.split(models.widths, dim=1) for side in (query, gallery)), strict=True)
        r1 = [retrieval_recall(q, labels, g, gallery_labels, ks=(1,))[1] for q, g in pairs]
        random_init, trained, one_frame, mean_colour = r1
        chance = (test.labels[:, None] == train.labels).float().mean()
        print(f"no motion: one frame {one_frame:.3f}, mean colour {mean_colour:.3f}")
        print(f"retrieval R@1: random init {random_init:.3f} -> trained {trained:.3f}", end=" ")
        print(f"(chance {chance:.3f}, {len(labels)} videos)")
    learned = has_classes and trained >= random_init + 0.05
    if not learned and spread < 0.4 * DIM**-0.5:
        print(f"It did not learn: all embeddings are alike (std {spread:.3f} of {DIM**-0.5:.3f}).")
        print("At the top of this file, set more steps, a lower learning rate, or milder changes.")
    elif not learned and has_classes:
        print("It did not learn your classes. At the top of this file, set more steps, a stride at")
        print("which a clip shows a whole motion, or a larger size; near-duplicates in one group.")
    if unreadable := {f.path: f.cause for part in sets for f in part.failures()}:
        print(f"Left out, since they could not be read: {len(unreadable)} videos, such as")
        print(*list(unreadable.values())[:5], sep="\n")


if __name__ == "__main__":
    main()
