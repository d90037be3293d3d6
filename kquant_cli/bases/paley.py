"""Paley's Hadamard matrices (R. Paley, "On orthogonal matrices", J. Math. Phys. 12, 1933): entries +-1, H H^T = m I.

With Q = jacobsthal(q), Q_ab = chi(a - b) over GF(q):

    I,  q = 3 mod 4, m = q + 1:       H = I + [[0, 1^T], [-1, Q]]
    II, q = 1 mod 4, m = 2 (q + 1):   H = [[0, 1^T], [1, Q]] (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]]

An order that both reach, such as 28 = 27 + 1 = 2 (13 + 1), takes I.
"""

import numpy as np

from kquant_cli.bases.galois import jacobsthal, prime_power


def is_paley_order(m: int) -> bool:
    """Whether construction I or II gives a matrix of order m."""
    return _first_field(m) is not None or _second_field(m) is not None


def paley(m: int) -> np.ndarray:
    """The Hadamard matrix of order m, int8 (m, m); ValueError where neither construction has it."""
    field = _first_field(m)
    if field:
        q = jacobsthal(*field)
        h = np.eye(m, dtype=np.int8)
        h[0, 1:] = 1
        h[1:, 0] = -1
        h[1:, 1:] += q
        return h
    field = _second_field(m)
    if field is None:
        raise ValueError(f"{m} is not the order of a Paley matrix")
    q = jacobsthal(*field)
    s = np.ones((m // 2, m // 2), dtype=np.int8)
    s[0, 0] = 0
    s[1:, 1:] = q
    pair = np.array([[1, 1], [1, -1]], dtype=np.int8)
    diagonal = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(s, pair) + np.kron(np.eye(m // 2, dtype=np.int8), diagonal)


def _first_field(m: int) -> tuple[int, int] | None:
    return prime_power(m - 1) if m % 4 == 0 else None


def _second_field(m: int) -> tuple[int, int] | None:
    return prime_power(m // 2 - 1) if m % 4 == 0 and m // 2 % 4 == 2 else None
