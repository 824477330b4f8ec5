"""Print which bfloat16 convolutions this process computes wrongly, as JSON."""

import itertools
import json

import torch

from iivcl import backbones
from iivcl.backbones import PaddedConv3d, check_convolutions

NETWORKS = ("mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s")
KERNELS = ((1, 3, 3), (3, 1, 1), (3, 7, 7), (5, 3, 3))


def single_layers() -> list[str]:
    """All short clips, strides, narrow maps and layouts that a temporal kernel meets."""
    wrong = []
    for kernel, stride, T, pixels, channels, layout in itertools.product(
        KERNELS,
        ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        (1, 2, 3, 4),
        (1, 2, 8),
        ((3, 32), (16, 16)),
        (torch.contiguous_format, torch.channels_last_3d),
    ):
        padding = tuple(k // 2 for k in kernel)
        conv = PaddedConv3d(*channels, kernel, stride, padding).to(memory_format=layout)
        video = torch.randn(2, channels[0], T, pixels, pixels).to(memory_format=layout)
        wrong += [f"{conv} {error}" for error in check_convolutions(conv, video)]
    return wrong


def networks() -> list[str]:
    """Every kind of network at its shortest clip, whose last maps have one or two frames."""
    wrong = []
    for name in NETWORKS:
        network = getattr(backbones, name)()
        frames, pixels = network.strides
        errors = check_convolutions(network, torch.randn(1, 3, frames, pixels, pixels))
        wrong += [f"{name} {error}" for error in errors]
    return wrong


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(json.dumps(single_layers() + networks()))
