"""Float32 that means float32, whatever the caller allowed for the rest of the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Turn autocast off for a block."""
    if tensor.is_meta:  # a device that has none
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


@contextmanager
def full_float32(tensor: Tensor) -> Iterator[None]:
    """Turn autocast and the reduced-precision float32 products (TF32, bf16) off for a block."""
    with without_autocast(tensor), _ieee_products():
        yield


@contextmanager
def _ieee_products() -> Iterator[None]:
    cuda = torch.backends.cuda.matmul
    # torch 2.9 split the switch by backend and raises when the old one meets a mixed setting.
    if hasattr(cuda, "fp32_precision"):
        switches = [(cuda, "fp32_precision", "ieee")]
        switches += [(torch.backends.mkldnn.matmul, "fp32_precision", "ieee")]  # type: ignore[attr-defined]
        before = [getattr(owner, name) for owner, name, _ in switches]
        try:
            for owner, name, value in switches:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(switches, before, strict=True):
                setattr(owner, name, value)
    else:
        precision = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
