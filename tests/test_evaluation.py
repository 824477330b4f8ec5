"""Retrieval, kNN and linear probe against loops in float64."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ranks_evaluation import gather_features
from torch import Tensor, nn
from torch.nn import functional as F

from iivcl.evaluation import (
    Features,
    extract_features,
    fit_linear_probe,
    knn_classify,
    retrieval_recall,
    topk_accuracy,
)


class MeanOfClip(nn.Module):
    """Maps a clip to its mean per channel, and remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.calls: list[tuple[tuple[int, ...], bool, bool]] = []

    def forward(self, video: Tensor) -> Tensor:
        self.calls.append((tuple(video.shape), self.training, torch.is_grad_enabled()))
        return self.dropout(video).mean(dim=(2, 3, 4))


def make_sides(queries: int, rows: int, dim: int, classes: int) -> tuple[Tensor, ...]:
    return (
        torch.randn(queries, dim),
        torch.randint(classes, (queries,)),
        torch.randn(rows, dim),
        torch.randint(classes, (rows,)),
    )


def cosines(query: Tensor, gallery: Tensor) -> list[list[float]]:
    """Take every cosine in float64, one pair at a time."""
    q, g = query.double(), gallery.double()
    return [[float(a @ b / (a.norm() * b.norm())) for b in g] for a in q]


def nearest_rows(similarity: list[float], k: int) -> list[int]:
    return sorted(range(len(similarity)), key=lambda row: -similarity[row])[:k]


