"""The content hash: the bytes it is defined over, whatever the files are called and however large they are."""

import json
import os
import sys
import tracemalloc
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kquant_cli.checkpoint import content_hash, open_checkpoint
from kquant_cli.errors import KQuantError


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"b": 1, "a": 2}')
    save_file({"w": torch.arange(4.0)}, path / "model.safetensors")
    return path


def expected(folder: Path, *files: bytes) -> str:
    """The definition, written out: config, tensors, then name and bytes of every other file."""
    text = json.dumps({"a": 2, "b": 1}).encode() + b"\nw torch.float32 (4,)\n" + torch.arange(4.0).numpy().tobytes()
    for name in files:
        text += b"\n" + name + b"\n" + Path(os.fsdecode(bytes(folder) + b"/" + name)).read_bytes()
    return sha256(text).hexdigest()


def test_the_definition(folder):
    assert content_hash(open_checkpoint(folder)) == expected(folder)
    (folder / "tokenizer.json").write_bytes(bytes(range(256)) * 10_000)
    (folder / "a\u00e9.txt").write_text("x")
    files = ("a\u00e9.txt".encode(), b"tokenizer.json")
    assert content_hash(open_checkpoint(folder)) == expected(folder, *files)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are UTF-8")
def test_a_file_name_that_is_not_utf8(folder):
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.txt")).write_text("x")
    assert content_hash(open_checkpoint(folder)) == expected(folder, b"caf\xe9.txt")


def test_a_large_file_is_not_held_in_memory(folder):
    with (folder / "large.json").open("wb") as file:
        file.truncate(32 << 20)
    checkpoint = open_checkpoint(folder)
    tracemalloc.start()
    content_hash(checkpoint)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, f"{peak / 2**20:.0f} MiB for a file of 32 MiB"


def test_a_file_that_is_gone_is_named(folder):
    (folder / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KQuantError, match=r"cannot read .*tokenizer\.json: No such file"):
        content_hash(checkpoint)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("layers.0.attn.mask", float("-inf"), True),
        ("lm_head.bias", float("-inf"), True),
        ("layers.0.attn.mask", float("nan"), False),
        ("layers.0.fc.weight", float("inf"), False),
        ("layers.0.fc.weight", float("nan"), False),
    ],
)
def test_infinities_are_an_error_in_weights_alone_and_what_is_no_number_everywhere(tmp_path, name, value, kept):
    (tmp_path / "config.json").write_text("{}")
    save_file({name: torch.tensor([0.0, value, 1.0]), "w": torch.ones(3)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    if kept:
        content_hash(checkpoint)
        assert checkpoint.infinite == {name}
    else:
        with pytest.raises(KQuantError, match=f"tensor '{name}' has entries that are not finite"):
            content_hash(checkpoint)
