"""Dense models through transformers: what cannot be loaded is a sentence, and what is loaded is the model's own."""

import json
import os
from pathlib import Path

import pytest
import tiny_models
import torch
import transformers

from kquant_cli.errors import KQuantError
from kquant_cli.hf.loading import load_dense, to_own_memory


class Command:
    """A pickle that runs a command when it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.made),)


def test_a_pickle_that_would_run_something_is_a_sentence(tmp_path):
    folder = tiny_models.make("llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Command(tmp_path / "made")}, folder / "pytorch_model.bin")
    with pytest.raises(KQuantError) as refused:
        load_dense(folder, device="cpu")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "made").exists()


def test_a_model_in_memory_of_its_own_needs_no_file(tmp_path):
    """transformers leaves tensors in the file's pages: to use one that was cut off would end the process."""
    folder = tiny_models.make("llama", tmp_path / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    to_own_memory(model)
    (folder / "model.safetensors").write_bytes(b"")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("layers", [10_001, 1 << 63])
def test_a_config_of_layers_without_end_is_refused_before_one_is_made(tmp_path, layers):
    folder = tiny_models.make("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with pytest.raises(KQuantError, match=r"num_hidden_layers is .*, expected at most 10000"):
        load_dense(folder, device="cpu")
