"""Bundles made in 1, 2 and 4 threads: the same bytes, or another fingerprint that names the number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from whole_runs import hashes

from kquant_cli.bundle import open_bundle

RUN = """
import json, sys, torch
from pathlib import Path
from kquant_cli.checkpoint import open_checkpoint
from kquant_cli.compress import pipeline
from kquant_cli.compress.plan import make_plan
from kquant_cli.config import CompressConfig
source, folder, cases = json.loads(sys.argv[1])
checkpoint = open_checkpoint(source)
for name, settings in cases.items():
    pipeline.compress(make_plan(checkpoint, CompressConfig(**settings)), Path(folder) / name)
"""
GREEDY = {"encoder": "greedy", "max_iter": 4, "restarts": 1, "kmeans_iter": 3, "bits": 2}
NONE = {"calibration": "none", "effort": "fast"}
CASES = {
    "greedy": {**GREEDY, "calibration": "none"},
    "rows": {**GREEDY, "calibration": "none", "form": "vector", "basis": "hadamard", "init": "peaks"},
    "butterfly": {**GREEDY, "calibration": "none", "basis": "butterfly"},
    "dct": {**GREEDY, "calibration": "none", "basis": "signed_dct"},
    "reflections": {**GREEDY, "calibration": "none", "basis": "householder", "basis_count": 3},
    "kmeans": {"encoder": "kmeans", "calibration": "none", "kmeans_iter": 5, "bits": 2},
    "uniform": {"encoder": "uniform", "calibration": "none"},
    "input": {**NONE, "side": "input", "bits": 3},
    "output": {**NONE, "side": "output", "codebook": "product"},
}
MEASURED = {
    "random": {"encoder": "uniform", "calibration": "random", "exclude": ["*.layers.[123].*"]},
    "own": {"effort": "fast", "calibration_tokens": 128, "tune_steps": 1, "exclude": ["*.layers.[123].*", "*fc*"]},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Matrices that are large enough for torch to share an operation between threads."""
    folder = tmp_path_factory.mktemp("threads") / "source"
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    shapes = {"fc1": (320, 512), "fc2": (256, 384)}  # two blocks, and one that is larger than a share of a thread
    tensors = {f"model.layers.0.{n}.weight": torch.randn(s, generator=draw).half() for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "none"}')
    return folder


def run(source: Path, folder: Path, cases: dict, threads: int) -> None:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([str(source), str(folder), cases])],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_is_not_measured_has_the_same_bytes(source, tmp_path):
    for threads in (1, 2, 4):
        run(source, tmp_path / str(threads), CASES, threads)
    for threads in (2, 4):
        for name in CASES:
            assert hashes(tmp_path / str(threads) / name) == hashes(tmp_path / "1" / name), (name, threads)


def test_a_basis_that_is_a_whole_matrix_has_the_threads_in_the_fingerprint(source, tmp_path):
    cases = {"qr": {**GREEDY, "calibration": "none", "basis": "qr", "form": "vector"}}
    for threads in (1, 2):
        run(source, tmp_path / str(threads), cases, threads)
    one, two = (open_bundle(tmp_path / threads / "qr").manifest for threads in ("1", "2"))
    assert "threads" not in one
    assert two["threads"] == 2
    assert two["fingerprint"] != one["fingerprint"]


def test_the_fingerprint_of_what_is_measured_names_the_threads(opt, tmp_path):
    """Products of matrices are rounded otherwise in each number of threads; one thread needs no mention."""
    for place, threads in (("1", 1), ("2", 2), ("again", 2)):
        run(opt, tmp_path / place, MEASURED, threads)
    for name in MEASURED:
        one, two, again = (open_bundle(tmp_path / place / name).manifest for place in ("1", "2", "again"))
        assert "threads" not in one
        assert two["threads"] == 2
        assert two["fingerprint"] == again["fingerprint"] != one["fingerprint"]
        assert hashes(tmp_path / "2" / name) == hashes(tmp_path / "again" / name)
