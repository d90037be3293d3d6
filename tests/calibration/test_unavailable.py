"""Models that cannot be observed are refused in one sentence that the caller can tell from other errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import references
import tiny_models
import transformers

from kquant_cli.calibration import StatisticsUnavailable
from kquant_cli.errors import KQuantError


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.make("llama", tmp_path / "llama")


def refusal(folder: Path) -> str:
    with pytest.raises(StatisticsUnavailable) as caught:
        references.measure(folder)
    assert "\n" not in str(caught.value) and folder.name in str(caught.value)
    return str(caught.value)


def test_an_unknown_architecture(folder: Path):
    change_config(folder, model_type="zebra", architectures=["ZebraForCausalLM"])
    assert "zebra" in refusal(folder)


def test_code_that_comes_with_a_checkpoint_is_never_run(folder: Path):
    change_config(folder, model_type="zebra", auto_map={"AutoConfig": "code.ZebraConfig"})
    (folder / "code.py").write_text("raise SystemExit('this must not run')")
    assert "never runs" in refusal(folder)


def test_missing_tensors_are_not_made_up(folder: Path):
    references.rename(folder, lambda name: None if "layers.1.mlp.up_proj" in name else name)
    assert "lacks" in refusal(folder) and "layers.1.mlp.up_proj.weight" in refusal(folder)


def test_shapes_that_do_not_fit(folder: Path):
    change_config(folder, intermediate_size=48)
    refusal(folder)


def test_a_value_that_transformers_cannot_use(folder: Path):
    change_config(folder, hidden_size=None)
    refusal(folder)


def test_an_encoder_with_a_decoder(tmp_path: Path):
    config = transformers.T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    assert "decoder" in refusal(tmp_path / "t5")


def test_a_model_of_pictures(tmp_path: Path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    assert "pixel_values" in refusal(tmp_path / "vit")


def test_a_model_that_fails_when_it_runs(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise IndexError("out of range\nand more")

    monkeypatch.setattr(transformers.LlamaModel, "forward", fail)
    assert "IndexError: out of range" in refusal(folder)


def test_none_of_the_matrices_is_used(folder: Path):
    from kquant_cli.calibration import collect
    from kquant_cli.checkpoint import open_checkpoint

    with pytest.raises(StatisticsUnavailable, match=r"1 of 1 matrices.*looked up"):
        collect(open_checkpoint(folder), ["model.embed_tokens"], "random", seed=0, device="cpu", tokens=64)


def test_damaged_weights_are_an_error_of_their_own(folder: Path):
    from kquant_cli.calibration import collect
    from kquant_cli.checkpoint import open_checkpoint, select_matrices

    checkpoint = open_checkpoint(folder)
    names = [matrix.name for matrix in select_matrices(checkpoint).matrices]
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(KQuantError, match="has changed since this run began") as caught:
        collect(checkpoint, names, "random", seed=0, device="cpu", tokens=64)
    assert not isinstance(caught.value, StatisticsUnavailable)


def test_transformers_says_nothing_and_keeps_its_settings(folder: Path, capfd: pytest.CaptureFixture[str]):
    from transformers.utils import logging

    logging.set_verbosity_info()
    logging.enable_progress_bar()  # `kquant eval`, run in this process before, has them off
    try:
        capfd.readouterr()
        references.measure(folder)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
