"""Float32 that means float32, whatever the caller allowed for the rest of the program."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off for a block."""
    if tensor.is_meta:  # a device that has none
        return nullcontext()
    device = tensor.device.type
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(device):
        return nullcontext()  # a tenth of the other's time
    return torch.autocast(device, enabled=False)


@contextmanager
def full_float32(tensor: Tensor) -> Iterator[None]:
    """Turn autocast and the reduced-precision float32 products (TF32, bf16) off for a block."""
    with without_autocast(tensor), _ieee_products():
        yield


_lock = threading.Lock()
_inside = 0  # blocks that are open, in all threads
_before: list[tuple[object, str, str]] = []  # switches as they were when the first was entered


@contextmanager
def _ieee_products() -> Iterator[None]:
    """Switch for the whole process, until the last of the threads that are inside has left."""
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _before[:] = _set([(owner, name, "ieee") for owner, name in _switches()])
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(_before)


def _switches() -> list[tuple[object, str]]:
    # torch 2.9 split the switch by backend and raises when the old one meets a mixed setting.
    cuda, mkldnn = torch.backends.cuda.matmul, torch.backends.mkldnn
    if hasattr(cuda, "fp32_precision"):
        return [(cuda, "fp32_precision"), (mkldnn.matmul, "fp32_precision")]  # type: ignore[attr-defined]
    return [(_OldSwitch(), "precision")]


class _OldSwitch:
    """The one switch of torch up to 2.8, as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision("highest" if value == "ieee" else value)


def _set(switches: list[tuple[object, str, str]]) -> list[tuple[object, str, str]]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    for owner, name, value in switches:
        setattr(owner, name, value)
    return before
