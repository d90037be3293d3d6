"""The paper's encoder: Kashin decomposition, then k-means on the pairs (u, v).

    W = s (U + Q1 V Q2^T) + residual,    codes = nearest centroid of (U_ij, V_ij),    W^ = s (Cu[codes] + Q1 Cv[codes] Q2^T)

Source: arXiv 2404.09737, with s the root mean square of W in place of its norm. In the vector form (arXiv 2609.11687)
every row is decomposed on its own, w = s_row (u + Q v) with Q of size in_features, and has its own scale. Closed-form
peaks (same source): after the first steps of sizes c1, c2, ... into u, its entries lie near +-c1 +-c2 ..., likewise v.
"""

from __future__ import annotations

import math

import torch

from kquant_cli.bases import BasisSpec
from kquant_cli.codebooks import KMeansResult, grid_start, kmeans, kmeans_plus_plus, nearest
from kquant_cli.config import EncoderConfig
from kquant_cli.decomposition import KashinFactors, decompose_matrix, decompose_vector
from kquant_cli.encoded import EncodedMatrix, Frame, Layout, Record


def encode_greedy(weight: torch.Tensor, config: EncoderConfig) -> EncodedMatrix:
    """Encode `weight` (out_features, in_features) as the paper does, in the matrix or the vector form."""
    rows, columns = weight.shape
    by_row = config.form == "vector"
    right = _basis(config, columns, config.seed)
    left = None if by_row else _basis(config, rows, (config.seed + 1) % 2**32)  # another draw where rows == columns
    scale = weight.square().mean(dim=1 if by_row else None, keepdim=True).sqrt().reshape(-1, 1)
    normed = weight / torch.where(scale > 0, scale, 1)
    limits = {"max_iter": config.max_iter, "tol": config.tol, "rule": config.rule}
    if left is None:
        factors = decompose_vector(normed, right.make(), **limits)
    else:
        factors = decompose_matrix(normed, left.make(), right.make(), **limits)
    del normed

    points = torch.stack([factors.u.flatten(), factors.v.flatten()], dim=1)
    record = _record(config, factors, right)
    peaks = pair_peaks(factors, config.bits) if config.init == "peaks" else None
    del factors
    codebook = cluster(points, config, peaks).centroids.float()
    codes = nearest(points, codebook.to(points.dtype)).view(rows, columns)
    layout = Layout(
        shape=(rows, columns),
        levels=len(codebook),
        frame=Frame(left_v=left, right_v=right),
        scale=(len(scale), 1),
    )
    return EncodedMatrix(layout, codes, codebook, scale=scale.float(), record=record)


def cluster(points: torch.Tensor, config: EncoderConfig, peaks: torch.Tensor | None) -> KMeansResult:
    """K-means of points (n, d) into 2^bits centroids: the first start is `config.init`, further ones are k-means++."""
    limits = {"max_iter": config.kmeans_iter, "tol": config.kmeans_tol}
    best: KMeansResult | None = None
    for restart in range(config.restarts):
        if restart or config.init == "kmeans++":
            start = kmeans_plus_plus(points, 2**config.bits, (config.seed + restart) % 2**32)
        else:
            start = grid_start(points, 2**config.bits) if peaks is None else peaks
        result = kmeans(points, start, **limits)
        best = result if best is None or result.inertia < best.inertia else best
    assert best is not None
    return best


def pair_peaks(factors: KashinFactors, bits: int) -> torch.Tensor:
    """The closed-form peaks: 2^ceil(b/2) sums +-c1 +-c2 ... of u with 2^floor(b/2) of v; (2^bits, 2)."""
    u = signed_sums(_step_sizes(factors, into_v=False, count=math.ceil(bits / 2)))
    v = signed_sums(_step_sizes(factors, into_v=True, count=bits // 2))
    return torch.cartesian_prod(u, v)


def signed_sums(sizes: torch.Tensor) -> torch.Tensor:
    """All 2^n sums +-c1 +-c2 ... +-cn of the sizes (n,), ascending."""
    sums = sizes.new_zeros(1)
    for size in sizes:
        sums = torch.cat([sums - size, sums + size])
    return sums.sort().values


def _step_sizes(factors: KashinFactors, *, into_v: bool, count: int) -> torch.Tensor:
    """The sizes c of the first `count` steps into v or u (means over the rows); 0 for a step that never was."""
    chosen = factors.into_v == into_v
    sizes = factors.coefficients
    if sizes.ndim == 1:
        sizes, chosen = sizes.unsqueeze(1), chosen.unsqueeze(1)
    chosen = chosen & (sizes > 0)
    order = chosen.long().cumsum(dim=0)  # the n-th step of a row into this side has order n
    steps = [torch.where(chosen & (order == n + 1), sizes, 0).sum(0) for n in range(count)]
    return torch.stack([step[step > 0].mean() if (step > 0).any() else step.new_zeros(()) for step in steps])


def _basis(config: EncoderConfig, size: int, seed: int) -> BasisSpec:
    options = {} if config.basis_count is None else {"count": config.basis_count}
    return BasisSpec(config.basis, size, seed, options)


def _record(config: EncoderConfig, factors: KashinFactors, right: BasisSpec) -> Record:
    trace = factors.residuals
    if trace.ndim == 2:  # rows have unit mean square: the root mean square over rows is the matrix's relative residual
        trace = trace.square().mean(dim=1).sqrt()
    notes = {note for spec in (right,) if (note := spec.make().note)}
    return Record(
        encoder=config.encoder,
        bits=config.bits,
        basis=config.basis,
        iterations=factors.iterations,
        converged=factors.converged,
        trace=tuple(float(f"{r:.4g}") for r in trace.tolist()),
        u_max=float(factors.u.abs().max()),
        v_max=float(factors.v.abs().max()),
        notes=tuple(sorted(notes)),
    )
