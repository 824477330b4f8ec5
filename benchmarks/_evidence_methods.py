"""How positives of other videos are found, weighed and used: the methods that evidence compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from iivcl import IIVCLLoss, NNSupportQueue, queues
from iivcl.losses import multi_positive_info_nce
from iivcl.queues import Neighbors

TEMPERATURE = 0.1


# --- finding: which rows of the queue are taken for neighbours -----------------------------------


class Lookup(NamedTuple):
    """What a search sees; labels and people are for the oracle and the curves alone."""

    keys: Tensor  # (2, B, D) momentum keys of both clips, of unit length
    ids: Tensor  # (B,) rows of the same id are never found
    queue: NNSupportQueue
    labels: Tensor  # (B,)
    people: Tensor  # (B,)
    row_videos: Tensor  # (K,)
    row_labels: Tensor  # (K,)
    row_people: Tensor  # (K,)
    generator: torch.Generator
    near: Tensor | None = None  # (B, k) numbers of the videos that are near as a whole, or -1


Pair = list[Neighbors]  # what the key of each of the two clips has found, (B, k) each
Finder = Callable[[Lookup], Pair]
Filter = Callable[[Pair, Lookup], Pair]


def nearest(k: int) -> Finder:
    return lambda look: [look.queue.nearest(key, k, ids=look.ids) for key in look.keys]


def nearest_to_mean(k: int) -> Finder:
    """Look up once per video, by the mean of its clips."""
    return lambda look: 2 * [look.queue.nearest(look.keys.mean(0), k, ids=look.ids)]


def near_videos(look: Lookup) -> Pair:
    """Take the newest row of each video that is near as a whole."""
    assert look.near is not None
    is_row = (look.near[:, :, None] == look.row_videos) & look.queue.valid  # (B, k, K)
    stamps, rows = look.queue.stamps.where(is_row, -1).max(2)
    valid = stamps >= 0

    def neighbors(key: Tensor) -> Neighbors:
        similarity = (look.queue.keys[rows] @ key[:, :, None])[..., 0]  # (B, k)
        return Neighbors(similarity.where(valid, -torch.inf), rows.where(valid, 0), valid)

    return [neighbors(key) for key in look.keys]


def oracle(purity: float, k: int) -> Finder:
    """Draw rows at random, of the right class with probability ``purity``, of others otherwise."""

    def find(look: Lookup) -> Pair:
        queue = look.queue
        allowed = queue.valid & (look.ids[:, None] != queue.ids)  # (B, K)
        right = look.labels[:, None] == look.row_labels

        def rand(*shape: int) -> Tensor:
            drawn = torch.rand(shape, generator=look.generator)
            return drawn.to(allowed.device, non_blocking=True)

        def draw(key: Tensor) -> Neighbors:
            chance, coin = rand(*allowed.shape), rand(len(key), k) < purity
            good, good_rows = chance.where(allowed & right, -1.0).topk(k)  # (B, k)
            bad, bad_rows = chance.where(allowed & ~right, -1.0).topk(k)
            score, rows = torch.where(coin, good, bad), torch.where(coin, good_rows, bad_rows)
            valid = score >= 0
            similarity = (queue.keys[rows] @ key[:, :, None])[..., 0]  # (B, k)
            return Neighbors(similarity.where(valid, -torch.inf), rows.where(valid, 0), valid)

        return [draw(key) for key in look.keys]

    return find


def some(k: int, find: Finder) -> Finder:
    """Draw k of the rows that are found, at random."""

    def draw(found: Neighbors, look: Lookup) -> Neighbors:
        chance = torch.rand(found.valid.shape, generator=look.generator).to(found.valid.device)
        places = chance.where(found.valid, -1.0).topk(k).indices
        return Neighbors(*(part.gather(1, places) for part in found))

    return lambda look: [draw(found, look) for found in find(look)]


def kept(find: Finder, *filters: Filter) -> Finder:
    """Keep of what is found the rows that pass all filters."""

    def found(look: Lookup) -> Pair:
        pair = find(look)
        for keep in filters:
            pair = keep(pair, look)
        return pair

    return found


def mutual(pair: Pair, look: Lookup) -> Pair:
    """Keep rows to which the key is as near as their own k nearest rows are."""

    def keep(found: Neighbors) -> Neighbors:
        size, queue = found.indices.shape, look.queue
        rows = found.indices.flatten()  # (B * k,)
        own = queue.nearest(queue.keys[rows], size[1], ids=queue.ids[rows])
        return _only(found, found.similarity >= own.similarity[:, -1].view(size))

    return [keep(found) for found in pair]


def agreed(pair: Pair, look: Lookup) -> Pair:
    """Keep rows that both clips of the video have found."""
    return [*queues.agreed(*pair)]


def _only(found: Neighbors, keep: Tensor) -> Neighbors:
    valid = found.valid & keep
    return Neighbors(found.similarity.where(valid, -torch.inf), found.indices, valid)


# --- using: what is added to the intra term, given the neighbours --------------------------------

Term = Callable[[Tensor, Tensor, NNSupportQueue, Tensor, Neighbors], Tensor]


def attract(
    form: Literal["per_positive", "out", "in"] = "out", *, temperature: float = TEMPERATURE
) -> Term:
    """Take the library's inter term, by its default form: all neighbours count alike."""
    criterion = IIVCLLoss(temperature=temperature, batch_negatives=True, form=form)

    def term(
        query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor, found: Neighbors
    ) -> Tensor:
        return criterion(query, key, queue, ids=ids, neighbors=found).inter

    return term


