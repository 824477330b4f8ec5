"""The two training steps that `train_step.py` measures, in the form of their authors' loops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iivcl import IIVCLLoss, NNSupportQueue, augment, backbones
from iivcl.momentum import momentum_copy, momentum_update_

DIM, ROWS, NEIGHBORS, TEMPERATURE, MOMENTUM = 128, 65_536, 5, 0.1, 0.994
Mark = Callable[[str], None]
Step = Callable[[Mark], Tensor]  # returns the intra loss


class Setting(NamedTuple):
    """One row of the tables."""

    model: str
    videos: int
    frames: int
    pixels: int
    precision: str
    device: str


class Scene:
    """What both steps begin with: clips, weights and a full queue, equal for equal settings."""

    def __init__(self, setting: Setting, memory_format: torch.memory_format) -> None:
        torch.manual_seed(0)
        self.device, self.memory_format = setting.device, memory_format
        backbone = getattr(backbones, setting.model)()
        head = backbones.ProjectionHead(backbone.feature_dim, backbone.feature_dim, DIM)
        self.encoder = nn.Sequential(backbone, head).to(setting.device, memory_format=memory_format)
        self.key_encoder = momentum_copy(self.encoder)
        short, long = setting.pixels * 8 // 7, setting.pixels * 3 // 2  # of a stored video
        shape = (2 * setting.videos, 3, setting.frames, short, long)  # one clip of each, then again
        self.clips = torch.randint(0, 256, shape, dtype=torch.uint8).to(setting.device)
        self.ids = torch.arange(setting.videos, device=setting.device)  # videos not in the queue
        self.keys = F.normalize(torch.randn(ROWS, DIM), dim=1).to(setting.device)
        self.transform = augment.rho_moco(setting.pixels)
        self.apply = self.transform.apply
        self.generator = torch.Generator().manual_seed(0)
        self.autocast = functools.partial(
            torch.autocast,
            setting.device,
            dtype=torch.bfloat16,
            enabled=setting.precision == "bfloat16",
        )

    def views(self) -> Tensor:
        """Augment both clips of every video: (2B, C, T, H, W)."""
        views = self.apply(self.clips, self.transform.make_params(self.clips, self.generator))
        return views.contiguous(memory_format=self.memory_format)

    def optimizer(self, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Make the optimizer of rho-MoCo; by default, torch chooses how it runs."""
        rates = {"lr": 1e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
        return torch.optim.SGD(self.encoder.parameters(), **rates, fused=fused)


def backward(loss: Tensor, embeddings: Tensor, mark: Mark) -> None:
    """Do what ``loss.backward()`` does in two parts, so that the loss's own can be told apart."""
    (gradient,) = torch.autograd.grad(loss, embeddings)
    mark("loss")
    embeddings.backward(gradient)
    mark("backward")


def iivcl_step(scene: Scene, *, passes: int = 1, compiled: bool = False) -> Step:
    """Set up the step as this library would have it written, in passes over parts of the batch."""
    queue = NNSupportQueue(ROWS, DIM).to(scene.device)
    queue.enqueue(scene.keys, torch.arange(ROWS, device=scene.device) // 8 + len(scene.ids))
    criterion = IIVCLLoss(num_neighbors=NEIGHBORS, temperature=TEMPERATURE)
    optimizer = scene.optimizer(fused=True)
    encoder, key_encoder = scene.encoder, scene.key_encoder
    if compiled:
        encoder, key_encoder = torch.compile(encoder), torch.compile(key_encoder)
        scene.apply = torch.compile(scene.apply, fullgraph=True)
    ids = scene.ids.repeat(2)  # (2B,)

    def step(mark: Mark) -> Tensor:
        views = scene.views()  # (2B, C, T, H, W)
        mark("augment")
        momentum_update_(key_encoder, encoder, MOMENTUM)
        mark("momentum")
        with torch.no_grad(), scene.autocast():
            key = torch.cat([key_encoder(part) for part in views.chunk(passes)])
            key = F.normalize(key.float(), dim=1)  # (2B, D)
        mark("key encoder")
        other = key.roll(len(key) // 2, 0)  # (2B, D): of the video's other clip
        intra = []
        for part, positive, own in zip(
            *(x.chunk(passes) for x in (views, other, ids)), strict=True
        ):
            with scene.autocast():
                query = encoder(part)  # (2B / passes, D)
            mark("query encoder")
            found = queue.nearest(positive, NEIGHBORS, ids=own)
            mark("lookup")
            out = criterion(query, positive, queue, ids=own, neighbors=found)
            backward(out.loss / passes, query, mark)
            intra.append(out.intra.detach() / passes)
        optimizer.step()
        optimizer.zero_grad()
        mark("optimizer")
        queue.enqueue(key, ids)
        mark("enqueue")
        return torch.stack(intra).sum()

    return step


def plain_step(scene: Scene) -> Step:
    """Set up the rho-MoCo step with the layout of PySlowFast's."""
    queue, pointer = scene.keys.clone(), torch.zeros(1, dtype=torch.int64, device=scene.device)
    optimizer = scene.optimizer()
    encoder, key_encoder = scene.encoder, scene.key_encoder

    def update_key_encoder() -> None:
        trained = dict(encoder.named_parameters())
        for name, p in key_encoder.named_parameters():
            p.data = trained[name].data * (1 - MOMENTUM) + p.data * MOMENTUM

    def intra(query: Tensor, key: Tensor) -> Tensor:
        query = F.normalize(query, dim=1)
        positive = torch.einsum("nc,nc->n", query, key)[:, None]  # (B, 1)
        negative = torch.einsum("nc,kc->nk", query, queue.clone().detach())  # (B, K)
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64).to(scene.device))

    def enqueue(keys: list[Tensor]) -> None:
        first = int(pointer.item())
        for key in keys:
            queue[first : first + len(key)] = key
            first = (first + len(key)) % ROWS
            pointer[0] = first

    def step(mark: Mark) -> Tensor:
        both_views = scene.views().chunk(2)  # (B, C, T, H, W) each
        mark("augment")
        update_key_encoder()
        mark("momentum")
        with torch.no_grad(), scene.autocast():
            keys = [F.normalize(key_encoder(view), dim=1) for view in both_views]  # (B, D) each
        mark("key encoder")
        losses = []
        for view, key in zip(both_views, reversed(keys), strict=True):
            with scene.autocast():
                query = encoder(view)
                mark("query encoder")
                losses.append(intra(query, key) / 2)
            backward(losses[-1], query, mark)
        optimizer.step()
        optimizer.zero_grad()
        mark("optimizer")
        enqueue(keys)
        mark("enqueue")
        return torch.stack(losses).detach().sum()

    return step
