"""Runs with `head_bits`: what becomes of embedding and head, in the plan, the bundle and what is said of it."""

import json

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from small_bundles import compress

from kquant_cli.bundle import open_bundle
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
from kquant_cli.errors import KQuantError
from kquant_cli.report import summarise

VOCABULARY = 2100
QUICK = ("--effort", "fast", "--calibration", "none")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "llama"
    return tiny_models.make("llama", folder, vocab_size=VOCABULARY, tie_word_embeddings=True)


def settings_of(source, **settings):
    """Encoder, bits or levels of the embedding; nothing where it is not encoded."""
    plan = make_plan(open_checkpoint(source), CompressConfig(**settings))
    found = [job for job in plan.jobs if job.matrix.name == "model.embed_tokens"]
    return [(job.config.encoder, job.config.level_count, job.matrix.of_tokens) for job in found]


def test_settings_of_the_embedding(source):
    assert settings_of(source) == [("uniform", 256, True)]
    assert settings_of(source, encoder="greedy", bits=2) == [("uniform", 256, True)]
    assert settings_of(source, head_bits=5, encoder="kmeans") == [("annealed", 32, True)]
    assert settings_of(source, head_bits=16) == []
    assert settings_of(source, exclude=["*embed_tokens"]) == []
    assert settings_of(source, include=["*embed_tokens"]) == [("annealed", 16, False)]
    assert settings_of(source, layers=[{"match": "*embed_tokens", "bits": 3}]) == [("annealed", 8, False)]


def test_what_would_not_get_smaller_stays_dense(tmp_path):
    """One column in float16: a code and a scale take three bytes of two."""
    folder = tiny_models.make("llama", tmp_path / "llama", vocab_size=70000, save_dtype=torch.float16)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :1].contiguous()
    save_file(tensors, folder / "model.safetensors")
    plan = make_plan(open_checkpoint(folder), CompressConfig())
    assert [job.matrix.name for job in plan.jobs if job.matrix.of_tokens] == ["model.embed_tokens"]


def test_the_bundle_says_true_bits(source, tmp_path):
    bundle = open_bundle(compress(source, tmp_path / "b", bits=3))
    summary = summarise(bundle)
    layers = {layer["name"]: layer for layer in summary["layers"]}
    stored = sum(info.nbytes for name, info in bundle.infos.items() if name.startswith("model.embed_tokens."))
    embedding = layers["model.embed_tokens"]
    assert embedding["bits_per_weight"] == 8 * stored / (VOCABULARY * tiny_models.HIDDEN)
    assert (embedding["encoder"], embedding["levels"]) == ("uniform", 256)
    assert summary["encoded_bytes"] == sum(info.nbytes for name, info in bundle.infos.items() if ".weight_" in name)
    weight = open_checkpoint(source).read("model.embed_tokens.weight")
    error = (bundle.weight("model.embed_tokens") - weight).norm() / weight.norm()
    assert embedding["relative_error"] == pytest.approx(float(error), rel=1e-3)
    assert error < 0.01


def test_it_is_outside_an_average_and_needs_no_inputs(source, tmp_path):
    bundle = open_bundle(compress(source, tmp_path / "b", bits=3.25, calibration="random", effort="fast"))
    allocation, statistics = bundle.manifest["allocation"], bundle.manifest["statistics"]
    assert len(allocation["matrices"]) == 14
    assert "model.embed_tokens" not in allocation["matrices"]
    assert allocation["reached_bits"] <= 3.25
    assert all("model.embed_tokens" not in group["members"] for group in statistics["groups"])
    assert bundle.layouts["model.embed_tokens"].levels == 256


def test_the_command_line(source, tmp_path, kquant):
    outcome = kquant("compress", source, "-o", tmp_path / "b", *QUICK, "--head-bits", 6, "--json", tmp_path / "b.json")
    assert outcome.code == 0, outcome.err
    layers = json.loads((tmp_path / "b.json").read_text())["layers"]
    assert {layer["name"]: layer["levels"] for layer in layers}["model.embed_tokens"] == 64
    assert "embed_tokens" in kquant("inspect", tmp_path / "b").out
    planned = kquant("compress", source, "-o", tmp_path / "c", *QUICK, "--dry-run", "--json", tmp_path / "c.json")
    assert "uniform" in planned.out
    values = json.loads((tmp_path / "c.json").read_text())
    assert kquant("compress", source, "-o", tmp_path / "c", *QUICK).code == 0
    assert sum(info.nbytes for info in open_bundle(tmp_path / "c").infos.values()) == values["estimated_bytes"]


@pytest.mark.parametrize("bits", ["1", "9", "3.5"])
def test_other_bits_are_one_sentence(bits, source, kquant):
    outcome = kquant("compress", source, "--head-bits", bits)
    assert outcome.code == 2
    assert f"`head_bits` is {bits}, expected whole bits from 2 to 8, or 16 for dense" in outcome.err


def test_a_model_without_either_is_one_sentence(tmp_path):
    (tmp_path / "m").mkdir()
    save_file({"layers.0.fc.weight": torch.ones(4, 4)}, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "m")
    with pytest.raises(KQuantError, match=r"^`head_bits` is 6, and \S+m has no input embedding or output head"):
        make_plan(checkpoint, CompressConfig(head_bits=6))
    assert len(make_plan(checkpoint, CompressConfig()).jobs) == 1
