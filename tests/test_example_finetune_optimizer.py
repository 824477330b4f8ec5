"""What learns, and how fast: schedules, and the groups of parameters of the examples."""

from __future__ import annotations

import pretraining
import pytest
import tiny_encoder
import torch
from torch import nn

from iivcl import backbones

optimizer = pretraining.load("_optimizer")


def test_half_a_cosine_rises_and_falls() -> None:
    rates = [optimizer.half_cosine(step, 20, warmup=4, lr=2.0) for step in range(20)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[12] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_drops_are_those_of_torch_after_the_warm_up() -> None:
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(sgd, [6, 12, 18])
    for step in range(20):
        rate = optimizer.drops(step, [6, 12, 18], warmup=4, lr=2.0)
        rise = (step + 1) / 4 if step < 4 else 1.0
        assert rate == pytest.approx(rise * reference.get_last_lr()[0])
        assert optimizer.drops(step, [], warmup=0, lr=2.0) == 2.0
        sgd.step()
        reference.step()


@pytest.mark.parametrize(
    ("build", "num_layers"),
    [(tiny_encoder.with_norm, 2), (lambda: backbones.slow_resnet(18), 9),
     (backbones.mvit_v2_s, 17)],
    ids=["tiny", "slow", "mvit"],
)  # fmt: skip
def test_every_parameter_is_in_one_group_with_the_rate_of_its_depth(
    build: object, num_layers: int
) -> None:
    with torch.device("meta"):  # nothing is computed
        encoder, head = build(), nn.Linear(4, 3)  # type: ignore[operator]
    names = {p: n for n, p in encoder.named_parameters()}
    groups = optimizer.parameter_groups(encoder, head, lr=0.1, weight_decay=0.3, layer_decay=0.5)
    listed = [p for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(names) + 2
    assert set(listed) == {*names, *head.parameters()}
    rate = {p: group["lr"] for group in groups for p in group["params"]}
    decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert all(decay[p] == (0.3 if p.ndim > 1 else 0.0) for p in listed)
    assert all(rate[p] == 0.1 for p in head.parameters())
    of_encoder = [rate[p] for p in names]
    if build is not backbones.mvit_v2_s:  # whose parameters are not defined in order of depth
        assert of_encoder == sorted(of_encoder)
    powers = sorted({round(-torch.tensor(r / 0.1).log2().item()) for r in of_encoder})
    assert powers == list(range(1, num_layers + 1))
    final = [r for p, r in rate.items() if names.get(p, "").startswith("norm.")]
    assert all(r == 0.05 for r in final)  # the last norm learns with the last block

    once = optimizer.parameter_groups(encoder, head, lr=0.1, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"]) for group in once] in (
        [(0.1, 0.3), (0.1, 0.0)], [(0.1, 0.0), (0.1, 0.3)],
    )  # fmt: skip
    before = [group["lr"] for group in groups]
    sgd = torch.optim.SGD(groups, 0.1)
    optimizer.set_rate(sgd, 0.2)
    assert [group["lr"] for group in sgd.param_groups] == [2 * rate for rate in before]


def test_what_is_frozen_is_in_no_group() -> None:
    encoder, head = tiny_encoder.with_norm().requires_grad_(False), nn.Linear(4, 3)
    [group] = optimizer.parameter_groups(encoder, head, lr=0.1, weight_decay=0.0)
    assert group["params"] == [head.weight, head.bias]
