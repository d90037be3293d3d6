"""Models that see later tokens are told from those that do not by running them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import tiny_text_models
import torch
import transformers

from kquant_cli.errors import KQuantError
from kquant_cli.hf.causality import require_causal, sees_later_tokens

BERT = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
XLM = {
    "vocab_size": 320,
    "emb_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
    "n_langs": 1,
    "use_lang_emb": False,
}
XLNET = {"vocab_size": 320, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96}
SEEING: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertLMHeadModel(transformers.BertConfig(**BERT)),
    "electra": lambda: transformers.ElectraForCausalLM(transformers.ElectraConfig(**BERT, embedding_size=64)),
    "xlm": lambda: transformers.XLMWithLMHeadModel(transformers.XLMConfig(**XLM)),
    "xlnet": lambda: transformers.XLNetLMHeadModel(transformers.XLNetConfig(**XLNET)),
}


@pytest.mark.parametrize("name", SEEING)
def test_models_that_see_later_tokens(name: str) -> None:
    torch.manual_seed(0)
    assert sees_later_tokens(SEEING[name]().eval())


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_models_that_do_not(name: str) -> None:
    model: Any = tiny_models.build(name).eval()
    if model.config.is_encoder_decoder or not model.can_generate():
        pytest.skip("no causal language model")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not sees_later_tokens(model.to(dtype))


def test_a_bert_that_is_a_decoder_and_a_causal_xlm() -> None:
    bert = transformers.BertLMHeadModel(transformers.BertConfig(**BERT, is_decoder=True)).eval()
    xlm = transformers.XLMWithLMHeadModel(transformers.XLMConfig(**XLM, causal=True)).eval()
    assert not sees_later_tokens(bert)
    assert not sees_later_tokens(xlm)


def test_states_in_place_of_attention() -> None:
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2}
    assert not sees_later_tokens(transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, state_size=4)).eval())
    assert not sees_later_tokens(transformers.RwkvForCausalLM(transformers.RwkvConfig(**sizes)).eval())


def test_noise_is_no_sight() -> None:
    """A model that gives other logits each time, as far apart as with other tokens."""

    class Noisy(transformers.GPT2LMHeadModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + torch.randn_like(output.logits)
            return output

    config = transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    assert not sees_later_tokens(Noisy(config).eval())


def test_a_single_token_can_see_none() -> None:
    config = transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=4, n_positions=1)
    assert not sees_later_tokens(transformers.GPT2LMHeadModel(config).eval())


def test_the_sentence_names_model_and_class() -> None:
    model = SEEING["xlm"]().eval()
    model.config.architectures = ["XLMWithLMHeadModel"]
    with pytest.raises(
        KQuantError, match=r"place \(XLMWithLMHeadModel\) is no causal language model, which this needs"
    ):
        require_causal("place", model)


@pytest.mark.parametrize("name", ["bert", "xlm"])
def test_no_number_comes_of_them(name: str, tmp_path: Path, kquant: Any) -> None:
    torch.manual_seed(0)
    SEEING[name]().save_pretrained(tmp_path / name)
    tiny_text_models.save_tokenizer(tmp_path / name)
    text = tmp_path / "text.txt"
    text.write_text(tiny_text_models.text(), encoding="utf-8")
    lines = tmp_path / "lines.txt"
    lines.write_text(" ".join(tiny_text_models.text(60).split()) + "\n", encoding="utf-8")
    for command in (
        ("eval", tmp_path / name, "--task", "text", "--data", text, "--seqlen", 32, "--limit", 2),
        ("eval", tmp_path / name, "--task", "lambada_word", "--data", lines),
        ("generate", tmp_path / name, "-p", "ka shin"),
    ):
        run = kquant(*command, "--device", "cpu")
        assert run.code == 2
        assert run.out == ""
        assert "is no causal language model" in " ".join(run.err.split())
