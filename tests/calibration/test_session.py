"""The model in memory with its tokens: kept in a file, read again, or of a text; what cannot be is a sentence."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import tiny_text_models
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.calibration import memory, session
from kquant_cli.calibration.session import open_session, text_path
from kquant_cli.calibration.unavailable import StatisticsUnavailable
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.errors import KQuantError, MemoryShortage, is_shortage


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_text_models.make(tmp_path_factory.mktemp("session") / "model", "llama", bos_token_id=1)


@pytest.fixture
def ask(model, tmp_path):
    def ask(source="own", tokens=300, folder=model, seed=2, fingerprint="f", say=lambda _: None):
        file = tmp_path / "b.text.safetensors"
        options = {"seed": seed, "device": torch.device("cpu"), "file": file, "fingerprint": fingerprint, "say": say}
        return open_session(open_checkpoint(folder), source, tokens, **options)

    return ask


@pytest.fixture
def written(monkeypatch):
    """How often a model was asked to write."""
    calls, original = [], session.write_text
    monkeypatch.setattr(session, "write_text", lambda *args, **how: calls.append(how) or original(*args, **how))
    return calls


def test_the_text_is_kept_and_taken_up(ask, written, tmp_path):
    first = ask()
    assert text_path(tmp_path / "b") == tmp_path / "b.text.safetensors"
    kept = load_file(tmp_path / "b.text.safetensors")["ids"]
    assert kept.dtype == torch.int32
    assert torch.equal(kept.long(), first.ids)
    again = ask()
    assert torch.equal(again.ids, first.ids)
    assert again.facts == first.facts
    assert first.facts["source"] == "own"
    assert first.facts["tokens"] == first.ids.numel() >= 300
    assert len(written) == 1
    assert set(first.ids[:, 0].tolist()) == {1}  # the tokenizer begins every text so
    assert {p.dtype for p in first.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in first.model.parameters())


@pytest.mark.parametrize("other", [{"seed": 3}, {"tokens": 400}, {"fingerprint": "g"}])
def test_another_run_writes_its_own(ask, written, other):
    first = ask()
    ask(**other)
    assert len(written) == 2
    assert torch.equal(ask().ids, first.ids)


def _cut(file):
    file.write_bytes(file.read_bytes()[:-9])


def _other_tokens(file):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({"ids": load_file(file)["ids"] + 1}, file, metadata)


def _no_metadata(file):
    save_file(load_file(file), file)


def _other_shape(file):
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({"ids": load_file(file)["ids"].view(2, -1)}, file, metadata)


def _nothing(file):
    file.write_bytes(b"")


def _text(file):
    file.write_text("these are no tokens")


@pytest.mark.parametrize("damage", [_cut, _other_tokens, _no_metadata, _other_shape, _nothing, _text])
def test_a_damaged_file_is_written_anew(ask, written, tmp_path, damage):
    first = ask()
    file = tmp_path / "b.text.safetensors"
    whole = file.read_bytes()
    damage(file)
    said = []
    assert torch.equal(ask(say=said.append).ids, first.ids)
    assert said == [f"the text in {file} is damaged, or of other settings or weights, and is made again"]
    assert len(written) == 2
    assert file.read_bytes() == whole


def test_a_file_that_cannot_be_written_is_a_sentence(ask, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KQuantError, match=r"b\.text\.safetensors cannot be written \(.*\): choose another --output"):
        ask()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_plain_file_is_in_the_way(ask, written, tmp_path, make):
    make(tmp_path / "b.text.safetensors")
    with pytest.raises(KQuantError, match=r"b\.text\.safetensors is in the way, and is no plain file: move it"):
        ask()
    assert written == []


def test_a_shortage_of_memory_is_not_taken_for_a_model_that_cannot_be_run(ask, monkeypatch):
    for words in (
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to",
        "CUDA out of memory.",
    ):
        for place in ("load_dense", "read_tokenizer", "write_text"):
            with monkeypatch.context() as patch:
                patch.setattr(session, place, lambda *_, words=words, **__: (_ for _ in ()).throw(RuntimeError(words)))
                with pytest.raises(Exception) as caught:
                    ask()
                assert not isinstance(caught.value, StatisticsUnavailable), place
                assert is_shortage(caught.value), place


def test_a_text_of_the_users(ask, written, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(tiny_text_models.text(3000))
    found = ask(str(text))
    assert found.ids.shape == (300 // 64, 64)
    assert found.source.startswith("text.txt (SHA-256 ")
    assert written == []
    assert not torch.equal(ask().ids, found.ids)
    text.write_text(tiny_text_models.text(40))
    short = ask(str(text)).ids
    assert len(short) == 2
    assert short.shape[1] < 64


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a", r"text\.txt gives \d tokens, expected 4 or more to calibrate on: give a longer text"),
        ("", r"text\.txt is empty"),
        (b"\xff\xfe\xfa", r"text\.txt is not UTF-8 text"),
        (None, r"text\.txt cannot be read \(No such file"),
    ],
)
def test_a_text_that_is_of_no_use_is_a_sentence(ask, tmp_path, content, sentence):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(KQuantError, match=sentence) as caught:
        ask(str(text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.text.safetensors").exists()


def test_a_text_without_a_tokenizer_is_a_sentence(ask, tiny_llama, tmp_path):
    (tmp_path / "text.txt").write_text(tiny_text_models.text())
    with pytest.raises(KQuantError, match=r"has no tokenizer .* or give --calibration own in place of .*text\.txt"):
        ask(str(tmp_path / "text.txt"), folder=tiny_llama)
    assert set(ask(folder=tiny_llama).ids[:, 0].tolist()) != {1}  # own text needs none


def test_tokens_beyond_the_vocabulary_are_a_sentence(ask, tmp_path):
    folder = tiny_models.make("llama", tmp_path / "small", vocab_size=64)
    tiny_text_models.save_tokenizer(folder)
    (tmp_path / "text.txt").write_text(tiny_text_models.text())
    with pytest.raises(KQuantError, match=r"gives token \d+ for .*text\.txt, expected ids below the model's 64: put"):
        ask(str(tmp_path / "text.txt"), folder=folder)


def test_too_little_memory_is_said_before_the_model_is_loaded(ask, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(session, "load_dense", None)
    with pytest.raises(
        MemoryShortage, match=r"needs about 0\.0 GB of memory to be calibrated, and 0\.0 GB are free: end"
    ):
        ask()


def test_a_model_that_cannot_be_loaded_is_unavailable(ask, model, tmp_path):
    """As it was before there was a calibration: it can still be compressed, without data."""
    tensors = load_file(model / "model.safetensors")
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text((model / "config.json").read_text().replace('"llama"', '"zebra"'))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StatisticsUnavailable, match="zebra"):
        ask(folder=folder)


def test_the_model_is_in_memory_of_its_own(model, ask, tmp_path):
    """A file that is cut while it is mapped would end the process."""
    folder = shutil.copytree(model, tmp_path / "model")
    session = ask(folder=folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert all(bool(torch.isfinite(p).all()) for p in session.model.parameters())
