"""Pictures of what `evaluate.py` found: queries with their nearest, and maps of features."""

from __future__ import annotations

import colorsys
from pathlib import Path

import torch
import torch.nn.functional as F
from _resume import say
from _watch import FRAMES, PIXELS, thumbnails
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.utils import make_grid

from iivcl.data import Manifest

MOST_QUERIES, MOST_POINTS = 256, 2000  # looked at, spread evenly over all
SHOWN, NEAREST = 4, 3  # hits, as many misses, and neighbours of each
SAME, OTHER, TEXT = "#1a7f37", "#d1570a", "#1f2328"


def draw_pictures(
    folder: Path,
    features: Tensor,
    places: Tensor,
    videos: Manifest,
    is_query: Tensor | None,
    center: bool,
) -> None:
    """Draw hits and misses, components and t-SNE of features (N, D) of the videos at (N,)."""
    labels = videos.labels[places]
    side = torch.ones(len(places), dtype=torch.bool) if is_query is None else is_query[places]
    query, gallery = side.nonzero().flatten(), (~side).nonzero().flatten()
    is_one_left_out = len(gallery) == 0
    gallery = query if is_one_left_out else gallery
    query = spread(query, MOST_QUERIES)
    unit = torch.zeros_like(features)
    for rows in (gallery, side.nonzero().flatten()):  # each side by its own mean
        unit[rows] = F.normalize(features[rows] - center * features[rows].mean(0), dim=1)
    cosine = unit[query] @ unit[gallery].T  # (Q, M)
    cosine.masked_fill_(query[:, None] == gallery, -1.0)
    cosine, nearest = cosine.topk(min(NEAREST, len(gallery) - is_one_left_out), dim=1)
    found = gallery[nearest]  # (Q, k)
    hit = labels[found[:, 0]] == labels[query]
    # Evenly: in a row, they would all be of one class.
    chosen = [spread(rows.nonzero().flatten(), SHOWN) for rows in (hit, ~hit)]
    names = videos.classes or [str(n) for n in range(int(labels.max()) + 1)]

    width, height = FRAMES * PIXELS + 8, PIXELS + 20
    shape = (8 + (1 + found.shape[1]) * width, 8 + sum(map(len, chosen)) * height)
    sheet = Image.new("RGB", shape, "white")
    draw = ImageDraw.Draw(sheet)
    for line, row in enumerate(torch.cat(chosen).tolist()):
        own = int(query[row])
        for column, video in enumerate([own, *found[row].tolist()]):
            x, y, name = 8 + column * width, 8 + line * height, names[labels[video]]
            strip = make_grid(list(thumbnails(videos.paths[places[video]])), FRAMES, padding=0)
            sheet.paste(Image.fromarray(strip.permute(1, 2, 0).numpy()), (x, y))
            text, colour = name, TEXT
            if column:
                text = f"{cosine[row, column - 1]:.3f} {name}"
                colour = SAME if labels[video] == labels[own] else OTHER
                draw.rectangle((x, y, x + FRAMES * PIXELS - 1, y + PIXELS - 1), None, colour, 3)
            draw.text((x, y + PIXELS + 3), text[: width // 6 - 1], fill=colour)
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / "neighbors.png")
    rows = spread(torch.arange(len(features)), MOST_POINTS)
    unit = F.normalize(features[rows], dim=1)
    draw_map(*components(unit), labels[rows], names).save(folder / "features.png")
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        say("no t-SNE: pip install scikit-learn")
        return
    perplexity = min(30.0, (len(unit) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(unit.numpy())
    text = f"t-SNE of perplexity {perplexity:.0f}: near is alike, far says nothing"
    draw_map(torch.from_numpy(places), text, labels[rows], names).save(folder / "tsne.png")


def components(unit: Tensor) -> tuple[Tensor, str]:
    """Give the two principal components (N, 2) of rows (N, D), and say what they are."""
    axes, extents, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    points = (axes * extents)[:, :2]
    share = (extents[:2].square().sum() / extents.square().sum().clamp(min=1e-12)).item()
    text = f"two principal components, {share:.0%} of the variance"
    return F.pad(points, (0, 2 - points.shape[1])), text


def draw_map(
    points: Tensor, text: str, labels: Tensor, names: list[str], pixels: int = 560
) -> Image.Image:
    """Draw points (N, 2) in the colours of their classes, with a line of text."""
    points = points - points.mean(0)
    # One scale for both, so that distances on the map are distances.
    points = 0.5 + points / (2.1 * points.abs().max().clamp(min=1e-12))
    classes = labels.unique().tolist()
    hues = {c: i / len(classes) for i, c in enumerate(classes)}
    colours = {c: colorsys.hsv_to_rgb(hue, 0.85, 0.75) for c, hue in hues.items()}
    of = {c: tuple(round(255 * part) for part in colour) for c, colour in colours.items()}
    picture = Image.new("RGB", (pixels + 180, pixels + 20), "white")
    draw = ImageDraw.Draw(picture)
    for (x, y), label in zip((pixels * points).tolist(), labels.tolist(), strict=True):
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=of[label], outline="white")
    for line, label in enumerate(classes[: pixels // 14]):
        draw.text((pixels + 4, 4 + 14 * line), names[label][:28], fill=of[label])
    draw.text((4, pixels + 4), text, fill=TEXT)
    return picture


def spread(rows: Tensor, most: int) -> Tensor:
    """Take at most so many rows, evenly."""
    return rows[:: -(-len(rows) // most)] if len(rows) else rows
