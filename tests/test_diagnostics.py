"""Diagnostics against loops and laws."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor

from iivcl.diagnostics import (
    effective_rank,
    embedding_std,
    neighbor_age,
    neighbor_purity,
    self_match_rate,
)
from iivcl.queues import Neighbors, NNSupportQueue


def make_neighbors(B: int, k: int, K: int) -> Neighbors:
    similarity = torch.rand(B, k).sort(dim=1, descending=True).values
    valid = torch.rand(B, k).sort(dim=1).values < 0.6
    return Neighbors(
        similarity.masked_fill(~valid, -torch.inf),
        torch.randint(K, (B, k)).masked_fill(~valid, 0),
        valid,
    )


def mean_over_valid(neighbors: Neighbors, value) -> float:
    """Average ``value(query, row)`` with a loop."""
    values = [
        value(b, int(neighbors.indices[b, j]))
        for b in range(neighbors.indices.shape[0])
        for j in range(neighbors.indices.shape[1])
        if neighbors.valid[b, j]
    ]
    return sum(values) / len(values)


def random_rotation(D: int) -> Tensor:
    return torch.linalg.qr(torch.randn(D, D))[0]


class TestEmbeddingStd:
    def test_equals_a_loop_in_float64(self) -> None:
        z = torch.randn(20, 5)
        unit = [[v / math.hypot(*row) for v in row] for row in z.double().tolist()]
        stds = []
        for column in zip(*unit, strict=True):
            mean = sum(column) / 20
            stds.append(math.sqrt(sum((v - mean) ** 2 for v in column) / 20))
        assert float(embedding_std(z)) == pytest.approx(sum(stds) / 5, rel=1e-5)

    def test_spread_over_the_sphere(self) -> None:
        assert float(embedding_std(torch.randn(20000, 16))) == pytest.approx(0.25, rel=0.01)

    def test_collapse_is_zero_whatever_the_lengths(self) -> None:
        z = torch.randn(1, 8) * torch.rand(32, 1).add(0.1)
        assert float(embedding_std(z)) < 1e-6

    @pytest.mark.parametrize("B", [1, 2, 50])
    def test_never_above_the_bound(self, B: int) -> None:
        assert float(embedding_std(torch.randn(B, 8))) <= 8**-0.5 + 1e-6


class TestEffectiveRank:
    @pytest.mark.parametrize("rank", [1, 3, 8])
    def test_equal_singular_values_count_the_directions(self, rank: int) -> None:
        basis = random_rotation(30)[:, :rank] @ random_rotation(8)[:rank]  # (30, 8), sigma = 1
        assert float(effective_rank(basis)) == pytest.approx(rank, rel=1e-4)

    def test_two_singular_values_by_hand(self) -> None:
        entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
        got = effective_rank(torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
        assert float(got) == pytest.approx(math.exp(entropy))

    def test_invariant_to_scale_rotation_and_order(self) -> None:
        z = torch.randn(40, 6) * torch.rand(6)
        expected = float(effective_rank(z))
        for other in (z * 100, z @ random_rotation(6), z[torch.randperm(40)]):
            assert float(effective_rank(other)) == pytest.approx(expected, rel=1e-4)
        assert 1 <= expected <= 6

    def test_all_zero_is_nan(self) -> None:
        assert effective_rank(torch.zeros(4, 3)).isnan()


class TestNeighbors:
    def test_purity_equals_a_loop(self) -> None:
        neighbors = make_neighbors(12, 5, K=30)
        queue_labels, labels = torch.randint(3, (30,)), torch.randint(3, (12,))
        expected = mean_over_valid(neighbors, lambda b, row: queue_labels[row] == labels[b])
        got = neighbor_purity(neighbors, queue_labels, labels)
        assert float(got) == pytest.approx(float(expected))

    def test_self_match_equals_a_loop(self) -> None:
        neighbors = make_neighbors(12, 5, K=30)
        queue_ids, ids = torch.randint(6, (30,)), torch.arange(12) % 6
        expected = mean_over_valid(neighbors, lambda b, row: queue_ids[row] == ids[b])
        assert float(self_match_rate(neighbors, queue_ids, ids)) == pytest.approx(float(expected))

    def test_age_equals_a_loop(self) -> None:
        neighbors = make_neighbors(12, 5, K=30)
        ages = torch.randint(100, (30,))
        expected = mean_over_valid(neighbors, lambda b, row: int(ages[row]))
        assert float(neighbor_age(neighbors, ages)) == pytest.approx(expected)

    def test_on_a_queue(self) -> None:
        queue = NNSupportQueue(8, 2)
        queue.enqueue(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        queue.enqueue(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), torch.tensor([2, 3]))
        labels_of_video = torch.tensor([5, 6, 5, 5])
        ids = torch.tensor([0, 1])
        found = queue.nearest(torch.eye(2), k=1, ids=ids)  # rows 2 and 3, of the second call
        purity = neighbor_purity(found, labels_of_video[queue.ids], labels_of_video[ids])
        assert float(purity) == 0.5
        assert float(self_match_rate(found, queue.ids, ids)) == 0.0
        assert float(neighbor_age(found, queue.ages)) == 0.0

    def test_entries_that_are_not_valid_do_not_count(self) -> None:
        some = make_neighbors(6, 4, K=10)
        changed = some._replace(indices=torch.where(some.valid, some.indices, 9))
        for measure, rest in (
            (neighbor_purity, (torch.arange(10) % 2, torch.ones(6, dtype=torch.int64))),
            (self_match_rate, (torch.arange(10) % 2, torch.ones(6, dtype=torch.int64))),
            (neighbor_age, (torch.arange(10),)),
        ):
            assert torch.equal(measure(some, *rest), measure(changed, *rest))

    def test_nan_when_none_is_valid(self) -> None:
        found = NNSupportQueue(4, 2).nearest(torch.eye(2), k=3)  # an empty queue
        bank, values = torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        assert neighbor_purity(found, bank, values).isnan()
        assert self_match_rate(found, bank, values).isnan()
        assert neighbor_age(found, bank).isnan()

    def test_any_integer_but_that_of_the_unknown_is_an_id(self) -> None:
        found = Neighbors(torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 1]]), torch.ones(1, 2) > 0)
        for own in (-5, 7, -(2**62)):
            rate = self_match_rate(found, torch.tensor([own, 3]), torch.tensor([own]))
            assert rate == 0.5

    def test_ages_are_integers(self) -> None:
        with pytest.raises(TypeError, match=r"^`ages` must be an integer tensor; got "):
            neighbor_age(make_neighbors(2, 3, 4), torch.rand(4))

    def test_unknown_labels_and_ids_do_not_count(self) -> None:
        neighbors = make_neighbors(12, 5, K=30)
        bank, values = torch.randint(3, (30,)), torch.randint(3, (12,))
        bank[::3] = values[::4] = -1
        for measure in (neighbor_purity, self_match_rate):
            pairs = [
                (bank[row], values[b])
                for b in range(12)
                for row, valid in zip(neighbors.indices[b], neighbors.valid[b], strict=True)
                if valid and bank[row] >= 0 and values[b] >= 0
            ]
            expected = sum(found == own for found, own in pairs) / len(pairs)
            assert float(measure(neighbors, bank, values)) == pytest.approx(float(expected))
            assert measure(neighbors, bank * 0 - 1, values * 0 - 1).isnan()

    @pytest.mark.parametrize("measure", [embedding_std, effective_rank])
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_nan_when_an_embedding_is_not_finite(self, measure, bad: float) -> None:
        z = torch.randn(6, 4)
        z[2, 1] = bad
        assert measure(z).isnan()

    @pytest.mark.parametrize("measure", [embedding_std, effective_rank])
    @pytest.mark.parametrize("factor", [2.0**-100, 2.0**100])
    def test_embeddings_of_any_finite_length(self, measure, factor: float) -> None:
        z = torch.randn(6, 4)
        torch.testing.assert_close(measure(z * factor), measure(z))

    def test_results_are_float32_scalars(self) -> None:
        neighbors = make_neighbors(6, 4, K=10)
        bank, values = torch.arange(10), torch.arange(6)
        z = torch.randn(6, 4, dtype=torch.bfloat16, requires_grad=True)
        for result in (
            embedding_std(z),
            effective_rank(z),
            neighbor_purity(neighbors, bank, values),
            self_match_rate(neighbors, bank, values),
            neighbor_age(neighbors, bank),
        ):
            assert (result.shape, result.dtype) == ((), torch.float32)
            assert not result.requires_grad

    def test_other_device(self) -> None:
        neighbors = make_neighbors(6, 4, K=10)
        message = "`queue_ids` is on meta but `neighbors` is on cpu; move them to the same device"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            self_match_rate(neighbors, torch.arange(10, device="meta"), torch.arange(6))

    def test_unfit_shapes(self) -> None:
        neighbors = make_neighbors(6, 4, K=10)
        message = "`labels` must have shape (B,) with B=6 (from `neighbors`); got (5,)"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            neighbor_purity(neighbors, torch.arange(10), torch.arange(5))
        message = "`queue_ids` must have shape (K,); got (2, 5)"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            self_match_rate(neighbors, torch.zeros(2, 5), torch.arange(6))
        message = "`embeddings` must have shape (B, D); got (3,)"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            embedding_std(torch.zeros(3))
