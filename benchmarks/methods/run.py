"""Every filter and weight method on the trained CIFAR-10 ResNet-20, at three budgets, without and with a recovery.

    PRUNUS_DATA=... python benchmarks/methods/run.py [--only 'hrank*'] [--stage 1] [--minutes 30]

Filter methods remove channels until 75%, 50% and 35% of the multiply-accumulates are left, of every layer the same
share unless the variant says otherwise; weight methods set 50%, 80% and 90% of the weights to zero. After the cut batch
norm is estimated anew on training images, for all alike. A row without recovery is measured then; one with recovery
after 80 further steps on the same images, in the same order, at the same rates. Methods that train by themselves have
those 80 steps for everything. Accuracy is that of all 10,000 test images, computed in bfloat16.

Rows are appended to benchmarks/results/methods.jsonl; what is there is not run again, so that the run can be stopped at
any time, and several processes can share the work. They come in stages, the most telling first (see `STAGES`), and the
slowest methods last. `page.py` makes docs/methods_measured.md of them.

What all of it takes, and whether a second time gives the same, is measured on rows drawn at random, by two processes:

    run.py --sample 150 --results benchmarks/results/methods_sample.jsonl --answers runs/methods_sample
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cases import BASELINES, SLOW, Case, all_cases, is_baseline
from evidence import RESULTS, Key, Row, append, read
from setting import BUDGETS, Setting, right
from torch import nn

from prunus.evaluation.significance import wilson
from prunus.masks import find_sites

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """One row that is wanted."""

    case: Case
    budget: float
    seed: int
    recovered: bool

    @property
    def key(self) -> Key:
        """Of the row that it will be."""
        return self.case.kind, self.case.method, self.case.variant, self.budget, self.seed, self.recovered

    @property
    def slow(self) -> bool:
        """Whether pruning takes so long that both rows share it."""
        return self.case.method in SLOW


def _middle(job: Job) -> bool:
    return job.budget == BUDGETS[job.case.kind][1]


STAGES: Mapping[str, Callable[[Job], bool]] = {
    "baselines": lambda job: is_baseline(job.case) and (not job.recovered or _middle(job)),
    "not recovered, at the middle budget": lambda job: not job.recovered and _middle(job) and job.seed == 0,
    "not recovered": lambda job: not job.recovered and job.seed == 0,
    "recovered at the middle budget": lambda job: job.recovered and _middle(job) and job.seed == 0,
    "baselines, recovered": lambda job: is_baseline(job.case),
    "recovered": lambda job: job.seed == 0,
    "seeds, not recovered": lambda job: not job.recovered,
    "seeds": lambda job: True,
}
"""In this order; a job belongs to the first stage that takes it."""


def jobs(cases: list[Case]) -> list[Job]:
    """All rows, in the order in which they are worth having."""
    found = [
        Job(case, budget, seed, recovered)
        for case in cases
        for budget in case.budgets
        for seed in (SEEDS if case.seeded else SEEDS[:1])
        for recovered in (True, False)
        if recovered or not case.trains
    ]
    stages = list(STAGES.values())

    def order(job: Job) -> tuple[bool, int, bool]:
        extra = job.case.kind == "filter" and job.case.variant in ("global", "4,096 images")
        # What a slow method pruned serves the row without recovery and that with it, one after the other.
        first = replace(job, recovered=False) if job.slow and not job.case.trains else job
        return job.slow, next(i for i, takes in enumerate(stages) if takes(first)), extra

    return sorted(found, key=order)


class Answers:
    """Which images the baselines got right, kept beside the results so that a run that goes on can compare too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._claimed: set[Path] = set()

    def _file(self, key: tuple[object, ...], suffix: str = ".npy") -> Path:
        return self.folder / ("-".join(str(part) for part in key).replace("/", "_") + suffix)

    def claim(self, job: Job) -> bool:
        """Whether this process may do the job: several can share the work. Both rows of a slow method are claimed at
        once. A claim is void after a quarter of an hour."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(job.key[:-1] if job.slow else job.key, ".claimed")
        try:
            file.touch(exist_ok=False)
        except FileExistsError:
            if file not in self._claimed and time.time() - file.stat().st_mtime < 900:
                return False
            file.touch()
        self._claimed.add(file)
        return True

    def keep(self, job: Job, hits: np.ndarray) -> None:
        """Store those of a baseline."""
        if is_baseline(job.case):
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(self._file(job.key), np.packbits(hits))

    def against(self, job: Job, hits: np.ndarray) -> dict[str, list[list[int]]]:
        """By baseline: images that only this one, and only the baseline got right, for each seed of the baseline."""
        found: dict[str, list[list[int]]] = {}
        for name in BASELINES[job.case.kind]:
            variant = "" if job.case.kind == "filter" else "layer"
            for seed in SEEDS:
                key = (job.case.kind, name, variant, job.budget, seed, job.recovered)
                if key != job.key and self._file(key).exists():
                    other = np.unpackbits(np.load(self._file(key)), count=len(hits)).astype(bool)
                    pair = [int((hits & ~other).sum()), int((other & ~hits).sum())]
                    found.setdefault(name, []).append(pair)
        return found


def measure(job: Job, setting: Setting, answers: Answers) -> Row:
    """Prune, recover where wanted, and test."""
    before = dict(setting.seconds)
    model, seconds = _pruned(job, setting)
    new = {need: value for need, value in setting.seconds.items() if need not in before}
    macs, sizes = (setting.macs(model) if job.case.kind == "filter" else 1.0), _sizes(setting, model)
    if not job.case.trains:
        setting.recalibrated(model)
        model = setting.recovered(model, job.seed) if job.recovered else model
    hits = right(model, setting.test)
    spread = wilson(int(hits.sum()), len(hits))
    answers.keep(job, hits)
    return {
        "kind": job.case.kind, "method": job.case.method, "variant": job.case.variant, "budget": job.budget,
        "seed": job.seed, "recovered": job.recovered, "trains": job.case.trains,
        "accuracy": int(hits.sum()) / len(hits), "low": round(spread.low, 6), "high": round(spread.high, 6),
        "images": len(hits), "macs": round(macs, 4), **sizes, "seconds": round(seconds, 3),
        "seconds_of_statistics": {need: round(value, 3) for (need, *_), value in new.items()},
        "against": answers.against(job, hits),
    }  # fmt: skip


def _pruned(job: Job, setting: Setting) -> tuple[nn.Module, float]:
    """The pruned network and what it took; of methods that take long the same for both of their rows."""
    key = job.key[:-1]
    if key not in setting.pruned:
        start = time.perf_counter()
        model = job.case.make(setting, job.budget, job.seed)
        found = model, time.perf_counter() - start
        if not job.slow:
            return found
        setting.pruned[key] = found
    model, seconds = setting.pruned[key]
    return copy.deepcopy(model), seconds


def _sizes(setting: Setting, model: nn.Module) -> dict[str, float]:
    """Parameters that are left, as a share of the dense network's, and the share of zeros among the weights."""
    entries = zeros = 0
    with torch.no_grad():
        for site in find_sites(model, None, ())[0]:
            weight = getattr(model.get_submodule(site.module), site.tensor)
            entries += weight.numel()
            zeros += int((weight == 0).sum())
    dense = sum(p.numel() for p in setting.dense.parameters())
    left = sum(p.numel() for p in model.parameters())
    return {"params": round((left - zeros) / dense, 4), "sparsity": round(zeros / max(entries, 1), 4)}


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    stages = list(STAGES)[: options.stage] if options.stage else list(STAGES)
    wanted = [
        job for job in jobs(all_cases())
        if fnmatch.fnmatch(job.case.method, options.only) and (options.kind or job.case.kind) == job.case.kind
        and any(STAGES[stage](job) for stage in stages)
    ]  # fmt: skip
    if options.sample:
        drawn = set(random.Random(0).sample(range(len(wanted)), min(options.sample, len(wanted))))
        wanted = [job for number, job in enumerate(wanted) if number in drawn]
    setting, answers = Setting.prepare(options.test_images), Answers(options.answers)
    start = time.monotonic()
    for number, job in enumerate(wanted, 1):
        if options.minutes and time.monotonic() - start > 60 * options.minutes:
            print("the time is up", flush=True)
            break
        if job.key not in read(options.results) and answers.claim(job):
            _run(job, setting, answers, options.results, f"{number}/{len(wanted)}")
    return 0


def _run(job: Job, setting: Setting, answers: Answers, results: Path, where: str) -> None:
    start = time.perf_counter()
    try:
        row = measure(job, setting, answers)
    except Exception:  # one method that fails must not take the others with it
        print(where, *job.key, "FAILED", flush=True)
        traceback.print_exc()
        return
    seconds = time.perf_counter() - start
    append({**row, "took": round(seconds, 2)}, results)
    print(
        f"{where} {job.key} {row['accuracy']:.4f} macs {row['macs']} zeros {row['sparsity']} {seconds:.1f} s",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="*", help="pattern of methods")
    parser.add_argument("--kind", choices=list(BUDGETS), help="only filter or weight methods")
    parser.add_argument("--stage", type=int, help="only the first so many stages")
    parser.add_argument("--minutes", type=float, help="begin nothing new after that time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test-images", type=int, help="fewer test images, for a trial")
    parser.add_argument("--sample", type=int, help="only so many rows, drawn at random: to see what all would take")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--answers", type=Path, default=Path("runs/methods"), help="folder for the baselines' answers")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
