"""What each rank does in the tests of evaluation; imported by the processes that are started."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from iivcl.evaluation import extract_features


class NumberedClips(Dataset[tuple[torch.Tensor, int, int]]):
    """Five videos of two clips that are filled with the number of the video."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return torch.full((2, 1, 1, 2, 2), float(index)), index, 10 * index


def gather_features(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    dataset = NumberedClips()
    sampler = DistributedSampler(dataset, shuffle=False)  # pads 5 videos to 3 on each of 2 ranks
    loader = DataLoader(dataset, batch_size=2, sampler=sampler)
    found = {
        mode: extract_features(nn.Flatten(), loader, device="cpu", distributed=mode)
        for mode in ("local", "gather")
    }
    results: dict[str, Any] = {mode: tuple(f) for mode, f in found.items()}
    one = [(torch.ones(1, 1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))]
    few = extract_features(nn.Flatten(), [one, []][rank], device="cpu", distributed="gather")
    results["few"] = few.indices.tolist()
    joined = [(torch.randn(5, 1, 1, 2, 2), torch.tensor([0, 1, 0, 1, 2])[rank::2])]
    joined = [(clips[: len(indices)] + rank, indices) for clips, indices in joined]
    for name, batches in (("none", []), ("joined", joined)):
        try:
            extract_features(nn.Flatten(), batches, device="cpu", distributed="gather")
        except ValueError as error:
            results[name] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
