"""Products of packed matrices with activations: one file a backend, chosen by device and shape.

A backend is a module with `supports(packed, a, split)` and `product(packed, a, b, split)`; the first of `BACKENDS` that
supports a product computes it.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor

from kquant_cli.errors import KQuantError
from kquant_cli.runtime.products import gpu, lookup, native, reference
from kquant_cli.runtime.products.gradient import DifferentiableProduct, transposed_product
from kquant_cli.runtime.products.packed import Packed

__all__ = ["BACKENDS", "Packed", "asked_backend", "backend_for", "product", "transposed_product"]

BACKENDS: dict[str, ModuleType] = {"triton": gpu, "lookup": lookup, "native": native, "reference": reference}


def product(packed: Packed, a: Tensor, b: Tensor | None, split: bool) -> tuple[Tensor, Tensor | None]:
    """sum_j Cu[code_ij] a_j and sum_j Cv[code_ij] b_j for activations a and b (tokens, columns), each (tokens, rows).

    Where not `split`, their sum and None; b is None where the codebook has one column. Computed by the first backend
    that supports it, in float32 (float64 for float64 activations); the result has the activations' dtype.
    """
    chosen = BACKENDS[backend_for(packed, a, split)].product
    if torch.is_grad_enabled() and (a.requires_grad or (b is not None and b.requires_grad)):
        return DifferentiableProduct.apply(a, b, packed, split, chosen)
    return chosen(packed, a, b, split)


def backend_for(packed: Packed, a: Tensor, split: bool) -> str:
    """The name of the backend that computes this product."""
    if asked_backend() == "reference":
        return "reference"
    return next(name for name, backend in BACKENDS.items() if backend.supports(packed, a, split))


def asked_backend() -> str | None:
    """What KQUANT_BACKEND asks for: the plain `reference`, or `triton` and no CUDA kernels on a GPU; None: the fastest.

    Raises KQuantError where it is something else.
    """
    asked = os.environ.get("KQUANT_BACKEND") or None
    if asked not in (None, "reference", "triton"):
        raise KQuantError(
            f"KQUANT_BACKEND is {asked!r}, expected reference or triton; leave it out for the fastest that runs"
        )
    return asked
