"""Every stored matrix is found in the loaded model as a view that holds it, or not at all."""

from pathlib import Path

import pytest
import tiny_models
import torch

from kquant_cli.calibration.parameters import find_matrices
from kquant_cli.checkpoint import open_checkpoint, select_matrices


@pytest.mark.parametrize("arch", sorted(tiny_models.ARCHITECTURES))
def test_every_matrix_has_a_place_in_its_block(arch: str, tmp_path: Path) -> None:
    folder = tiny_models.make(arch, tmp_path / arch, save_dtype=torch.bfloat16)
    checkpoint, model = open_checkpoint(folder), tiny_models.load(arch, folder).float()
    matrices = select_matrices(checkpoint).matrices
    places = find_matrices(model, checkpoint, matrices)
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
    place = find_matrices(model, checkpoint, matrices)["model.embed_tokens"]
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
    places = find_matrices(model, checkpoint, select_matrices(checkpoint).matrices)
    lost = {name for name, place in places.items() if place is None}
    prefix = "model.layers.1.block_sparse_moe.experts"
    assert lost == {"model.layers.0.self_attn.q_proj", f"{prefix}.2.w2"} | {
        f"{prefix}.{expert}.{name}" for expert in (0, 3) for name in ("w1", "w3")
    }


def test_a_part_is_looked_for_in_its_own_parameter_alone(tmp_path: Path) -> None:
    """The same numbers elsewhere in the block, which only values would take for it."""
    folder = tiny_models.make("mixtral", tmp_path / "model", intermediate_size=32)
    checkpoint, model = open_checkpoint(folder), tiny_models.load("mixtral", folder)
    name = "model.layers.1.block_sparse_moe.experts.2.w1"
    matrix = next(m for m in select_matrices(checkpoint).matrices if m.name == name)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.copy_(checkpoint.read(matrix.tensor))
    found = find_matrices(model, checkpoint, [matrix])[name]
    assert found is not None
    assert found.view.data_ptr() == model.model.layers[1].mlp.experts.gate_up_proj[2].data_ptr()


def test_a_tensor_that_the_model_lacks_is_nowhere(tmp_path: Path) -> None:
    folder = tiny_models.make("llama", tmp_path / "model")
    matrices = select_matrices(open_checkpoint(folder), include=["lm_head.weight"]).matrices
    found = find_matrices(tiny_models.load("llama", folder).model, open_checkpoint(folder), matrices)
    assert {name for name, view in found.items() if view is None} == {"lm_head"}
