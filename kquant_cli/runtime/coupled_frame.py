"""The frames that whole layers have kernels for on a GPU: coupled bases on one side of the codes.

    input side:   W^ = diag(s) (Cu[codes] S A^T + Cv[codes] S B^T) diag(1 / d)
    output side:  W^ = diag(s) (A Cu[codes] + B Cv[codes]) S R^T diag(1 / d)        (A, B: bases/coupled.py)

R is one basis for both terms, of the kind of A, or the identity.
"""

from __future__ import annotations

from typing import NamedTuple

from kquant_cli.bases import BasisSpec, CoupledBases
from kquant_cli.encoded import Frame


class RightBases(NamedTuple):
    """What an input is transformed by: both bases of `pair`; or one for both terms (`split`), its first or none."""

    pair: CoupledBases | None
    split: bool

    @classmethod
    def of(cls, right_u: BasisSpec | None, right_v: BasisSpec | None) -> RightBases | None:
        """Those of two specs; None where they are others."""
        if (pair := CoupledBases.of(right_u, right_v)) is not None:
            return cls(pair, False)
        one = CoupledBases.beginning_with(right_u)
        return cls(one, True) if right_u == right_v and (right_u is None or one is not None) else None


class CoupledFrame(NamedTuple):
    """A frame with coupled bases on the output side, `left`, or, where that is None, on the input side."""

    left: CoupledBases | None
    right: CoupledBases | None

    @classmethod
    def of(cls, frame: Frame) -> CoupledFrame | None:
        """The same of a layout's frame; None where it is of another kind."""
        left, right = CoupledBases.of(frame.left_u, frame.left_v), RightBases.of(frame.right_u, frame.right_v)
        none = frame.left_u is None and frame.left_v is None
        if right is None or (left is None and not none) or right.split != (left is not None):
            return None
        return cls(left, right.pair)
