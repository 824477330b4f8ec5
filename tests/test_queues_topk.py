"""exact_topk against brute force in float64, and against everything that could bend float32."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iivcl import _engine
from iivcl.losses import Candidates
from iivcl.queues import _plan, _topk, exact_topk
from iivcl.queues._halves import half_product, halves_of_keys, halves_of_queries, scale_of


def check_topk(
    query: Tensor, bank: Tensor, k: int, mask: Tensor | None, found: tuple[Tensor, Tensor]
) -> None:
    """The found rows are the k best: their values are right, and no other row beats the last."""
    values, indices = found
    assert values.shape == indices.shape == (len(query), k)
    assert values.dtype == torch.float32
    assert indices.dtype == torch.int64
    exact = query.double() @ bank.double().T
    if mask is not None:
        exact = exact.masked_fill(~mask.expand_as(exact), -torch.inf)
    best = exact.topk(k).values
    torch.testing.assert_close(values.double(), best, rtol=1e-5, atol=1e-6)
    present = values > -torch.inf
    torch.testing.assert_close(
        exact.gather(1, indices)[present], values.double()[present], rtol=1e-5, atol=1e-6
    )
    for row, here in zip(indices, present, strict=True):
        assert len(set(row[here].tolist())) == int(here.sum())


@given(
    rows=st.integers(1, 700),
    batch=st.integers(0, 9),
    dim=st.integers(1, 9),
    share=st.floats(0, 1),
    chunk_size=st.none() | st.integers(1, 800),
    masked=st.sampled_from(["no", "rows", "pairs"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_equals_brute_force(
    rows: int, batch: int, dim: int, share: float, chunk_size: int | None, masked: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, dim, generator=generator)
    bank = torch.randn(rows, dim, generator=generator)
    k = 1 + int(share * share * (rows - 1))
    shape = {"rows": (rows,), "pairs": (batch, rows)}.get(masked)
    mask = None if shape is None else torch.rand(shape, generator=generator) < 0.7
    check_topk(query, bank, k, mask, exact_topk(query, bank, k, mask=mask, chunk_size=chunk_size))


FORMS = {  # what is set, of the plans for GPUs
    "of the CPU": None,
    "of GPUs, directly": {},
    "of GPUs, in one tile": {"_FEW_SIMILARITIES": 0},
    "of GPUs, in tiles": {"_FEW_SIMILARITIES": 0, "_GPU_TILE_BYTES": 2**16},
    "of GPUs, in large blocks": {"_FEW_SIMILARITIES": 0, "_MAXIMA_BYTES": 2**14},
    "of tensor cores": {"_FEW_SIMILARITIES": 0, "_HALVES_PAY": (1, 1)},
    "of tensor cores, in tiles": {
        "_FEW_SIMILARITIES": 0, "_HALVES_PAY": (1, 1), "_GPU_TILE_BYTES": 2**18
    },
}  # fmt: skip


@pytest.fixture(params=FORMS)
def any_form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    take_form(request.param, monkeypatch)


@pytest.fixture(params=[name for name in FORMS if "tensor cores" in name])
def tensor_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    take_form(request.param, monkeypatch)


def take_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (changes := FORMS[name]) is None:
        return
    monkeypatch.setattr(_engine, "on_cpu", lambda tensor: False)
    monkeypatch.setattr(_topk, "has_half_products", lambda tensor: "tensor cores" in name)
    for constant, value in changes.items():
        monkeypatch.setattr(_plan, constant, value)


@pytest.mark.usefixtures("any_form")
@pytest.mark.parametrize("rows", [4096, 5000, 16384 + 1, 70001])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_full_product_on_a_large_bank(rows: int, k: int) -> None:
    query = F.normalize(torch.randn(17, 32), dim=1)
    bank = F.normalize(torch.randn(rows, 32), dim=1)
    mask = torch.rand(rows) < 0.9
    for m in (None, mask, torch.rand(17, rows) < 0.5):
        check_topk(query, bank, k, m, exact_topk(query, bank, k, mask=m))


@pytest.mark.usefixtures("any_form")
@pytest.mark.parametrize("chunk_size", [None, 3000])
@pytest.mark.parametrize("k", [1, 20])
def test_rows_of_the_same_id_are_left_out(k: int, chunk_size: int | None) -> None:
    query = F.normalize(torch.randn(17, 32), dim=1)
    bank = F.normalize(torch.randn(5000, 32), dim=1)
    query_ids = torch.randint(-3, 3, (17,)) << 32 | torch.randint(0, 3, (17,))
    bank_ids = torch.randint(-3, 3, (5000,)) << 32 | torch.randint(0, 3, (5000,))
    others = Candidates(bank, ids=bank_ids, query_ids=query_ids, normalized=True)
    found = _topk.search(query, others, k, chunk_size=chunk_size)
    check_topk(query, bank, k, query_ids[:, None] != bank_ids, found)


@pytest.mark.usefixtures("any_form")
def test_any_number_of_the_nearest_rows_may_have_the_id_of_the_query() -> None:
    query = F.normalize(torch.randn(3, 32), dim=1)
    near = F.normalize(query[0] + 0.01 * torch.randn(5000, 32), dim=1)
    bank = torch.cat([near, F.normalize(torch.randn(4000, 32), dim=1)])[torch.randperm(9000)]
    is_near = bank @ query[0] > 0.9
    assert is_near.sum() == 5000
    bank_ids, query_ids = torch.where(is_near, 7, torch.arange(9000) + 10), torch.tensor([7, 8, 7])
    others = Candidates(bank, ids=bank_ids, query_ids=query_ids, normalized=True)
    found = _topk.search(query, others, 5)
    assert (found[0] > -torch.inf).all()
    assert not is_near[found[1][0]].any()
    check_topk(query, bank, 5, query_ids[:, None] != bank_ids, found)


# --- tensor cores: halves find the blocks, float32 the rows in them ------------------------------


@pytest.mark.parametrize("length", [1e-30, 1e-3, 1.0, 1e5, 1e30])
def test_two_halves_hold_22_bits_of_rows_of_any_length(length: float) -> None:
    query, keys = torch.randn(20, 128), F.normalize(torch.randn(300, 128), dim=1) * length
    scale, found = scale_of(keys), torch.empty(20, 300)
    assert torch.frexp(scale).mantissa == 0.5  # a power of two
    half_product(halves_of_queries(query), halves_of_keys(keys, scale, None), found)
    unit = F.normalize(query.double(), dim=1)
    exact = unit @ (keys.double() * scale.double()).T * 2**14
    longest = exact.norm(dim=1).amax()  # so that the error is that of a cosine
    bound = 128 * 2.0**-24 * (keys.double() * scale).norm(dim=1) * 2**14
    assert ((found - exact).abs() <= bound).all()
    assert longest.isfinite()


@pytest.mark.usefixtures("tensor_cores")
@pytest.mark.parametrize("length", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("k", [1, 5])
def test_nearly_equal_rows_cost_no_more_than_float32_itself(k: int, length: float) -> None:
    """4,096 rows whose cosines lie within 1e-6: only a float32 product tells them apart."""
    dim, query = 64, F.normalize(torch.randn(9, 64), dim=1)
    noise = torch.randn(4096, dim)
    bank = F.normalize(query[0] + 1e-4 * noise / dim**0.5, dim=1) * length
    bank[::3] = bank[0]  # and many that are equal
    values, indices = exact_topk(query, bank, k)
    exact = query.double() @ bank.double().T
    bound = 2 * dim * 2.0**-24 * length
    assert (exact.gather(1, indices) >= exact.topk(k).values - bound).all()
    assert (values - exact.gather(1, indices)).abs().max() <= bound
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.usefixtures("tensor_cores")
def test_short_rows_beside_long_ones_and_rows_that_are_no_numbers() -> None:
    query = F.normalize(torch.randn(9, 64), dim=1)
    bank = F.normalize(torch.randn(5000, 64), dim=1)
    bank[:2500] *= 1e5
    bank[2500:] *= 1e-3
    check_topk(query, bank, 5, None, exact_topk(query, bank, 5))
    short = torch.arange(5000) >= 2500
    bank[:2500:7], bank[1:2500:7], bank[2:2500:7] = torch.nan, torch.inf, 1e30
    found = exact_topk(query, bank, 5, mask=short)
    check_topk(query, bank.where(short[:, None], 0.0), 5, short, found)


def test_the_best_rows_may_share_one_block_or_lie_at_the_very_end() -> None:
    bank = torch.full((6000, 2), -1.0)
    bank[5990:6000, 0] = torch.arange(10.0)
    values, indices = exact_topk(torch.tensor([[1.0, 0.0]]), bank, 5)
    assert indices.tolist() == [[5999, 5998, 5997, 5996, 5995]]
    assert values.tolist() == [[9.0, 8.0, 7.0, 6.0, 5.0]]


def test_values_do_not_depend_on_chunks_or_batch() -> None:
    query, bank = torch.randn(8, 64), torch.randn(9000, 64)
    values, indices = exact_topk(query, bank, 5)
    for chunk_size in (1000, 4096, 9000):
        again = exact_topk(query, bank, 5, chunk_size=chunk_size)
        assert torch.equal(again[0], values)
        assert torch.equal(again[1], indices)
    alone = exact_topk(query[3:4], bank, 5)
    assert torch.equal(alone[0][0], values[3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_searched_in_float32(dtype: torch.dtype) -> None:
    query, bank = torch.randn(5, 16).to(dtype), torch.randn(3000, 16).to(dtype)
    expected = exact_topk(query.float(), bank.float(), 4)
    found = exact_topk(query, bank, 4)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@contextlib.contextmanager
def low_precision_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("rows", [300, 9000])
def test_autocast_and_low_precision_products_do_not_change_the_result(rows: int) -> None:
    query, bank = torch.randn(40, 64), torch.randn(rows, 64)
    expected = exact_topk(query, bank, 3)
    with torch.autocast("cpu", torch.bfloat16), low_precision_products():
        found = exact_topk(query, bank, 3)
        assert torch.get_float32_matmul_precision() == "medium"  # the caller's setting is back
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_ties_may_come_in_any_order_but_each_row_comes_once() -> None:
    bank = torch.ones(5000, 3)
    values, indices = exact_topk(torch.ones(2, 3), bank, 40)
    assert torch.equal(values, torch.full((2, 40), 3.0))
    assert all(len(set(row.tolist())) == 40 for row in indices)


def test_reference_agrees_with_itself_on_eligibility() -> None:
    """The oracle used elsewhere, on a case that can be done in the head."""
    values, rows = reference.nearest_rows(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]),
        torch.tensor([[False, True, True]]),
        2,
    )
    assert rows == [[1, 2]]
    assert values == [[0.5, 0.0]]


BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"query": torch.zeros(3)}, ValueError, "`query` must have shape (B, D); got (3,)"),
    (
        {"bank": torch.zeros(4, 7)},
        ValueError,
        "`bank` must have shape (M, D) with D=8 (from `query`); got (4, 7)",
    ),
    (
        {"query": torch.zeros(2, 8, dtype=torch.int64)},
        TypeError,
        "`query` must be a floating-point tensor; got torch.int64. Convert it with `query.float()`",
    ),
    ({"k": 0}, ValueError, "`k` must be at least 1; got 0"),
    ({"k": 5}, ValueError, "`k` must be in [1, 4], the number of rows of `bank`; got 5"),
    ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1; got 0"),
    ({"mask": torch.ones(4)}, TypeError, "`mask` must be a bool tensor; got torch.float32"),
    (
        {"mask": torch.ones(3, dtype=torch.bool)},
        ValueError,
        "`mask` must have shape (M,) with M=4 (from `bank`); got (3,)",
    ),
    (
        {"mask": torch.ones(4, 2, dtype=torch.bool)},
        ValueError,
        "`mask` must have shape (B, M) with B=2 (from `query`), M=4 (from `bank`); got (4, 2)",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {"query": torch.zeros(2, 8), "bank": torch.zeros(4, 8), "k": 1}
    arguments |= change
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        exact_topk(**arguments)  # type: ignore[arg-type]


def test_query_that_is_no_tensor() -> None:
    message = (
        "`query` must be a tensor of shape (B, D); got list. Make one with `torch.as_tensor(query)`"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        exact_topk([[1.0]], torch.zeros(1, 1), 1)  # type: ignore[arg-type]
