"""Whitening against scikit-learn, and by the laws that make it of use."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.decomposition import PCA
from torch import Tensor

from iivcl.evaluation import fit_whitening, retrieval_metrics

N, D = 200, 6


def make_features(rows: int = N, dim: int = D) -> Tensor:
    """Draw correlated features of very different variance, far from the origin."""
    return torch.randn(rows, dim) * torch.logspace(-1, 1, dim) @ torch.randn(dim, dim) + 7


def cosines(features: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return unit @ unit.T


def test_it_is_the_inverse_root_of_the_shrunk_covariance() -> None:
    features = make_features().double()
    x = features - features.mean(0)
    for shrinkage in (0.05, 0.1, 1.0):
        S = shrunk_covariance(np.cov(features.numpy().T, bias=True), shrinkage=shrinkage)
        whiten = fit_whitening(features, shrinkage=shrinkage)
        # x S^-1 x is what two whitened features have for product, whatever root was taken.
        expected = x @ torch.from_numpy(np.linalg.inv(S)) @ x.T
        z = whiten(features.float()).double()
        torch.testing.assert_close(z @ z.T, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(whiten.weight, whiten.weight.T)


def test_without_shrinkage_distances_are_those_of_whitened_principal_components() -> None:
    features = make_features()
    found = fit_whitening(features, shrinkage=0.0)(features)
    expected = torch.from_numpy(PCA(whiten=True).fit_transform(features.double().numpy()))
    expected *= (N / (N - 1)) ** 0.5  # which divides by N - 1
    torch.testing.assert_close(
        torch.cdist(found.double(), found.double()), torch.cdist(expected, expected),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_it_forgets_the_mean_and_any_linear_map_without_shrinkage() -> None:
    features = make_features()
    changed = features.double() @ torch.randn(D, D).double() - 3
    for shrinkage, other in ((0.0, changed), (0.3, 5 * features.double() @ rotation(D) + 2)):
        alike = [fit_whitening(x, shrinkage=shrinkage)(x.float()) for x in (features, other)]
        torch.testing.assert_close(cosines(alike[0]), cosines(alike[1]), rtol=0, atol=2e-3)


def rotation(dim: int) -> Tensor:
    matrix: Tensor = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64))[0]
    return matrix


def test_full_shrinkage_only_centres() -> None:
    features = make_features()
    whitened = fit_whitening(features, shrinkage=1.0)(features)
    torch.testing.assert_close(
        cosines(whitened), cosines(features.double() - features.double().mean(0)),
        rtol=0, atol=1e-4,
    )  # fmt: skip


def test_it_finds_what_a_loud_direction_hides() -> None:
    """Classes differ in quiet directions; two loud ones say nothing about them."""
    labels = torch.arange(300) % 5
    quiet = torch.eye(5)[labels] + 0.2 * torch.randn(300, 5)
    features = torch.cat([quiet, 40 * torch.randn(300, 2)], dim=1)
    whitened = fit_whitening(features[:200], shrinkage=0.001)(features)
    before, after = (
        retrieval_metrics(x[200:], labels[200:], x[:200], labels[:200], ks=(1,)).recall[1]
        for x in (features, whitened)
    )
    assert before < 0.8 < 0.9 < after


def test_it_is_a_layer_that_does_not_train_and_draws_nothing() -> None:
    features = make_features()
    state = torch.get_rng_state()
    whiten = fit_whitening(features.half() / 64)
    assert torch.equal(torch.get_rng_state(), state)
    assert whiten.weight.dtype is torch.float32
    assert not any(p.requires_grad for p in whiten.parameters())


def test_fewer_features_than_directions_need_shrinkage() -> None:
    features = torch.randn(4, D)
    assert fit_whitening(features)(features).isfinite().all()
    message = (
        "`shrinkage` must be above 0, such as 0.1, where 4 features span fewer than 6 directions; "
        "got 0.0"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit_whitening(features, shrinkage=0.0)


@pytest.mark.parametrize("features", [torch.ones(5, 3), torch.randn(1, 3), torch.zeros(9, 2)])
def test_features_that_are_all_alike_are_refused(features: Tensor) -> None:
    message = "`features` are all alike: there is no direction to whiten"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit_whitening(features)


def test_bad_rows_are_left_out_with_a_warning_and_never_all() -> None:
    features = make_features()
    bad = features.clone()
    bad[3, 1], bad[8, 0] = torch.nan, torch.inf
    kept = torch.ones(N, dtype=torch.bool)
    kept[[3, 8]] = False
    with pytest.warns(UserWarning, match=re.escape("2 of 200 rows of `features` have a value")):
        whiten = fit_whitening(bad)
    assert torch.equal(whiten.weight, fit_whitening(features[kept]).weight)
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(ValueError, match=r"^`features` has no row whose values are all finite$"),
    ):
        fit_whitening(torch.full((3, 2), torch.nan))


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, float("nan")])
def test_shrinkage_out_of_range(shrinkage: float) -> None:
    with pytest.raises(ValueError, match=r"`shrinkage` must be in \[0"):
        fit_whitening(make_features(), shrinkage=shrinkage)
