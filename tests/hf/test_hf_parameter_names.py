"""Names on disk become the parameters that transformers really fills from them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.hf.parameter_names import LoadedParameter, parameter_lookup


def on_meta(arch: str) -> torch.nn.Module:
    with torch.device("meta"):
        return type(tiny_models.build(arch))(tiny_models.build(arch).config)


@pytest.mark.parametrize("arch", sorted(tiny_models.ARCHITECTURES))
def test_every_tensor_is_the_parameter_that_it_is_loaded_into(arch: str, tmp_path: Path) -> None:
    folder = tiny_models.make(arch, tmp_path / arch)
    find, state = parameter_lookup(on_meta(arch)), tiny_models.load(arch, folder).state_dict()
    found = {}
    for name, stored in load_file(folder / "model.safetensors").items():
        found[name] = loaded = find(name)
        assert loaded is not None, name
        assert loaded.whole == (".experts." not in name)
        if loaded.whole:
            assert torch.equal(state[loaded.name], stored)
    if arch == "mixtral":
        experts = {name: loaded.name for name, loaded in found.items() if loaded is not None and not loaded.whole}
        assert len(experts) == 2 * 4 * 3
        for name, target in experts.items():
            block = name.split(".")[2]
            kind = "down_proj" if name.endswith("w2.weight") else "gate_up_proj"
            assert target == f"model.layers.{block}.mlp.experts.{kind}"


@pytest.mark.parametrize(
    ("arch", "change"),
    [
        ("opt", lambda name: name.removeprefix("model.")),  # as in facebook/opt-125m
        ("gpt2", lambda name: name.removeprefix("transformer.")),  # as in openai-community/gpt2
        ("bert", lambda name: name if name.startswith("cls.") else name.removeprefix("bert.")),
        ("llama", lambda name: name if name.startswith("lm_head") else f"{name}"),
    ],
)
def test_a_missing_prefix_is_added(arch: str, change: Callable[[str], str], tmp_path: Path) -> None:
    folder = tiny_models.make(arch, tmp_path / arch)
    tensors = load_file(folder / "model.safetensors")
    save_file({change(n): t for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    find, state = parameter_lookup(on_meta(arch)), tiny_models.load(arch, folder).state_dict()
    for name, stored in tensors.items():
        loaded = find(change(name))
        assert loaded is not None and loaded.whole
        assert torch.equal(state[loaded.name], stored)


def test_what_the_model_has_not_is_none() -> None:
    find = parameter_lookup(on_meta("llama"))
    assert find("model.layers.0.extra.weight") is None
    assert find("model.layers.2.mlp.up_proj.weight") is None
    assert find("model.norm.weight") == LoadedParameter("model.norm.weight", whole=True)
