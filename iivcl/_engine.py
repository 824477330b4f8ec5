"""Which engine does the work: the CPU's, in tiles that fit its caches, or that of accelerators.

Accelerators launch few large kernels. Tests force their engine on the CPU, by this one function.
"""

from __future__ import annotations

from torch import Tensor


def on_cpu(tensor: Tensor) -> bool:
    """Whether the CPU does the work on ``tensor``."""
    return tensor.device.type == "cpu"
