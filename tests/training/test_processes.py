from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunus.errors import InputError
from prunus.training.processes import Processes

CPU = torch.device("cpu")

SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
import json, os
import torch
torch.set_num_threads(1)
from torch import nn
from small import blobs
from prunus.training import Distillation, TrainingConfig, fit
from safetensors.torch import save_file

class Killed(Exception):
    pass

def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))

def stop(info):
    if info.step == int(sys.argv[4]):
        raise Killed

config = TrainingConfig(epochs=3, batch_size=15, precision="fp32", memory_format="contiguous", ema=0.9,
                        checkpoint_every=2, clip_norm=1.0, device="cpu", distillation=Distillation())
def go():
    return fit(network(0), blobs(94), config, validation=blobs(61, seed=1), teacher=network(1), progress=False,
               checkpoint=sys.argv[3], on_step=stop, penalty=lambda m: 0.01 * m[0].weight.square().sum())
try:
    result = go()
except Killed:
    sys.argv[4] = "-1"
    result = go()
if int(os.environ.get("RANK", 0)) == 0:
    save_file({n: v.contiguous() for n, v in result.model.state_dict().items()}, sys.argv[3] + ".safetensors")
    with open(sys.argv[3] + ".json", "w") as file:
        json.dump(result.to_dict(), file)
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train(folder: Path, processes: int, stop_at: int = -1) -> tuple[dict[str, torch.Tensor], dict]:
    import json

    here = Path(__file__).resolve().parent
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    arguments = [str(here.parent.parent / "src"), str(here), str(folder), str(stop_at)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(f"{folder}.safetensors"), json.loads(Path(f"{folder}.json").read_text())


@pytest.mark.slow
def test_two_processes_train_like_one_on_the_same_batches(tmp_path):
    alone, alone_told = train(tmp_path / "alone", 1)
    both, both_told = train(tmp_path / "both", 2)
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-5)
    for one, two in zip(alone_told["history"], both_told["history"], strict=True):
        for key in ("loss", "accuracy", "validation_loss", "validation_accuracy"):
            assert two[key] == pytest.approx(one[key], rel=1e-4), key
    resumed, resumed_told = train(tmp_path / "resumed", 2, stop_at=9)
    assert all(torch.equal(resumed[name], value) for name, value in both.items())
    assert [r["loss"] for r in resumed_told["history"]] == [r["loss"] for r in both_told["history"]]


def test_alone_nothing_is_shared_or_waited_for():
    alone = Processes.start("cpu")
    batch = torch.randn(5, 2)
    model = torch.nn.Linear(2, 2)
    assert (alone.device, alone.rank, alone.count, alone.leads) == (CPU, 0, 1, True)
    assert alone.share(batch) is batch
    assert alone.wrap(model) is model
    assert alone.gather("x") == ["x"]
    assert alone.agree(3) == 3


def test_every_sample_belongs_to_one_process():
    batch = torch.arange(11)
    parts = [Processes(CPU, rank, 3).share(batch) for rank in range(3)]
    assert sorted(torch.cat(parts).tolist()) == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match=f"device='{device}' cannot be used here"):
        Processes.start(device)
