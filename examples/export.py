"""Export a trained encoder: as torch.export's program, as ONNX, as a folder for a model hub.

    python examples/export.py run/encoder.pt exported/                     # model.pt2, model.onnx
    python examples/export.py run/encoder.pt exported/ --to onnx --batch 1
    python examples/export.py slow.pyth --hub slow/ --backbone slow_r50 --frames 8 --stride 8 ...

A program takes normalised clips (B, 3, frames, size, size), of any B or that of --batch, and gives
features (B, D). --hub gets the weights as safetensors, the recipe as JSON, and a model card that
says how to load them. All is read back and compared with the encoder before it has its name:
nothing that differs, and no half a file, is left behind.

--to onnx needs `pip install "iivcl[export]"`, --hub `pip install "iivcl[safetensors]"`. Copy the
file with `_features.py` and `_resume.py`, which open the checkpoint.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import json
import logging
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _features import build, open_encoder, saved_with, versions
from _resume import need, refusing
from torch import Tensor, nn
from torch.export import ExportedProgram
from tqdm import tqdm

from iivcl import backbones

TOLERANCE = 1e-4  # largest difference over largest feature
NEEDS = {  # packages of a form, and the extra that installs them
    "pt2": ((), ""),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), "export"),
    "hub": (("safetensors",), "safetensors"),
}


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    encoder, config = open_checkpoint(args)
    with refusing(OSError):
        if args.out is not None:
            with unfinished(args.out) as folder:
                files = write_programs(encoder, config, folder, args)
                args.out.mkdir(parents=True, exist_ok=True)
                for file in files:
                    os.replace(file, args.out / file.name)
        if args.hub is not None:
            with unfinished(args.hub) as folder:
                save_folder(encoder, folder, config)
                again, clips = load_folder(folder, args.backbone), random_clips(config, 2)
                need(torch.equal(again(clips), encoder(clips)), "what was read back differs")
                args.hub.parent.mkdir(parents=True, exist_ok=True)
                os.replace(folder, args.hub)  # as a whole
            print(f"{args.hub}: read back, and every feature is the same, bit for bit")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", help="encoder.pt of pretrain.py, or weights of others")
    add("out", nargs="?", type=Path, help="folder for model.pt2 and model.onnx")
    add("--to", nargs="+", choices=("pt2", "onnx"), default=["pt2", "onnx"], help="default: both")
    add("--batch", type=int, help="clips of every call; default: any number")
    add("--hub", type=Path, help="new folder for weights, recipe and model card")
    add("--backbone", help="if not said there: in iivcl.backbones, or my_module:my_function")
    add("--prefix", help="of the weights in the file, where several encoders are")
    for name, form, what in (
        ("frames", int, "of a clip"), ("stride", float, "frames"), ("size", int, "pixels")
    ):  # fmt: skip
        add(f"--{name}", type=form, help=f"{what}; default: as in training")
    for name, value in (("mean", 0.45), ("std", 0.225)):
        colours = {"nargs": 3, "type": float, "metavar": ("R", "G", "B")}
        add(f"--{name}", **colours, default=[value] * 3, help=f"of training; default: {value}")
    args = parser.parse_args(argv)
    need(args.out or args.hub, "give the folder OUT, or --hub, or both")
    for name in ("batch", "frames", "stride", "size"):
        value = getattr(args, name)
        need(value is None or value > 0, f"--{name} must be above 0; got {value}")
    need(all(math.isfinite(m) for m in args.mean), f"--mean must be finite; got {args.mean}")
    need(all(0 < s < math.inf for s in args.std), f"--std must be above 0; got {args.std}")
    asked = [*(args.to if args.out else ()), *(["hub"] if args.hub else ())]
    for what in asked:
        packages, extra = NEEDS[what]
        lacking = ", ".join(name for name in packages if find_spec(name) is None)
        need(not lacking, f"{what} needs {lacking}: pip install 'iivcl[{extra}]'")
    has_dynamo = "dynamo" in inspect.signature(torch.onnx.export).parameters
    need(has_dynamo or "onnx" not in asked, f"onnx needs torch 2.5; got {torch.__version__}")
    need(not args.hub or not args.hub.exists(), f"{args.hub} is there already")
    return args


def open_checkpoint(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Load the encoder, and say all that a user of it must know."""
    said = saved_with(args.checkpoint, args.backbone)
    clip = {name: getattr(args, name) or said.get(name) for name in ("frames", "stride", "size")}
    lacking = ", ".join(f"--{name}" for name, value in clip.items() if value is None)
    need(not lacking, f"{args.checkpoint} does not say of what clips it is: give {lacking}")
    sys.path.insert(0, os.getcwd())
    encoder, about = open_encoder(args.checkpoint, argparse.Namespace(**vars(args), seed=0))
    config = {
        "architecture": about["backbone"], **clip, "mean": args.mean, "std": args.std,
        "in_channels": getattr(encoder, "in_channels", 3), "method": about.get("method"),
        "step": about["step"], "checkpoint_sha256": about["sha256"], "versions": versions(),
    }  # fmt: skip
    encoder = encoder.eval().requires_grad_(False)
    with refusing(ValueError, RuntimeError):
        features = encoder(random_clips(config, 1))
    need(features.ndim == 2, f"the encoder must give (B, D); got {tuple(features.shape)}")
    need(bool(features.isfinite().all()), "the encoder gives features that are not finite")
    return encoder, {**config, "feature_dim": features.shape[1]}


