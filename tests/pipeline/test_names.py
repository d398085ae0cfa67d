"""Names become objects: models, weights, functions, example inputs; and what is wrong is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import prunus
from prunus.errors import InputError, MissingExtraError, PrunusError, StoredFileError
from prunus.pipeline.names import build_model, example_inputs, factory_of, imported, load_weights, weights_file


def test_zoo_factories_and_saved_folders_are_models(tmp_path, tiny_module):
    assert build_model("zoo:lenet5", {"classes": 7}).fc2.out_features == 7
    tiny = build_model("tiny_network:make", {"width": 6})
    assert tiny.conv1.out_channels == 6
    prunus.save(build_model("zoo:lenet5"), tmp_path / "saved", factory="zoo:lenet5")
    assert type(build_model(str(tmp_path / "saved"))) is type(build_model("zoo:lenet5"))


def test_a_function_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_criterion.py").write_text("def mine(weight):\n    return weight.sum(1)\n")
    monkeypatch.chdir(tmp_path)
    function = imported("my_criterion:mine", "criterion")
    assert function(torch.ones(2, 3)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet", "no such directory"),
        ("zoo:resnet", "did you mean"),
        ("tiny_network:nothing", "cannot be imported"),
        ("tiny_network:nn", "not a function"),
        ("a b:c", "known forms are zoo:NAME"),
        ("builtins:dict", r"is a dict: its factory must return a torch\.nn\.Module"),
        ("tiny_network:make", "could not be made.*wdith"),
    ],
)
def test_a_name_that_is_no_model_is_told(name, says, tiny_module):
    with pytest.raises(InputError, match=says):
        build_model(name, {"wdith": 3} if name == "tiny_network:make" else None)


@pytest.mark.parametrize("package", ["timm", "torchvision", "transformers"])
def test_a_missing_package_is_named(package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    scheme = "hf" if package == "transformers" else package
    with pytest.raises(MissingExtraError, match=f"{package}.*pip install"):
        build_model(f"{scheme}:some-model")


def test_only_safetensors_are_opened(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(StoredFileError, match="pickles"):
        weights_file(str(tmp_path / "state.pt"))


def test_weights_are_also_found_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    (tmp_path / "w.safetensors").write_bytes(b"")
    assert weights_file("w.safetensors") == tmp_path.resolve() / "w.safetensors"
    with pytest.raises(StoredFileError, match=r"neither .* nor .*missing\.safetensors"):
        weights_file("missing.safetensors")


def stored(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


def test_weights_that_do_not_fit_leave_the_model_as_it_was(tmp_path):
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = {
        "lack bias": stored(tmp_path / "a.safetensors", weight=torch.zeros(2, 3)),
        "hold unknown more": stored(
            tmp_path / "b.safetensors", weight=torch.zeros(2, 3), bias=torch.zeros(2), more=torch.zeros(1)
        ),
        r"have wrong shapes: bias \(3,\) instead of \(2,\)": stored(
            tmp_path / "c.safetensors", weight=torch.zeros(2, 3), bias=torch.zeros(3)
        ),
        "NaN or infinite values in bias": stored(
            tmp_path / "d.safetensors", weight=torch.zeros(2, 3), bias=torch.full((2,), torch.inf)
        ),
    }
    cut = tmp_path / "e.safetensors"
    cut.write_bytes(files["lack bias"].read_bytes()[:-5])
    for says, path in {**files, "no readable safetensors file": cut}.items():
        with pytest.raises(PrunusError, match=says):
            load_weights(model, path)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_counters_of_batch_norm_may_be_missing(tmp_path):
    model = nn.BatchNorm1d(2)
    state = {name: tensor + 1 for name, tensor in model.state_dict().items() if tensor.ndim}
    load_weights(model, stored(tmp_path / "bn.safetensors", **state))
    assert model.running_mean is not None
    assert model.running_mean.tolist() == [1.0, 1.0]


def test_example_inputs_come_from_data_from_a_shape_or_from_what_is_known(tmp_path):
    assert example_inputs("zoo:lenet5").shape == (2, 1, 28, 28)
    assert example_inputs("x:y", shape=(3, 8, 8)).shape == (2, 3, 8, 8)
    assert example_inputs("x:y", data="digits").shape == (2, 1, 8, 8)
    result = prunus.prune(build_model("zoo:lenet5"), torch.randn(2, 1, 28, 28), ratio=0.5)
    prunus.save(result, tmp_path / "saved")
    assert example_inputs(str(tmp_path / "saved")).shape == (2, 1, 28, 28)
    with pytest.raises(InputError, match="--input-shape"):
        example_inputs("x:y")


def test_only_factories_that_loading_can_call_are_stored(tmp_path):
    assert factory_of("zoo:lenet5", {"classes": 3}) == {"factory": "zoo:lenet5", "arguments": {"classes": 3}}
    assert factory_of("timm:resnet18", {}) == factory_of(str(tmp_path), {}) == {}


def test_a_folder_of_transformers_gives_the_class_that_its_config_names(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "saved")
    opened = build_model(f"hf:{tmp_path / 'saved'}")
    assert type(opened) is type(model)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in opened.state_dict().items())
    (tmp_path / "saved" / "model.safetensors").rename(tmp_path / "saved" / "pytorch_model.bin")
    with pytest.raises(StoredFileError, match="pickles"):
        build_model(f"hf:{tmp_path / 'saved'}")
