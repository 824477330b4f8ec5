"""Random numbers that depend on the seed and on what is read alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from iivcl._checks import check_at_least

__all__ = ["Draws"]

_Purpose = Literal["starts", "transform", "substitutes", "order"]


_turns = threading.RLock()  # a transform may itself read a sample
if hasattr(os, "register_at_fork"):  # a forked worker must not wait for threads left behind
    os.register_at_fork(after_in_child=_turns._at_fork_reinit)  # type: ignore[attr-defined]


class Draws:
    """Generators that are each seeded by (seed, address, purpose).

    The address is the numbers that name one reading, such as the epoch and the index of the video.
    """

    def __init__(self, seed: int) -> None:
        check_at_least(0, seed=seed)
        self._seed = seed

    def generator(self, purpose: _Purpose, *address: int) -> torch.Generator:
        """Seed a generator of its own for each purpose and address."""
        key = [self._seed, *address, get_args(_Purpose).index(purpose)]
        [state] = np.random.SeedSequence(key).generate_state(1, np.uint64)
        return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))

    def transform(
        self, clips: Tensor, transform: Callable[[Tensor], Any] | None, *address: int
    ) -> Any:
        """Transform clips; PyTorch's global random state comes from the address meanwhile.

        There is one such state in a process, so that its threads take turns.
        """
        if transform is None:
            return clips
        with _turns, torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.generator("transform", *address).get_state())
            return transform(clips)
