"""Bases that stay in memory as long as the layer that computes with them.

`basis_for` keeps a few bases with nobody using them; a model whose layers have more sizes than that would make
every one anew (signs, tables, their way to the device) at every token.
"""

from __future__ import annotations

from typing import Any

from kquant_cli.bases import BasisSpec, basis_for
from kquant_cli.bases.basis import Basis


class HeldBases:
    """Makes bases from their specs at the first call; copies and pickles start with none."""

    def __init__(self) -> None:
        self._made: dict[BasisSpec, Basis] = {}

    def __call__(self, spec: BasisSpec) -> Basis:
        """The basis of `spec`."""
        basis = self._made.get(spec)
        if basis is None:
            basis = self._made[spec] = basis_for(spec)
        return basis

    def __reduce__(self) -> tuple[Any, ...]:
        return HeldBases, ()
