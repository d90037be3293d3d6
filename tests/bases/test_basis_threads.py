"""The threads that share a transform compute alone: threads of their own would slow every later region of OpenMP."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os
import torch
from kquant_cli.bases import make_basis

torch.set_num_threads(2)
x, basis = torch.randn(2048, 1536), make_basis("signed_hadamard_dct", 1536)
x[:512, :512] @ x[:512, :512]
x.clone().add_(1)  # torch's own threads have started
before = len(os.listdir("/proc/self/task"))
for _ in range(3):
    basis.adjoint(x)
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
def test_a_transform_starts_its_two_threads_and_no_more() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(run.stdout) == 2
