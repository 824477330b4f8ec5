"""Settings on the command line: how they are shown, and what runs refuse."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _resume import need

from iivcl.distributed import world_size


def begin_parser(
    usage: str, text: str | None, preset: dict[str, Any] | None = None, *, width: int = 26
) -> tuple[argparse.ArgumentParser, Callable[..., None]]:
    """Make a parser, and ``add(option, default, text, **how)`` that shows the default.

    Args:
        usage: How the script is called.
        text: Docstring of the script.
        preset: Defaults that take the place of those that are given.
        width: Column of the explanations.
    """
    parser = argparse.ArgumentParser(
        usage=usage,
        description=text,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=width),
    )

    def add(option: str, default: Any, text: str, **how: Any) -> None:
        name = option[2:].replace("-", "_")
        if preset is not None and name in preset:
            default, text = preset[name], f"{text} (of the preset)"
        shown = "" if default is None or default is False or default in ((), []) else f": {default}"
        takes = {} if "action" in how or "choices" in how else {"metavar": "X"}
        parser.add_argument(option, default=default, help=text + shown, **takes, **how)

    return parser, add


def check_run(args: argparse.Namespace, *above_0: str) -> None:
    """Refuse what no run can do, and numbers that are not above 0."""
    for name in ("frames", "stride", "size", "batch_size", "accumulate", "epochs", "log_every",
                 "keep", "save_every", *above_0):  # fmt: skip
        option, value = "--" + name.replace("_", "-"), getattr(args, name)
        need(value is None or value > 0, f"{option} must be above 0; got {value}")
    for name in ("lr", "weight_decay", "workers"):
        option, value = "--" + name.replace("_", "-"), getattr(args, name)
        need(value >= 0, f"{option} must be at least 0; got {value}")
    need(0 <= args.seed < 2**32, f"--seed must be in [0, 4294967296); got {args.seed}")
    ranks = world_size()
    parts = ranks * args.accumulate
    need(
        args.batch_size % parts == 0,
        f"--batch-size {args.batch_size} cannot be divided into "
        f"{parts} equal parts ({ranks} ranks x --accumulate {args.accumulate})",
    )
    need(
        args.batch_norm != "sync" or torch.cuda.is_available(),
        "--batch-norm sync works on GPUs only",
    )
    need(
        args.on_error != "skip" or ranks == 1,
        "--on-error skip makes batches unequal, and ranks need equal ones: use substitute",
    )
    need(
        0 <= args.warmup_epochs < args.epochs,
        f"--warmup-epochs {args.warmup_epochs} must be below --epochs {args.epochs}",
    )
