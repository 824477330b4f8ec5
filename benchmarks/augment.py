"""Time of the rho-MoCo augmentation against torchvision v2, kornia and a plain memory copy.

    python benchmarks/augment.py                     # CPU, two threads
    python benchmarks/augment.py --device cuda --compile

Every contender turns the same uint8 clips (B, 3, T, H, W) into normalised float32 clips of the
training size, with parameters drawn per clip. They take turns; each draw is timed several times
and its fastest run counts, so that a busy machine delays all of them alike. The results go to
``benchmarks/results/augment.<device>.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision.transforms.v2 as V
from torch import Tensor

from iivcl import augment

RESULTS = Path(__file__).parent / "results"
FRAMES = 8
SHAPES = ((128, 170, 112), (256, 340, 224))  # height, width, training size
SCALE, JITTER, SIGMA = (0.2, 0.766), (0.6, 0.6, 0.6, 0.15), (0.1, 2.0)
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
COPY, OURS, COMPILED = "memory copy", "iivcl", "iivcl, compiled"
CROP, COLOR = "iivcl, crop and flip", "iivcl, colours"
TV_UINT8, TV_FLOAT = "torchvision v2, uint8 colours", "torchvision v2, float colours"
KORNIA = "kornia VideoSequential"

Contender = Callable[[int], Tensor]  # from a seed to a batch


def make_clips(batch: int, height: int, width: int, device: str) -> Tensor:
    """Smooth random clips: hardly a pixel is gray, black or white."""
    coarse = torch.rand(batch * 3, FRAMES, height // 16, width // 16)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (fine * 255).byte().view(batch, 3, FRAMES, height, width).to(device)


def contenders(clips: Tensor, size: int, *, compiled: bool) -> dict[str, Contender]:
    preset = augment.rho_moco(size)
    frames_first = clips.transpose(1, 2).contiguous()  # (B, T, C, H, W), as torchvision wants it
    cropped, out = preset[:2](clips), preset(clips)

    def generator(seed: int) -> torch.Generator:
        return torch.Generator(clips.device).manual_seed(seed)

    def torchvision_looped(pipeline: V.Compose) -> Contender:
        def run(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return torch.stack([pipeline(clip) for clip in frames_first])

        return run

    runs: dict[str, Contender] = {
        COPY: lambda seed: (clips.clone(), out.clone())[1],
        OURS: lambda seed: preset(clips, generator=generator(seed)),
        CROP: lambda seed: preset[:2](clips, generator=generator(seed)),
        COLOR: lambda seed: preset[2:](cropped, generator=generator(seed)),
        TV_UINT8: torchvision_looped(torchvision_pipeline(size, float_colors=False)),
        TV_FLOAT: torchvision_looped(torchvision_pipeline(size, float_colors=True)),
    }
    if compiled:
        apply = torch.compile(preset.apply)
        runs[COMPILED] = lambda seed: apply(clips, preset.make_params(clips, generator(seed)))
    sequence = kornia_pipeline(size)
    if sequence is not None:

        def kornia_run(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return sequence(clips / 255)  # it takes floats only

        runs[KORNIA] = kornia_run
    return runs


def torchvision_pipeline(size: int, *, float_colors: bool) -> V.Compose:
    crop = [V.RandomResizedCrop(size, scale=SCALE, antialias=True), V.RandomHorizontalFlip()]
    colors = [
        V.RandomApply([V.ColorJitter(*JITTER)], p=0.8),
        V.RandomGrayscale(0.2),
        V.RandomApply([V.GaussianBlur(kernel_size(size), SIGMA)], p=0.5),
    ]
    to_float, normalize = V.ToDtype(torch.float32, scale=True), V.Normalize(MEAN, STD)
    middle = [to_float, *colors] if float_colors else [*colors, to_float]
    return V.Compose([*crop, *middle, normalize])


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


def measure(runs: dict[str, Contender], seeds: int, rounds: int, device: str) -> dict[str, float]:
    """Milliseconds per batch: the fastest of the rounds for each seed, averaged over the seeds."""
    fastest = {name: [float("inf")] * seeds for name in runs}
    for round_ in range(rounds + 1):  # the first warms up
        for name, run in runs.items():
            for seed in range(seeds):
                start = time.perf_counter()
                run(seed)
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - start
                if round_:
                    fastest[name][seed] = min(fastest[name][seed], seconds)
    return {name: 1e3 * sum(times) / seeds for name, times in fastest.items()}


def with_ratios(times: dict[str, float]) -> dict[str, float | None]:
    ours = times.get(COMPILED, times[OURS])
    references = {
        "torchvision v2": min(times[TV_UINT8], times[TV_FLOAT]),
        "kornia": times.get(KORNIA),
        "memory copy": times[COPY],
    }
    return {name: ours / other if other else None for name, other in references.items()}


def machine(device: str) -> dict[str, str | int]:
    """What the numbers depend on; a load above one per core says that the machine was shared."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next(
            (line.split(": ")[1] for line in info.read_text().splitlines() if "model name" in line),
            cpu,
        )
    versions = {}
    for package in ("torch", "torchvision", "kornia"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    busy = {"load average": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"}
    return {"cpu": cpu, "threads": torch.get_num_threads(), **gpu, **versions, **busy}


def to_markdown(report: dict) -> str:
    lines = [
        "# rho-MoCo augmentation, uint8 clips in, normalised float32 clips out",
        "",
        f"`{report['command']}`",
        "",
        ", ".join(f"{key} {value}" for key, value in report["machine"].items()),
        "",
        "Milliseconds per batch. Ratios are time of iivcl over time of the other, torchvision "
        "being the faster of its two forms.",
        "",
    ]
    names = list(report["results"][0]["milliseconds"])
    ratios = list(report["results"][0]["ratios"])
    header = ["clips", *names, *(f"iivcl / {name}" for name in ratios)]
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in report["results"]:
        cells = [row["clips"], *(f"{row['milliseconds'][name]:.1f}" for name in names)]
        cells += ["-" if r is None else f"**{r:.2f}**" for r in row["ratios"].values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64], help="clips per batch")
    parser.add_argument("--draws", type=int, default=64, help="clips drawn in all, per row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also torch.compile the preset")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    results = []
    for batch in args.batches:
        for height, width, size in SHAPES:
            torch.manual_seed(0)
            clips = make_clips(batch, height, width, args.device)
            runs = contenders(clips, size, compiled=args.compile)
            times = measure(runs, max(1, args.draws // batch), args.rounds, args.device)
            name = f"{batch} of {FRAMES}x{height}x{width} to {size}"
            results.append({"clips": name, "milliseconds": times, "ratios": with_ratios(times)})
            print(name, {key: round(value, 1) for key, value in times.items()}, flush=True)
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(args.device),
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"augment.{args.device}"
    path.with_suffix(f".{args.device}.json").write_text(json.dumps(report, indent=2) + "\n")
    path.with_suffix(f".{args.device}.md").write_text(to_markdown(report))
    print(to_markdown(report))


if __name__ == "__main__":
    main()
