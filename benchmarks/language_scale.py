"""Pruning a checkpoint that need not fit into memory: peak memory, time, and what a SIGKILL in the middle changes.

    python benchmarks/language_scale.py [--hidden 3072 --layers 24 ...] [--max-ram 6GB] [--folder DIR]

A LLaMA-shaped checkpoint with random weights is written to disk, one shard for each block. Then, each as a job of its
own: Wanda 2:4 on a few tokens; a quarter of the feed-forward width; a quarter of the blocks, by name. A job runs three
times, each in a process of its own: whole; killed with SIGKILL in the middle; resumed. The resumed result must be that
of the whole run, shard by shard. With --reference Wanda runs once more with the whole model in memory, and must give
the same weights. Random weights say nothing about quality; what is measured is memory and time.

Results go to benchmarks/results/language_scale.json, one entry for each size and job; a job that is there is not run
again.
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

from prunus.language import BlockOptions, Machine, Structure, cut_checkpoint, open_checkpoint, prune_blocks, stream
from prunus.language.budget import bytes_of
from prunus.language.checkpoint import INDEX
from prunus.language.manifest import FILE
from prunus.language.shards import write_json, write_shard
from prunus.surgery.files import sha256

RESULTS = Path(__file__).resolve().parent / "results" / "language_scale.json"
JOBS = ("wanda", "width", "depth")
CLAIMS = ("resumed_equals_whole", "within_bound", "equals_in_memory")


def main() -> int:
    given = _options()
    torch.set_num_threads(given.threads)
    if given.child:
        return _child(given)
    folder = Path(given.folder or tempfile.mkdtemp(prefix="language_scale_"))
    rows = json.loads(given.output.read_text()) if given.output.exists() else {}
    right = True
    try:
        for job in given.jobs:
            name = f"{job} {given.layers}x{given.hidden} {given.samples}x{given.length}"
            if name not in rows:
                rows[name] = _measure(given, folder, job)
                given.output.write_text(json.dumps(rows, indent=1) + "\n")
            print(name, json.dumps(rows[name]), flush=True)
            right &= all(
                rows[name].get(key, True) for key in ("resumed_equals_whole", "within_bound", "equals_in_memory")
            )
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if right else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"hidden": 3072, "intermediate": 8192, "layers": 26, "heads": 24, "vocabulary": 32000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument(
        "--dtype", default="float32", help="in which blocks are computed; weights are stored in bfloat16"
    )
    parser.add_argument("--max-ram", default="6GB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--folder", help="for the checkpoints; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the dense checkpoint there")
    parser.add_argument("--reference", action="store_true", help="also prune the whole model in memory")
    parser.add_argument("--child", choices=(*JOBS, "memory"), help=argparse.SUPPRESS)
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


def _measure(given: argparse.Namespace, folder: Path, job: str) -> dict[str, Any]:
    if not (folder / "dense" / "config.json").exists():
        shutil.rmtree(folder / "dense", ignore_errors=True)
        make(given, folder / "dense")
    parameters = sum(entry.numel for entry in open_checkpoint(folder / "dense").entries.values())
    whole = _finished(_start(given, job, folder, "whole"))
    row: dict[str, Any] = {
        "job": job,
        "parameters": parameters,
        "shards": given.layers + 1,
        "tokens": f"{given.samples} x {given.length}" if job == "wanda" else "none",
        "settings": {
            name: value
            for name, value in vars(given).items()
            if name not in ("folder", "child", "out", "output", "jobs", "keep")
        },
        "whole": whole,
        "seconds_per_billion": whole["seconds"] / (parameters / 1e9),
        "cpu_seconds_per_billion": whole["cpu_seconds"] / (parameters / 1e9),
    }
    if given.reference and job == "wanda":
        row["in_memory"] = _finished(_start(given, "memory", folder, "memory"))
        row["equals_in_memory"] = _same_tensors(folder / "whole", folder / "memory")
        shutil.rmtree(folder / "memory")
    row["killed_after_blocks"] = _kill(_start(given, job, folder, "broken"), folder / "broken", given.layers // 3)
    row["resumed"] = _finished(_start(given, job, folder, "broken"))
    row["resumed_equals_whole"] = _hashes(folder / "whole") == _hashes(folder / "broken")
    row["within_bound"] = max(whole["peak_rss"], row["resumed"]["peak_rss"]) <= (bytes_of(given.max_ram) or 0)
    row["load"] = round(os.getloadavg()[0], 1)
    for name in ("whole", "broken"):
        shutil.rmtree(folder / name)
    return row


def _start(given: argparse.Namespace, child: str, folder: Path, out: str) -> subprocess.Popen[str]:
    left_out = ("child", "out", "folder", "keep", "reference", "output", "jobs")
    passed = {k: v for k, v in vars(given).items() if k not in left_out}
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


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))}


def _same_tensors(one: Path, other: Path) -> bool:
    left, right = open_checkpoint(one), open_checkpoint(other)
    return set(left.entries) == set(right.entries) and all(
        torch.equal(left.read(name), right.read(name)) for name in left.entries
    )


def _child(given: argparse.Namespace) -> int:
    _provide_operators()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, given.vocabulary, (given.samples, given.length), generator=generator)
    dense, out = Path(given.folder) / "dense", Path(given.out)
    imported = _peak()
    start, cpu = time.perf_counter(), time.process_time()
    if given.child == "memory":
        row = _in_memory(given, dense, out, tokens)
    else:
        row = _on_disk(given, dense, out, tokens)
    row = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - start, **row}
    print(json.dumps({**row, "rss_of_imports": imported, "peak_rss": row.get("peak_rss", _peak())}))
    return 0


def _on_disk(given: argparse.Namespace, dense: Path, out: Path, tokens: torch.Tensor) -> dict[str, Any]:
    machine = Machine(dtype=given.dtype, max_ram=given.max_ram)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if given.child == "wanda":
        result = stream(dense, tokens, out, BlockOptions("wanda", "2:4"), machine=machine, say=say)
        found: dict[str, Any] = {"sparsity": result.zeros / result.parameters}
    else:
        names = [f"model.layers.{index}" for index in range(2, given.layers, 4)]
        structure = Structure(ratio=0.25) if given.child == "width" else Structure(depth=names)
        result = cut_checkpoint(dense, out, structure, machine=machine, say=say)
        found = {"parameters": result.after}
    plan = result.plan
    return {
        **found,
        "predicted_peak": plan.peak,
        "predicted_seconds": plan.seconds,
        "predicted_disk": plan.disk,
        "batch": plan.batch,
        "found_done": result.resumed,
    }


def _provide_operators() -> None:
    """transformers imports torchvision where it is installed, and one built for another torch lacks its operators."""
    try:
        import torchvision  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _in_memory(given: argparse.Namespace, dense: Path, out: Path, tokens: torch.Tensor) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    start, cpu = time.perf_counter(), time.process_time()
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=getattr(torch, given.dtype))
    prune_blocks(model, tokens, BlockOptions("wanda", "2:4"), batch=min(8, given.samples))
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, "peak_rss": _peak()}
    model.to(dtype=torch.bfloat16).save_pretrained(out)  # pyright: ignore[reportCallIssue]
    return spent


def _peak() -> int:
    """Bytes of this process's largest resident memory so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
