"""Both transforms of the activations in one call against the bases in float64."""

import pytest
import torch

from kquant_cli.bases import BasisSpec, CoupledBases, basis_for
from kquant_cli.runtime import basis_pair
from kquant_cli.runtime.basis_pair import adjoint_pair
from kquant_cli.runtime.layer_loops import loops

SIZES = [1, 2, 3, 8, 12, 40, 48, 63, 96, 100, 160, 224, 576, 768, 1536, 2048, 4096, 11008]


def frame(size, seed=3):
    return BasisSpec("signed_hadamard_dct", size, seed), BasisSpec("twice_signed_hadamard_dct", size, seed)


def agrees(u, v, x, scale=None):
    a, b = adjoint_pair(u, v, x, scale)
    exact = x.double() if scale is None else x.double() * scale.double()
    for found, spec in ((a, u), (b, v)):
        expected = exact if spec is None else basis_for(spec).adjoint(exact)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.skipif(loops() is None, reason="needs a compiler")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tokens", [1, 3, 16])
def test_the_compiled_pair(size, tokens):
    x, scale = torch.randn(tokens, size), 0.5 + torch.rand(size)
    assert basis_pair._is_native(CoupledBases(size, 3), x, scale)
    for u, v in (frame(size), [frame(size)[0]] * 2):
        agrees(u, v, x, scale)
        agrees(u, v, x)


@pytest.mark.parametrize(
    ("size", "tokens"), [(576, 17), (576, 40), (67, 1), (1018, 2), (1042, 1)], ids=["17", "40", "C", "D", "large C"]
)
def test_what_goes_through_the_bases(size, tokens):
    x, scale = torch.randn(tokens, size), 0.5 + torch.rand(size)
    assert not basis_pair._is_native(CoupledBases(size, 3), x, scale)
    agrees(*frame(size), x, scale)


def test_other_frames_and_inputs():
    x = torch.randn(2, 96)
    u, v = frame(96)
    others = [(None, BasisSpec("hadamard", 96)), (None, None), (v, u), (u, frame(96, 4)[1]), (u, BasisSpec("dct", 96))]
    for pair in others:
        assert CoupledBases.of(*pair) is None
        agrees(*pair, x)
    assert CoupledBases.of(u, v) == CoupledBases(96, 3)
    assert not basis_pair._is_native(CoupledBases(96, 3), x.double(), None)
    agrees(u, v, torch.randn(2, 3, 96))  # more dimensions
    agrees(u, v, torch.randn(96, 5).T)  # other strides


def test_gradients_go_through_the_bases():
    u, v = frame(96)
    x = torch.randn(2, 96, requires_grad=True)
    a, b = adjoint_pair(u, v, x)
    (a.sum() + b.sum()).backward()
    ones = torch.ones(2, 96)
    torch.testing.assert_close(x.grad, basis_for(u).apply(ones) + basis_for(v).apply(ones))


def test_without_native_code(monkeypatch):
    monkeypatch.setattr(basis_pair, "loops", lambda: None)
    x = torch.randn(2, 96)
    assert not basis_pair._is_native(CoupledBases(96, 3), x, None)
    agrees(*frame(96), x)


def test_a_pair_of_another_seed_has_other_tables():
    x = torch.randn(1, 96)
    assert not torch.equal(adjoint_pair(*frame(96, 1), x)[0], adjoint_pair(*frame(96, 2), x)[0])
