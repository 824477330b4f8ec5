"""The evidence: a cell is run once, pairs are compared by the right interval, methods are laws."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from iivcl import IIVCLLoss, NNSupportQueue
from iivcl.data import clip_indices, random_clip_starts
from iivcl.queues import Neighbors

ROOT = Path(__file__).parents[1]


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("evidence")


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_evidence_tables")


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_evidence_sets")


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("_evidence_features")


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
        # Twelve videos do not tell the variance of 64 directions: nothing stands for it.
        assert not any(name.startswith("whitened") for name in cell["results"])
    trained = json.loads(files[1].read_text())
    assert [point["step"] for point in trained["curves"]] == [0, 1]

    def run_again(*_: Any, **__: Any) -> None:
        raise AssertionError("a cell was run twice")

    monkeypatch.setattr(evidence, "run_cell", run_again)
    before = [file.stat().st_mtime_ns for file in files]
    evidence.main(options)
    assert [file.stat().st_mtime_ns for file in sorted(out.iterdir())] == before


def test_methods_that_share_their_first_steps_end_as_if_each_ran_alone(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results and curves are the same to the last bit, whatever ran before in the process."""
    tiny = {"num_videos": 15, "num_classes": 3, "size": 32, "num_frames": 8}
    monkeypatch.setitem(evidence.GENERATED, "tiny", tiny)
    videos = evidence.load_set("tiny", tmp_path, tmp_path)
    split = evidence.fold(videos, 0)

    def run(method: str) -> Any:
        return evidence.run_cell(videos, split, method, steps=5, seed=0)

    states = importlib.import_module("_evidence_cell")._STATES
    together = [run(method) for method in ("intra", "k1", "own-head", "twice", "late", "soft-own")]
    (kept,) = states.values()
    assert sorted(sorted(of_parts) for of_parts in kept.values()) == [[2], [2, 4]]
    states.clear()
    alone = run("soft-own")
    assert json.dumps(alone) == json.dumps(together[-1])
    assert json.dumps(alone) != json.dumps(together[1])
    # Steps in bfloat16 are of another pair.
    half = evidence.run_cell(videos, split, "soft-own", steps=5, seed=0, half=True)
    assert half["curves"][0] != alone["curves"][0]
    assert [key[-1] for key in states] == [True]


