"""The annealing by kernels: as they are interpreted, where they do not work, and on a GPU."""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec

import annealed_reference as reference
import pytest
import torch
from test_annealing import SEED, drive_for

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed import annealing
from kquant_cli.encoders.annealed.annealing import _anneal_torch, anneal

INTERPRETED = """
import annealed_reference as reference, torch
from test_annealing import SEED, drive_for
from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed.anneal_triton import anneal_fused
from kquant_cli.encoders.annealed.annealing import _anneal_torch
for size, levels in ((1, 4), (100, 3), (96, 16), (1100, 16)):
    x, drive = reference.gaussian(7, size), drive_for(levels, size, 6, 4)
    codes, sums = anneal_fused(x, CoupledBases(size, SEED), drive)
    expected, squares = _anneal_torch(x, CoupledBases(size, SEED), drive)
    assert (codes.dtype, codes.shape) == (torch.uint8, x.shape)
    torch.testing.assert_close(sums, squares, rtol=1e-4, atol=1e-5)
    assert (codes == expected).float().mean() >= 0.98, (size, levels)  # a tie that rounding decides carries on
print("done")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernels_as_they_are_interpreted_follow_torch():
    """In a process of its own: at import Triton decides whether it compiles or interprets."""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])  # noqa: PTH120
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "done", run.stderr


class OnAGpu(torch.Tensor):
    """Says of itself that it is on a GPU."""

    is_cuda = True


@pytest.fixture
def kernels(monkeypatch):
    """Puts something in the place of the kernels; the calls of it."""
    calls = []

    def replace(kernels):
        module = type(sys)("kquant_cli.encoders.annealed.anneal_triton")
        module.anneal_fused = lambda *args: calls.append(args) or kernels(*args)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(annealing, "find_spec", lambda name: True)
        monkeypatch.setattr(annealing, "library", lambda name: None)
        return calls

    annealing._trial.cache_clear()
    yield replace
    annealing._trial.cache_clear()


@pytest.fixture
def said(monkeypatch):
    """What is said to the library's log, whatever other tests have made of it."""
    messages = []
    monkeypatch.setattr(logging.getLogger("kquant_cli"), "warning", lambda text, *args: messages.append(text % args))
    return messages


def failing(*_: object) -> None:
    raise RuntimeError("no ptxas\nand more")


def wrong_codes(x: torch.Tensor, bases: object, drive: object) -> tuple[torch.Tensor, torch.Tensor]:
    codes, sums = _anneal_torch(x, bases, drive)
    return codes ^ 1, sums


def wrong_sums(x: torch.Tensor, bases: object, drive: object) -> tuple[torch.Tensor, torch.Tensor]:
    codes, sums = _anneal_torch(x, bases, drive)
    return codes, sums * 1.1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [(failing, "RuntimeError: no ptxas and more"), (wrong_codes, "0% of their codes"), (wrong_sums, "100% of their")],
)
def test_kernels_that_fail_or_are_wrong_are_not_used_and_that_is_said_once(kernels, said, fault, reason):
    calls = kernels(fault)
    x, drive = reference.gaussian(20, 96), drive_for(16, 96, 4, 2)
    expected = anneal(x, CoupledBases(96, SEED), drive)
    for _ in range(2):
        assert torch.equal(anneal(x.as_subclass(OnAGpu), CoupledBases(96, SEED), drive)[0], expected[0])
    assert len(calls) == 1
    (message,) = said
    assert reason in message


def test_kernels_that_are_right_are_used(kernels, said):
    calls = kernels(_anneal_torch)
    x, drive = reference.gaussian(20, 96), drive_for(16, 96, 4, 2)
    for _ in range(2):
        anneal(x.as_subclass(OnAGpu), CoupledBases(96, SEED), drive)
    assert [len(args[0]) for args in calls] == [annealing.TRIED[0], 20, 20]
    assert not said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("levels", [2, 3, 16, 256])
def test_on_a_gpu_the_kernels_work_and_are_as_good_as_torch(levels):
    """A sum that is rounded otherwise moves a few positions; the error is the same."""
    x, drive = reference.gaussian(64, 768).cuda(), drive_for(levels, 768)
    bases = CoupledBases(768, SEED)
    assert annealing._kernels_work(x.device, drive.codebook)
    codes, sums = annealing._anneal_kernels(x, bases, drive)
    expected, squares = _anneal_torch(x, bases, drive)
    torch.testing.assert_close(sums[:5], squares[:5], rtol=1e-3, atol=0)

    def error(found: torch.Tensor) -> float:
        u, v = (drive.codebook.cuda()[:, column][found.long()] for column in (0, 1))
        return float((x - u - bases.couple(v)).square().mean())

    assert error(codes) == pytest.approx(error(expected), rel=0.02)
