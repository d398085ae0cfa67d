from __future__ import annotations

import dataclasses
import json

import pytest
from pydantic import BaseModel

from prunus.errors import InputError, UnknownNameError
from prunus.training import Distillation, TrainingConfig

FULL = TrainingConfig(
    epochs=12,
    optimizer="adamw",
    schedule="step",
    milestones=(3, 7.5),
    warmup=0.5,
    clip_norm=1.0,
    ema=0.99,
    patience=4,
    keep="best",
    precision="bf16",
    distillation=Distillation(weight=0.5, temperature=2.0, features=(("layer1", "stage1"),)),
)


@pytest.mark.parametrize("config", [TrainingConfig(), FULL])
def test_json_round_trip(config):
    assert TrainingConfig.from_json(config.to_json()) == config
    assert TrainingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_recipe_can_hold_a_config():
    class Recipe(BaseModel):
        finetune: TrainingConfig

    recipe = Recipe.model_validate({"finetune": {"epochs": 3, "distillation": {"temperature": 2}}})
    assert recipe.finetune == TrainingConfig(epochs=3, distillation=Distillation(temperature=2.0))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("epochs", -1, "a whole number >= 0"),
        ("epochs", 2.5, "a whole number"),
        ("batch_size", 0, "a whole number >= 1"),
        ("lr", 0.0, "(0"),
        ("lr", float("nan"), "a number"),
        ("momentum", 1.0, "0.9999"),
        ("label_smoothing", 1.0, "0.999"),
        ("clip_norm", 0, "None or a number"),
        ("ema", 1.0, "None or"),
        ("patience", 0, "None or a whole number >= 1"),
        ("optimizer", "sgdd", "did you mean 'sgd'"),
        ("precision", "float16", "known: auto, bf16, fp16, fp32"),
        ("memory_format", "nhwc", "channels_last"),
        ("keep", "first", "best, last"),
        ("schedule", "step", "milestones"),
        ("milestones", (5.0, 3.0), "ascending"),
        ("warmup", 40, "less than epochs"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_work(field, value, says):
    with pytest.raises(InputError) as error:
        TrainingConfig(**{field: value})
    assert field in str(error.value)
    assert says in str(error.value)


def test_a_wrong_choice_is_an_unknown_name():
    with pytest.raises(UnknownNameError):
        TrainingConfig(schedule="cosin")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"epoch": 3}, "epoch:"),
        ({"epochs": "many"}, "epochs:"),
        ({"distillation": {"temprature": 4}}, "distillation.temprature"),
    ],
)
def test_plain_data_with_wrong_fields_names_them_and_the_known_ones(data, says):
    with pytest.raises(InputError) as error:
        TrainingConfig.from_dict(data)
    assert says in str(error.value)
    assert "batch_size" in str(error.value)


def test_features_cannot_be_watched_in_a_compiled_model():
    with pytest.raises(InputError, match="compile"):
        TrainingConfig(compile=True, distillation=Distillation(features=(("a", "b"),)))


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingConfig().lr = 1.0  # type: ignore[misc]
