"""A bundle compared with its source: errors are computed anew, all else is compared bit by bit."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from small_bundles import compress

from kquant_cli.bundle import open_bundle
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress.verify_source import source_faults

SHARD = "model-00001-of-00001.safetensors"
MATRIX = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    source = tiny_models.make("llama", folder / "source", tie_word_embeddings=True)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()  # stored twice, as some do
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    compress(source, folder / "bundle", calibration="random")
    return source, folder / "bundle"


@pytest.fixture
def source(made):
    return open_checkpoint(made[0])


@pytest.fixture
def bundle(made, tmp_path):
    return Path(shutil.copytree(made[1], tmp_path / "bundle"))


def problems(bundle, checkpoint):
    return {fault.name: fault.sentence for fault in source_faults(open_bundle(bundle, verify=False), checkpoint)}


def change_manifest(bundle, change):
    manifest = json.loads((bundle / "kquant.json").read_text())
    change(manifest)
    (bundle / "kquant.json").write_text(json.dumps(manifest))


def change_tensors(bundle, change):
    tensors = load_file(bundle / SHARD)
    change(tensors)
    save_file(tensors, bundle / SHARD, metadata={"format": "pt"})
    change_manifest(bundle, lambda m: m["files"][SHARD].update(size=(bundle / SHARD).stat().st_size))


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("llama", {"encoder": "greedy"}),
        ("gpt2", {}),
        ("opt", {"encoder": "uniform", "group_size": 16}),
        ("mixtral", {}),
    ],
)
def test_what_was_made_of_a_source_is_right(arch, settings, tmp_path):
    made_of = tiny_models.make(arch, tmp_path / "source")
    told = []
    bundle = open_bundle(compress(made_of, tmp_path / "bundle", **settings))
    assert list(source_faults(bundle, open_checkpoint(made_of), lambda *step: told.append(step))) == []
    assert told[-1][1] == told[-1][2] == len(list(bundle.shapes()))


def test_shared_scales_and_tied_weights_are_right(bundle, source):
    assert source.tied
    assert problems(bundle, source) == {}


def test_an_error_that_is_recorded_wrongly(bundle, source):
    change_manifest(bundle, lambda m: m["matrices"][MATRIX].update(relative_error=0.01))
    ((name, sentence),) = problems(bundle, source).items()
    assert name == f"{MATRIX}.weight"
    assert "where kquant.json records 0.010000" in sentence


def test_codes_that_were_changed(bundle, source):
    change_tensors(bundle, lambda t: t[f"{MATRIX}.weight_codes"].bitwise_xor_(1))
    assert list(problems(bundle, source)) == [f"{MATRIX}.weight"]


def test_one_bit_of_a_dense_tensor(bundle, source):
    def change(tensors):
        tensors["model.norm.weight"].view(torch.int32)[3] ^= 1

    change_tensors(bundle, change)
    assert "is not that of source bit by bit" in problems(bundle, source)["model.norm.weight"]
    change_manifest(bundle, lambda m: m.update(tuning={"tuned": 0}))
    assert problems(bundle, source)
    change_manifest(bundle, lambda m: m.update(tuning={"tuned": 3}))  # which changes norms and biases
    assert not problems(bundle, source)


def test_tensors_and_ties_of_another_source(bundle, tmp_path):
    other = open_checkpoint(tiny_models.make("llama", tmp_path / "other", num_hidden_layers=1))
    found = problems(bundle, other)
    assert "is not in other" in found["model.layers.1.mlp.up_proj.weight"]
    assert "of other is missing" in found["lm_head.weight"]
    assert "where other has {}" in found["tied"]
