"""A classifier of boxes in the feature map of an encoder, for the detection of actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from iivcl._checks import check_at_least, check_embeddings, check_within

__all__ = ["RoIActionHead"]


class RoIActionHead(nn.Module):
    """Scores of the actions of persons, from the feature map of the clip that they are in.

    The map is averaged over time, every box is cut out of it by RoIAlign to ``resolution`` x
    ``resolution`` cells, and their maximum is classified. A box holds for the whole clip, although
    persons move: it is that of the frame in the middle.

    Args:
        in_dim: Channels F of the map.
        num_actions: A.
        stride: Pixels of the clip per cell of the map, ``encoder.strides[1]``: 16 of Slow R50 with
            ``res5_dilation=2``.
        resolution: Cells on a side of a box.
        dropout: Share of the features left out in training.

    Raises:
        ValueError: A number is out of range; or the map or the boxes have the wrong shape, or
            the boxes, whose values are read on the CPU alone, are not those of these clips.

    Example:
        >>> import torch
        >>> from iivcl.backbones import slow_resnet
        >>> encoder = slow_resnet(18, res5_dilation=2)
        >>> head = RoIActionHead(encoder.feature_dim, 80, stride=encoder.strides[1])
        >>> boxes = [torch.tensor([[4.0, 8.0, 30.0, 60.0]]), torch.empty(0, 4)]  # of two clips
        >>> head(encoder.features(torch.zeros(2, 3, 4, 64, 64)), boxes).shape
        torch.Size([1, 80])

    Source:
        Feichtenhofer et al., "SlowFast Networks for Video Recognition", arXiv 1812.03982,
        section 5; He et al., "Mask R-CNN", arXiv 1703.06870, section 3, of RoIAlign.
    """

    def __init__(
        self,
        in_dim: int,
        num_actions: int,
        *,
        stride: int,
        resolution: int = 7,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_at_least(1, in_dim=in_dim, num_actions=num_actions)
        check_at_least(1, stride=stride, resolution=resolution)
        check_within(0, 1, dropout=dropout)
        self.in_dim, self.stride, self.resolution = in_dim, stride, resolution
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_dim, num_actions)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, feature_map: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """Classify N boxes.

        Args:
            feature_map: ``(B, F, T', H', W')`` of B clips.
            boxes: Left, top, right and bottom in pixels of the clips: ``(n, 4)`` of every clip, or
                ``(N, 5)`` of all with the number of the clip in front.

        Returns:
            Logits ``(N, A)``, of which every action has its own sigmoid.
        """
        check_embeddings("feature_map", feature_map, "B F T H W", F=(self.in_dim, "in_dim"))
        if not isinstance(boxes, Tensor):
            if len(boxes) != len(feature_map):
                raise ValueError(
                    f"`boxes` must have an entry for each of {len(feature_map)} clips; "
                    f"got {len(boxes)}"
                )
            for box in boxes:
                check_embeddings("boxes", box, "n edges", edges=(4, "left, top, right, bottom"))
            numbered = [F.pad(box, (1, 0), value=clip) for clip, box in enumerate(boxes)]
            boxes = torch.cat(numbered) if numbered else feature_map.new_empty(0, 5)
        check_embeddings("boxes", boxes, "N numbers", numbers=(5, "clip, left, top, right, bottom"))
        _check_values(boxes, len(feature_map))
        still = feature_map.mean(dim=2, dtype=torch.promote_types(feature_map.dtype, torch.float32))
        cells = roi_align(
            still, boxes.to(still.dtype), self.resolution, 1 / self.stride, aligned=True
        )  # (N, F, resolution, resolution)
        most = cells.amax(dim=(2, 3)).to(feature_map.dtype)  # (N, F)
        logits: Tensor = self.classifier(self.dropout(most))
        return logits


def _check_values(boxes: Tensor, clips: int) -> None:
    """Check (N, 5) where it makes no device wait: RoIAlign reads whatever memory a number means."""
    if boxes.device.type != "cpu" or torch.compiler.is_compiling():
        return
    of = boxes[:, 0]
    wrong = ~(boxes.isfinite().all(dim=1) & (of >= 0) & (of < clips) & (of == of.floor()))
    if wrong.any():
        raise ValueError(
            f"`boxes` must be finite, of clips 0 to {clips - 1}; got {boxes[wrong][0].tolist()}"
        )
