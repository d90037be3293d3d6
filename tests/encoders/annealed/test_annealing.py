"""The sweeps: torch and compiled loops against the formulas in float64 (annealed_reference)."""

import annealed_reference as reference
import numpy as np
import pytest
import torch

from kquant_cli.bases import CoupledBases
from kquant_cli.encoders.annealed import annealing
from kquant_cli.encoders.annealed.annealing import anneal
from kquant_cli.encoders.annealed.schedule import find_schedule, points
from kquant_cli.encoders.annealed.sweeps import Sweeps, moving_positions
from kquant_cli.native import library
from kquant_cli.threads import for_each

SEED = 3
LEVELS = [2, 3, 4, 5, 16, 40, 256]
compiled_only = pytest.mark.skipif(library("anneal") is None, reason="no compiler")


def drive_for(levels, size, count=30, hard=12):
    schedule = find_schedule("ring", levels, "balanced")
    moving = moving_positions(hard, size, 0.4, 1)
    return Sweeps(points("ring", levels, schedule), schedule.betas(count), schedule.momenta(count), moving)


def dense_q(size):
    a, b = reference.frame(size, SEED)
    return a.T @ b


def by_torch(x, size, drive):
    codes, sums = annealing._anneal_torch(x, CoupledBases(size, SEED), drive)
    return codes.numpy(), sums.numpy() / x.numel()


def by_loops(x, size, drive):
    codes, trace = annealing._anneal_compiled(library("anneal"), x, CoupledBases(size, SEED).loop_tables(), drive)
    return codes.numpy(), trace.numpy()


def by_reference(x, size, drive):
    numbers = (part.double().numpy() for part in (drive.codebook, drive.betas, drive.momenta))
    return reference.anneal(x.double().numpy(), dense_q(size), *numbers, drive.moving.numpy())


def error(x, codes, size, drive):
    codebook = drive.codebook.double().numpy()
    return reference.squares(x.double().numpy(), codes.astype(int), dense_q(size), codebook).sum() / x.numel()


@pytest.mark.parametrize("size", [1, 2, 3, 12, 96, 100, 1026])
def test_the_coupling_is_that_of_the_frames_bases(size):
    """Q = A^T B; 1026 = 2 * 513, an order that is not kept as a dense matrix."""
    x = reference.gaussian(5, size)
    coupling, q = CoupledBases(size, SEED), dense_q(size)
    np.testing.assert_allclose(coupling.couple(x), x.double().numpy() @ q.T, rtol=0, atol=3e-6 * size**0.25)
    np.testing.assert_allclose(coupling.couple_adjoint(x), x.double().numpy() @ q, rtol=0, atol=3e-6 * size**0.25)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("size", [1, 3, 12, 100])
def test_torch_follows_the_formulas(size, levels):
    x, drive = reference.gaussian(20, size), drive_for(levels, size, count=16, hard=5)
    codes, trace = by_torch(x, size, drive)
    expected, expected_trace = by_reference(x, size, drive)
    np.testing.assert_allclose(trace[:8], expected_trace[:8], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trace, expected_trace, rtol=2e-3, atol=1e-4)
    assert (codes == expected).mean() >= (0.97 if levels == 256 else 0.995)
    assert error(x, codes, size, drive) == pytest.approx(error(x, expected, size, drive), rel=5e-3)


@compiled_only
@pytest.mark.parametrize(
    ("size", "levels"),
    [*((12, levels) for levels in LEVELS), *((size, levels) for size in (1, 3, 96, 100, 576) for levels in (4, 40))],
)
def test_the_compiled_loops_follow_the_torch_ones(size, levels):
    """Their exponentials are right to 1e-4, and annealing carries that on: a few positions end elsewhere, as good."""
    x, drive = reference.gaussian(17 if size == 576 else 70, size), drive_for(levels, size, 24, 6)
    codes, trace = by_loops(x, size, drive)
    expected, expected_trace = by_torch(x, size, drive)
    np.testing.assert_allclose(trace[:5], expected_trace[:5], rtol=5e-4, atol=1e-4)
    assert (codes == expected).mean() >= (0.85 if levels < 256 else 0.6)
    few = {3: 0.2, 12: 0.15}.get(size, 0.02)  # some rows end better, some worse: 1 / sqrt(positions)
    assert error(x, codes, size, drive) == pytest.approx(error(x, expected, size, drive), rel=few)


@compiled_only
@pytest.mark.parametrize("levels", [4, 16])
def test_the_compiled_loops_are_as_good(levels):
    """On 60,000 positions their error is that of torch to 1%."""
    x, drive = reference.gaussian(100, 576, seed=8), drive_for(levels, 576, 40)
    expected = error(x, by_torch(x, 576, drive)[0], 576, drive)
    assert error(x, by_loops(x, 576, drive)[0], 576, drive) == pytest.approx(expected, rel=0.01)


@compiled_only
@pytest.mark.parametrize("size", [64, 96, 192])
def test_the_compiled_loops_in_a_single_sweep(size):
    """One sweep and no more: nothing is carried on, so that the fields are tested one by one."""
    x, drive = reference.gaussian(20, size), drive_for(16, size, count=1, hard=0)
    codes, trace = by_loops(x, size, drive)
    expected, expected_trace = by_reference(x, size, drive)
    np.testing.assert_allclose(trace, expected_trace, rtol=1e-4)
    assert (codes == expected).mean() > 0.999


