"""Float32 that means float32, whatever the caller allowed for the rest of the program."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off for a block."""
    device = tensor.device.type
    if tensor.is_meta:  # a device that has none
        return nullcontext()
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(device):
        return nullcontext()  # a tenth of the cost
    return torch.autocast(device, enabled=False)


@contextmanager
def full_float32(tensor: Tensor) -> Iterator[None]:
    """Turn autocast and the reduced-precision float32 products (TF32, bf16) off for a block."""
    with without_autocast(tensor), _SWITCHES["cuda" if tensor.is_cuda else "cpu"].ieee():
        yield


class _Switch:
    """What products may do to float32, for the whole process: an attribute of torch.

    It stays switched until the last of the threads that are inside has left.
    """

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name
        self.lock, self.inside, self.before = threading.Lock(), 0, ""

    @contextmanager
    def ieee(self) -> Iterator[None]:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.before = getattr(self.owner, self.name)
                setattr(self.owner, self.name, "ieee")
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    setattr(self.owner, self.name, self.before)


class _Old:
    """The one switch of torch up to 2.8, as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision("highest" if value == "ieee" else value)


def _switches() -> dict[str, _Switch]:
    # torch 2.9 split the switch by backend and raises when the old one meets a mixed setting.
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn
    if hasattr(cuda, "fp32_precision"):
        cpu_products = cpu.matmul  # type: ignore[attr-defined]
        return {n: _Switch(o, "fp32_precision") for n, o in (("cuda", cuda), ("cpu", cpu_products))}
    return dict.fromkeys(("cuda", "cpu"), _Switch(_Old(), "precision"))


_SWITCHES = _switches()
