"""K-means of the weights one by one, the stronger of the paper's two baselines.

W^ = s Cu[codes],    s the root mean square of W, Cu the centroids of all w / s
"""

from __future__ import annotations

import torch

from kquant_cli.codebooks import lloyd_max_error, nearest
from kquant_cli.encoded import EncodedMatrix, Layout, Record
from kquant_cli.encoders.clustering import ClusteringSettings, cluster, refusal_of_peaks, signed_sums
from kquant_cli.encoders.encoder import Encoder
from kquant_cli.encoders.scale import root_mean_square


class KMeans(Encoder[ClusteringSettings]):
    """Scalar k-means over a whole matrix."""

    name = "kmeans"
    summary = "a baseline of the paper: each weight to the nearest of the matrix's own centroids"
    Settings = ClusteringSettings
    scale_dtype = torch.float32

    def refusal(self, levels: int, settings: ClusteringSettings) -> str | None:
        """Peaks are sums of signed steps."""
        return refusal_of_peaks(levels, settings)

    def layout(self, shape: tuple[int, int], levels: int, settings: ClusteringSettings) -> Layout:
        """One scale."""
        return Layout(shape=shape, levels=levels, columns=1, scale=(1, 1))

    def encode(self, weight: torch.Tensor, levels: int, settings: ClusteringSettings) -> EncodedMatrix:
        """K-means of all weights of the matrix, with one scale, the root mean square."""
        scale = root_mean_square(weight)
        points = (weight / torch.where(scale > 0, scale, 1)).reshape(-1, 1)
        peaks = scalar_peaks(points, levels.bit_length() - 1).unsqueeze(1) if settings.init == "peaks" else None
        codebook = cluster(points, levels, settings, peaks).float()
        codes = nearest(points, codebook.to(points.dtype)).view(weight.shape)
        layout = self.layout((weight.shape[0], weight.shape[1]), levels, settings)
        record = Record(encoder=self.name, levels=levels)
        return EncodedMatrix(layout, codes, codebook, scale=scale.float(), record=record)

    def expected_error(self, levels: int, settings: ClusteringSettings) -> float:
        """That of the best scalar quantiser of Gaussian weights, which k-means finds where there are many."""
        return lloyd_max_error(levels)


def scalar_peaks(points: torch.Tensor, bits: int) -> torch.Tensor:
    """The sums +-c1 +-c2 ... of the first sign steps of points (n, 1) by themselves, c_k = |r_k|_1 / n; (2^bits,)."""
    residual, sizes = points.abs(), []
    for _ in range(bits):
        sizes.append(residual.mean())
        residual = (residual - sizes[-1]).abs()
    return signed_sums(torch.stack(sizes))
