"""The check for distributed losses passes right ones and catches the usual wrong ones."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from some_losses import batch_negatives_of_all_ranks, constant, divide_by_rank

from iivcl import IIVCLLoss, NNSupportQueue
from iivcl.testing import assert_ddp_equivalent, run_on_ranks


def test_negatives_of_all_ranks_pass() -> None:
    """The loss with a queue stands in the docstring's example, which the tests run as well."""
    assert_ddp_equivalent(batch_negatives_of_all_ranks, world_size=2)


def test_negatives_of_the_own_rank_only_are_caught() -> None:
    queue = NNSupportQueue(32, 16, distributed="local")
    queue.enqueue(torch.randn(32, 16), torch.arange(32))
    loss_fn = partial(IIVCLLoss(num_neighbors=3, batch_negatives=True), queue=queue)
    message = "the mean of the ranks' losses is not that of one process on the concatenated batch"
    with pytest.raises(AssertionError, match=f"^{re.escape(message)}: largest difference 0\\.\\d+"):
        assert_ddp_equivalent(loss_fn, world_size=2)


@pytest.mark.slow
def test_a_loss_without_gradient_is_caught() -> None:
    with pytest.raises(Exception, match="does not require grad"):
        assert_ddp_equivalent(constant, world_size=2)


def test_what_cannot_be_pickled_is_refused_before_any_process_starts() -> None:
    with pytest.raises(TypeError, match=r"must be picklable.*not as a lambda"):
        assert_ddp_equivalent(lambda query, key, *, ids: query.sum())
    with pytest.raises(ValueError, match=r"^`world_size` must be at least 2; got 1$"):
        assert_ddp_equivalent(constant, world_size=1)


def test_a_failing_rank_is_reported_with_its_traceback() -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="ZeroDivisionError"):
        run_on_ranks(1, divide_by_rank)
