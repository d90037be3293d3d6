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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from kquant_cli.bases import BasisSpec
from kquant_cli.bases.basis import Basis
from kquant_cli.bases.dct import dct_matrix
from kquant_cli.bases.hadamard_dct import LARGEST_DENSE, power_and_order, two_sign_draws
from kquant_cli.native import library

FEW = 16  # tokens; torch's operations on more take their time for the numbers, not for themselves
KEPT = 64  # pairs of bases whose tables stay in memory


def adjoint_pair(
    right_u: BasisSpec | None,
    right_v: BasisSpec | None,
    x: Tensor,
    inverse_channel_scale: Tensor | None = None,
    both: bool = True,
    make: Callable[[BasisSpec], Basis] = BasisSpec.make,
) -> tuple[Tensor, Tensor | None]:
    """R_u^T and R_v^T (None: the identity) of x (..., columns), times `inverse_channel_scale` (columns,) before.

    The results have x's dtype. Unless `both`, the second is None; where both bases are the same, it is the first.
    `make` gives the basis of a spec.
    """
    if both and _is_native(right_u, right_v, x, inverse_channel_scale):
        assert right_u is not None
        return _native_pair(right_u, x, inverse_channel_scale)
    if inverse_channel_scale is not None:
        x = (x * inverse_channel_scale).to(x.dtype)
    a = x if right_u is None else make(right_u).adjoint(x)
    if not both or right_u == right_v:
        return a, a if both else None
    if _are_annealed(right_u, right_v):
        assert right_u is not None
        return a, make(BasisSpec("hadamard_dct", right_u.size)).apply(a * _second_signs(right_u, x))
    return a, x if right_v is None else make(right_v).adjoint(x)


def _are_annealed(u: BasisSpec | None, v: BasisSpec | None) -> bool:
    """Whether they are A and B of one seed."""
    return (
        u is not None
        and v is not None
        and (u.kind, v.kind) == ("signed_hadamard_dct", "twice_signed_hadamard_dct")
        and (u.size, u.seed) == (v.size, v.seed)
    )


def _second_signs(spec: BasisSpec, like: Tensor) -> Tensor:
    return _signs_on(spec.size, spec.seed, like.device, like.dtype)


@lru_cache(maxsize=KEPT)
def _signs_on(size: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        return two_sign_draws(seed, size)[1].to(device, dtype)


def _is_native(u: BasisSpec | None, v: BasisSpec | None, x: Tensor, inverse: Tensor | None) -> bool:
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and u is not None
        and _are_annealed(u, v)
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
    """What the loops read: as tensors, which own the memory, and as addresses."""

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
