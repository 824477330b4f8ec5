"""Time of the rho-MoCo augmentation against torchvision v2, kornia and a plain memory copy.

    python benchmarks/augment.py                     # CPU, two threads
    python benchmarks/augment.py --threads 1         # CPU time: for a busy machine
    python benchmarks/augment.py --device cuda       # and the compiled preset

Every contender turns the same uint8 clips (B, 3, T, H, W) into normalised float32 clips of the
training size, with parameters drawn per clip and for 64 clips in all, since the cost of a clip
depends on its draw. They take turns; fastest and median of the rounds are kept, and ratios are
given for both, since another program only ever adds time. The results go to
``benchmarks/results/augment.<device>.json`` and ``.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.transforms.v2 as V
from _measure import (
    arguments,
    both,
    number,
    publish,
    ratios,
    summary,
    surroundings,
    table,
    take_turns,
    target_rows,
)
from torch import Tensor

from iivcl import augment

FRAMES, DRAWS = 8, 64
SHAPES = ((128, 170, 112), (256, 340, 224))  # height, width, training size
QUICK = ((32, 42, 28),)
SCALE, JITTER, SIGMA = (0.2, 0.766), (0.6, 0.6, 0.6, 0.15), (0.1, 2.0)
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
COPY, OURS, STEPS, COMPILED = "memory copy", "iivcl", "iivcl, one by one", "iivcl, compiled"
CROP, COLOR = "iivcl, crop and flip on the CPU", "iivcl, colours"
TV_UINT8, TV_FLOAT = "torchvision v2, uint8 colours", "torchvision v2, float colours"
KORNIA = "kornia VideoSequential"
LIMITS = {
    "cpu": {"torchvision v2": 0.35, "kornia": 0.15},
    "cuda": {"torchvision v2": 0.10, "kornia": 0.20, COPY: 6.0},
}

Contender = Callable[[int], Tensor]  # from a seed to a batch


def make_clips(batch: int, height: int, width: int) -> Tensor:
    """Smooth random clips: hardly a pixel is gray, black or white."""
    coarse = torch.rand(batch * 3, FRAMES, height // 16, width // 16)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (fine * 255).byte().view(batch, 3, FRAMES, height, width)


def contenders(batch: int, height: int, width: int, size: int, device: str) -> dict[str, Contender]:
    torch.manual_seed(0)
    on_host = make_clips(batch, height, width)
    clips, preset = on_host.to(device), augment.rho_moco(size)
    frames_first = clips.transpose(1, 2).contiguous()  # (B, T, C, H, W), as torchvision wants it
    cropped, out = preset[:2](clips), preset(clips)

    def one_by_one(seed: int) -> Tensor:
        video = clips
        for transform, own in zip(
            preset, preset.make_params(clips, seeded(seed, device)), strict=True
        ):
            video = transform.apply(video, own)
        return video

    runs: dict[str, Contender] = {
        COPY: lambda seed: (clips.clone(), out.clone())[1],
        OURS: lambda seed: preset(clips, generator=seeded(seed, device)),
        STEPS: one_by_one,
        CROP: lambda seed: preset[:2](on_host, generator=seeded(seed, "cpu")),
        COLOR: lambda seed: preset[2:](cropped, generator=seeded(seed, device)),
        TV_UINT8: torchvision_looped(frames_first, size, float_colors=False),
        TV_FLOAT: torchvision_looped(frames_first, size, float_colors=True),
    }
    if device == "cuda":
        apply = torch.compile(preset.apply, fullgraph=True)
        runs[COMPILED] = lambda seed: apply(clips, preset.make_params(clips, seeded(seed, device)))
    sequence = kornia_pipeline(size)
    if sequence is not None:

        def kornia_run(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return sequence(clips / 255)  # it takes floats only

        runs[KORNIA] = kornia_run
    return runs


def seeded(seed: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def torchvision_looped(frames_first: Tensor, size: int, *, float_colors: bool) -> Contender:
    crop = [V.RandomResizedCrop(size, scale=SCALE, antialias=True), V.RandomHorizontalFlip()]
    colors = [
        V.RandomApply([V.ColorJitter(*JITTER)], p=0.8),
        V.RandomGrayscale(0.2),
        V.RandomApply([V.GaussianBlur(kernel_size(size), SIGMA)], p=0.5),
    ]
    to_float, normalize = V.ToDtype(torch.float32, scale=True), V.Normalize(MEAN, STD)
    middle = [to_float, *colors] if float_colors else [*colors, to_float]
    pipeline = V.Compose([*crop, *middle, normalize])

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([pipeline(clip) for clip in frames_first]).transpose(1, 2)

    return run


def kornia_pipeline(size: int) -> Callable[[Tensor], Tensor] | None:
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    return K.VideoSequential(
        K.RandomResizedCrop((size, size), scale=SCALE, p=1.0),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(*JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel_size(size),) * 2, SIGMA, p=0.5),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        data_format="BCTHW",
        same_on_frame=True,
    )


def kernel_size(size: int) -> int:
    return 2 * (size // 20) + 1


def measure(batch: int, shape: tuple[int, int, int], device: str, seconds: float) -> dict[str, Any]:
    height, width, size = shape
    runs = contenders(batch, height, width, size, device)
    for name, run in runs.items():
        got = run(0)
        if got.shape != (batch, 3, FRAMES, size, size) or (got.dtype == torch.uint8) != (
            name == CROP
        ):
            raise RuntimeError(f"{name} gave {tuple(got.shape)} {got.dtype}")
    batches = max(1, DRAWS // batch)

    def all_draws(run: Contender) -> Callable[[], object]:
        return lambda: [run(seed) for seed in range(batches)] and None

    times = take_turns(
        {name: all_draws(run) for name, run in runs.items()}, device=device, seconds=seconds
    )
    times = {name: [ms / batches for ms in taken] for name, taken in times.items()}
    ours = COMPILED if COMPILED in times else OURS
    torchvision = min(TV_UINT8, TV_FLOAT, key=lambda name: min(times[name]))
    others = {"torchvision v2": torchvision, "kornia": KORNIA, COPY: COPY, "one by one": STEPS}
    return {
        "clips": f"{batch} of {FRAMES}x{height}x{width} to {size}",
        "milliseconds": summary(times),
        "ratios": {name: ratios(times, ours, other) for name, other in others.items()},
    }


def find_targets(rows: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    return [
        {
            "target": f"{kind} time / {other}, {row['clips']}",
            "limit": limit,
            "measured": row["ratios"][other][kind],
        }
        for row in rows
        for other, limit in LIMITS[device].items()
        if row["ratios"][other] is not None
        for kind in ("fastest", "median")
    ]


def to_markdown(report: dict[str, Any]) -> str:
    names = list(report["rows"][0]["milliseconds"])
    others = list(report["rows"][0]["ratios"])
    times = [
        [row["clips"], *(number(row["milliseconds"][name]["fastest"]) for name in names)]
        for row in report["rows"]
    ]
    compared = [
        [row["clips"], *(both(row["ratios"][other]) for other in others)] for row in report["rows"]
    ]
    return "\n".join(
        [
            "# rho-MoCo augmentation, uint8 clips in, normalised float32 clips out\n",
            table(["target", "at most", "measured", ""], target_rows(report["targets"])),
            "## Time\n",
            "Milliseconds per batch, fastest round. Crop and flip is what runs in a worker of the "
            "loader when the preset is split, colours what runs on the batch. One by one is the "
            "readable composition that the preset must equal.\n",
            table(["clips", *names], times),
            "## Ratios\n",
            "Time of iivcl, compiled where that was measured, over time of the other: of the "
            "fastest rounds / median over the rounds. Of torchvision the faster form counts.\n",
            table(["clips", *others], compared),
        ]
    )


def main() -> None:
    args = arguments(__doc__, batches=(8, 64))
    rows = []
    for batch in (2,) if args.quick else args.batches:
        for shape in QUICK if args.quick else SHAPES:
            rows.append(measure(batch, shape, args.device, args.seconds))
            fastest = {name: t["fastest"] for name, t in rows[-1]["milliseconds"].items()}
            print(rows[-1]["clips"], {n: round(ms, 1) for n, ms in fastest.items()}, flush=True)
    report = {
        **surroundings(args, "torchvision", "kornia"),
        "targets": find_targets(rows, args.device),
        "rows": rows,
    }
    publish("augment", args, report, to_markdown(report))


if __name__ == "__main__":
    main()
