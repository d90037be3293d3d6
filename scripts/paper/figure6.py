#!/usr/bin/env python3
"""Figure 6: the pairs (u, v) of a decomposed matrix crowd around a few points of the plane: histograms and centroids.

    python scripts/paper/figure6.py [--model FOLDER --layers '*.0.*fc1'] [--bits 4] [--basis dct]

For a Gaussian matrix and for layers of models: the histogram of u, that of v, and the plane of (u, v) with the 2^bits
centroids that the encoder finds. u and v are in units of the weight's root mean square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from common import command, layers, new_parser, random_matrix, save
from plots import plt

from kquant_cli.bases import BASES, basis_for
from kquant_cli.config import EncoderConfig
from kquant_cli.decomposition import decompose_matrix
from kquant_cli.encoders import encode
from kquant_cli.encoders.scale import root_mean_square

BINS = 80


def pairs(weight: torch.Tensor, config: EncoderConfig) -> tuple[torch.Tensor, dict[str, Any]]:
    """The points (n, 2) that the encoder clusters, and what the JSON says of them."""
    settings = config.settings
    frame = config.chosen.layout((weight.shape[0], weight.shape[1]), config.level_count, settings).frame
    assert frame.left_v is not None and frame.right_v is not None
    factors = decompose_matrix(
        weight / root_mean_square(weight),
        basis_for(frame.left_v),
        basis_for(frame.right_v),
        max_iter=settings.max_iter,
        tol=settings.tol,
    )
    points = torch.stack([factors.u.flatten(), factors.v.flatten()], dim=1)
    encoded = encode(weight, config)
    assert encoded.record is not None
    distances = torch.cdist(points[:: -(-len(points) // 2**16)], encoded.codebook)
    facts = {
        "converged": factors.converged,
        "iterations": factors.iterations,
        "u_max": float(factors.u.abs().max()),
        "v_max": float(factors.v.abs().max()),
        "weight_max": float((weight / root_mean_square(weight)).abs().max()),
        "centroids": encoded.codebook.tolist(),
        "distance": float(distances.amin(dim=1).square().mean().sqrt()),
        "spread": float(points.square().sum(dim=1).mean().sqrt()),
        "relative_squared_error": encoded.record.relative_error**2,
    }
    return points, facts


def draw(found: dict[str, tuple[torch.Tensor, dict[str, Any]]]) -> plt.Figure:
    figure, axes = plt.subplots(
        len(found), 3, figsize=(10, 2.9 * len(found)), squeeze=False, layout="constrained", width_ratios=(1, 1, 1.1)
    )
    for (name, (points, facts)), row in zip(found.items(), axes, strict=True):
        for axis, values, what in zip(row, points.T, "uv", strict=False):
            reach = float(values.abs().quantile(0.999)) if values.numel() < 2**24 else float(values.abs().max())
            axis.hist(values.numpy(), bins=BINS, range=(-reach, reach), density=True, color="tab:blue")
            axis.set_title(f"{name}: {what}", fontsize=8)
            axis.set_yticks([])
        u, v = points.T.numpy()
        row[2].hist2d(u, v, bins=BINS, cmap="Blues", cmax=None)
        row[2].plot(*zip(*facts["centroids"], strict=True), "r+", markersize=9)
        row[2].set_title(f"(u, v), {len(facts['centroids'])} centroids", fontsize=8)
        row[2].set_aspect("equal", "datalim")
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__, models=True)
    parser.add_argument("--size", type=int, default=512, help="of the Gaussian matrix")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--basis", default="dct", choices=BASES)
    parser.add_argument("--max-iter", type=int, default=200)
    args = parser.parse_args(argv)
    config = EncoderConfig(encoder="greedy", bits=args.bits, basis=args.basis, max_iter=args.max_iter)
    matrices = {"Gaussian": random_matrix(args.size, args.size), **layers(args.model, args.layers)}
    found = {name: pairs(weight, config) for name, weight in matrices.items()}
    rows = [{"matrix": name, "shape": list(matrices[name].shape), **facts} for name, (_, facts) in found.items()]
    for row in rows:
        print({key: value for key, value in row.items() if key != "centroids"}, flush=True)
    facts = {"bits": args.bits, "basis": args.basis, "max_iter": args.max_iter}
    save(args.output, "figure6", {**facts, "rows": rows}, draw(found))


if __name__ == "__main__":
    command(main)
