"""Statistics from a text: the checkpoint's tokenizer, the first tokens, and sentences for what cannot be used."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
import references
import tiny_models
import tiny_text_models
import torch
import transformers

from kquant_cli.calibration import StatisticsUnavailable
from kquant_cli.errors import KQuantError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_text_models.make(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "some text.txt"
    file.write_text(tiny_text_models.text(800), encoding="utf-8")
    return file


def expected(folder: Path, content: str, windows: int, length: int, names: list[str]) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(content, add_special_tokens=False)["input_ids"][: windows * length]
    return references.moments(tiny_models.load("opt", folder), names, torch.tensor(ids).view(windows, length))


def test_the_first_tokens_of_the_text_are_used(folder: Path, text: Path):
    statistics = references.measure(folder, stats=str(text), tokens=256)
    measured = references.by_member(statistics)
    for name, value in expected(folder, text.read_text(), 4, 64, list(measured)).items():
        torch.testing.assert_close(measured[name], value, rtol=2e-5, atol=1e-9, msg=name)
    assert statistics.tokens == 256
    assert statistics.source == f"some text.txt (SHA-256 {sha256(text.read_bytes()).hexdigest()})"


def test_of_a_short_text_all_is_used(folder: Path, text: Path):
    text.write_text("kashin quamer, tiden\n" * 2)
    count = len(
        transformers.AutoTokenizer.from_pretrained(folder)(text.read_text(), add_special_tokens=False).input_ids
    )
    assert 2 < count < 64
    statistics = references.measure(folder, stats=str(text))
    measured = references.by_member(statistics)
    assert statistics.tokens == count
    for name, value in expected(folder, text.read_text(), 1, count, list(measured)).items():
        torch.testing.assert_close(measured[name], value, rtol=2e-5, atol=1e-9, msg=name)


def test_a_text_longer_than_it_seemed_is_read_further(folder: Path, text: Path):
    text.write_text(" " * 20_000 + tiny_text_models.text(800))
    assert references.measure(folder, stats=str(text), tokens=128).tokens == 128


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), (b"", "is empty"), (b" \n", "is empty"), (b"a\xff", "byte 1")]
)
def test_a_file_that_is_no_text_is_a_sentence(folder: Path, tmp_path: Path, content: bytes | None, says: str):
    file = tmp_path / "text"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(KQuantError, match=says) as caught:
        references.measure(folder, stats=str(file))
    assert str(file) in str(caught.value) and "expected a UTF-8 text file, a data set" in str(caught.value)
    assert not isinstance(caught.value, StatisticsUnavailable)


@pytest.mark.parametrize("name", ["~nosuchuser/text", "a\0b", "x" * 5000, "."])
def test_a_path_that_cannot_be_followed_is_a_sentence(folder: Path, name: str):
    with pytest.raises(KQuantError, match="cannot be read"):
        references.measure(folder, stats=name)


def test_a_checkpoint_without_a_tokenizer_is_a_sentence(tmp_path: Path, text: Path):
    folder = tiny_models.make("opt", tmp_path / "bare")
    with pytest.raises(KQuantError, match="no tokenizer") as caught:
        references.measure(folder, stats=str(text))
    assert "some text.txt" in str(caught.value) and "tokenizer.json" in str(caught.value)
    assert not isinstance(caught.value, StatisticsUnavailable)
