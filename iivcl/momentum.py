"""The momentum encoder: a slowly moving average of the encoder that is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from iivcl._checks import check_choice, check_positive

__all__ = ["cosine_momentum", "momentum_copy", "momentum_update_"]


def momentum_copy(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` that no optimizer trains: the key encoder at step 0.

    The copy has its own parameters and buffers with equal values, none of which asks for a
    gradient; every submodule stays in train or eval mode as it was. Of a module wrapped by
    ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile`` the module inside is copied,
    so the copy has no gradient hooks and is not compiled.

    Args:
        module: Encoder to copy.

    Returns:
        The copy, a plain module.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> query_encoder = nn.Linear(4, 2)
        >>> key_encoder = momentum_copy(query_encoder)
        >>> torch.equal(key_encoder.weight, query_encoder.weight)
        True
        >>> key_encoder.weight.requires_grad
        False

    Source:
        He et al., "Momentum Contrast for Unsupervised Visual Representation Learning",
        arXiv 1911.05722, section 3.2.
    """
    return copy.deepcopy(_unwrap(module)).requires_grad_(False)


@torch.no_grad()
def momentum_update_(
    target: nn.Module,
    source: nn.Module,
    momentum: float,
    *,
    buffers: Literal["keep", "copy", "average"] = "keep",
) -> None:
    """Move every parameter of ``target`` towards that of ``source``, in one fused call.

        target = momentum * target + (1 - momentum) * source

    The sum is taken in the dtype of the target. A low-precision target cannot follow a momentum
    near 1, whose steps round to nothing (bfloat16 keeps 8 bits): keep the target in float32.
    Bring the source into its memory format before `momentum_copy`: on a GPU, tensors of two layouts
    are averaged one by one.

    ``buffers`` says what happens to the state that is not trained, such as the running statistics
    of batch norm:

    - ``"keep"`` leaves the target's own. A key encoder in train mode normalises by its own batch
      and gathers running statistics that belong to its own weights. This is MoCo's way, and
      the default.
    - ``"copy"`` takes over the source's. For a target that runs in eval mode and so gathers none.
    - ``"average"`` averages floating-point buffers like parameters and copies the integer ones.

    Args:
        target: Momentum encoder, as made by `momentum_copy`.
        source: Encoder that is trained. Either may be wrapped by ``DistributedDataParallel``,
            ``DataParallel`` or ``torch.compile``.
        momentum: Share of the target that stays, in [0, 1].
        buffers: Policy for the buffers.

    Raises:
        ValueError: ``momentum`` is outside [0, 1]; or the two modules are one, or differ in the
            name, shape or device of a parameter or buffer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> source = nn.Linear(1, 1, bias=False)
        >>> target = momentum_copy(source)
        >>> _ = nn.init.zeros_(target.weight), nn.init.ones_(source.weight)
        >>> momentum_update_(target, source, 0.75)
        >>> target.weight.item()
        0.25

    Source:
        He et al., arXiv 1911.05722, equation 2.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"`momentum` must be in [0, 1]; got {momentum}")
    check_choice("buffers", buffers, ("keep", "copy", "average"))
    target, source = _unwrap(target), _unwrap(source)
    if target is source:
        raise ValueError(
            "`target` and `source` are the same module; make the target with momentum_copy(source)"
        )
    parameters = _pairs("parameter", target.named_parameters(), source.named_parameters())
    _lerp_(parameters, 1 - momentum)
    if buffers == "keep":
        return
    states = _pairs("buffer", target.named_buffers(), source.named_buffers())
    averaged = [(t, s) for t, s in states if buffers == "average" and t.is_floating_point()]
    _lerp_(averaged, 1 - momentum)
    for t, s in states:
        if buffers == "copy" or not t.is_floating_point():
            t.copy_(s)


def cosine_momentum(step: int, total_steps: int, *, base: float = 0.994) -> float:
    """Return the momentum that grows from ``base`` at the first step to 1 at the last.

        1 - (1 - base) * (1 + cos(pi * step / total_steps)) / 2

    ``base`` must fit the length of the run: the encoder that is averaged is about
    ``1 / (1 - base)`` steps old. 0.994 is the published value for some 100,000 steps; in a run of a
    few hundred steps it holds the key encoder near its random start, where 0.9 follows in time.

    Args:
        step: Step of the optimizer, in [0, ``total_steps``].
        total_steps: Length of the run in steps, above 0.
        base: Momentum at step 0, in [0, 1].

    Returns:
        The momentum, in [``base``, 1].

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> [round(cosine_momentum(step, 100), 3) for step in (0, 50, 100)]
        [0.994, 0.997, 1.0]

    Source:
        Grill et al., "Bootstrap Your Own Latent", arXiv 2006.07733, section 3.2; with base 0.994
        in Feichtenhofer et al., arXiv 2104.14558.
    """
    check_positive("total_steps", total_steps)
    if not 0 <= step <= total_steps:
        raise ValueError(f"`step` must be in [0, {total_steps}] (from `total_steps`); got {step}")
    if not 0 <= base <= 1:
        raise ValueError(f"`base` must be in [0, 1]; got {base}")
    return 1 - (1 - base) * (1 + math.cos(math.pi * step / total_steps)) / 2


def _unwrap(module: nn.Module) -> nn.Module:
    """Take off the wrappers that add a prefix to every name."""
    while True:
        is_parallel = isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel))
        # The compiler's is asked by name: importing its class would load the whole compiler.
        inner = getattr(module, "module" if is_parallel else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _pairs(
    kind: str, target: Iterable[tuple[str, Tensor]], source: Iterable[tuple[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of two modules by name."""
    # A submodule compiled on one side only differs by a prefix in the middle of its names.
    targets = {name.replace("_orig_mod.", ""): tensor for name, tensor in target}
    sources = {name.replace("_orig_mod.", ""): tensor for name, tensor in source}
    if targets.keys() != sources.keys():
        only_target = sorted(targets.keys() - sources.keys())
        only_source = sorted(sources.keys() - targets.keys())
        raise ValueError(
            f"`target` and `source` must have the same {kind}s; "
            f"only in `target`: {only_target}, only in `source`: {only_source}"
        )
    for name, t in targets.items():
        s = sources[name]
        if t.shape != s.shape or t.device != s.device:
            raise ValueError(
                f"{kind} {name!r} must have the same shape and device in `target` and `source`; "
                f"got {tuple(t.shape)} on {t.device} and {tuple(s.shape)} on {s.device}"
            )
    return [(t, sources[name]) for name, t in targets.items()]


def _lerp_(pairs: list[tuple[Tensor, Tensor]], weight: float) -> None:
    if pairs:
        torch._foreach_lerp_([t for t, _ in pairs], [s.to(t.dtype) for t, s in pairs], weight)