def test_time_bounds_a_call_and_leaves_nothing_half_written(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any, check: Any, **__: Any) -> None:
        while True:
            check()

    monkeypatch.setattr(evidence, "run_cell", slow)
    monkeypatch.setattr(evidence, "fold", lambda *_: None)
    cells = [evidence.Cell("any", 1, "intra", 0, 0)]
    assert evidence.run_cells(cells, tmp_path, lambda name: None, minutes=1e-4) == []
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_another_call_is_at_is_left_to_it(evidence: ModuleType, tmp_path: Path) -> None:
    cells = [evidence.Cell("any", 1, "intra", 0, 0)]
    with evidence.claim(tmp_path / f"{cells[0].name}.json") as mine:
        assert mine
        assert evidence.run_cells(cells, tmp_path, lambda name: None, minutes=1.0) == []
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_fails_is_named_and_the_next_is_run(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(videos: Any, split: Any, method: str, **_: Any) -> dict[str, Any]:
        if method == "plain":
            raise RuntimeError("out of memory")
        return {"results": {"recall_at_1": 0.5}}

    monkeypatch.setattr(evidence, "run_cell", run)
    monkeypatch.setattr(evidence, "fold", lambda *_: None)
    cells = [evidence.Cell("any", 1, method, 0, 0) for method in ("plain", "intra")]
    failed = evidence.run_cells(cells, tmp_path, lambda name: None, minutes=1.0)
    assert failed == [cells[0].name]
    assert [path.stem for path in tmp_path.iterdir()] == [cells[1].name]
    # One after the other fails: the call gives up.
    cells = [evidence.Cell("any", 1, "plain", fold, 0) for fold in range(9)]
    assert len(evidence.run_cells(cells, tmp_path, lambda name: None, minutes=1.0)) < 9


def cell(method: str, fold: int, recall: float, **curve: float) -> dict[str, Any]:
    results = dict.fromkeys(("recall_at_1", "recall_at_5", "knn", "linear"), recall)
    place = {"set": "tiny", "steps": 2, "method": method, "fold": fold, "seed": 0, "on": "cpu"}
    made = {"setting": {}, "cpu_seconds": 1.0, "environment": {}, "results": results}
    return {**place, **made, "curves": [{"step": step, **curve} for step in range(4)]}


def test_table_pairs_by_fold_and_seed_with_the_t_interval(tables: ModuleType) -> None:
    """Gains of 0.10, 0.20 and 0.30: mean 0.20, s 0.1, t(0.975, 2) = 4.303 from a printed table."""
    cells = [cell("intra", fold, recall) for fold, recall in enumerate((0.1, 0.5, 0.3))]
    cells += [cell("plain", fold, recall) for fold, recall in ((1, 0.7), (2, 0.6), (0, 0.2))]
    cells += [cell("plain", 3, 0.9)]  # has no partner
    gains = tables.paired(cells, "plain", "recall_at_1")
    assert sorted(gains) == pytest.approx([0.1, 0.2, 0.3])
    mean, half = tables.interval(gains)
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    (line,) = (line for line in tables.tables(cells).splitlines() if "| plain |" in line)
    assert "| 4 | 0.600 |" in line
    assert "| intra | +0.200 [-0.048, +0.448] | +0.200 [-0.048, +0.448] | 3 |" in line


def test_cells_of_different_devices_are_no_pair(evidence: ModuleType, tables: ModuleType) -> None:
    """A GPU rounds differently from the first step on: what all methods of a pair share."""
    cells = [cell("intra", 0, 0.5), cell("plain", 0, 0.7) | {"on": "cuda"}]
    assert tables.paired(cells, "plain", "recall_at_1") == []
    cells += [cell("intra", 0, 0.6) | {"on": "cuda"}]
    assert tables.paired(cells, "plain", "recall_at_1") == pytest.approx([0.1])
    names = {evidence.Cell("any", 1, "intra", 0, 0, on).name for on in ("cpu", "cuda")}
    assert len(names) == 2


def test_a_measure_that_older_cells_lack_is_of_those_that_have_it(tables: ModuleType) -> None:
    cells = [cell(method, fold, 0.5) for method in ("intra", "plain") for fold in range(3)]
    for i, precision in ((0, 0.1), (1, 0.3), (3, 0.2), (5, 0.9)):  # one pair has it, of fold 0
        cells[i]["results"]["mean_average_precision"] = precision
    table = tables.tables(cells)
    assert "| intra | 3 | 0.500 | 0.500 | 0.200 |" in table
    assert "| plain | 3 | 0.500 | 0.500 | 0.550 |" in table
    assert "| intra | +0.000 [+0.000, +0.000] | +0.000 [+0.000, +0.000] | 3 | +0.100 (1) |" in table


def test_cells_of_different_settings_are_not_compared(tables: ModuleType) -> None:
    cells = [cell("intra", 0, 0.5), cell("plain", 0, 0.5) | {"setting": {"size": 40}}]
    with pytest.raises(ValueError, match="cells of tiny are of different settings"):
        tables.tables(cells)


def test_quantiles_are_those_of_a_printed_table_and_of_scipy(tables: ModuleType) -> None:
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 14: 2.145, 30: 2.042}
    for freedom, value in printed.items():
        assert tables.t_quantile(freedom) == pytest.approx(value, abs=5e-4)
    for freedom in range(1, 60):
        assert tables.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)


def test_interval_is_that_of_a_t_test_over_pairs(tables: ModuleType) -> None:
    for seed, n in enumerate((2, 3, 5, 15)):
        with_, without = torch.rand(2, n, generator=torch.Generator().manual_seed(seed)).tolist()
        mean, half = tables.interval([a - b for a, b in zip(with_, without, strict=True)])
        low, high = stats.ttest_rel(with_, without).confidence_interval(0.95)
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-5, abs=1e-6)


