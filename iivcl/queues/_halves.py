"""Inner products on tensor cores: float32 numbers in two parts of float16, three products in one.

A number is its rounded half and what is left of it, another half: together 22 bits. Of queries q
and keys k so split, ``q . k`` is ``q0 . k0 + q0 . k1 + q1 . k0``, but for ``q1 . k1``, which is
below 2^-22 of it. Stacked along the inner dimension that is one product, summed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from iivcl._checks import unit_rows

_BIAS = 8  # columns that hold the bias: tensor cores take eight halves at a time


def has_half_products(tensor: Tensor) -> bool:
    """Whether halves can be multiplied with results in float32: on CUDA, by torch 2.8 or newer."""
    return tensor.is_cuda and hasattr(torch.ops.aten.mm, "dtype_out")


def scale_of(keys: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Find the power of two, (), that brings the largest number of finite keys below 2^15.

    Only keys that are ``allowed``, (M,) bool, are looked at. Numbers of that size keep 22 bits in
    rows of 2^-16 of the longest and above.
    """
    largest = torch.linalg.vector_norm(keys, torch.inf, dim=1)  # (M,)
    counts = largest.isfinite() if allowed is None else largest.isfinite() & allowed
    largest = largest.where(counts, 0.0).amax()
    exponent = torch.frexp(largest).exponent
    return torch.exp2((15 - exponent).clamp(max=126).to(keys.dtype))


def halves_of_queries(query: Tensor) -> Tensor:
    """Split queries (B, D) of any length into (B, 3 D + 8); their length does not rank keys."""
    query = unit_rows(query) * 2**14
    high = query.half()
    return torch.cat([high, (query - high).half(), -high, high.new_ones(len(high), _BIAS)], 1)


def halves_of_keys(
    keys: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """Split keys (c, D) times ``scale``, with a bias (c, 1) of 0 or -inf, into (c, 3 D + 8).

    Those of an earlier call with as much bias may be written over, ``out``.
    """
    rows, dim = keys.shape
    parts = keys.new_empty(rows, 3 * dim + _BIAS, dtype=torch.float16) if out is None else out
    twice, rest, biases = torch.split(parts, [2 * dim, dim, _BIAS], 1)
    torch.mul(keys[:, None].expand(-1, 2, -1), scale, out=twice.view(rows, 2, dim))
    torch.addcmul(twice[:, :dim], keys, scale, value=-1, out=rest)  # with the other sign
    if bias is not None:
        biases.copy_(bias)
    elif out is None:
        biases.zero_()
    return parts


def half_product(queries: Tensor, keys: Tensor, out: Tensor) -> None:
    """Multiply (B, d) by (c, d), both halves, into float32 ``out`` (B, c)."""
    if queries.is_cuda:
        torch.mm(queries, keys.T, out_dtype=torch.float32, out=out)
    else:  # for tests: products of halves are exact in float32, too
        torch.mm(queries.float(), keys.T.float(), out=out)
