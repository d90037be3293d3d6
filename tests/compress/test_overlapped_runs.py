"""A run reads ahead and writes behind: how far, and what is left where a thread fails or the user stops it."""

import errno
import os
import threading

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from kquant_cli.bundle import open_bundle
from kquant_cli.bundle.staging import Staging
from kquant_cli.checkpoint import Checkpoint, content_hash, open_checkpoint, select_matrices
from kquant_cli.compress import identity, pipeline
from kquant_cli.compress.weights import read_weight
from kquant_cli.errors import KQuantError
from kquant_cli.files.safetensors_reader import read_chunks

QUICK = ("--encoder", "uniform", "--calibration", "none", "--device", "cpu")
SYNCS = 7  # state, shard, index, config, manifest, run, and one to spare


@pytest.fixture
def source(tmp_path):
    return tiny_models.make("llama", tmp_path / "source")


@pytest.fixture
def run(kquant, source, tmp_path):
    return lambda *flags: kquant("compress", source, "-o", tmp_path / "b", *QUICK, *flags)


def test_one_matrix_is_read_ahead_and_no_more(run, monkeypatch):
    read, encoded, lead = [], [], []
    original, encode = Checkpoint.read, pipeline.encode

    def reading(self: Checkpoint, name: str, **options: object) -> object:
        if threading.current_thread().name.startswith("kquant-ahead") and name.endswith("proj.weight"):
            read.append(name)
        return original(self, name, **options)

    def encoding(*args: object) -> object:
        encoded.append(args)
        lead.append(len(read) - len(encoded))
        return encode(*args)

    monkeypatch.setattr(Checkpoint, "read", reading)
    monkeypatch.setattr(pipeline, "encode", encoding)
    assert run().code == 0
    assert len(read) == len(encoded) == 14
    assert set(lead) <= {0, 1}


def test_a_run_syncs_a_few_files_whatever_the_number_of_matrices(run, monkeypatch):
    calls, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(number) or fsync(number))
    assert run().code == 0
    assert 5 <= len(calls) <= SYNCS


def test_a_source_that_is_cut_while_it_is_read_is_one_sentence(run, source, monkeypatch, tmp_path):
    """In the thread that reads ahead, while another matrix is encoded."""
    file = source / "model.safetensors"
    whole = file.read_bytes()

    def hashed_then_cut(checkpoint: Checkpoint) -> str:
        digest = content_hash(checkpoint)
        file.write_bytes(whole[: checkpoint.tensors["model.layers.1.mlp.down_proj.weight"].begin])
        return digest

    monkeypatch.setattr(identity, "content_hash", hashed_then_cut)
    result = run()
    assert result.code == 2
    assert f"{file} has changed since this run began to read it" in result.err
    assert result.err.count("error:") == 1
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    file.write_bytes(whole)
    again = run()
    assert again.code == 0
    assert "resumed from an earlier run" not in again.err, "of a changed file nothing is believed"


@pytest.mark.parametrize(("matrix", "before"), [("0.mlp.up_proj", 2), ("1.self_attn.v_proj", 13)])
def test_a_full_disk_behind_is_one_sentence_and_the_rest_stays(run, monkeypatch, tmp_path, matrix, before):
    """In the thread that writes behind; the last matrix, too, after which no other is begun."""
    save = Staging.save

    def full(self: Staging, name: str, *others: object) -> object:
        assert threading.current_thread().name.startswith("kquant-behind")
        if name.endswith(matrix):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, name, *others)

    monkeypatch.setattr(Staging, "save", full)
    result = run()
    assert result.code == 2
    assert "no space left on the device" in result.err
    assert not (tmp_path / "b").exists()
    monkeypatch.setattr(Staging, "save", save)
    again = run()
    assert again.code == 0
    assert again.err.count("resumed from an earlier run") == before
    open_bundle(tmp_path / "b")


@pytest.mark.parametrize("place", ["ahead", "behind", "between"])
def test_ctrl_c_finishes_the_write_under_way_and_leaves_no_thread(run, monkeypatch, tmp_path, place):
    encode, count = pipeline.encode, []

    def interrupted(*args: object) -> object:
        count.append(args)
        if len(count) == 4:
            raise KeyboardInterrupt
        return encode(*args)

    monkeypatch.setattr(pipeline, "encode", interrupted)
    slow = {"ahead": (Checkpoint, "read"), "behind": (Staging, "save")}.get(place)
    if slow is not None:
        original = getattr(*slow)

        def slowly(*args: object, **options: object) -> object:
            threading.Event().wait(0.05)
            return original(*args, **options)

        monkeypatch.setattr(*slow, slowly)
    result = run()
    assert result.code == 130
    assert "the same command goes on" in result.err
    assert "Traceback" not in result.err
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kquant-")]
    monkeypatch.undo()
    again = run()
    assert again.code == 0
    assert again.err.count("resumed from an earlier run") == 3


def test_not_a_number_is_found_in_every_piece(source):
    """A tensor of several pieces, with the one in the last."""
    tensors = load_file(source / "model.safetensors")
    tensors["long.weight"] = torch.zeros(read_chunks.__defaults__[0] // 4 * 2 + 3)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    content_hash(open_checkpoint(source))
    for value in (float("nan"), float("inf"), -float("inf")):
        tensors["long.weight"][-1] = value
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(KQuantError, match=r"'long\.weight' has entries that are not finite"):
            content_hash(open_checkpoint(source))


@pytest.mark.parametrize("given", [True, False])
def test_a_gpu_gets_pinned_memory_where_the_system_gives_any(source, monkeypatch, given):
    original, asked = Checkpoint.read, []

    def reading(self: Checkpoint, name: str, *, pinned: bool = False) -> torch.Tensor:
        asked.append(pinned)
        if pinned and not given:
            raise RuntimeError("CUDA error: out of memory")
        return original(self, name)

    monkeypatch.setattr(Checkpoint, "read", reading)
    checkpoint = open_checkpoint(source)
    matrix = select_matrices(checkpoint).matrices[0]
    expected = load_file(source / "model.safetensors")[matrix.tensor]
    assert torch.equal(read_weight(checkpoint, matrix, "cuda"), expected)
    assert asked == ([True] if given else [True, False])
    assert torch.equal(read_weight(checkpoint, matrix, "cpu"), expected)
    assert asked[-1] is False
