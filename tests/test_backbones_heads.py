"""Projection and prediction heads."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from iivcl.backbones import PredictionHead, ProjectionHead


def kinds(head: nn.Module) -> list[str]:
    return [type(m).__name__ for m in head.layers]


@pytest.mark.parametrize(
    ("num_layers", "norm", "expected"),
    [
        (1, None, ["Linear"]),
        (2, None, ["Linear", "ReLU", "Linear"]),
        (3, None, ["Linear", "ReLU", "Linear", "ReLU", "Linear"]),
        (2, "batch", ["Linear", "BatchNorm1d", "ReLU", "Linear"]),
        (2, "sync", ["Linear", "SyncBatchNorm", "ReLU", "Linear"]),
    ],
)
def test_layers(num_layers: int, norm, expected: list[str]) -> None:
    head = ProjectionHead(6, 5, 4, num_layers=num_layers, norm=norm)
    assert kinds(head) == expected
    assert head(torch.randn(3, 6)).shape == (3, 4)


def test_published_head_equals_its_formula() -> None:
    head = ProjectionHead(6, 5, 4)
    w1, b1, w2, b2, w3, b3 = head.parameters()
    z = torch.randn(3, 6)
    expected = (((z @ w1.T + b1).relu() @ w2.T + b2).relu()) @ w3.T + b3
    torch.testing.assert_close(head(z), expected)


def test_published_number_of_parameters() -> None:
    head = ProjectionHead(2048, 2048, 128)
    assert sum(p.numel() for p in head.parameters()) == 2 * (2048 * 2048 + 2048) + 2048 * 128 + 128


def test_prediction_head_is_two_layers_with_batch_norm() -> None:
    head = PredictionHead(4, 7)
    assert kinds(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert head(torch.randn(3, 4)).shape == (3, 4)


def test_the_output_is_not_rectified() -> None:
    assert (ProjectionHead(6, 5, 4)(torch.randn(64, 6)) < 0).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ProjectionHead(6, 5, 4, num_layers=0), "`num_layers` must be at least 1; got 0"),
        (
            lambda: ProjectionHead(6, 5, 4, norm="layer"),  # type: ignore[arg-type]
            "`norm` must be one of ('batch', 'sync'); got 'layer'",
        ),
        (
            lambda: ProjectionHead(6, 5, 4)(torch.zeros(3, 5)),
            "`features` must have shape (B, in_dim) with in_dim=6 (from `in_dim`); got (3, 5)",
        ),
        (
            lambda: PredictionHead(4, 5)(torch.zeros(3, 4, 1)),
            "`embeddings` must have shape (B, D) with D=4 (from `dim`); got (3, 4, 1)",
        ),
    ],
)
def test_unfit_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()
