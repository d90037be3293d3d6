"""The hard sweeps: nearest points by brute force, and the Triton kernels against torch."""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec

import annealed_reference as reference
import numpy as np
import pytest
import torch

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed import hard_sweeps
from kquant_cli.encoders.annealed.hard_sweeps import _settle, nearest_codes


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
from kquant_cli.encoders.annealed.hard_sweeps import _settle, nearest_codes
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
    assert torch.equal(settle_fused(*case(levels, rows, size)), _settle(*case(levels, rows, size))), (levels, size)
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


class OnAGpu(torch.Tensor):
    """Says of itself that it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(("fault", "reason"), [("raise", "RuntimeError: no ptxas"), ("codes", "of their codes are")])
def test_kernels_that_fail_or_are_wrong_are_not_used_and_that_is_said_once(monkeypatch, caplog, fault, reason):
    calls = []

    def settle_fused(x: torch.Tensor, *_: object) -> torch.Tensor:
        calls.append(x)
        if fault == "raise":
            raise RuntimeError("no ptxas\nand more")
        return torch.zeros_like(x, dtype=torch.uint8)

    module = type(sys)("kquant_cli.encoders.annealed.hard_sweeps_triton")
    module.settle_fused = settle_fused
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(hard_sweeps, "find_spec", lambda name: True)
    monkeypatch.setattr(logging.getLogger("kquant_cli"), "propagate", True)
    hard_sweeps._kernels_work.cache_clear()
    x, *others = case(16, 4, 96)
    try:
        for _ in range(2):
            assert torch.equal(hard_sweeps.settle(x.as_subclass(OnAGpu), *others), _settle(x, *others))
    finally:
        hard_sweeps._kernels_work.cache_clear()
    assert len(calls) == 1
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_on_a_gpu_the_codes_are_nearly_those_of_torch(levels):
    """A sum that is rounded otherwise moves a few positions; the rows' errors are the same."""
    x, t, s, bases, codebook, moving = case(levels, 64, 768)
    on_device = [part.cuda() for part in (x, t, s)]
    assert hard_sweeps._kernels_work(on_device[0].device, levels)
    codes = hard_sweeps.settle(*on_device, bases, codebook, moving).cpu()
    expected = _settle(x, t, s, bases, codebook, moving)
    assert (codes == expected).float().mean() > 0.95

    def errors(found: torch.Tensor) -> torch.Tensor:
        u, v = (codebook[:, column][found.long()] for column in (0, 1))
        return (x - u - bases.couple(v)).square().sum(dim=1)

    torch.testing.assert_close(errors(codes), errors(expected), rtol=0.03, atol=0)
