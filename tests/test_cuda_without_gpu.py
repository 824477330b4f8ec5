"""The parts of a training step on a CUDA device that computes nothing: no GPU is needed.

Fake tensors know shapes, dtypes and devices. Mixing devices raises, and so does reading a value,
for which a real GPU would make the host wait.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.diagnostics import embedding_std, neighbor_purity, self_match_rate
from iivcl.losses import info_nce
from iivcl.momentum import cosine_momentum, momentum_update_
from iivcl.queues import exact_topk

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="older versions of torch start CUDA for fake tensors as well",
)

BATCH, DIM, ROWS = 8, 32, 4096


@pytest.fixture(autouse=True)
def cuda() -> Iterator[None]:
    with FakeTensorMode(), torch.device("cuda"):
        yield


def embeddings(rows: int = BATCH) -> Tensor:
    return F.normalize(torch.randn(rows, DIM), dim=1)


def ids() -> Tensor:
    return torch.arange(BATCH)


def full_queue() -> NNSupportQueue:
    queue = NNSupportQueue(ROWS, DIM).cuda()
    queue.enqueue(embeddings(ROWS), torch.arange(ROWS))
    return queue


def test_reading_a_value_would_raise() -> None:
    with pytest.raises(DataDependentOutputException):
        embeddings().sum().item()
    with pytest.raises(RuntimeError, match="device"):
        embeddings() + torch.zeros(BATCH, DIM, device="cpu")


@pytest.mark.parametrize(
    ("drawn", "compiling"),
    [
        ("on the device", False),
        ("on the device", True),
        ("on the host", False),
        ("on the host", True),
        ("for the host", True),  # not compiled, values on the host may be read
    ],
)
@pytest.mark.parametrize("name", ["moco_v2", "rho_moco", "cvrl", "evaluation"])
def test_presets(name: str, compiling: bool, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.empty(BATCH, 3, 4, 64, 85, dtype=torch.uint8)
    preset = getattr(augment, name)(32)
    generator = None if drawn == "on the device" else torch.Generator("cpu")
    params = preset.make_params(video.cpu() if drawn == "for the host" else video, generator)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    out = preset.apply(video, params)
    assert out.device.type == "cuda"
    assert out.shape == (BATCH, 3, 4, 32, 32)
    assert out.dtype == torch.float32
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [50, ROWS, 10 * ROWS])
def test_exact_topk(rows: int, dtype: torch.dtype) -> None:
    values, indices = exact_topk(embeddings().to(dtype), embeddings(rows).to(dtype), 5)
    assert values.device.type == indices.device.type == "cuda"
    assert values.dtype == torch.float32


@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_lookup_loss_and_enqueue(num_neighbors: int) -> None:
    queue, criterion = full_queue(), IIVCLLoss(num_neighbors=num_neighbors)
    query = embeddings().requires_grad_()
    out = criterion(query, embeddings(), queue, ids=ids())
    queue.enqueue(embeddings(), ids())
    assert out.loss.device.type == "cuda"
    assert out.loss.dtype == torch.float32
    assert queue.keys.device.type == queue.ids.device.type == "cuda"
    known = torch.zeros(ROWS, dtype=torch.int64)
    for value in (
        neighbor_purity(out.neighbors, known[queue.ids], known[ids()]),
        self_match_rate(out.neighbors, queue.ids, ids()),
        embedding_std(embeddings()),
        info_nce(query, embeddings(), queue.keys),
    ):
        assert value.device.type == "cuda"


def test_encoder_and_momentum() -> None:
    def build() -> nn.Module:
        backbone = backbones.slow_resnet(18)
        head = backbones.ProjectionHead(backbone.feature_dim, 64, DIM, num_layers=2, norm="batch")
        return nn.Sequential(backbone, head)

    encoder, key_encoder = build(), build().requires_grad_(False)
    momentum_update_(key_encoder, encoder, 0.99)
    momentum = cosine_momentum(torch.tensor(3), 10)
    momentum_update_(key_encoder, encoder, momentum, buffers="average")
    assert momentum.device.type == "cuda"
    assert key_encoder(torch.rand(2, 3, 4, 64, 64)).device.type == "cuda"
