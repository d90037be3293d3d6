"""Every kind against its definition, written out one operation after another in numpy, and against scipy."""

from itertools import product

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from numpy.random import RandomState

from kquant_cli.bases import make_basis

SIZES = [1, 2, 3, 5, 12, 33, 64, 65, 96, 100, 257]
SEED = 5


def signs(size):
    return np.where(RandomState(SEED).random_sample(size) < 0.5, 1.0, -1.0)


def dct_matrix(size):
    """Frequencies in the columns: Q^T x = dct(x)."""
    return scipy.fft.dct(np.eye(size), axis=0, norm="ortho").T


def hadamard_dct_matrix(size):
    """Sylvester's matrix of the largest power of two in the size, and the DCT of the odd rest: i = i_H m + i_C."""
    order = size
    while order % 2 == 0:
        order //= 2
    return np.kron(scipy.linalg.hadamard(size // order), dct_matrix(order)) / np.sqrt(size // order)


def rotate(q, i, j, angle):
    """Turn the rows i and j of q."""
    q[[i, j]] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ q[[i, j]]


def butterfly_matrix(size, count):
    draws, q = RandomState(SEED), np.eye(size)
    layers = int(np.ceil(np.log2(size)))
    for _ in range(count):
        for layer in range(layers):
            low = [i for i in range(2**layers) if not i & 2**layer]
            angles = 2 * np.pi * draws.random_sample(len(low))
            for i, angle in zip(low, angles, strict=True):
                if i + 2**layer < size:
                    rotate(q, i, i + 2**layer, angle)
        q = q[np.argsort(draws.random_sample(size), kind="stable")]
    return q


def householder_matrix(size, count):
    q = np.eye(size)
    for v in RandomState(SEED).standard_normal((count, size)):
        q -= 2 * np.outer(v, v @ q) / (v @ v)
    return q


def givens_matrix(size, count):
    draws, q = RandomState(SEED), np.eye(size)
    first, second, angles = (draws.random_sample(count) for _ in range(3))
    for u, w, a in zip(first, second, angles, strict=True):
        i, j = int(u * size), int(w * (size - 1))
        rotate(q, i, j + (j >= i), 2 * np.pi * a)
    return q


def qr_matrix(size):
    q, r = np.linalg.qr(RandomState(SEED).standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def assert_is(basis, expected):
    q = basis.dense()
    assert q.dtype == torch.float64
    np.testing.assert_allclose(q, expected, rtol=0, atol=3e-14 * max(1, basis.size**0.5), err_msg=str(basis.spec))


def test_identity():
    for size in SIZES:
        assert_is(make_basis("identity", size), np.eye(size))


@pytest.mark.parametrize("size", [*SIZES, 768, 1000, 1021])
def test_dct_is_scipys(size):
    basis = make_basis("dct", size)
    assert_is(basis, dct_matrix(size))
    x = RandomState(1).standard_normal((3, size))
    for dim in (0, 1):
        y = torch.from_numpy(np.moveaxis(x, 1, dim).copy())
        np.testing.assert_allclose(basis.adjoint(y, dim), scipy.fft.dct(y, axis=dim, norm="ortho"), atol=1e-13)
        np.testing.assert_allclose(basis.apply(y, dim), scipy.fft.idct(y, axis=dim, norm="ortho"), atol=1e-13)


def test_hadamard_of_a_power_of_two_is_sylvesters():
    for size in (1, 2, 64, 512):
        assert_is(make_basis("hadamard", size), scipy.linalg.hadamard(size) / np.sqrt(size))


def test_signed_hadamard_is_signs_then_transform():
    for size in (2, 12, 64, 96, 100, 700):
        h = make_basis("hadamard", size).dense().numpy()
        assert_is(make_basis("signed_hadamard", size, SEED), signs(size)[:, None] * h)


@pytest.mark.parametrize("size", [*SIZES, 6, 20, 48, 576, 1026, 1155, 2178])
def test_hadamard_dct_and_its_two_draws_of_signs(size):
    """Orders from 1 to 1155: those above 512 take another path, and so do rows and columns, each way."""
    t = hadamard_dct_matrix(size)
    draws = RandomState(SEED)
    first, second = (np.where(draws.random_sample(size) < 0.5, 1.0, -1.0) for _ in range(2))
    matrices = {
        "hadamard_dct": t,
        "signed_hadamard_dct": first[:, None] * t,
        "twice_signed_hadamard_dct": first[:, None] * t @ (second[:, None] * t.T),
    }
    x = RandomState(1).standard_normal((3, size))
    for kind, q in matrices.items():
        basis = make_basis(kind, size, SEED)
        assert basis.note == ""
        for y, dim in ((torch.from_numpy(x), 1), (torch.from_numpy(x.T.copy()), 0), (torch.from_numpy(x.T), 0)):
            along = np.moveaxis(y.numpy(), dim, 1)
            np.testing.assert_allclose(basis.apply(y, dim).movedim(dim, 1), along @ q.T, rtol=0, atol=1e-12)
            np.testing.assert_allclose(basis.adjoint(y, dim).movedim(dim, 1), along @ q, rtol=0, atol=1e-12)


def test_hadamard_dct_of_11008_is_separable():
    """256 * 43: the transform of an outer product is the outer product of transforms; the matrix would be 1 GB."""
    a, b = RandomState(2).standard_normal(256), RandomState(3).standard_normal(43)
    draws = RandomState(SEED)
    first, second = (np.where(draws.random_sample(11008) < 0.5, 1.0, -1.0) for _ in range(2))
    h, c = scipy.linalg.hadamard(256) / 16, dct_matrix(43)
    x = torch.from_numpy(np.outer(a, b).ravel())
    expected = np.outer(h @ a, c @ b).ravel()
    back = np.outer(h.T @ a, c.T @ b).ravel()
    np.testing.assert_allclose(make_basis("hadamard_dct", 11008).apply(x), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(make_basis("signed_hadamard_dct", 11008, SEED).apply(x), first * expected, atol=1e-12)
    twice = make_basis("twice_signed_hadamard_dct", 11008, SEED).apply(x).numpy()
    middle = (second * back).reshape(256, 43)
    np.testing.assert_allclose(twice, first * (h @ middle @ c.T).ravel(), rtol=0, atol=1e-12)


def test_signed_dct_ii_is_signs_then_transform():
    for size in SIZES:
        assert_is(make_basis("signed_dct_ii", size, SEED), signs(size)[:, None] * dct_matrix(size))


def test_signed_dct_is_signs_on_the_coefficients():
    for size in SIZES:
        c = dct_matrix(size)
        basis = make_basis("signed_dct", size, SEED)
        assert_is(basis, c @ np.diag(signs(size)) @ c.T)
        q = basis.dense()
        np.testing.assert_allclose(q, q.T, atol=1e-14 * size)
        np.testing.assert_allclose(q @ q, np.eye(size), atol=1e-13)


def test_butterfly():
    for size in SIZES:
        assert_is(make_basis("butterfly", size, SEED), butterfly_matrix(size, 3))
        assert_is(make_basis("butterfly", size, SEED, count=1), butterfly_matrix(size, 1))


def test_butterfly_of_several_groups_of_layers():
    for size in (1000, 1024, 1600):
        assert_is(make_basis("butterfly", size, SEED, count=2), butterfly_matrix(size, 2))


def test_householder():
    for size, count in product((1, 7, 100), (1, 2, 63, 64, 65, 200)):  # 64 reflections go together
        assert_is(make_basis("householder", size, SEED, count=count), householder_matrix(size, count))


def test_householder_makes_one_reflection_by_default():
    assert_is(make_basis("householder", 40, SEED), householder_matrix(40, 1))


def test_givens():
    for size in (2, 3, 12, 65, 100):
        assert_is(make_basis("givens", size, SEED), givens_matrix(size, size))
        assert_is(make_basis("givens", size, SEED, count=7), givens_matrix(size, 7))
        assert_is(make_basis("givens", size, SEED, count=5 * size), givens_matrix(size, 5 * size))


def test_givens_of_one_coordinate_has_nothing_to_turn():
    assert_is(make_basis("givens", 1, SEED), np.ones((1, 1)))


def test_qr():
    for size in SIZES:
        assert_is(make_basis("qr", size, SEED), qr_matrix(size))


@pytest.mark.parametrize(
    "kind",
    [
        *("signed_hadamard", "signed_hadamard_dct", "twice_signed_hadamard_dct"),
        *("signed_dct_ii", "signed_dct", "butterfly", "householder", "qr"),
    ],
)
def test_a_random_basis_spreads_one_coordinate_over_all(kind):
    options = {"count": 256} if kind == "householder" else {}  # a few reflections hardly move a coordinate
    basis = make_basis(kind, 256, SEED, **options)
    # A uniformly random unit vector has fourth moment 3 / (n (n + 2)), a coordinate vector 1.
    kurtosis = (basis.dense() ** 4).sum(0).mean() * 256
    assert kurtosis < 6
