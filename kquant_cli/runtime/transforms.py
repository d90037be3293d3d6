"""Activations in the coordinates of a frame's two right bases: what a product with the codes multiplies.

    a = R_u^T (x / channel_scale),    b = R_v^T (x / channel_scale)

The annealed encoder's bases, A = D_1 T and B = D_1 T D_2 T^T of one seed (bases/hadamard_dct.py), have
a = T^T (eps_1 x) and b = T (eps_2 a): two transforms, not three. For a few tokens on a CPU native/transform.cpp makes
both in one call, where torch's dozens of small operations would take longer than the product. All else goes through
the bases.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from kquant_cli.bases import BasisSpec
from kquant_cli.bases.dct import dct_matrix
from kquant_cli.bases.hadamard_dct import LARGEST_DENSE, power_and_order, two_sign_draws
from kquant_cli.native import library

FEW = 16  # tokens; torch's operations on more take their time for the numbers, not for themselves
KEPT = 64  # pairs of bases whose tables stay in memory


def adjoint_pair(
    right_u: BasisSpec | None, right_v: BasisSpec | None, x: Tensor, inverse_channel_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """R_u^T and R_v^T (None: the identity) of x (..., columns), times `inverse_channel_scale` (columns,) before."""
    if _is_native(right_u, right_v, x, inverse_channel_scale):
        assert right_u is not None
        return _native_pair(right_u, x, inverse_channel_scale)
    if inverse_channel_scale is not None:
        x = x * inverse_channel_scale.to(x.dtype)
    return _adjoint(right_u, x), _adjoint(right_v, x)


def _adjoint(spec: BasisSpec | None, x: Tensor) -> Tensor:
    return x if spec is None else spec.make().adjoint(x)


def _is_native(u: BasisSpec | None, v: BasisSpec | None, x: Tensor, inverse: Tensor | None) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and u is not None
        and v is not None
        and (u.kind, v.kind) == ("signed_hadamard_dct", "twice_signed_hadamard_dct")
        and u.size == v.size == x.shape[-1]
        and u.seed == v.seed
        and x.numel() <= FEW * u.size
        and (inverse is None or (inverse.dtype == torch.float32 and inverse.is_contiguous()))
        and not (x.requires_grad and torch.is_grad_enabled())
        and _is_fast(u.size)
        and library("transform") is not None
    )


def _is_fast(size: int) -> bool:
    """Whether C is a matrix, and either small or combines rows of some length; measured."""
    power, order = power_and_order(size)
    return order <= (LARGEST_DENSE if power >= 32 else 64)


@dataclass(frozen=True)
class _Tables:
    """What the loops read, and their workspace: as tensors, which own the memory, and as addresses."""

    tensors: tuple[Tensor, ...]
    shape: tuple[int, int]  # (2^k, m)
    addresses: tuple[int, ...]


@lru_cache(maxsize=KEPT)
def _tables(size: int, seed: int) -> _Tables:
    power, order = power_and_order(size)
    first, second = (signs.div(math.sqrt(power)) for signs in two_sign_draws(seed, size))
    dense = dct_matrix(order)
    tables = (first, second.view(power, order).T, dense, dense.T)
    tensors = tuple(table.to(torch.float32).contiguous() for table in tables)
    return _Tables(tensors, (power, order), tuple(tensor.data_ptr() for tensor in tensors))


def _native_pair(spec: BasisSpec, x: Tensor, inverse: Tensor | None) -> tuple[Tensor, Tensor]:
    tables = _tables(spec.size, spec.seed)
    x = x.detach().contiguous()
    a, b = torch.empty_like(x), torch.empty_like(x)
    workspace = x.new_empty(2 * spec.size)  # torch aligns to 64 bytes; another thread may be at work with these tables
    _loops()(
        x.data_ptr(),
        x.numel() // spec.size,
        *tables.shape,
        None if inverse is None else inverse.data_ptr(),
        *tables.addresses,
        workspace.data_ptr(),
        a.data_ptr(),
        b.data_ptr(),
    )
    return a, b


@cache
def _loops() -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    """The function, told its arguments' types."""
    loops = library("transform")
    assert loops is not None
    pointer, number = ctypes.c_void_p, ctypes.c_long
    loops.kquant_transform_pair.argtypes = [pointer, number, number, number, *[pointer] * 8]
    loops.kquant_transform_pair.restype = None
    return loops.kquant_transform_pair
