"""Names on disk find their modules whatever their prefix, and heads, tables and files of every kind are told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import references
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from kquant_cli.calibration.input_modules import find_input_modules
from kquant_cli.calibration.lazy_model import load_lazy_model
from kquant_cli.checkpoint import Matrix, open_checkpoint


@pytest.mark.parametrize(
    ("arch", "change"),
    [
        ("opt", lambda name: name.removeprefix("model.")),  # as in facebook/opt-125m
        ("gpt2", lambda name: name.removeprefix("transformer.")),  # as in openai-community/gpt2
        ("bert", lambda name: name if name.startswith("cls.") else name.removeprefix("bert.")),
        ("llama", lambda name: name if name.startswith("lm_head") else name.removeprefix("model.")),
    ],
)
def test_a_missing_prefix_changes_names_only(arch: str, change: Callable[[str], str], tmp_path: Path):
    folder = tiny_models.make(arch, tmp_path / arch)
    expected = references.by_member(references.measure(folder))
    references.rename(folder, change)
    measured = references.by_member(references.measure(folder))
    assert measured.keys() == {change(name) for name in expected} != expected.keys()
    for name, value in expected.items():
        assert torch.equal(measured[change(name)], value)


@pytest.mark.parametrize(("arch", "model"), [("bert", "BertModel"), ("llama", "LlamaModel"), ("gpt2", "GPT2Model")])
def test_models_without_a_head_and_configs_without_an_architecture(arch: str, model: str, tmp_path: Path):
    built = tiny_models.build(arch)
    base = getattr(transformers, model)(built.config)
    base.load_state_dict(built.base_model.state_dict(), strict=False)
    base.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    config.architectures = None
    config.save_pretrained(tmp_path)
    measured = references.by_member(references.measure(tmp_path))
    expected = references.moments(base, measured, references.random_ids())
    assert len(measured) == len(expected) > 0
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value, rtol=2e-5, atol=1e-9, msg=name)


def test_the_head_of_a_config_without_an_architecture_is_found(tmp_path: Path):
    folder = tiny_models.make("llama", tmp_path / "llama")
    config = transformers.AutoConfig.from_pretrained(folder)
    config.architectures = None
    config.save_pretrained(folder)
    assert "lm_head" in references.by_member(references.measure(folder, include=("lm_head",)))


@pytest.mark.parametrize(
    ("arch", "name", "module"),
    [
        ("llama", "lm_head", "lm_head"),
        ("gpt_neox", "embed_out", "lm_head"),
        ("bert", "cls.predictions.transform.dense", "cls.predictions.transform.dense"),
    ],
)
def test_an_untied_head_has_the_moments_of_all_tokens(arch: str, name: str, module: str, tmp_path: Path):
    settings = {"tie_word_embeddings": False} if arch != "bert" else {}
    folder = tiny_models.make(arch, tmp_path / arch, **settings)
    statistics = references.measure(folder, include=(name,))
    expected = references.moments(tiny_models.load(arch, folder), [module], references.random_ids())
    torch.testing.assert_close(references.by_member(statistics)[name], expected[module], rtol=2e-5, atol=1e-9)
    assert not statistics.missing


def test_a_tied_head_gives_its_input_to_the_table_that_it_is(tmp_path: Path):
    folder = tiny_models.make("gemma", tmp_path / "gemma")
    measured = references.by_member(references.measure(folder, include=("*embed_tokens",)))
    expected = references.moments(tiny_models.load("gemma", folder), ["lm_head"], references.random_ids())
    torch.testing.assert_close(measured["model.embed_tokens"], expected["lm_head"], rtol=2e-5, atol=1e-9)


def test_a_table_that_is_only_looked_up_is_missing_with_a_note(tmp_path: Path):
    folder = tiny_models.make("llama", tmp_path / "llama")
    statistics = references.measure(folder, include=("*embed_tokens",))
    assert statistics.missing == ("model.embed_tokens",)
    assert "looked up" in statistics.notes[0] and "1 of 15 matrices" in statistics.notes[0]


def test_a_head_that_classifies_the_last_token_needs_no_padding_token(tmp_path: Path):
    config = transformers.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=3)
    config.bos_token_id = config.eos_token_id = 0
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    assert "score" in references.by_member(references.measure(tmp_path, include=("score",)))


def test_a_layer_that_few_tokens_reach_is_missing(tmp_path: Path):
    folder = tiny_models.make("bert_classifier", tmp_path / "bert")
    statistics = references.measure(folder, include=("*pooler.dense",), tokens=256)  # four windows, one token of each
    assert statistics.missing == ("bert.pooler.dense",) and "fewer than 8 tokens" in statistics.notes[0]


def test_a_tensor_that_the_model_does_not_use_is_missing(tmp_path: Path):
    folder = tiny_models.make("llama", tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.extra.weight"] = torch.ones(8, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    statistics = references.measure(folder)
    assert statistics.missing == ("model.layers.0.extra",) and "does not use" in statistics.notes[0]
    assert len(references.by_member(statistics)) == 14


def test_a_matrix_taken_for_the_wrong_orientation_is_missing(tmp_path: Path):
    checkpoint = open_checkpoint(tiny_models.make("gpt2", tmp_path / "gpt2"))
    model = load_lazy_model(checkpoint, torch.device("cpu"))
    (name,) = (name for name in checkpoint.tensors if name.endswith("h.1.attn.c_proj.weight"))
    right = find_input_modules(model, [Matrix("a", name, (32, 32), True)], {})["a"]
    wrong = find_input_modules(model, [Matrix("a", name, (32, 32), False)], {})["a"]
    assert right.modules == (model.get_submodule("transformer.h.1.attn.c_proj"),)
    assert isinstance(right.modules[0], Conv1D)
    assert not wrong.modules and "other way round" in wrong.reason


def test_a_square_part_of_a_fused_parameter_is_missing(tmp_path: Path):
    folder = tiny_models.make("mixtral", tmp_path / "mixtral", intermediate_size=32)
    model = load_lazy_model(open_checkpoint(folder), torch.device("cpu"))
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    found = find_input_modules(model, [Matrix("a", name, (32, 32), False)], {})["a"]
    assert not found.modules and "only parts of a tensor, and square" in found.reason


@pytest.mark.parametrize("how", ["tied", "named twice"])
def test_all_names_and_modules_of_a_table_are_looked_at(how: str, tmp_path: Path):
    folder = tiny_models.make("llama", tmp_path / "llama", tie_word_embeddings=how == "tied")
    model = load_lazy_model(open_checkpoint(folder), torch.device("cpu"))
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if how == "named twice" else {}
    matrix = Matrix("a", "model.embed_tokens.weight", (128, 32), False)
    assert find_input_modules(model, [matrix], tied)["a"].modules == (model.lm_head,)


@pytest.mark.parametrize("how", ["shards", "bin", "odd name"])
def test_files_of_every_kind_give_the_same(how: str, tiny_llama: Path, tmp_path: Path):
    folder = tiny_models.make("llama", tmp_path / "llama", max_shard_size="20KB" if how == "shards" else "1GB")
    if how == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    if how == "odd name":
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
    measured, expected = (references.by_member(references.measure(f)) for f in (folder, tiny_llama))
    assert measured.keys() == expected.keys()
    assert all(torch.equal(measured[name], expected[name]) for name in expected)
