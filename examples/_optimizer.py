"""Learning rates: of a step (warm-up and half a cosine, or drops) and of a layer of an encoder.

And when the gradients of a step that is computed in parts are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LISTS = (nn.Sequential, nn.ModuleList)


def half_cosine(step: int, steps: int, *, warmup: int, lr: float) -> float:
    """Rise in a line over the warm-up, then fall along half a cosine."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def drops(step: int, at: Sequence[int], *, warmup: int, lr: float) -> float:
    """Rise in a line over the warm-up, then fall to a tenth at every step of ``at``."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return lr * rise * 0.1 ** sum(step >= drop for drop in at)


def make_optimizer(
    groups: list[dict[str, Any]], name: Literal["sgd", "adamw"], lr: float
) -> torch.optim.Optimizer:
    """Make SGD with Nesterov momentum, or AdamW."""
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of `parameter_groups` its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * rate


def parameter_groups(
    encoder: nn.Module,
    *heads: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Group what is trained for an optimizer: no decay of norms and biases, a rate per layer.

    Of an encoder of n layers, layer i learns at ``lr * layer_decay**(n - i)``, i from 0 at the
    input; heads learn at ``lr``. What belongs to no layer, such as positions that are added to
    tokens, learns as the first.
    """
    blocks = layers(encoder)
    depth = {p: i for i, block in enumerate(blocks) for m in block for p in m.parameters()}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for module in (encoder, *heads):
        for p in filter(lambda p: p.requires_grad, module.parameters()):
            power = len(blocks) - depth.get(p, 0) if module is encoder else 0
            scale, decay = layer_decay**power, weight_decay if p.ndim > 1 else 0.0
            group = {"params": [], "lr": scale * lr, "scale": scale, "weight_decay": decay}
            groups.setdefault((scale, decay), group)["params"].append(p)
    return list(groups.values())


def layers(encoder: nn.Module) -> list[list[nn.Module]]:
    """List what an encoder computes one after the other, in the order in which it is defined.

    A layer is a block in a list of blocks, or a layer outside of them such as a stem, with the
    norms that follow it.
    """
    found: list[list[nn.Module]] = []

    def walk(parent: nn.Module) -> None:
        for child in parent.children():
            is_block = isinstance(parent, LISTS) and not isinstance(child, LISTS)
            if list(child.children()) and not is_block:
                walk(child)
            elif any(p.ndim > 1 for p in child.parameters()) or not found:
                found.append([child])
            else:
                found[-1].append(child)

    walk(encoder)
    return found


def average_gradients(encoder: nn.Module, now: bool) -> None:
    """Have the next backward pass average gradients over the ranks, or only add them up on each."""
    if isinstance(encoder, DistributedDataParallel):
        encoder.require_backward_grad_sync = now  # what its no_sync() sets
    elif hasattr(encoder, "set_requires_gradient_sync"):  # of fully_shard
        encoder.set_requires_gradient_sync(now)
