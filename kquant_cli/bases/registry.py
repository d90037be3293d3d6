"""The kinds of bases by name, and the making of a basis from its spec. A new kind is one file and one line here."""

from __future__ import annotations

from collections import deque
from weakref import WeakValueDictionary

from kquant_cli.bases.basis import Basis, GeneratedBasis
from kquant_cli.bases.butterfly import Butterfly
from kquant_cli.bases.dct import DCT
from kquant_cli.bases.dense import QR
from kquant_cli.bases.givens import Givens
from kquant_cli.bases.hadamard import Hadamard
from kquant_cli.bases.hadamard_dct import HadamardDCT, SignedHadamardDCT, TwiceSignedHadamardDCT
from kquant_cli.bases.householder import Householder
from kquant_cli.bases.identity import Identity
from kquant_cli.bases.signed import SignedDCT, SignedDCTII, SignedHadamard
from kquant_cli.bases.spec import BasisSpec
from kquant_cli.errors import KQuantError
from kquant_cli.suggestions import near

MOST_NUMBERS = 2**28  # of a basis: 2 GB in float64, which is `qr` of 16384
KEPT = 4  # bases that stay in memory with nobody using them: `qr` of 8192 is 512 MB

BASES: dict[str, type[GeneratedBasis]] = {
    "identity": Identity,
    "dct": DCT,
    "hadamard": Hadamard,
    "signed_hadamard": SignedHadamard,
    "hadamard_dct": HadamardDCT,
    "signed_hadamard_dct": SignedHadamardDCT,
    "twice_signed_hadamard_dct": TwiceSignedHadamardDCT,
    "signed_dct_ii": SignedDCTII,
    "signed_dct": SignedDCT,
    "butterfly": Butterfly,
    "householder": Householder,
    "givens": Givens,
    "qr": QR,
}


def require_known(spec: BasisSpec) -> BasisSpec:
    """The spec itself; KQuantError where there is no such kind or option, or the basis would be too large."""
    if not isinstance(spec.kind, str) or spec.kind not in BASES:
        meant = near(str(spec.kind), BASES) or sorted(BASES)
        raise KQuantError(f"unknown basis '{spec.kind}': did you mean {' or '.join(map(repr, meant))}?")
    known = BASES[spec.kind].options
    for name in spec.options:
        if name not in known:
            allowed = f"its options are {', '.join(known)}" if known else "it has none"
            raise KQuantError(f"basis '{spec.kind}' has no option '{name}': {allowed}")
    if (numbers := BASES[spec.kind].numbers(spec)) > MOST_NUMBERS:
        options = "".join(f" and {name} {value}" for name, value in spec.options.items())
        raise KQuantError(
            f"basis '{spec.kind}' of size {spec.size}{options} takes {numbers} numbers: expected at most {MOST_NUMBERS}"
        )
    return spec


def basis_for(spec: BasisSpec) -> Basis:
    """The basis of `spec`; the same object as before while somebody uses it or it is among the last few made.

    Raises KQuantError for an unknown kind or option, or a size of which the kind has no basis.
    """
    key = (spec.kind, spec.size, spec.seed, tuple(sorted(spec.options.items())))
    basis = _alive.get(key)
    if basis is None:
        basis = _alive[key] = BASES[require_known(spec).kind](spec)
    if basis in _recent:
        _recent.remove(basis)
    _recent.append(basis)
    return basis


def make_basis(kind: str, size: int, seed: int = 0, **options: int) -> Basis:
    """A new basis of `kind` (`BASES`) and `size`; raises as `basis_for` does."""
    spec = require_known(BasisSpec(kind, size, seed, options))
    return BASES[spec.kind](spec)


_alive: WeakValueDictionary[tuple, Basis] = WeakValueDictionary()
_recent: deque[Basis] = deque(maxlen=KEPT)
