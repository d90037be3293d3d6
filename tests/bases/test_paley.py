"""Finite fields, Paley's matrices, and the choice of Hadamard factors."""

import numpy as np
import pytest
import torch

from kquant_cli.bases import make_basis
from kquant_cli.bases.galois import jacobsthal, prime_power
from kquant_cli.bases.hadamard import kronecker_factors, largest_block, sylvester
from kquant_cli.bases.paley import is_paley_order, paley
from kquant_cli.errors import KQuantError

FIELDS = [(3, 1), (5, 1), (13, 1), (3, 2), (5, 2), (3, 3), (7, 2), (3, 4), (5, 3), (3, 5), (7, 3)]


def test_prime_powers():
    by_sieve = {p**k: (p, k) for p in range(2, 400) if all(p % d for d in range(2, p)) for k in range(1, 9)}
    assert [prime_power(q) for q in range(400)] == [by_sieve.get(q) for q in range(400)]


@pytest.mark.parametrize(("p", "k"), [(3, 1), (11, 1), (19, 1), (17, 1), (43, 1)])
def test_jacobsthal_modulo_a_prime(p, k):
    squares = {x * x % p for x in range(1, p)}
    expected = [[0 if a == b else 1 if (a - b) % p in squares else -1 for b in range(p)] for a in range(p)]
    np.testing.assert_array_equal(jacobsthal(p, k), expected)


def test_gf_9_written_out():
    """x^2 + 1 is the smallest irreducible polynomial over GF(3), so (a + b x)^2 = a^2 - b^2 + 2 a b x."""
    squares = {1, 2, 3, 6}  # 1, 2, x, 2 x
    assert squares == {(a * a - b * b) % 3 + 3 * (2 * a * b % 3) for a in range(3) for b in range(3)} - {0}
    np.testing.assert_array_equal(jacobsthal(3, 2)[:, 0], [0] + [1 if a in squares else -1 for a in range(1, 9)])


@pytest.mark.parametrize(("p", "k"), FIELDS)
def test_jacobsthal_matrices_of_fields(p, k):
    """Q Q^T = q I - J and Q J = 0; symmetric for q = 1 mod 4, skew for q = 3 mod 4 (Paley's lemma)."""
    q = p**k
    matrix = jacobsthal(p, k).astype(int)
    np.testing.assert_array_equal(matrix @ matrix.T, q * np.eye(q) - 1)
    np.testing.assert_array_equal(matrix.sum(0), 0)
    np.testing.assert_array_equal(matrix.T, matrix if q % 4 == 1 else -matrix)
    np.testing.assert_array_equal(np.diag(matrix), 0)


@pytest.mark.parametrize("m", [4, 12, 20, 24, 28, 36, 44, 48, 52, 60, 84, 100, 108, 124, 140, 148, 244, 344, 924])
def test_paley_matrices(m):
    assert is_paley_order(m)
    h = paley(m).astype(np.int64)
    assert set(np.unique(h)) == {-1, 1}
    np.testing.assert_array_equal(h @ h.T, m * np.eye(m))
    if (m - 1) % 4 == 3 and prime_power(m - 1):
        np.testing.assert_array_equal(h + h.T, 2 * np.eye(m))  # construction I is skew but for the diagonal
    else:
        np.testing.assert_array_equal(h, h.T)


@pytest.mark.parametrize("m", [1, 2, 3, 6, 10, 16 + 1, 40, 92, 116])
def test_orders_that_paley_does_not_reach(m):
    assert not is_paley_order(m)
    with pytest.raises(ValueError, match=f"{m} is not the order"):
        paley(m)


def test_sylvester_recursion():
    h = sylvester(0)
    for bits in range(6):
        np.testing.assert_array_equal(sylvester(bits + 1), np.block([[h, h], [h, -h]]))
        h = sylvester(bits + 1)
        i = np.arange(2 ** (bits + 1))
        np.testing.assert_array_equal(h, [[(-1) ** (int(a & b).bit_count()) for b in i] for a in i])


@pytest.mark.parametrize(
    ("size", "factors"),
    [
        (1, (1, 1)),
        (2, (2, 1)),
        (4, (4, 1)),
        (8192, (8192, 1)),
        (12, (1, 12)),
        (24, (2, 12)),
        (40, (2, 20)),
        (72, (2, 36)),
        (768, (64, 12)),
        (3072, (256, 12)),
        (5120, (256, 20)),
        (11008, (32, 344)),
        (13824, (128, 108)),
        (14336, (512, 28)),
        (18944, (128, 148)),
        (3, None),
        (6, None),
        (92, None),
        (4304, None),
    ],
)
def test_the_choice_of_factors_is_the_format(size, factors):
    assert kronecker_factors(size) == factors


@pytest.mark.parametrize("size", [12, 20, 24, 28, 36, 40, 44, 48, 60, 72, 344, 768])
def test_hadamard_is_sylvester_times_paley_bit_for_bit(size):
    power, m = kronecker_factors(size)
    expected = np.kron(sylvester(power.bit_length() - 1), paley(m))
    scaled = make_basis("hadamard", size).dense() * size**0.5
    np.testing.assert_allclose(scaled, expected, atol=1e-13)
    integers = torch.from_numpy(expected).double()
    assert torch.equal(integers @ integers.T, size * torch.eye(size, dtype=torch.float64))
    assert make_basis("hadamard", size).note == ""


@pytest.mark.parametrize(("size", "block"), [(6, 2), (50, 2), (92, 4), (4304, 16), (13696, 128), (184, 8), (276, 276)])
def test_largest_block(size, block):
    assert largest_block(size) == block
    assert all(kronecker_factors(d) is None for d in range(block + 1, size + 1) if size % d == 0)


def test_block_diagonal_where_no_full_matrix_is_known_and_says_so():
    basis = make_basis("hadamard", 184)
    assert basis.note.startswith("hadamard of size 184 is block-diagonal: 23 blocks of 8")
    expected = np.kron(np.eye(23), sylvester(3)) / np.sqrt(8)
    np.testing.assert_allclose(basis.dense(), expected, atol=1e-15)
    assert "signed_hadamard of size 184 is block-diagonal" in make_basis("signed_hadamard", 184).note


@pytest.mark.parametrize("kind", ["hadamard", "signed_hadamard"])
@pytest.mark.parametrize("size", [3, 97, 769])
def test_odd_sizes_are_refused(kind, size):
    with pytest.raises(KQuantError, match=f"'{kind}' cannot have the odd size {size}; choose 'dct'"):
        make_basis(kind, size)
