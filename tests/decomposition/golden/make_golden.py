"""Writes the golden decompositions next to this file, by the paper's algorithm as it is printed, in plain numpy.

Nothing of the package is used, and nothing is carried from one iteration to the next but U, V and the residual.
Run it as `python tests/decomposition/golden/make_golden.py`.
"""

from pathlib import Path

import numpy as np


def rotation(random: np.random.RandomState, size: int) -> np.ndarray:
    """A random orthogonal matrix."""
    return np.linalg.qr(random.standard_normal((size, size)))[0]


def decompose(weight: np.ndarray, q1: np.ndarray, q2: np.ndarray, steps: int, rule: str) -> dict[str, np.ndarray]:
    """Sign steps into U (of R) or V (of Q1^T R Q2): by the larger l1 norm, or two and two in turn."""
    norm = np.linalg.norm(weight)
    r, u, v = weight / norm, np.zeros_like(weight), np.zeros_like(weight)
    residual, into_v, coefficient = [], [], []
    for step in range(steps):
        y = q1.T @ r @ q2
        to_u = np.abs(r).sum() > np.abs(y).sum() if rule == "greedy" else step % 4 < 2
        s = np.sign(r if to_u else y)
        c = ((r if to_u else y) * s).sum() / (s * s).sum()
        if to_u:
            u += c * s
            r = r - c * s
        else:
            v += c * s
            r = r - c * q1 @ s @ q2.T
        residual.append(np.linalg.norm(r))
        into_v.append(not to_u)
        coefficient.append(c * norm)
    return {
        "u": u * norm,
        "v": v * norm,
        "residuals": np.array(residual),
        "into_v": np.array(into_v),
        "coefficients": np.array(coefficient),
    }


def main() -> None:
    """A Gaussian matrix for the greedy rule, and one with heavy tails and zeros for both rules."""
    random = np.random.RandomState(20240414)
    q1, q2 = rotation(random, 24), rotation(random, 40)
    gaussian = random.standard_normal((24, 40))
    heavy = random.standard_t(3, (24, 40)) * (random.random_sample((24, 40)) > 0.2)
    cases = {
        "gaussian_greedy": (gaussian, "greedy"),
        "heavy_greedy": (heavy, "greedy"),
        "heavy_alternating": (heavy, "alternating"),
    }
    for name, (weight, rule) in cases.items():
        factors = decompose(weight, q1, q2, steps=30, rule=rule)
        np.savez_compressed(Path(__file__).with_name(f"{name}.npz"), weight=weight, q1=q1, q2=q2, **factors)


if __name__ == "__main__":
    main()
