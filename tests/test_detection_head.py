"""The head that classifies boxes, held to what RoIAlign gives of maps that are known everywhere."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from iivcl.backbones import RoIActionHead, slow_resnet


def plain_head(dim: int, **how: int) -> RoIActionHead:
    """A head that gives the maximum of every channel in a box, as it is."""
    head = RoIActionHead(dim, dim, stride=16, **how).eval()
    nn.init.eye_(head.classifier.weight)
    return head


def ramps(clips: int = 2, cells: int = 12) -> Tensor:
    """Maps (B, 2, T', H', W') whose value is the pixel x, and y, of the middle of every cell."""
    place = (torch.arange(cells) + 0.5) * 16
    maps = torch.stack([place.expand(cells, cells), place[:, None].expand(cells, cells)])
    return maps[None, :, None].expand(clips, 2, 3, cells, cells).contiguous()


@pytest.mark.parametrize("resolution", [1, 2, 7])
def test_of_a_ramp_it_is_the_middle_of_the_last_cell(resolution: int) -> None:
    """Bilinear samples of a ramp are exact, so a cell of a box has the value of its middle."""
    boxes = torch.tensor([[20.0, 30.0, 90.0, 120.0], [33.3, 41.7, 150.1, 77.2]])
    found = plain_head(2, resolution=resolution)(ramps(), [boxes[:1], boxes[1:]])
    half_a_cell = (boxes[:, 2:] - boxes[:, :2]) / (2 * resolution)
    torch.testing.assert_close(found, boxes[:, 2:] - half_a_cell)


def test_time_is_averaged_and_space_is_not() -> None:
    maps = ramps() * torch.tensor([0.5, 1.0, 3.0])[:, None, None]
    boxes = [torch.tensor([[20.0, 30.0, 90.0, 120.0]])] * 2
    head = plain_head(2)
    torch.testing.assert_close(head(maps, boxes), 1.5 * head(ramps(), boxes))


def test_boxes_of_clips_and_of_all_are_the_same() -> None:
    torch.manual_seed(0)
    maps, head = torch.randn(3, 4, 2, 6, 6), RoIActionHead(4, 5, stride=8).eval()
    boxes = [torch.rand(n, 4) * 20 + torch.tensor([0, 0, 24, 24]) for n in (2, 0, 1)]
    numbers = torch.tensor([[0.0], [0.0], [2.0]])
    found = head(maps, boxes)
    assert found.shape == (3, 5)
    torch.testing.assert_close(head(maps, torch.cat([numbers, torch.cat(boxes)], 1)), found)
    torch.testing.assert_close(head(maps[2:], boxes[2:]), found[2:])


def test_clips_without_boxes_have_no_part_and_no_gradient() -> None:
    maps, head = torch.randn(2, 4, 2, 6, 6, requires_grad=True), RoIActionHead(4, 5, stride=8)
    logits = head(maps, [torch.empty(0, 4)] * 2)
    assert logits.shape == (0, 5)
    logits.sum().backward()
    assert maps.grad is not None
    assert not maps.grad.any()


def test_gradients() -> None:
    torch.manual_seed(0)
    head = RoIActionHead(3, 2, stride=4, resolution=2).double().eval()
    boxes = [torch.tensor([[1.0, 2.0, 11.0, 9.0], [0.0, 0.0, 12.0, 12.0]])]
    maps = torch.randn(1, 3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: head(x, boxes), maps)


def test_boxes_keep_their_pixels_under_autocast() -> None:
    """Bfloat16 has eight bits, and boxes more pixels than that."""
    boxes = [torch.tensor([[513.0, 517.0, 771.0, 779.0]])]
    maps = ramps(1, 60)
    with torch.autocast("cpu", torch.bfloat16):
        found = plain_head(2, resolution=1)(maps, boxes).float()
        half = plain_head(2, resolution=1)(maps.bfloat16(), boxes).float()
    torch.testing.assert_close(found, torch.tensor([[642.0, 648.0]]), rtol=0.004, atol=0)
    torch.testing.assert_close(half, found, rtol=0.008, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_it_computes_in_the_precision_of_its_weights(dtype: torch.dtype) -> None:
    head = RoIActionHead(2, 3, stride=16, dropout=0.0)
    maps, boxes = ramps(), [torch.tensor([[0.0, 0.0, 48.0, 64.0]])] * 2
    found = copy.deepcopy(head).to(dtype)(maps.to(dtype), boxes)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), head(maps, boxes), rtol=0.02, atol=0.02)


def test_no_clip_has_no_box() -> None:
    assert plain_head(2)(ramps()[:0], []).shape == (0, 2)


def test_behind_a_dilated_encoder_all_is_trained() -> None:
    encoder = slow_resnet(18, res5_dilation=2)
    head = RoIActionHead(encoder.feature_dim, 3, stride=encoder.strides[1])
    assert head.classifier.bias.eq(0).all()
    assert head.classifier.weight.std() < 0.02
    maps = encoder.features(torch.randn(1, 3, 2, 64, 48))
    assert maps.shape[-2:] == (4, 3)
    head(maps, [torch.tensor([[0.0, 0.0, 48.0, 64.0]])]).sum().backward()
    assert all(p.grad is not None for m in (encoder, head) for p in m.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda head, maps: head(maps[:, :1], [torch.ones(1, 4)] * 2),
         "`feature_map` must have shape (B, F, T, H, W) with F=2 (from `in_dim`); got (2, 1, "),
        (lambda head, maps: head(maps, [torch.ones(1, 4)]),
         "`boxes` must have an entry for each of 2 clips; got 1"),
        (lambda head, maps: head(maps, [torch.ones(1, 4), torch.ones(4)]),
         "`boxes` must have shape (n, edges) with edges=4 (from `left, top, right, bottom`); got "),
        (lambda head, maps: head(maps, torch.ones(3, 4)),
         "`boxes` must have shape (N, numbers) with numbers=5 (from `clip, left, top, right, "),
        (lambda head, maps: head(maps, torch.tensor([[2.0, 0, 0, 30, 30]])),
         "`boxes` must be finite, of clips 0 to 1; got [2.0, 0.0, 0.0, 30.0, 30.0]"),
        (lambda head, maps: head(maps, torch.tensor([[0.0, 0, 0, 9, 9], [-1, 0, 0, 30, 30]])),
         "`boxes` must be finite, of clips 0 to 1; got [-1.0, 0.0, 0.0, 30.0, 30.0]"),
        (lambda head, maps: head(maps, torch.tensor([[0.5, 0, 0, 30, 30]])),
         "`boxes` must be finite, of clips 0 to 1; got [0.5, 0.0, 0.0, 30.0, 30.0]"),
        (lambda head, maps: head(maps, [torch.full((1, 4), torch.inf), torch.ones(1, 4)]),
         "`boxes` must be finite, of clips 0 to 1; got [0.0, inf, inf, inf, inf]"),
        (lambda head, maps: RoIActionHead(2, 3, stride=0), "`stride` must be at least 1; got 0"),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[RoIActionHead, Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(plain_head(2), ramps())