@pytest.mark.parametrize("loops", [by_torch, pytest.param(by_loops, marks=compiled_only)])
def test_without_momentum(loops):
    """mu = 0: the plain mean-field iteration, and other codes than with it."""
    x, drive = reference.gaussian(30, 96), drive_for(8, 96)
    plain = Sweeps(drive.codebook, drive.betas, torch.zeros_like(drive.momenta), drive.moving)
    codes, trace = loops(x, 96, plain)
    expected, expected_trace = by_reference(x, 96, plain)
    np.testing.assert_allclose(trace[:10], expected_trace[:10], rtol=1e-3)
    assert (codes == expected).mean() > 0.97
    assert (codes == loops(x, 96, drive)[0]).mean() < 0.9


@pytest.mark.parametrize("loops", [by_torch, pytest.param(by_loops, marks=compiled_only)])
@pytest.mark.parametrize("levels", [4, 16, 40])
def test_hard_sweeps_never_worsen_a_row(loops, levels):
    x = reference.gaussian(20, 96)
    q = dense_q(96)
    previous = np.full(20, np.inf)
    for hard in (0, 1, 3, 8):
        drive = drive_for(levels, 96, 12, 8)
        drive = Sweeps(drive.codebook, drive.betas, drive.momenta, drive.moving[:hard])
        codes, _ = loops(x, 96, drive)
        now = reference.squares(x.double().numpy(), codes.astype(int), q, drive.codebook.double().numpy())
        assert (now <= previous * (1 + 1e-5)).all()
        previous = now
    before = error(x, loops(x, 96, drive_for(levels, 96, 12, 0))[0], 96, drive)
    assert previous.sum() / x.numel() < before


@compiled_only
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 70])
def test_the_codes_of_a_row_are_its_own(rows):
    """Rows are lanes of vectors, 16 at a time, in blocks of 64: none sees its neighbours, or the gaps."""
    x, drive = reference.gaussian(90, 96), drive_for(5, 96)
    codes, _ = by_loops(x, 96, drive)
    part, trace = by_loops(x[11 : 11 + rows].contiguous(), 96, drive)
    assert (part == codes[11 : 11 + rows]).all()
    expected = by_torch(x[11 : 11 + rows], 96, drive)[1]
    np.testing.assert_allclose(trace[:5], expected[:5], rtol=3e-4)


def test_the_torch_codes_of_a_row_are_its_own(monkeypatch):
    monkeypatch.setattr(annealing, "library", lambda name: None)
    x, drive = reference.gaussian(70, 96), drive_for(5, 96, 10, 3)
    codes, trace = anneal(x, CoupledBases(96, SEED), drive)
    monkeypatch.setattr(annealing, "ELEMENTS", {"cpu": 17 * 96})
    parts, parts_trace = anneal(x, CoupledBases(96, SEED), drive)
    assert (codes == parts).float().mean() > 0.99  # products with matrices of other sizes round in another way
    torch.testing.assert_close(parts_trace, trace, rtol=1e-3, atol=0)
    assert parts_trace[0] == pytest.approx(by_reference(x, 96, drive)[1][0], rel=1e-5)  # a mean, not a sum of chunks


def test_anneal_takes_rows_in_any_layout():
    x, drive = reference.gaussian(40, 96), drive_for(4, 96)
    codes, trace = anneal(x, CoupledBases(96, SEED), drive)
    for other in (x.T.contiguous().T, torch.stack([x, -x], dim=2)[..., 0]):
        assert not other.is_contiguous()
        found, found_trace = anneal(other, CoupledBases(96, SEED), drive)
        assert torch.equal(found, codes)
        assert torch.equal(found_trace, trace)


def test_anneal_takes_the_compiled_loops_where_it_can(monkeypatch):
    """Not for orders of the DCT that are too large for a matrix."""
    called = []
    monkeypatch.setattr(annealing, "_anneal_compiled", lambda *args: called.append(args) or (None, None))
    monkeypatch.setattr(annealing, "library", lambda name: "loops")
    anneal(reference.gaussian(2, 96), CoupledBases(96, SEED), drive_for(4, 96))
    assert len(called) == 1
    codes, _ = anneal(reference.gaussian(2, 1026), CoupledBases(1026, SEED), drive_for(4, 1026, count=3))
    assert len(called) == 1
    assert codes.shape == (2, 1026)


@compiled_only
def test_the_order_of_the_work_does_not_matter(monkeypatch):
    """Blocks of rows that are worked on in reverse."""
    x, drive = reference.gaussian(70, 64), drive_for(4, 64)
    codes, trace = by_loops(x, 64, drive)

    def in_reverse(work, *parts, device):
        return for_each(work, *[tuple(reversed(part)) for part in parts], device=device)

    monkeypatch.setattr(annealing, "for_each", in_reverse)
    again, again_trace = by_loops(x, 64, drive)
    assert (codes == again).all()
    assert (trace == again_trace).all()


def test_moving_positions_are_a_share_and_never_change():
    moving = moving_positions(12, 500, 0.4, 7)
    assert moving.dtype == torch.bool
    assert moving.float().mean() == pytest.approx(0.4, abs=0.03)
    assert torch.equal(moving_positions(12, 500, 0.4, 7), moving)
    assert (
        moving_positions(2, 8, 0.4, 7).int().tolist()
        == (np.random.RandomState(7).random_sample((2, 8)) < 0.4).astype(int).tolist()
    )
    assert not torch.equal(moving_positions(12, 500, 0.4, 8), moving)
