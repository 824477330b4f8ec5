"""Derivatives of the losses: by the temperature, by weights, of second order, in forward mode."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_losses import FORMS, filled_queue, random_problem
from torch import Tensor, nn

from iivcl import IIVCLLoss, InfoNCELoss
from iivcl.losses import Candidates, info_nce, multi_positive_info_nce
from iivcl.queues import Neighbors

SIZES = ("dense", 3)
FIRST_ORDER = re.escape(
    "the streaming form of the loss has a first derivative only, in reverse mode; "
    'pass chunk_size="dense" for others'
)


def losses(form: Any, chunk_size: Any) -> dict[str, Callable[[Tensor, Any], Tensor]]:
    """Every loss of the library as a function of query (6, 5) and temperature."""
    problem = random_problem(7)
    queue, ids = filled_queue(11), torch.arange(6)
    options = {"form": form, "chunk_size": chunk_size}
    own = problem["keys"][:6]

    def iivcl(query: Tensor, temperature: Any) -> Tensor:
        criterion = IIVCLLoss(
            num_neighbors=3, batch_negatives=True, temperature=temperature, **options
        )
        return criterion(query, own, queue, ids=ids).loss

    return {
        "multi_positive_info_nce": lambda query, temperature: multi_positive_info_nce(
            **(problem | {"query": query}), temperature=temperature, **options
        ),
        "info_nce": lambda query, temperature: info_nce(
            query, own, problem["keys"], temperature=temperature, **options
        ),
        "InfoNCELoss": lambda query, temperature: InfoNCELoss(temperature=temperature, **options)(
            query, own, problem["keys"]
        ),
        "IIVCLLoss": iivcl,
    }


LOSSES = tuple(losses("out", None))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", SIZES)
def test_a_temperature_that_is_a_tensor(name: str, form: Any, chunk_size: Any) -> None:
    loss, query = losses(form, chunk_size)[name], random_problem(7)["query"].requires_grad_()
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(loss(query, temperature), loss(query, 0.2))
    assert torch.autograd.gradcheck(loss, (query, temperature))
    single = torch.tensor(0.2, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(query, temperature), temperature)
    (found,) = torch.autograd.grad(loss(query.float(), single), single)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_module_trains_the_temperature_it_is_given() -> None:
    temperature = nn.Parameter(torch.tensor(0.2))
    for criterion in (InfoNCELoss(temperature=temperature), IIVCLLoss(temperature=temperature)):
        assert list(criterion.parameters()) == [temperature]
    criterion = IIVCLLoss(temperature=temperature)
    criterion(torch.randn(3, 5), torch.randn(3, 5), filled_queue(9), ids=torch.arange(3))[
        0
    ].backward()
    assert temperature.grad is not None
    assert temperature.grad != 0


@pytest.mark.parametrize("temperature", [torch.ones(2), torch.tensor(1)])
def test_a_temperature_that_is_no_number(temperature: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be a number, or a floating-point tensor of shape"):
        InfoNCELoss(temperature=temperature)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", SIZES)
@pytest.mark.parametrize("keys_too", [False, True])
def test_weights_of_the_positives_get_their_gradient(
    form: Any, chunk_size: Any, keys_too: bool
) -> None:
    problem = random_problem(3)
    weights = (problem.pop("positive_weights") + 0.1).requires_grad_()
    query, keys = problem.pop("query").requires_grad_(), problem.pop("keys")
    keys.requires_grad_(keys_too)

    def loss(query: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
        return multi_positive_info_nce(
            query, keys, **problem, positive_weights=weights, form=form, chunk_size=chunk_size
        )

    assert torch.autograd.gradcheck(loss, (query, keys, weights))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_weights_of_half_precision_do_not_overflow(form: Any, dtype: torch.dtype) -> None:
    query, keys = torch.randn(3, 8), torch.randn(150, 8)
    positive = torch.arange(150) < 100
    weights = torch.full((3, 150), 1000.0, dtype=dtype)

    def loss(**options: Any) -> Tensor:
        return multi_positive_info_nce(query, keys, positive.expand(3, -1), form=form, **options)

    expected = loss(chunk_size="dense")  # all weights are equal
    for chunk_size in ("dense", 16, 200):
        found = loss(positive_weights=weights, chunk_size=chunk_size)
        torch.testing.assert_close(found, expected)


# --- second order and forward mode: right, or an error, never a wrong number ---------------------


def hessian_product(loss: Callable[[Tensor], Tensor], query: Tensor) -> Tensor:
    query = query.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(query), query, create_graph=True)
    return torch.autograd.grad((gradient * query.detach().cos()).sum(), query)[0]


def penalty_beside_another_term(loss: Callable[[Tensor], Tensor], query: Tensor) -> Tensor:
    """The other term alone would be differentiated without a complaint."""
    query = query.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(query), query, create_graph=True)
    return torch.autograd.grad(gradient.square().sum() + query.square().sum(), query)[0]


def forward_mode(loss: Callable[[Tensor], Tensor], query: Tensor) -> Tensor:
    return torch.func.jvp(loss, (query,), (query.cos(),))[1]


def dual_numbers(loss: Callable[[Tensor], Tensor], query: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(query, query.cos())
        return torch.autograd.forward_ad.unpack_dual(loss(dual)).tangent


def hessian(loss: Callable[[Tensor], Tensor], query: Tensor) -> Tensor:
    return torch.func.hessian(loss)(query)


DERIVATIVES = (
    hessian_product,
    penalty_beside_another_term,
    forward_mode,
    dual_numbers,
    hessian,
)


# torch's own use of torch in its forward mode
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [*LOSSES, "Candidates"])
def test_other_derivatives_are_right_or_refused(
    name: str, form: Any, derivative: Callable[..., Tensor]
) -> None:
    query = random_problem(7)["query"]

    def of(chunk_size: Any) -> Callable[[Tensor], Tensor]:
        if name == "Candidates":
            candidates = Candidates(random_problem(7)["keys"])
            return lambda query: candidates.log_sum_exp(query, chunk_size=chunk_size).sum()
        loss = losses(form, chunk_size)[name]
        return lambda query: loss(query, 0.3)

    expected = derivative(of("dense"), query)
    assert expected.isfinite().all()
    with pytest.raises((NotImplementedError, RuntimeError), match=f"{FIRST_ORDER}|functorch"):
        derivative(of(3), query)


@pytest.mark.parametrize("form", FORMS)
def test_second_order_where_keys_are_trained_too(form: Any) -> None:
    problem = random_problem(3)
    query, keys = (problem.pop(name).requires_grad_() for name in ("query", "keys"))

    def loss(query: Tensor, keys: Tensor) -> Tensor:
        return multi_positive_info_nce(query, keys, **problem, form=form, chunk_size=4)

    assert torch.autograd.gradgradcheck(loss, (query, keys))


# --- neighbours of another lookup ----------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_is_named_twice_counts_once(form: Any) -> None:
    queue, query, key = filled_queue(9), torch.randn(2, 5), torch.randn(2, 5)
    criterion, ids = IIVCLLoss(form=form), torch.tensor([10, 11])
    twice = torch.tensor([[3, 5, 3, 3], [2, 2, 7, 0]])
    valid = torch.tensor([[True, True, True, False], [False, True, True, True]])
    once = torch.tensor([[True, True, False, False], [False, True, True, True]])
    found, expected = (
        criterion(query, key, queue, ids=ids, neighbors=Neighbors(torch.zeros(2, 4), twice, counts))
        for counts in (valid, once)
    )
    torch.testing.assert_close(found[:3], expected[:3])


BAD_NEIGHBORS = [
    (
        Neighbors(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2).bool()),
        ValueError,
        "`neighbors.indices` must have shape (B, k) with B=3 (from `query`); got (1, 2)",
    ),
    (
        Neighbors(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 1).bool()),
        ValueError,
        "`neighbors.valid` must have shape (B, k) with B=3 (from `query`), k=2 (from `indices`); "
        "got (3, 1)",
    ),
    (
        Neighbors(torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2).bool()),
        TypeError,
        "`neighbors.indices` must be int64; got torch.float32",
    ),
]


@pytest.mark.parametrize(("neighbors", "error", "message"), BAD_NEIGHBORS)
def test_neighbours_that_do_not_fit(
    neighbors: Neighbors, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        IIVCLLoss()(
            torch.randn(3, 5),
            torch.randn(3, 5),
            filled_queue(9),
            ids=torch.arange(3),
            neighbors=neighbors,
        )


def test_a_query_of_zeros_has_a_finite_gradient() -> None:
    query = torch.zeros(2, 5, requires_grad=True)
    loss = IIVCLLoss()(query, torch.randn(2, 5), filled_queue(9), ids=torch.arange(2)).loss
    (gradient,) = torch.autograd.grad(loss, query)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e20, 3e38])
@pytest.mark.parametrize("chunk_size", SIZES)
def test_inputs_of_any_finite_length(scale: float, chunk_size: Any) -> None:
    problem = random_problem(5, dtype=torch.float32)
    rows = {name: problem[name].sign() for name in ("query", "keys")}
    expected = multi_positive_info_nce(**(problem | rows), chunk_size=chunk_size)
    scaled = {name: value * scale for name, value in rows.items()}
    found = multi_positive_info_nce(**(problem | scaled), chunk_size=chunk_size)
    torch.testing.assert_close(found, expected)
    own = rows["keys"][:6]
    expected = info_nce(rows["query"], own, rows["keys"], chunk_size=chunk_size)
    found = info_nce(scaled["query"], own * scale, scaled["keys"], chunk_size=chunk_size)
    torch.testing.assert_close(found, expected)
