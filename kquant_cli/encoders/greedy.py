"""The paper's encoder: Kashin decomposition, then k-means on the pairs (u, v).

    W = s (U + Q1 V Q2^T) + residual,    codes = nearest centroid of (U_ij, V_ij),
    W^ = s (Cu[codes] + Q1 Cv[codes] Q2^T)

Source: arXiv 2404.09737, with s the root mean square of W in place of its norm. In the vector form (arXiv 2609.11687)
every row is decomposed on its own, w = s_row (u + Q v) with Q of size in_features, and has its own scale. Closed-form
peaks (same source): after the first steps of sizes c1, c2, ... into u, its entries lie near +-c1 +-c2 ..., likewise v.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kquant_cli.bases import BasisSpec
from kquant_cli.codebooks import nearest
from kquant_cli.config import EncoderConfig
from kquant_cli.decomposition import KashinFactors, decompose_matrix, decompose_vector
from kquant_cli.encoded import EncodedMatrix, Frame, Layout, Record
from kquant_cli.encoders.clustering import cluster, root_mean_square, signed_sums


def greedy_layout(shape: tuple[int, int], config: EncoderConfig) -> Layout:
    """The layout of a matrix (out_features, in_features): Q2 on the input side, Q1 on the other.

    Q2 has the seed of the settings, Q1 the one after it (another draw where the matrix is square); the vector form has
    no Q1.
    """
    rows, columns = shape
    options = {} if config.basis_count is None else {"count": config.basis_count}
    right = BasisSpec(config.basis, columns, config.seed, options)
    left = BasisSpec(config.basis, rows, (config.seed + 1) % 2**32, options)
    by_row = config.form == "vector"
    frame = Frame(left_v=None if by_row else left, right_v=right)
    return Layout(shape=shape, levels=config.level_count, frame=frame, scale=(rows if by_row else 1, 1))


def encode_greedy(weight: torch.Tensor, config: EncoderConfig) -> EncodedMatrix:
    """Encode `weight` (out_features, in_features) as the paper does, in the matrix or the vector form."""
    layout = greedy_layout((weight.shape[0], weight.shape[1]), config)
    left, right, by_row = layout.frame.left_v, layout.frame.right_v, config.form == "vector"
    assert right is not None
    scale = root_mean_square(weight, by_row=by_row)
    normed = weight / torch.where(scale > 0, scale, 1)
    limits: dict[str, Any] = {"max_iter": config.max_iter, "tol": config.tol, "rule": config.rule}
    if left is None:
        factors = decompose_vector(normed, right.make(), **limits)
    else:
        factors = decompose_matrix(normed, left.make(), right.make(), **limits)
    del normed

    points = torch.stack([factors.u.flatten(), factors.v.flatten()], dim=1)
    record = _record(config, factors, [spec for spec in (left, right) if spec])
    peaks = pair_peaks(factors, config.level_count.bit_length() - 1) if config.init == "peaks" else None
    del factors
    codebook = cluster(points, config, peaks).float()
    codes = nearest(points, codebook.to(points.dtype)).view(weight.shape)
    return EncodedMatrix(layout, codes, codebook, scale=scale.float(), record=record)


def pair_peaks(factors: KashinFactors, bits: int) -> torch.Tensor:
    """The closed-form peaks (2^bits, 2): all sums +-c1 +-c2 ... of u's first steps with all those of v's.

    ceil(bits / 2) steps of the part with the larger steps, floor(bits / 2) of the other.
    """
    more, fewer = math.ceil(bits / 2), bits // 2
    first = [float(_step_sizes(factors, into_v=side, count=1)[0]) for side in (False, True)]
    counts = (more, fewer) if first[0] >= first[1] else (fewer, more)
    u, v = (
        signed_sums(_step_sizes(factors, into_v=side, count=n)) for side, n in zip((False, True), counts, strict=True)
    )
    return torch.cartesian_prod(u, v)


def _step_sizes(factors: KashinFactors, *, into_v: bool, count: int) -> torch.Tensor:
    """The sizes c of the first `count` steps into v or u (means over the rows); 0 for a step that never was."""
    chosen = factors.into_v == into_v
    sizes = factors.coefficients
    if sizes.ndim == 1:
        sizes, chosen = sizes.unsqueeze(1), chosen.unsqueeze(1)
    chosen = chosen & (sizes > 0)
    order = chosen.long().cumsum(dim=0)  # the n-th step of a row into this side has order n
    means = sizes.new_zeros(count)
    for n in range(count):
        steps = sizes[chosen & (order == n + 1)]
        means[n] = steps.mean() if len(steps) else 0
    return means


def _record(config: EncoderConfig, factors: KashinFactors, bases: list[BasisSpec]) -> Record:
    trace = factors.residuals
    if trace.ndim == 2:  # rows have unit mean square: the root mean square over rows is the matrix's relative residual
        trace = trace.square().mean(dim=1).sqrt()
    notes = {note for spec in bases if (note := spec.make().note)}
    return Record(
        encoder=config.encoder,
        levels=config.level_count,
        basis=config.basis,
        iterations=factors.iterations,
        converged=factors.converged,
        trace=tuple(float(f"{r:.4g}") for r in trace.tolist()),
        u_max=float(factors.u.abs().max()),
        v_max=float(factors.v.abs().max()),
        notes=tuple(sorted(notes)),
    )