class TestExtractFeatures:
    def test_views_are_averaged_and_rows_sorted(self) -> None:
        videos = torch.randn(5, 3, 2, 2, 4, 4)  # (N, V, C, T, H, W)
        labels = torch.tensor([3, 1, 4, 1, 5])
        order = torch.tensor([4, 2, 0, 3, 1])
        loader = [(videos[i], i, labels[i], 10 * i) for i in order.split(2)]
        model = MeanOfClip()
        found = extract_features(model, loader, device="cpu")
        torch.testing.assert_close(found.features, videos.mean(dim=(1, 3, 4, 5)))
        assert found.indices.tolist() == [0, 1, 2, 3, 4]
        assert found.labels is not None
        assert torch.equal(found.labels, labels)
        assert model.calls[0] == ((6, 2, 2, 4, 4), False, False)

    def test_single_clips_without_labels(self) -> None:
        videos = torch.randn(3, 2, 2, 4, 4)
        found = extract_features(MeanOfClip(), [(videos, torch.arange(3))], device="cpu")
        assert isinstance(found, Features)
        torch.testing.assert_close(found.features, videos.mean(dim=(2, 3, 4)))
        assert found.labels is None

    def test_repeated_videos_count_once(self) -> None:
        videos = torch.randn(4, 2, 2, 4, 4)
        # What DistributedSampler gives when it pads 4 videos to 6.
        indices = torch.tensor([0, 1, 2, 3, 0, 1])
        once = extract_features(MeanOfClip(), [(videos, torch.arange(4))], device="cpu")
        padded = extract_features(MeanOfClip(), [(videos[indices], indices)], device="cpu")
        assert torch.equal(padded.features, once.features)
        assert torch.equal(padded.indices, once.indices)

    @pytest.mark.parametrize("labeled", [False, True])
    def test_different_videos_of_one_index_are_refused(self, labeled: bool) -> None:
        """Joined datasets that both count from 0 are not one dataset with repeats."""
        videos, indices = torch.randn(5, 2, 2, 4, 4), torch.tensor([0, 1, 0, 1, 2])
        loader = [(videos, indices)]
        if labeled:  # equal videos, and yet another label
            loader = [(videos[indices], indices, torch.tensor([7, 8, 7, 9, 5]))]
        message = (
            f"`loader` gave index {int(labeled)} to videos of different features or labels "
            f"({2 - labeled} such rows in all). Give datasets that are joined an `id_offset` each; "
            "a video that comes twice must come with the same clips"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            extract_features(MeanOfClip(), loader, device="cpu")
        offset = [(videos, torch.tensor([0, 1, 2, 3, 4]))]
        assert len(extract_features(MeanOfClip(), offset, device="cpu").features) == 5

    @pytest.mark.parametrize("training", [False, True])
    def test_mode_is_restored(self, training: bool) -> None:
        model = MeanOfClip().train(training)
        model.dropout.train(not training)
        modes = [m.training for m in model.modules()]
        extract_features(model, [(torch.randn(1, 2, 1, 4, 4), torch.arange(1))], device="cpu")
        assert [m.training for m in model.modules()] == modes

    def test_mode_is_restored_after_an_error(self) -> None:
        model = MeanOfClip()
        with pytest.raises(ValueError, match="loader"):
            extract_features(model, [(torch.randn(1, 2), torch.arange(1))], device="cpu")
        assert model.training

    def test_low_precision_views_are_averaged_in_float32(self) -> None:
        videos = torch.randn(2, 10, 3, 1, 2, 2)
        model = nn.Sequential(MeanOfClip(), Cast(torch.bfloat16))
        found = extract_features(model, [(videos, torch.arange(2))], device="cpu")
        per_view = videos.mean(dim=(3, 4, 5)).to(torch.bfloat16)
        assert found.features.dtype == torch.float32
        torch.testing.assert_close(found.features, per_view.double().mean(1).float())

    def test_features_take_part_in_autograd(self) -> None:
        loader = [(torch.randn(2, 3, 1, 2, 2), torch.arange(2))]
        features = extract_features(MeanOfClip(), loader, device="cpu").features
        layer = nn.Linear(3, 1)
        layer(features).sum().backward()
        assert layer.weight.grad is not None

    def test_dataset_order_makes_no_difference(self) -> None:
        videos = torch.randn(6, 2, 1, 2, 2)
        shuffled = torch.randperm(6)
        one = extract_features(MeanOfClip(), [(videos, torch.arange(6))], device="cpu")
        two = extract_features(MeanOfClip(), [(videos[shuffled], shuffled)], device="cpu")
        assert torch.equal(one.features, two.features)

    def test_ranks_gather_every_video_once(self, tmp_path: Path) -> None:
        torch.multiprocessing.spawn(gather_features, (2, str(tmp_path)), nprocs=2)
        for rank, own in ((0, [0, 2, 4]), (1, [0, 1, 3])):
            found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
            assert found["local"][1].tolist() == own
            features, indices, labels = found["gather"]
            assert indices.tolist() == [0, 1, 2, 3, 4]
            assert labels.tolist() == [0, 10, 20, 30, 40]
            assert torch.equal(features, torch.arange(5.0)[:, None].expand(5, 4))
            assert found["few"] == [0]  # rank 1 has read nothing, and no rank waits for it
            assert found["none"] == "`loader` gave no batch; check that the dataset is not empty"
            assert found["joined"].startswith("`loader` gave index 0 to videos of different")

    def test_unknown_distribution(self) -> None:
        message = "`distributed` must be one of ('local', 'gather'); got 'shard'"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            extract_features(MeanOfClip(), [], device="cpu", distributed="shard")  # type: ignore[arg-type]

    def test_empty_loader(self) -> None:
        message = "`loader` gave no batch; check that the dataset is not empty"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            extract_features(MeanOfClip(), [], device="cpu")

    def test_other_elements(self) -> None:
        message = (
            "`loader` must give (clips, index), (clips, index, label) or (clips, index, label, id) "
            "with clips (B, V, C, T, H, W) or (B, C, T, H, W), the others (B,); "
            "got [(2, 3), 'list']"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            extract_features(MeanOfClip(), [(torch.zeros(2, 3), [0, 1])], device="cpu")

    CLIPS = torch.zeros(4, 3, 1, 4, 4)  # of two videos or of four
    TWO, FOUR = torch.arange(2), torch.arange(4)

    @pytest.mark.parametrize(
        "element",
        [
            (CLIPS, TWO),
            (CLIPS, FOUR, TWO),
            (CLIPS, FOUR, torch.arange(5)),
            (CLIPS, FOUR, FOUR, TWO),
            (CLIPS, FOUR.double()),
            (CLIPS, FOUR, FOUR > 1),
            (CLIPS, torch.tensor(3)),
            (CLIPS, FOUR, F.one_hot(FOUR)),
        ],
    )
    def test_elements_whose_parts_do_not_belong_together(self, element: tuple[Tensor, ...]) -> None:
        with pytest.raises(ValueError, match=r"^`loader` must give "):
            extract_features(MeanOfClip(), [element], device="cpu")

    def test_elements_of_several_lengths(self) -> None:
        loader = [(self.CLIPS, self.FOUR), (self.CLIPS, self.FOUR + 4, self.FOUR)]
        message = r"^`loader` must give elements of one length; got \[2, 3\]$"
        with pytest.raises(ValueError, match=message):
            extract_features(MeanOfClip(), loader, device="cpu")

    def test_model_that_gives_several(self) -> None:
        class Two(nn.Module):
            def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
                return video.flatten(1), video

        with pytest.raises(ValueError, match=r"^`model` must give a tensor \(B, D\); got tuple$"):
            extract_features(Two(), [(self.CLIPS, self.FOUR)], device="cpu")

    def test_model_that_does_not_pool(self) -> None:
        message = (
            "`model` must map clips (B, C, T, H, W) to features (B, D); "
            "got (2, 3, 1, 4, 4) from B=2"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            extract_features(
                nn.Identity(), [(torch.zeros(2, 3, 1, 4, 4), torch.arange(2))], device="cpu"
            )


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class TestRetrieval:
    @pytest.mark.parametrize("center", [False, True])
    def test_equals_a_loop_in_float64(self, center: bool) -> None:
        query, query_labels, gallery, gallery_labels = make_sides(31, 47, 6, classes=9)
        query, gallery = query + 1, gallery - 1  # off centre
        ks = (1, 2, 5, 20)
        got = retrieval_recall(query, query_labels, gallery, gallery_labels, ks=ks, center=center)
        if center:
            query = query.double() - query.double().mean(0)
            gallery = gallery.double() - gallery.double().mean(0)
        hits = dict.fromkeys(ks, 0)
        for label, row in zip(query_labels.tolist(), cosines(query, gallery), strict=True):
            for k in ks:
                hits[k] += any(gallery_labels[n] == label for n in nearest_rows(row, k))
        assert got == {k: hits[k] / 31 for k in ks}

    def test_parts_of_the_queries_make_no_difference(self) -> None:
        query, query_labels, gallery, gallery_labels = make_sides(600, 20, 6, classes=5)
        whole = retrieval_recall(query, query_labels, gallery, gallery_labels, ks=(1, 3))
        halves = [
            retrieval_recall(query[s], query_labels[s], gallery, gallery_labels, ks=(1, 3))
            for s in (slice(0, 300), slice(300, 600))
        ]
        for k, recall in whole.items():
            assert recall == pytest.approx((halves[0][k] + halves[1][k]) / 2)

    def test_does_not_fall_with_k_and_ignores_length(self) -> None:
        query, query_labels, gallery, gallery_labels = make_sides(40, 60, 4, classes=6)
        recall = retrieval_recall(query, query_labels, gallery, gallery_labels)
        assert list(recall) == [1, 5, 10, 20, 50]
        assert sorted(recall.values()) == list(recall.values())
        scaled = retrieval_recall(
            query * torch.rand(40, 1).add(0.1), query_labels, gallery * 7, gallery_labels
        )
        assert scaled == recall

    def test_itself_is_found(self) -> None:
        _, _, gallery, labels = make_sides(1, 60, 16, classes=60)
        assert retrieval_recall(gallery, labels, gallery, labels)[1] == 1.0

    def test_absent_class_is_never_found(self) -> None:
        query, _, gallery, labels = make_sides(8, 60, 16, classes=3)
        assert set(retrieval_recall(query, labels.new_full((8,), 9), gallery, labels).values()) == {
            0.0
        }

    def test_half_precision_features(self) -> None:
        query, query_labels, gallery, gallery_labels = make_sides(8, 60, 16, classes=3)
        query, gallery = query.half(), gallery.half()
        assert retrieval_recall(query, query_labels, gallery, gallery_labels) == retrieval_recall(
            query.float(), query_labels, gallery.float(), gallery_labels
        )

    @pytest.mark.parametrize("k", [0, 61])
    def test_k_out_of_range(self, k: int) -> None:
        message = f"`ks` must be in [1, 60] (rows of `gallery` that count); got {k}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            retrieval_recall(*make_sides(8, 60, 16, classes=3), ks=(1, k))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda q, ql, g, gl: (q, ql, g[:, :3], gl),
                "`gallery` must have shape (M, D) with D=16 (from `query`); got (60, 3)",
            ),
            (
                lambda q, ql, g, gl: (q, ql[1:], g, gl),
                "`query_labels` must have shape (B,) with B=8 (from `query`); got (7,)",
            ),
            (
                lambda q, ql, g, gl: (q, ql, g, gl[1:]),
                "`gallery_labels` must have shape (B,) with B=60 (from `gallery`); got (59,)",
            ),
            (lambda q, ql, g, gl: (q[:0], ql[:0], g, gl), "`query` has no rows"),
            (
                lambda q, ql, g, gl: (q, ql.to("meta"), g, gl),
                "`query_labels` is on meta but `query` is on cpu; move them to the same device",
            ),
            (
                lambda q, ql, g, gl: (q, ql, g, gl.to("meta")),
                "`gallery_labels` is on meta but `gallery` is on cpu; move them to the same device",
            ),
        ],
    )
    def test_unfit_shapes(self, change: Callable[..., tuple[Tensor, ...]], message: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            retrieval_recall(*change(*make_sides(8, 60, 16, classes=3)))


class TestKNN:
    def test_equals_a_loop_in_float64(self) -> None:
        query, _, gallery, gallery_labels = make_sides(300, 40, 6, classes=5)
        got = knn_classify(query, gallery, gallery_labels, num_classes=7, k=9, temperature=0.2)
        expected = torch.zeros(300, 7, dtype=torch.float64)
        for i, row in enumerate(cosines(query, gallery)):
            for n in nearest_rows(row, 9):
                expected[i, gallery_labels[n]] += math.exp(row[n] / 0.2)
        expected /= expected.sum(dim=1, keepdim=True)
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)

    def test_one_neighbor_is_a_lookup(self) -> None:
        query, _, gallery, labels = make_sides(20, 40, 6, classes=5)
        scores = knn_classify(query, gallery, labels, k=1)
        expected = [labels[nearest_rows(row, 1)[0]] for row in cosines(query, gallery)]
        assert scores.argmax(dim=1).tolist() == expected
        assert torch.equal(scores.max(dim=1).values, torch.ones(20))

    def test_cold_vote_is_finite(self) -> None:
        query, _, gallery, labels = make_sides(20, 40, 6, classes=5)
        scores = knn_classify(query, gallery, labels.int(), k=40, temperature=1e-3)
        assert scores.isfinite().all()
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(20))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "`k` must be in [1, 40] (rows of `gallery` that count); got 200"),
            ({"k": 5, "temperature": 0.0}, "`temperature` must be above 0 and finite; got 0.0"),
        ],
    )
    def test_out_of_range(self, options: dict[str, float], message: str) -> None:
        query, _, gallery, labels = make_sides(20, 40, 6, classes=5)
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            knn_classify(query, gallery, labels, **options)  # type: ignore[arg-type]


