"""Models whose input embedding and output head run from codes: rows looked up, and a head with the same parameters."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from small_bundles import bundle_of, compress, logits, relative, twin_of
from torch import nn

from kquant_cli.bundle import open_bundle
from kquant_cli.bundle.decompress import write_dense
from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.errors import KQuantError
from kquant_cli.runtime import KashinEmbedding, KashinLinear, load, load_model
from kquant_cli.runtime.cannot_run import CannotRunFromCodesError
from kquant_cli.speed.floor import bytes_per_token

WORDS = {"vocab_size": 2100}  # times 32: as many weights as are worth encoding
TIED = {**WORDS, "tie_word_embeddings": True}
ROUNDED = 1e-4
ENDS = {  # architecture: what its config is told, and whether the head has the embedding's parameters
    "llama": (WORDS, False),
    "opt": (WORDS, True),
    "gpt2": (WORDS, True),
    "gpt_neox": ({**WORDS, "tie_word_embeddings": False}, False),
    "gemma": (WORDS, True),
    "bert": (WORDS, True),
    "roberta": (WORDS, True),
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose head is tied; tests must not change it."""
    return bundle_of("llama", tmp_path_factory.mktemp("tied"), TIED)


def from_codes(bundle: Path, arch: str, dtype: str = "float32") -> Any:
    auto_class = tiny_models.ARCHITECTURES[arch].auto_class
    loaded = load_model(bundle, auto_class=auto_class, device="cpu", dtype=dtype)
    assert not loaded.decoded
    return loaded.model


@pytest.mark.parametrize("arch", ENDS)
@pytest.mark.parametrize("bits", [8, 5])
def test_both_run_from_codes_are_saved_and_made_dense(arch: str, bits: int, tmp_path: Path) -> None:
    config, shared = ENDS[arch]
    bundle = bundle_of(arch, tmp_path, config, head_bits=bits)
    model = from_codes(bundle, arch)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (type(embedding), type(head)) == (KashinEmbedding, KashinLinear)
    assert (head.weight_codes is embedding.weight_codes) is shared
    assert (head.weight_scale is embedding.weight_scale) is shared
    expected = logits(twin_of(bundle, tiny_models.ARCHITECTURES[arch].auto_class))
    found = logits(model)
    assert relative(found, expected) < ROUNDED
    model.tie_weights()
    assert (head.weight_codes is embedding.weight_codes) is shared
    model.save_pretrained(tmp_path / "saved")
    names = [name for file in (tmp_path / "saved").glob("*.safetensors") for name in load_file(file)]
    codes = sum(name.endswith(".weight_codes") for name in names)
    assert codes == len(open_bundle(bundle).layouts)  # a tied matrix once
    assert torch.equal(logits(from_codes(tmp_path / "saved", arch)), found)
    model.dequantize()
    assert relative(logits(model), expected) < ROUNDED
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding)
    assert (head.weight is embedding.weight) is shared
    model.tie_weights()
    assert relative(logits(model), expected) < ROUNDED
    assert model.resize_token_embeddings(2101).weight.shape[0] == 2101


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_rows_and_logits_have_the_models_dtype(dtype: str, tied: Path) -> None:
    model = load(tied, dtype=dtype)
    expected = getattr(torch, dtype)
    assert model.dtype == expected  # transformers asks the first parameter
    assert model.get_input_embeddings()(torch.tensor([[3]])).dtype == expected
    assert logits(model).dtype == expected
    assert relative(logits(model), logits(twin_of(tied, "AutoModelForCausalLM"))) < 0.05
    if dtype == "bfloat16":
        moved = copy.deepcopy(model).to(torch.float32)
        assert moved.dtype == torch.float32
        assert moved.lm_head.weight_codes is moved.model.embed_tokens.weight_codes
        assert (
            relative(logits(moved), logits(twin_of(tied, "AutoModelForCausalLM"))) < 0.05
        )  # what is dense was rounded


def test_the_dtype_that_is_saved_is_the_models(tied: Path, tmp_path: Path) -> None:
    load(tied, dtype="bfloat16").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_tokens_are_generated_as_the_twin_does(tied: Path) -> None:
    model, twin = load(tied, dtype="float32"), twin_of(tied, "AutoModelForCausalLM")
    prompt = tiny_models.tokens(1, 5)
    made = [m.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (model, twin)]
    assert torch.equal(*made)


def test_no_vocabulary_is_resized(tied: Path) -> None:
    model = load(tied)
    with pytest.raises(KQuantError, match=r"^the vocabulary of a bundle .* cannot be resized: [^.]*$"):
        model.resize_token_embeddings(7)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(2100) is model.get_input_embeddings()


