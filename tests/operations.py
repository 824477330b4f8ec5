"""How many operations would launch a kernel on a GPU, counted on tensors of the CPU.

Views launch nothing. Custom operators are opened: what they run is counted, not they. Composites,
which are one operation on the CPU, count as the kernels that a GPU was seen to launch for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

# Kernels of one call, by torch's profiler on an H200: the largest logit, its absolute value, its
# comparison with infinity, its filling, the difference, the exponential, the sum, the logarithm and
# the last sum. The kernels of `topk` and `sort` depend on sizes; each is one call here.
KERNELS = {"logsumexp": 9, "topk": 1, "sort": 1}

# They allocate, or only look at a tensor differently.
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach",
    "_unsafe_view", "promote_types", "_reshape_alias", "lift_fresh", "alias", "set_",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "iivcl":
            with self:
                return OPDEFS[f"iivcl::{func._opname}"]._init_fn(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        returns = func._schema.returns
        is_view = bool(returns) and returns[0].alias_info is not None and not is_write(returns[0])
        if not is_view and name not in FREE:
            self.counts[name] += KERNELS.get(name, 1)
        return func(*args, **kwargs)


def is_write(returned: Any) -> bool:
    return bool(returned.alias_info.is_write)


def count(run: Callable[[], object]) -> Counter[str]:
    """Count what ``run`` launches."""
    with Operations() as operations:
        run()
    return operations.counts
