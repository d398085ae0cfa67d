"""Pruning a checkpoint that need not fit into memory: peak memory, time, and what a SIGKILL in the middle changes.

    python benchmarks/language_scale.py [--hidden 1024 --layers 24 ...] [--max-ram 1GB] [--folder DIR]

A LLaMA-shaped checkpoint with random weights is written to disk, one shard for each block. It is pruned by streaming
three times, each in a process of its own: whole; killed with SIGKILL in the middle of a block; resumed. The resumed
result must be that of the whole run, byte for byte. With --reference the same is done once more with the whole model in
memory, and must give the same weights. Random weights say nothing about quality; what is measured is memory and time.

Results go to benchmarks/results/language_scale.json, one entry for each size.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from prunus.language import prune_blocks
from prunus.language.block import BlockOptions
from prunus.language.checkpoint import INDEX, open_checkpoint
from prunus.language.manifest import FILE
from prunus.language.shards import write_json, write_shard
from prunus.language.streaming import Machine, stream

RESULTS = Path(__file__).resolve().parent / "results" / "language_scale.json"


def main() -> int:
    given = _options()
    torch.set_num_threads(given.threads)
    if given.child:
        return _child(given)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="language_scale_"))
    try:
        row = _measure(given, folder)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows[row["name"]] = row
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(row, indent=1))
    return 0 if row["resumed_equals_whole"] and row["within_bound"] and row.get("equals_in_memory", True) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"hidden": 1024, "intermediate": 2816, "layers": 24, "heads": 16, "vocabulary": 32000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--sparsity", default="2:4")
    parser.add_argument(
        "--dtype", default="float32", help="in which blocks are computed; weights are stored in bfloat16"
    )
    parser.add_argument("--max-ram", default="1GB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="for the checkpoints; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    parser.add_argument("--reference", action="store_true", help="also prune the whole model in memory")
    parser.add_argument("--child", choices=("stream", "memory"), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------------------------------------------- the checkpoint


def make(given: argparse.Namespace, folder: Path) -> int:
    """Write the dense checkpoint, one shard at a time; returns its parameters."""
    folder.mkdir(parents=True)
    width, inner, heads = given.hidden, given.intermediate, given.heads
    groups: list[dict[str, tuple[int, ...]]] = [
        {
            "model.embed_tokens.weight": (given.vocabulary, width),
            "model.norm.weight": (width,),
            "lm_head.weight": (given.vocabulary, width),
        }
    ]
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
    shapes |= {"mlp.down_proj.weight": (width, inner)}
    shapes |= {f"{name}_layernorm.weight": (width,) for name in ("input", "post_attention")}
    groups += [
        {f"model.layers.{index}.{name}": shape for name, shape in shapes.items()} for index in range(given.layers)
    ]
    places, total = {}, 0
    generator = torch.Generator().manual_seed(0)
    for number, group in enumerate(groups):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        write_shard(folder / file, {name: _random(shape, generator) for name, shape in group.items()})
        places |= dict.fromkeys(group, file)
        total += sum(torch.Size(shape).numel() for shape in group.values())
    write_json(folder / INDEX, {"metadata": {"total_size": 2 * total}, "weight_map": places})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": given.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": given.vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    write_json(folder / "config.json", config)
    return total


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


# --------------------------------------------------------------------------------------------------------- processes


def _measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    parameters = make(given, folder / "dense")
    made = time.perf_counter() - start
    whole = _finished(_start(given, "stream", folder, "whole"))
    killed_at = _kill(_start(given, "stream", folder, "broken"), folder / "broken", given.layers // 2)
    resumed = _finished(_start(given, "stream", folder, "broken"))
    row: dict[str, Any] = {
        "name": f"{parameters / 1e9:.2f}B {given.method} {given.sparsity} {given.samples}x{given.length}",
        "parameters": parameters,
        "shards": given.layers + 1,
        "settings": {name: value for name, value in vars(given).items() if name not in ("folder", "child", "out")},
        "made_seconds": made,
        "whole": whole,
        "killed_after_blocks": killed_at,
        "resumed": resumed,
        "resumed_equals_whole": _same_bytes(folder / "whole", folder / "broken"),
        "seconds_per_billion": whole["seconds"] / (parameters / 1e9),
        "within_bound": max(whole["peak_rss"], resumed["peak_rss"]) <= whole["max_ram"],
        "cpu_count": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    if given.reference:
        row["in_memory"] = _finished(_start(given, "memory", folder, "memory"))
        row["equals_in_memory"] = _same_tensors(folder / "whole", folder / "memory")
    return row


def _start(given: argparse.Namespace, child: str, folder: Path, out: str) -> subprocess.Popen[str]:
    passed = {k: v for k, v in vars(given).items() if k not in ("child", "out", "folder", "keep", "reference")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in passed.items()]
    command = [sys.executable, __file__, *options, f"--child={child}", f"--folder={folder}", f"--out={folder / out}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the child failed with {process.returncode}")
    return json.loads(output.splitlines()[-1])


def _kill(process: subprocess.Popen[str], out: Path, blocks: int) -> int:
    """SIGKILL in the middle of the block after `blocks`; how many were finished."""
    while process.poll() is None:
        done = json.loads((out / FILE).read_text())["blocks"] if (out / FILE).exists() else []
        if len(done) >= blocks:
            time.sleep(0.5 * done[-1]["seconds"])
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return len(json.loads((out / FILE).read_text())["blocks"])
        time.sleep(0.05)
    raise SystemExit("the run that was to be killed ended by itself")


def _same_bytes(one: Path, other: Path) -> bool:
    files = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in (one, other)]
    return files[0] == files[1] and all((one / name).read_bytes() == (other / name).read_bytes() for name in files[0])


def _same_tensors(one: Path, other: Path) -> bool:
    left, right = open_checkpoint(one), open_checkpoint(other)
    return set(left.entries) == set(right.entries) and all(
        torch.equal(left.read(name), right.read(name)) for name in left.entries
    )


def _child(given: argparse.Namespace) -> int:
    _provide_operators()
    options = BlockOptions(given.method, given.sparsity if ":" in given.sparsity else float(given.sparsity))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, given.vocabulary, (given.samples, given.length), generator=generator)
    dense, out = Path(given.folder) / "dense", Path(given.out)
    if given.child == "memory":
        print(json.dumps(_in_memory(given, dense, out, tokens, options)))
        return 0
    start = time.perf_counter()
    machine = Machine(dtype=given.dtype, max_ram=given.max_ram)
    result = stream(dense, tokens, out, options, machine=machine, say=lambda text: print(text, file=sys.stderr))
    row = {
        "seconds": time.perf_counter() - start,
        "peak_rss": _peak(),
        "max_ram": _bound(given.max_ram),
        "predicted_peak": result.plan.peak,
        "predicted_seconds": result.plan.seconds,
        "predicted_disk": result.plan.disk,
        "batch": result.plan.batch,
        "blocks_found_done": result.resumed,
        "sparsity": result.zeros / result.parameters,
    }
    print(json.dumps(row))
    return 0


def _provide_operators() -> None:
    """transformers imports torchvision where it is installed, and one built for another torch lacks its operators."""
    try:
        import torchvision  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _in_memory(
    given: argparse.Namespace, dense: Path, out: Path, tokens: torch.Tensor, options: BlockOptions
) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=getattr(torch, given.dtype))
    prune_blocks(model, tokens, options, batch=min(8, given.samples))
    seconds = time.perf_counter() - start
    peak = _peak()
    model.to(dtype=torch.bfloat16).save_pretrained(out)  # pyright: ignore[reportCallIssue]
    return {"seconds": seconds, "peak_rss": peak}


def _bound(text: str) -> int:
    from prunus.language.budget import bytes_of

    return bytes_of(text) or 0


def _peak() -> int:
    """Bytes of this process's largest resident memory so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
