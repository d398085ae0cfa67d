"""The tasks of lm-evaluation-harness on a pruned model, where that package is installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...errors import MissingExtraError
from ...types import Measurement, Spread


def harness(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    **options: Any,
) -> dict[str, Measurement]:
    """Run tasks of lm-evaluation-harness; its own data sets and prompts are used.

    Args:
        model: a Hugging Face model, in memory.
        tokenizer: of the model.
        tasks: names that the harness knows.
        batch_size: of its requests.
        limit: examples of each task; None is all.
        options: of `lm_eval.simple_evaluate`, such as num_fewshot.

    Returns:
        "task metric" -> value, with the standard error that the harness gives as a 95% normal interval.

    Raises:
        MissingExtraError: lm_eval is not installed.
    """
    try:
        evaluator = importlib.import_module("lm_eval")
        wrapped = importlib.import_module("lm_eval.models.huggingface").HFLM
    except Exception as error:  # its own imports may fail in other ways than ImportError
        raise MissingExtraError.of("lm_eval", "harness", "tasks of lm-evaluation-harness") from error
    made = wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    found = evaluator.simple_evaluate(model=made, tasks=list(tasks), limit=limit, **options)
    return measurements_of(found["results"], limit)


def measurements_of(results: Mapping[str, Mapping[str, Any]], limit: int | None = None) -> dict[str, Measurement]:
    """The harness's table of results as measurements: its keys are "metric,filter" and "metric_stderr,filter"."""
    made = {}
    for task, row in results.items():
        for key, value in row.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float) or not kind:
                continue
            error = row.get(f"{metric}_stderr,{kind}")
            spread = None
            if isinstance(error, int | float):
                spread = Spread(value - 1.96 * error, value + 1.96 * error, "95% normal interval", int(row.get("n", 0)))
            how = f"lm-evaluation-harness, task {task}, filter {kind}" + (f", {limit} examples" if limit else "")
            made[f"{task} {metric}"] = Measurement(metric, float(value), "1", how, spread)
    return made
