"""The paper's encoder: Kashin decomposition, then k-means on the pairs (u, v).

    W = s (U + Q1 V Q2^T) + residual,    codes = nearest centroid of (U_ij, V_ij),
    W^ = s (Cu[codes] + Q1 Cv[codes] Q2^T)

Source: arXiv 2404.09737, with s the root mean square of W in place of its norm. In the vector form (arXiv 2609.11687)
every row is decomposed on its own, w = s_row (u + Q v) with Q of size in_features, and has its own scale. Closed-form
peaks (same source): after the first steps of sizes c1, c2, ... into u, its entries lie near +-c1 +-c2 ..., likewise v.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from kquant_cli.bases import BASES, BasisSpec, basis_for
from kquant_cli.codebooks import nearest
from kquant_cli.decomposition import KashinFactors, decompose_matrix, decompose_vector
from kquant_cli.encoded import EncodedMatrix, Frame, Layout, Record
from kquant_cli.encoders.clustering import ClusteringSettings, cluster, refusal_of_peaks, signed_sums
from kquant_cli.encoders.encoder import Encoder, EncoderSettings
from kquant_cli.encoders.expected_error import interpolated_error
from kquant_cli.encoders.scale import root_mean_square
from kquant_cli.setting_types import OneOf, Tolerance

# Relative squared error on Gaussian matrices of 1024 x 1024, matrix form, hadamard (scripts/measure_errors.py).
MEASURED = {2: 0.367, 4: 0.129, 8: 0.0472, 16: 0.0165, 32: 0.00619, 64: 0.00241, 256: 0.000348}


class DecompositionSettings(EncoderSettings):
    """Settings of the Kashin decomposition."""

    basis: Annotated[str, OneOf(lambda: BASES)] = Field("dct", description="kind of the orthogonal matrices Q1 and Q2")
    basis_count: int | None = Field(None, ge=1, description="factors of a butterfly, householder or givens basis")
    form: Literal["matrix", "vector"] = Field("matrix", description="decompose the matrix at once, or row by row")
    rule: Literal["greedy", "alternating"] = Field("greedy", description="which of u and v takes the next sign step")
    max_iter: int = Field(200, ge=1, description="most iterations of the decomposition")
    tol: Tolerance = Field(1e-6, description="relative residual at which the decomposition has converged")


class GreedySettings(ClusteringSettings, DecompositionSettings):
    """The decomposition's settings, then those of k-means."""


class Greedy(Encoder[GreedySettings]):
    """The Kashin decomposition and k-means."""

    name = "greedy"
    summary = "the paper: Kashin decomposition, then k-means"
    Settings = GreedySettings
    spreads_error = True
    scale_dtype = torch.float32

    def refusal(self, levels: int, settings: GreedySettings) -> str | None:
        """Peaks are sums of signed steps."""
        return refusal_of_peaks(levels, settings)

    def layout(self, shape: tuple[int, int], levels: int, settings: GreedySettings) -> Layout:
        """Q2 on the input side, Q1 on the other.

        Q2 has the seed of the settings, Q1 the one after it (another draw where the matrix is square); the vector form
        has no Q1.
        """
        rows, columns = shape
        options = {} if settings.basis_count is None else {"count": settings.basis_count}
        right = BasisSpec(settings.basis, columns, settings.seed, options)
        left = BasisSpec(settings.basis, rows, (settings.seed + 1) % 2**32, options)
        by_row = settings.form == "vector"
        frame = Frame(left_v=None if by_row else left, right_v=right)
        return Layout(shape=shape, levels=levels, frame=frame, scale=(rows if by_row else 1, 1))

    def encode(self, weight: torch.Tensor, levels: int, settings: GreedySettings) -> EncodedMatrix:
        """Encode as the paper does, in the matrix or the vector form."""
        layout = self.layout((weight.shape[0], weight.shape[1]), levels, settings)
        left, right, by_row = layout.frame.left_v, layout.frame.right_v, settings.form == "vector"
        assert right is not None
        scale = root_mean_square(weight, by_row=by_row)
        normed = weight / torch.where(scale > 0, scale, 1)
        limits: dict[str, Any] = {"max_iter": settings.max_iter, "tol": settings.tol, "rule": settings.rule}
        if left is None:
            factors = decompose_vector(normed, basis_for(right), **limits)
        else:
            factors = decompose_matrix(normed, basis_for(left), basis_for(right), **limits)
        del normed

        points = torch.stack([factors.u.flatten(), factors.v.flatten()], dim=1)
        record = _record(factors, [spec for spec in (left, right) if spec], levels)
        peaks = pair_peaks(factors, levels.bit_length() - 1) if settings.init == "peaks" else None
        del factors
        codebook = cluster(points, levels, settings, peaks).float()
        codes = nearest(points, codebook.to(points.dtype)).view(weight.shape)
        return EncodedMatrix(layout, codes, codebook, scale=scale.float(), record=record)

    def expected_error(self, levels: int, settings: GreedySettings) -> float:
        """What was measured, interpolated; other bases and the vector form leave about as much."""
        return interpolated_error(levels, MEASURED)


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


def _record(factors: KashinFactors, bases: list[BasisSpec], levels: int) -> Record:
    trace = factors.residuals
    if trace.ndim == 2:  # rows have unit mean square: the root mean square over rows is the matrix's relative residual
        trace = trace.square().mean(dim=1).sqrt()
    notes = {note for spec in bases if (note := basis_for(spec).note)}
    return Record(
        encoder=Greedy.name,
        levels=levels,
        basis=bases[0].kind,
        iterations=factors.iterations,
        converged=factors.converged,
        trace=tuple(float(f"{r:.4g}") for r in trace.tolist()),
        u_max=float(factors.u.abs().max()),
        v_max=float(factors.v.abs().max()),
        notes=tuple(sorted(notes)),
    )
