"""The benchmark of all methods: what is said of its rows, where they are kept, and which methods it names."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prunus.criteria import CRITERIA
from prunus.methods import methods

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "methods"
PARTS = ("evidence", "setting", "cases", "verdicts", "page", "run")


@pytest.fixture(scope="module")
def parts() -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which import each other by their bare names."""
    before = {name: sys.modules.pop(name) for name in PARTS if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in PARTS}
    finally:
        sys.path.remove(str(FOLDER))
        for name in PARTS:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def row(method: str, accuracy: float, **other: Any) -> dict[str, Any]:
    return {
        "kind": "filter", "method": method, "variant": "", "budget": 0.5, "seed": 0, "recovered": False,
        "trains": False, "accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01, "images": 10_000,
        "macs": 0.4995, "params": 0.5, "sparsity": 0.0, "seconds": 1.0, "against": {}, **other,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "beyond", "said"),
    [
        ([[300, 100]], 0.0, "better"),
        ([[100, 300]], 0.0, "worse"),
        ([[201, 200]], 0.0, "no clear difference"),
        ([[300, 100], [201, 200]], 0.0, "no clear difference"),  # every seed must say so
        ([[300, 100], [100, 300]], 0.0, "no clear difference"),
        ([[300, 100]], 0.1, "no clear difference"),  # it kept more than the budget
        ([[100, 300]], -0.1, "no clear difference"),  # it kept less
        ([[100, 300]], 0.1, "worse"),
    ],
)
def test_a_difference_is_only_said_where_every_pair_shows_it(parts, pairs, beyond, said):
    assert parts["verdicts"].judged(pairs, 0.001, beyond) == said


def test_each_test_of_a_column_is_held_to_its_share_of_the_level(parts):
    # 30 against 12 is 0.008 two-sided: clear for one method alone, not among ten
    one = row("hrank", 0.6, against={"random": [[30, 12]]})
    (found,) = parts["verdicts"].cells([one]).values()
    assert found["hrank", ""].against == {"random": "better"}
    others = [row(f"other{i}", 0.5) for i in range(9)]
    (found,) = parts["verdicts"].cells([one, *others]).values()
    assert found["hrank", ""].against == {"random": "no clear difference"}


def test_seeds_are_averaged_and_their_intervals_joined(parts):
    rows = [row("random", 0.30, seed=0), row("random", 0.40, seed=1)]
    (found,) = parts["verdicts"].cells(rows).values()
    cell = found["random", ""]
    assert (cell.accuracy, cell.low, cell.high, cell.seeds) == pytest.approx((0.35, 0.29, 0.41, 2))


def test_rows_are_read_back_and_a_line_that_was_cut_off_is_passed_over(parts, tmp_path):
    evidence, file = parts["evidence"], tmp_path / "rows.jsonl"
    evidence.append(row("hrank", 0.1), file)
    evidence.append(row("hrank", 0.2), file)  # the same measurement again: the later one counts
    with file.open("a") as written:
        written.write('{"kind": "filt')
    assert [found["accuracy"] for found in evidence.read(file).values()] == [0.2]
    evidence.append(row("fpgm", 0.3), file)
    assert json.loads(file.read_text().splitlines()[-1])["method"] == "fpgm"


def test_the_page_shows_what_was_measured_and_nothing_else(parts):
    page = parts["page"].page(
        [
            row("random", 0.3333),
            row("hrank", 0.4567, against={"random": [[900, 100]]}),
            row("block_dbp", 0.2, macs=0.42, against={"random": [[100, 900]]}),
        ],
        {},
    )
    assert "hours on two cores" not in page
    lines = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")}
    assert "45.7 [44.7, 46.7]" in lines["`hrank`"]
    assert "(42% MACs)" in lines["`block_dbp`"]
    assert not any(cell.strip() for cell in lines["`fpgm`"].split("|")[2:])
    assert "better than random: 1: `hrank`" in page
    assert "not clearly different from random: 1: `block_dbp`" in page  # it kept less than the budget
    assert "worse than random: none" in page


def test_the_whole_is_said_from_rows_that_were_measured_again(parts):
    page, key_of = parts["page"], parts["evidence"].key_of
    need = {"responses": 3000.0}
    rows = [
        row("hrank", 0.5, seconds_of_statistics=need, took=9000.0),
        row("nisp", 0.6, seconds_of_statistics=need, took=11000.0),
        row("lfpc", 0.7, seconds=40000.0, seconds_of_statistics={}, took=48000.0),
        row("lfpc", 0.8, seconds=40000.0, seconds_of_statistics={}, took=48000.0, recovered=True),
    ]
    again = {key_of(one): {**one, "accuracy": one["accuracy"] + 0.01 * (one["method"] == "nisp")} for one in rows[:3]}
    said = " ".join(page.page(rows, again).splitlines())
    # their own seconds are 6000, 8000 and 8000; statistics of one seed are gathered in two processes, lfpc prunes once
    own, once = (6000 + 8000 + 8000) / 3, 2 * 3000 + 40000
    assert "All 4 rows take 10.5 hours" in said
    assert round((4 * own + once) / 7200, 1) == 10.5
    assert f"{own:.1f} s each, beside 3,000 s of statistics, once in each process, and 40,000 s of pruning" in said
    assert "2 of the 3 came out the same to the last image; the largest difference is 1.00 points" in said


def test_every_case_is_a_method_or_a_criterion_and_none_is_there_twice(parts):
    cases = parts["cases"].all_cases()
    assert {case.method for case in cases} <= set(methods()) | set(CRITERIA)
    names = [(case.kind, case.method, case.variant) for case in cases]
    assert len(set(names)) == len(names)
    assert set(parts["cases"].LEFT_OUT) <= set(methods())


def test_every_criterion_of_whole_units_is_in_the_benchmark(parts):
    named = {case.method for case in parts["cases"].all_cases()}
    wanted = {name for name, criterion in CRITERIA.items() if criterion.level == "unit"}
    assert {parts["cases"].id_of(name) for name in wanted} - named == {"lp_filter"}


def test_jobs_come_once_each_baselines_first(parts):
    run, cases = parts["run"], parts["cases"]
    jobs = run.jobs(cases.all_cases())
    assert len({job.key for job in jobs}) == len(jobs)
    first = [cases.is_baseline(job.case) for job in jobs]
    assert all(first[: first.index(False)])
    assert not any(job.case.trains and not job.recovered for job in jobs)


def test_a_job_is_claimed_by_one_process(parts, tmp_path):
    run = parts["run"]
    job = run.jobs(parts["cases"].all_cases())[0]
    answers = run.Answers(tmp_path)
    assert answers.claim(job)
    assert not run.Answers(tmp_path).claim(job)


def test_both_rows_of_a_slow_method_are_claimed_at_once_and_stand_together(parts, tmp_path):
    run = parts["run"]
    jobs = run.jobs(parts["cases"].all_cases())
    slow = [number for number, job in enumerate(jobs) if job.slow and not job.case.trains]
    first, second = slow[:2]
    assert second == first + 1
    assert jobs[first].key[:-1] == jobs[second].key[:-1]
    mine, other = run.Answers(tmp_path), run.Answers(tmp_path)
    assert mine.claim(jobs[first])
    assert not other.claim(jobs[second])
    assert mine.claim(jobs[second])
