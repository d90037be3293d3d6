"""Finished matrices beside a future bundle: what is found again, and what is not believed."""

import errno
import json
import os
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
import torch

from kquant_cli.bundle.staging import Staging
from kquant_cli.bundle.writer import staged_entries
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.errors import KQuantError

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


CHANGES = {
    "name": "model.layers.0.fc2",
    "layout": {"shape": [3, 8], "levels": 4, "columns": 1, "scale": [1, 1], "dtype": "float32"},
    "record": {**asdict(RECORD), "relative_error": 0.01},
    "sums": {},
    "entry_sha256": "0" * 64,
}


@pytest.mark.parametrize("key", CHANGES)
def test_an_entry_that_was_changed_is_not_believed(staging, key):
    """What decoding needs and what the manifest will say of the matrix stand in it."""
    matrix = encoded()
    staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    (entry,) = (staging.folder / "matrices").glob("*.json")
    values = json.loads(entry.read_text())
    assert values[key] != CHANGES[key]
    entry.write_text(json.dumps({**values, key: CHANGES[key]}))
    assert staging.find(NAME) is None
    assert staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD) == staging.find(NAME)


@pytest.mark.parametrize("value", [None, [], "a" * 64, {"shape": [3, 8]}, 1e400])
@pytest.mark.parametrize("key", ["layout", "record", "sums", "sha256", "name"])
def test_an_entry_of_the_right_digest_and_other_types_is_not_believed(staging, key, value):
    matrix = encoded()
    staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    (entry,) = (staging.folder / "matrices").glob("*.json")
    values = {**json.loads(entry.read_text()), key: value}
    del values["entry_sha256"]
    digest = sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    entry.write_text(json.dumps({**values, "entry_sha256": digest}))
    found = staging.find(NAME)
    assert found is None or (key == "layout" and value is None and found.layout is None)


def test_a_matrix_of_another_shape_than_the_plan_is_not_believed(staging):
    matrix = encoded()
    staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    assert staging.find(NAME, (3, 8)) is not None
    assert staging.find(NAME, (8, 3)) is None


def test_tensors_that_the_layout_does_not_ask_for_are_not_believed(staging):
    matrix = encoded()
    parts = matrix.to_tensors()
    staging.save(NAME, replace(matrix.layout, scale=(1, 1)), parts, RECORD)
    assert staging.find(NAME) is None
    staging.save(NAME, replace(matrix.layout, scale=None), parts, RECORD)
    assert staging.find(NAME) is None


def test_what_is_damaged_after_it_was_found_shows_when_it_is_read(staging):
    matrix = encoded()
    staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    found = staging.find(NAME)
    (tensors,) = (staging.folder / "matrices").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-2] + b"ab")
    with pytest.raises(KQuantError, match="was damaged while the run went on: run the same command again"):
        found.encoded()
    with pytest.raises(KQuantError, match="was damaged while the run went on: run the same command again"):
        for entry in staged_entries(found):
            entry.read()


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


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_what_the_system_cannot_read_now_is_not_taken_for_unfinished(staging, monkeypatch, ending):
    """It would be encoded anew, of a calibrated matrix without its calibration, and nothing would say so."""
    matrix = encoded()
    staging.save(NAME, matrix.layout, matrix.to_tensors(), RECORD)
    opened = os.open

    def too_many(path, *args, **options):
        if str(path).endswith(ending):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(os, "open", too_many)
    with pytest.raises(KQuantError, match=rf"{ending} cannot be read \(Too many open files\); run the same command"):
        staging.find(NAME)
