"""Where k-means starts."""

import pytest
import torch
from sklearn.cluster import kmeans_plusplus

from kquant_cli.codebooks import grid_start, kmeans_plus_plus


@pytest.mark.parametrize(
    ("k", "long", "short"), [(2, 2, 1), (4, 2, 2), (8, 4, 2), (32, 8, 4), (128, 16, 8), (256, 16, 16), (12, 4, 3)]
)
def test_the_grid_of_the_plane(k: int, long: int, short: int) -> None:
    points = torch.tensor([[-1.0, 10.0], [3.0, 10.5], [0.0, 14.0]])
    start = grid_start(points, k)
    assert start.shape == (k, 2)
    u, v = start[:, 0].unique(), start[:, 1].unique()
    torch.testing.assert_close(u, -1 + 4 * (torch.arange(long) + 0.5) / long)
    torch.testing.assert_close(v, 10 + 4 * (torch.arange(short) + 0.5) / short)
    assert len(start.unique(dim=0)) == k


def test_the_grid_of_the_line() -> None:
    start = grid_start(torch.tensor([[2.0], [0.0], [1.0]], dtype=torch.float64), 8)
    torch.testing.assert_close(start[:, 0], (torch.arange(8, dtype=torch.float64) + 0.5) / 4)


@pytest.mark.parametrize("count", [400, 100_000])
def test_k_means_plus_plus_is_settled_by_its_seed(count: int) -> None:
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    first = kmeans_plus_plus(points, 16, seed=5)
    assert torch.equal(first, kmeans_plus_plus(points, 16, seed=5))
    assert not torch.equal(first, kmeans_plus_plus(points, 16, seed=6))


def test_k_means_plus_plus_takes_points() -> None:
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    for row in kmeans_plus_plus(points, 8, seed=0):
        assert (points == row).all(dim=1).any()


@pytest.mark.parametrize("count", [600, 90_000])
def test_k_means_plus_plus_finds_every_group(count: int) -> None:
    """Nine tight groups far from each other: a draw by squared distance hits each once."""
    generator = torch.Generator().manual_seed(2)
    groups = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0)) * 100
    points = groups[torch.randint(9, (count,), generator=generator)] + torch.randn(count, 2, generator=generator)
    for seed in range(5):
        start = kmeans_plus_plus(points, 9, seed)
        assert len((start / 100).round().unique(dim=0)) == 9


def test_k_means_plus_plus_starts_as_well_as_scikit_learn() -> None:
    points = torch.randn(3000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def potential(start: torch.Tensor) -> float:
        return float((points[:, None] - start).square().sum(dim=2).amin(dim=1).sum())

    ours = sum(potential(kmeans_plus_plus(points, 16, seed)) for seed in range(20))
    theirs = sum(
        potential(torch.from_numpy(kmeans_plusplus(points.numpy(), 16, random_state=seed)[0])) for seed in range(20)
    )
    assert ours == pytest.approx(theirs, rel=0.06)
