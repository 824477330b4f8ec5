"""What pretraining asks of 8, 64 and 512 GPUs, by calculation: every assumption is a constant.

    python benchmarks/scale.py

Prints the tables of ``docs/how-to/scale.md``. Nothing here runs on a GPU. What was measured, by the
other benchmarks or in their results, says so beside its number; the rest are assumptions about
machines, to be replaced by those of your own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from _measure import number, table

from iivcl.queues import estimate

# The machine, assumed.
GPU_FLOPS = (
    100e12  # per second, sustained by a video encoder in bfloat16: a tenth of an H100's peak
)
GPUS_PER_NODE = 8
CORES_PER_GPU = 12
LINK_IN_NODE = 200e9  # bytes per second that a GPU receives from GPUs of its node
LINK_BETWEEN_NODES = 40e9  # and from those of other nodes: a 400 Gb/s port per GPU, at 80 %
LATENCY = 20e-6  # seconds of a collective per doubling of the ranks
DISK = 5e9  # bytes per second and node of a shared file system or a local drive

# Reading, measured: CPU seconds per video of two clips of 8 frames, and bytes per file of 10 s
# ("Datasets" on the page of benchmarks). Prepared files grow with the pixels, which is assumed.
READ_ORIGINAL, BYTES_ORIGINAL = 0.108, 1.47 * 2**20  # 340x256, a keyframe every 250 frames
READ_PREPARED, BYTES_PREPARED = 0.0125, 0.89 * 2**20  # short side 128, for crops of 112
CROP = 0.003  # CPU seconds for the crops of a video that workers make, 8 frames of 112

# Lookup, measured on an H200: 256 queries x 65,536 rows x 128 with ids, 0.8 ms.
LOOKUP_FLOPS = 2 * 256 * 65_536 * 128 / 0.8e-3
ROWS, DIM, NEIGHBORS = 65_536, 128, 5

WORLDS = (8, 64, 512)
NOTICED = 0.05  # share of the step from which a part counts as holding the run back


@dataclass(frozen=True)
class Recipe:
    """A preset of `examples/pretrain.py`, with its encoder."""

    name: str
    multiply_adds: float  # of the encoder, per clip, forward
    parameters: float
    frames: int
    pixels: int
    videos: int  # per GPU and step

    @property
    def seconds(self) -> float:
        """Of a step of the encoders: a query is worth three passes and a key one, of two clips."""
        return self.videos * 2 * 4 * 2 * self.multiply_adds / GPU_FLOPS

    @property
    def clip_bytes(self) -> int:
        """Of an augmented clip in float32."""
        return 3 * self.frames * self.pixels**2 * 4


RECIPES = (
    Recipe("small: R(2+1)D-18, 16x112", 40.5e9, 31.3e6, 16, 112, videos=32),
    Recipe("paper: Slow R50, 8x224", 41.7e9, 31.6e6, 8, 224, videos=8),
)


def bandwidth(world: int) -> float:
    return LINK_IN_NODE if world <= GPUS_PER_NODE else LINK_BETWEEN_NODES


def seconds_received(received: float, world: int) -> float:
    return received / bandwidth(world) + LATENCY * math.log2(world)


def costs(recipe: Recipe, world: int) -> dict[str, float]:
    """Seconds of each part of a step that the encoders do not hide."""
    clips = 2 * recipe.videos  # keys and queries of a rank
    gather = estimate(ROWS, DIM, clips, NEIGHBORS, world_size=world, device="cuda")
    shard = estimate(
        ROWS // world, DIM, clips, NEIGHBORS, world_size=world, distributed="shard", device="cuda"
    )
    gradients = 2 * (world - 1) / world * recipe.parameters * 4
    shuffled = (world - 1) * clips * (recipe.clip_bytes + DIM * 4)
    return {
        "gather queue": seconds_received(gather.communicated_bytes, world)
        + gather.flops / LOOKUP_FLOPS,
        "shard queue": seconds_received(shard.communicated_bytes, world)
        + shard.flops / LOOKUP_FLOPS,
        "gradients": seconds_received(gradients, world),
        "shuffled batch norm": seconds_received(shuffled, world),
    }


def reading(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Loader processes per GPU, and bytes per second and node, for both kinds of files."""
    rate = recipe.videos / recipe.seconds  # videos per second and GPU
    frames, area = recipe.frames / 8, (recipe.pixels / 112) ** 2  # beside what was measured
    return {
        name: (rate * frames * (seconds + CROP * area), rate * GPUS_PER_NODE * size)
        for name, seconds, size in (
            ("original", READ_ORIGINAL, BYTES_ORIGINAL),
            ("prepared", READ_PREPARED * area, BYTES_PREPARED * area),
        )
    }


def reading_table() -> str:
    rows = []
    for recipe in RECIPES:
        for name, (processes, disk) in reading(recipe).items():
            verdicts = [
                f"over the {CORES_PER_GPU} cores" if processes > CORES_PER_GPU else "",
                "over the disk" if disk > DISK else "",
            ]
            rows.append([
                recipe.name, number(recipe.videos / recipe.seconds, 0), name, number(processes),
                number(disk / 1e9, 2), " and ".join(filter(None, verdicts)) or "fits",
            ])  # fmt: skip
    header = ["recipe", "videos/s per GPU", "files", "processes per GPU", "GB/s per node", ""]
    return table(header, rows)


def step_table() -> str:
    rows = []
    for recipe in RECIPES:
        for world in WORLDS:
            parts = costs(recipe, world)
            slow = [name for name, s in parts.items() if s > NOTICED * recipe.seconds]
            rows.append([
                recipe.name, world, f"{world * recipe.videos:,}", number(1e3 * recipe.seconds, 0),
                *(number(1e3 * seconds, 2) for seconds in parts.values()), ", ".join(slow) or "-",
            ])  # fmt: skip
    header = ["recipe", "GPUs", "videos per step", "encoders, ms"]
    names = [f"{name}, ms" for name in costs(RECIPES[0], WORLDS[0])]
    return table([*header, *names, f"over {NOTICED:.0%} of the step"], rows)


def queue_table() -> str:
    rows = []
    for total in (ROWS, 2**20, 10**8):
        for world in WORLDS:
            gather = estimate(total, DIM, 64, NEIGHBORS, world_size=world, device="cuda")
            shard = estimate(
                total // world, DIM, 64, NEIGHBORS, world_size=world, distributed="shard",
                device="cuda",
            )  # fmt: skip
            rows.append([
                f"{total:,}", world,
                *(number(cost.held_bytes / 2**30, 3) for cost in (gather, shard)),
                *(number(1e3 * cost.flops / LOOKUP_FLOPS, 2) for cost in (gather, shard)),
                *(number(cost.communicated_bytes / 2**20, 2) for cost in (gather, shard)),
            ])  # fmt: skip
    header = ["rows in all", "GPUs"]
    kinds = ("held, GiB", "lookup, ms", "received, MiB")
    return table([*header, *(f"{k}, {d}" for k in kinds for d in ("gather", "shard"))], rows)


def main() -> None:
    print(reading_table())
    print(step_table())
    print(queue_table())


if __name__ == "__main__":
    main()
