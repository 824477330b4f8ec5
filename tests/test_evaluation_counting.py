"""What counts in a measure, and what the whole ranking says: peers, loops in float64, and laws."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from iivcl.evaluation import (
    confusion_matrix,
    fit_linear_probe,
    knn_classify,
    retrieval_metrics,
    retrieval_recall,
    topk_accuracy,
)

PARTS = ("mean_average_precision", "map_at_r", "r_precision")


def two_sides(classes: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features that say a little of their class; every class is on both sides."""
    centres = torch.randn(classes, 8)
    query_labels = torch.cat([torch.arange(classes), torch.randint(classes, (25,))])
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (51,))])
    return (
        centres[query_labels] + 2 * torch.randn(len(query_labels), 8),
        query_labels,
        centres[labels] + 2 * torch.randn(len(labels), 8),
        labels,
    )


def make_bad(rows: Tensor, *places: int) -> Tensor:
    """Put something that is not a finite number into some rows."""
    rows = rows.clone()
    for place, value in zip(places, (torch.nan, torch.inf, -torch.inf), strict=False):
        rows[place, place % rows.shape[1]] = value
    return rows


class TestRetrieval:
    @pytest.mark.parametrize("leave_one_out", [False, True])
    @pytest.mark.parametrize("average", ["videos", "classes"])
    def test_equals_pytorch_metric_learning(self, leave_one_out: bool, average: Any) -> None:
        peer = pytest.importorskip("pytorch_metric_learning")
        from pytorch_metric_learning.distances import CosineSimilarity
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
        from pytorch_metric_learning.utils.inference import CustomKNN

        assert peer
        sides = two_sides()
        if leave_one_out:
            sides = sides[2:]
        theirs = AccuracyCalculator(
            include=(
                "precision_at_1",
                "mean_average_precision",
                "mean_average_precision_at_r",
                "r_precision",
            ),
            avg_of_avgs=average == "classes",
            knn_func=CustomKNN(CosineSimilarity()),
            k=None,
        ).get_accuracy(*sides)
        ours = retrieval_metrics(*sides, ks=(1,), average=average)
        assert ours.recall[1] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
        assert ours.mean_average_precision == pytest.approx(
            theirs["mean_average_precision"], abs=1e-6
        )
        assert ours.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
        assert ours.r_precision == pytest.approx(theirs["r_precision"], abs=1e-6)

    def test_average_precision_equals_scikit_learn(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        query, query_labels, gallery, labels = two_sides()
        similarity = torch.nn.functional.cosine_similarity(
            query.double()[:, None], gallery.double(), dim=2
        )
        expected = [
            metrics.average_precision_score((labels == own).numpy(), row.numpy())
            for own, row in zip(query_labels, similarity, strict=True)
        ]
        found = retrieval_metrics(query, query_labels, gallery, labels, ks=(1,))
        assert found.mean_average_precision == pytest.approx(sum(expected) / len(expected))
        assert (found.num_queries, found.num_gallery, found.num_unmatched) == (31, 57, 0)

    def test_a_query_alone_ranks_as_it_does_among_others(self) -> None:
        """Rows that are alike rank in the order of the gallery, however products are added up."""
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            gallery = torch.randn(1, 128, generator=generator).expand(10, -1).contiguous()
            query, labels = torch.randn(1, 128, generator=generator), torch.arange(10)
            found = retrieval_metrics(query, torch.tensor([0]), gallery, labels, ks=(1,))
            assert found.recall == {1: 1.0}

    @pytest.mark.parametrize("center", [False, True])
    @pytest.mark.parametrize("leave_one_out", [False, True])
    @pytest.mark.parametrize("average", ["videos", "classes"])
    def test_recall_is_that_of_the_nearest_rows(
        self, center: bool, leave_one_out: bool, average: Any
    ) -> None:
        sides = two_sides()[: 2 if leave_one_out else 4]
        options: dict[str, Any] = {"ks": (1, 3, 20), "center": center, "average": average}
        assert retrieval_metrics(*sides, **options).recall == retrieval_recall(*sides, **options)

    def test_leaving_one_out_is_a_gallery_of_the_others(self) -> None:
        features, labels, *_ = two_sides()
        recall = retrieval_recall(features, labels, ks=(1, 4))
        metrics = retrieval_metrics(features, labels, ks=(1,))
        votes = knn_classify(features, None, labels, num_classes=6, k=4)
        each = []
        for i in range(len(labels)):
            others = torch.arange(len(labels)) != i
            rest = (features[others], labels[others])
            one = retrieval_metrics(features[i : i + 1], labels[i : i + 1], *rest, ks=(1, 4))
            each.append([*one.recall.values(), *(getattr(one, part) for part in PARTS)])
            vote = knn_classify(features[i : i + 1], *rest, num_classes=6, k=4)
            torch.testing.assert_close(votes[i : i + 1], vote)
        expected = torch.tensor(each, dtype=torch.float64).nanmean(dim=0).tolist()
        assert [*recall.values()] == pytest.approx(expected[:2])
        assert [getattr(metrics, part) for part in PARTS] == pytest.approx(expected[2:])

    def test_twins_are_found_and_oneself_is_not(self) -> None:
        features = torch.randn(20, 4).repeat(2, 1)  # each has an equal that is not itself
        labels = torch.arange(20).repeat(2)
        assert retrieval_recall(features, labels, ks=(1,)) == {1: 1.0}
        assert retrieval_metrics(features, labels, ks=(1,)).map_at_r == 1.0
        assert retrieval_recall(features[:20], labels[:20], ks=(19,)) == {19: 0.0}

    def test_ranking_by_hand(self) -> None:
        """One query whose gallery, nearest first, is: hit, miss, hit, miss, hit."""
        angles = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
        gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
        found = retrieval_metrics(
            torch.tensor([[1.0, 0.0]]),
            torch.tensor([3]),
            gallery,
            torch.tensor([3, 0, 3, 1, 3]),
            ks=(1, 2),
        )
        assert found.mean_average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
        assert found.map_at_r == pytest.approx((1 + 2 / 3) / 3)  # R = 3
        assert found.r_precision == pytest.approx(2 / 3)

    def test_a_class_that_the_gallery_lacks(self) -> None:
        """It is a miss for R@k; of the other three it has no value, and is counted."""
        query, query_labels, gallery, labels = two_sides()
        wider = (torch.cat([query, query[:2]]), torch.cat([query_labels, torch.tensor([9, 9])]))
        plain = retrieval_metrics(query, query_labels, gallery, labels, ks=(1,))
        found = retrieval_metrics(*wider, gallery, labels, ks=(1,))
        assert found[1:4] == plain[1:4]
        assert found.recall[1] == pytest.approx(plain.recall[1] * 31 / 33)
        assert (found.num_queries, found.num_unmatched) == (33, 2)
        alone = retrieval_metrics(*(side[-2:] for side in wider), gallery, labels, ks=(1,))
        assert alone.recall == {1: 0.0}
        assert alone.r_precision != alone.r_precision  # NaN

    def test_parts_of_the_queries_make_no_difference(self, monkeypatch: Any) -> None:
        sides = two_sides()
        whole = retrieval_metrics(*sides, ks=(1,)), retrieval_metrics(*sides[:2], ks=(1,))
        monkeypatch.setattr("iivcl.evaluation._retrieval._RANKED_AT_ONCE", 150)
        parts = retrieval_metrics(*sides, ks=(1,)), retrieval_metrics(*sides[:2], ks=(1,))
        assert parts == whole

    def test_means_of_classes(self) -> None:
        query, query_labels, gallery, labels = two_sides()
        by_class = [
            retrieval_metrics(query[own], query_labels[own], gallery, labels, ks=(3,))
            for own in (query_labels == c for c in range(6))
        ]
        found = retrieval_metrics(query, query_labels, gallery, labels, ks=(3,), average="classes")
        assert found.recall[3] == pytest.approx(sum(one.recall[3] for one in by_class) / 6)
        for part in PARTS:
            expected = sum(getattr(one, part) for one in by_class) / 6
            assert getattr(found, part) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                lambda q, ql, g, gl: (q, ql, g),
                "`gallery` and `gallery_labels` belong together; leave out both to search the "
                "queries among themselves",
            ),
            (lambda q, ql, g, gl: (q, ql - 2, g, gl), "`query_labels` must be at least 0, or -1"),
            (lambda q, ql, g, gl: (q, ql, g, gl - 5), "`gallery_labels` must be at least 0, or -1"),
            (
                lambda q, ql, g, gl: (q[:20], ql[:20]),
                "`ks` must be in [1, 19] (other rows of `query` that count); got 20",
            ),
        ],
    )
    @pytest.mark.parametrize("measure", [retrieval_recall, retrieval_metrics])
    def test_unfit(
        self, measure: Any, arguments: Callable[..., tuple[Tensor, ...]], message: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            measure(*arguments(*two_sides()), ks=(1, 20))

    def test_unknown_average(self) -> None:
        message = "`average` must be one of ('videos', 'classes'); got 'macro'"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            retrieval_recall(*two_sides(), average="macro")  # type: ignore[arg-type]


def measures(
    query: Tensor, query_labels: Tensor, gallery: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Take every measure of two sides, each as plain numbers."""
    scores = knn_classify(query, gallery, labels, num_classes=6, k=9)
    probe = fit_linear_probe(gallery, labels, num_classes=6)
    return {
        "recall": retrieval_recall(query, query_labels, gallery, labels, ks=(1, 5)),
        "centered": retrieval_recall(query, query_labels, gallery, labels, ks=(1, 5), center=True),
        "left one out": retrieval_recall(gallery, labels, ks=(1, 5)),
        "metrics": retrieval_metrics(query, query_labels, gallery, labels, ks=(1, 5)),
        "kNN": topk_accuracy(scores, query_labels, ks=(1, 3)),
        "confusion": confusion_matrix(scores, query_labels).tolist(),
        "own kNN": topk_accuracy(
            knn_classify(gallery, None, labels, num_classes=6, k=9), labels, ks=(1,)
        ),
        "probe": topk_accuracy(probe(query.float()), query_labels, ks=(1,), average="classes"),
    }


class TestWhatCounts:
    def test_rows_that_are_not_finite_are_as_if_absent_and_counted(self) -> None:
        """Of a loop over all measures: such a row changes nothing but a warning."""
        query, query_labels, gallery, labels = two_sides()
        expected = measures(query[3:], query_labels[3:], gallery[2:], labels[2:])
        with pytest.warns(UserWarning, match="not finite") as caught:
            found = measures(
                make_bad(query, 0, 1, 2), query_labels, make_bad(gallery, 0, 1), labels
            )
        assert found == expected
        told = {str(warning.message) for warning in caught}
        end = "have a value that is not finite; they"
        assert f"3 of 31 rows of `query` {end} are left out" in told
        assert f"2 of 57 rows of `gallery` {end} are left out" in told
        assert f"2 of 57 rows of `features` {end} are left out" in told
        assert f"3 of 31 rows of `query` {end} get scores of NaN" in told
        assert f"3 of 31 rows of `scores` {end} are left out" in told

    def test_unknown_labels_are_as_if_absent(self) -> None:
        query, query_labels, gallery, labels = two_sides()
        expected = measures(query[3:], query_labels[3:], gallery[2:], labels[2:])
        query_labels[:3] = labels[:2] = -1
        assert measures(query, query_labels, gallery, labels) == expected

    def test_a_row_without_a_vote_is_still_classified(self) -> None:
        features, labels, *_ = two_sides()
        expected = knn_classify(features[:1], features[1:], labels[1:], num_classes=6, k=5)
        labels[0] = -1
        scores = knn_classify(features, None, labels, num_classes=6, k=5)
        torch.testing.assert_close(scores[:1], expected)
        with pytest.warns(UserWarning, match="1 of 31"):
            scores = knn_classify(make_bad(features, 7), None, labels, num_classes=6, k=5)
        assert scores.isnan().any(dim=1).nonzero().flatten().tolist() == [7]

    @pytest.mark.parametrize("all_bad", ["labels", "features"])
    def test_nothing_that_counts(self, all_bad: str) -> None:
        query, query_labels, gallery, labels = two_sides()
        if all_bad == "labels":
            query_labels, labels = query_labels * 0 - 1, labels * 0 - 1
        else:
            query, gallery = query * torch.nan, gallery * torch.nan
        calls = {
            "query": lambda: retrieval_recall(query, query_labels, gallery, labels),
            "gallery": lambda: knn_classify(query, gallery, labels),
            "features": lambda: fit_linear_probe(gallery, labels),
            "scores": lambda: topk_accuracy(query, query_labels),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, call in calls.items():
                message = f"`{name}` has no row that counts: with finite values, and a label in `"
                with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
                    call()

    @pytest.mark.parametrize("label", [-2, 6])
    def test_labels_out_of_range(self, label: int) -> None:
        query, query_labels, gallery, labels = two_sides()
        query_labels[5] = labels[4] = label
        calls = {
            "gallery_labels": lambda: knn_classify(query, gallery, labels, num_classes=6, k=3),
            "labels": lambda: fit_linear_probe(gallery, labels, num_classes=6),
        }
        for name, call in calls.items():
            message = f"`{name}` must be in [0, 6), or -1 for unknown; got {label}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                call()
        for measure in (topk_accuracy, confusion_matrix):
            message = f"`labels` must be in [0, 6), or -1 for unknown; got {label}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                measure(query[:, :6], query_labels)

    @pytest.mark.parametrize("size", [1e-30, 1e30])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_features_of_any_finite_length(self, size: float, dtype: torch.dtype) -> None:
        """A power of 2 near the size, so that the figures are the same bit for bit."""
        query, query_labels, gallery, labels = two_sides()
        factor = 2.0 ** round(torch.tensor(size, dtype=torch.float64).log2().item())
        scaled = query.to(dtype) * factor, query_labels, gallery.to(dtype) * factor, labels
        assert measures(*scaled) == measures(query, query_labels, gallery, labels)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
    def test_any_integers_are_labels(self, dtype: torch.dtype) -> None:
        query, query_labels, gallery, labels = two_sides()
        narrow = query, query_labels.to(dtype), gallery, labels.to(dtype)
        assert measures(*narrow) == measures(query, query_labels, gallery, labels)

    def test_a_score_may_be_that_of_a_class_which_is_ruled_out(self) -> None:
        scores = torch.tensor([[0.1, -torch.inf, 0.2], [-torch.inf, 0.0, -torch.inf]])
        assert topk_accuracy(scores, torch.tensor([2, 0]), ks=(1,)) == {1: 0.5}

    def test_center_of_half_precision_is_that_of_float32(self) -> None:
        query, query_labels, gallery, labels = two_sides()
        query, gallery = (query + 30).half(), (gallery + 30).half()
        assert retrieval_recall(
            query, query_labels, gallery, labels, center=True
        ) == retrieval_recall(query.float(), query_labels, gallery.float(), labels, center=True)


class TestClasses:
    def test_confusion_matrix_equals_scikit_learn(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        scores, labels = torch.randn(60, 7), torch.randint(6, (60,))
        found = confusion_matrix(scores, labels)
        expected = metrics.confusion_matrix(labels, scores.argmax(dim=1), labels=range(7))
        assert found.tolist() == expected.tolist()
        assert (found.dtype, int(found.sum())) == (torch.int64, 60)
        assert found[6].sum() == 0

    def test_mean_of_classes_equals_scikit_learn(self) -> None:
        metrics = pytest.importorskip("sklearn.metrics")
        scores, labels = torch.randn(60, 5), torch.randint(5, (60,))
        expected = metrics.balanced_accuracy_score(labels, scores.argmax(dim=1))
        found = topk_accuracy(scores, labels, ks=(1, 5), average="classes")
        assert found == pytest.approx({1: expected, 5: 1.0})
        matrix = confusion_matrix(scores, labels)
        recall = (matrix.diagonal() / matrix.sum(dim=1)).nanmean()
        assert float(recall) == pytest.approx(expected, rel=1e-6)
