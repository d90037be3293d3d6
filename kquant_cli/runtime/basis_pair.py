"""Activations in the coordinates of a frame's two right bases: what a product with the codes multiplies.

    a = R_u^T (x / channel_scale),    b = R_v^T (x / channel_scale)

The annealed encoder's bases share a transform (bases/coupled.py). For a few tokens on a CPU native/transform.h makes
both in one call, where torch's dozens of small operations would take longer than the product. All else goes through
the bases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from kquant_cli.bases import Basis, BasisSpec, CoupledBases, basis_for
from kquant_cli.runtime.layer_loops import loops

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
    pair = CoupledBases.of(right_u, right_v)
    if both and pair is not None and _is_native(pair, x, inverse_channel_scale):
        return _native_pair(pair, x, inverse_channel_scale)
    if inverse_channel_scale is not None:
        x = (x * inverse_channel_scale).to(x.dtype)
    a = x if right_u is None else make(right_u).adjoint(x)
    if not both or right_u == right_v:
        return a, a if both else None
    if pair is not None:
        return a, pair.couple_adjoint(a, make)
    return a, x if right_v is None else make(right_v).adjoint(x)


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


@lru_cache(maxsize=KEPT)
def second_by_order(pair: CoupledBases) -> Tensor:
    """The second signs as the loops read them: (m, 2^k)."""
    tables = pair.loop_tables()
    assert tables is not None
    return tables.second.view(tables.power, tables.order).T.contiguous()


def _native_pair(pair: CoupledBases, x: Tensor, inverse: Tensor | None) -> tuple[Tensor, Tensor]:
    tables = pair.loop_tables()
    assert tables is not None
    x = x.detach().contiguous()
    a, b = torch.empty_like(x), torch.empty_like(x)
    workspace = x.new_empty(2 * pair.size)  # torch aligns to 64 bytes; another thread may be at work with these tables
    loops().kquant_transform_pair(
        x.data_ptr(),
        x.numel() // pair.size,
        *(tables.power, tables.order),
        None if inverse is None else inverse.data_ptr(),
        *(tables.first.data_ptr(), second_by_order(pair).data_ptr()),
        *(tables.dense.data_ptr(), tables.dense_transposed.data_ptr()),
        *(workspace.data_ptr(), a.data_ptr(), b.data_ptr()),
    )
    return a, b
