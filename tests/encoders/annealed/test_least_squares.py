"""Codebook and scales against numpy's least squares."""

import annealed_reference as reference
import numpy as np
import pytest
import torch

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed.least_squares import fit_scales, refit_codebook

SIZE = 96


def case(levels, rows=60, seed=0):
    """Rows, the codes that annealing finds, the coupling, its matrix, and a codebook that is not the best."""
    x = reference.gaussian(rows, SIZE, seed)
    a, b = reference.frame(SIZE, 3)
    angles = 2 * np.pi * (np.arange(levels) + 0.5) / levels
    codebook = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    betas = np.geomspace(1, levels**1.4, 30)
    codes, _ = reference.anneal(x.double().numpy(), a.T @ b, codebook, betas, np.full(30, 0.5), [])
    codebook += 0.2 * np.random.RandomState(seed).standard_normal((levels, 2))
    return x, torch.from_numpy(codes).to(torch.uint8), a.T @ b, torch.from_numpy(codebook).float()


def least_squares(x, codes, q, levels):
    """The joint optimum (levels, 2): x is linear in the 2 K numbers."""
    ones = np.eye(levels)[codes.numpy()]  # (rows, size, levels)
    design = np.concatenate([ones, np.einsum("ij,rjk->rik", q, ones)], axis=2).reshape(-1, 2 * levels)
    return np.linalg.lstsq(design, x.double().numpy().ravel(), rcond=None)[0].reshape(2, levels).T


def error(x, codes, q, codebook):
    return reference.squares(x.double().numpy(), codes.numpy().astype(int), q, np.asarray(codebook, float)).sum()


@pytest.mark.parametrize("levels", [2, 3, 8, 16])
def test_the_refit_is_the_least_squares_optimum(levels):
    x, codes, q, codebook = case(levels)
    found = refit_codebook(x, codes, CoupledBases(SIZE, 3), codebook)
    best = least_squares(x, codes, q, levels)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, best, rtol=0, atol=1e-3)
    assert error(x, codes, q, found) <= error(x, codes, q, best) * (1 + 1e-5)


@pytest.mark.parametrize("levels", [2, 5, 64])
def test_the_refit_never_raises_the_error(levels):
    for seed in range(3):
        x, codes, q, codebook = case(levels, rows=8, seed=seed)
        found = refit_codebook(x, codes, CoupledBases(SIZE, 3), codebook)
        assert error(x, codes, q, found) < error(x, codes, q, codebook)
        again = refit_codebook(x, codes, CoupledBases(SIZE, 3), found)
        assert error(x, codes, q, again) <= error(x, codes, q, found) * (1 + 1e-6)


def test_points_that_no_position_has_stay():
    x, codes, q, codebook = case(6)
    codes[codes == 2] = 3
    found = refit_codebook(x, codes, CoupledBases(SIZE, 3), codebook)
    assert torch.equal(found[2], codebook[2])
    used = [0, 1, 3, 4, 5]
    names = torch.tensor([0, 1, 0, 2, 3, 4])
    np.testing.assert_allclose(found[used], least_squares(x, names[codes.long()], q, 5), rtol=0, atol=1e-3)


def test_scales_are_the_projections():
    """<x, z> / <z, z>, by numpy's least squares row by row; 0 where z is."""
    generator = np.random.RandomState(0)
    x, z = generator.standard_normal((2, 7, 50))
    z[3] = 0
    scales = fit_scales(torch.from_numpy(x).float(), torch.from_numpy(z).float())
    for row in range(7):
        closed = np.linalg.lstsq(z[row, :, None], x[row], rcond=None)[0][0] if row != 3 else 0
        assert float(scales[row]) == pytest.approx(closed, rel=1e-4, abs=1e-6)
    assert fit_scales(torch.zeros(1, 5), torch.ones(1, 5)).tolist() == [0]
