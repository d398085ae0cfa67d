"""What can be done with a pruned model: every way to deploy, store and train it, one network of each family.

    python benchmarks/deployability.py [--networks BERT LSTM] [--backend aot_eager] [--json ...] [--page ...]

Each network is cut by half (L2 norm) and then: copied, saved and loaded onto a fresh dense model, compiled with
torch.compile, exported with torch.export, exported to ONNX and run by ONNX Runtime, wrapped in
DistributedDataParallel (gloo, one process), and trained for ten steps. Outputs must agree with the pruned model's
own to 1e-4 of the largest. What fails is tried on the dense model too: a failure that both share is not pruning's.
Results are merged into the JSON file by network; the page is generated from it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deployable import DEPLOYABLE
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import prunus
from prunus.export import to_onnx

RESULTS = Path(__file__).parent / "results" / "deployability.json"
PAGE = Path(__file__).parents[1] / "docs" / "deployability.md"
TOLERANCE = 1e-4
STEPS = 10

Check = Callable[[nn.Module, Any], None]
"""Does one thing with a model (and its example inputs); raises when it does not work."""


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def agree(expected: list[Tensor], got: list[Tensor]) -> None:
    assert len(expected) == len(got), f"{len(got)} outputs instead of {len(expected)}"
    for want, have in zip(expected, got):
        assert want.shape == have.shape, f"shape {tuple(have.shape)} instead of {tuple(want.shape)}"
        worst = float((want - have).abs().max())
        assert worst <= TOLERANCE * float(want.abs().max()) + 1e-7, f"outputs differ by {worst:.3g}"


def copies(model: nn.Module, inputs: Any) -> None:
    agree(call(model, inputs), call(copy.deepcopy(model), inputs))


def state_dict(model: nn.Module, inputs: Any) -> None:
    """The state dict of the model fits a copy of other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    agree(call(model, inputs), call(other, inputs))


def compiles(backend: str) -> Check:
    def check(model: nn.Module, inputs: Any) -> None:
        torch._dynamo.reset()
        agree(call(model, inputs), call(torch.compile(model, backend=backend), inputs))  # type: ignore[arg-type]

    return check


def exports(model: nn.Module, inputs: Any) -> None:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    program = torch.export.export(copy.deepcopy(model), args, kwargs)
    agree(call(model, inputs), call(program.module(), inputs))


def onnx(model: nn.Module, inputs: Any) -> None:
    """`to_onnx` compares the file, run by ONNX Runtime, with the model."""
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(model, Path(folder) / "model.onnx", inputs, dynamic_batch=False, tolerance=TOLERANCE)


def distributed(model: nn.Module, inputs: Any) -> None:
    """Forward and backward in DistributedDataParallel; every gradient that the plain model has arrives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model), find_unused_parameters=True)
        with torch.enable_grad():
            out = call(wrapped, inputs)
            sum(o.pow(2).mean() for o in out).backward()  # type: ignore[union-attr]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in wrapped.parameters())
        agree(call(model, inputs), [o.detach() for o in out])
    finally:
        torch.distributed.destroy_process_group()


def trains(model: nn.Module, inputs: Any) -> None:
    """Ten steps of Adam towards fixed random outputs."""
    trained = copy.deepcopy(model)
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], 1e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    with torch.enable_grad():
        targets = [torch.randn(o.shape, generator=generator) for o in call(model, inputs)]
        for _ in range(STEPS + 1):
            loss = sum(((o - t) ** 2).mean() for o, t in zip(call(trained, inputs), targets))
            assert isinstance(loss, Tensor)
            losses.append(float(loss))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[-1] < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"


def checks(backend: str) -> dict[str, Check]:
    return {
        "deepcopy": copies,
        "state_dict": state_dict,
        "torch.compile": compiles(backend),
        "torch.export": exports,
        "ONNX Runtime": onnx,
        "DDP": distributed,
        "ten steps": trains,
    }


def stored(name: str, result: Any, inputs: Any) -> str:
    """prunus.save, then prunus.load onto a fresh dense model with other weights."""

    def check(model: nn.Module, given: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            prunus.save(result, Path(folder) / "pruned")
            fresh = DEPLOYABLE[name]()[0].eval()
            agree(call(model, given), call(prunus.load(Path(folder) / "pruned", fresh).eval(), given))

    return outcome(check, result.model, inputs)


def outcome(check: Check, model: nn.Module, inputs: Any) -> str:
    """ "yes", or what went wrong."""
    try:
        with quiet(), torch.no_grad():
            check(model, inputs)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
    return "yes"


@contextlib.contextmanager
def quiet():
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield


def deployed(name: str, backend: str) -> dict[str, Any]:
    torch.manual_seed(0)
    dense, inputs = DEPLOYABLE[name]()
    dense.eval()
    start = time.process_time()
    with quiet():
        result = prunus.prune(dense, inputs, ratio=0.5)
    model = result.model.eval()
    row: dict[str, Any] = {
        "network": name,
        "parameters_left": round(result.report.after.parameters / result.report.before.parameters, 3),
        "backend": backend,
        "checks": {"save and load": stored(name, result, inputs)},
    }
    for what, check in checks(backend).items():
        found = outcome(check, model, inputs)
        if found != "yes" and (shared := outcome(check, dense, inputs)) != "yes":
            found = f"dense too: {shared}"
        row["checks"][what] = found
    row["cpu_seconds"] = round(time.process_time() - start, 1)
    return row


# -------------------------------------------------------------------------------------------------------------- page

HEAD = """# What a pruned model can do

One network of each family, cut by half and then copied, stored, compiled, exported and trained. Generated by
`python benchmarks/deployability.py`; torch {torch}. Each mark means that the outputs agreed with the pruned model's own
to {tolerance:g} of the largest (DDP: gradients arrive too; ten steps: the loss falls). Where a mark is missing the
dense network was tried as well: *dense too* says that it fails in the same place, so that pruning is not the reason.

"""


def page(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["checks"])
    lines = [
        "| " + " | ".join(["network", "parameters left", *names, "torch.compile with"]) + " |",
        "|" + " --- |" * (len(names) + 3),
    ]
    notes = []
    for row in rows:
        cells = [_cell(row["checks"][n]) for n in names]
        lines.append(
            "| " + " | ".join([row["network"], f"{row['parameters_left']:.0%}", *cells, row["backend"]]) + " |"
        )
        notes += [f"- {row['network']}, {n}: {row['checks'][n]}" for n in names if row["checks"][n] != "yes"]
    text = HEAD.format(torch=torch.__version__.partition("+")[0], tolerance=TOLERANCE) + "\n".join(lines) + "\n"
    return text + ("\n## What did not work\n\n" + "\n".join(notes) + "\n" if notes else "")


def _cell(found: str) -> str:
    return "✓" if found == "yes" else "dense too" if found.startswith("dense too") else "✗"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="*", default=list(DEPLOYABLE))
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile: aot_eager, or inductor (slow)")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    known = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    rows = {row["network"]: row for row in known}
    for name in options.networks:
        rows[name] = deployed(name, options.backend)
        print(json.dumps(rows[name]), flush=True)
        ordered = [rows[n] for n in DEPLOYABLE if n in rows]
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": ordered}, indent=2) + "\n")
        options.page.write_text(page(ordered))
    return int(
        any(found != "yes" and not found.startswith("dense") for r in rows.values() for found in r["checks"].values())
    )


if __name__ == "__main__":
    raise SystemExit(main())
