"""Draw the videos that a trained encoder finds nearest to held-out ones, as strips of frames.

    python examples/train_minimal.py --out encoder.pt
    python examples/show_neighbors.py encoder.pt neighbors.png

A queue is filled with the training videos of `train_minimal.py`; its queries are the first held-out
video of every class. Compared are features of the encoder before its head, minus their mean: the
mean is common to all and would make every cosine nearly 1. Green marks a neighbour of the query's
class, orange one of another class.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from train_minimal import DIM, NUM_FRAMES, REAL, SHAPES, Setting, SmallEncoder, read_videos

from iivcl import NNSupportQueue, augment, backbones, data
from iivcl.diagnostics import neighbor_purity
from iivcl.evaluation import extract_features

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a canvas without a screen

NUM_NEIGHBORS, MOST_ROWS, PIXELS = 3, 12, 96
FRAMES_SHOWN = (0, 3, 6, 9)  # a motion is seen over a good half of the clip
BACKGROUND, TEXT, SAME, OTHER = "#2b2f38", "#e8e8e8", "#3fb950", "#f0883e"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", type=Path, help="written by train_minimal.py --out")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--data", type=Path, help="as for train_minimal.py")
    args = parser.parse_args()
    if args.picture.suffix.lower() != ".png":
        parser.error(f"the picture must be a .png file; got {args.picture}")
    if not args.picture.parent.is_dir():
        parser.error(f"no such folder: {args.picture.parent}")
    setting = SHAPES if args.data is None else REAL
    backbone = SmallEncoder()
    head = backbones.ProjectionHead(backbone.feature_dim, 256, DIM, num_layers=2, norm="batch")
    try:
        state = torch.load(args.encoder, weights_only=True)
        nn.Sequential(backbone, head).load_state_dict(state)
        if args.data is None:
            args.data = Path.home() / ".cache" / "iivcl" / "shapes-8"
            data.make_synthetic_videos(args.data, 880)
        train, test = read_videos(args.data)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except Exception:  # of torch.load, which has many for what is no checkpoint, and of the keys
        parser.error(f"{args.encoder} does not hold the small encoder of train_minimal.py")

    try:
        rows, purity = nearest(backbone, train, test, setting)
        print(f"purity of {NUM_NEIGHBORS} neighbours of all held-out videos: {purity:.3f}")
        figure = draw(rows[:MOST_ROWS], test.classes, setting.stride)
        colours = Image.Quantize.MAXCOVERAGE  # a palette makes the file three times smaller
        picture = Image.fromarray(figure).quantize(256, colours, kmeans=2, dither=Image.Dither.NONE)
        picture.save(args.picture, optimize=True)
    except (OSError, ValueError, data.DecodeError) as error:
        parser.error(str(error).strip().rpartition("DecodeError: ")[2])  # after a stack
    print(f"picture: {args.picture}")


class Hit(NamedTuple):
    """A video of a row of the picture."""

    path: str
    label: int
    cosine: float  # to the first of its row


def nearest(
    backbone: nn.Module, train: data.Manifest, test: data.Manifest, setting: Setting
) -> tuple[list[list[Hit]], float]:
    """Find neighbours of the first held-out video of every class; and the purity over all.

    Raises:
        ValueError: Too few videos can be read, or none of those held out has a class.
    """
    recipe = data.ClipRecipe(num_frames=NUM_FRAMES, stride=setting.stride, sampling="uniform")
    normalize = augment.Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
    model, sides = nn.Sequential(augment.ToFloat(), normalize, backbone), []
    for videos in (test, train):
        clips = data.VideoClips(videos, recipe, transform=middle(setting.size), on_error="skip")
        loader = DataLoader(clips, 64, num_workers=2, collate_fn=data.collate_clips)
        sides.append(extract_features(model, loader, device="cpu"))
    (queries, test_videos, labels), (bank, train_videos, bank_labels) = sides
    known = labels[labels >= 0].unique()
    if len(bank) < NUM_NEIGHBORS or len(known) == 0:
        needed = f"{NUM_NEIGHBORS} training videos and a held-out one with a class"
        found = f"{len(bank)} and {int((labels >= 0).sum())}"
        raise ValueError(f"--data must have {needed} that can be read; got {found}")
    queries, bank = queries - bank.mean(0), bank - bank.mean(0)

    queue = NNSupportQueue(len(bank), bank.shape[1])
    queue.enqueue(bank, torch.arange(len(bank)))  # which no query has as its id
    found = queue.nearest(queries, NUM_NEIGHBORS, ids=torch.full((len(queries),), -1))  # (B, k)
    rows = []
    for label in known:
        first = (labels == label).nonzero()[0].item()
        rows.append([Hit(test.paths[test_videos[first]], label.item(), 1.0)])
        ids = queue.ids[found.indices[first]]
        for place, cosine in zip(ids, found.similarity[first].tolist(), strict=True):
            path, its_label = train.paths[train_videos[place]], bank_labels[place].item()
            rows[-1].append(Hit(path, its_label, cosine))
    return rows, neighbor_purity(found, bank_labels[queue.ids], labels).item()


def middle(pixels: int) -> augment.Compose:
    return augment.Compose(augment.ResizeShortSide(pixels), augment.CenterCrop(pixels))


def draw(rows: list[list[Hit]], classes: list[str], stride: int) -> np.ndarray:
    """Draw one row per query: its strip, then those of its neighbours with their cosine."""
    names = [Path(name).name.replace("_", " ") for name in classes]

    def name_of(label: int) -> str:
        return "unknown" if label < 0 else names[label] if names else str(label)

    paths = [hit.path for row in rows for hit in row]
    recipe = data.ClipRecipe(
        num_frames=NUM_FRAMES, stride=stride, clips_per_video=1, sampling="uniform"
    )
    clips = iter(data.VideoClips(paths, recipe, transform=middle(PIXELS)))
    size = (3.3 * len(rows[0]) + 1.4, 1.15 * len(rows) + 0.4)
    figure, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=size, dpi=100, squeeze=False, layout="constrained"
    )
    figure.set_facecolor(BACKGROUND)
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.03, wspace=0.005, hspace=0.0)
    for row, hits in zip(axes, rows, strict=True):
        query_label = hits[0].label
        for place, (axis, (_, label, cosine)) in enumerate(zip(row, hits, strict=True)):
            frames = next(clips)[0][0, :, list(FRAMES_SHOWN)]  # (C, frames, H, W)
            strip = frames.permute(2, 1, 3, 0).flatten(1, 2)  # (H, frames x W, C)
            axis.imshow(strip.numpy(), interpolation="nearest")
            for n in range(1, len(FRAMES_SHOWN)):
                axis.axvline(n * PIXELS - 0.5, color=BACKGROUND, linewidth=2)
            axis.set(xticks=[], yticks=[])
            colour = TEXT if place == 0 else SAME if label == query_label else OTHER
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=0 if place == 0 else 2.5)
            if place > 0:
                other = "" if label == query_label else f", {name_of(label)}"
                axis.set_xlabel(f"{cosine:.3f}{other}", color=colour, fontsize=13, labelpad=3)
        name = name_of(query_label)
        row[0].set_ylabel(name, color=TEXT, fontsize=16, rotation=0, ha="right", va="center")
    titles = ["held-out video", "nearest", "second", "third"]
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, color=TEXT, fontsize=17, pad=9)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


if __name__ == "__main__":
    main()
