"""What a newcomer passes by mistake, and the words that mend it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones, data, evaluation

CLIPS = torch.zeros(4, 8, 3, 40, 50, dtype=torch.uint8)  # (B, T, C, H, W)
PERMUTE = "For (B, T, C, H, W), use `video.permute(0, 2, 1, 3, 4)`"
PERMUTE_LAST = "For (B, T, H, W, C), use `video.permute(0, 4, 1, 2, 3)`"
EXPAND = "Expand gray clips to 3 channels with `video.expand(-1, 3, -1, -1, -1)`"
LAYOUTS = [
    (CLIPS, PERMUTE, lambda video: video.permute(0, 2, 1, 3, 4)),
    (CLIPS.permute(0, 1, 3, 4, 2), PERMUTE_LAST, lambda video: video.permute(0, 4, 1, 2, 3)),
    (CLIPS[:, :, :1].transpose(1, 2), EXPAND, lambda video: video.expand(-1, 3, -1, -1, -1)),
    (
        CLIPS[0].transpose(0, 1),
        "For a single clip, add the axis B with `video[None]`",
        lambda video: video[None],
    ),
]
PRESETS = (augment.moco_v2, augment.rho_moco, augment.cvrl, augment.evaluation)


@pytest.fixture(scope="module")
def backbone() -> backbones.VideoEncoder:
    return backbones.slow_resnet(18).eval()


@pytest.mark.parametrize(("video", "remedy", "mend"), LAYOUTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_other_layouts_show_the_users_shape_and_the_remedy_works(
    preset: Callable[[int], Any], video: Tensor, remedy: str, mend: Callable[[Tensor], Tensor]
) -> None:
    transform = preset(16)
    with pytest.raises(ValueError, match=f"{re.escape(remedy)}$") as caught:
        transform(video)
    assert str(tuple(video.shape)) in str(caught.value)
    assert transform(mend(video)).shape[1:] == (3, 8, 16, 16)


@pytest.mark.parametrize(("video", "remedy", "mend"), LAYOUTS)
def test_encoders_say_it_too(
    video: Tensor,
    remedy: str,
    mend: Callable[[Tensor], Tensor],
    backbone: backbones.VideoEncoder,
) -> None:
    message = (
        "`video` must have shape (B, C, T, H, W) with C=3 (from `in_channels`); "
        f"got {tuple(video.shape)}. {remedy}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        backbone(video.float())
    with torch.no_grad():
        assert backbone(mend(video).float()[:1]).shape == (1, 512)


def test_channels_behind_a_transform_of_ones_own_are_not_guessed() -> None:
    class FirstThree(augment.Transform[tuple[()]]):
        def make_params(self, video: Tensor, generator: Any = None) -> tuple[()]:
            return ()

        def apply(self, video: Tensor, params: tuple[()]) -> Tensor:  # type: ignore[override]
            return video[:, :3]

    bands = torch.zeros(2, 5, 4, 8, 8)
    assert augment.Compose(FirstThree(), augment.RandomGrayscale(p=1.0))(bands).shape[1] == 3
    with pytest.raises(ValueError, match="1 or 3 channels; got 5"):
        augment.RandomGrayscale(p=1.0)(bands)


def filled() -> NNSupportQueue:
    queue = NNSupportQueue(3, 2)
    queue.enqueue(torch.eye(2), torch.tensor([7, 8]))
    return queue


ROWS, LABELS = torch.eye(4), torch.arange(4)
CALLS: list[tuple[Callable[[], object], type[Exception], str]] = [
    *(
        (
            lambda preset=preset: preset((112, 112)),
            TypeError,
            "`size` must be an int, the height and width of the square result; got (112, 112)",
        )
        for preset in PRESETS
    ),
    (lambda: NNSupportQueue(64.0, 16), TypeError, "`size` must be an integer; got 64.0"),  # type: ignore[arg-type]
    (lambda: NNSupportQueue(64, "16"), TypeError, "`dim` must be an integer; got '16'"),  # type: ignore[arg-type]
    (
        lambda: data.ClipRecipe(num_frames="8", stride=2),  # type: ignore[arg-type]
        TypeError,
        "`num_frames` must be an integer; got '8'",
    ),
    (
        lambda: data.ClipRecipe(num_frames=8, stride="2"),  # type: ignore[arg-type]
        TypeError,
        "`stride` must be a number; got '2'",
    ),
    (
        lambda: IIVCLLoss(temperature="0.1"),  # type: ignore[arg-type]
        TypeError,
        "`temperature` must be a number; got '0.1'",
    ),
    (
        lambda: IIVCLLoss(num_neighbors=4)(
            torch.eye(2), torch.eye(2), filled(), ids=torch.tensor([1, 2])
        ),
        ValueError,
        "`num_neighbors` must be at most 3, the rows of the queue; got 4",
    ),
    (
        lambda: filled().nearest(torch.eye(2), 1.0, ids=torch.tensor([1, 2])),  # type: ignore[arg-type]
        TypeError,
        "`k` must be an integer; got 1.0",
    ),
    (
        lambda: filled().enqueue(torch.eye(2), [1, 2]),  # type: ignore[arg-type]
        TypeError,
        "`ids` must be a tensor of shape (B,); got list. Make one with `torch.as_tensor(ids)`",
    ),
    (
        lambda: filled().enqueue(np.eye(2), torch.tensor([1, 2])),  # type: ignore[arg-type]
        TypeError,
        "`keys` must be a tensor of shape (B, D); got ndarray. Make one with "
        "`torch.as_tensor(keys)`",
    ),
    *(
        (
            lambda ks=ks: evaluation.retrieval_recall(ROWS, LABELS, ks=ks),
            TypeError,
            f"`ks` must be a sequence of integers, such as (1, 5); got {ks!r}",
        )
        for ks in (1, (), (1.5,), "15", None)
    ),
    (
        lambda: evaluation.topk_accuracy(ROWS, LABELS, ks=1),  # type: ignore[arg-type]
        TypeError,
        "`ks` must be a sequence of integers, such as (1, 5); got 1",
    ),
    (
        lambda: evaluation.knn_classify(ROWS, None, LABELS, k="3"),  # type: ignore[arg-type]
        TypeError,
        "`k` must be an integer; got '3'",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_other_types_and_numbers(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        call()


def test_integers_of_numpy_are_integers() -> None:
    assert NNSupportQueue(np.int64(4), np.int32(2)).keys.shape == (4, 2)  # type: ignore[arg-type]


def test_a_checkpoint_of_another_dim_does_not_advise_resizing() -> None:
    message = (
        "keys: the checkpoint has (3, 2), this queue (3, 4). Build the queue with the "
        "checkpoint's dim; other keys cannot be compared"
    )
    with pytest.raises(RuntimeError, match=f"{re.escape(message)}$"):
        NNSupportQueue(3, 4).load_state_dict(filled().state_dict())
