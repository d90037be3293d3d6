"""Token ids of random draws and of texts, and tokenizers that are none."""

from pathlib import Path

import pytest
import tiny_models
import tiny_text_models
import torch
import transformers

from kquant_cli.hf.tokens import NoTokenizerError, ordinary_ids, random_ids, read_tokenizer, text_ids, vocabulary


def test_ids_that_a_config_names_are_not_ordinary() -> None:
    config = transformers.LlamaConfig(vocab_size=10, bos_token_id=1, eos_token_id=[2, 7], pad_token_id=99)
    assert ordinary_ids(config, 10).tolist() == [0, 3, 4, 5, 6, 8, 9]
    assert ordinary_ids(config, 3).tolist() == [0]
    config.bos_token_id = 0
    assert ordinary_ids(config, 1).tolist() == [0]  # all are special: then none is


def test_ids_in_parts_of_a_config_count_too() -> None:
    config = transformers.LlavaConfig(text_config={"model_type": "llama", "eos_token_id": 3}, image_token_index=5)
    ordinary = ordinary_ids(config, 8).tolist()
    assert 3 not in ordinary
    assert 5 not in ordinary


def test_draws_are_places_among_the_ordinary() -> None:
    config = transformers.LlamaConfig(vocab_size=10, bos_token_id=1, eos_token_id=[2, 7], pad_token_id=None)
    asked = []

    def draw(n: int, count: int) -> list[int]:
        asked.append((n, count))
        return [0, 6, 1]

    assert random_ids(config, 10, 3, draw).tolist() == [0, 9, 3]
    assert asked == [(7, 3)]


def test_as_many_tokens_as_embeddings() -> None:
    assert vocabulary(tiny_models.build("gpt2")) == tiny_models.VOCABULARY


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> transformers.PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_text_models.save_tokenizer(folder)
    return read_tokenizer(folder)


def test_the_first_ids_of_a_text(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    text = tiny_text_models.text()
    bare, begun = (tokenizer(text, add_special_tokens=special)["input_ids"] for special in (False, True))
    assert begun[0] == 1 != bare[0]
    assert text_ids(tokenizer, text, 50, letters=16, special=False) == bare[:50]
    assert text_ids(tokenizer, text, 50, letters=64, special=True) == begun[:50]
    assert text_ids(tokenizer, text, 10**6, letters=1, special=False) == bare


def test_more_is_read_of_a_text_that_gives_few(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    text = "\n" * 3 + tiny_text_models.text()
    assert len(text_ids(tokenizer, text, 64, letters=1, special=True)) == 64


@pytest.mark.parametrize("arch", ["opt", "llama", "bert"])
def test_a_folder_without_a_tokenizer_fails(arch: str, tmp_path: Path) -> None:
    with pytest.raises(NoTokenizerError, match="has no tokenizer that transformers can read: put its"):
        read_tokenizer(tiny_models.make(arch, tmp_path / arch))


def test_text_ids_are_whole_numbers(tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    ids = text_ids(tokenizer, "kashin", 8, letters=16, special=True)
    assert torch.tensor(ids).dtype == torch.int64
