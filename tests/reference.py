"""The formulas as plain float64 loops: slow, obvious, and sharing no code with the package."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def unit(vector: Tensor) -> list[float]:
    values = vector.double().tolist()
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


def cosine(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def log_sum(logits: Sequence[float]) -> float:
    if not logits:
        return -math.inf
    top = max(logits)
    return top + math.log(sum(math.exp(v - top) for v in logits))


def row_loss(
    form: str, positives: Sequence[float], negatives: Sequence[float], weights: Sequence[float]
) -> float:
    """One row of multi-positive InfoNCE from its logits, in the words of the papers."""
    total = sum(weights)
    everything = log_sum([*positives, *negatives])
    if form == "per_positive":
        losses = [log_sum([p, *negatives]) - p for p in positives]
        return sum(w * x for w, x in zip(weights, losses, strict=True)) / total
    if form == "out":
        losses = [everything - p for p in positives]
        return sum(w * x for w, x in zip(weights, losses, strict=True)) / total
    mean = total / len(weights)
    return everything - log_sum(
        [p + math.log(w / mean) for p, w in zip(positives, weights, strict=True)]
    )


def multi_positive(
    query: Tensor,
    keys: Tensor,
    positive: Tensor,
    *,
    ignore: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float,
    form: str,
) -> list[float]:
    """Per-row losses, NaN for a row without positives."""
    losses = []
    for b in range(len(query)):
        logits = [cosine(query[b], key) / temperature for key in keys]
        used = [m for m in range(len(keys)) if ignore is None or not ignore[b, m]]
        w = {m: 1.0 if weights is None else float(weights[b, m]) for m in used if positive[b, m]}
        chosen = [m for m in w if w[m] > 0]
        negatives = [logits[m] for m in used if not positive[b, m]]
        if not chosen:
            losses.append(math.nan)
            continue
        losses.append(
            row_loss(form, [logits[m] for m in chosen], negatives, [w[m] for m in chosen])
        )
    return losses


def mean_of_rows(losses: Sequence[float]) -> float:
    present = [x for x in losses if not math.isnan(x)]
    return sum(present) / len(present) if present else 0.0


def iivcl(
    query: Tensor,
    key: Tensor,
    queue_keys: Tensor,
    queue_valid: Tensor,
    queue_ids: Tensor,
    ids: Tensor,
    *,
    num_neighbors: int,
    temperature: float,
    form: str,
    batch_negatives: bool,
) -> tuple[float, float]:
    """Intra and inter terms of method section 3: each row by itself, each column asked in turn."""
    intra, inter = [], []
    clips = key[:, None] if key.ndim == 2 else key
    for b in range(len(query)):
        rows = [
            m for m in range(len(queue_keys)) if queue_valid[m] and int(queue_ids[m]) != int(ids[b])
        ]
        logit = {m: cosine(query[b], queue_keys[m]) / temperature for m in rows}
        lookup = torch.stack([torch.tensor(unit(clip)).double() for clip in clips[b]]).mean(0)
        nearest = sorted(rows, key=lambda m: -cosine(lookup, queue_keys[m]))[:num_neighbors]
        others = [
            cosine(query[b], clip) / temperature
            for i in range(len(query))
            for clip in clips[i]
            if batch_negatives and int(ids[i]) != int(ids[b])
        ]
        own = [cosine(query[b], clip) / temperature for clip in clips[b]]
        intra.append(row_loss(form, own, [*logit.values(), *others], [1.0] * len(own)))
        rest = [logit[m] for m in rows if m not in nearest] + others
        inter.append(
            row_loss(form, [logit[m] for m in nearest], rest, [1.0] * len(nearest))
            if nearest
            else math.nan
        )
    return mean_of_rows(intra), mean_of_rows(inter)


def nearest_rows(
    query: Tensor, keys: Tensor, eligible: Tensor, k: int
) -> tuple[list[list[float]], list[list[int]]]:
    """Brute-force neighbours: ``eligible`` is (B, K)."""
    similarity = query.double() @ keys.double().T
    values, indices = [], []
    for b in range(len(query)):
        rows = sorted(
            (m for m in range(len(keys)) if eligible[b, m]), key=lambda m: -similarity[b, m].item()
        )[:k]
        values.append([similarity[b, m].item() for m in rows])
        indices.append(rows)
    return values, indices
