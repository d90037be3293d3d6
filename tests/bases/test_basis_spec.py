"""Specs: what they refuse, how they are kept, and what seeds do."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch

from kquant_cli.bases import BASES, BasisSpec, basis_for, make_basis
from kquant_cli.errors import KQuantError


@pytest.mark.parametrize("kind", BASES)
def test_the_seed_decides_the_basis(kind):
    """Kinds without randomness are the same with every seed, others quite different; test_basis_golden has which."""
    first, again, other = (make_basis(kind, 36, seed).dense() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) or (first - other).abs().max() > 0.01


@pytest.mark.parametrize("kind", [kind for kind, basis in BASES.items() if "count" in basis.options])
def test_count_changes_the_basis(kind):
    assert not torch.equal(make_basis(kind, 12, count=1).dense(), make_basis(kind, 12, count=2).dense())


def test_a_basis_knows_its_spec():
    assert make_basis("givens", 12, 3, count=9).spec == BasisSpec("givens", 12, 3, {"count": 9})


@pytest.mark.parametrize(
    ("spec", "as_dict"),
    [
        (BasisSpec("dct", 64), {"kind": "dct", "size": 64}),
        (BasisSpec("qr", 64, 9), {"kind": "qr", "size": 64, "seed": 9}),
        (BasisSpec("butterfly", 8, options={"count": 2}), {"kind": "butterfly", "size": 8, "options": {"count": 2}}),
    ],
)
def test_to_and_from_dict(spec, as_dict):
    assert spec.to_dict() == as_dict
    assert BasisSpec.from_dict(as_dict) == spec
    assert hash(BasisSpec.from_dict(as_dict)) == hash(spec)


def test_the_same_spec_gives_the_same_basis_while_it_is_used():
    spec = BasisSpec("butterfly", 16, 4, {"count": 2})
    basis = basis_for(spec)
    for seed in range(10):
        basis_for(BasisSpec("dct", 16, seed))
    assert basis_for(BasisSpec("butterfly", 16, 4, {"count": 2})) is basis
    assert basis_for(BasisSpec("butterfly", 16, 4)) is not basis
    assert torch.equal(basis.dense(), make_basis("butterfly", 16, 4, count=2).dense())


def test_few_are_kept_of_the_unused_bases():
    kept = weakref.ref(basis_for(BasisSpec("dct", 17)))
    gc.collect()
    assert kept() is not None
    for seed in range(4):
        basis_for(BasisSpec("dct", 18, seed))
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("dtc", 8), "unknown basis 'dtc': did you mean 'dct'"),
        (("hadamar", 8), "did you mean 'hadamard'"),
        (("zzz", 8), "unknown basis 'zzz': did you mean 'butterfly' or"),
        (("dct", 0), "'dct' cannot have size 0"),
        (("dct", -4), "cannot have size -4"),
        (("dct", 8.0), "cannot have size 8.0"),
        (("qr", True), "cannot have size True"),
        (("qr", 8, -1), "cannot have seed -1"),
        (("qr", 8, 2**32), "cannot have seed 4294967296"),
        (("qr", 8, "1"), "cannot have seed '1'"),
        (("qr", 8, 0, {"count": 3}), "'qr' has no option 'count': it has none"),
        (("butterfly", 8, 0, {"counts": 3}), "'butterfly' has no option 'counts': its options are count"),
        (
            ("butterfly", 8, 0, {"count": 0}),
            "option 'count' of basis 'butterfly' is 0: expected a whole number from 1 to 2147483647",
        ),
        (("givens", 8, 0, {"count": 1.5}), "option 'count' of basis 'givens' is 1.5"),
        (("dct", 2**31), "cannot have size 2147483648: a size is a whole number from 1 to 2147483647"),
        (("qr", 65536), "basis 'qr' of size 65536 takes 4294967296 numbers: expected at most 268435456"),
        (
            ("householder", 8, 0, {"count": 10**9}),
            "'householder' of size 8 and count 1000000000 takes 64000000000 numbers",
        ),
        (("givens", 8, 0, {"count": 10**9}), "takes 16000000000 numbers"),
        (("butterfly", 4096, 0, {"count": 10**6}), "takes 49152000000 numbers"),
        (("hadamard", 2147483640), "basis 'hadamard' of size 2147483640 takes"),  # Paley's matrix is dense
        (("signed_hadamard", 2147483640), "basis 'signed_hadamard' of size 2147483640 takes"),
    ],
)
def test_refusals(arguments, sentence):
    with pytest.raises(KQuantError) as error:
        basis_for(BasisSpec(*arguments))
    assert sentence in str(error.value)
    with pytest.raises(KQuantError) as error:
        make_basis(*arguments[:3], **(arguments[3] if len(arguments) > 3 else {}))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    "values", [{}, {"kind": "dct"}, {"kind": "dct", "size": 8, "sede": 1}, {"kind": "dct", "size": 8, "options": [1]}]
)
def test_from_dict_refuses_other_keys(values):
    with pytest.raises(KQuantError, match=r"given by kind, size, seed and options|the options of basis"):
        BasisSpec.from_dict(values)


def test_importing_the_bases_imports_torch_and_numpy_only():
    heavy = ["scipy", "sklearn", "transformers", "datasets", "pydantic", "matplotlib", "typer"]
    code = f"import sys, kquant_cli.bases; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
