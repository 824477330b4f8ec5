"""Draw the pictures of the home page and the gallery.

python examples/train_minimal.py --out encoder.pt 2>&1 | tee bar.txt
python docs/_gallery.py encoder.pt bar.txt
"""

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from iivcl.data import make_synthetic_videos, probe, read_clips

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests")]
from headless import find_browser, prefer, resize, start_browser  # noqa: E402
from show_neighbors import BACKGROUND, OTHER, SAME, TEXT, draw, nearest  # noqa: E402
from train_minimal import SHAPES, SmallEncoder, read_videos  # noqa: E402

from matplotlib import pyplot as plt  # noqa: E402, isort: skip

ASSETS = ROOT / "docs" / "assets"
SHOWN = ("circle", "up_down", "spin", "diagonal", "figure_eight")  # in the moving picture


def main() -> None:
    matplotlib.use("Agg")
    encoder, bar = map(Path, sys.argv[1:])
    videos = Path.home() / ".cache" / "iivcl" / "shapes-8"
    train, test = read_videos(videos)
    torch.manual_seed(0)
    backbone = SmallEncoder()  # as train_minimal.py starts
    for name in ("before", "neighbors"):
        if name == "neighbors":
            state = torch.load(encoder, weights_only=True)
            backbone.load_state_dict({k[2:]: v for k, v in state.items() if k.startswith("0.")})
        rows, purity = nearest(backbone, train, test, SHAPES)
        print(f"{name}: purity {purity:.3f}")
        picture = Image.fromarray(draw(rows, test.classes, SHAPES.stride))
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
            ASSETS / f"{name}.png", optimize=True
        )
    moving(rows, [Path(name).name for name in test.classes])
    curve(bar.read_text())
    search_page(encoder, videos)
    with tempfile.TemporaryDirectory() as folder:
        for kind, size in (("shapes", 64), ("figures", 128)):
            paths = make_synthetic_videos(f"{folder}/{kind}", 8, kind=kind, size=size)
            sheet(paths, ASSETS / f"{kind}.webp")


def frames_of(path: str | Path) -> np.ndarray:  # (T, H, W, C)
    clip = read_clips(path, torch.arange(probe(path).num_frames)[None])[0]
    return clip.permute(1, 2, 3, 0).numpy()


def moving(rows: list, classes: list[str], tile: int = 96, margin: int = 104) -> None:
    """Write the loop of the home page: a query of a class in each row, then its neighbours."""
    rows = [row for name in SHOWN for row in rows if classes[row[0].label] == name]
    font = ImageFont.load_default(17)
    loop = []
    videos = [[frames_of(hit.path) for hit in row] for row in rows]
    for t in range(len(videos[0][0])):
        width = margin + tile * len(rows[0]) + 12
        page = Image.new("RGB", (width, (tile + 6) * len(rows) + 6), BACKGROUND)
        pen = ImageDraw.Draw(page)
        for y, (row, clips) in enumerate(zip(rows, videos, strict=True)):
            top = 6 + (tile + 6) * y
            name = classes[row[0].label].replace("_", "\n")
            pen.multiline_text((margin - 10, top + tile / 2), name, TEXT, font, "rm", align="right")
            for x, (hit, clip) in enumerate(zip(row, clips, strict=True)):
                left = margin + tile * x + (12 if x else 0)  # the neighbours stand apart
                picture = Image.fromarray(clip[t]).resize((tile - 10, tile - 10))
                colour = TEXT if x == 0 else SAME if hit.label == row[0].label else OTHER
                pen.rectangle((left, top, left + tile - 4, top + tile - 4), colour)
                page.paste(picture, (left + 3, top + 3))
        loop.append(page)
    first, *rest = loop
    first.save(
        ASSETS / "neighbors.webp",
        save_all=True,
        append_images=rest,
        duration=83,
        loop=0,
        quality=70,
    )


def curve(bar: str) -> None:
    """Draw purity and spread over the steps, as the bar showed them."""
    shown = re.findall(r" (\d+)/\d+ .*?std=([\d.]+), purity=([\d.]+)", bar)
    steps, spread, purity = np.array(
        sorted({int(s): (int(s), float(d), float(p)) for s, d, p in shown}.values())
    ).T
    smooth = np.convolve(purity, np.ones(9) / 9, mode="valid")
    plt.rcParams |= {
        "svg.hashsalt": "iivcl",
        "svg.fonttype": "none",
        "text.color": "#888",
        "font.size": 13,
    }
    figure, axis = plt.subplots(figsize=(5.2, 2.4), layout="constrained")
    axis.plot(steps, purity, color="#2f6fd8", alpha=0.25, linewidth=1)
    axis.plot(steps[4:-4], smooth, color="#2f6fd8", linewidth=2.5)
    axis.axhline(1 / 8, color="#888", linestyle=":")
    axis.text(steps[-1], 1 / 8 + 0.02, "chance", ha="right")
    axis.set(xlabel="step", ylabel="purity", ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    for part in (axis.xaxis.label, axis.yaxis.label, *axis.spines.values()):
        part.set_color("#888")
    axis.tick_params(colors="#888")
    figure.savefig(ASSETS / "purity.svg", transparent=True, metadata={"Date": None})
    print(f"std at the end: {spread[-1]:.3f}")


def search_page(encoder: Path, videos: Path, width: int = 1000, height: int = 1290) -> None:
    """Photograph the page of ``search_videos.py``: a hundred videos, and one of them twice."""
    with tempfile.TemporaryDirectory() as folder:
        root, query = Path(folder, "videos"), sorted(videos.glob("spin/*.mp4"))[0]
        for path in [query, *sorted(videos.glob("*/*.mp4"))[::9]]:
            (root / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path.relative_to(videos))
        shutil.copy(query, root / "copy of a spin.mp4")
        script = ROOT / "examples" / "search_videos.py"
        options = ("--query", query, "--top", "8", "--stride", "1", "--size", "32", "--out", folder)
        subprocess.run([sys.executable, script, encoder, root, *options], check=True)
        page = Path(folder, "search.html")
        text = page.read_text().replace(f">{root}/", ">").replace(f">{videos}/", ">")
        page.write_text(text)
        with start_browser(find_browser(), Path(folder, "profile")) as browser:
            browser.get(page.as_uri())
            resize(browser, (width, height))
            for scheme in ("light", "dark"):
                prefer(browser, scheme)
                shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
                shot = shot.crop((0, 0, width - 16, height))  # without the bar that scrolls
                shot.save(ASSETS / f"search-{scheme}.webp", quality=70, method=6)


def sheet(paths: list[Path], to: Path, columns: int = 8) -> None:
    """Write one row of frames per video."""
    rows = []
    for path in paths:
        clip = frames_of(path)[np.linspace(0, 20, columns).astype(int)]
        clip = np.pad(clip, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=90)
        rows.append(np.concatenate(clip, axis=1))
    Image.fromarray(np.concatenate(rows)).save(to, quality=75, method=6)


if __name__ == "__main__":
    main()