class TestTopkAccuracy:
    def test_equals_a_loop(self) -> None:
        scores, labels = torch.randn(50, 8), torch.randint(8, (50,))
        hits = dict.fromkeys((1, 3, 8), 0)
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
            rank = sum(other > row[label] for other in row)
            for k in hits:
                hits[k] += rank < k
        got = topk_accuracy(scores, labels, ks=(1, 3, 8))
        assert got == {k: count / 50 for k, count in hits.items()}
        assert got[8] == 1.0

    def test_k_above_the_classes(self) -> None:
        message = "`ks` must be in [1, 3] (classes of `scores`); got 5"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            topk_accuracy(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))


class TestLinearProbe:
    @pytest.fixture
    def data(self) -> tuple[Tensor, Tensor]:
        centres = torch.randn(4, 6)
        labels = torch.randint(4, (200,))
        scale = torch.logspace(-3, 3, 6)  # features of very different units
        return (centres[labels] + torch.randn(200, 6)) * scale + 5, labels

    def test_is_the_minimum(self, data: tuple[Tensor, Tensor]) -> None:
        """At the minimum of a convex objective its gradient is 0; taken here in float64."""
        features, labels = data
        probe = fit_linear_probe(features, labels, weight_decay=0.01)
        x = features.double()
        mean, std = x.mean(0), x.std(0, correction=0)
        weight = (probe.weight.double() * std).requires_grad_()  # of the standardised features
        bias = (probe.bias.double() + probe.weight.double() @ mean).requires_grad_()
        logits = (x - mean) / std @ weight.T + bias
        loss = F.cross_entropy(logits, labels) + 0.005 * weight.square().sum()
        for grad in torch.autograd.grad(loss, (weight, bias)):
            assert grad.abs().max() < 1e-4

    def test_does_not_depend_on_the_units_of_a_feature(self, data: tuple[Tensor, Tensor]) -> None:
        features, labels = data
        scaled = features * torch.tensor([1.0, 10.0, 0.1, 2.0, -3.0, 7.0])
        one, two = fit_linear_probe(features, labels), fit_linear_probe(scaled, labels)
        torch.testing.assert_close(two(scaled), one(features), rtol=1e-2, atol=1e-2)

    def test_constant_feature_changes_nothing(self, data: tuple[Tensor, Tensor]) -> None:
        features, labels = data
        wider = torch.cat([features, torch.full((200, 1), 0.1)], dim=1)
        expected = fit_linear_probe(features, labels)(features)
        torch.testing.assert_close(
            fit_linear_probe(wider, labels)(wider), expected, rtol=1e-2, atol=1e-2
        )

    def test_separable_classes_are_separated(self) -> None:
        labels = torch.arange(5).repeat(20)
        features = F.one_hot(labels).float() + 0.1 * torch.randn(100, 5)
        probe = fit_linear_probe(features, labels)
        assert topk_accuracy(probe(features), labels, ks=(1,)) == {1: 1.0}

    def test_draws_nothing_and_is_frozen(self, data: tuple[Tensor, Tensor]) -> None:
        state = torch.get_rng_state()
        one, two = fit_linear_probe(*data), fit_linear_probe(*data)
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(p.requires_grad for p in one.parameters())

    def test_works_under_no_grad_and_leaves_the_features(self, data: tuple[Tensor, Tensor]) -> None:
        features, labels = data
        before = features.clone()
        with torch.no_grad():
            probe = fit_linear_probe(features, labels.int(), num_classes=6)
        assert probe.out_features == 6
        assert torch.equal(features, before)

    def test_negative_weight_decay(self, data: tuple[Tensor, Tensor]) -> None:
        with pytest.raises(ValueError, match=r"^`weight_decay` must be at least 0 and finite"):
            fit_linear_probe(*data, weight_decay=-1)
