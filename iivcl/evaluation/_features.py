"""Features of whole videos from a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iivcl._checks import check_choice
from iivcl.distributed import all_gather_cat, world_size

__all__ = ["Features", "extract_features"]


class Features(NamedTuple):
    """One feature per video, in the order of the dataset.

    Attributes:
        features: ``(N, D)`` float32 on the CPU.
        indices: ``(N,)`` int64, ascending, each once: the videos' places in the dataset.
        labels: ``(N,)`` int64, or None when the loader gives none.
    """

    features: Tensor
    indices: Tensor
    labels: Tensor | None


def extract_features(
    model: nn.Module,
    loader: Iterable[Sequence[Tensor]],
    *,
    device: torch.device | str,
    distributed: Literal["local", "gather"] = "local",
) -> Features:
    """Run a frozen model over a loader and keep one feature per video.

    The model runs in eval mode without gradients, and every submodule is put back in the mode it
    was in. The features of the V clips of a video are averaged. Rows are sorted by index. A video
    that comes twice, as from ``DistributedSampler`` to even out its shards, counts once. Different
    videos of one index, as in a ``ConcatDataset`` whose parts all count from 0, are refused.

    The published protocol asks for the pooled output of the encoder, before the projection head,
    from 10 clips per video. Put the evaluation transform in the dataset, or in front of the model:
    ``nn.Sequential(transform, backbone)``.

    Args:
        model: Module from ``(B, C, T, H, W)`` to ``(B, D)``, already on ``device``.
        loader: Gives ``(clips, index)``, ``(clips, index, label)`` or, as `VideoClips` does of a
            manifest, ``(clips, index, label, id)``: clips ``(B, V, C, T, H, W)`` or
            ``(B, C, T, H, W)``, the others ``(B,)`` integers. Ids are not used.
        device: Where the clips are moved.
        distributed: ``"local"`` returns what this process has read. ``"gather"`` returns the
            videos of all ranks on every rank, and must be called by all of them; a rank may have
            none.

    Returns:
        The features, indices and labels of all videos.

    Raises:
        ValueError: The loader gives nothing, or elements of another form, or one index to videos
            of different features (beyond rounding) or labels. Of as many repeats over all ranks as
            a ``DistributedSampler`` makes, fewer than ranks, only the labels are compared.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> clips = torch.arange(12.0).reshape(2, 3, 1, 1, 1, 2)  # 2 videos of 3 clips
        >>> loader = [(clips, torch.tensor([1, 0]), torch.tensor([7, 5]))]
        >>> extract_features(nn.Flatten(), loader, device="cpu")
        Features(features=tensor([[8., 9.],
                [2., 3.]]), indices=tensor([0, 1]), labels=tensor([5, 7]))
    """
    batches = []
    check_choice("distributed", distributed, ("local", "gather"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            for element in loader:
                clips, *rest = _check_element(element)[:3]
                batches.append((_video_features(model, clips.to(device, non_blocking=True)), *rest))
    finally:
        for module, training in modes:
            module.training = training

    if len(counts := {len(batch) for batch in batches}) > 1:
        raise ValueError(f"`loader` must give elements of one length; got {sorted(counts)}")
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    if distributed == "gather":
        columns = _gather(columns, device)
    if not columns:
        raise ValueError("`loader` gave no batch; check that the dataset is not empty")
    order = columns[1].argsort(stable=True)
    features, indices, *labels = (column[order] for column in columns)
    is_repeat = indices.diff(prepend=indices[:1] - 1) == 0
    _check_repeats(is_repeat, features, indices, labels, distributed)
    features, indices, *labels = (column[~is_repeat] for column in (features, indices, *labels))
    return Features(features, indices, labels[0] if labels else None)


def _gather(columns: list[Tensor], device: torch.device | str) -> list[Tensor]:
    """Concatenate the columns of all ranks; a rank that has none takes part with no rows."""
    if world_size() > 1:
        heads: list[list[Tensor]] = [[] for _ in range(world_size())]
        dist.all_gather_object(heads, [column[:0] for column in columns])
        columns = columns or max(heads, key=len)
    return [all_gather_cat(column.to(device)).cpu() for column in columns]


def _check_repeats(
    is_repeat: Tensor, features: Tensor, indices: Tensor, labels: list[Tensor], distributed: str
) -> None:
    """Refuse rows that have the index of the row before, (N,) bool, but are of another video."""
    repeats = is_repeat.nonzero()[:, 0]
    spread = (features[repeats] - features[repeats - 1]).norm(dim=1)
    differs = spread > 1e-3 * features[repeats].norm(dim=1)
    # A sampler's repeats are the same video, but perhaps other clips of it.
    differs &= len(repeats) >= (world_size() if distributed == "gather" else 1)
    for column in labels:
        differs |= column[repeats] != column[repeats - 1]
    if differs.any():
        raise ValueError(
            f"`loader` gave index {int(indices[repeats[differs]][0])} to videos of different "
            f"features or labels ({int(differs.sum())} such rows in all). Give datasets that are "
            "joined an `id_offset` each; a video that comes twice must come with the same clips"
        )


def _video_features(model: nn.Module, clips: Tensor) -> Tensor:
    """Average the features of the V clips of each video: (B, [V,] C, T, H, W) -> (B, D)."""
    clips = clips if clips.ndim == 6 else clips[:, None]
    videos, views = clips.shape[:2]
    features: Tensor = model(clips.flatten(0, 1))  # (B * V, D)
    if not isinstance(features, Tensor):
        raise ValueError(f"`model` must give a tensor (B, D); got {type(features).__name__}")
    if features.ndim != 2 or len(features) != videos * views:
        raise ValueError(
            f"`model` must map clips (B, C, T, H, W) to features (B, D); "
            f"got {tuple(features.shape)} from B={videos * views}"
        )
    return features.float().view(videos, views, -1).mean(dim=1).cpu()


def _check_element(element: Sequence[Tensor]) -> Sequence[Tensor]:
    fits = len(element) in (2, 3, 4) and all(isinstance(part, Tensor) for part in element)
    if not fits or element[0].ndim not in (5, 6) or not all(map(_is_integers, element[1:])):
        kinds = [tuple(e.shape) if isinstance(e, Tensor) else type(e).__name__ for e in element]
        raise ValueError(
            "`loader` must give (clips, index), (clips, index, label) or (clips, index, label, id) "
            f"with clips (B, V, C, T, H, W) or (B, C, T, H, W), the others (B,); got {kinds}"
        )
    lengths = [len(part) for part in element]
    if len(set(lengths)) > 1:
        raise ValueError(
            "`loader` must give one index, label and id for each of the B videos, whose clips are "
            f"(B, V, C, T, H, W) where a video has several; got {lengths} rows"
        )
    return element


def _is_integers(part: Tensor) -> bool:
    return part.ndim == 1 and not part.is_floating_point() and part.dtype != torch.bool