def weighted(*, soft: float | None = None, own: float = 0.0) -> Term:
    """Attract to neighbours by weight, and to the own key.

    Args:
        soft: Temperature of the softmax over the similarities of the neighbours, which weighs them;
            None for equal weights. The weights of the neighbours of a query sum to 1.
        own: Weight of the own key.
    """

    def term(
        query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor, found: Neighbors
    ) -> Tensor:
        scores = found.similarity / soft if soft else found.valid.float()
        weights = scores.where(found.valid, -1e4).softmax(1) * found.valid  # (B, k)
        return contrast(query, key, queue, ids, found, weights=weights, own=own)

    return term


def spare(
    query: Tensor, key: Tensor, queue: NNSupportQueue, ids: Tensor, found: Neighbors
) -> Tensor:
    """Turn the intra term into one whose negatives lack the neighbours; nothing is attracted."""
    none, nobody = torch.zeros_like(found.similarity), found._replace(valid=found.valid & False)
    without = contrast(query, key, queue, ids, found, weights=none, own=1.0)
    return without - contrast(query, key, queue, ids, nobody, weights=none, own=1.0)


def contrast(
    query: Tensor,
    key: Tensor,
    queue: NNSupportQueue,
    ids: Tensor,
    found: Neighbors,
    *,
    weights: Tensor,
    own: float,
) -> Tensor:
    """Contrast with weighted neighbours and the own key, against the batch and the queue.

    Neighbours of weight 0 and an own key of weight 0 are neither positive nor negative.
    """
    batch, rows = len(query), torch.where(found.valid, found.indices, queue.size)
    blank = query.new_zeros(batch, queue.size + 1)  # its last column takes what is not valid
    row_weights = blank.scatter(1, rows, weights)[:, :-1]
    is_found = blank.scatter(1, rows, 1.0)[:, :-1] > 0
    eye = torch.eye(batch, device=query.device)
    weights = torch.cat([own * eye, row_weights], dim=1)  # (B, B + K)
    same = ids[:, None] == torch.cat([ids, queue.ids])
    silent = torch.cat([eye > 0, ~queue.valid | is_found], dim=1) & (weights == 0)
    silent |= same & (weights == 0)
    return multi_positive_info_nce(
        query,
        torch.cat([key, queue.keys]),
        weights > 0,
        ignore_mask=silent,
        positive_weights=weights,
        temperature=TEMPERATURE,
    )


# --- methods: a way of finding with a way of using, and when -------------------------------------