def random_clips(config: dict[str, Any], batch: int) -> Tensor:
    size = (config["in_channels"], config["frames"], config["size"], config["size"])
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch))


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Give a folder on the same disk, which is gone afterwards unless it was renamed."""
    folder = folder.absolute()
    parent = next(place for place in (folder, *folder.parents) if place.exists())
    work = parent / f".{folder.name}.unfinished-{os.getpid()}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


# Programs


def write_programs(
    encoder: nn.Module, config: dict[str, Any], folder: Path, args: argparse.Namespace
) -> list[Path]:
    """Write the files of --to into a folder, read them back and compare."""
    clips = random_clips(config, args.batch or 2)
    batch = None if args.batch else ({0: torch.export.Dim("batch")},)
    with exporting():
        program = torch.export.export(encoder, (clips,), dynamic_shapes=batch, strict=False)
    files: list[Path] = []
    for name in tqdm(args.to, "export", unit="file"):
        file = folder / f"model.{name}"
        with exporting():
            run = {"pt2": write_pt2, "onnx": write_onnx}[name](program, file)
        batches = [args.batch] if args.batch else [1, 3]
        found = [compare(run, encoder, random_clips(config, b)) for b in batches]
        difference = max(found)
        need(all(d <= TOLERANCE for d in found),  # nor NaN
             f"{file.name} differs from the encoder by {difference:.1e} of its largest feature: "
             "nothing is written")  # fmt: skip
        written = list(folder.glob(f"{file.name}*"))  # weights over 2 GiB are in a second one
        files += written
        size = sum(path.stat().st_size for path in written) / 2**20
        tqdm.write(f"{args.out / file.name}: {size:.1f} MiB, largest difference {difference:.1e}")
    return files


def write_pt2(program: ExportedProgram, file: Path) -> Callable[[Tensor], Tensor]:
    content = io.BytesIO()
    torch.export.save(program, content)  # to a file on a full disk it would end the process
    file.write_bytes(content.getbuffer())
    return torch.export.load(file).module()


def write_onnx(program: ExportedProgram, file: Path) -> Callable[[Tensor], Tensor]:
    names = {"input_names": ["video"], "output_names": ["features"]}
    torch.onnx.export(program, dynamo=True, verbose=False, **names).save(str(file))
    session = importlib.import_module("onnxruntime").InferenceSession(str(file))
    return lambda clips: torch.from_numpy(session.run(None, {"video": clips.numpy()})[0])


@contextmanager
def exporting() -> Iterator[None]:
    """Say in one line what cannot be exported, and nothing of what exporters say besides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:  # torch and its exporters have many
        first = str(error).strip().partition("\n")[0]
        raise SystemExit(f"error: torch cannot export this encoder: {first}") from error
    finally:
        logger.setLevel(level)


def compare(run: Callable[[Tensor], Tensor], encoder: nn.Module, clips: Tensor) -> float:
    """Give the largest difference of the features, over the largest feature."""
    expected = encoder(clips)
    return float((run(clips) - expected).abs().max() / expected.abs().max())


# A folder, as model hubs take it


def save_folder(encoder: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """Write the weights, the recipe and the model card."""
    save = importlib.import_module("safetensors.torch").save
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    (folder / "model.safetensors").write_bytes(save(state, metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(config))


def load_folder(folder: Path, backbone: str | None = None) -> nn.Module:
    """Build the encoder of a folder of `save_folder`, in eval mode.

    One that is not of `iivcl.backbones` needs its ``backbone``, my_module:my_function.
    """
    name = backbone or json.loads((folder / "config.json").read_text())["architecture"]
    need(backbone or ":" not in name, f"{folder} is of an encoder of your own: give {name}")
    encoder = build(name, seed=0)
    backbones.load_weights(encoder, folder / "model.safetensors")
    return encoder.eval()


CARD = """\
---
library_name: iivcl
pipeline_tag: feature-extraction
tags: [video, self-supervised-learning, {function}]
---

# {architecture}, an encoder of videos

It makes a vector of {feature_dim} numbers of a clip{method}.

| a clip | |
|---|---|
| shape | ({shape}), RGB, float32 |
| frames | {frames}, at a stride of {stride:g} |
| size | {size} x {size} pixels |
| normalised | from [0, 1], by mean {mean} and standard deviation {std} |

```python
import torch
{imports}

encoder = {package}.{function}()
backbones.load_weights(encoder, "model.safetensors")
encoder.eval()
with torch.no_grad():
    features = encoder(torch.zeros(1, {shape}))  # (1, {feature_dim})
```

`config.json` says the same to programs, with the versions and the SHA-256 of the checkpoint.

Before you publish, say here what videos it has seen and under what licence, what it was measured
to be good for, and what it is not good for.
"""


def model_card(config: dict[str, Any]) -> str:
    module, _, function = config["architecture"].rpartition(":")
    return CARD.format(
        **{**config, "method": f", trained by {config['method']}" if config["method"] else ""},
        shape=", ".join(str(config[n]) for n in ("in_channels", "frames", "size", "size")),
        imports=f"import {module}\n" * bool(module) + "from iivcl import backbones",
        package=module or "backbones",
        function=function,
    )


if __name__ == "__main__":
    main()
