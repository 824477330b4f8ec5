"""Draw what the transforms do to one clip: a row for each of them, a column for each frame.

    python examples/show_augmentations.py                  # a generated scene
    python examples/show_augmentations.py my_video.mp4     # your own file
    python examples/show_augmentations.py --out sheet.png --seed 3

Every row is one draw. Its parameters hold for all the frames, so that nothing but the scene moves.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.backend_bases import FigureCanvasBase
from torch import Tensor
from torchvision.utils import make_grid

from iivcl import augment
from iivcl.data import DecodeError, probe, read_clips

SIZE = 112  # pixels of a frame on the sheet
ROWS = {  # a name and what is drawn; the presets without their normalization, which no eye can read
    "as it is": augment.Compose(augment.ResizeShortSide(SIZE), augment.CenterCrop(SIZE)),
    "RandomResizedCrop": augment.RandomResizedCrop(SIZE, scale=(0.2, 0.4)),
    "RandomHorizontalFlip": augment.RandomHorizontalFlip(p=1.0),
    "ColorJitter": augment.ColorJitter(brightness=0.6, contrast=0.6, saturation=0.6, hue=0.15),
    "RandomGrayscale": augment.RandomGrayscale(p=1.0),
    "GaussianBlur": augment.GaussianBlur(23, sigma=(3.0, 4.0)),
    "RandomSolarize": augment.RandomSolarize(0.5, p=1.0),
    "RandAugment": augment.RandAugment(num_ops=2, magnitude=15),
    "moco_v2": augment.moco_v2(SIZE)[:-1],
    "rho_moco, one view": augment.rho_moco(SIZE)[:-1],
    "rho_moco, another": augment.rho_moco(SIZE)[:-1],
    "cvrl": augment.cvrl(SIZE)[:-1],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", help="video; without one, a drawn scene")
    parser.add_argument("--frames", type=int, default=6, help="columns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("augmentations.png"))
    args = parser.parse_args()
    if args.frames < 1:
        parser.error(f"--frames must be at least 1; got {args.frames}")
    if args.out.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        parser.error(f"--out must be a file such as .png or .svg; got {args.out}")
    if not args.out.parent.is_dir():
        parser.error(f"--out: no such folder: {args.out.parent}")

    if args.file is None:
        clip = scene(args.frames)  # (1, 3, T, H, W) uint8
    else:
        try:
            last = probe(args.file).num_frames - 1
            clip = read_clips(args.file, torch.linspace(0, last, args.frames).round().long()[None])
        except DecodeError as error:
            parser.error(str(error))
    whole = ROWS["as it is"](clip)
    generator = torch.Generator().manual_seed(args.seed)

    figure, axes = plt.subplots(len(ROWS), figsize=(1.25 * (args.frames + 1.6), 1.25 * len(ROWS)))
    for axis, (name, transform) in zip(axes, ROWS.items(), strict=True):
        resizes = transform.output_size(1, 1) == (SIZE, SIZE)
        rows = transform(clip if resizes else whole, generator=generator)
        frames = augment.functional.to_float(rows)[0].transpose(0, 1)  # (T, 3, SIZE, SIZE)
        strip = make_grid(frames, nrow=args.frames, padding=3, pad_value=1.0)  # (3, height, width)
        axis.imshow(strip.permute(1, 2, 0).numpy(), interpolation="none")
        axis.set_axis_off()
        axis.text(-8, strip.shape[1] / 2, name, ha="right", va="center", fontsize=11)
    figure.subplots_adjust(left=1.6 / (args.frames + 1.6), right=1, bottom=0, top=1, hspace=0)
    try:
        figure.savefig(args.out, dpi=90)
    except OSError as error:
        parser.error(f"--out: {error}")
    print(f"wrote {args.out}")


def scene(num_frames: int, height: int = 192, width: int = 256) -> Tensor:
    """Draw a striped ball that rolls over a meadow: (1, 3, T, height, width) uint8."""
    rows, columns = torch.linspace(-0.75, 0.75, height), torch.linspace(-1, 1, width)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    frames = []
    for time in torch.linspace(0, 1, num_frames).tolist():
        frame = torch.stack([0.55 + 0.3 * y, 0.75 + 0.2 * y, torch.full_like(y, 0.95)])  # sky
        paint(frame, 0.13 - torch.hypot(x - 0.6, y + 0.5), 1.0, 0.85, 0.3)  # sun
        for k in (0, 1):  # hills, of which the far ones move less
            hill = y - 0.08 - 0.2 * k + 0.12 * torch.sin(3 * x + 2 * k + (0.4 + 0.9 * k) * time)
            grass = 0.42 + 0.14 * k + 0.1 * torch.sin(9 * x + 7 * y)
            paint(frame, hill, 0.2 + 0.1 * k, grass, 0.22)
        across, down, radius = x - 1.3 * time + 0.65, y - 0.3, 0.24  # ball
        angle = torch.atan2(down, across) - 1.3 * time / radius
        white = (4 * torch.sin(3 * angle)).clamp(-1, 1) / 2 + 0.5
        light = 1.1 - 2.2 * torch.hypot(across + 0.08, down + 0.08)
        color = (0.95 * light, (0.15 + 0.75 * white) * light, (0.1 + 0.75 * white) * light)
        paint(frame, radius - torch.hypot(across, down), *color)
        frames.append(frame)
    return (torch.stack(frames, dim=1).clamp(0, 1) * 255).byte().unsqueeze(0)


def paint(frame: Tensor, inside: Tensor, *color: Tensor | float) -> None:
    """Colour the pixels of ``frame`` (3, H, W) whose distance ``inside`` the shape is above 0."""
    cover = (inside * frame.shape[-1] / 2).clamp(0, 1)
    for channel, value in zip(frame, color, strict=True):
        channel.lerp_(torch.as_tensor(value).expand_as(cover), cover)


if __name__ == "__main__":
    main()
