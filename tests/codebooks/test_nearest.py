"""Nearest codes against all distances."""

import pytest
import torch

from kquant_cli.codebooks import nearest
from kquant_cli.codebooks.nearest import FEW


def by_all_distances(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    parts = points.double().split(2**14)
    squares = [(part[:, None] - centroids.double()).square().sum(dim=2) for part in parts]
    return torch.cat([square.argmin(dim=1) for square in squares]).to(torch.uint8)


SIZES = [(1, 1), (1, 16), (1, 256), (2, 1), (2, 2), (2, 16), (2, 256)]


@pytest.mark.parametrize(
    ("dims", "k", "dtype", "count"),
    [  # by all distances and by the table; the dtype is that of the points, distances are float64 for all
        *((dims, k, dtype, 1000) for dims, k in SIZES for dtype in (torch.float32, torch.float64)),
        *((dims, k, torch.float32, 3 * FEW) for dims, k in SIZES),
        *((dims, 16, torch.float64, 3 * FEW) for dims in (1, 2)),
    ],
)
def test_equals_all_distances(dims: int, k: int, dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(k)
    points = torch.randn(count, dims, dtype=dtype, generator=generator)
    points[:30] *= 1e5  # far outside of any grid
    points[30:60] += 1000
    centroids = 0.8 * torch.randn(k, dims, dtype=dtype, generator=generator)
    codes = nearest(points, centroids)
    assert codes.dtype == torch.uint8
    assert torch.equal(codes, by_all_distances(points, centroids))


@pytest.mark.parametrize("dims", [1, 2])
def test_points_on_the_borders_go_to_the_lower_index(dims: int) -> None:
    """Integer centroids, points at multiples of 1/4: many lie half way between two centroids, or among four."""
    generator = torch.Generator().manual_seed(0)
    line = torch.arange(6, dtype=torch.float32)
    centroids = torch.cartesian_prod(*[line] * dims).view(-1, dims)
    centroids = centroids[torch.randperm(len(centroids), generator=generator)]
    points = torch.randint(-4, 28, (3 * FEW, dims), generator=generator) / 4
    assert torch.equal(nearest(points, centroids), by_all_distances(points, centroids))
    assert torch.equal(nearest(points[:99], centroids), by_all_distances(points[:99], centroids))


def test_equal_centroids_give_the_first() -> None:
    points = torch.randn(3 * FEW, 2, generator=torch.Generator().manual_seed(1))
    centroids = torch.tensor([[9.0, 9.0], [0.5, 0.0], [0.5, 0.0], [-0.5, 0.0], [9.0, 9.0], [-0.5, 0.0]])
    codes = nearest(points, centroids)
    assert set(codes.tolist()) == {1, 3}
    assert torch.equal(codes, by_all_distances(points, centroids))
    assert not nearest(points, torch.zeros(5, 2)).any()


def test_thin_clouds_far_from_the_origin() -> None:
    """All points in a few of float32's steps, and equal in one coordinate."""
    generator = torch.Generator().manual_seed(2)
    points = 1000 + torch.randn(3 * FEW, 2, generator=generator) * torch.tensor([1e-3, 0.0])
    centroids = 1000 + torch.randn(16, 2, generator=generator) * 1e-3
    assert torch.equal(nearest(points, centroids), by_all_distances(points, centroids))


def test_strided_points_half_precision_and_no_points() -> None:
    points = torch.randn(2, 3 * FEW, generator=torch.Generator().manual_seed(3)).T
    centroids = points[:16].clone()
    assert torch.equal(nearest(points, centroids), by_all_distances(points, centroids))
    half = points.half()
    assert torch.equal(nearest(half, centroids), by_all_distances(half.float(), centroids))
    assert nearest(points[:0], centroids).shape == (0,)