def test_methods_of_another_input_have_the_partner_of_that_input(tables: ModuleType) -> None:
    """`crops-plain` gains 0.2 over `crops-intra`, though it is below `intra`."""
    assert tables.partner("crops-oracle") == "crops-intra"
    assert tables.partner("changes-takes") == "changes-intra"
    alone = ("crops-intra", "changes-intra", "plain", "own-key", "random-start")
    assert {tables.partner(method) for method in alone} == {"intra"}
    recalls = {"intra": 0.6, "crops-intra": 0.2, "crops-plain": 0.4, "plain": 0.7}
    cells = [cell(method, 0, recall) for method, recall in recalls.items()]
    gains = {m: tables.paired(cells, m, "recall_at_1") for m in recalls}
    assert gains["crops-plain"] == pytest.approx([0.2])
    assert gains["plain"] == pytest.approx([0.1])
    assert gains["crops-intra"] == pytest.approx([-0.4])
    assert "| crops-plain | 1 | 0.400 | 0.400 | - | 0.400 | 0.400 | crops-intra | +0.200 |" in (
        tables.tables(cells)
    )


def test_every_method_is_in_the_table_of_a_question(
    tables: ModuleType, methods: ModuleType
) -> None:
    asked = {method for group in tables.QUESTIONS.values() for method in group}
    assert asked == set(methods.METHODS) - {"intra"}


def test_a_question_is_answered_by_the_length_with_most_cells(tables: ModuleType) -> None:
    cells = [cell(method, fold, 0.5) for method in ("intra", "plain") for fold in range(2)]
    cells += [cell(method, 0, 0.5) | {"steps": 9} for method in ("intra", "plain")]
    assert tables.answer(cells, "purer").count("| plain |") == 1
    assert "| plain | tiny, 2 |" in tables.answer(cells, "purer")
    assert "| plain | tiny, 9 |" in tables.answer(cells, "longer")
    # What other questions have measured more often, and at another length, takes no place from it.
    cells += [cell("changes-plain", fold, 0.5) | {"steps": 9} for fold in range(5)]
    cells += [cell("changes-intra", fold, 0.5) | {"steps": 9} for fold in range(5)]
    assert "| plain | tiny, 2 |" in tables.answer(cells, "purer")
    assert "| changes-plain | tiny, 9 |" in tables.answer(cells, "adds")
    assert tables.answer(cells, "crops") != "Not yet measured.\n"  # it has the plain neighbours
    assert tables.answer(cells[:2], "crops") == "Not yet measured.\n"


def test_first_table_has_both_ends_of_the_pairs_of_the_example(tables: ModuleType) -> None:
    cells = [cell("changes-intra", fold, recall) for fold, recall in enumerate((0.2, 0.4, 0.9))]
    assert tables.example(cells) == "Not yet measured.\n"
    cells += [cell(tables.EXAMPLE, fold, recall) for fold, recall in enumerate((0.3, 0.5))]
    cells += [cell("plain", 0, 0.1) | {"set": "other"}]  # nor has that a pair
    for one, precision in zip((cells[0], cells[3], cells[4]), (0.2, 0.25, 0.9), strict=True):
        one["results"]["mean_average_precision"] = precision
    *_, line = tables.example(cells).strip().splitlines()
    gain = "+0.100 [+0.100, +0.100]"  # the third has no partner
    assert line == f"| tiny, 2 | 2 | 0.300 | 0.400 | {gain} | 0.200 | 0.250 | +0.050 |"
    assert len(tables.example(cells).strip().splitlines()) == 3
    del cells[0]["results"]["mean_average_precision"]  # which older cells lack
    *_, line = tables.example(cells).strip().splitlines()
    assert line == f"| tiny, 2 | 2 | 0.300 | 0.400 | {gain} | - | - | - |"


def test_method_of_the_first_table_is_the_example(
    tables: ModuleType, methods: ModuleType, features: ModuleType
) -> None:
    method, script = methods.METHODS[tables.EXAMPLE], features.MINIMAL
    names = ("INTER_START", "INTER_WEIGHT", "QUEUE_SIZE", "TEMPERATURE")
    found = (method.start, method.weight, method.queue, methods.TEMPERATURE)
    assert found == tuple(script[name] for name in names)
    assert (method.sees, method.ramp, method.ids) == ("changes", 0.0, "videos")


