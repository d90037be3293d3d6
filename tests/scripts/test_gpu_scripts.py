"""The scripts for machines with a GPU: what they say without one, and that the benchmark runs under the interpreter."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a CUDA device")


@pytest.fixture
def run(pytestconfig):
    def run(*command, **variables):
        environment = {**os.environ, "PYTHONPATH": str(pytestconfig.rootpath), **variables}
        words = [str(part) for part in command]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)

    return run


@without_gpu
@pytest.mark.skipif(not Path("/usr/bin/env").exists(), reason="a shell script")
def test_without_a_gpu_the_check_says_so_and_exits_with_2(run, scripts, tmp_path):
    done = run(scripts / "gpu_check.sh", tmp_path / "results", PYTHON=sys.executable)
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines()[-1] == "This machine has no GPU that torch can use, so nothing was checked."
    assert "pydantic" in done.stdout
    assert not done.stderr
    assert not (tmp_path / "results").exists()


@without_gpu
@pytest.mark.parametrize("script", ["bench_gpu_product.py", "check_gpu_kernels.py"])
def test_the_scripts_without_a_gpu(script, run, scripts):
    done = run(sys.executable, scripts / script)
    assert done.returncode == 2
    assert "there is no CUDA device" in done.stderr


BARE = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "yaml", "transformers", "sklearn", "scipy", "matplotlib", "datasets"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.argv = sys.argv[1:]
sys.path.insert(0, SCRIPTS)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@without_gpu
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_benchmark_interpreted_and_with_few_packages(run, scripts, tmp_path):
    """Torch, triton and numpy are all that it imports."""
    size = ("--rows", 20, "--columns", 96, "--bits", 4, "--tokens", 1, "--repeats", 1, "--json", tmp_path / "x.json")
    bare = BARE.replace("SCRIPTS", repr(str(scripts)))
    done = run(sys.executable, "-c", bare, scripts / "bench_gpu_product.py", *size, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "x.json").read_text())["products"]
    assert (row["bits"], row["tokens"], row["backend"]) == (4, 1, "triton")
    assert 0 < row["relative_error"] < 0.012
    assert row["floor_us"] > 0


@without_gpu
@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_a_share_of_the_kernels_is_checked_and_each_case_is_a_row(run, scripts, tmp_path):
    """The second of many shares: the hard sweeps at 16 levels, and a layer."""
    size = ("--rows", 12, "--columns", 200, "--quick", "--workers", 43, "--share", 1, "--jsonl", tmp_path / "rows")
    done = run(sys.executable, scripts / "check_gpu_kernels.py", *size, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [(row["kernel"], row["ok"]) for row in rows] == [("hard", True), ("layer", True)]
    assert all(row["error"] <= row["bound"] for row in rows)


@without_gpu
def test_every_share_counts(run, scripts, tmp_path):
    """Two processes, each with a half; a bound that no kernel can be within makes the whole fail."""
    script = (scripts / "check_gpu_kernels.py").read_text(encoding="utf-8")
    few = script.replace("    return found\n\n\ndef relative", "    return found[:2]\n\n\ndef relative")
    assert few != script
    (tmp_path / "strict.py").write_text(few.replace("averages(case.levels), 1e-5", "1.0, 1e-5"), encoding="utf-8")
    done = run(
        *(sys.executable, tmp_path / "strict.py", "--rows", 8, "--columns", 96, "--workers", 2),
        TRITON_INTERPRET="1",
        PYTHONPATH=os.pathsep.join([str(scripts.parent), str(scripts)]),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 cases by 2 processes" in done.stdout
    assert [line.split()[-1] for line in done.stdout.splitlines() if "16 levels" in line].count("ok") == 1


def test_the_whole_command_is_measured_by_stages(run, scripts, tmp_path):
    """On a CPU, tiny: the numbers say nothing but that they are there."""
    files = ("--json", tmp_path / "x.json", "--jsonl", tmp_path / "rows", "--folder", tmp_path / "model")
    tiny = ("--tiny", "--layers", 1, "--effort", "fast", "--device", "cpu")
    done = run(sys.executable, scripts / "bench_gpu_compress.py", *tiny, *files)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert 0 < row["first_statistic_s"] <= row["first_matrix_s"] <= row["last_matrix_s"] <= row["seconds"]
    assert json.loads((tmp_path / "rows").read_text()) == {"part": "compress", **row}
    assert (tmp_path / "model" / "bundle" / "kquant.json").exists()
