"""Published weights, under the names that PySlowFast, PyTorchVideo, torchvision and CoCLR gave."""

from __future__ import annotations

import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from iivcl.backbones._adapter import _Adapted

__all__ = ["LoadReport", "load_weights"]

# Words of a prefix that tell a momentum encoder, as backbone_hist, encoder_k, model_ema, or the
# encoder of the other view, CoCLR's sampler.
_OTHERS = re.compile(r"(?:^|[._])(?:hist|k|key|ema|momentum|teacher|target|sampler)[._]")
# As opposed to heads and queues: PySlowFast, PyTorchVideo (whose head is block 5), torchvision,
# CoCLR.
_ENCODER = re.compile(
    r"s[1-5](_fuse)?\.|blocks\.(?!5\.proj\.)\d+\."
    r"|stem\.|layer[1-4]\.|features\.|stages\.|conv_proj\.|pos_encoding\.|patch_embed\.|norm\."
    r"|(Conv|Mixed)_\d\w\."
)
# CoCLR's names of the 16 stages of torchvision's S3D.
_S3D_STAGES = (
    *("Conv_1a", "MaxPool_2a", "Conv_2b", "Conv_2c", "MaxPool_3a", "Mixed_3b", "Mixed_3c"),
    *("MaxPool_4a", "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    *("MaxPool_5a", "Mixed_5b", "Mixed_5c"),
)

# Rewritten in this order, every name of the four libraries becomes ours.
_RENAMES = (
    # wrappers in the middle of a name
    (r"\b(_orig_mod|_checkpoint_wrapped_module)\.", ""),
    # the stem and the stages of PySlowFast, and of PyTorchVideo
    (r"^s1\.pathway0_stem\.bn\.", "stem.norm."),
    (r"^s1\.pathway0_stem\.", "stem."),
    *((rf"^s{stage + 1}\.pathway0_res", f"layer{stage}.") for stage in range(1, 5)),
    (r"^blocks\.0\.(conv|norm)\.", r"stem.\1."),
    (r"^blocks\.([1-4])\.res_blocks\.", r"layer\1."),
    # the blocks of both: branch1, branch1_bn, branch2.a, branch2.a_bn of the first, and
    # branch1_conv, branch1_norm, branch2.conv_a, branch2.norm_a of the other
    (r"^(layer\d\.\d+)\.branch1(_conv)?\.", r"\1.shortcut.conv."),
    (r"^(layer\d\.\d+)\.branch1_(bn|norm)\.", r"\1.shortcut.norm."),
    (r"^(layer\d\.\d+)\.branch2\.(conv_)?([abc])\.", r"\1.branch.\3.conv."),
    (r"^(layer\d\.\d+)\.branch2\.(norm_)?([abc])(_bn)?\.", r"\1.branch.\3.norm."),
    # torchvision
    (r"^features\.", "stages."),
    # CoCLR: stages of convolutions, some of them a spatial and then a temporal one
    *((rf"^{name}\.", f"stages.{place}.") for place, name in enumerate(_S3D_STAGES)),
    (r"^(stages\.\d+\.branch0)\.0\.(?=conv\.|bn\.)", r"\1."),
    (r"^(stages\..*\b)(conv|bn)1\.", r"\g<1>0.\2."),
    (r"^(stages\..*\b)(conv|bn)2\.", r"\g<1>1.\2."),
    (r"^(stages\..*\b)conv\.", r"\g<1>0."),
    (r"^(stages\..*\b)bn\.", r"\g<1>1."),
)


class LoadReport(NamedTuple):
    """What a checkpoint and an encoder did not share.

    Attributes:
        missing: Names in the encoder's state dict that the file has not. They are only counters
            of batches, which no result depends on; anything else is an error.
        unused: Names in the file that were not loaded: heads, queue, momentum encoder, second names
            of the same tensors.
        prefix: What stands in the file before the names of the encoder: keys of dicts around the
            state dict, wrappers, the attribute of the model. ``"model_state.backbone."``, say.
    """

    missing: list[str]
    unused: list[str]
    prefix: str


def load_weights(
    backbone: nn.Module, path: str | os.PathLike[str], *, prefix: str | None = None
) -> LoadReport:
    """Load published weights into an encoder: those of Slow, of S3D, of torchvision's networks.

    Reads the files of PySlowFast, supervised or self-supervised, of PyTorchVideo, torchvision and
    CoCLR, and the state dict of an encoder made here; into any other module, and into one behind
    `as_encoder`, the files whose names are the module's own. The encoder is found wherever it is in
    the file: under a key such as ``"state_dict"``, behind ``module.`` or ``_orig_mod.``, as
    ``encoder_q`` of a model, as ``0`` of ``Sequential(backbone, head)``. Of a query and a momentum
    encoder, the query encoder is taken. When the file does not fit, nothing is loaded, and the
    error names what is missing, what the encoder has not, and what is of another shape.

    A pickled file is read with ``weights_only=True``: no code in it is run. A file named
    ``*.safetensors`` is read by the package safetensors, an extra of this one.

    Args:
        backbone: The same network: `slow_r50` or `slow_resnet` of the same depth for the first two
            libraries, the encoder of the same name for torchvision, ``s3d(norm_eps=1e-5)`` for
            CoCLR.
        path: The ``.pyth``, ``.pth`` or ``.safetensors`` file.
        prefix: Which encoder, when the file has several that fit. The error names their prefixes.

    Returns:
        Names that were missing in the file, names in the file that were not used, and the prefix.

    Raises:
        ValueError: The file is damaged, holds other things than tensors and plain values, another
            network, or several encoders that fit; or it is CoCLR's and ``norm_eps`` is not.
        ImportError: A ``.safetensors`` file, and the package is not installed.

    Example:
        >>> path = "MoCo_SlowR50_8x8_T2_epoch_00200.pyth"
        >>> report = load_weights(slow_r50(), path)  # doctest: +SKIP

    Source:
        Names: github.com/facebookresearch/SlowFast, github.com/facebookresearch/pytorchvideo,
        github.com/pytorch/vision and github.com/TengdaHan/CoCLR.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"`path` must be that of a file; got {type(path).__name__}")
    path = os.fspath(path)
    module = backbone.module if isinstance(backbone, _Adapted) else backbone
    tensors, expected = dict(_tensors(_read(path))), module.state_dict()
    if not tensors:
        raise ValueError(f"`path` {path!r} must hold a state dict, by itself or under a key")
    if prefix is None:
        prefix = _find_prefix(tensors, expected, path)
    elif not any(_ours(name[len(prefix) :], expected) for name in _under(prefix, tensors)):
        found = _find_prefix(tensors, expected, path)
        raise ValueError(
            f"`prefix` {prefix!r} stands before no name of an encoder in {path!r}; {found!r} does"
        )
    inside = {name: _ours(name[len(prefix) :], expected) for name in _under(prefix, tensors)}
    names = {our: name for name, our in inside.items() if our in expected}  # of the file
    missing = [our for our in expected if our not in names]
    lost = [our for our in missing if not our.endswith("num_batches_tracked")]
    parts = {our.partition(".")[0] for our in expected}
    problems = {
        "missing in the file": lost,
        "not in the backbone": [
            name
            for name, our in inside.items()
            if our not in expected
            # The lost may be there by a name that nobody knows, beside what has its own.
            and (our or (lost and name[len(prefix) :].partition(".")[0] in parts))
        ],
        "of another shape": [
            f"{our} {tuple(tensors[name].shape)} instead of {tuple(expected[our].shape)}"
            for our, name in names.items()
            if tensors[name].shape != expected[our].shape
        ],
    }
    if any(problems.values()):
        raise ValueError(
            f"`path` {path!r} holds another network than `backbone`"
            + (f" under {prefix!r}; " if prefix else "; ")
            + "; ".join(f"{_summary(names)} {what}" for what, names in problems.items() if names)
        )
    eps = {norm.eps for norm in module.modules() if isinstance(norm, _BatchNorm)}
    if f"{prefix}block1.0.bn1.weight" in tensors and eps != {1e-5}:
        raise ValueError(
            f"`path` {path!r} is of CoCLR, whose batch norms add 1e-5 to the variance, which no "
            "file tells: build the backbone by `s3d(norm_eps=1e-5)`"
        )
    module.load_state_dict({our: tensors[name] for our, name in names.items()}, strict=False)
    used = set(names.values())
    return LoadReport(missing, [name for name in tensors if name not in used], prefix)


def _under(prefix: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def _find_prefix(names: Iterable[str], expected: Mapping[str, Tensor], path: str) -> str:
    """Find what stands before the names of the encoder: where most of them are."""
    known, alike = Counter[str](), Counter[str]()
    for name in names:
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if our := _ours(name[start:], expected):
                alike[name[:start]] += 1
                known[name[:start]] += our in expected
    # Of another network no name may be known; the error then says what it has.
    counts = known if any(known.values()) else alike
    # A query encoder that lacks a block is an error, and the momentum encoder no way out.
    own = {prefix: n for prefix, n in counts.items() if not _OTHERS.search(prefix)}
    if own and 2 * max(own.values()) >= max(counts.values()):
        counts = Counter(own)
    best = [prefix for prefix in counts if counts[prefix] == max(counts.values())]
    if len(best) > 1:
        raise ValueError(
            f"`path` {path!r} holds several encoders that fit; choose one with `prefix`, of {best}"
        )
    return best[0] if best else ""


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Give the tensors in dicts of dicts, their names joined by dots."""
    if isinstance(content, Mapping) and all(isinstance(key, str) for key in content):
        for key, value in content.items():
            if isinstance(value, Tensor):
                yield prefix + key, value
            else:
                yield from _tensors(value, f"{prefix}{key}.")


def _read(path: str) -> Any:
    load_file = _safetensors(path) if path.endswith(".safetensors") else None
    with open(path, "rb") as file:
        try:
            return load_file(path) if load_file else torch.load(file, "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"`path` {path!r} is not a file of tensors and plain values, or not whole. Reading "
                f"anything else could run code; if you trust it, save its state dict alone: {error}"
            ) from error
        except Exception as error:  # a damaged file raises whatever its readers stumble over
            raise ValueError(f"`path` {path!r} is no checkpoint, or not whole: {error}") from error


def _safetensors(path: str) -> Callable[[str], Mapping[str, Tensor]]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"`path` {path!r} is read by the package safetensors, which is not installed: "
            "pip install 'iivcl[safetensors]'"
        ) from error
    return load_file


def _ours(name: str, expected: Mapping[str, Tensor]) -> str:
    """Give our name for one of the file, empty when it is none of an encoder."""
    if name in expected:
        return name
    if not _ENCODER.match(name):
        return ""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _summary(names: list[str]) -> str:
    return f"{len(names)} tensors ({', '.join(sorted(names)[:3] + ['...'] * (len(names) > 3))})"
