"""The moments and groups of real architectures against the plain float64 model with hooks on its modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import references
import tiny_models
import torch
import transformers

DENSE = ("opt", "opt_projected", "gpt2", "gpt_bigcode", "gpt_neox", "llama", "qwen3", "gemma", "bert", "roberta")
CLOSE = {"rtol": 2e-5, "atol": 1e-9}


@pytest.mark.parametrize("arch", [*DENSE, "bert_classifier"])
def test_moments_are_those_of_the_plain_model(arch: str, tmp_path: Path):
    folder = tiny_models.make(arch, tmp_path / arch)
    statistics = references.measure(folder)
    measured = references.by_member(statistics)
    length = 63 if arch == "roberta" else 64  # RoBERTa's positions begin after padding's
    expected = references.moments(tiny_models.load(arch, folder), measured, references.random_ids(length=length))
    assert not statistics.missing and not statistics.notes
    assert statistics.tokens == references.random_ids(length=length).numel()
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name].dtype == torch.float64
        torch.testing.assert_close(measured[name], value, **CLOSE, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_computed_in_float32(dtype: torch.dtype, tmp_path: Path):
    folder = tiny_models.make("llama", tmp_path / "llama", save_dtype=dtype)
    measured = references.by_member(references.measure(folder))
    for name, value in references.moments(tiny_models.load("llama", folder), measured, references.random_ids()).items():
        torch.testing.assert_close(measured[name], value, **CLOSE, msg=name)


@pytest.mark.parametrize(
    ("arch", "kinds"),
    [
        ("opt", ["fc1", "fc2", "k_proj q_proj v_proj", "out_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc", "c_proj"]),
        ("gpt_neox", ["dense", "query_key_value", "dense_4h_to_h", "dense_h_to_4h"]),
        ("llama", ["down_proj", "gate_proj up_proj", "k_proj q_proj v_proj", "o_proj"]),
        ("bert", ["dense", "key query value", "dense", "dense"]),
    ],
)
def test_layers_that_share_an_input_are_one_group(arch: str, kinds: list[str], tmp_path: Path):
    statistics = references.measure(tiny_models.make(arch, tmp_path / arch))
    found = [" ".join(name.rpartition(".")[2] for name in group.members) for group in statistics.groups]
    assert found == kinds * tiny_models.LAYERS


def test_a_shared_norm_before_attention_and_feed_forward_makes_one_group(tmp_path: Path):
    config = transformers.FalconConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, parallel_attn=True
    )
    transformers.FalconForCausalLM(config).save_pretrained(tmp_path)
    groups = [group.members for group in references.measure(tmp_path).groups]
    block = "transformer.h.0."
    assert (block + "mlp.dense_h_to_4h", block + "self_attention.query_key_value") in groups


def test_experts_of_a_fused_block_share_the_input_of_their_router(tmp_path: Path):
    folder = tiny_models.make("mixtral", tmp_path / "mixtral")
    statistics = references.measure(folder, include=("*.gate",))
    measured = references.by_member(statistics)
    block = "model.layers.0.block_sparse_moe."
    first = [f"{block}experts.{expert}.{w}" for expert in range(4) for w in ("w1", "w3")]
    assert (*first, block + "gate") in [group.members for group in statistics.groups]
    modules = ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts", "model.layers.0.self_attn.o_proj"]
    expected = references.moments(tiny_models.load("mixtral", folder), modules, references.random_ids())
    for layer in range(2):
        name = f"model.layers.{layer}.block_sparse_moe.experts.3.w3"
        torch.testing.assert_close(measured[name], expected[modules[layer]], **CLOSE)
    torch.testing.assert_close(measured[modules[2]], expected[modules[2]], **CLOSE)
    assert len(statistics.missing) == 8 and all(re.search(r"experts\.\d\.w2$", name) for name in statistics.missing)
    (note,) = statistics.notes
    assert "8 of 34 matrices" in note and "fuse" in note


def test_square_experts_are_left_out_for_their_input_side_is_not_certain(tmp_path: Path):
    folder = tiny_models.make("mixtral", tmp_path / "mixtral", intermediate_size=tiny_models.HIDDEN)
    statistics = references.measure(folder)
    assert len(statistics.missing) == 24 and all(".experts." in name for name in statistics.missing)
    assert len(statistics.notes) == 1 and "square" in statistics.notes[0]
    assert len(statistics.groups) == 4


def test_a_layer_that_runs_several_times_has_the_mean_of_all_its_inputs(tmp_path: Path):
    sizes = {"vocab_size": 128, "embedding_size": 16, "hidden_size": 32, "intermediate_size": 64}
    config = transformers.AlbertConfig(
        **sizes, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=64, pad_token_id=0
    )
    transformers.AlbertForMaskedLM(config).save_pretrained(tmp_path)
    measured = references.by_member(references.measure(tmp_path))
    model = transformers.AlbertForMaskedLM.from_pretrained(tmp_path)
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    assert measured.keys() >= {layer + "ffn", layer + "attention.query"}
    ids = references.random_ids(special=frozenset((0, config.bos_token_id, config.eos_token_id)))
    for name, value in references.moments(model, measured, ids).items():
        torch.testing.assert_close(measured[name], value, **CLOSE, msg=name)


def test_same_settings_give_the_same_bytes_and_another_seed_does_not(tiny_llama: Path, tmp_path: Path):
    from kquant_cli.calibration import collect
    from kquant_cli.checkpoint import open_checkpoint

    checkpoint, names = open_checkpoint(tiny_llama), ["model.layers.1.mlp.down_proj", "model.layers.0.mlp.up_proj"]
    files = []
    for number, seed in enumerate((1, 1, 2)):
        files.append(tmp_path / f"{number}.safetensors")
        collect(checkpoint, names, "random", seed=seed, device="cpu", tokens=128).save(files[-1])
    first, second, other = (file.read_bytes() for file in files)
    assert first == second != other


def test_progress_ends_with_all_that_is_watched(tiny_llama: Path):
    from kquant_cli.calibration import collect
    from kquant_cli.checkpoint import open_checkpoint

    told: list[tuple[int, int]] = []
    names = [f"model.layers.{layer}.mlp.{kind}_proj" for layer in range(2) for kind in ("up", "gate", "down")]
    collect(
        open_checkpoint(tiny_llama),
        names,
        "random",
        seed=0,
        device="cpu",
        tokens=64,
        progress=lambda *t: told.append(t),
    )
    assert told == [(done, 6) for done in range(1, 7)]
