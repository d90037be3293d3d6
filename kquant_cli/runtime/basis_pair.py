"""Activations in the coordinates of a frame's right bases: what a product with the codes multiplies.

    a = R_u^T (x / channel_scale),    b = R_v^T (x / channel_scale)

The annealed encoder's bases share a transform (bases/coupled.py), or both are the first of the two, where the left ones
are coupled. For a few tokens on a CPU native/transform.h makes a and b in one call, where torch's dozens of small
operations would take longer than the product. All else goes through the bases.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from kquant_cli.bases import Basis, BasisSpec, CoupledBases, basis_for
from kquant_cli.runtime.layer_loops import BasesStruct, address, loops

FEW = 16  # tokens; torch's operations on more take their time for the numbers, not for themselves
KEPT = 64  # pairs of bases whose tables stay in memory
SMALL, LONG = 64, 32  # orders of C that are fast alone, and 2^k from which any is


def adjoint_pair(
    right_u: BasisSpec | None,
    right_v: BasisSpec | None,
    x: Tensor,
    inverse_channel_scale: Tensor | None = None,
    both: bool = True,
    make: Callable[[BasisSpec], Basis] = basis_for,
) -> tuple[Tensor, Tensor | None]:
    """R_u^T and R_v^T (None: the identity) of x (..., columns), times `inverse_channel_scale` (columns,) before.

    The results have x's dtype. Unless `both`, the second is None; where both bases are the same, it is the first.
    `make` gives the basis of a spec.
    """
    of_loops = bases_of_loops(right_u, right_v) if both else None
    if of_loops is not None and _is_native(of_loops[0], x, inverse_channel_scale):
        return _native_pair(*of_loops, x, inverse_channel_scale)
    if inverse_channel_scale is not None:
        x = (x * inverse_channel_scale).to(x.dtype)
    a = x if right_u is None else make(right_u).adjoint(x)
    if not both or right_u == right_v:
        return a, a if both else None
    if (pair := CoupledBases.of(right_u, right_v)) is not None:
        return a, pair.couple_adjoint(a, make)
    return a, x if right_v is None else make(right_v).adjoint(x)


def bases_of_loops(first: BasisSpec | None, second: BasisSpec | None) -> tuple[CoupledBases, bool] | None:
    """A pair, and whether it is both of its bases or the first twice; None where two specs are neither."""
    pair = CoupledBases.with_first(first)
    if pair is None or second not in (pair.first, pair.second):
        return None
    return pair, second == pair.second


def _is_native(pair: CoupledBases, x: Tensor, inverse: Tensor | None) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() <= FEW * pair.size
        and (inverse is None or (inverse.dtype == torch.float32 and inverse.is_contiguous()))
        and not (x.requires_grad and torch.is_grad_enabled())
        and is_fast(pair)
        and loops() is not None
    )


def is_fast(pair: CoupledBases) -> bool:
    """Whether C is a matrix, and either small or combines rows of some length; measured."""
    tables = pair.loop_tables()
    return tables is not None and (tables.power >= LONG or tables.order <= SMALL)


@lru_cache(maxsize=2 * KEPT)
def loop_bases(pair: CoupledBases, both: bool) -> BasesStruct:
    """What the loops read of a pair, or without `both` of A alone; the structure has what its addresses point to."""
    tables = pair.loop_tables()
    assert tables is not None
    second = tables.second.view(tables.power, tables.order).T.contiguous() if both else None
    made = BasesStruct(
        power=tables.power,
        order=tables.order,
        first=address(tables.first),
        second=address(second),
        dense=address(tables.dense),
        transposed=address(tables.dense_transposed),
    )
    made.kept = tables, second
    return made


def _native_pair(pair: CoupledBases, both: bool, x: Tensor, inverse: Tensor | None) -> tuple[Tensor, Tensor]:
    x, bases = x.detach().contiguous(), loop_bases(pair, both)
    a = torch.empty_like(x)
    b = torch.empty_like(x) if both else None
    workspace = x.new_empty(2 * pair.size)  # torch aligns to 64 bytes; another thread may be at work with these tables
    addresses = (ctypes.addressof(bases), address(inverse), workspace.data_ptr(), a.data_ptr(), address(b))
    loops().kquant_transform_pair(x.data_ptr(), x.numel() // pair.size, *addresses)
    return a, a if b is None else b
