"""accelerate's two steps, an empty model that is then filled, on bundles: the same model, or a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch, load_checkpoint_in_model
from small_bundles import bundle_of, logits, relative
from transformers import AutoConfig, AutoModelForCausalLM

from kquant_cli.errors import KQuantError
from kquant_cli.runtime.replace_layers import kashin_layers

SPLIT = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
SPLIT |= {"lm_head": "cpu", "model.rotary_emb": "cpu"}


def empty(folder: Path) -> Any:
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return bundle_of("llama", tmp_path_factory.mktemp("accelerate"), calibration="random")


def test_a_bundle_is_filled_in_and_dispatched(llama: Path, tmp_path: Path) -> None:
    expected = logits(AutoModelForCausalLM.from_pretrained(llama))
    for options in ({"device_map": "auto"}, {"device_map": {"": "cpu"}, "strict": True}):
        model = load_checkpoint_and_dispatch(empty(llama), str(llama), **options).eval()
        assert len(list(kashin_layers(model))) == 14
        assert torch.equal(logits(model), expected)
    split = load_checkpoint_and_dispatch(empty(llama), str(llama), device_map=SPLIT, offload_folder=str(tmp_path))
    assert relative(logits(split.eval()), expected) < 1e-4


@pytest.mark.parametrize("arch", ["gpt2", "qwen3"])
def test_other_architectures_too(arch: str, tmp_path: Path) -> None:
    bundle = bundle_of(arch, tmp_path, calibration="none")
    model = load_checkpoint_and_dispatch(empty(bundle), str(bundle), device_map="auto").eval()
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(bundle)))


def test_an_encoded_embedding_and_its_tied_head(demo_bundle: Path) -> None:
    tokens = torch.tensor([[2, 5, 7, 11]])
    model = load_checkpoint_and_dispatch(empty(demo_bundle), str(demo_bundle), device_map="auto").eval()
    expected = AutoModelForCausalLM.from_pretrained(demo_bundle)
    assert torch.equal(logits(model, tokens), logits(expected, tokens))


def test_dense_models_load_as_ever(tiny_llama: Path) -> None:
    model = load_checkpoint_and_dispatch(empty(tiny_llama), str(tiny_llama), device_map="auto").eval()
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(tiny_llama)))


def test_what_would_leave_random_weights_or_change_them_is_refused(llama: Path, tmp_path: Path) -> None:
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llama))
    with pytest.raises(KQuantError, match="is a bundle, which fills a transformers model without weights: load it"):
        load_checkpoint_in_model(random, str(llama))
    with pytest.raises(KQuantError, match="is a bundle, whose tensors keep their dtypes: leave dtype out"):
        load_checkpoint_and_dispatch(empty(llama), str(llama), device_map="auto", dtype=torch.float16)
    renamed = bundle_of("gpt_neox", tmp_path, calibration="none")
    with pytest.raises(
        KQuantError, match=r"is a bundle that has no '.*' under that name: load it with from_pretrained"
    ):
        load_checkpoint_and_dispatch(empty(renamed), str(renamed), device_map="auto")
