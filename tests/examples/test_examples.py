"""The example scripts run by themselves, halve what they say, beat their baselines, and save what they print."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import prunus

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def _examples_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@dataclass(frozen=True)
class Example:
    """A script: the network that its quick version starts from, what it halves, and the baseline that the quick version
    beats already (None where that takes the full training)."""

    name: str
    dense: Callable[[ModuleType], nn.Module]
    halved: str
    quality: str
    higher_is_better: bool
    baseline: str | None


EXAMPLE_SCRIPTS = [
    Example("yolo_detection", lambda m: m.Detector(4), "macs", "IoU", True, None),
    Example("unet_segmentation", lambda m: m.build("unet", **m.ARCHITECTURE), "macs", "dice", True, "bright pixels"),
    Example(
        "lstm_language_model",
        lambda m: m.LanguageModel(len(set(m.texts(0, True)[0])) + 1, 24, 32),
        "parameters",
        "perplexity",
        False,
        "word frequencies",
    ),
    Example("convlstm_forecast", lambda m: m.Forecaster(8), "macs", "error", False, None),
    Example("gcn_citations", lambda m: m.GCN(64, 10), "parameters", "accuracy", True, "features alone"),
    Example("dcgan_digits", lambda m: m.generator(8), "macs", "distance", False, "independent pixels"),
]


def test_every_script_is_tested():
    scripts = {path.stem for path in EXAMPLES.glob("*.py") if not path.stem.startswith("_")}
    assert scripts == {example.name for example in EXAMPLE_SCRIPTS}


@pytest.mark.parametrize("example", EXAMPLE_SCRIPTS, ids=lambda example: example.name)
def test_quick_version_halves_beats_its_baseline_and_saves(example, tmp_path):
    module = importlib.import_module(example.name)
    rows = module.main(["--quick", "--out", str(tmp_path / "small")])
    dense, tuned = rows["dense"], rows["l2_norm: fine-tuned"]

    assert 0.3 < getattr(tuned, example.halved) / getattr(dense, example.halved) <= 0.5
    sign = 1 if example.higher_is_better else -1
    assert sign * tuned.quality[example.quality] > sign * rows["l2_norm: pruned"].quality[example.quality]
    if example.baseline:
        assert sign * tuned.quality[example.quality] > sign * rows[example.baseline].quality[example.quality]

    loaded = prunus.load(tmp_path / "small", example.dense(module))
    assert sum(p.numel() for p in loaded.parameters()) == tuned.parameters
    written = json.loads((tmp_path / "small" / "results.json").read_text(encoding="utf-8"))
    assert written["rows"] == [asdict(row) for row in rows.values()]


def test_the_loaded_model_is_as_good_as_the_saved_one(tmp_path):
    gcn: Any = importlib.import_module("gcn_citations")
    rows = gcn.main(["--quick", "--out", str(tmp_path / "small")])
    loaded = prunus.load(tmp_path / "small", gcn.GCN(64, 10))
    assert gcn.accuracy(loaded, gcn.neighbouring_digits()) == rows["l2_norm: fine-tuned"].quality["accuracy"]


@pytest.mark.slow
def test_a_script_runs_from_any_folder_without_data(tmp_path):
    environment = {**os.environ, "PRUNUS_DATA": str(tmp_path / "nothing"), "PYTHONPATH": str(EXAMPLES.parent / "src")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "gcn_citations.py"), "--seed", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "neighbouring digits is used instead" in done.stdout
    assert (tmp_path / "runs" / "gcn_citations" / "model.safetensors").is_file()


# ------------------------------------------------------------------------------------ what the scripts measure with


def test_perfect_detections_score_one_and_missing_ones_cost_their_share():
    yolo: Any = importlib.import_module("yolo_detection")
    data = yolo.scenes(12, torch.Generator().manual_seed(0))
    objects = (data.kinds >= 0).nonzero().tolist()
    perfect = [yolo.Detection(n, int(data.kinds[n, k]), 0.9, data.boxes[n, k]) for n, k in objects]
    assert yolo.quality(perfect, data) == pytest.approx({"AP": 1.0, "IoU": 1.0})
    missed = [d for d in perfect if d.kind != 0]
    share = sum(d.kind != 0 for d in perfect) / len(perfect)
    assert yolo.quality(missed, data) == pytest.approx({"AP": 2 / 3, "IoU": share})


def test_average_precision_of_a_hand_made_ranking():
    yolo: Any = importlib.import_module("yolo_detection")
    first, second, nothing = [0.0, 0, 10, 10], [20.0, 20, 40, 40], [0.0] * 4
    boxes = torch.tensor([[first, second, nothing], [first, second, nothing]])
    data = yolo.Scenes(torch.zeros(2, 3, 64, 64), torch.tensor([[0, 0, -1], [1, 2, -1]]), boxes)
    ranking = [first, first, [50.0, 50, 60, 60], second]  # found, found again, not there, found
    found = [yolo.Detection(0, 0, 0.9 - 0.1 * rank, torch.tensor(box)) for rank, box in enumerate(ranking)]
    found += [yolo.Detection(1, 1, 0.5, boxes[1, 0]), yolo.Detection(1, 2, 0.5, boxes[1, 1])]
    # Class 0: half the recall at precision 1, the other half at 2/4. The other two classes are perfect.
    assert yolo.quality(found, data) == pytest.approx({"AP": (0.75 + 1 + 1) / 3, "IoU": 1.0})


def test_intersection_over_union():
    yolo: Any = importlib.import_module("yolo_detection")
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 1, 3, 3])
    assert float(yolo.iou(a, b)) == pytest.approx(1 / 7)


def test_assigned_cells_lie_near_the_middle_of_their_object():
    yolo: Any = importlib.import_module("yolo_detection")
    data = yolo.scenes(20, torch.Generator().manual_seed(1))
    kinds, boxes = yolo.assigned(data)
    assert int((kinds >= 0).sum()) >= int((data.kinds >= 0).sum())  # every object has a cell
    found = kinds >= 0
    middles = ((boxes[..., :2] + boxes[..., 2:]) / 2)[found]
    centres = yolo.CENTRES.expand(20, -1, -1)[found]
    assert bool(((centres - middles).abs() < yolo.CELL_STRIDES.expand(20, -1, -1)[found]).all())


def test_frechet_distance_in_closed_form():
    dcgan: Any = importlib.import_module("dcgan_digits")
    features = torch.randn(500, 4)
    assert dcgan.frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert dcgan.frechet(features, features + 2) == pytest.approx(4 * 2**2, rel=1e-4)
    # Twice the spread in four directions: sum of (2s - s)² = sum of variances.
    wide = features.mean(0) + 2 * (features - features.mean(0))
    assert dcgan.frechet(features, wide) == pytest.approx(float(features.var(0).sum()), rel=1e-4)


def test_perplexity_of_a_model_that_knows_nothing_is_the_size_of_its_vocabulary():
    lstm: Any = importlib.import_module("lstm_language_model")
    model = lstm.LanguageModel(50, 8, 8)
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    numbers = {str(number): number for number in range(1, 50)}
    text = lstm.passages([str(number) for number in torch.randint(60, (400,)).tolist()], numbers)
    assert int(text.max()) < 50
    assert math.isclose(lstm.perplexity(model, text), 50, rel_tol=1e-4)
    assert text[1:, 0].tolist() == text[:-1, -1].tolist()


def test_dice_and_normalised_adjacency_by_hand():
    unet: Any = importlib.import_module("unet_segmentation")
    found, true = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, True])
    assert unet.dice(found, true) == pytest.approx(2 * 1 / (2 + 3))
    gcn: Any = importlib.import_module("gcn_citations")
    path = gcn.normalised(torch.tensor([[0.0, 1], [1, 0]]).numpy())
    torch.testing.assert_close(path, torch.full((2, 2), 0.5))


def test_forecast_error_of_a_film_that_stands_still_is_zero():
    convlstm: Any = importlib.import_module("convlstm_forecast")
    film = torch.rand(2, 1, 1, 16, 16).expand(2, convlstm.FRAMES, 1, 16, 16)
    assert float(convlstm.error(film, film)) == 0
    moved = film.clone()
    moved[:, -1] += 1  # one of the frames to forecast
    assert float(convlstm.error(moved, moved)) == pytest.approx(1 / (convlstm.FRAMES - convlstm.SEEN))
