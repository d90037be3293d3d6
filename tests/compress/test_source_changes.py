"""A source that changes between hashing and reading is named, nothing is put in place, and the next run is whole."""

import os
import shutil

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from whole_runs import hashes

from kquant_cli.checkpoint import Checkpoint, content_hash, open_checkpoint
from kquant_cli.compress import identity, pipeline, write_bundle
from kquant_cli.errors import KQuantError

QUICK = ("--encoder", "uniform", "--calibration", "none", "--device", "cpu")


@pytest.fixture
def source(tmp_path):
    folder = tiny_models.make("llama", tmp_path / "source")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def other(file):
    """Other content of the same size."""
    content = bytearray(file.read_bytes())
    if file.suffix == ".safetensors":
        tensors = load_file(file)
        save_file({name: -tensor for name, tensor in tensors.items()}, file.with_name("made"), {"format": "pt"})
        content = file.with_name("made").read_bytes()
        file.with_name("made").unlink()
    else:
        content[content.index(b'"') + 1] ^= 1
    assert len(content) == file.stat().st_size
    return bytes(content)


def swapped(file):
    beside = file.with_name("swapped")
    beside.write_bytes(other(file))
    shutil.copystat(file, beside)
    beside.replace(file)


def in_place(file):
    """Size and time stay."""
    before, content = file.stat(), other(file)
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncated(file):
    os.truncate(file, file.stat().st_size // 2)


def linked(file):
    elsewhere = file.parent.parent / "elsewhere"
    elsewhere.write_bytes(other(file))
    file.unlink()
    file.symlink_to(elsewhere)


def gone(file):
    file.unlink()


CHANGES = [swapped, in_place, truncated, linked, gone]


def changing(monkeypatch, step, file, change):
    """Have the file changed once the run has come to `step`."""
    owner = next(module for module in (pipeline, identity, write_bundle) if hasattr(module, step))
    original = getattr(owner, step)
    done = []

    def then(*args, **options):
        found = original(*args, **options)
        if not done:
            done.append(change(file))
        return found

    monkeypatch.setattr(owner, step, then)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "generation_config.json"])
@pytest.mark.parametrize("step", ["content_hash", "_encode_all", "write_weights", "copy_files"])
def test_whatever_changes_is_named_and_nothing_mixed_is_written(
    kquant, source, tmp_path, monkeypatch, name, change, step
):
    """After hashing, after encoding, and before the bundle is put in its place."""
    whole = shutil.copytree(source, tmp_path / "whole")
    changing(monkeypatch, step, source / name, change)
    result = kquant("compress", source, "-o", tmp_path / "b", *QUICK)
    assert result.code == 2
    assert result.err.count("error:") == 1
    assert (
        f"{source / name} has changed since" in result.err or f"cannot read {source / name}: No such file" in result.err
    )
    assert not (tmp_path / "b").exists()
    monkeypatch.undo()
    shutil.rmtree(source)
    shutil.copytree(whole, source)
    assert kquant("compress", source, "-o", tmp_path / "b", *QUICK).code == 0
    assert kquant("compress", source, "-o", tmp_path / "again", *QUICK).code == 0
    assert hashes(tmp_path / "b") == hashes(tmp_path / "again")


def test_a_tensor_that_is_read_again_has_the_bytes_that_were_hashed(source, monkeypatch):
    """Where the file system's times say nothing, as on some networks."""
    checkpoint = open_checkpoint(source)
    content_hash(checkpoint)
    swapped(source / "model.safetensors")
    monkeypatch.setattr(type(checkpoint.seen), "require_unchanged", lambda *_: None)
    for name in checkpoint.tensors:
        with pytest.raises(
            KQuantError, match=rf"model\.safetensors has changed since .*tensor '{name}' has other values"
        ):
            checkpoint.read(name)


def test_a_copied_file_has_the_bytes_that_were_hashed(kquant, source, tmp_path, monkeypatch):
    monkeypatch.setattr("kquant_cli.checkpoint.seen.Seen.require_unchanged", lambda *_: None)
    changing(monkeypatch, "content_hash", source / "tokenizer.json", swapped)
    result = kquant("compress", source, "-o", tmp_path / "b", *QUICK)
    assert result.code == 2
    assert f"{source / 'tokenizer.json'} has changed since it was read" in result.err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("calibration", ["random", "own"])
def test_a_model_that_changes_while_it_is_measured_leaves_no_measurements(
    kquant, tmp_path, source, monkeypatch, calibration
):
    """They would be taken for those of the source that was hashed."""
    (source / "tokenizer.json").unlink()
    changing(monkeypatch, "content_hash", source / "model.safetensors", in_place)
    settings = ("--calibration", calibration, "--effort", "fast", "--device", "cpu")
    result = kquant("compress", source, "-o", tmp_path / "b", *settings)
    assert result.code == 2
    assert "model.safetensors has changed" in result.err
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("b.") and file.is_file()] == []


def test_sums_are_of_every_byte_and_its_place(source):
    checkpoint = open_checkpoint(source)
    content_hash(checkpoint)
    assert checkpoint.seen.sums.keys() == checkpoint.tensors.keys()
    assert len(set(checkpoint.seen.sums.values())) > len(checkpoint.tensors) // 2  # norms are alike
    for name in checkpoint.tensors:
        checkpoint.read(name)


def test_reading_is_checked_in_a_pickled_checkpoint_too(tmp_path):
    source = tiny_models.make("gpt2", tmp_path / "source")
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(state, source / "pytorch_model.bin")
    checkpoint = open_checkpoint(source)
    content_hash(checkpoint)
    name = next(iter(checkpoint.tensors))
    assert torch.equal(checkpoint.read(name), state[name])
    torch.save({key: -value for key, value in state.items()}, source / "pytorch_model.bin")
    with pytest.raises(KQuantError, match=r"pytorch_model\.bin has changed since"):
        Checkpoint.read(checkpoint, name)
