"""The momentum encoder: a slowly moving average of the encoder that is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from iivcl import _engine
from iivcl._checks import (
    check_at_least,
    check_choice,
    check_embeddings,
    check_number,
    check_same_device,
    check_shape,
    check_within,
)

__all__ = ["cosine_momentum", "momentum_copy", "momentum_update_"]

Scalar = TypeVar("Scalar", float, Tensor)


def momentum_copy(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` that no optimizer trains: the key encoder at step 0.

    The copy has its own parameters and buffers with equal values, none of which asks for a
    gradient; every submodule stays in train or eval mode as it was. Of a module wrapped by
    ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile`` the module inside is copied,
    so the copy has no gradient hooks and is not compiled. Copy before ``fully_shard``, and shard
    both by the same calls.

    Args:
        module: Encoder to copy.

    Returns:
        The copy, a plain module.

    Raises:
        ValueError: The module is sharded already.

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
    module = _unwrap(module)
    if _sharded(module):
        raise ValueError(
            "`module` is sharded and cannot be copied; call momentum_copy before sharding, then "
            "shard the copy by the same calls of fully_shard"
        )
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def momentum_update_(
    target: nn.Module,
    source: nn.Module,
    momentum: float | Tensor,
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

    Modules sharded by ``fully_shard`` are averaged shard by shard, without communication, when both
    were sharded alike.

    Args:
        target: Momentum encoder, as made by `momentum_copy`.
        source: Encoder that is trained. Either may be wrapped by ``DistributedDataParallel``,
            ``DataParallel`` or ``torch.compile``.
        momentum: Share of the target that stays, in [0, 1]. As a 0-d tensor on the target's device
            it is read anew by every replay of a CUDA graph, and its range is not checked; meanwhile
            a GPU holds one more copy of the weights.
        buffers: Policy for the buffers.

    Raises:
        ValueError: ``momentum`` is outside [0, 1]; or the two modules are one, or swapped, or
            differ in the name, shape, device or sharding of a parameter or buffer. Nothing is
            changed then.

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
    check_choice("buffers", buffers, ("keep", "copy", "average"))
    target, source = _unwrap(target), _unwrap(source)
    if target is source:
        raise ValueError(
            "`target` and `source` are the same module; make the target with momentum_copy(source)"
        )
    for module in (*_sharded(target), *_sharded(source)):
        module.reshard()  # type: ignore[operator]  # what a forward pass gathered is not the state
    parameters = dict(target.named_parameters())
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"`target` asks for gradients (parameter {trained[0]!r}), so it is not a momentum "
            "encoder; the order is momentum_update_(target, source, momentum), and the target is "
            "made with momentum_copy(source)"
        )
    averaged = _pairs("parameter", parameters.items(), source.named_parameters())
    copied: list[tuple[Tensor, Tensor]] = []
    if buffers != "keep":
        for pair in _pairs("buffer", target.named_buffers(), source.named_buffers()):
            is_averaged = buffers == "average" and pair[0].is_floating_point()
            (averaged if is_averaged else copied).append(pair)
    if isinstance(momentum, Tensor):
        check_embeddings("momentum", momentum, "")
        for t, _ in averaged:
            check_same_device("momentum", momentum, "target", t)
    else:
        check_within(0, 1, momentum=momentum)
    _lerp_(averaged, 1 - momentum)
    if copied:
        torch._foreach_copy_([t for t, _ in copied], [s for _, s in copied])


def cosine_momentum(step: Scalar, total_steps: int, *, base: float = 0.994) -> Scalar:
    """Return the momentum that grows from ``base`` at the first step to 1 at the last.

        1 - (1 - base) * (1 + cos(pi * step / total_steps)) / 2

    ``base`` must fit the length of the run: the encoder that is averaged is about
    ``1 / (1 - base)`` steps old. 0.994 is the published value for some 100,000 steps; in a run of a
    few hundred steps it holds the key encoder near its random start, where 0.9 follows in time.

    Args:
        step: Step of the optimizer, in [0, ``total_steps``]. A 0-d tensor is not checked, and
            stays at the end that it passes.
        total_steps: Length of the run in steps, above 0.
        base: Momentum at step 0, in [0, 1].

    Returns:
        The momentum, in [``base``, 1]; a 0-d float64 tensor on the step's device for a tensor.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> [round(cosine_momentum(step, 100), 3) for step in (0, 50, 100)]
        [0.994, 0.997, 1.0]

    Source:
        Grill et al., "Bootstrap Your Own Latent", arXiv 2006.07733, section 3.2; with base 0.994
        in Feichtenhofer et al., arXiv 2104.14558.
    """
    check_at_least(1, total_steps=total_steps)
    check_within(0, 1, base=base)
    if isinstance(step, Tensor):
        check_shape("step", step, "")
        # In float64, for float32 would round 1 - momentum, the step of the average.
        angle = step.double().clamp(0, total_steps) * (math.pi / total_steps)
        return 1 - (1 - base) * (1 + angle.cos()) / 2
    check_number("step", step)
    if not 0 <= step <= total_steps:
        raise ValueError(f"`step` must be in [0, {total_steps}] (from `total_steps`); got {step}")
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


def _sharded(module: nn.Module) -> list[nn.Module]:
    """Find the modules that ``fully_shard`` has sharded."""
    modules = list(module.modules())
    if any(hasattr(m, "_fsdp_wrapped_module") for m in modules):
        raise ValueError(
            "FullyShardedDataParallel is not supported; shard with fully_shard instead, after "
            "momentum_copy"
        )
    return [m for m in modules if hasattr(m, "reshard")]


def _pairs(
    kind: str, target: Iterable[tuple[str, Tensor]], source: Iterable[tuple[str, Tensor]]
) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of two modules by name; of sharded ones, the parts that lie here."""
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
        ours, theirs = _layout(t), _layout(sources[name])
        if ours != theirs:
            raise ValueError(
                f"{kind} {name!r} must have the same shape, device and sharding in `target` and "
                f"`source`; got {_describe(*ours)} and {_describe(*theirs)}"
            )
    return [(_local(t), _local(sources[name])) for name, t in targets.items()]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    sharding = (getattr(tensor, name, None) for name in ("placements", "device_mesh"))  # DTensor's
    return tuple(tensor.shape), tensor.device, *sharding


def _describe(shape: Any, device: Any, placements: Any, mesh: Any) -> str:
    return f"{shape} on {device}" + (f" as {placements} of {mesh}" if mesh else "")


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _lerp_(pairs: list[tuple[Tensor, Tensor]], weight: float | Tensor) -> None:
    """Average in one call per dtype, for a GPU has one kernel for tensors of one dtype."""
    for dtype in {t.dtype for t, _ in pairs}:
        group = [(t, s.to(dtype)) for t, s in pairs if t.dtype == dtype]
        targets, sources = map(list, zip(*group, strict=True))
        if not isinstance(weight, Tensor):
            torch._foreach_lerp_(targets, sources, weight)
        elif _engine.on_cpu(weight):
            torch._foreach_lerp_(targets, sources, [weight.to(dtype)] * len(group))
        else:  # whose only kernel for many tensors and one number in its memory is a product
            steps = torch._foreach_sub(sources, targets)
            torch._foreach_mul_(steps, weight.to(dtype))
            torch._foreach_add_(targets, steps)
