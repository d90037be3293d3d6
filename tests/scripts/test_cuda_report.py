"""The table of what nvcc makes of the CUDA kernels, where it is; and what is said where it is not."""

import os
import re
import shutil
import subprocess
import sys

import pytest


def run(script, *arguments, **variables):
    environment = {**os.environ, **variables}
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_nvcc_it_says_so(scripts, pytestconfig, tmp_path):
    done = run(scripts / "cuda_report.py", PATH=str(tmp_path), PYTHONPATH=str(pytestconfig.rootpath))
    assert done.returncode == 2
    assert "there is no nvcc on the path" in done.stderr


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_no_kernel_spills(scripts, pytestconfig):
    """Of some, in at most the 128 registers that 512 threads may have each."""
    done = run(scripts / "cuda_report.py", "--only", "8 tokens", PYTHONPATH=str(pytestconfig.rootpath))
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\w+(?:, .+ tokens)?) +(\d+) +(\d+)\b", done.stdout, re.MULTILINE)
    assert len(rows) == 12
    assert all(int(registers) <= 128 and spills == "0" for _, registers, spills in rows), done.stdout
