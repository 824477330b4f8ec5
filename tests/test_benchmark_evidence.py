"""The evidence: a cell is run once, pairs are compared by the right interval, methods are laws."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from iivcl import IIVCLLoss, NNSupportQueue
from iivcl.queues import Neighbors

ROOT = Path(__file__).parents[1]


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("evidence")


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_evidence_methods")


def test_a_cell_is_written_and_not_run_again(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"num_videos": 15, "num_classes": 3, "size": 32, "num_frames": 8}
    monkeypatch.setitem(evidence.GENERATED, "tiny", tiny)
    out = tmp_path / "cells"
    options = ["--sets", "tiny", "--steps", "2", "--pairs", "1", "--out", str(out)]
    options += ["--generated", str(tmp_path / "videos")]
    options += ["--methods", "random-start", "intra", "gate-own"]
    evidence.main(options)
    files = sorted(out.iterdir())
    assert [file.name for file in files] == [
        f"tiny-2.{method}.fold0.seed0.json" for method in ("gate-own", "intra", "random-start")
    ]
    for file in files:
        cell = json.loads(file.read_text())
        assert 0 <= cell["results"]["recall_at_1"] <= cell["results"]["recall_at_5"] <= 1
        assert cell["results"]["test_videos"] == 3
    trained = json.loads(files[1].read_text())
    assert [point["step"] for point in trained["curves"]] == [0, 1]

    def run_again(*_: Any, **__: Any) -> None:
        raise AssertionError("a cell was run twice")

    monkeypatch.setattr(evidence, "run_cell", run_again)
    before = [file.stat().st_mtime_ns for file in files]
    evidence.main(options)
    assert [file.stat().st_mtime_ns for file in sorted(out.iterdir())] == before


def test_time_bounds_a_call_and_leaves_nothing_half_written(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, check: Any, **__: Any) -> None:
        while True:
            check()

    monkeypatch.setattr(evidence, "run_cell", slow)
    monkeypatch.setattr(evidence, "fold", lambda *_: None)
    cells = [evidence.Cell("any", 1, "intra", 0, 0)]
    assert evidence.run_cells(cells, tmp_path, lambda name: None, minutes=1e-4) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_another_call_is_at_is_left_to_it(evidence: ModuleType, tmp_path: Path) -> None:
    cells = [evidence.Cell("any", 1, "intra", 0, 0)]
    with evidence.claim(tmp_path / f"{cells[0].name}.json") as mine:
        assert mine
        assert evidence.run_cells(cells, tmp_path, lambda name: None, minutes=1.0) == 0


def cell(method: str, fold: int, recall: float, **curve: float) -> dict[str, Any]:
    results = dict.fromkeys(("recall_at_1", "recall_at_5", "knn", "linear"), recall)
    place = {"set": "tiny", "steps": 2, "method": method, "fold": fold, "seed": 0}
    return {**place, "setting": {}, "cpu_seconds": 1.0, "results": results, "curves": [curve] * 4}


def test_table_pairs_by_fold_and_seed_with_the_t_interval(evidence: ModuleType) -> None:
    """Gains of 0.10, 0.20 and 0.30: mean 0.20, s 0.1, t(0.975, 2) = 4.303 from a printed table."""
    cells = [cell("intra", fold, recall) for fold, recall in enumerate((0.1, 0.5, 0.3))]
    cells += [cell("plain", fold, recall) for fold, recall in ((1, 0.7), (2, 0.6), (0, 0.2))]
    cells += [cell("plain", 3, 0.9)]  # has no partner
    gains = evidence.paired(cells, "plain", "recall_at_1")
    assert sorted(gains) == pytest.approx([0.1, 0.2, 0.3])
    mean, half = evidence.interval(gains)
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    (line,) = (line for line in evidence.tables(cells).splitlines() if "| plain |" in line)
    assert "| 4 | 0.600 |" in line
    assert "| +0.200 [-0.048, +0.448] | +0.200 [-0.048, +0.448] | 3 |" in line


def test_cells_of_different_settings_are_not_compared(evidence: ModuleType) -> None:
    cells = [cell("intra", 0, 0.5), cell("plain", 0, 0.5) | {"setting": {"size": 40}}]
    with pytest.raises(ValueError, match="cells of tiny are of different settings"):
        evidence.tables(cells)


def test_quantiles_are_those_of_a_printed_table(evidence: ModuleType) -> None:
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 14: 2.145, 30: 2.042}
    for freedom, value in printed.items():
        assert evidence.t_quantile(freedom) == pytest.approx(value, abs=5e-4)


def test_an_arm_stops_when_its_interval_lies_below_zero(evidence: ModuleType) -> None:
    cells = [cell("intra", fold, 0.5) for fold in range(3)]
    cells += [cell("plain", fold, recall) for fold, recall in enumerate((0.30, 0.31, 0.32))]
    cells += [cell("gate", fold, recall) for fold, recall in enumerate((0.30, 0.50, 0.45))]
    after = [evidence.Cell("tiny", 2, method, 3, 0) for method in ("plain", "gate", "intra")]
    assert [evidence.is_hopeless(one, cells) for one in after] == [True, False, False]


def test_folds_part_the_training_people_and_never_touch_the_test_people(
    evidence: ModuleType,
) -> None:
    people = torch.arange(60) // 5
    splits = ["train" if person < 10 else "test" for person in people.tolist()]
    videos = evidence.Videos([], torch.arange(60) % 5, people, people, splits, "real")
    left_out = []
    for number in range(evidence.FOLDS):
        train, test = evidence.fold(videos, number)
        assert len(train) + len(test) == 50
        assert not set(people[train].tolist()) & set(people[test].tolist())
        left_out += test.tolist()
    assert sorted(left_out) == list(range(50))
    assert evidence.official(videos)[1].tolist() == list(range(50, 60))


def test_plan_has_every_cell_once_and_the_headline_first(evidence: ModuleType) -> None:
    cells = evidence.plan(["a", "b"], 400)
    assert len(set(cells)) == len(cells)
    trained = [cell.method for cell in cells if cell.method not in evidence.BASELINES]
    assert set(trained[: 2 * 3 * 4]) == set(evidence.HEADLINE)


def test_page_has_the_tables_of_the_cells(evidence: ModuleType) -> None:
    page, cells = evidence.PAGE.read_text(), evidence.read_cells(evidence.CELLS)
    assert page == evidence.with_tables(page, cells), "run python benchmarks/evidence.py --page"


# --- methods --------------------------------------------------------------------------------------


@pytest.fixture
def look(methods: ModuleType) -> Any:
    g = torch.Generator().manual_seed(0)
    queue = NNSupportQueue(40, 6)
    queue.enqueue(torch.randn(36, 6, generator=g), torch.arange(36) // 2)  # 4 rows not written
    keys = F.normalize(torch.randn(2, 8, 6, generator=g), dim=2)
    row_labels = torch.cat([torch.arange(36) % 4, torch.tensor([-1] * 4)])
    return methods.Lookup(keys, torch.arange(8), queue, torch.arange(8) % 4, row_labels, g)


@pytest.mark.parametrize("purity", [0.0, 0.5, 1.0])
def test_oracle_has_the_purity_asked_for_and_no_row_of_the_own_video(
    methods: ModuleType, look: Any, purity: float
) -> None:
    pairs = [methods.oracle(purity, 5)(look) for _ in range(50)]
    right, total = 0, 0
    for found in (found for pair in pairs for found in pair):
        assert found.valid.all()
        assert (look.queue.ids[found.indices] != look.ids[:, None]).all()
        assert (found.indices < 36).all()
        assert all(len(set(rows)) == 5 for rows in found.indices.tolist())
        right += (look.row_labels[found.indices] == look.labels[:, None]).sum().item()
        total += found.valid.sum().item()
    assert right / total == pytest.approx(purity, abs=0.05 if purity == 0.5 else 0)


def test_mutual_rows_by_a_loop(methods: ModuleType, look: Any) -> None:
    k, queue = 5, look.queue
    kept = methods.mutual(methods.nearest(k)(look), look)
    similarity = queue.keys @ queue.keys.T
    for key, found in zip(look.keys, kept, strict=True):
        for query, rows, valid in zip(key, found.indices, found.valid, strict=True):
            for row, is_kept in zip(rows.tolist(), valid.tolist(), strict=True):
                others = queue.valid & (queue.ids != queue.ids[row])
                kth = similarity[row][others].sort(descending=True).values[k - 1]
                assert is_kept == bool(queue.keys[row] @ query >= kth)
    assert 0 < sum(found.valid.sum().item() for found in kept) < 2 * 8 * k


def test_agreed_rows_are_those_of_both_clips(methods: ModuleType, look: Any) -> None:
    first, second = methods.nearest(20)(look)
    kept = methods.agreed([first, second], look)
    for i in range(8):
        both = set(first.indices[i].tolist()) & set(second.indices[i].tolist())
        for found in kept:
            assert set(found.indices[i][found.valid[i]].tolist()) == both


def test_equal_weights_without_the_own_key_are_the_inter_term_of_the_library(
    methods: ModuleType, look: Any
) -> None:
    query = torch.randn(8, 6, generator=look.generator)
    found = methods.nearest(5)(look)[0]
    found = Neighbors(*(part[:, [3, 0, 1, 4]] for part in found))
    valid = found.valid.clone()
    valid[:, 1], valid[2] = False, False  # and a query without any
    arguments = query, look.keys[0], look.queue, look.ids, found._replace(valid=valid)
    torch.testing.assert_close(methods.weighted()(*arguments), methods.attract(*arguments))
    # With the own key alone it is the intra term.
    none = found._replace(valid=valid & False)
    own = methods.weighted(own=1.0)(*arguments[:4], none)
    criterion = IIVCLLoss(num_neighbors=0, temperature=methods.TEMPERATURE, batch_negatives=True)
    torch.testing.assert_close(own, criterion(*arguments[:3], ids=look.ids).intra)


def test_spared_rows_leave_the_negatives(methods: ModuleType, look: Any) -> None:
    query = F.normalize(torch.randn(8, 6, generator=look.generator), dim=1)
    found, queue, key = methods.nearest(3)(look)[0], look.queue, look.keys[0]
    spared = methods.spare(query, key, queue, look.ids, found)
    expected = []
    for i in range(8):
        rows = [r for r in range(36) if queue.ids[r] != look.ids[i]]
        own = (query[i] @ key.T / methods.TEMPERATURE).exp()
        bank = (query[i] @ queue.keys.T / methods.TEMPERATURE).exp()
        near = set(found.indices[i].tolist())
        full = own.sum() + sum(bank[r] for r in rows)
        less = own.sum() + sum(bank[r] for r in rows if r not in near)
        expected.append((less / full).log())
    torch.testing.assert_close(spared, torch.stack(expected).mean())
