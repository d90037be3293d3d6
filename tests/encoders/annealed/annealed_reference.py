"""The annealing written out in numpy, float64, with dense matrices: what the encoder's tests compare with."""

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from numpy.random import RandomState


def transform(size):
    """T = H (x) C: Sylvester's matrix of the largest power of two in the size, and the DCT of the odd rest."""
    order = size
    while order % 2 == 0:
        order //= 2
    dct = scipy.fft.dct(np.eye(order), axis=0, norm="ortho").T
    return np.kron(scipy.linalg.hadamard(size // order), dct) / np.sqrt(size // order)


def frame(size, seed):
    """A = D1 T and B = D1 T D2 T^T."""
    draws = RandomState(seed)
    first, second = (np.where(draws.random_sample(size) < 0.5, 1.0, -1.0) for _ in range(2))
    t = transform(size)
    return first[:, None] * t, first[:, None] * t @ (second[:, None] * t.T)


def means(t, s, codebook, beta):
    """The averages (rows, size, 2) of the codebook's points at the fields t and s."""
    distances = (t[..., None] - codebook[:, 0]) ** 2 + (s[..., None] - codebook[:, 1]) ** 2
    weights = np.exp(-beta * (distances - distances.min(axis=-1, keepdims=True)))
    return weights @ codebook / weights.sum(axis=-1, keepdims=True)


def nearest(t, s, codebook):
    """The nearest point of each position."""
    return ((t[..., None] - codebook[:, 0]) ** 2 + (s[..., None] - codebook[:, 1]) ** 2).argmin(axis=-1)


def squares(x, codes, q, codebook):
    """|x - u - Q v|^2 of each row."""
    return ((x - codebook[codes, 0] - codebook[codes, 1] @ q.T) ** 2).sum(axis=1)


def anneal(x, q, codebook, betas, momenta, moving):
    """Codes (rows, size), and the trace (sweeps,)."""
    u, v = np.zeros_like(x), np.zeros_like(x)
    t, s, trace = x, x @ q, []
    for beta, momentum in zip(betas, momenta, strict=True):
        mean = means(t, s, codebook, beta)[..., 0]
        u, further = mean, mean + momentum * (mean - u)
        trace.append(((t - further) ** 2).mean())
        s = (x - further) @ q
        mean = means(t, s, codebook, beta)[..., 1]
        v, further = mean, mean + momentum * (mean - v)
        t = x - further @ q.T
    codes = nearest(t, s, codebook)
    best, least = codes.copy(), squares(x, codes, q, codebook)
    for chosen in moving:
        t, s = x - codebook[codes, 1] @ q.T, (x - codebook[codes, 0]) @ q
        codes = np.where(chosen, nearest(t, s, codebook), codes)
        errors = squares(x, codes, q, codebook)
        best[errors < least] = codes[errors < least]
        least = np.minimum(least, errors)
    return best, np.array(trace)


def gaussian(rows, size, seed=0):
    """Rows of unit mean square, float32."""
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))
    return x / x.square().mean(dim=1, keepdim=True).sqrt()
