"""Draw the videos that a trained encoder finds nearest to held-out ones, as strips of frames.

    python examples/train_minimal.py --out encoder.pt
    python examples/show_neighbors.py encoder.pt neighbors.png

A queue is filled with the training videos of `train_minimal.py`; its queries are the first held-out
video of every class. Green marks a neighbour of the query's class, orange one of another class.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from train_minimal import DIM, NUM_FRAMES, SIZE, SmallEncoder

from iivcl import NNSupportQueue, augment, backbones
from iivcl.data import ClipRecipe, VideoClips, find_videos, make_synthetic_videos
from iivcl.diagnostics import neighbor_purity
from iivcl.evaluation import extract_features

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of a canvas without a screen

NUM_NEIGHBORS, FRAMES_SHOWN = 3, (0, 3, 6, 9)  # a motion is seen over a good half of the clip
BACKGROUND, TEXT, SAME, OTHER = "#2b2f38", "#e8e8e8", "#3fb950", "#f0883e"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", type=Path, help="written by train_minimal.py --out")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--data", type=Path, help="as for train_minimal.py")
    args = parser.parse_args()
    if args.data is None:
        args.data = Path.home() / ".cache" / "iivcl" / "moving-shapes-8"
        make_synthetic_videos(args.data, 880)

    # The same videos held out as in train_minimal.py.
    paths = [Path(path) for path in find_videos(args.data)]
    shuffled = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    paths = [paths[i] for i in shuffled]
    classes = sorted({path.parent.name for path in paths})
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    num_test = len(paths) // 4
    firsts = [(labels[:num_test] == c).nonzero()[0].item() for c in labels[:num_test].unique()]

    backbone = SmallEncoder()
    head = backbones.ProjectionHead(backbone.feature_dim, 256, DIM, num_layers=2, norm="batch")
    encoder = nn.Sequential(backbone, head)
    encoder.load_state_dict(torch.load(args.encoder, weights_only=True))

    middle = augment.Compose(augment.ResizeShortSide(SIZE), augment.CenterCrop(SIZE))
    recipe = ClipRecipe(num_frames=NUM_FRAMES, stride=1, sampling="uniform")
    videos = VideoClips(paths, recipe, transform=middle)
    normalize = augment.Normalize(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
    model = nn.Sequential(augment.ToFloat(), normalize, encoder)
    embeddings = extract_features(model, DataLoader(videos, 64, num_workers=2), device="cpu")[0]

    ids = torch.arange(len(paths))
    queue = NNSupportQueue(len(paths) - num_test, DIM)
    queue.enqueue(embeddings[num_test:], ids[num_test:])
    found = queue.nearest(embeddings[firsts], NUM_NEIGHBORS, ids=ids[firsts])  # (B, k)
    everywhere = queue.nearest(embeddings[:num_test], NUM_NEIGHBORS, ids=ids[:num_test])
    purity = neighbor_purity(everywhere, labels[queue.ids], labels[:num_test])
    print(f"purity of {NUM_NEIGHBORS} neighbours of all {num_test} held-out videos: {purity:.3f}")

    clips = VideoClips(paths, replace(recipe, clips_per_video=1))
    rows = [
        [(query, 1.0), *zip(queue.ids[indices].tolist(), similarity.tolist(), strict=True)]
        for query, indices, similarity in zip(firsts, found.indices, found.similarity, strict=True)
    ]
    figure = draw(rows, labels, [name.replace("_", " ") for name in classes], clips)
    colours = Image.Quantize.MAXCOVERAGE  # a palette makes the file three times smaller
    picture = Image.fromarray(figure).quantize(256, colours, kmeans=2, dither=Image.Dither.NONE)
    picture.save(args.picture, optimize=True)


def draw(
    rows: list[list[tuple[int, float]]], labels: Tensor, classes: list[str], clips: VideoClips
) -> np.ndarray:
    """Draw one row per query: its strip, then those of its neighbours with their cosine."""
    size = (3.2 * len(rows[0]) + 1.2, 1.05 * len(rows) + 0.5)
    figure, axes = plt.subplots(len(rows), len(rows[0]), figsize=size, dpi=100, squeeze=False)
    figure.set_facecolor(BACKGROUND)
    for row, videos in zip(axes, rows, strict=True):
        query_label = labels[videos[0][0]]
        for place, (axis, (video, similarity)) in enumerate(zip(row, videos, strict=True)):
            frames = clips[video][0][0, :, list(FRAMES_SHOWN)]  # (C, frames, H, W)
            strip = frames.permute(2, 1, 3, 0).flatten(1, 2)  # (H, frames x W, C)
            axis.imshow(strip, interpolation="nearest")
            for n in range(1, frames.shape[1]):
                axis.axvline(n * frames.shape[3] - 0.5, color=BACKGROUND, linewidth=2)
            axis.set(xticks=[], yticks=[])
            colour = TEXT if place == 0 else SAME if labels[video] == query_label else OTHER
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=0 if place == 0 else 2.5)
            if place > 0:
                name = "" if labels[video] == query_label else f", {classes[labels[video]]}"
                axis.set_xlabel(f"{similarity:.2f}{name}", color=colour, fontsize=13, labelpad=3)
        row[0].set_ylabel(
            classes[query_label], color=TEXT, fontsize=16, rotation=0, ha="right", va="center"
        )
    titles = ["held-out video", "nearest", "second", "third"]
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, color=TEXT, fontsize=17, pad=9)
    figure.subplots_adjust(0.125, 0.04, 0.99, 0.94, wspace=0.04, hspace=0.44)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


if __name__ == "__main__":
    main()
