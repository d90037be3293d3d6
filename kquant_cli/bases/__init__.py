"""Orthogonal bases: operators with `apply` (Q x), `adjoint` (Q^T x) and `dense`, one file a kind, and a registry.

`spec` is what regenerates a basis, as data; `basis` what a basis is; `application` how it reaches every axis of a
tensor; `registry` makes a basis of a spec. The other modules are the mathematics.
"""

from kquant_cli.bases.basis import Basis
from kquant_cli.bases.coupled import CoupledBases
from kquant_cli.bases.dense import DenseBasis
from kquant_cli.bases.registry import BASES, basis_for, make_basis, require_known
from kquant_cli.bases.spec import BasisSpec

__all__ = ["BASES", "Basis", "BasisSpec", "CoupledBases", "DenseBasis", "basis_for", "make_basis", "require_known"]
