"""The hard sweeps: nearest points by brute force, and the Triton kernels against torch."""

import os
import subprocess
import sys
from importlib.util import find_spec

import annealed_reference as reference
import numpy as np
import pytest
import torch

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed.hard_sweeps import nearest_codes


def test_nearest_codes_by_brute_force():
    generator = np.random.RandomState(0)
    t, s = generator.standard_normal((2, 30, 40)).astype(np.float32)
    codebook = generator.standard_normal((37, 2)).astype(np.float32)
    expected = reference.nearest(t.astype(float), s.astype(float), codebook.astype(float))
    assert (nearest_codes(*map(torch.from_numpy, (t, s, codebook))).numpy() == expected).all()


def test_nearest_codes_of_equals_the_first():
    codebook = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    t, s = torch.tensor([[2.0, -2.0, 0.0]]), torch.zeros(1, 3)
    assert nearest_codes(t, s, codebook).tolist() == [[0, 1, 0]]


def case(levels, rows, size, sweeps=4, seed=0):
    """Rows, both their fields, a codebook and what moves."""
    draw = torch.Generator().manual_seed(seed)
    x, t, s = torch.randn(3, rows, size, generator=draw)
    moving = torch.rand(sweeps, size, generator=draw) < 0.4
    return x, t, s, CoupledBases(size, 3), torch.randn(levels, 2, generator=draw), moving


INTERPRETED = """
import torch
from test_hard_sweeps import case
from kquant_cli.encoders.annealed.hard_sweeps import nearest_codes, settle
from kquant_cli.encoders.annealed.hard_sweeps_triton import keep, move, settle_fused, with_offsets
for levels, rows, size in ((2, 1, 1), (3, 5, 96), (16, 3, 1024), (16, 2, 1100), (256, 1, 300)):
    x, qv, s, bases, codebook, moving = case(levels, rows, size)
    old = torch.randint(levels, x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    expected = torch.where(moving[0], nearest_codes(x - qv, s, codebook), old)
    codes = old.clone()
    rest, v = move(x, qv, s, codes, moving[0].to(torch.uint8), with_offsets(codebook))
    assert torch.equal(codes, expected.to(torch.uint8)), (levels, size)
    assert torch.equal(rest, x - codebook[expected, 0]) and torch.equal(v, codebook[expected, 1])
    errors = (rest - qv).square().sum(dim=1)
    least, best = errors * torch.where(torch.arange(rows) % 2 == 0, 1.01, 0.99), torch.full_like(codes, 77)
    before, kept = least.clone(), torch.arange(rows) % 2 == 0
    keep(rest, qv, codes, best, least)
    torch.testing.assert_close(least, torch.where(kept, errors, before), rtol=1e-5, atol=0)
    assert torch.equal(best, torch.where(kept[:, None], codes, 77).to(torch.uint8))
    expected = settle(x, x - qv, s, bases, codebook, moving)
    assert torch.equal(settle_fused(x, qv, s, bases, codebook, moving), expected), (levels, size)
print("done")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernels_as_they_are_interpreted_give_the_codes_of_torch():
    """Every code, at sizes below, at and above a block of 1024. In a process of its own: Triton decides at import."""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])  # noqa: PTH120
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "done", run.stderr
