"""The losses against float64 loops, and the laws that hold for all of them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iivcl import IIVCLLoss, InfoNCELoss, MoCoQueue, NNSupportQueue, _engine
from iivcl.losses import Candidates, info_nce, multi_positive_info_nce
from iivcl.queues import Neighbors

FORMS = ("per_positive", "out", "in")


def random_problem(
    seed: int, batch: int = 6, keys: int = 11, dim: int = 5, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (batch + keys,), generator=generator)
    return {
        "query": torch.randn(batch, dim, generator=generator, dtype=dtype),
        "keys": torch.randn(keys, dim, generator=generator, dtype=dtype),
        "positive_mask": label[:batch, None] == label[batch:],
        "ignore_mask": torch.rand(batch, keys, generator=generator) < 0.2,
        "positive_weights": torch.rand(batch, keys, generator=generator, dtype=dtype) * 2,
    }


# --- multi_positive_info_nce ---------------------------------------------------------------------


@given(
    batch=st.integers(0, 5),
    keys=st.integers(0, 7),
    form=st.sampled_from(FORMS),
    temperature=st.floats(0.01, 5),
    masked=st.booleans(),
    weighted=st.booleans(),
    chunk_size=st.sampled_from(["dense", 1, 3, 100]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300, deadline=None)
def test_equals_the_loop(
    batch: int,
    keys: int,
    form: Any,
    temperature: float,
    masked: bool,
    weighted: bool,
    chunk_size: Any,
    seed: int,
) -> None:
    problem = random_problem(seed, batch, keys)
    if not masked:
        problem["ignore_mask"] = None
    if not weighted:
        problem["positive_weights"] = None
    expected = reference.multi_positive(
        problem["query"],
        problem["keys"],
        problem["positive_mask"],
        ignore=problem["ignore_mask"],
        weights=problem["positive_weights"],
        temperature=temperature,
        form=form,
    )
    options = {"temperature": temperature, "form": form, "chunk_size": chunk_size}
    rows = multi_positive_info_nce(**problem, **options, reduction="none")
    zeros = [0.0 if math.isnan(x) else x for x in expected]
    assert rows.tolist() == pytest.approx(zeros, rel=1e-9, abs=1e-9)
    total = multi_positive_info_nce(**problem, **options, reduction="sum")
    assert total.item() == pytest.approx(sum(zeros), rel=1e-9, abs=1e-9)
    mean = multi_positive_info_nce(**problem, **options)
    assert mean.item() == pytest.approx(reference.mean_of_rows(expected), rel=1e-9, abs=1e-9)


def test_the_three_forms_are_different_losses() -> None:
    """Two positives at logits 1 and 0, one negative at 0: values done by hand."""
    query = torch.tensor([[1.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    positive = torch.tensor([[True, True, False]])
    by_hand = {
        "per_positive": (math.log(1 + math.exp(-1)) + math.log(2)) / 2,
        "out": math.log(math.e + 2) - 0.5,
        "in": math.log(math.e + 2) - math.log(math.e + 1),
    }
    for form, value in by_hand.items():
        loss = multi_positive_info_nce(query, keys, positive, temperature=1.0, form=form)  # type: ignore[arg-type]
        assert loss.item() == pytest.approx(value, abs=1e-6), form


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", ["dense", 2, 4, 50])
def test_one_positive_is_cross_entropy(form: Any, chunk_size: Any) -> None:
    query, keys = torch.randn(7, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    target = torch.randint(9, (7,))
    logits = F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T / 0.2
    loss = multi_positive_info_nce(
        query,
        keys,
        F.one_hot(target, 9).bool(),
        temperature=0.2,
        form=form,
        chunk_size=chunk_size,
    )
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", ["dense", 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(form: Any, chunk_size: Any, weighted: bool) -> None:
    problem = random_problem(3)
    query = problem.pop("query").requires_grad_()
    keys = problem.pop("keys").requires_grad_()
    if not weighted:
        problem["positive_weights"] = None

    def loss(query: Tensor, keys: Tensor) -> Tensor:
        return multi_positive_info_nce(
            query, keys, **problem, form=form, chunk_size=chunk_size, reduction="none"
        )

    assert torch.autograd.gradcheck(loss, (query, keys))
    if chunk_size == "dense":
        assert torch.autograd.gradgradcheck(loss, (query, keys))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk_size", [1, 64, 100, 1000])
def test_streaming_equals_dense(
    form: Any, dtype: torch.dtype, bound: float, chunk_size: int
) -> None:
    problem = random_problem(5, batch=20, keys=300, dim=16, dtype=dtype)
    results = []
    for size in ("dense", chunk_size):
        query = problem["query"].clone().requires_grad_()
        keys = problem["keys"].clone().requires_grad_()
        loss = multi_positive_info_nce(
            **(problem | {"query": query, "keys": keys}),
            form=form,
            chunk_size=size,  # type: ignore[arg-type]
        )
        loss.backward()
        results.append((loss.detach(), query.grad, keys.grad))
    for dense, streaming in zip(*results, strict=True):
        torch.testing.assert_close(streaming, dense, rtol=bound, atol=bound)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", ["dense", 3])
def test_permutation_of_keys_and_rows(form: Any, chunk_size: Any) -> None:
    problem = random_problem(1)
    rows, columns = torch.randperm(6), torch.randperm(11)
    moved = {
        "query": problem["query"][rows],
        "keys": problem["keys"][columns],
        **{
            name: problem[name][rows][:, columns]
            for name in ("positive_mask", "ignore_mask", "positive_weights")
        },
    }
    options = {"form": form, "chunk_size": chunk_size, "reduction": "none"}
    torch.testing.assert_close(
        multi_positive_info_nce(**moved, **options),
        multi_positive_info_nce(**problem, **options)[rows],
    )


@pytest.mark.parametrize("form", FORMS)
def test_only_directions_count(form: Any) -> None:
    problem = random_problem(2)
    scaled = problem | {
        "query": problem["query"] * torch.rand(6, 1) * 100,
        "keys": problem["keys"] * torch.rand(11, 1) * 0.01,
        "positive_weights": problem["positive_weights"] * 7,
    }
    torch.testing.assert_close(
        multi_positive_info_nce(**scaled, form=form), multi_positive_info_nce(**problem, form=form)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", ["dense", 2])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_the_corners_in_every_precision(
    form: Any, chunk_size: Any, temperature: float, dtype: torch.dtype
) -> None:
    """Cosines of exactly 1 and -1 on both sides, a row without positives, and one without rest."""
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=dtype, requires_grad=True)
    keys = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], dtype=dtype, requires_grad=True)
    positive = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
    for ignore in (None, torch.tensor([[False, True, True]]).expand(3, 3)):
        options = {"temperature": temperature, "form": form, "chunk_size": chunk_size}
        rows = multi_positive_info_nce(
            query, keys, positive, ignore_mask=ignore, reduction="none", **options
        )
        expected = reference.multi_positive(
            query, keys, positive, ignore=ignore, temperature=temperature, form=form
        )
        assert rows.dtype == torch.float32
        zeros = [0.0 if math.isnan(x) else x for x in expected]
        assert rows.tolist() == pytest.approx(zeros, rel=1e-5, abs=1e-5)
        for grad in torch.autograd.grad(rows.sum(), (query, keys)):
            assert grad.isfinite().all()


@pytest.mark.parametrize("chunk_size", ["dense", 2])
@pytest.mark.parametrize("form", FORMS)
def test_autocast_changes_nothing(form: Any, chunk_size: Any) -> None:
    problem = random_problem(4, dtype=torch.float32)
    query = problem["query"].requires_grad_()
    plain = multi_positive_info_nce(**problem, form=form, chunk_size=chunk_size)
    (plain_grad,) = torch.autograd.grad(plain, query)
    with torch.autocast("cpu", torch.bfloat16):
        cast = multi_positive_info_nce(**problem, form=form, chunk_size=chunk_size)
    (cast_grad,) = torch.autograd.grad(cast, query)
    assert torch.equal(cast, plain)
    assert torch.equal(cast_grad, plain_grad)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", ["dense", 2])
def test_no_positive_anywhere_gives_zero_and_no_gradient(form: Any, chunk_size: Any) -> None:
    query, keys = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = multi_positive_info_nce(
        query, keys, torch.zeros(3, 5, dtype=torch.bool), form=form, chunk_size=chunk_size
    )
    loss.backward()
    assert loss.item() == 0
    for tensor in (query, keys):
        assert tensor.grad is not None
        assert (tensor.grad == 0).all()


@pytest.mark.parametrize(
    ("backend", "forms"), [("eager", FORMS), ("inductor", ("out",))], ids=["eager", "inductor"]
)
@pytest.mark.parametrize("chunk_size", ["dense", 4])
def test_compiles_without_a_graph_break(
    backend: str, forms: tuple[Any, ...], chunk_size: Any
) -> None:
    torch._dynamo.reset()
    problem = random_problem(6, dtype=torch.float32)
    query = problem["query"].requires_grad_()

    def losses(problem: dict[str, Any]) -> Tensor:
        return torch.stack(
            [multi_positive_info_nce(**problem, form=f, chunk_size=chunk_size) for f in forms]
        )

    compiled = torch.compile(losses, fullgraph=True, backend=backend)(problem)
    torch.testing.assert_close(compiled, losses(problem))
    torch.testing.assert_close(
        torch.autograd.grad(compiled.sum(), query)[0],
        torch.autograd.grad(losses(problem).sum(), query)[0],
    )


# --- info_nce ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("clips", [None, 1, 3])
@pytest.mark.parametrize("chunk_size", [None, "dense", 3])
def test_info_nce_is_multi_positive_on_the_union(
    form: Any, clips: int | None, chunk_size: Any
) -> None:
    batch, rows, dim = 4, 7, 5
    query = torch.randn(batch, dim)
    positives = torch.randn(batch, dim) if clips is None else torch.randn(batch, clips, dim)
    negatives, ignore = torch.randn(rows, dim), torch.rand(batch, rows) < 0.3
    several = positives.view(batch, -1, dim)
    own = torch.eye(batch, dtype=torch.bool).repeat_interleave(several.shape[1], dim=1)
    expected = multi_positive_info_nce(
        query,
        torch.cat([several.flatten(0, 1), negatives]),
        torch.cat([own, torch.zeros_like(ignore)], 1),
        ignore_mask=torch.cat([~own, ignore], 1),
        form=form,
    )
    options = {"temperature": 0.1, "form": form, "chunk_size": chunk_size}
    found = info_nce(query, positives, negatives, ignore_mask=ignore, **options)
    torch.testing.assert_close(found, expected)
    module = InfoNCELoss(**options)
    assert torch.equal(module(query, positives, negatives, ignore_mask=ignore), found)


def test_info_nce_without_negatives_is_zero() -> None:
    query = torch.randn(3, 4, requires_grad=True)
    loss = info_nce(query, torch.randn(3, 4), torch.empty(0, 4))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_info_nce_sends_no_gradient_into_keys() -> None:
    query, positives, negatives = (torch.randn(3, 4, requires_grad=True) for _ in range(3))
    info_nce(query, positives, negatives).backward()
    assert query.grad is not None
    assert positives.grad is None
    assert negatives.grad is None


# --- IIVCLLoss -----------------------------------------------------------------------------------


def filled_queue(
    rows: int, size: int = 12, dim: int = 5, num_ids: int = 6, seed: int = 0
) -> NNSupportQueue:
    generator = torch.Generator().manual_seed(seed)
    queue = NNSupportQueue(size, dim)
    queue.enqueue(
        torch.randn(rows, dim, generator=generator),
        torch.randint(num_ids, (rows,), generator=generator),
    )
    return queue


@given(
    rows=st.integers(0, 14),
    k=st.integers(0, 12),
    clips=st.sampled_from([None, 1, 3]),
    form=st.sampled_from(FORMS),
    batch_negatives=st.booleans(),
    chunk_size=st.sampled_from([None, "dense", 5]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_iivcl_equals_the_loop(
    rows: int,
    k: int,
    clips: int | None,
    form: Any,
    batch_negatives: bool,
    chunk_size: Any,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    queue = filled_queue(rows, seed=seed)
    query = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    shape = (4, 5) if clips is None else (4, clips, 5)
    key = torch.randn(shape, generator=generator, dtype=torch.float64)
    ids = torch.randint(6, (4,), generator=generator)
    options = {"num_neighbors": k, "temperature": 0.1, "form": form}
    options |= {"batch_negatives": batch_negatives}
    out = IIVCLLoss(**options, inter_weight=0.5, chunk_size=chunk_size)(query, key, queue, ids=ids)
    intra, inter = reference.iivcl(query, key, queue.keys, queue.valid, queue.ids, ids, **options)
    assert out.intra.item() == pytest.approx(intra, rel=1e-6, abs=1e-6)
    assert out.inter.item() == pytest.approx(inter, rel=1e-6, abs=1e-6)
    assert out.loss.item() == pytest.approx(intra + 0.5 * inter, rel=1e-6, abs=1e-6)
    assert out.neighbors.indices.shape == (4, k)


def test_inter_is_zero_with_zero_gradient_until_there_is_a_neighbour() -> None:
    queue = NNSupportQueue(8, 4)
    query, key, ids = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.arange(3)
    queue.enqueue(key, ids * 0)  # only rows of video 0
    for criterion, own in ((IIVCLLoss(min_age=1), ids), (IIVCLLoss(), ids * 0)):
        out = criterion(query, key, queue, ids=own)
        assert out.inter.item() == 0
        assert not out.neighbors.valid.any()
        (grad,) = torch.autograd.grad(out.inter, query)
        assert (grad == 0).all()


def test_neighbours_leave_the_negatives() -> None:
    """With every row a neighbour and one form that sees negatives only, nothing is left."""
    queue = filled_queue(4, size=4, num_ids=1)
    query = torch.randn(3, 5)
    out = IIVCLLoss(num_neighbors=4, form="per_positive")(
        query, query, queue, ids=torch.arange(1, 4)
    )
    assert out.neighbors.valid.all()
    assert out.inter.item() == 0


def test_rows_of_the_own_video_count_nowhere() -> None:
    query, key, ids = torch.randn(2, 4), torch.randn(2, 4), torch.tensor([5, 6])
    small, large = NNSupportQueue(8, 4), NNSupportQueue(8, 4)
    others = torch.randn(3, 4)
    small.enqueue(others, torch.arange(3))
    large.enqueue(torch.cat([others, query, key]), torch.tensor([0, 1, 2, 5, 6, 5, 6]))
    criterion = IIVCLLoss(num_neighbors=2, batch_negatives=True)
    one_at_a_time = slice(0, 1)
    expected = criterion(query[one_at_a_time], key[one_at_a_time], small, ids=ids[one_at_a_time])
    # For query 0 the rows of video 6 are ordinary, so take them out as well.
    large.ids[large.ids == 6] = 5
    found = criterion(query[one_at_a_time], key[one_at_a_time], large, ids=ids[one_at_a_time])
    torch.testing.assert_close(found.loss, expected.loss)


def test_separate_head_for_the_inter_term() -> None:
    queue, inter_queue = filled_queue(9, seed=1), filled_queue(12, seed=2)
    query, key, inter_query, inter_key = torch.randn(4, 3, 5)
    ids = torch.tensor([3, 8, 9])
    criterion = IIVCLLoss(num_neighbors=2)
    out = criterion(query, key, queue, ids=ids, inter=(inter_query, inter_key, inter_queue))
    torch.testing.assert_close(out.intra, criterion(query, key, queue, ids=ids).intra)
    assert torch.equal(out.inter, criterion(inter_query, inter_key, inter_queue, ids=ids).inter)
    plain = MoCoQueue(12, 5)
    plain.load_state_dict(queue.state_dict())
    with_plain = criterion(query, key, plain, ids=ids, inter=(inter_query, inter_key, inter_queue))
    assert torch.equal(with_plain.loss, out.loss)


def test_neighbours_of_another_lookup() -> None:
    queue = filled_queue(12, num_ids=4)
    query, key, ids = torch.randn(3, 5), torch.randn(3, 5), torch.arange(3)
    rows = torch.stack([torch.arange(3), torch.arange(6, 9)], 1)
    own = Neighbors(
        torch.zeros(3, 2), rows, torch.tensor([[True, True], [True, False], [True, True]])
    )
    out = IIVCLLoss(form="in")(query, key, queue, ids=ids, neighbors=own)
    positive = torch.zeros(3, 12, dtype=torch.bool).scatter(1, rows, own.valid)
    expected = multi_positive_info_nce(
        query, queue.keys, positive, ignore_mask=ids[:, None] == queue.ids, form="in"
    )
    torch.testing.assert_close(out.inter, expected)
    assert out.neighbors is own


def test_a_lookup_that_a_queue_overrides_is_the_one_that_counts() -> None:
    class FarthestQueue(NNSupportQueue):
        def nearest(self, query: Tensor, k: int = 1, **which: Any) -> Neighbors:
            return super().nearest(-query, k, **which)

    queue, (query, key) = FarthestQueue(12, 5), torch.randn(2, 3, 5)
    queue.enqueue(filled_queue(12).keys, torch.arange(12) + 3)
    out = IIVCLLoss(num_neighbors=2)(query, key, queue, ids=torch.arange(3))
    farthest = (F.normalize(key, dim=1) @ queue.keys.T).topk(2, largest=False)
    assert torch.equal(out.neighbors.indices, farthest.indices)


def test_a_queue_may_be_written_before_the_backward_pass() -> None:
    queue, twin = filled_queue(12), filled_queue(12)
    query, key, ids = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5), torch.arange(3)
    first = IIVCLLoss()(query, key, queue, ids=ids).loss
    second = IIVCLLoss()(query, key, twin, ids=ids).loss
    queue.enqueue(key, ids)
    torch.testing.assert_close(
        torch.autograd.grad(first, query), torch.autograd.grad(second, query)
    )


def test_the_loss_never_writes_and_sends_no_gradient_into_keys() -> None:
    queue = filled_queue(7)
    before = {name: value.clone() for name, value in queue.state_dict().items()}
    query, key = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    IIVCLLoss(batch_negatives=True)(query, key, queue, ids=torch.arange(3)).loss.backward()
    assert key.grad is None
    assert query.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in queue.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_iivcl_in_half_precision_is_that_of_the_rounded_inputs(
    dtype: torch.dtype, temperature: float
) -> None:
    queue = filled_queue(12)
    query, key, ids = torch.randn(3, 5).to(dtype), torch.randn(3, 5).to(dtype), torch.arange(3)
    criterion = IIVCLLoss(num_neighbors=3, temperature=temperature)
    half = criterion(query.requires_grad_(), key, queue, ids=ids)
    full = criterion(query.float(), key.float(), queue, ids=ids)
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, full.loss)
    half.loss.backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("chunk_size", [None, "dense", 100])
def test_a_scaled_loss_keeps_small_gradients_of_float16(chunk_size: Any) -> None:
    """What a scaler of gradients is for: they are scaled before they are rounded."""
    rows = torch.randn(3, 512, 32)
    query = (100 * F.normalize(rows[0], dim=1)).half()  # of a length at which gradients are small
    key, negatives, scale = rows[0] + 0.01 * rows[1], rows[2], 2.0**16

    def gradient(query: Tensor) -> Tensor:
        loss = info_nce(query.requires_grad_(), key, negatives, chunk_size=chunk_size)
        return torch.autograd.grad(loss * scale, query)[0].double()

    half, full = gradient(query.clone()), gradient(query.double())
    assert (half - full).norm() < 1e-3 * full.norm()


@pytest.mark.parametrize("chunk_size", [None, "dense", 5])
@pytest.mark.parametrize("batch_negatives", [False, True])
def test_no_query_has_no_loss(chunk_size: Any, batch_negatives: bool) -> None:
    criterion = IIVCLLoss(chunk_size=chunk_size, batch_negatives=batch_negatives, num_neighbors=2)
    query = torch.zeros(0, 5, requires_grad=True)
    out = criterion(query, query.detach(), filled_queue(7), ids=torch.arange(0))
    out.loss.backward()
    assert [value.item() for value in out[:3]] == [0.0, 0.0, 0.0]
    assert query.grad is not None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.01, 0.1, torch.tensor(0.1)])
@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("rows", [7, 12])
def test_derivatives_computed_with_the_values_are_those_of_autograd(
    form: Any, temperature: Any, on_cpu: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "on_cpu", lambda tensor: on_cpu)
    queue, ids = filled_queue(rows), torch.arange(4)
    query = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    key = torch.randn(4, 2, 5, dtype=torch.float64)
    valid = torch.tensor([[True] * 3, [True, False, True], [False] * 3, [True] * 3])
    indices = torch.tensor([[0, 5, 2], [4, 1, 4], [0, 1, 2], [11, 3, -1]])
    found = Neighbors(torch.zeros(4, 3), indices, valid)
    options = {"form": form, "temperature": temperature}

    def results(chunk_size: Any) -> list[Tensor]:
        criterion = IIVCLLoss(**options, batch_negatives=True, chunk_size=chunk_size)
        values = [*criterion(query, key, queue, ids=ids, neighbors=found)[:3]]
        values += [info_nce(query, key, queue.keys, **options, chunk_size=chunk_size)]
        return [
            x
            for y in values
            for x in (y.detach(), torch.autograd.grad(y, query, retain_graph=True)[0])
        ]

    expected = results("dense")
    for chunk_size in (None, 5):
        torch.testing.assert_close(results(chunk_size), expected)


# --- a loss of a user's own ----------------------------------------------------------------------


def decoupled(query: Tensor, key: Tensor, candidates: Candidates, **options: Any) -> Tensor:
    """Decoupled contrastive learning (arXiv 2110.06848): the positive leaves the denominator."""
    scaled, key = F.normalize(query, dim=1) / 0.1, F.normalize(key, dim=1)
    negatives = candidates.log_sum_exp(scaled, **options)
    return (negatives - (scaled * key).sum(1)).mean()


@pytest.mark.parametrize("chunk_size", [None, "dense", 1, 5, 50])
def test_a_loss_of_ones_own(chunk_size: Any) -> None:
    queue, ids = filled_queue(9), torch.arange(4)
    query, key = torch.randn(2, 4, 5, dtype=torch.float64)
    rows = [[m for m in range(9) if queue.ids[m] != ids[b]] for b in range(4)]
    expected = sum(
        reference.log_sum([reference.cosine(query[b], queue.keys[m]) / 0.1 for m in rows[b]])
        - reference.cosine(query[b], key[b]) / 0.1
        for b in range(4)
    )

    def loss(query: Tensor) -> Tensor:
        return decoupled(query, key, queue.candidates(ids), chunk_size=chunk_size)

    assert loss(query).item() == pytest.approx(expected / 4, rel=1e-6)
    assert torch.autograd.gradcheck(loss, query.requires_grad_())


@given(
    batch=st.integers(0, 4),
    keys=st.integers(0, 9),
    normalized=st.booleans(),
    parts=st.sets(st.sampled_from(["rows", "pairs", "factors", "ids", "without"])),
    chunk_size=st.sampled_from(["dense", 1, 4, 100]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_candidates_that_count_and_no_others(
    batch: int, keys: int, normalized: bool, parts: set[str], chunk_size: Any, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-1, 4, shape, generator=generator)

    problem = random_problem(seed, batch, keys)
    query, rows = problem["query"], problem["keys"]
    which: dict[str, Tensor] = {}
    if "rows" in parts:
        which["rows"] = integers(keys) > 0
    if "pairs" in parts:
        which["pairs"] = integers(batch, keys) > 0
    if "factors" in parts:
        which["pairs"] = problem["positive_weights"] * (integers(batch, keys) > 0)
    if "ids" in parts:
        which |= {"ids": integers(keys), "query_ids": integers(batch)}
    if "without" in parts:
        which["without"] = integers(batch, 2)
    candidates = Candidates(rows, **which, normalized=normalized)
    found = candidates.log_sum_exp(query, chunk_size=chunk_size)
    for b in range(batch):
        logits = []
        for m in range(keys):
            factor = float(which["pairs"][b, m]) if "pairs" in which else 1.0
            counts = factor > 0 and ("rows" not in which or bool(which["rows"][m]))
            counts &= "ids" not in which or bool(which["ids"][m] != which["query_ids"][b])
            counts &= "without" not in which or m not in which["without"][b].tolist()
            if counts:
                key = rows[m].tolist() if normalized else reference.unit(rows[m])
                dot = sum(x * y for x, y in zip(query[b].tolist(), key, strict=True))
                logits.append(dot + math.log(factor))
        expected = reference.log_sum(logits) if logits else -1e30
        assert found[b].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


# --- bad input -----------------------------------------------------------------------------------

Q, K = torch.zeros(2, 4), torch.zeros(3, 4)
MASK = torch.zeros(2, 3, dtype=torch.bool)
BAD_CALLS: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: multi_positive_info_nce(Q, torch.zeros(3, 5), MASK),
        ValueError,
        "`keys` must have shape (M, D) with D=4 (from `query`); got (3, 5)",
    ),
    (
        lambda: multi_positive_info_nce(Q, K, MASK.T),
        ValueError,
        "`positive_mask` must have shape (B, M) with B=2 (from `query`), M=3 (from `keys`); "
        "got (3, 2)",
    ),
    (
        lambda: multi_positive_info_nce(Q, K, MASK.int()),
        TypeError,
        "`positive_mask` must be a bool tensor; got torch.int32",
    ),
    (
        lambda: multi_positive_info_nce(Q.int(), K, MASK),
        TypeError,
        "`query` must be a floating-point tensor; got torch.int32. Convert it with `query.float()`",
    ),
    (
        lambda: multi_positive_info_nce(Q, K, MASK, temperature=0),
        ValueError,
        "`temperature` must be above 0 and finite; got 0",
    ),
    (
        lambda: multi_positive_info_nce(Q, K, MASK, form="mean"),  # type: ignore[arg-type]
        ValueError,
        "`form` must be one of ('per_positive', 'out', 'in'); got 'mean'",
    ),
    (
        lambda: multi_positive_info_nce(Q, K, MASK, reduction="max"),  # type: ignore[arg-type]
        ValueError,
        "`reduction` must be one of ('mean', 'sum', 'none'); got 'max'",
    ),
    (
        lambda: multi_positive_info_nce(Q, K, MASK, chunk_size=0),
        ValueError,
        '`chunk_size` must be at least 1, "dense" or None; got 0',
    ),
    (
        lambda: info_nce(Q, torch.zeros(3, 4), K),
        ValueError,
        "`positives` must have shape (B, D) with B=2 (from `query`), D=4 (from `query`); "
        "got (3, 4)",
    ),
    (
        lambda: info_nce(Q, torch.zeros(2, 3, 5), K),
        ValueError,
        "`positives` must have shape (B, P, D) with B=2 (from `query`), D=4 (from `query`); "
        "got (2, 3, 5)",
    ),
    (
        lambda: InfoNCELoss(temperature=-1),
        ValueError,
        "`temperature` must be above 0 and finite; got -1",
    ),
    (
        lambda: IIVCLLoss(num_neighbors=-1),
        ValueError,
        "`num_neighbors` must be at least 0; got -1",
    ),
    (
        lambda: IIVCLLoss()(torch.zeros(2, 3), torch.zeros(2, 3), NNSupportQueue(8, 4)),
        ValueError,
        "`query` must have shape (B, D) with D=4 (from `queue`); got (2, 3)",
    ),
    (
        lambda: IIVCLLoss()(Q, Q, NNSupportQueue(8, 4), inter=(Q, Q)),  # type: ignore[arg-type]
        ValueError,
        "`inter` must be a query, a key and a queue; got 2",
    ),
    (
        lambda: IIVCLLoss()(Q, Q, NNSupportQueue(8, 4), inter=(Q[:1], Q[:1], NNSupportQueue(8, 4))),
        ValueError,
        "`inter[0]` must have shape (B, D) with B=2 (from `query`); got (1, 4)",
    ),
    (
        lambda: IIVCLLoss()(
            Q,
            Q,
            NNSupportQueue(8, 4),
            neighbors=(Q, Q.long(), Q > 0),  # type: ignore[arg-type]
        ),
        TypeError,
        "`neighbors` must be Neighbors; got tuple",
    ),
    (
        lambda: Candidates(K, pairs=MASK.int()).log_sum_exp(Q),
        TypeError,
        "`pairs` must be bool or floating-point; got torch.int32",
    ),
    (
        lambda: IIVCLLoss()(Q, Q, MoCoQueue(8, 4)),
        TypeError,
        "the inter queue must be an NNSupportQueue to find neighbours; got MoCoQueue. "
        "Use one, or pass `neighbors`",
    ),
    (
        lambda: IIVCLLoss()(Q, Q, torch.zeros(8, 4)),  # type: ignore[arg-type]
        TypeError,
        "`queue` must be a MoCoQueue; got Tensor",
    ),
    (
        lambda: IIVCLLoss()(Q, Q, NNSupportQueue(3, 4)),
        ValueError,
        "`num_neighbors` must be at most 3, the rows of the queue; got 5",
    ),
    (
        lambda: IIVCLLoss()(Q, Q, filled_queue(3, dim=4)),
        ValueError,
        "`ids` must be given: this queue was filled with ids; got None",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()
