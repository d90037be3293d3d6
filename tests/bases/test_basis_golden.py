"""The format: what a kind, size and seed mean. These numbers may never change: bundles depend on them."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from kquant_cli.bases import make_basis
from kquant_cli.bases.draws import random_angles, random_pairs, random_permutation, random_signs
from kquant_cli.bases.paley import paley

RAMP = torch.arange(1, 13, dtype=torch.float64)

PALEY_12 = """
++++++++++++ -+-+---+++-+ -++-+---+++- --++-+---+++ -+-++-+---++ -++-++-+---+
-+++-++-+--- --+++-++-+-- ---+++-++-+- ----+++-++-+ -+---+++-++- --+---+++-++
"""

APPLIED = {  # Q (1, 2, ..., size) for seed 11
    "butterfly": [
        6.300883267896622,
        5.040815542275889,
        0.2757700409752094,
        2.717521088058316,
        -0.6036645920987087,
        -4.250137385284783,
    ],
    "householder": [
        5.27365958690034,
        1.3011659138520142,
        1.8162789388597982,
        -2.4816654184655738,
        4.979761873852679,
        5.219187779041244,
    ],
    "givens": [
        -0.37100743900998934,
        2.1901654709080622,
        -4.6629904562246995,
        2.846573129923675,
        0.3207657487093212,
        -7.491073317345798,
    ],
    "qr": [2.677594259877168, 1.9202639088419362, -4.125940533328267, -1.4559155934705779],
    "signed_dct_ii": [
        5.649407002085139,
        -4.3599490463728845,
        1.7121246595673094,
        1.0349335441532563,
        0.2694189063734804,
    ],
    "signed_dct": [1.2111456180001685, 1.6583592135001266, 3.0, 4.341640786499874, 4.788854381999831],
}

COSINES = {  # Q (cos 1, cos 2, ..., cos 12) for seed 11, by numpy and scipy
    "hadamard_dct": [
        -0.1738429295460358,
        -0.017664769227822674,
        0.019592485148643216,
        -0.2522221460036971,
        2.317134352679331,
        0.3486310606231375,
        0.0025496294085485816,
        -0.023423137035170627,
        -0.0035241949169887987,
        -0.34944317918731926,
        -0.03550810570611118,
        0.039383024183961335,
    ],
    "signed_hadamard_dct": [
        -0.1738429295460358,
        -0.017664769227822674,
        0.019592485148643216,
        0.2522221460036971,
        2.317134352679331,
        0.3486310606231375,
        0.0025496294085485816,
        -0.023423137035170627,
        0.0035241949169887987,
        0.34944317918731926,
        0.03550810570611118,
        0.039383024183961335,
    ],
    "twice_signed_hadamard_dct": [
        1.1465167425348912,
        0.16274025182964227,
        -0.4344840982468717,
        1.0181131032164792,
        -0.10813464517960808,
        0.5449947659843208,
        0.9774372350760201,
        0.054656256900891154,
        0.7383013194651391,
        0.8234939943397876,
        0.0033754572984952547,
        0.8087254551559789,
    ],
}


def test_draws():
    assert random_signs(RandomState(7), 16).tolist() == [1, -1, 1, -1, -1, -1, -1, 1, 1, 1, -1, -1, 1, 1, 1, -1]
    assert random_permutation(RandomState(7), 10).tolist() == [7, 0, 8, 2, 9, 6, 5, 3, 1, 4]
    assert [pair.tolist() for pair in random_pairs(RandomState(7), 5, 10)] == [[0, 7, 4, 7, 9], [5, 4, 0, 2, 4]]
    assert random_angles(RandomState(7), 3).tolist() == [0.47945912261045587, 4.900374296196336, 2.7546064415213167]


def test_random_pairs_are_different_and_uniform():
    first, second = random_pairs(RandomState(0), 20000, 5)
    counts = np.zeros((5, 5))
    np.add.at(counts, (first, second), 1)
    assert (np.diag(counts) == 0).all()
    off = counts[~np.eye(5, dtype=bool)]
    assert np.abs(off - 1000).max() < 5 * 1000**0.5  # 20 pairs, each binomial with mean 1000


@pytest.mark.parametrize("kind", APPLIED)
def test_bases(kind):
    expected = torch.tensor(APPLIED[kind], dtype=torch.float64)
    basis = make_basis(kind, len(expected), seed=11)
    torch.testing.assert_close(basis.apply(RAMP[: len(expected)]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", COSINES)
def test_bases_on_cosines(kind):
    """A ramp would be changed little by the pair of Hadamard and DCT: it is a sum of one for each part of the index."""
    expected = torch.tensor(COSINES[kind], dtype=torch.float64)
    torch.testing.assert_close(make_basis(kind, 12, seed=11).apply(RAMP.cos()), expected, rtol=0, atol=1e-12)


def test_paley_12():
    signs = np.where(paley(12) > 0, "+", "-")
    assert ["".join(row) for row in signs] == PALEY_12.split()


@pytest.mark.parametrize(
    ("m", "digest"),
    [(12, "db7478025ce74776"), (28, "3ec6c53133760a03"), (36, "1a7aed2f42a8c71d"), (344, "14fa999a81e32bda")],
)
def test_paley_bytes(m, digest):
    """Orders of GF(11), GF(27), GF(17) and GF(343)."""
    assert paley(m).dtype == np.int8
    assert sha256(paley(m).tobytes()).hexdigest().startswith(digest)


def test_hadamard_768_bytes():
    h = (make_basis("hadamard", 768).dense() * 768**0.5).round().to(torch.int8)
    assert sha256(h.numpy().tobytes()).hexdigest().startswith("2df1bfb9ec4fa584")


@pytest.mark.parametrize("name", ["gauss_dct_64x96", "gauss_hadamard_64x128"])
def test_shared_matrices(name, shared):
    kind = name.split("_")[1]
    with np.load(shared(f"golden/{name}.npz")) as golden:
        for matrix in (golden["q1"], golden["q2"]):
            np.testing.assert_allclose(make_basis(kind, len(matrix)).dense(), matrix, rtol=0, atol=1e-12)
