"""Size, arithmetic, speed and memory of every encoder.

    python benchmarks/backbones.py                  # CPU, one clip at a time
    python benchmarks/backbones.py --threads 1      # CPU time: for a busy machine
    python benchmarks/backbones.py --device cuda    # batches of 16

Each runs on the clips it was published with, channels last, in bfloat16 autocast: a forward pass
without gradients, a forward and backward pass, and the same with checkpointing. Peak memory is that
beyond the weights, in a fresh process. Parameters and multiply-adds need no device, and the tests
count them again. The results go to ``benchmarks/results/backbones.<device>.json`` and ``.md``,
which the documentation shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from _measure import (
    arguments,
    extra_mebibytes,
    number,
    publish,
    summary,
    surroundings,
    table,
    take_turns,
)
from torch.utils.flop_counter import FlopCounterMode

from iivcl import backbones

INFERENCE, TRAINING, SAVING = "inference", "training", "training, checkpointing"
ENCODERS = {  # frames, pixels
    "r3d_18()": (16, 112),
    "mc3_18()": (16, 112),
    "r2plus1d_18()": (16, 112),
    "s3d()": (16, 224),
    "slow_resnet(18)": (8, 224),
    "slow_r50()": (8, 224),
    "slow_resnet(101)": (8, 224),
    "mvit_v2_s()": (16, 224),
    "swin3d_t()": (16, 224),
}
BATCH = {"cpu": 1, "cuda": 16}


class Setting(NamedTuple):
    """One row of the table."""

    encoder: str
    frames: int
    pixels: int
    batch: int
    device: str


def build(encoder: str) -> backbones.VideoEncoder:
    name, _, argument = encoder.rstrip(")").partition("(")
    builder: Callable[..., backbones.VideoEncoder] = getattr(backbones, name)
    return builder(int(argument)) if argument else builder()


def describe(setting: Setting) -> dict[str, Any]:
    """Count what needs no device."""
    with torch.device("meta"):
        backbone = build(setting.encoder).eval()
        clip = torch.empty(1, 3, setting.frames, setting.pixels, setting.pixels)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(clip)
    return {
        "features": backbone.feature_dim,
        "strides": backbone.strides,
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "multiply_adds": counter.get_total_flops() // 2,
    }


def contender(mode: str, setting: Setting) -> Callable[[], None]:
    torch.manual_seed(0)
    channels_last = torch.channels_last_3d
    backbone = build(setting.encoder).to(setting.device, memory_format=channels_last)
    backbone.gradient_checkpointing = mode == SAVING
    shape = (setting.batch, 3, setting.frames, setting.pixels, setting.pixels)
    clips = torch.randn(shape, device=setting.device).to(memory_format=channels_last)
    autocast = functools.partial(torch.autocast, setting.device, dtype=torch.bfloat16)

    def train() -> None:
        backbone.zero_grad()
        with autocast():
            features = backbone(clips)
        features.float().sum().backward()

    def infer() -> None:
        with torch.no_grad(), autocast():
            backbone(clips)

    backbone.train(mode != INFERENCE)
    return infer if mode == INFERENCE else train


def measure(setting: Setting, seconds: float) -> dict[str, Any]:
    modes = (INFERENCE, TRAINING, SAVING)
    runs = {mode: contender(mode, setting) for mode in modes}
    times = take_turns(runs, device=setting.device, seconds=seconds, least=2)
    del runs
    small = setting._replace(frames=8, pixels=32, batch=2)
    return {
        **setting._asdict(),
        **describe(setting),
        "milliseconds": summary(times),
        "clips_per_second": {mode: 1e3 * setting.batch / min(ms) for mode, ms in times.items()},
        "mebibytes_per_clip": {
            mode: extra_mebibytes(contender, (mode, small), (mode, setting)) / setting.batch
            for mode in modes
        },
    }


def to_markdown(report: dict[str, Any]) -> str:
    rows = [
        [
            f"`{row['encoder']}`",
            row["features"],
            ", ".join(map(str, row["strides"])),
            number(row["parameters"] / 1e6),
            f"{row['frames']} x {row['pixels']}",
            number(row["multiply_adds"] / 1e9),
            *(number(per_second, 2) for per_second in row["clips_per_second"].values()),
            *(number(mebibytes, 0) for mebibytes in row["mebibytes_per_clip"].values()),
        ]
        for row in report["results"]
    ]
    header = [
        "encoder", "features", "strides (time, space)", "parameters, M", "clip",
        "multiply-adds, G", "clips/s, inference", "training", "checkpointing",
        "MiB per clip, inference", "training", "checkpointing",
    ]  # fmt: skip
    return "\n".join(
        [
            "# Encoders\n",
            "Multiply-adds are those of one forward pass of one clip, in convolutions and matrix "
            "products; a FLOP count is twice that. Speed is that of the fastest round.\n",
            "<!-- --8<-- [start:table] -->\n",
            table(header, rows),
            "<!-- --8<-- [end:table] -->\n",
        ]
    )


def main() -> None:
    args = arguments(__doc__)
    torch.backends.cudnn.benchmark = True
    results = []
    for encoder, (frames, pixels) in list(ENCODERS.items())[: 1 if args.quick else None]:
        setting = Setting(encoder, frames, pixels, BATCH[args.device], args.device)
        results.append(measure(setting, args.seconds))
        print(encoder, results[-1]["clips_per_second"], flush=True)
    report = {
        **surroundings(args, "torchvision"),
        "results": results,
    }
    publish("backbones", args, report, to_markdown(report))


if __name__ == "__main__":
    main()