@dataclass(frozen=True, kw_only=True)
class Method:
    """One column of the comparison.

    Args:
        find: Which rows count as neighbours; None trains the intra term alone.
        term: What they do.
        start: Share of the steps before they count.
        weight: Weight of ``term``.
        ramp: Share of the steps in which the weight rises to it, evenly.
        ids: What has one id, and is no negative: each video, the takes of one thing, or all videos
            of a person.
        apart: Rows of what is never found, though they are negatives; None for what has one id.
        query: What of the query the term sees: its ``"embedding"``, or a ``"prediction"`` from it.
        head: The term has the ``"shared"`` head and queue, or its ``"own"``.
        lookup: Neighbours are near in the ``"embedding"``; in that of an encoder which sees the
            ``"changes"`` from frame to frame alone and was trained before; in ``"both"``, by the
            sum of the two similarities; or in that of an encoder trained before which sees the
            same as this one, ``"again"``.
        unit: What is near: ``"clips"``; or whole ``"videos"``, by the features of the backbones for
            clips that are not augmented, 20 times in a run or once if they were trained before, of
            which ``"mutual-videos"`` keeps those of which each is near to the other.
        sees: What the encoder itself sees: ``"frames"``, or their ``"changes"`` alone.
        colours: Whether colours are changed at random, too; else clips are cropped alone.
        queue: Rows of the queue.
    """

    find: Finder | None
    term: Term = field(default_factory=attract)
    start: float = 0.4
    weight: float = 1.0
    ramp: float = 0.0
    ids: Literal["videos", "takes", "people"] = "videos"
    apart: Literal["people"] | None = None
    query: Literal["embedding", "prediction"] = "embedding"
    head: Literal["shared", "own"] = "shared"
    lookup: Literal["embedding", "changes", "both", "again"] = "embedding"
    unit: Literal["clips", "videos", "mutual-videos"] = "clips"
    sees: Literal["frames", "changes"] = "frames"
    colours: bool = True
    queue: int = 512

    def weight_at(self, progress: float) -> float:
        """Give the weight after so large a share of the steps."""
        risen = (progress - self.start) / self.ramp if self.ramp else 1.0
        return self.weight * min(1.0, risen)


