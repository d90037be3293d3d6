"""Every stored matrix is found in the loaded model as a view that holds it, or not at all."""

from pathlib import Path

import pytest
import tiny_models
import torch

from kquant_cli.calibration.parameters import find_places
from kquant_cli.checkpoint import open_checkpoint, select_matrices


@pytest.mark.parametrize("arch", sorted(tiny_models.ARCHITECTURES))
def test_every_matrix_has_a_place_in_its_block(arch: str, tmp_path: Path) -> None:
    folder = tiny_models.make(arch, tmp_path / arch, save_dtype=torch.bfloat16)
    checkpoint, model = open_checkpoint(folder), tiny_models.load(arch, folder).float()
    matrices = select_matrices(checkpoint).matrices
    places = find_places(model, checkpoint, matrices)
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for matrix in matrices:
        place = places[matrix.name]
        assert place is not None
        stored = checkpoint.read(matrix.tensor).float()
        assert place.view.shape == matrix.shape
        assert torch.equal(place.view, stored.T if matrix.transposed else stored)
        assert place.view.untyped_storage().data_ptr() in storages
        (block,) = place.blocks
        assert block is not None
        assert f".{block.rpartition('.')[2]}." in matrix.name


def test_tied_weights_are_used_in_all_their_places(tmp_path: Path) -> None:
    folder = tiny_models.make("llama", tmp_path / "model", tie_word_embeddings=True)
    checkpoint, model = open_checkpoint(folder), tiny_models.load("llama", folder)
    matrices = select_matrices(checkpoint, include=["model.embed_tokens.weight"]).matrices
    place = find_places(model, checkpoint, matrices)["model.embed_tokens"]
    assert place is not None
    assert place.view is model.lm_head.weight
    assert place.blocks == {None}


def test_a_matrix_that_was_changed_or_stands_twice_has_no_place(tmp_path: Path) -> None:
    folder = tiny_models.make("mixtral", tmp_path / "model")
    checkpoint, model = open_checkpoint(folder), tiny_models.load("mixtral", folder)
    experts = model.model.layers[1].mlp.experts
    with torch.no_grad():
        experts.down_proj[2, 0, 0] += 1
        experts.gate_up_proj[3] = experts.gate_up_proj[0]
        model.model.layers[0].self_attn.q_proj.weight.neg_()
    places = find_places(model, checkpoint, select_matrices(checkpoint).matrices)
    lost = {name for name, place in places.items() if place is None}
    prefix = "model.layers.1.block_sparse_moe.experts"
    assert lost == {"model.layers.0.self_attn.q_proj", f"{prefix}.2.w2"} | {
        f"{prefix}.{expert}.{name}" for expert in (0, 3) for name in ("w1", "w3")
    }
