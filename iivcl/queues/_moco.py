"""The ring of past keys, as tensors only: its whole state is in its state_dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from iivcl._candidates import Candidates
from iivcl._checks import (
    check_at_least,
    check_choice,
    check_embeddings,
    check_ids,
    check_same_device,
    normalize_alike,
)
from iivcl.queues._placement import Distribution, Placement

__all__ = ["MoCoQueue"]


class MoCoQueue(nn.Module):
    """The last K keys, each with the id of its video and the call that wrote it.

    The queue starts empty: a row that was never written is not `valid`, and neither the losses nor
    the lookup ever see it. `enqueue` is the only call that writes.

    With a process group, ``distributed`` says what the ranks hold:

    - ``"gather"``: every rank writes the keys of all ranks in rank-major order, so all queues are
      the same.
    - ``"local"``: every rank writes its own keys only; the queues differ.
    - ``"shard"``: as ``"local"``, but the world's queues count as one of world x K rows, and
      lookup and losses run over all of them. Row i of rank r has the global index r x K + i.

    The state is in the `state_dict` and follows ``.to(device)``, but it is deliberately not
    registered as buffers: `DistributedDataParallel` would overwrite every rank's queue with rank
    0's, and ``.half()`` of a parent module would round the keys.

    Attributes:
        keys: (K, D) float32, of unit length.
        ids: (K,) int64 id of the video of each row; -1 where no id was given.
        stamps: (K,) int64 number of the enqueue call that wrote the row; -1 where none did.
        cursor: () int64, the row that is written next.
        step: () int64, the number of enqueue calls so far.

    Args:
        size: K, number of rows (of this rank, for ``"shard"``).
        dim: D, length of a key.
        distributed: What the ranks of a process group hold.
        check_finite: Raise when a key is not finite. The check makes the host wait for the device.
            Without it such a key takes its place in the ring as a row that is not valid.

    Example:
        >>> import torch
        >>> queue = MoCoQueue(4, 2)
        >>> queue.enqueue(torch.tensor([[3.0, 4.0]]), torch.tensor([7]))
        >>> len(queue), queue.keys[0], queue.ids
        (1, tensor([0.6000, 0.8000]), tensor([ 7, -1, -1, -1]))

    Source: He et al., Momentum Contrast, arXiv 1911.05722, section 3.1.
    """

    _state = ("keys", "ids", "stamps", "cursor", "step", "has_ids")

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        distributed: Distribution = "gather",
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(1, size=size, dim=dim)
        check_choice("distributed", distributed, ("gather", "local", "shard"))
        self.size, self.dim = size, dim
        self.distributed, self.check_finite = distributed, check_finite
        self._make_rows(size)
        with torch.inference_mode(False):
            self.cursor, self.step = torch.tensor(0), torch.tensor(0)
        # Whether keys come with ids is settled by the first enqueue and known to the host, so that
        # leaving ids out later is an error and not a silent match.
        self._has_ids: bool | None = None

    def _make_rows(self, size: int, device: torch.device | None = None) -> None:
        with torch.inference_mode(False):  # else they could not be written outside of it
            self.keys = torch.zeros(size, self.dim, dtype=torch.float32, device=device)
            self.ids = torch.full((size,), -1, device=device)
            self.stamps = torch.full((size,), -1, device=device)

    @property
    def valid(self) -> Tensor:
        """Rows that hold a key, (K,) bool."""
        return self.stamps >= 0

    @property
    def filled(self) -> Tensor:
        """Number of rows that hold a key, () int64, without waiting for the device."""
        return self.valid.sum()

    @property
    def ages(self) -> Tensor:
        """Enqueue calls since each row was written, (K,) int64: 0 for the newest, -1 for never."""
        return torch.where(self.valid, self.step - 1 - self.stamps, -1)

    @property
    def placement(self) -> Placement:
        """Where the rows live, as the process group is now."""
        return Placement.of(self.distributed, self.size)

    def __len__(self) -> int:
        return int(self.filled)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor | None = None) -> None:
        """Write a batch of keys over the oldest rows.

        Any batch size is taken; of more than K keys the last K stay. With ``"gather"``, the ranks
        may pass different numbers of keys.

        Args:
            keys: (B, D) float; normalised here.
            ids: (B,) integer id of the video (or group of videos) of each key. Give them always or
                never, and a video of which nothing is known one of its own: all rows of id -1 are
                one group as well.

        Raises:
            ValueError: A shape or device does not fit, ids are missing or unexpected, or a key is
                not finite and ``check_finite`` is set.
            TypeError: ``keys`` is not floating-point or ``ids`` not integer.
        """
        self.check_rows("keys", keys)
        self.check_ids(ids, keys, "keys")
        if self.check_finite and not bool(keys.isfinite().all()):
            bad = (~keys.isfinite().all(1)).nonzero().flatten().tolist()
            raise ValueError(f"`keys` must be finite; rows {bad} are not. Nothing was written")
        if self._has_ids is None:
            self._has_ids = ids is not None
        (keys,) = normalize_alike(keys)  # in float64 if they are, whose range is wider
        keys = keys.float()
        ids = self.ids.new_full(keys.shape[:1], -1) if ids is None else ids.to(torch.int64)
        keys, ids = self.placement.to_write(keys, ids)
        self._write(keys[-self.size :], ids[-self.size :])

    def _write(self, keys: Tensor, ids: Tensor) -> None:
        count = keys.shape[0]
        places = (self.cursor + torch.arange(count + 1, device=keys.device)) % self.size
        rows, after = places[:-1], places[-1]
        bad = keys.sum(1).isnan()  # the key was not finite
        self.keys.index_copy_(0, rows, keys.nan_to_num(nan=0.0))
        self.ids.index_copy_(0, rows, ids)
        self.stamps.index_copy_(0, rows, self.step.expand(count).masked_fill(bad, -1))
        self.cursor.copy_(after)
        self.step.add_(1)

    def candidates(self, ids: Tensor | None = None, *, min_age: int = 0) -> Candidates:
        """Describe this rank's rows that were written ``min_age`` calls ago or before.

        Rows of the same id as the query's, of ``ids`` (B,), do not count for it.

        Example:
            >>> import torch
            >>> queue = MoCoQueue(4, 2)
            >>> queue.enqueue(torch.eye(2), torch.tensor([7, 8]))
            >>> queue.candidates(torch.tensor([7])).log_sum_exp(torch.tensor([[0.0, 1.0]]))
            tensor([1.])
        """
        check_at_least(0, min_age=min_age)
        rows = self.valid if min_age == 0 else self.valid & (self.ages >= min_age)
        return Candidates(self.keys, rows, ids=self.ids, query_ids=ids, normalized=True)

    def resize_(self, size: int) -> Self:
        """Change the capacity in place, keeping the newest rows in their order.

        Args:
            size: The new K. Rows beyond it, oldest first, are dropped.

        Returns:
            The queue itself.

        Example:
            >>> import torch
            >>> queue = MoCoQueue(4, 1)
            >>> queue.enqueue(torch.ones(3, 1), torch.tensor([5, 6, 7]))
            >>> queue.resize_(2).ids
            tensor([6, 7])
        """
        check_at_least(1, size=size)
        oldest_first = (self.cursor + torch.arange(self.size, device=self.keys.device)) % self.size
        kept = oldest_first[self.valid[oldest_first]][-size:]
        rows = {name: getattr(self, name)[kept] for name in ("keys", "ids", "stamps")}
        self._make_rows(size, self.keys.device)
        for name, newest in rows.items():
            getattr(self, name)[: len(kept)] = newest
        self.cursor.fill_(len(kept) % size)
        self.size = size
        return self

    def assert_synced(self) -> None:
        """Raise when the ranks' queues differ where they should be the same.

        Compares one checksum per rank: a collective, and a wait for the device. Only ``"gather"``
        queues can be out of step.

        Raises:
            RuntimeError: The queues of two ranks differ.
        """
        bits = self.keys.view(torch.int32).to(torch.int64)
        place = torch.arange(1, self.size + 1, device=bits.device)
        rows = ((bits.sum(1) * place).sum(), (self.ids * place).sum(), (self.stamps * place).sum())
        self.placement.assert_synced(torch.stack([*rows, self.cursor, self.step]))

    def check_ids(self, ids: Tensor | None, rows: Tensor, source: str) -> None:
        """Check ids that go with ``rows``: one per row, and given just where the queue has them."""
        if ids is not None:
            check_ids("ids", ids, rows.shape[0], source)
            check_same_device("ids", ids, "queue", self.keys)
            if self._has_ids is False:
                raise ValueError(
                    "`ids` were given, but this queue was filled without ids; "
                    "pass ids to every call of `enqueue` or to none"
                )
        elif self._has_ids:
            raise ValueError("`ids` must be given: this queue was filled with ids; got None")

    def check_rows(self, name: str, rows: Tensor) -> None:
        check_embeddings(name, rows, "B D", D=(self.dim, "queue"))
        check_same_device(name, rows, "queue", self.keys)

    @property
    def has_ids(self) -> Tensor:
        """Whether rows have ids, () int64 for the state_dict: 1 yes, 0 no, -1 not settled."""
        known = -1 if self._has_ids is None else int(self._has_ids)
        return torch.tensor(known, device="cpu")  # read when it is loaded

    @has_ids.setter
    def has_ids(self, value: Tensor) -> None:
        self._has_ids = None if value < 0 else bool(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("keys", "ids", "stamps", "cursor", "step"):
            before = getattr(self, name)
            after = fn(before)
            # Follow a move to another device, not a change of precision.
            setattr(self, name, after if after.dtype == before.dtype else before.to(after.device))
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._state:
            destination[prefix + name] = getattr(self, name).detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {n: state_dict[prefix + n] for n in self._state if prefix + n in state_dict}
        others = {key: v for key, v in state_dict.items() if key[len(prefix) :] not in given}
        super()._load_from_state_dict(
            others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        missing_keys += [prefix + name for name in self._state if name not in given]
        shapes = {n: (tuple(v.shape), tuple(getattr(self, n).shape)) for n, v in given.items()}
        wrong = [
            f"{prefix}{name}: the checkpoint has {saved}, this queue {own}"
            for name, (saved, own) in shapes.items()
            if saved != own
        ]
        assign = local_metadata.get("assign_to_params_buffers", False)
        if wrong:  # nothing is loaded rather than half of it
            other_dim = "keys" in shapes and shapes["keys"][0][1:] != (self.dim,)
            resize = "size, load it, and then call `resize_(size)` to keep the newest rows"
            remedy = "dim; other keys cannot be compared" if other_dim else resize
            error_msgs.append(f"{'; '.join(wrong)}. Build the queue with the checkpoint's {remedy}")
        elif self.keys.is_meta and not assign:
            error_msgs.append(f"{prefix}keys is on meta, which holds no values; pass assign=True")
        else:
            for name, value in given.items():
                if name == "has_ids":
                    self.has_ids = value
                elif assign:
                    setattr(self, name, value.to(getattr(self, name).dtype))
                else:
                    getattr(self, name).copy_(value)

    def extra_repr(self) -> str:
        """Describe the queue in its repr."""
        return f"size={self.size}, dim={self.dim}, distributed={self.distributed!r}"