def test_whitening_is_compared_within_each_cell(tables: ModuleType) -> None:
    cells = [cell("intra", fold, 0.5) for fold in range(4)]
    for one, after in zip(cells, (0.6, 0.7, 0.65), strict=False):  # the last has no such measure
        one["results"] |= {"mean_average_precision": 0.2, "whitened_recall_at_1": after}
        one["results"]["whitened_mean_average_precision"] = 0.3
    half = stats.t.ppf(0.975, 2) * 0.05 / 3**0.5
    interval = f"+0.150 [{0.15 - half:+.3f}, {0.15 + half:+.3f}]"
    line = f"| intra | tiny, 2 | 3 | 0.500 | 0.650 | {interval} | 0.200 | 0.300 | +0.100 "
    assert line in tables.whitened(cells)
    assert tables.whitened(cells[3:]) == "Not yet measured.\n"


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
    videos = evidence.Videos(
        *2 * [torch.empty(0)], torch.arange(60) % 5, people, people, splits, "real"
    )
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
    # Methods that are named come pair by pair, so that a process shares their first steps.
    named = evidence.plan(["a"], 400, "cuda", ["k1", "intra"])
    places = [(cell.fold, cell.seed) for cell in named]
    assert [cell.method for cell in named] == ["k1", "intra"] * evidence.MANY
    assert places[::2] == places[1::2] == [evidence.place("a", n) for n in range(evidence.MANY)]


def test_page_has_the_tables_of_the_cells(evidence: ModuleType) -> None:
    page, cells = evidence.PAGE.read_text(), evidence.read_cells(evidence.CELLS)
    assert page == evidence.with_tables(page, cells), "run python benchmarks/evidence.py --page"
    shown = re.findall(r"assets/(evidence-\w+\.svg)", page)
    assert sorted(shown) == sorted(path.name for path in evidence.PLOTS.glob("evidence-*.svg"))


