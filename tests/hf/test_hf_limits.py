"""The longest input of real architectures, by whatever name their configs give it."""

from types import SimpleNamespace

import pytest
import tiny_models
import transformers

from kquant_cli.hf.limits import longest_input, maximum_length


def test_the_maximum_is_found_under_each_architectures_name() -> None:
    assert maximum_length(transformers.OPTConfig()) == 2048
    assert maximum_length(transformers.GPT2Config(n_positions=77)) == 77
    assert maximum_length(transformers.LlamaConfig(max_position_embeddings=99)) == 99
    assert maximum_length(transformers.MptConfig(max_seq_len=55)) == 55
    assert maximum_length(transformers.MambaConfig()) is None
    nested = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=33))
    assert maximum_length(nested) == 33


@pytest.mark.parametrize(("arch", "longest"), [("llama", 64), ("gpt2", 64), ("opt", 64), ("bert", 64), ("roberta", 63)])
def test_positions_that_padding_takes_are_no_ones(arch: str, longest: int) -> None:
    """As many tokens run, and no more where positions are looked up; RoBERTa's begin behind padding's 0."""
    model = tiny_models.build(arch)
    assert longest_input(model) == longest
    model(tiny_models.tokens(1, longest))
    if arch in {"gpt2", "opt", "bert", "roberta"}:
        with pytest.raises((IndexError, RuntimeError)):
            model(tiny_models.tokens(1, longest + 1))


def test_a_model_without_a_bound_has_none() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 128}
    assert longest_input(transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))) is None
