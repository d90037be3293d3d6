"""Codebooks: k-means on the line and in the plane, exact nearest-code assignment, and the Gaussian-optimal levels.

integer_grids.py has the constant codebooks of bundles.
"""

from kquant_cli.codebooks.initialization import grid_start, kmeans_plus_plus
from kquant_cli.codebooks.kmeans import KMeansResult, kmeans
from kquant_cli.codebooks.lloyd_max import lloyd_max, lloyd_max_error
from kquant_cli.codebooks.nearest import nearest
from kquant_cli.codebooks.sums import sum_by_code

__all__ = [
    "KMeansResult",
    "grid_start",
    "kmeans",
    "kmeans_plus_plus",
    "lloyd_max",
    "lloyd_max_error",
    "nearest",
    "sum_by_code",
]
