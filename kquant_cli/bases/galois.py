"""Squares and differences in a finite field GF(p^k), as Paley's Hadamard matrices need them.

The element number a, 0 <= a < q = p^k, is the polynomial whose coefficients are the digits of a in base p, the constant
term first. Products are reduced by the smallest monic irreducible polynomial of degree k, where polynomials are ordered
as their numbers are. For k = 1 this is arithmetic modulo p.
"""

import math

import numpy as np


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k and p prime, or None."""
    if q < 2:
        return None
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    k = 0
    while q % p == 0:
        q //= p
        k += 1
    return (p, k) if q == 1 else None


def jacobsthal(p: int, k: int) -> np.ndarray:
    """chi(a - b) for all elements a (rows) and b (columns) of GF(p^k), p odd: int8 (q, q).

    chi is 0 at 0, +1 at the other squares of the field and -1 elsewhere.
    """
    digits = _digits(np.arange(p**k), p, k)  # (q, k)
    chi = np.full(p**k, -1, dtype=np.int8)
    chi[_squares(digits, p)] = 1
    chi[0] = 0
    differences = np.zeros((p**k, p**k), dtype=np.int64)
    for j in range(k):
        differences += (digits[:, None, j] - digits[None, :, j]) % p * p**j
    return chi[differences]


def _squares(digits: np.ndarray, p: int) -> np.ndarray:
    """The numbers of the squares of all elements, given as digits (q, k)."""
    k = digits.shape[1]
    product = np.zeros((len(digits), 2 * k - 1), dtype=np.int64)
    for i in range(k):
        product[:, i : i + k] += digits[:, i, None] * digits
    modulus = _irreducible(p, k)
    for degree in range(2 * k - 2, k - 1, -1):  # x^degree is replaced by lower powers
        product[:, degree - k : degree + 1] -= product[:, degree, None] % p * modulus
    return product[:, :k] % p @ p ** np.arange(k)


def _irreducible(p: int, k: int) -> np.ndarray:
    """The digits (k + 1,) of the smallest monic polynomial of degree k that none of a smaller degree divides."""
    divisors = [_digits(np.array([n]), p, d + 1)[0] for d in range(1, k // 2 + 1) for n in range(p**d, 2 * p**d)]
    candidates = (_digits(np.array([n]), p, k + 1)[0] for n in range(p**k, 2 * p**k))
    return next(f for f in candidates if all(_remainder(f, g, p).any() for g in divisors))


def _remainder(f: np.ndarray, g: np.ndarray, p: int) -> np.ndarray:
    """f modulo the monic polynomial g, both as digits."""
    f, degree = f.copy(), len(g) - 1
    for top in range(len(f) - 1, degree - 1, -1):
        f[top - degree : top + 1] = (f[top - degree : top + 1] - f[top] * g) % p
    return f[:degree]


def _digits(numbers: np.ndarray, p: int, k: int) -> np.ndarray:
    """The k digits in base p of each number, the lowest first: (len, k)."""
    return numbers[:, None] // p ** np.arange(k) % p
