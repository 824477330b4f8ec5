"""Published weights, under the names that PySlowFast, PyTorchVideo and torchvision gave."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from iivcl.backbones._encoder import VideoEncoder

__all__ = ["LoadReport", "load_weights"]

# Of a contrastive model, "backbone" is the query encoder and "backbone_hist" the momentum encoder.
_PREFIX = re.compile(r"(module\.)?(backbone\.)?")
# As opposed to heads and queues: PySlowFast, PyTorchVideo (whose head is block 5), torchvision.
_ENCODER = re.compile(
    r"s[1-5](_fuse)?\.|blocks\.(?!5\.proj\.)\d+\."
    r"|stem\.|layer[1-4]\.|features\.|stages\.|conv_proj\.|pos_encoding\.|patch_embed\.|norm\."
)

# Rewritten in this order, every name of the three libraries becomes ours.
_RENAMES = (
    # PySlowFast
    (r"^s1\.pathway0_stem\.bn\.", "stem.norm."),
    (r"^s1\.pathway0_stem\.", "stem."),
    (r"^s2\.pathway0_res", "layer1."),
    (r"^s3\.pathway0_res", "layer2."),
    (r"^s4\.pathway0_res", "layer3."),
    (r"^s5\.pathway0_res", "layer4."),
    (r"^(layer\d\.\d+)\.branch1\.", r"\1.shortcut.conv."),
    (r"^(layer\d\.\d+)\.branch1_bn\.", r"\1.shortcut.norm."),
    (r"^(layer\d\.\d+)\.branch2\.([abc])\.", r"\1.branch.\2.conv."),
    (r"^(layer\d\.\d+)\.branch2\.([abc])_bn\.", r"\1.branch.\2.norm."),
    # PyTorchVideo
    (r"^blocks\.0\.(conv|norm)\.", r"stem.\1."),
    (r"^blocks\.([1-4])\.res_blocks\.", r"layer\1."),
    (r"\.branch1_(conv|norm)\.", r".shortcut.\1."),
    (r"\.branch2\.(conv|norm)_([abc])\.", r".branch.\2.\1."),
    # torchvision
    (r"^features\.", "stages."),
)


class LoadReport(NamedTuple):
    """What a checkpoint and an encoder did not share.

    Attributes:
        missing: Names in the encoder's state dict that the file has not. They are only counters
            of batches, which no result depends on; anything else is an error.
        unused: Names in the file that were not loaded: heads, queue, momentum encoder.
    """

    missing: list[str]
    unused: list[str]


def load_weights(backbone: VideoEncoder, path: str | os.PathLike[str]) -> LoadReport:
    """Load published weights of the Slow network, or of torchvision's networks, into an encoder.

    Reads the files of PySlowFast, supervised or self-supervised (of these the query encoder), of
    PyTorchVideo and of torchvision, and the state dict of an encoder made here. A pickled file is
    read with ``weights_only=True``: no code in it is run. A file named ``*.safetensors`` holds the
    same names and is read by the package safetensors, an extra of this one. When the file does not
    fit, nothing is loaded.

    Args:
        backbone: The same network: `slow_r50` or `slow_resnet` of the same depth for the first two
            libraries, the encoder of the same name for torchvision.
        path: The ``.pyth``, ``.pth`` or ``.safetensors`` file.

    Returns:
        Names that were missing in the file, and names in the file that were not used.

    Raises:
        ValueError: The file holds other things than tensors and plain values, or another network.
        ImportError: A ``.safetensors`` file, and the package is not installed.

    Example:
        >>> path = "MoCo_SlowR50_8x8_T2_epoch_00200.pyth"
        >>> report = load_weights(slow_r50(), path)  # doctest: +SKIP

    Source:
        Names: github.com/facebookresearch/SlowFast, github.com/facebookresearch/pytorchvideo and
        github.com/pytorch/vision.
    """
    weights, names, unused = {}, {}, []
    for name, tensor in _read(path).items():
        inner = _PREFIX.sub("", name, count=1)
        if _ENCODER.match(inner):
            ours = _rename(inner)
            weights[ours], names[ours] = tensor, name
        else:
            unused.append(name)

    expected = backbone.state_dict()
    missing = [name for name in expected if name not in weights]
    problems = {
        "missing in the file": [n for n in missing if not n.endswith("num_batches_tracked")],
        "not in the backbone": [names[n] for n in weights if n not in expected],
        "of another shape": [
            f"{n} {tuple(weights[n].shape)} instead of {tuple(expected[n].shape)}"
            for n in weights.keys() & expected.keys()
            if weights[n].shape != expected[n].shape
        ],
    }
    if any(problems.values()):
        raise ValueError(
            f"`path` {os.fspath(path)!r} holds another network than `backbone`; "
            + "; ".join(f"{_summary(names)} {what}" for what, names in problems.items() if names)
        )
    backbone.load_state_dict(weights, strict=False)
    return LoadReport(missing, unused)


def _read(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    if os.fspath(path).endswith(".safetensors"):
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`path` {os.fspath(path)!r} is not a file of tensors and plain values, and reading "
            f"anything else could run code. If you trust it, save its state dict alone: {error}"
        ) from error
    state = content
    for key in ("model_state", "model"):  # PySlowFast; torchvision's training scripts
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state = content[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"`path` {os.fspath(path)!r} must hold a state dict, or a dict with one under "
            f"'model_state' or 'model'; got {type(content).__name__}"
        )
    return state


def _read_safetensors(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"`path` {os.fspath(path)!r} is read by the package safetensors, which is not "
            "installed: pip install 'iivcl[safetensors]'"
        ) from error
    return dict(load_file(path))


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _summary(names: list[str]) -> str:
    return f"{len(names)} tensors ({', '.join(sorted(names)[:3] + ['...'] * (len(names) > 3))})"
