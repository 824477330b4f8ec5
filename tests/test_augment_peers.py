"""What the how-to page says of torchvision's MixUp and CutMix: clips marked as videos work."""

from __future__ import annotations

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


def test_mixup_of_torchvision_mixes_whole_clips() -> None:
    clips, labels = torch.rand(4, 3, 5, 16, 20), torch.arange(4)
    mixed, soft = v2.MixUp(num_classes=6)(tv_tensors.Video(clips), labels)
    share = soft[0, 0]  # of a clip's own; the rest is the clip before it
    expected = share * clips + (1 - share) * clips.roll(1, 0)
    torch.testing.assert_close(torch.Tensor(mixed), expected)
    assert torch.equal(soft.argmax(1).sort().values, labels)


def test_cutmix_of_torchvision_cuts_one_box_through_all_frames() -> None:
    torch.manual_seed(0)
    clips, labels = torch.rand(4, 3, 5, 16, 20), torch.arange(4)
    mixed, soft = v2.CutMix(num_classes=6)(tv_tensors.Video(clips), labels)
    other = mixed != clips  # (B, C, T, H, W)
    box = other[0, 0, 0]
    assert 0 < box.sum() < box.numel()
    assert torch.equal(other, box.expand_as(other))
    assert torch.equal(torch.Tensor(mixed)[other], clips.roll(1, 0)[other])
    torch.testing.assert_close(soft[0, 0], 1 - box.float().mean())