GATE = kept(nearest(10), mutual, agreed)
METHODS: dict[str, Method] = {
    "intra": Method(find=None),
    "plain": Method(find=nearest(5)),
    "oracle": Method(find=oracle(1.0, 5)),
    "gate": Method(find=GATE),
    # How pure must neighbours be?
    **{f"oracle-{p}": Method(find=oracle(p / 100, 5)) for p in (30, 50, 70, 85)},
    "oracle-k1": Method(find=oracle(1.0, 1)),
    "oracle-k10": Method(find=oracle(1.0, 10)),
    # What makes them purer?
    "agreed-people": Method(find=kept(nearest(5), agreed), ids="people"),
    "mutual": Method(find=kept(nearest(5), mutual)),
    "agreed": Method(find=kept(nearest(5), agreed)),
    "mean": Method(find=nearest_to_mean(5)),
    "second-view": Method(find=nearest(5), lookup="changes"),
    "agreed-second-view": Method(find=kept(nearest(5), agreed), lookup="changes"),
    "videos": Method(find=near_videos, unit="videos"),
    "mutual-videos": Method(find=near_videos, unit="mutual-videos"),
    "apart": Method(find=nearest(5), apart="people"),
    "agreed-apart": Method(find=kept(nearest(5), agreed), apart="people"),
    "second-view-apart": Method(find=nearest(5), lookup="changes", apart="people"),
    "agreed-second-view-apart": Method(
        find=kept(nearest(5), agreed), lookup="changes", apart="people"
    ),
    "both-views-videos-apart": Method(
        find=near_videos, lookup="both", unit="mutual-videos", apart="people"
    ),
    "queue-2048": Method(find=nearest(5), queue=2048),
    "second-view-from-0-twice": Method(find=nearest(5), lookup="changes", start=0.0, weight=2.0),
    # What makes impure ones harmless?
    "soft": Method(find=nearest(10), term=weighted(soft=TEMPERATURE)),
    "own-key": Method(find=nearest(5), term=weighted(own=1.0)),
    "soft-own": Method(find=nearest(10), term=weighted(soft=TEMPERATURE, own=1.0)),
    "gate-own": Method(find=GATE, term=weighted(own=1.0)),
    "predictor": Method(find=nearest(5), query="prediction"),
    "own-head": Method(find=nearest(5), head="own"),
    "spare": Method(find=nearest(5), term=spare),
    # When, and how much?
    "nearest-from-0": Method(find=nearest(1), start=0.0),
    "gate-from-0": Method(find=GATE, start=0.0),
    "late": Method(find=nearest(5), start=0.75),
    "half": Method(find=nearest(5), weight=0.5),
    "twice": Method(find=nearest(5), weight=2.0),
    "four-times": Method(find=nearest(5), weight=4.0),
    "agreed-four-times": Method(find=kept(nearest(5), agreed), weight=4.0),
    "k1": Method(find=nearest(1)),
    "k10": Method(find=nearest(10)),
    "k20": Method(find=nearest(20)),
    "some-of-20": Method(find=some(5, nearest(20))),
    "agreed-k20": Method(find=kept(nearest(20), agreed)),
    "agreed-k40": Method(find=kept(nearest(40), agreed)),
    "form-in": Method(find=nearest(5), term=attract("in")),
    "form-per-positive": Method(find=nearest(5), term=attract("per_positive")),
    # Where clips are cropped alone, and where the encoder sees motion alone.
    "crops-intra": Method(find=None, colours=False),
    "crops-plain": Method(find=nearest(5), colours=False),
    "crops-oracle": Method(find=oracle(1.0, 5), colours=False),
    "changes-intra": Method(find=None, sees="changes"),
    "changes-plain": Method(find=nearest(5), sees="changes"),
    "changes-agreed": Method(find=kept(nearest(5), agreed), sees="changes"),
    "changes-twice": Method(find=nearest(5), weight=2.0, sees="changes"),
    "changes-four-times": Method(find=nearest(5), weight=4.0, sees="changes"),
    "changes-four-times-from-0": Method(find=nearest(5), weight=4.0, start=0.0, sees="changes"),
    "changes-four-times-ramp": Method(
        find=nearest(5), weight=4.0, start=0.2, ramp=0.4, sees="changes"
    ),
    "changes-four-times-late": Method(find=nearest(5), weight=4.0, start=0.75, sees="changes"),
    "changes-four-times-k1": Method(find=nearest(1), weight=4.0, sees="changes"),
    "changes-four-times-in": Method(
        find=nearest(5), weight=4.0, term=attract("in"), sees="changes"
    ),
    "changes-four-times-warm": Method(
        find=nearest(5), weight=4.0, term=attract(temperature=2 * TEMPERATURE), sees="changes"
    ),
    "changes-four-times-cold": Method(
        find=nearest(5), weight=4.0, term=attract(temperature=TEMPERATURE / 2), sees="changes"
    ),
    "changes-eight-times": Method(find=nearest(5), weight=8.0, sees="changes"),
    "changes-k20": Method(find=nearest(20), sees="changes"),
    "changes-k20-twice": Method(find=nearest(20), weight=2.0, sees="changes"),
    "changes-apart-four-times": Method(find=nearest(5), apart="people", weight=4.0, sees="changes"),
    "changes-agreed-four-times": Method(find=kept(nearest(5), agreed), weight=4.0, sees="changes"),
    "changes-again-videos": Method(
        find=near_videos,
        lookup="again",
        unit="mutual-videos",
        start=0.0,
        weight=2.0,
        sees="changes",
    ),
    "changes-takes": Method(find=nearest(5), ids="takes", sees="changes"),
    "changes-takes-four-times": Method(find=nearest(5), weight=4.0, ids="takes", sees="changes"),
    "changes-oracle": Method(find=oracle(1.0, 5), sees="changes"),
}
