"""InfoNCE with one or several positives per query."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iivcl._candidates import NO_LOGIT, Candidates
from iivcl._checks import (
    as_several,
    check_choice,
    check_chunk_size,
    check_embeddings,
    check_mask,
    check_temperature,
    normalize_alike,
)
from iivcl._engine import ChunkSize, choose_chunk_size
from iivcl._precision import without_autocast
from iivcl.losses._forms import (
    FORMS,
    REDUCTIONS,
    Form,
    Reduction,
    reduce_rows,
    row_losses,
    streamed_row_losses,
)
from iivcl.losses._fused import Columns, Queries, is_fused

__all__ = ["InfoNCELoss", "info_nce", "multi_positive_info_nce"]


def multi_positive_info_nce(
    query: Tensor,
    keys: Tensor,
    positive_mask: Tensor,
    *,
    ignore_mask: Tensor | None = None,
    positive_weights: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    form: Form = "out",
    reduction: Reduction = "mean",
    chunk_size: ChunkSize = None,
) -> Tensor:
    """Contrast each query with M candidates of which several may be positive.

    With logits ``s = cos(query, key) / temperature``, the row's P positives p, its negatives n (all
    candidates neither positive nor ignored), the loss of a row is::

        per_positive   mean_p -log( exp s_p / (exp s_p + sum_n exp s_n) )
        out            mean_p -log( exp s_p / (sum_p' exp s_p' + sum_n exp s_n) )
        in                    -log( sum_p exp s_p / (sum_p exp s_p + sum_n exp s_n) )

    They are different losses and equal only for P = 1: on the same logits they can differ by a
    factor. ``per_positive`` keeps positives out of each other's denominator (rho-MoCo); ``out`` is
    SupCon's best form; ``in`` forgives false positives (MIL-NCE, CoCLR).

    Similarities, softmax and reduction run in float32 whatever the autocast and the inputs' dtype
    (in float64 for float64 inputs). The gradient reaches ``keys`` when they require one; pass
    ``keys.detach()`` otherwise.

    Args:
        query: (B, D) float; normalised here.
        keys: (M, D) float candidates: batch, queue rows, or both; normalised here.
        positive_mask: (B, M) bool.
        ignore_mask: (B, M) bool, candidates that are neither positive nor negative: the query
            itself, same-video rows, rows not filled. It wins over ``positive_mask``.
        positive_weights: (B, M) float weights of the positives, not negative; only their ratio
            within a row counts. Default: all equal.
        temperature: Above 0; values down to 0.01 are safe. A tensor of shape () gets its gradient.
        form: ``"per_positive"``, ``"out"`` or ``"in"``.
        reduction: ``"mean"`` over the rows that have a positive, ``"sum"``, or ``"none"``.
        chunk_size: Candidates per step of the streaming form, whose memory is O(B x chunk_size)
            forward and backward, beside a normalised copy of the keys, with the same value and
            gradient; ``"dense"`` for the form that holds all logits and can be differentiated
            twice; default: by size. For a large queue use `IIVCLLoss`, which needs no copy.

    Returns:
        The loss, () or (B,) for ``"none"``. A row without a positive has loss 0 and no gradient;
        when no row has one, so has the mean.

    Raises:
        ValueError: Shapes do not match or an option is out of range.
        TypeError: An input is not floating-point, or a mask not bool.

    Example:
        >>> import torch
        >>> query, keys = torch.eye(2), torch.eye(2)
        >>> positive = torch.eye(2, dtype=torch.bool)
        >>> loss = multi_positive_info_nce(query, keys, positive, temperature=1.0)
        >>> round(loss.item(), 4)  # log(1 + exp(-1))
        0.3133

    Source: ``per_positive``: Feichtenhofer et al., arXiv 2104.14558, section 3; ``out``: Khosla et
    al., arXiv 2004.11362, eq. 2; ``in``: Miech et al., arXiv 1912.06430, eq. 1.
    """
    _check_options(temperature, form, reduction)
    check_embeddings("query", query, "B D")
    check_embeddings("keys", keys, "M D", D=(query.shape[1], "query"))
    pairs = {"B": (query.shape[0], "query"), "M": (keys.shape[0], "keys")}
    check_mask("positive_mask", positive_mask, "B M", **pairs)
    check_mask("ignore_mask", ignore_mask, "B M", **pairs)
    if positive_weights is not None:
        check_embeddings("positive_weights", positive_weights, "B M", **pairs)

    with without_autocast(query):
        query, keys = normalize_alike(query, keys)
        candidate = ~ignore_mask if ignore_mask is not None else torch.ones_like(positive_mask)
        weights = positive = positive_mask & candidate
        if positive_weights is not None:
            weights = positive_weights.masked_fill(~positive, 0.0)
        scaled = query / temperature
        check_chunk_size(chunk_size)
        size = choose_chunk_size(chunk_size, query, keys.shape[0])
        negatives = candidate & ~positive_mask
        if size == "dense":
            logits = (scaled @ keys.T).masked_fill(~(negatives | (weights > 0)), NO_LOGIT)
            losses = row_losses(form, logits, weights)
        else:
            losses = streamed_row_losses(form, scaled, keys, weights, negatives, size)
        return reduce_rows(losses, (weights > 0).any(1).sum().clamp(min=1), reduction)


def info_nce(
    query: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    ignore_mask: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    form: Form = "out",
    reduction: Reduction = "mean",
    chunk_size: ChunkSize = None,
) -> Tensor:
    """Contrast each query with its own positives and a common set of negatives.

    The formulas, precision and options are those of `multi_positive_info_nce`. No gradient reaches
    ``positives`` or ``negatives``: they are keys of a momentum encoder, or a queue.

    Args:
        query: (B, D) float; normalised here.
        positives: (B, D) or (B, P, D) float; normalised here.
        negatives: (M, D) float, such as ``queue.keys``; normalised here. M may be 0.
        ignore_mask: (B, M) bool, rows of ``negatives`` to leave out.
        temperature: Above 0.
        form: ``"per_positive"``, ``"out"`` or ``"in"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        chunk_size: Rows of ``negatives`` per step, by default many; ``"dense"`` for the form that
            can be differentiated twice.

    Returns:
        The loss, () or (B,) for ``"none"``.

    Raises:
        ValueError: Shapes do not match or an option is out of range.
        TypeError: An input is not floating-point, or ``ignore_mask`` not bool.

    Example:
        >>> import torch
        >>> query, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> round(info_nce(query, query, negatives, temperature=1.0).item(), 4)
        0.4076

    Source: van den Oord et al., arXiv 1807.03748, eq. 4; with a queue: He et al., arXiv 1911.05722,
    eq. 1.
    """
    _check_options(temperature, form, reduction)
    check_embeddings("query", query, "B D")
    positives = as_several(query, positives, "positives")
    check_embeddings("negatives", negatives, "M D", D=(query.shape[1], "query"))
    pairs = {"B": (query.shape[0], "query"), "M": (negatives.shape[0], "negatives")}
    check_mask("ignore_mask", ignore_mask, "B M", **pairs)

    check_chunk_size(chunk_size)
    allowed = None if ignore_mask is None else ~ignore_mask
    candidates = Candidates(negatives.detach(), pairs=allowed)
    batch, clips = max(query.shape[0], 1), positives.shape[1]
    with without_autocast(query):
        if clips and is_fused(query, chunk_size):
            queries, keys = Queries.beside(query, positives, temperature, negatives.dtype)
            columns = Columns.of(queries, keys, [candidates], chunk_size)
            row = 1 / batch if reduction == "mean" else 1.0
            losses, slopes = columns.row_losses(form, clips, row / clips, row)
            loss = losses if reduction == "none" else losses.sum()
            return queries.differentiable([loss], [slopes])[0]
        query, positives = normalize_alike(query, positives.detach(), at_least=negatives.dtype)
        scaled = query / temperature
        negative_lse = candidates.log_sum_exp(scaled, chunk_size=chunk_size)
        logits = torch.einsum("bd,bpd->bp", scaled, positives)
        logits = torch.cat([logits, negative_lse[:, None]], 1)
        positive = torch.ones_like(logits, dtype=torch.bool)
        positive[:, -1] = False
        return reduce_rows(row_losses(form, logits, positive), batch, reduction)


class InfoNCELoss(nn.Module):
    """`info_nce` with its options, as a module.

    Args:
        temperature: Above 0; an `nn.Parameter` of shape () is learned and moves with the module.
        form: ``"per_positive"``, ``"out"`` or ``"in"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        chunk_size: As for `info_nce`.

    Example:
        >>> import torch
        >>> criterion = InfoNCELoss(temperature=0.2)
        >>> query, queue_keys = torch.eye(3), -torch.eye(3)
        >>> round(criterion(query, query, queue_keys).item(), 3)
        0.013
    """

    def __init__(
        self,
        *,
        temperature: float | Tensor = 0.1,
        form: Form = "out",
        reduction: Reduction = "mean",
        chunk_size: ChunkSize = None,
    ) -> None:
        super().__init__()
        _check_options(temperature, form, reduction)
        check_chunk_size(chunk_size)
        self.temperature, self.form, self.reduction = temperature, form, reduction
        self.chunk_size = chunk_size

    def forward(
        self,
        query: Tensor,
        positives: Tensor,
        negatives: Tensor,
        *,
        ignore_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `info_nce` for shapes."""
        return info_nce(
            query,
            positives,
            negatives,
            ignore_mask=ignore_mask,
            temperature=self.temperature,
            form=self.form,
            reduction=self.reduction,
            chunk_size=self.chunk_size,
        )

    def extra_repr(self) -> str:
        """Describe the options in the repr."""
        return f"temperature={self.temperature}, form={self.form!r}, reduction={self.reduction!r}"


def _check_options(temperature: float | Tensor, form: str, reduction: str) -> None:
    check_temperature(temperature)
    check_choice("form", form, FORMS)
    check_choice("reduction", reduction, REDUCTIONS)
