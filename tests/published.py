"""Key names and shapes of published checkpoints, written down from the code that saved them.

Tensors of one number each, seen as large: files of any network are written and read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
Layer = tuple[str, str, Shape]  # names of a convolution and of its norm, shape of the kernel
State = dict[str, Tensor]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

# S3D: of each block, the channels of its branches 0, 1 (middle, end), 2 (middle, end) and 3.
MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}
# CoCLR's S3D has every tensor a second time, as a part of one of five blocks.
COCLR_BLOCKS = (
    ("Conv_1a",),
    ("MaxPool_2a", "Conv_2b", "Conv_2c"),
    ("MaxPool_3a", "Mixed_3b", "Mixed_3c"),
    ("MaxPool_4a", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    ("MaxPool_5a", "Mixed_5b", "Mixed_5c"),
)


def pyslowfast_layers(depth: int = 50) -> Iterator[Layer]:
    yield "s1.pathway0_stem.conv", "s1.pathway0_stem.bn", (64, 3, 1, 7, 7)
    width = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        inner, temporal = 64 * 2 ** (stage - 2), 3 if stage >= 4 else 1
        for i in range(blocks):
            block = f"s{stage}.pathway0_res{i}"
            if i == 0:
                yield f"{block}.branch1", f"{block}.branch1_bn", (4 * inner, width, 1, 1, 1)
            for letter, shape in bottleneck(inner, width, temporal):
                yield f"{block}.branch2.{letter}", f"{block}.branch2.{letter}_bn", shape
            width = 4 * inner


def pytorchvideo_layers() -> Iterator[Layer]:
    yield "blocks.0.conv", "blocks.0.norm", (64, 3, 1, 7, 7)
    width = 64
    for stage, blocks in enumerate(BLOCKS[50], start=1):
        inner, temporal = 64 * 2 ** (stage - 1), 3 if stage >= 3 else 1
        for i in range(blocks):
            block = f"blocks.{stage}.res_blocks.{i}"
            if i == 0:
                shape: Shape = (4 * inner, width, 1, 1, 1)
                yield f"{block}.branch1_conv", f"{block}.branch1_norm", shape
            for letter, shape in bottleneck(inner, width, temporal):
                yield f"{block}.branch2.conv_{letter}", f"{block}.branch2.norm_{letter}", shape
            width = 4 * inner


def bottleneck(inner: int, width: int, temporal: int) -> Iterator[tuple[str, Shape]]:
    yield "a", (inner, width, temporal, 1, 1)
    yield "b", (inner, inner, 1, 3, 3)
    yield "c", (4 * inner, inner, 1, 1, 1)


def image_resnet50_layers() -> Iterator[Layer]:
    """Torchvision's ResNet-50 for images, as it is inside the files of MoCo v1 and v2."""
    yield "conv1", "bn1", (64, 3, 7, 7)
    width = 64
    for stage, blocks in enumerate(BLOCKS[50], start=1):
        inner = 64 * 2 ** (stage - 1)
        for i in range(blocks):
            block = f"layer{stage}.{i}"
            yield f"{block}.conv1", f"{block}.bn1", (inner, width, 1, 1)
            yield f"{block}.conv2", f"{block}.bn2", (inner, inner, 3, 3)
            yield f"{block}.conv3", f"{block}.bn3", (4 * inner, inner, 1, 1)
            if i == 0:
                yield f"{block}.downsample.0", f"{block}.downsample.1", (4 * inner, width, 1, 1)
            width = 4 * inner


def coclr_layers() -> Iterator[Layer]:
    def plain(name: str, channels: int, width: int) -> Iterator[Layer]:
        yield f"{name}.conv", f"{name}.bn", (channels, width, 1, 1, 1)

    def separable(name: str, channels: int, width: int, size: int = 3) -> Iterator[Layer]:
        yield f"{name}.conv1", f"{name}.bn1", (channels, width, 1, size, size)
        yield f"{name}.conv2", f"{name}.bn2", (channels, channels, size, 1, 1)

    yield from separable("Conv_1a", 64, 3, 7)
    yield from plain("Conv_2b", 64, 64)
    yield from separable("Conv_2c", 192, 64)
    for name, (width, first, *pairs, last) in MIXED.items():
        yield from plain(f"{name}.branch0.0", first, width)
        for branch, (middle, end) in enumerate((pairs[:2], pairs[2:]), start=1):
            yield from plain(f"{name}.branch{branch}.0", middle, width)
            yield from separable(f"{name}.branch{branch}.1", end, middle)
        yield from plain(f"{name}.branch3.1", last, width)


def with_blocks(state: State) -> State:
    """Add the second name of every tensor of CoCLR's S3D."""
    block_of = {
        stage: f"block{number}.{place}"
        for number, stages in enumerate(COCLR_BLOCKS, start=1)
        for place, stage in enumerate(stages)
    }
    pairs = [(name.split(".", 1), value) for name, value in state.items()]
    return state | {f"{block_of[stage]}.{rest}": value for (stage, rest), value in pairs}


