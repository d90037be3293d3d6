"""Finished matrices beside a future bundle: what is found again, and what is not believed."""

import json
import os

import pytest
import torch

from kquant_cli.bundle.staging import Staging
from kquant_cli.encoded import EncodedMatrix, Layout, Record

NAME = "model.layers.0.fc1"
RECORD = Record(encoder="annealed", levels=4, trace=(0.5, 0.25), relative_error=0.1)


@pytest.fixture
def staging(tmp_path) -> Staging:
    return Staging(tmp_path / "b", "me")


def encoded() -> EncodedMatrix:
    layout = Layout((3, 8), 4, columns=1, scale=(3, 1))
    codes = torch.arange(24, dtype=torch.uint8).view(3, 8) % 4
    return EncodedMatrix(layout, codes, torch.randn(4, 1), scale=torch.rand(3, 1).half())


def test_what_was_saved_is_found_by_the_next_run(staging, tmp_path):
    matrix = encoded()
    saved = staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    found = Staging(tmp_path / "b", "me").find(NAME)
    assert found == saved
    assert (found.layout, found.record) == (matrix.layout, RECORD)
    assert found.nbytes == sum(t.nbytes for t in matrix.to_tensors().values())
    assert staging.find("model.layers.0.fc2") is None


def test_a_matrix_that_stays_dense_has_no_tensors(staging):
    staging.save(NAME, None, {}, RECORD)
    found = staging.find(NAME)
    assert found is not None
    assert (found.layout, found.nbytes) == (None, 0)


@pytest.mark.parametrize("damage", ["zeros", "cut", "gone", "no digest"])
def test_what_a_machine_that_stopped_may_leave_is_not_believed(staging, damage):
    """A file of the right length that holds zeros: names can reach the disk before what they name."""
    matrix = encoded()
    staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    (tensors,) = (staging.folder / "matrices").glob("*.safetensors")
    content = tensors.read_bytes()
    if damage == "zeros":
        tensors.write_bytes(content[:-8] + bytes(8))
    elif damage == "cut":
        tensors.write_bytes(content[:-8])
    elif damage == "gone":
        tensors.unlink()
    else:
        entry = tensors.with_suffix(".json")
        values = json.loads(entry.read_text())
        del values["sha256"]
        entry.write_text(json.dumps(values))
    assert staging.find(NAME) is None


def test_saving_does_not_wait_for_the_disk(staging, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", calls.append)
    matrix = encoded()
    staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    assert calls == []
