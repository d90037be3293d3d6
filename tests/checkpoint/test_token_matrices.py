"""Input embedding and output head: found by name and shape, kept dense where nothing is gained."""

import json

import pytest
import torch
from safetensors.torch import save_file

from kquant_cli.checkpoint import open_checkpoint, select_matrices
from kquant_cli.checkpoint.token_matrices import LEAST_WEIGHTS

TABLE = torch.arange(LEAST_WEIGHTS, dtype=torch.float32).view(-1, 32)
BLOCK = {"model.layers.0.fc.weight": torch.ones(4, 4)}


def checkpoint_of(folder, tensors, **config):
    folder.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return open_checkpoint(folder)


def found(checkpoint, **patterns):
    matrices = select_matrices(checkpoint, of_tokens=True, **patterns).matrices
    assert {matrix.name for matrix in select_matrices(checkpoint, **patterns).matrices} == {
        matrix.name for matrix in matrices if not matrix.of_tokens
    }
    return [matrix.name for matrix in matrices if matrix.of_tokens]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("bert.embeddings.word_embeddings.weight", True),
        ("lm_head.weight", True),
        ("cls.predictions.decoder.weight", True),
        ("model.decoder.embed_positions.weight", False),
        ("transformer.wpe.weight", False),
        ("bert.embeddings.token_type_embeddings.weight", False),
        ("score.weight", False),
        ("classifier.weight", False),
        ("lm_head.dense.weight", False),
        ("medusa.0.lm_head.weight", False),
        ("lm_head.bias", False),
    ],
)
def test_names(name, wanted, tmp_path):
    assert found(checkpoint_of(tmp_path / "m", {name: TABLE, **BLOCK})) == [name.removesuffix(".weight")] * wanted


def test_a_small_one_stays_dense(tmp_path):
    assert found(checkpoint_of(tmp_path / "m", {"lm_head.weight": TABLE[1:], **BLOCK})) == []


def test_patterns_go_before(tmp_path):
    both = {"lm_head.weight": TABLE, "model.embed_tokens.weight": TABLE + 1, **BLOCK}
    checkpoint = checkpoint_of(tmp_path / "m", both, tie_word_embeddings=False)
    assert found(checkpoint) == ["lm_head", "model.embed_tokens"]
    assert found(checkpoint, exclude=["lm_head.weight"]) == ["model.embed_tokens"]
    assert found(checkpoint, include=["*embed_tokens"]) == ["lm_head"]


def test_a_tied_one_is_one_and_either_name_keeps_it_dense(tmp_path):
    both = {"lm_head.weight": TABLE, "model.embed_tokens.weight": TABLE, **BLOCK}
    checkpoint = checkpoint_of(tmp_path / "m", both, tie_word_embeddings=True)
    assert found(checkpoint) == ["model.embed_tokens"]
    assert found(checkpoint, exclude=["lm_head"]) == found(checkpoint, exclude=["*embed_tokens"]) == []


def test_of_an_encoder_with_a_decoder_they_stay_dense_and_a_note_says_so(tmp_path):
    tensors = {"shared.weight": TABLE, "lm_head.weight": TABLE + 1, **BLOCK}
    checkpoint = checkpoint_of(tmp_path / "m", tensors, is_encoder_decoder=True)
    selection = select_matrices(checkpoint, of_tokens=True)
    assert [matrix.name for matrix in selection.matrices] == ["model.layers.0.fc"]
    assert selection.notes == (
        "lm_head and shared stay dense: tables of a model with an encoder and a decoder are not encoded",
    )
