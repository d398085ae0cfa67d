"""How long pruning itself takes: trace, score, plan and apply, beside torch-pruning in the same run.

    python benchmarks/overhead.py [--repeats 5] [--networks resnet50 "torchvision swin_b"] [--json out.json]
        [--seconds 300]

The two tools take turns (A, B, A, B ...) on fresh copies of the same network; CPU seconds of the process are
compared, as medians. Both halve the channels by the L2 norm of their weights; torch-pruning is told which layer puts
out the result, the numbers of attention heads, and for the decoder to prune heads. prunus's time includes the second
trace that proves every shape. Its numerical proof (two forward passes, in float64 where the model allows it) is
stated apart and measured once: torch-pruning has none. `runs` says whether the pruned network still runs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import json
import signal
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from library_networks import LIBRARY_NETWORKS
from networks import NETWORKS, Attention, image
from torch import nn

import prunus
from prunus.surgery import verify

Timings = dict[str, float]

PROOF_UP_TO = 500_000_000
"""Parameters of the largest network whose proof is measured: it holds two copies in float64."""


@contextlib.contextmanager
def timed(into: Timings, name: str) -> Iterator[None]:
    start = time.process_time()
    yield
    into[name] = into.get(name, 0.0) + time.process_time() - start


def with_prunus(model: nn.Module, inputs: Any, prove: bool) -> Timings:
    timings: Timings = {"proof": 0.0}
    check = verify.check_values

    def watched(*args: Any) -> Any:
        if not prove:
            return verify.Verified(False, "not asked for")
        with timed(timings, "proof"):
            return check(*args)

    verify.check_values = watched
    try:
        with timed(timings, "trace"):
            graph = prunus.trace(model, inputs)
        with timed(timings, "score"):
            scores = prunus.score(graph, "l2_norm", model=model, fallback="l2_norm")
        with timed(timings, "plan"):
            plan = prunus.plan(graph, scores, ratio=0.5)
        with timed(timings, "apply"):
            prunus.apply(model, plan, inplace=True)
    finally:
        verify.check_values = check
    timings["apply"] -= timings["proof"]
    timings["total"] = sum(timings[k] for k in ("trace", "score", "plan", "apply"))
    return timings


def with_torch_pruning(model: nn.Module, inputs: Any, prove: bool) -> Timings:
    import torch_pruning  # type: ignore[import-not-found]

    timings: Timings = {}
    with timed(timings, "trace"), contextlib.redirect_stdout(io.StringIO()):
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear)][-1:],  # pyright: ignore[reportArgumentType]
            num_heads=heads_of(model),
            **decoder_settings(model),
        )
    with timed(timings, "apply"):
        pruner.step()
    set_heads(model, pruner.num_heads)
    timings["total"] = timings["trace"] + timings["apply"]
    return timings


def heads_of(model: nn.Module) -> dict[Any, int]:
    """What torch-pruning wants to be told about attention: projection -> number of heads."""
    heads: dict[Any, int] = {}
    for module in model.modules():
        if isinstance(module, (nn.MultiheadAttention, Attention)):
            heads[module if isinstance(module, nn.MultiheadAttention) else module.qkv] = module.num_heads
        elif hasattr(module, "qkv") and hasattr(module, "num_heads"):
            heads[module.qkv] = module.num_heads  # type: ignore[index,assignment]
        elif hasattr(module, "q_proj") and hasattr(module, "config"):
            config: Any = module.config
            heads[module.q_proj] = config.num_attention_heads
            heads[module.k_proj] = heads[module.v_proj] = config.num_key_value_heads
    return heads


def set_heads(model: nn.Module, heads: dict[Any, int]) -> None:
    """torch-pruning leaves the attributes of attention to its caller: set those of fused projections."""
    for module in model.modules():
        if getattr(module, "qkv", None) in heads and isinstance(getattr(module, "head_dim", None), int):
            module.num_heads = heads[module.qkv]  # type: ignore[assignment,index]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)  # type: ignore[union-attr,operator]
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.num_heads * module.head_dim  # type: ignore[operator]


def decoder_settings(model: nn.Module) -> dict[str, Any]:
    if not hasattr(model, "lm_head"):
        return {}
    return {
        "prune_num_heads": True,
        "prune_head_dims": False,
        "head_pruning_ratio": 0.5,
        "output_transform": lambda output: output.logits,
    }


TOOLS = {"prunus": with_prunus, "torch_pruning": with_torch_pruning}


def build(name: str) -> tuple[nn.Module, Any]:
    return (NETWORKS[name]().eval(), image()) if name in NETWORKS else LIBRARY_NETWORKS[name]()


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """TimeoutError after so many CPU seconds of this process."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done after {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def compare(name: str, repeats: int, seconds: float) -> dict[str, Any]:
    dense, inputs = build(name)
    size = sum(p.numel() for p in dense.parameters())
    rows: dict[str, list[Timings]] = {tool: [] for tool in TOOLS}
    result: dict[str, Any] = {"network": name, "dense_parameters": size, "left": {}, "runs": {}}
    proof = 0.0
    for repeat in range(repeats + 1):
        for tool, prune in TOOLS.items():
            if tool in result["runs"] and repeat and tool not in result["left"]:
                continue  # it failed in the first round
            model = copy.deepcopy(dense)
            try:
                with warnings.catch_warnings(), limited(seconds):
                    warnings.simplefilter("ignore")
                    timings = prune(model, inputs, repeat == 0 and size <= PROOF_UP_TO)
            except Exception as error:  # the other tool's failure is a result too
                result["runs"][tool] = f"cannot be pruned: {type(error).__name__}: {str(error)[:120]}"
                continue
            if repeat == 0:  # the first round warms up
                result["left"][tool] = sum(p.numel() for p in model.parameters())
                result["runs"][tool] = runs(model, inputs)
                proof = timings.pop("proof", proof)
            else:
                rows[tool].append(timings)
            del model
            gc.collect()
    for tool, times in rows.items():
        result[tool] = {k: round(statistics.median(t[k] for t in times), 4) for k in times[0]} if times else {}
    result["prunus"]["proof"] = round(proof, 3) if size <= PROOF_UP_TO else None
    if all(rows.values()):
        result["ratio"] = round(result["prunus"]["total"] / result["torch_pruning"]["total"], 3)
    return result


def runs(model: nn.Module, inputs: Any) -> str:
    try:
        with torch.no_grad():
            _ = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    except Exception as error:
        return f"no: {type(error).__name__}: {str(error)[:120]}"
    return "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=[*NETWORKS, *LIBRARY_NETWORKS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=300, help="limit of CPU time for one tool and network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in options.networks:
        rows.append(compare(name, options.repeats, options.seconds))
        print(json.dumps(rows[-1]), flush=True)
        ratios = [row["ratio"] for row in rows if "ratio" in row]
        if options.json:
            result = {"torch": torch.__version__, "unit": "CPU seconds, one thread", "repeats": options.repeats}
            result |= {"median_ratio": round(statistics.median(ratios), 3)} if ratios else {}
            options.json.write_text(json.dumps({**result, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
