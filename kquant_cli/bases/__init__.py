"""Orthogonal bases: operators with `apply` (Q x), `adjoint` (Q^T x) and `dense`, one file a kind, and a registry.

What a basis is stands in `basis`, how it reaches every axis of a tensor in `application`, what regenerates it in
`spec`; the other modules are the mathematics.
"""

from kquant_cli.bases.basis import Basis
from kquant_cli.bases.dense import DenseBasis
from kquant_cli.bases.registry import BASES
from kquant_cli.bases.spec import BasisSpec, make_basis

__all__ = ["BASES", "Basis", "BasisSpec", "DenseBasis", "make_basis"]