def test_an_untied_model_may_keep_either_dense(tmp_path: Path) -> None:
    source = tiny_models.make("llama", tmp_path / "source", **WORDS)
    for kept, kinds in (("lm_head", (KashinEmbedding, nn.Linear)), ("*embed_tokens", (nn.Embedding, KashinLinear))):
        bundle = compress(source, tmp_path / kept.strip("*"), exclude=[kept])
        model = load(bundle, dtype="float32")
        assert (type(model.get_input_embeddings()), type(model.get_output_embeddings())) == kinds
        assert relative(logits(model), logits(twin_of(bundle, "AutoModelForCausalLM"))) < ROUNDED


def test_equal_weights_that_are_stored_twice_are_tied(tmp_path: Path) -> None:
    """A config that does not say that they are tied, of a class that ties them: both names are stored and encoded."""
    source = tiny_models.make("gpt2", tmp_path / "source", **WORDS)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (source / "config.json").write_text(json.dumps(config))
    bundle = compress(source, tmp_path / "bundle")
    assert {"lm_head", "transformer.wte"} <= set(open_bundle(bundle).layouts)
    model = load(bundle, dtype="float32")
    assert model.lm_head.weight_codes is model.transformer.wte.weight_codes
    assert relative(logits(model), logits(twin_of(bundle, "AutoModelForCausalLM"))) < ROUNDED


def test_a_model_without_the_head_has_the_embedding(tied: Path) -> None:
    model = load(tied, "encoder")
    assert isinstance(model.get_input_embeddings(), KashinEmbedding)
    assert not hasattr(model, "lm_head")


def test_a_decoded_token_reads_the_head_and_no_table(tied: Path, tmp_path: Path) -> None:
    once = bytes_per_token(load(tied))
    untied = bytes_per_token(load(bundle_of("llama", tmp_path, WORDS)))
    assert once == untied  # a table that is only looked up does not count
    sizes = {name: info.nbytes for name, info in open_bundle(tied).infos.items()}
    assert once == sum(sizes.values())


def test_decompressing_gives_a_plain_checkpoint(tied: Path, tmp_path: Path) -> None:
    write_dense(open_bundle(tied), tmp_path / "dense")
    dense = tiny_models.load("llama", tmp_path / "dense")
    assert type(dense.get_input_embeddings()) is nn.Embedding
    assert torch.equal(logits(dense), logits(twin_of(tied, "AutoModelForCausalLM")))


def matrix_of(rows: int = 50, columns: int = 48, **settings: Any) -> Any:
    scale = torch.rand(columns, generator=torch.Generator().manual_seed(1)) + 0.5
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    return encode(weight, EncoderConfig(**settings), scale.half())


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": "uniform", "bits": 8, "group_size": 32},
        {"encoder": "uniform", "bits": 3, "group_size": 0},
        {"bits": 4, "effort": "fast"},
        {"levels": 6, "effort": "fast", "codebook": "product"},
        {"encoder": "kmeans", "bits": 2, "restarts": 1},
        {"encoder": "greedy", "form": "vector", "bits": 2, "max_iter": 5},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_rows_are_those_of_the_decoded_matrix(settings: dict[str, Any]) -> None:
    encoded = matrix_of(**settings)
    embedding = KashinEmbedding.of(encoded)
    ids = torch.tensor([[3, 49, 0], [7, 7, 21]])
    expected = encoded.decode()[ids]
    torch.testing.assert_close(embedding(ids), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embedding.double()(ids), encoded.decode(torch.float64)[ids])
    assert embedding(ids[:0]).shape == (0, 3, 48)
    with pytest.raises(IndexError):
        embedding(torch.tensor([50]))
    with pytest.raises(IndexError):
        embedding(torch.tensor([-1]))


def test_rows_are_one_operator_for_a_compiler() -> None:
    embedding = KashinEmbedding.of(matrix_of(bits=4, effort="fast"))
    ids = torch.tensor([[3, 49, 0]])
    program = torch.export.export(embedding, (ids,))
    assert "kquant.rows" in str(program.graph)
    torch.testing.assert_close(program.module()(ids), embedding(ids))


def test_other_embeddings_and_bases_on_the_left_are_named_refusals(tmp_path: Path) -> None:
    bundle = bundle_of("llama", tmp_path, include=["model.embed_tokens"], side="output")
    with pytest.raises(CannotRunFromCodesError, match=r"'model.embed_tokens' is an embedding, and bases on its left"):
        load(bundle)
    bundle = bundle_of("opt", tmp_path / "opt", include=["*embed_positions"])
    with pytest.raises(CannotRunFromCodesError, match="is the weight of a module OPTLearnedPositionalEmbedding, whose"):
        load(bundle)