@pytest.mark.slow  # it draws eight figures
def test_page_and_plots_are_written_out_of_the_cells(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal cells give equal bytes, of which none say when they were written."""
    gains = {"intra": 0.0, "plain": 0.01, "oracle-50": 0.0, "oracle": 0.2, "soft": 0.02}
    cells = [
        cell(method, fold, 0.5 + gain, nearest_purity=0.4, purity=0.5, effective_rank=30.0)
        for fold in range(2)
        for method, gain in gains.items()
    ]
    cells += [cell("gate", 0, 0.4, nearest_purity=0.4, purity=0.7, effective_rank=None)]
    written = []
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        page = tmp_path / turn / "page.md"
        page.write_text(evidence.PAGE.read_text())
        monkeypatch.setattr(evidence, "PAGE", page)
        monkeypatch.setattr(evidence, "PLOTS", tmp_path / turn)
        monkeypatch.setattr(evidence, "read_cells", lambda _: cells)
        evidence.main(["--page"])
        written.append({path.name: path.read_text() for path in sorted(page.parent.iterdir())})
    assert written[0] == written[1]
    files = written[0]
    assert len(files) == 5
    assert "| oracle | tiny, 2 | intra | +0.200 [+0.200, +0.200] |" in files["page.md"]
    assert "<dc:date>" not in "".join(files.values())
    for method in ("plain", "oracle-50", "oracle", "soft", "gate"):
        assert f">{method}</text>" in files["evidence-gains.svg"]
    assert "crops-plain" not in files["evidence-gains.svg"]  # which has no cell


# --- methods --------------------------------------------------------------------------------------


@pytest.fixture
def look(methods: ModuleType) -> Any:
    g = torch.Generator().manual_seed(0)
    queue = NNSupportQueue(40, 6)
    for part in (torch.arange(17), torch.arange(17, 36)):  # 4 rows are not written
        queue.enqueue(torch.randn(len(part), 6, generator=g), part // 2)
    keys = F.normalize(torch.randn(2, 8, 6, generator=g), dim=2)
    row_labels = torch.cat([torch.arange(36) % 4, torch.tensor([-1] * 4)])
    rows = torch.arange(40) // 2  # and 2 videos that are not there
    own, of_rows = (torch.arange(8) % 4, torch.zeros(8)), (rows, row_labels, torch.zeros(40))
    return methods.Lookup(keys, torch.arange(8), queue, *own, *of_rows, g)


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


def test_some_of_the_rows_found_are_drawn_alike(methods: ModuleType, look: Any) -> None:
    count = torch.zeros(8, 40)
    for _ in range(400):
        found = methods.nearest(10)(look)[0]
        drawn = methods.some(4, methods.nearest(10))(look)[0]
        assert drawn.valid.all()
        for i in range(8):
            of = dict(zip(found.indices[i].tolist(), found.similarity[i].tolist(), strict=True))
            rows = drawn.indices[i].tolist()
            assert len(set(rows)) == 4
            assert [of[row] for row in rows] == drawn.similarity[i].tolist()
            count[i, rows] += 1
    share = count[count > 0] / 400
    assert len(share) == 8 * 10
    assert (share - 4 / 10).abs().max() < 0.1  # four standard deviations


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


def test_rows_of_near_videos_are_their_newest(methods: ModuleType, look: Any) -> None:
    near = torch.tensor([[8, -1, 17], [19, 0, 5]] * 4)  # of videos 18 and 19 no row is written
    for key, found in zip(look.keys, methods.near_videos(look._replace(near=near)), strict=True):
        for i, row in enumerate(near.tolist()):
            for j, video in enumerate(row):
                assert found.valid[i, j] == (0 <= video < 18)
                if found.valid[i, j]:
                    row = found.indices[i, j]
                    assert look.row_videos[row] == video
                    same = look.queue.stamps[look.row_videos == video]
                    assert look.queue.stamps[row] == same.max()
                    similarity = look.queue.keys[row] @ key[i]
                    torch.testing.assert_close(found.similarity[i, j], similarity)


def test_near_videos_are_of_other_ids_and_mutual_ones_by_a_loop(
    features: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(0)
    places, ids = torch.arange(1, 25), torch.arange(26) // 3
    views = [torch.randn(24, 7, generator=g, dtype=torch.float64) for _ in range(2)]
    monkeypatch.setattr(features, "features_of", lambda model, clips, places: views[model])
    near = features.near_videos_of([0, 1], None, places, ids, k=4)
    mutual = features.mutual_videos(near)
    centred = [F.normalize(view - view.mean(0), dim=1) for view in views]
    for i in range(26):
        if i not in places:
            assert near[i].tolist() == [-1] * 4
            continue
        others = [j for j in places.tolist() if ids[j] != ids[i]]
        score = {j: sum(float(x[i - 1] @ x[j - 1]) for x in centred) for j in others}
        assert near[i].tolist() == sorted(others, key=lambda j: -score[j])[:4]
        kept = [j if i in near[j].tolist() else -1 for j in near[i].tolist()]
        assert mutual[i].tolist() == kept
    assert 0 < (mutual >= 0).sum() < 24 * 4


def test_people_who_are_apart_are_negatives_and_no_neighbours(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"num_videos": 12, "num_classes": 2, "takes": 3, "size": 32, "num_frames": 8}
    monkeypatch.setitem(evidence.GENERATED, "tiny", tiny)
    videos = evidence.load_set("tiny", tmp_path, tmp_path)
    train = importlib.import_module("_evidence_train")
    for name in ("plain", "apart"):
        run = train.Run(
            importlib.import_module("_evidence_features").small_encoder("cpu"),
            videos, torch.arange(12), name, steps=9, seed=0,
        )  # fmt: skip
        run.train({})
        queue, lookup = run.state.queues[0], run.state.lookup_queue
        assert torch.equal(queue.keys, lookup.keys)
        rows = run.state.row_videos[: queue.filled]
        assert torch.equal(queue.ids[: queue.filled], rows)  # its own video alone is no negative
        apart = videos.people if name == "apart" else torch.arange(12)
        assert torch.equal(lookup.ids[: queue.filled], apart[rows])
        shares = [point["nearest_same_person"] for point in run.state.curves]
        assert {share for share in shares if share is not None} == {0.0} or name == "plain"
        assert max(share or 0 for share in shares) > 0 or name == "apart"


@pytest.mark.parametrize(
    ("name", "before"),
    [("second-view-from-0-twice", "changes-intra"), ("changes-again-videos", "changes-intra")],
)
def test_what_was_trained_before_looks_up_and_changes_no_more(
    evidence: ModuleType,
    features: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    before: str,
) -> None:
    tiny = {"num_videos": 12, "num_classes": 2, "size": 32, "num_frames": 8}
    monkeypatch.setitem(evidence.GENERATED, "tiny", tiny)
    videos, places = evidence.load_set("tiny", tmp_path, tmp_path), torch.arange(12)
    train = importlib.import_module("_evidence_train")
    monkeypatch.setattr(train, "_BEFORE", {})
    calls: list[int] = []

    def near_videos_of(*given: Any) -> torch.Tensor:
        calls.append(1)
        table: torch.Tensor = features.near_videos_of(*given)
        return table

    monkeypatch.setattr(train, "near_videos_of", near_videos_of)
    sees = "changes" if name.startswith("changes") else "frames"
    run = train.Run(features.small_encoder("cpu", sees), videos, places, name, steps=4, seed=0)
    ((kind, second),) = next(iter(train._BEFORE.values())).items()
    assert kind == before
    at_first = [value.clone() for part in second for value in part.state_dict().values()]
    run.train({})
    at_last = [value for part in second for value in part.state_dict().values()]
    assert all(map(torch.equal, at_first, at_last))
    assert len(calls) == (1 if name.endswith("videos") else 0)
    # It looks up from the first step on: the keys of the two queues differ.
    assert not torch.allclose(run.state.queues[0].keys, run.state.lookup_queue.keys, atol=0.1)
    assert "accepted" in run.state.curves[0]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("changes-four-times-ramp", {0.2: 0.0, 0.3: 1.0, 0.4: 2.0, 0.6: 4.0, 0.9: 4.0}),
        ("changes-four-times", {0.4: 4.0, 0.9: 4.0}),
        ("plain", {0.4: 1.0, 0.9: 1.0}),
    ],
)
def test_the_weight_rises_evenly_and_stays(
    methods: ModuleType, name: str, weights: dict[float, float]
) -> None:
    method = methods.METHODS[name]
    assert {at: pytest.approx(method.weight_at(at)) for at in weights} == weights


def test_encoders_differ_in_what_they_see_alone(features: ModuleType) -> None:
    of_frames, of_changes = (features.small_encoder("cpu", sees) for sees in ("frames", "changes"))
    of_frames.load_state_dict(of_changes.state_dict())
    clips = torch.rand(2, 3, 9, 32, 32)
    assert torch.equal(of_changes(clips), of_frames(clips.diff(dim=2)))


def test_equal_weights_without_the_own_key_are_the_inter_term_of_the_library(
    methods: ModuleType, look: Any
) -> None:
    query = torch.randn(8, 6, generator=look.generator)
    found = methods.nearest(5)(look)[0]
    found = Neighbors(*(part[:, [3, 0, 1, 4]] for part in found))
    valid = found.valid.clone()
    valid[:, 1], valid[2] = False, False  # and a query without any
    arguments = query, look.keys[0], look.queue, look.ids, found._replace(valid=valid)
    torch.testing.assert_close(methods.weighted()(*arguments), methods.attract()(*arguments))
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


# --- sets -----------------------------------------------------------------------------------------


def test_clips_are_those_of_every_video_by_a_loop(sets: ModuleType) -> None:
    lengths, clip = [3, 20, 9], {"num_frames": 4, "stride": 2}
    parts = [
        torch.full((3, n, 2, 2), 50 * i) + torch.arange(n)[:, None, None]
        for i, n in enumerate(lengths)
    ]
    videos = videos_of(sets, parts)
    clips = sets.Clips(videos, "cpu", **clip)
    drawn, again = (torch.Generator().manual_seed(0) for _ in range(2))
    starts = [clips.starts(i, random_clip_starts, generator=drawn) for i in range(3)]
    found = clips.cut(torch.cat(starts))
    for i, (length, part) in enumerate(zip(lengths, parts, strict=True)):
        own = random_clip_starts(length, **clip, generator=again)
        expected = part[:, clip_indices(own, length, **clip)].transpose(0, 1)
        assert torch.equal(found[2 * i : 2 * i + 2], expected)


def test_a_set_is_made_once_and_read_back(sets: ModuleType, tmp_path: Path) -> None:
    videos = videos_of(sets, [torch.zeros(3, 2, 4, 4, dtype=torch.uint8)])

    def make() -> Any:
        made.append(1)
        return videos

    made: list[int] = []
    first, second = (sets.cached(tmp_path / "new" / "set.pt", make) for _ in range(2))
    assert made == [1]
    assert torch.equal(first.frames, second.frames)
    assert second[2:] == first[2:] == videos[2:]
    assert not list(tmp_path.glob("**/*.tmp"))


def videos_of(sets: ModuleType, parts: list[torch.Tensor]) -> Any:
    number = torch.arange(len(parts))
    lengths = torch.tensor([part.shape[1] for part in parts])
    return sets.Videos(torch.cat(parts, dim=1), lengths, number, number, number, [], "real")
