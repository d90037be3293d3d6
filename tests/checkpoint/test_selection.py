"""Which matrices the rules select, stated by hand for each architecture; the patterns of --include and --exclude."""

from pathlib import Path

import pytest
import tiny_models
import tiny_uncommon
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.checkpoint import Matrix, open_checkpoint, select_matrices
from kquant_cli.errors import KQuantError


def in_blocks(prefix: str, shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    return {f"{prefix}.{block}.{name}": shape for block in (0, 1) for name, shape in shapes.items()}


OPT = in_blocks(
    "model.decoder.layers",
    {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (32, 32),
        "self_attn.v_proj": (32, 32),
        "self_attn.out_proj": (32, 32),
        "fc1": (64, 32),
        "fc2": (32, 64),
    },
)
GPT2 = in_blocks(
    "transformer.h", {"attn.c_attn": (96, 32), "attn.c_proj": (32, 32), "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128)}
)
GROUPED_ATTENTION = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
}
LLAMA = in_blocks(
    "model.layers",
    {**GROUPED_ATTENTION, "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64)},
)
BERT = {
    "attention.self.query": (32, 32),
    "attention.self.key": (32, 32),
    "attention.self.value": (32, 32),
    "attention.output.dense": (32, 32),
    "intermediate.dense": (64, 32),
    "output.dense": (32, 64),
}
EXPERTS = {
    f"block_sparse_moe.experts.{expert}.{name}": shape
    for expert in range(4)
    for name, shape in {"w1": (64, 32), "w2": (32, 64), "w3": (64, 32)}.items()
}
EXPECTED = {
    "opt": OPT,
    "opt_projected": OPT,
    "gpt2": GPT2,
    "gpt_bigcode": {**GPT2, "transformer.h.0.attn.c_attn": (48, 32), "transformer.h.1.attn.c_attn": (48, 32)},
    "gpt_neox": in_blocks(
        "gpt_neox.layers",
        {
            "attention.query_key_value": (96, 32),
            "attention.dense": (32, 32),
            "mlp.dense_h_to_4h": (64, 32),
            "mlp.dense_4h_to_h": (32, 64),
        },
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma": LLAMA,
    "mixtral": in_blocks("model.layers", {**GROUPED_ATTENTION, **EXPERTS}),
    "bert": in_blocks("bert.encoder.layer", BERT),
    "bert_classifier": in_blocks("bert.encoder.layer", BERT),
    "roberta": in_blocks("roberta.encoder.layer", BERT),
    "roberta_classifier": in_blocks("roberta.encoder.layer", BERT),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {arch: tiny_models.make(arch, root / arch) for arch in tiny_models.ARCHITECTURES}


@pytest.fixture
def llama(folders):
    return open_checkpoint(folders["llama"])


def names(selection) -> list[str]:
    return [matrix.name for matrix in selection.matrices]


def folder_of(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    save_file(tensors, path / "model.safetensors")
    return path


def test_every_architecture_has_its_expectation():
    assert EXPECTED.keys() == tiny_models.ARCHITECTURES.keys()


@pytest.mark.parametrize("arch", EXPECTED)
def test_the_blocks_matrices_and_nothing_else(folders, arch):
    selection = select_matrices(open_checkpoint(folders[arch]))
    assert {matrix.name: matrix.shape for matrix in selection.matrices} == EXPECTED[arch]
    assert len(selection.matrices) == len(EXPECTED[arch])
    assert all(matrix.tensor == f"{matrix.name}.weight" for matrix in selection.matrices)
    assert {matrix.transposed for matrix in selection.matrices} == {arch == "gpt2"}
    assert selection.notes == ()


@pytest.mark.parametrize("arch", EXPECTED)
def test_shapes_are_those_that_multiply_the_modules_input(folders, arch):
    """Where the model has a Linear or Conv1D of a selected name, its sizes are (out_features, in_features)."""
    model = tiny_models.build(arch)
    modules = dict(model.named_modules())
    checked = 0
    for matrix in select_matrices(open_checkpoint(folders[arch])).matrices:
        module = modules.get(matrix.name)
        if isinstance(module, torch.nn.Linear):
            assert matrix.shape == (module.out_features, module.in_features)
        elif module is not None:
            assert type(module).__name__ == "Conv1D"
            assert matrix.shape == (module.nf, module.nx)
        checked += module is not None
    assert checked == len(EXPECTED[arch]) - (len(EXPERTS) * 2 if arch == "mixtral" else 0)


def test_matrices_come_in_natural_order(tmp_path):
    blocks = {f"layers.{block}.fc.weight": torch.ones(2, 2) for block in range(12)}
    assert names(select_matrices(open_checkpoint(folder_of(tmp_path / "m", blocks)))) == [
        f"layers.{block}.fc" for block in range(12)
    ]


def test_what_stays_dense_inside_numbered_blocks(tmp_path):
    dense = {
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": torch.ones(4, 4),
        "model.layers.0.mlp.gate.weight": torch.ones(4, 4),
        "model.layers.0.mlp.gate.wg.weight": torch.ones(4, 4),
        "model.layers.0.mlp.shared_expert_gate.weight": torch.ones(1, 4),
        "model.layers.0.ffn.router.layer.weight": torch.ones(4, 4),
        "model.layers.0.embed_positions.weight": torch.ones(4, 4),
        "model.layers.0.norm.weight": torch.ones(4),
        "model.layers.0.conv.weight": torch.ones(4, 1, 4),
        "model.layers.0.table.weight": torch.ones(4, 4, dtype=torch.int32),
        "model.layers.0.nothing.weight": torch.ones(0, 4),
        "model.layers.0.A_log": torch.ones(4, 4),
        "classifier.0.weight": torch.ones(4, 4),
        "score.2.weight": torch.ones(4, 4),
        "lm_head.0.weight": torch.ones(4, 4),
        "model.embed_tokens.weight": torch.ones(4, 4),
        "pooler.dense.weight": torch.ones(4, 4),
    }
    encoded = {
        "model.layers.0.mlp.gate_proj.weight": torch.ones(4, 3),
        "model.layers.0.mlp.shared_expert.gate_proj.weight": torch.ones(4, 3),
    }
    selection = select_matrices(open_checkpoint(folder_of(tmp_path / "m", {**dense, **encoded})))
    assert {matrix.tensor for matrix in selection.matrices} == encoded.keys()


def test_gpt2_names_without_a_prefix_and_a_linear_stack_beside_it(tmp_path):
    """The original GPT-2 file starts at `h.0`; c_proj of another stack in the same checkpoint is left as it is."""
    tensors = {
        "h.0.attn.c_attn.weight": torch.ones(4, 12),
        "h.0.attn.c_attn.bias": torch.ones(12),
        "h.0.attn.c_proj.weight": torch.ones(4, 4),
        "h.0.mlp.c_fc.weight": torch.ones(4, 16),
        "h.0.other.weight": torch.ones(5, 4),
        "vision.blocks.0.mlp.c_fc.weight": torch.ones(16, 4),
    }
    selection = select_matrices(open_checkpoint(folder_of(tmp_path / "m", tensors)))
    assert set(selection.matrices) == {
        Matrix("h.0.attn.c_attn", "h.0.attn.c_attn.weight", (12, 4), True),
        Matrix("h.0.attn.c_proj", "h.0.attn.c_proj.weight", (4, 4), True),
        Matrix("h.0.mlp.c_fc", "h.0.mlp.c_fc.weight", (16, 4), True),
        Matrix("h.0.other", "h.0.other.weight", (5, 4), False),
        Matrix("vision.blocks.0.mlp.c_fc", "vision.blocks.0.mlp.c_fc.weight", (16, 4), False),
    }


def test_a_square_attention_matrix_is_no_sign_of_conv1d(tmp_path):
    """Its bias fits both sizes; GPT-2's own is never square."""
    tensors = {
        "h.0.attn.c_attn.weight": torch.ones(4, 4),
        "h.0.attn.c_attn.bias": torch.ones(4),
        "h.0.mlp.c_fc.weight": torch.ones(16, 4),
    }
    selection = select_matrices(open_checkpoint(folder_of(tmp_path / "m", tensors)))
    assert {(matrix.shape, matrix.transposed) for matrix in selection.matrices} == {((4, 4), False), ((16, 4), False)}


def test_stacked_experts_stay_dense_and_the_note_states_their_share(tmp_path):
    tensors = {
        "model.layers.0.self_attn.q_proj.weight": torch.ones(10, 10),
        "model.layers.0.mlp.experts.gate_up_proj": torch.ones(4, 10, 10),
        "model.layers.0.mlp.experts.gate_up_proj_bias": torch.ones(4, 10),
        "model.layers.0.mlp.experts.down_proj": torch.ones(4, 10, 5),
        "model.layers.0.ids": torch.ones(1000, dtype=torch.int64),
    }
    selection = select_matrices(open_checkpoint(folder_of(tmp_path / "m", tensors)))
    assert names(selection) == ["model.layers.0.self_attn.q_proj"]
    (note,) = selection.notes
    assert note.startswith("81.1% of the model's parameters stay dense: 2 tensors hold several experts")  # 600 / 740
    assert "model.layers.0.mlp.experts.down_proj [4, 10, 5]" in note


def test_include_adds_and_exclude_wins(llama):
    everything = names(select_matrices(llama))
    with_head = names(select_matrices(llama, include=["lm_head"]))
    assert set(with_head) == {*everything, "lm_head"}
    assert names(select_matrices(llama, include=["lm_head.weight"])) == with_head
    assert names(select_matrices(llama, include=["lm_*"], exclude=["lm_head"])) == everything
    assert names(select_matrices(llama, include=["*q_proj"])) == everything
    fewer = names(select_matrices(llama, exclude=["model.layers.0.*", "*.mlp.*"]))
    assert fewer == [f"model.layers.1.self_attn.{name}_proj" for name in "koqv"]


def test_a_router_can_be_asked_for(folders):
    selection = select_matrices(open_checkpoint(folders["mixtral"]), include=["*.1.block_sparse_moe.gate"])
    extra = set(names(selection)) - EXPECTED["mixtral"].keys()
    assert extra == {"model.layers.1.block_sparse_moe.gate"}


def test_a_tied_embedding_is_included_under_its_kept_name(tmp_path):
    folder = tiny_models.make("llama", tmp_path / "llama", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert dict(checkpoint.tied) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "model.embed_tokens" in names(select_matrices(checkpoint, include=["*embed_tokens"]))
    with pytest.raises(KQuantError, match=r"'lm_head.weight' .* is tied to 'model.embed_tokens.weight'"):
        select_matrices(checkpoint, include=["lm_head"])
    assert set(names(select_matrices(checkpoint, exclude=["lm_head"]))) == LLAMA.keys()


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["lm_haed"], [], "include pattern 'lm_haed' matches no tensor; the nearest names are lm_head"),
        (["q_proj"], [], r"include pattern 'q_proj' matches no tensor; did you mean '\*q_proj\*'"),
        (
            ["*norm*"],
            [],
            r"include pattern '\*norm\*' matches no matrix: '\S+norm.weight' has shape \[32\] and type float32",
        ),
        ([], ["*.q_porj"], r"exclude pattern '\*.q_porj' matches no tensor; the nearest names are .*q_proj"),
        ([], ["*"], r"llama has no matrix to encode: the exclude patterns leave none"),
    ],
)
def test_patterns_that_do_nothing_are_refused(llama, include, exclude, message):
    with pytest.raises(KQuantError, match=message):
        select_matrices(llama, include, exclude)


def test_no_matrix_at_all_is_refused(tmp_path):
    checkpoint = open_checkpoint(folder_of(tmp_path / "m", {"fc.weight": torch.ones(2, 2)}))
    with pytest.raises(KQuantError, match=r"m has no matrix to encode: no 2-D .* --include"):
        select_matrices(checkpoint)
    assert names(select_matrices(checkpoint, include=["fc"])) == ["fc"]


def test_norms_of_two_dimensions_and_heads_with_numbers_stay_dense(tmp_path):
    kept = [
        *("layers.0.attn.q_norm", "layers.0.attn.k_norm", "layers.0.layernorm_before", "layers.0.ln_1", "h.0.norms.1"),
        *("lm_heads.0", "decoder.lm_heads.1", "class_head.0", "classifiers.2", "layers.0.shared_head.head"),
    ]
    encoded = ["layers.0.attn.q_head", "layers.0.normal_proj", "layers.0.head_proj", "heads.0.attn.out_proj"]
    tensors = {f"{name}.weight": torch.zeros(8, 16) for name in [*kept, *encoded]}
    checkpoint = open_checkpoint(folder_of(tmp_path / "m", tensors))
    selection = select_matrices(checkpoint)
    assert set(names(selection)) == set(encoded)
    assert selection.notes == ("class_head.0 and 4 more stay dense, as output heads do (--include encodes them)",)
    more = select_matrices(checkpoint, include=["*lm_heads.*", "*.q_norm"])
    assert set(names(more)) == {*encoded, "lm_heads.0", "decoder.lm_heads.1", "layers.0.attn.q_norm"}


@pytest.mark.parametrize(
    ("arch", "ending", "note"),
    [
        ("cohere", "_norm", ()),
        ("musicgen", "lm_heads", ("lm_heads.0 and 3 more stay dense, as output heads do (--include encodes them)",)),
    ],
)
def test_of_models_that_have_such(tmp_path, arch, ending, note):
    checkpoint = open_checkpoint(tiny_uncommon.make(arch, tmp_path / arch))
    assert [name for name, info in checkpoint.tensors.items() if ending in name and len(info.shape) == 2]
    selection = select_matrices(checkpoint)
    assert not [name for name in names(selection) if ending in name]
    assert selection.notes == note
