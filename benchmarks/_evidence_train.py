"""Training by one method of the evidence, whose steps before the first neighbour many share."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _evidence_features import (
    NORMALIZE,
    clip_of,
    mutual_videos,
    near_videos_of,
    settings,
    small_encoder,
    transform_of,
)
from _evidence_methods import METHODS, TEMPERATURE, Lookup
from _evidence_sets import Clips, Videos
from torch import Tensor, nn

from iivcl import IIVCLLoss, NNSupportQueue, backbones
from iivcl.data import random_clip_starts
from iivcl.diagnostics import effective_rank, neighbor_age, neighbor_purity
from iivcl.momentum import cosine_momentum, momentum_copy, momentum_update_

BATCH, DIM = 32, 128
POINTS = 20  # of the curves
Metrics = dict[str, float]


@dataclass
class State:
    """All that a step changes."""

    online: nn.ModuleList  # the encoder, and its heads
    target: nn.ModuleList
    predictor: nn.Module
    optimizer: torch.optim.Optimizer
    queues: list[NNSupportQueue]  # of every head
    lookup_queue: NNSupportQueue  # of what neighbours are near in, its rows in step with the others
    row_videos: Tensor  # (K,) of the rows of every queue
    draws: torch.Generator  # of videos, clips and colours: the same for all methods
    method_draws: torch.Generator
    order: Tensor  # videos of this epoch that are yet to be seen
    near: Tensor | None = None  # (N, k) videos that are near to each as a whole
    curves: list[Metrics] = field(default_factory=list)


class Run:
    """Training of an encoder, in place.

    Args:
        encoder: It, on its device.
        videos: The set.
        places: Places of the videos to train on.
        name: A name in `METHODS`.
        steps: How many.
        seed: Of everything that is drawn but the weights of the encoder.
        half: Whether models compute in bfloat16, as `torch.autocast` does.
        check: Called at every step; may raise.
    """

    def __init__(
        self,
        encoder: nn.Module,
        videos: Videos,
        places: Tensor,
        name: str,
        *,
        steps: int,
        seed: int,
        half: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        method, device = METHODS[name], next(encoder.parameters()).device
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
        self.method, self.places, self.steps, self.check = method, places, steps, check
        self.rate = settings(videos.kind).learning_rate
        self.start = math.ceil(method.start * steps)
        self.batch = min(BATCH, len(places))
        self.clips = Clips(videos, device, **clip_of(videos.kind))
        self.ids = videos.ids(method.ids).to(device)
        self.apart = videos.ids(method.apart or method.ids).to(device)
        self.labels, self.people = videos.labels.to(device), videos.people.to(device)
        self.transform = transform_of(videos.kind, method.colours)
        self.intra = IIVCLLoss(num_neighbors=0, temperature=TEMPERATURE, batch_negatives=True)
        self.state = self._begin(encoder, seed)
        self.second: Before | None = None
        if method.lookup != "embedding":
            sees = method.sees if method.lookup == "again" else "changes"
            before = {"frames": "intra", "changes": "changes-intra"}[sees]
            how = {"steps": steps, "seed": seed, "half": half, "check": check}
            self.second = encoder_before(videos, places, device, before, **how)

    def _begin(self, encoder: nn.Module, seed: int) -> State:
        method, width = self.method, int(encoder.feature_dim)  # type: ignore[call-overload]
        device = next(encoder.parameters()).device

        def head() -> nn.Module:
            return backbones.ProjectionHead(width, 256, DIM, num_layers=2, norm="batch")

        heads = nn.ModuleList([head() for _ in range(1 + (method.head == "own"))])
        online = nn.ModuleList([encoder, heads]).to(device)
        target = momentum_copy(online)
        predictor: nn.Module = nn.Identity()
        if method.query == "prediction":
            predictor = backbones.PredictionHead(DIM, 256).to(device)
        near = DIM * (1 + (method.lookup == "both"))  # numbers that neighbours are near in
        return State(
            online,
            target,
            predictor,
            torch.optim.AdamW(
                [*online.parameters(), *predictor.parameters()],
                self.rate,
                weight_decay=1e-4,
                fused=device.type == "cuda",
            ),
            [NNSupportQueue(method.queue, DIM).to(device) for _ in heads],
            NNSupportQueue(method.queue, near).to(device),
            torch.zeros(method.queue, dtype=torch.int64, device=device),
            *(torch.Generator().manual_seed(2 * seed + i) for i in (0, 1)),
            order=torch.empty(0, dtype=torch.int64),
        )

    def train(self, kept: dict[int, State]) -> None:
        """Take all steps, or those that are left after the state of another run of the same parts.

        Args:
            kept: States before steps by which no neighbour has counted; one is added.
        """
        first = max((step for step in kept if step <= self.start), default=0)
        if first in kept:
            self.state = copy.deepcopy(kept[first])
        for step in range(first, self.steps):
            self.check()
            if step == self.start:
                kept[step] = copy.deepcopy(self.state)
            self.step(step)

    def step(self, step: int) -> None:
        """Take a step."""
        state, method = self.state, self.method
        shown = step % max(1, self.steps // POINTS) == 0 or step == self.steps - 1
        chosen, views = self._draw()
        ids, labels = self.ids[chosen], self.labels[chosen]
        query = self._embed(state.online, views)
        with torch.no_grad():
            momentum_update_(
                state.target, state.online, cosine_momentum(step, self.steps, base=0.98)
            )
            key = self._embed(state.target, views)
        intra = [
            self.intra(query[0][i], key[0][1 - i], state.queues[0], ids=ids).intra for i in (0, 1)
        ]
        loss = torch.stack(intra).mean()

        look = Lookup(
            key[-1] if self.second is None else self._second_keys(views, key[-1]),
            self.apart[chosen],
            state.lookup_queue,
            labels,
            self.people[chosen],
            state.row_videos,
            self.labels[state.row_videos],
            self.people[state.row_videos],
            state.method_draws,
        )
        if shown:
            point = {"step": step, "intra": loss.item(), **watch(look, query[0])}
        if method.find is not None and step >= self.start:
            if method.unit != "clips":
                look = look._replace(near=self._near_videos(step)[chosen])
            found = method.find(look)
            seen = [state.predictor(query[-1][i]) for i in (0, 1)]
            inter = [
                method.term(seen[i], key[-1][1 - i], state.queues[-1], ids, found[1 - i])
                for i in (0, 1)
            ]
            term = torch.stack(inter).mean()
            loss = loss + method.weight_at(step / self.steps) * term
            if shown:
                point |= {"inter": term.item(), **watch_accepted(found[0], look)}
        if shown:
            state.curves.append({name: tidy(value) for name, value in point.items()})
        for group in state.optimizer.param_groups:
            group["lr"] = self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        self._enqueue(key, look, ids, chosen)

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Draw videos, and two clips of each, (2 B, 3, T, H, W): the first of all, the second."""
        state = self.state
        if len(state.order) < self.batch:
            state.order = self.places[torch.randperm(len(self.places), generator=state.draws)]
        chosen, state.order = state.order[: self.batch], state.order[self.batch :]
        how = {"generator": state.draws}
        starts = [self.clips.starts(i, random_clip_starts, **how) for i in chosen.tolist()]
        pairs = self.clips.cut(torch.stack(starts, dim=1).flatten())
        return chosen.to(pairs.device, non_blocking=True), self.transform(pairs, **how)

    def _embed(self, model: nn.ModuleList, views: Tensor) -> list[Tensor]:
        """Embed both clips by every head, (2, B, D)."""
        with self.autocast:
            features = model[0](views)
            heads = [head(features) for head in model[1]]
        return [F.normalize(x.float(), dim=1).view(2, self.batch, DIM) for x in heads]

    @torch.no_grad()
    def _second_keys(self, views: Tensor, key: Tensor) -> Tensor:
        """Embed both clips by the encoder trained before, and by the keys as well if both count."""
        assert self.second is not None
        with self.autocast:
            seen = self.second.head(self.second.backbone(views))
        near = [F.normalize(seen.float(), dim=1).view(2, self.batch, DIM)]
        near += [key] * (self.method.lookup == "both")
        return F.normalize(torch.cat(near, dim=2), dim=2)

    def _near_videos(self, step: int) -> Tensor:
        """Give the videos that are near to each as a whole, as of one of the last steps."""
        state, fixed = self.state, self.method.lookup in ("changes", "again")
        if state.near is None or (step % max(1, self.steps // POINTS) == 0 and not fixed):
            before = [] if self.second is None else [self.second.backbone]
            now = [] if fixed else [state.target[0]]
            models = [nn.Sequential(NORMALIZE, model) for model in (*before, *now)]
            near = near_videos_of(models, self.clips, self.places, self.apart)
            state.near = mutual_videos(near) if self.method.unit == "mutual-videos" else near
        return state.near

    def _enqueue(self, key: list[Tensor], look: Lookup, ids: Tensor, chosen: Tensor) -> None:
        state = self.state
        places = torch.arange(2 * self.batch, device=ids.device)
        state.row_videos[(state.queues[0].cursor + places) % self.method.queue] = chosen.repeat(2)
        for queue, keys in zip(state.queues, key, strict=True):
            queue.enqueue(keys.flatten(0, 1), ids.repeat(2))
        state.lookup_queue.enqueue(look.keys.flatten(0, 1), look.ids.repeat(2))


class Before(NamedTuple):
    """An encoder that was trained before, and changes no more."""

    backbone: nn.Module
    head: nn.Module


_BEFORE: dict[tuple[Any, ...], dict[str, Before]] = {}


def encoder_before(
    videos: Videos,
    places: Tensor,
    device: torch.device,
    name: str,
    *,
    seed: int,
    half: bool,
    **how: Any,
) -> Before:
    """Train the encoder that looks up, by ``name``; what a process runs on one pair shares it."""
    pair = (id(videos), tuple(places.tolist()), seed, half, how["steps"])
    if pair not in _BEFORE:
        _BEFORE.clear()  # pairs come one after the other
    known = _BEFORE.setdefault(pair, {})
    if name not in known:
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1000)  # another start than that of the encoder beside it
            how |= {"seed": seed, "half": half}
            encoder = small_encoder(device, METHODS[name].sees)
            run = Run(encoder, videos, places, name, **how)
            run.train({})
        backbone, (head,) = run.state.online
        known[name] = Before(backbone.eval(), head.eval())
    return known[name]


def watch(look: Lookup, query: Tensor) -> Metrics:
    """Measure the five nearest rows, whatever the method takes, and the embedding."""
    found = look.queue.nearest(look.keys[0], 5, ids=look.ids)
    return {
        "nearest_purity": neighbor_purity(found, look.row_labels, look.labels).item(),
        "nearest_same_person": neighbor_purity(found, look.row_people, look.people).item(),
        "nearest_similarity": found.similarity[found.valid].mean().item(),
        "nearest_age": neighbor_age(found, look.queue.ages).item(),
        "effective_rank": effective_rank(query.detach().flatten(0, 1)).item(),
    }


def watch_accepted(found: Any, look: Lookup) -> Metrics:
    return {
        "purity": neighbor_purity(found, look.row_labels, look.labels).item(),
        "accepted": found.valid.float().sum(1).mean().item(),
        "similarity": found.similarity[found.valid].mean().item(),
        "age": neighbor_age(found, look.queue.ages).item(),
    }


def tidy(value: float) -> Any:
    """Round a number, and write one that does not exist as JSON can."""
    return round(value, 5) if math.isfinite(value) else None
