"""The kinds of bases by name. A new kind is one file and one line here."""

from kquant_cli.bases.basis import GeneratedBasis
from kquant_cli.bases.butterfly import Butterfly
from kquant_cli.bases.dct import DCT
from kquant_cli.bases.dense import QR
from kquant_cli.bases.givens import Givens
from kquant_cli.bases.hadamard import Hadamard
from kquant_cli.bases.hadamard_dct import HadamardDCT, SignedHadamardDCT, TwiceSignedHadamardDCT
from kquant_cli.bases.householder import Householder
from kquant_cli.bases.identity import Identity
from kquant_cli.bases.signed import SignedDCT, SignedDCTII, SignedHadamard

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