def empty(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network without filling it, for a file that does."""
    with torch.device("meta"):
        module = build()
    return module.to_empty(device="cpu")


def make_state(layers: Iterable[Layer]) -> State:
    """Weights with which the network computes something."""
    state = {}
    for conv, norm, shape in layers:
        fan_in = torch.Size(shape[1:]).numel()
        state[f"{conv}.weight"] = torch.randn(shape) / fan_in**0.5
        state[f"{norm}.weight"] = torch.rand(shape[0]) + 0.5
        state[f"{norm}.bias"] = torch.randn(shape[0]) / 10
        state[f"{norm}.running_mean"] = torch.randn(shape[0]) / 10
        state[f"{norm}.running_var"] = torch.rand(shape[0]) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return state


def numbered(layers: Iterable[Layer], first: int = 1) -> State:
    """Every tensor has a number of its own and fills no memory."""
    shapes: dict[str, Shape] = {}
    for conv, norm, shape in layers:
        shapes[f"{conv}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()
    return {
        name: (torch.tensor(n) if not shape else torch.tensor(float(n)).expand(shape))
        for n, (name, shape) in enumerate(shapes.items(), start=first)
    }


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def of_zeros(**shapes: Shape) -> State:
    """Heads and queues; ``__`` in a name is a dot."""
    return {n.replace("__", "."): torch.zeros(()).expand(shape) for n, shape in shapes.items()}


def mlp(name: str, *widths: int, with_norm: bool = False) -> State:
    """PySlowFast's head: linear layers, of which all but the last may have a norm and no bias."""
    shapes: dict[str, Shape] = {}
    layers = list(pairwise(widths))
    for number, (inner, outer) in enumerate(layers):
        place = number * (3 if with_norm else 2)  # ReLUs are counted as well
        shapes[f"{place}.weight"] = (outer, inner)
        has_norm = with_norm and number < len(layers) - 1
        for part in ("weight", "bias", "running_mean", "running_var") if has_norm else ():
            shapes[f"{place + 1}.{part}"] = (outer,)
        if not has_norm:
            shapes[f"{place}.bias"] = (outer,)
    return under(f"{name}.projection.", of_zeros(**shapes))


def rho_file(method: str) -> dict[str, object]:
    """A checkpoint of PySlowFast's `ContrastiveModel`."""
    wide = method == "BYOL"
    if wide:
        head = mlp("head.projection", 2048, 4096, 256, with_norm=True)
        head |= mlp("head.predictors.0", 256, 4096, 256, with_norm=True)
    else:
        head = mlp("head.projection", 2048, 2048, 2048, 128)
    state = under("backbone.", numbered(pyslowfast_layers()) | head)
    if method in ("MoCo", "BYOL"):
        second = numbered(pyslowfast_layers(), first=10_001) | head
        state |= under("backbone_hist.", second)
        state |= of_zeros(ptr=(1,), queue_x=(65536, 256 if wide else 128), iter=(1,))
    if method == "SwAV":
        state |= of_zeros(swav_prototypes__weight=(1000, 128))
    state |= of_zeros(knn_mem__memory=(240_000, 1, 256 if wide else 128))
    momentum = {0: {"momentum_buffer": torch.zeros(()).expand(64, 3, 1, 7, 7)}}
    return {
        "epoch": 199,
        "model_state": state,
        "optimizer_state": {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "cfg": "TASK: ssl\nMODEL:\n  ARCH: slow\n",
        "scaler_state": {"scale": 65536.0, "growth_factor": 2.0},
    }


def moco_file(version: int) -> dict[str, object]:
    """A checkpoint of MoCo for images."""
    head = of_zeros(fc__weight=(128, 2048), fc__bias=(128,))
    if version == 2:
        head = of_zeros(fc__0__weight=(2048, 2048), fc__0__bias=(2048,),
                        fc__2__weight=(128, 2048), fc__2__bias=(128,))  # fmt: skip
    state = of_zeros(queue=(128, 65536), queue_ptr=(1,))
    state |= under("encoder_q.", numbered(image_resnet50_layers()) | head)
    state |= under("encoder_k.", numbered(image_resnet50_layers(), first=10_001) | head)
    momentum = {0: {"momentum_buffer": torch.zeros(()).expand(64, 3, 7, 7)}}
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": under("module.", state),
        "optimizer": {"state": momentum, "param_groups": [{"lr": 0.03, "params": [0]}]},
    }


def coclr_file(encoder: State, *, others: bool = True) -> dict[str, object]:
    """A checkpoint of CoCLR: query, key, sampler of the other view, heads and queues."""
    head = of_zeros(**{"2__weight": (1024, 1024, 1, 1, 1), "2__bias": (1024,),
                       "4__weight": (128, 1024, 1, 1, 1), "4__bias": (128,)})  # fmt: skip
    state = under("encoder_q.", under("0.", with_blocks(encoder)) | head)
    if others:
        for name, first in (("encoder_k", 10_001), ("sampler", 20_001)):
            second = with_blocks(numbered(coclr_layers(), first))
            state |= under(f"{name}.", under("0.", second) | head)
    state |= of_zeros(queue=(128, 2048), queue_ptr=(1,), queue_second=(128, 2048),
                      queue_vname=(2048,), queue_label=(2048,))  # fmt: skip
    return {"epoch": 182, "state_dict": state, "best_acc": 0.5, "optimizer": {"state": {}},
            "iteration": 9}  # fmt: skip
