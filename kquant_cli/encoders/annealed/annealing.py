"""Mean-field annealing of rows: which point of the codebook each position takes (this project's own method).

A row x of unit mean square is approximated by u + Q v, Q = D T^T (the coupling of bases/coupled.py), where
each pair (u_j, v_j) is one of the points C_k = (c_k, d_k) of the plane. Position j sees the two fields

    t_j = (x - Q v)_j,    s_j = (Q^T (x - u))_j

and, the others held, its best point is the one nearest to (t_j, s_j). To take it at once is to get stuck at once.
Instead u and v are averages over all points at an inverse temperature beta that rises slowly,

    mean(t, s) = sum_k C_k w_k / sum_k w_k,    w_k = exp(-beta |(t, s) - C_k|^2),

and each is extrapolated by a momentum, which is worth a factor of three to five in sweeps:

    a sweep:  u' = mean_u(t, s),  u+ = u' + mu (u' - u),  s = Q^T (x - u+)
              v' = mean_v(t, s),  v+ = v' + mu (v' - v),  t = x - Q v+

At the end every position takes its nearest point, and a few hard sweeps move some of the positions (`moving`) to their
nearest point (hard_sweeps.py). Two transforms a sweep; nothing is read back to the host.

On a CPU with a compiler native/anneal.cpp does the same, some ten times as fast; on a GPU kernels do
(anneal_triton.py), which are tried against torch once before they are used.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from kquant_cli.bases import CoupledBases
from kquant_cli.bases.coupled import LoopTables
from kquant_cli.encoders.annealed.hard_sweeps import settle
from kquant_cli.encoders.annealed.soft_assignment import average
from kquant_cli.encoders.annealed.sweeps import Sweeps, moving_positions
from kquant_cli.native import library
from kquant_cli.threads import for_each

BLOCK = 64  # rows that a thread takes at a time, fewer where there are not so many for each
LANES = 16  # rows that the compiled loops anneal side by side
ELEMENTS = {"cpu": 2**18, "cuda": 2**25}  # that go through torch's operations at a time
TRIED, AGREEING = (8, 192), 0.9  # rows of a trial; the share of its codes: the kernels round otherwise than torch


def anneal(x: Tensor, bases: CoupledBases, drive: Sweeps) -> tuple[Tensor, Tensor]:
    """The codes (rows, size), uint8, of rows x (rows, size), float32; and the trace (sweeps,).

    The trace is the mean over the rows of |x - u - Q v|^2 / size in the course of each sweep, u and v averages.
    """
    x = x.contiguous()  # as the kernels want it
    tables = bases.loop_tables()
    if x.device.type == "cpu" and tables is not None and (compiled := library("anneal")) is not None:
        return _anneal_compiled(compiled, x, tables, drive)
    rows = max(1, ELEMENTS.get(x.device.type, ELEMENTS["cpu"]) // bases.size)
    loops = _anneal_kernels if x.is_cuda and _kernels_work(x.device, drive.codebook) else _anneal_torch
    parts = [loops(part, bases, drive) for part in x.split(rows)]
    return torch.cat([codes for codes, _ in parts]), torch.stack([sums for _, sums in parts]).sum(dim=0) / x.numel()


def _anneal_torch(x: Tensor, bases: CoupledBases, drive: Sweeps) -> tuple[Tensor, Tensor]:
    """Codes, and the sum of squares of each sweep (sweeps,)."""
    codebook = drive.codebook.to(x.device)
    u, v = torch.zeros_like(x), torch.zeros_like(x)
    t, s = x, bases.couple_adjoint(x)
    sums = []
    for beta, momentum in zip(drive.betas.tolist(), drive.momenta.tolist(), strict=True):
        u, extrapolated = average(t, s, codebook, 0, beta, momentum, u)
        sums.append((t - extrapolated).square().sum())
        s = bases.couple_adjoint(x - extrapolated)
        v, extrapolated = average(t, s, codebook, 1, beta, momentum, v)
        t = x - bases.couple(extrapolated)
    return settle(x, t, s, bases, drive.codebook, drive.moving), torch.stack(sums)


def _anneal_kernels(x: Tensor, bases: CoupledBases, drive: Sweeps) -> tuple[Tensor, Tensor]:
    from kquant_cli.encoders.annealed.anneal_triton import anneal_fused  # noqa: PLC0415 (imports Triton)

    return anneal_fused(x, bases, drive)


def _kernels_work(device: torch.device, codebook: Tensor) -> bool:
    return _trial(device, tuple(map(tuple, codebook.tolist())))


@cache
def _trial(device: torch.device, points: tuple[tuple[float, float], ...]) -> bool:
    """Whether the kernels are there, compile for that codebook, and give what torch gives; else a warning says why."""
    if not find_spec("triton"):
        return False
    rows, size = TRIED
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(0)).to(device)
    betas, momenta = torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.6])
    drive = Sweeps(torch.tensor(points), betas, momenta, moving_positions(2, size, 0.4, 0))
    try:
        codes, sums = _anneal_kernels(x, CoupledBases(size, 0), drive)
        expected, squares = _anneal_torch(x, CoupledBases(size, 0), drive)
        agreeing = float((codes == expected).float().mean())
        same = agreeing >= AGREEING and torch.allclose(sums, squares, rtol=1e-3)
        reason = "" if same else f"{agreeing:.0%} of their codes are those of torch"
    except Exception as error:  # whatever a compiler or a driver raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if reason:
        logging.getLogger("kquant_cli").warning(
            "warning: the kernels of the annealing do not work here (%s), so torch does it, more slowly", reason
        )
    return not reason


def _anneal_compiled(compiled: ctypes.CDLL, x: Tensor, bases: LoopTables, drive: Sweeps) -> tuple[Tensor, Tensor]:
    """Codes and trace of contiguous float32 rows on the CPU, in blocks of rows that the threads share."""
    size, power = x.shape[1], bases.power
    tables = [
        *(bases.dense, bases.dense_transposed, bases.second),
        *(drive.codebook.float().contiguous(), drive.betas.float(), drive.momenta.float()),
        drive.moving.to(torch.uint8).contiguous(),
    ]
    transform, drives = ([ctypes.c_void_p(t.data_ptr()) for t in part] for part in (tables[:4], tables[4:]))

    def work(rows: Tensor, codes: Tensor, trace: Tensor) -> None:
        failed = compiled.kquant_anneal(
            *(ctypes.c_void_p(rows.data_ptr()), ctypes.c_long(len(rows)), ctypes.c_long(size), ctypes.c_long(power)),
            *(*transform, len(drive.codebook), drives[0], drives[1], len(drive.betas)),
            *(drives[2], len(drive.moving), ctypes.c_void_p(codes.data_ptr()), ctypes.c_void_p(trace.data_ptr())),
        )
        if failed:
            raise MemoryError(f"no memory to anneal rows of {size} columns")

    codes = torch.empty(x.shape, dtype=torch.uint8)
    trace = torch.empty(len(x), len(drive.betas))
    block = min(BLOCK, -(-len(x) // (LANES * torch.get_num_threads())) * LANES)
    for_each(work, x.split(block), codes.split(block), trace.split(block), device=x.device)
    return codes, trace.double().sum(dim=0).float() / x.numel()
