"""The soft assignment in torch and in Triton against the formula in float64, and the encoder on a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec

import annealed_reference as reference
import numpy as np
import pytest
import torch

from kquant_cli.config import EncoderConfig
from kquant_cli.encoders import encode
from kquant_cli.encoders.annealed.soft_assignment import average


def case(levels, shape=(13, 79), seed=0):
    """t, s and old, and a codebook with points of all sizes."""
    generator = np.random.RandomState(seed)
    t, s, old = torch.from_numpy(generator.standard_normal((3, *shape))).float()
    return t, s, old, torch.from_numpy(generator.standard_normal((levels, 2))).float()


def expected(t, s, old, codebook, column, beta, momentum):
    """By the formula; and extrapolated."""
    mean = reference.means(*(part.double().numpy() for part in (t, s, codebook)), beta)[..., column]
    return mean, mean + momentum * (mean - old.double().numpy())


@pytest.mark.parametrize("beta", [0.0, 0.3, 5.0, 80.0])
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("levels", [1, 3, 16, 256])
def test_the_average_is_the_formulas(levels, column, beta):
    t, s, old, codebook = case(levels)
    mean, extrapolated = average(t, s, codebook, column, beta, 0.6, old)
    numbers = expected(t, s, old, codebook, column, beta, 0.6)
    np.testing.assert_allclose(mean, numbers[0], rtol=0, atol=1e-5 + 2e-6 * beta)
    np.testing.assert_allclose(extrapolated, numbers[1], rtol=0, atol=2e-5 + 4e-6 * beta)


@pytest.mark.parametrize("column", [0, 1])
def test_two_levels_are_a_hyperbolic_tangent(column):
    """Points +-p: the average is p tanh(2 beta (t p_0 + s p_1))."""
    t, s, old, _ = case(2)
    point = torch.tensor([0.7, -0.4])
    mean, _ = average(t, s, torch.stack([point, -point]), column, 1.3, 0.0, old)
    closed = point[column] * torch.tanh(2 * 1.3 * (t * point[0] + s * point[1]))
    torch.testing.assert_close(mean, closed, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("beta", "size"), [(1e5, 1.0), (1e5, 1e4), (1e-30, 1e4), (2.0, 1e4)])
def test_extremes_are_finite_and_within_the_points(beta, size):
    t, s, old, codebook = case(16)
    for column in (0, 1):
        mean, extrapolated = average(size * t, size * s, codebook, column, beta, 0.6, old)
        assert torch.isfinite(extrapolated).all()
        assert mean.min() >= codebook[:, column].min() - 1e-5
        assert mean.max() <= codebook[:, column].max() + 1e-5


def test_large_betas_choose_the_nearest_point():
    t, s, old, codebook = case(16)
    codes = reference.nearest(*(part.double().numpy() for part in (t, s, codebook)))
    mean, _ = average(t, s, codebook, 0, 1e5, 0.0, old)
    assert ((mean - codebook[:, 0][torch.from_numpy(codes)]).abs() < 1e-3).float().mean() > 0.995


def test_the_inputs_are_left_alone():
    parts = case(5)
    before = [part.clone() for part in parts]
    average(*parts[:2], parts[3], 0, 2.0, 0.6, parts[2])
    assert all(map(torch.equal, parts, before))


INTERPRETED = """
import numpy, torch
from test_soft_assignment import case, expected
from kquant_cli.encoders.annealed.soft_assignment_triton import blocks, half_sweep
for levels, shape in ((3, (1, 1)), (3, (5, 1000)), (16, (2, 1024)), (256, (1, 1100))):
    x, s, old, codebook = case(levels, shape)
    qv = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for column, beta in ((0, 1.0), (1, 9.0), (0, 1e5))[: 3 if levels < 256 else 2]:
        squares = torch.full((blocks(x),), 7.0)
        mean, out = half_sweep(x, qv, s, old, codebook, column, beta, 0.6, squares)
        means, new = expected(x - qv, s, old, codebook, column, beta, 0.6)
        assert mean.shape == out.shape == x.shape and torch.isfinite(mean).all() and torch.isfinite(out).all()
        if beta < 1e5:
            numpy.testing.assert_allclose(mean, means, rtol=0, atol=4e-5)
            numpy.testing.assert_allclose(out, new if column else x - new, rtol=0, atol=4e-5)
        if column:
            assert (squares == 7).all()
        else:
            error = (x - qv) - (x - out)
            assert abs(squares.sum() - error.square().sum()) <= 1e-4 * error.square().sum()
print("done")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
def test_the_kernel_as_it_is_interpreted():
    """Sizes below, at and above a block of 1024, and no multiples of it. In a process of its own: at import Triton
    decides whether it compiles or interprets."""
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])  # noqa: PTH120
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "done", run.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("side", "levels"), [("input", 4), ("input", 16), ("output", 5), ("input", 256)])
def test_on_a_gpu_the_error_is_that_of_the_cpu(side, levels):
    weight = torch.randn(300, 768, generator=torch.Generator().manual_seed(0))
    config = EncoderConfig(levels=levels, side=side)
    here, there = encode(weight, config), encode(weight.cuda(), config)
    assert there.codes.is_cuda
    assert there.codebook.is_cuda
    assert there.record.relative_error == pytest.approx(here.record.relative_error, rel=0.01)
    error = float((there.decode().cpu() - weight).norm() / weight.norm())
    assert error == pytest.approx(here.record.relative_error, rel=0.01)
    again = encode(weight.cuda(), config)
    assert torch.equal(again.codes, there.codes)
    assert torch.equal(again.codebook, there.codebook)
