"""Tokenizers that somebody else wrote: what transformers cannot use is one sentence that names the file."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_text_models

from kquant_cli.errors import KQuantError
from kquant_cli.hf.tokens import Decoder, encode, read_tokenizer, text_ids

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TEN = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 10}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_text_models.save_tokenizer(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    return folder


def change(folder: Path, name: str, **values: Any) -> None:
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(folder: Path) -> str:
    with pytest.raises(KQuantError) as caught:
        read_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize("name", [TOKENIZER, CONFIG, "special_tokens_map.json"])
@pytest.mark.parametrize(
    "content",
    ["", '{"version": "1', "[]", "null", "3", "[" * 100_000, '{"a":' * 3000 + "1" + "}" * 3000, "\udcff\udcfe"],
)
def test_what_is_no_json_object(copy: Path, name: str, content: str) -> None:
    (copy / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    if name == "special_tokens_map.json":  # which is read of old tokenizers alone
        change(copy, CONFIG, added_tokens_decoder=None)
        config = json.loads((copy / CONFIG).read_text())
        del config["added_tokens_decoder"]
        (copy / CONFIG).write_text(json.dumps(config))
    assert name in refusal(copy)


def test_numbers_of_many_digits(copy: Path) -> None:
    (copy / CONFIG).write_text(f'{{"model_max_length": {"9" * 6000}}}')
    assert f"{CONFIG} is not valid JSON" in refusal(copy)


@pytest.mark.parametrize(
    "values",
    [
        {"version": 3},
        {"version": "9.9"},
        {"truncation": {}},
        {"padding": "x"},
        {"added_tokens": 3},
        {"added_tokens": [{"id": -1, "content": "e"} | ADDED]},
        {"normalizer": {"type": "Nope"}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+"}, "content": "a"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAA="}},  # a panic of Rust
        {"pre_tokenizer": {"type": "Nope"}},
        {"post_processor": []},
        {"decoder": 3},
        {"model": None},
        {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    ],
    ids=lambda values: json.dumps(values)[:40],
)
def test_wrong_values_in_tokenizer_json(copy: Path, values: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    change(copy, TOKENIZER, **values)
    assert f"({TOKENIZER}, {CONFIG}" in refusal(copy)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_rules_that_make_a_text_a_billion_times_as_long(copy: Path, part: str) -> None:
    many, rules = ("normalizers", [TEN] * 9) if part == "normalizer" else ("decoders", [TEN] * 9)
    change(copy, TOKENIZER, **{part: {"type": "Sequence", many: rules}})
    assert f"the {part} of its tokenizer.json makes a text up to 1e+09 times as long" in refusal(copy)


def test_rules_that_models_have_are_no_bomb(copy: Path) -> None:
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    change(
        copy,
        TOKENIZER,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, mark, mark]},
    )
    assert encode(read_tokenizer(copy), "a b")["input_ids"]


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_class": 3},
        {"model_max_length": "x"},
        {"model_max_length": -5},
        {"model_max_length": [1]},
        {"padding_side": "up"},
        {"padding_side": 3},
        {"truncation_side": "up"},
        {"bos_token": 3},
        {"eos_token": {"content": 3}},
        {"added_tokens_decoder": 3},
        {"added_tokens_decoder": {"x": {"content": "e"}}},
        {"added_tokens_decoder": {"1": "e"}},
        {"extra_special_tokens": 3},
        {"init_inputs": 3},
    ],
    ids=lambda values: json.dumps(values)[:40],
)
def test_wrong_values_in_tokenizer_config(copy: Path, values: dict[str, Any]) -> None:
    change(copy, CONFIG, **values)
    assert CONFIG in refusal(copy)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("tokenizer.model", b"garbage" * 100, "LlamaTokenizer"),
        ("spiece.model", b"garbage" * 100, "T5Tokenizer"),
        ("vocab.txt", b"\xff\xfe" * 100, "BertTokenizer"),
    ],
)
def test_other_files_than_json(copy: Path, name: str, content: bytes, kind: str) -> None:
    (copy / TOKENIZER).unlink()
    (copy / CONFIG).write_text(json.dumps({"tokenizer_class": kind}))
    (copy / name).write_bytes(content)
    assert name in refusal(copy)


@pytest.mark.parametrize("name", [TOKENIZER, CONFIG, "chat_template.jinja"])
def test_what_has_no_end(copy: Path, name: str) -> None:
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    assert f"{copy / name} cannot be read (it is no plain file)" in refusal(copy)
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    assert "it is no plain file" in refusal(copy)
    (copy / name).unlink()
    (copy / name).mkdir()
    assert f"{copy / name} cannot be read" in refusal(copy)


def test_what_is_too_large_is_not_read(copy: Path) -> None:
    with (copy / TOKENIZER).open("wb") as file:
        file.truncate(500_000_000)
    assert f"{copy / TOKENIZER} has 500000000 bytes, and at most 100000000 are read" in refusal(copy)


def test_a_failure_in_use_is_a_sentence_too(copy: Path) -> None:
    class Broken:
        name_or_path = str(copy)

        def __call__(self, text: str, **options: Any) -> None:
            raise Exception("no rule for this")  # so tokenizers does it

        def decode(self, ids: list[int], **options: Any) -> Iterator[str]:
            raise OverflowError("out of range")

    for use in (lambda: encode(Broken(), "a"), lambda: text_ids(Broken(), "a", 1, letters=1, special=True)):
        with pytest.raises(
            KQuantError, match=r"the tokenizer of .*model cannot be used \(Exception: no rule for this\)"
        ):
            use()
    with pytest.raises(KQuantError, match="out of range"):
        Decoder(Broken()).decode([1])


def test_interrupts_pass(copy: Path) -> None:
    class Interrupted:
        name_or_path = str(copy)

        def __call__(self, text: str, **options: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(Interrupted(), "a")
