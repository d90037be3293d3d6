"""K-means against scikit-learn from the same start, and where there is little to cluster."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from kquant_cli.codebooks import grid_start, kmeans, kmeans_plus_plus
from kquant_cli.codebooks import lloyd as lloyd_module


def normal(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))


def pairs(count: int) -> torch.Tensor:
    """Points near 4 x 4 peaks with some far ones, as the pairs (u, v) of a decomposition are."""
    generator = torch.Generator().manual_seed(1)
    peaks = torch.tensor([-1.4, -0.45, 0.45, 1.4])
    u, v = (peaks[torch.randint(4, (count,), generator=generator)] for _ in range(2))
    points = torch.stack([u, v], dim=1) + 0.2 * torch.randn(count, 2, generator=generator)
    points[:40] *= 30
    return points


def reference(points: torch.Tensor, start: torch.Tensor, max_iter: int, tol: float) -> KMeans:
    """scikit-learn in float64: in float32 its sums over many points are off in the fourth digit."""
    means = KMeans(len(start), init=start.double().numpy(), n_init=1, max_iter=max_iter, tol=tol, algorithm="lloyd")
    return means.fit(points.double().numpy())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("points", "k"),
    [
        pytest.param(normal(3000, 1), 16, id="line"),
        pytest.param(normal(3000, 2), 8, id="plane"),
        pytest.param(pairs(3000), 32, id="peaks"),
        pytest.param(normal(150_000, 1), 16, id="line, by cells"),
        pytest.param(normal(150_000, 2), 8, id="plane, by cells"),
        pytest.param(pairs(150_000), 16, id="peaks, by cells"),
        pytest.param(pairs(600_000), 64, id="peaks and empty clusters, by cells, threads"),
    ],
)
def test_goes_the_way_of_scikit_learn(points: torch.Tensor, k: int) -> None:
    """Not only the same inertia within 1e-3, but the same centroids after as many iterations."""
    start = grid_start(points, k)
    ours = kmeans(points, start, max_iter=30, tol=5e-6)
    theirs = reference(points, start, 30, 5e-6)
    assert ours.iterations == theirs.n_iter_
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-6)
    # as sets: it gives the farthest points to empty clusters in no particular order
    distances = torch.cdist(ours.centroids.double(), torch.from_numpy(theirs.cluster_centers_))
    near = 1e-5 * float(points.abs().max())
    assert float(distances.amin(dim=0).max()) < near
    assert float(distances.amin(dim=1).max()) < near


def test_stops_when_no_point_changes_its_cluster() -> None:
    points = pairs(2000).double()
    start = grid_start(points, 16)
    theirs = reference(points, start, 300, 0)
    ours = kmeans(points, start, max_iter=300, tol=0)
    assert ours.iterations in (theirs.n_iter_, theirs.n_iter_ - 1)  # it compares labels, which takes a round more
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-12)


@pytest.mark.parametrize("count", [500, 100_000])
def test_an_empty_cluster_moves_to_the_farthest_point(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points = normal(count, 2, seed=3)
    points[7] = torch.tensor([50.0, -40.0])
    start = torch.tensor([[0.0, 0.0], [1.0, 0.0], [900.0, 900.0]])
    result = kmeans(points, start, max_iter=1)
    assert result.centroids[2].tolist() == pytest.approx([50.0, -40.0])
    theirs = reference(points, start, 1, 0)
    np.testing.assert_allclose(result.centroids.numpy(), theirs.cluster_centers_, atol=1e-5)
    monkeypatch.setattr(lloyd_module, "_relocate", lambda *_: None)
    assert kmeans(points, start, max_iter=1).centroids[2].tolist() == [900.0, 900.0]


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("repeats", [3, 40_000])
def test_fewer_distinct_points_than_centroids(dims: int, repeats: int) -> None:
    points = torch.tensor([[0.1, 0.0], [0.1, 2.3], [-7.7, 1e-4]])[:, :dims].repeat(repeats, 1)
    for start in (grid_start(points, 8), kmeans_plus_plus(points, 8, seed=0)):
        result = kmeans(points, start)
        assert torch.isfinite(result.centroids).all()
        assert result.inertia == 0


@pytest.mark.parametrize("count", [1, 5, 100_000])
@pytest.mark.parametrize("dims", [1, 2])
def test_equal_points(count: int, dims: int) -> None:
    points = torch.full((count, dims), 0.3)
    result = kmeans(points, grid_start(points, 4))
    assert result.inertia == 0
    assert torch.isfinite(result.centroids).all()
    assert kmeans(torch.zeros(count, dims), torch.zeros(4, dims)).inertia == 0


def test_one_centroid_is_the_mean() -> None:
    points = normal(100_000, 2, seed=4) + 5
    result = kmeans(points, torch.zeros(1, 2))
    torch.testing.assert_close(result.centroids[0].double(), points.double().mean(dim=0))
    assert result.inertia == pytest.approx(float(points.double().var(dim=0, correction=0).sum()) * len(points))


def test_far_outliers_and_far_origins() -> None:
    """One point a million away, and all points at an offset a thousand times their spread."""
    points = normal(100_000, 2, seed=5).double() + 1000
    points[0] = 1e6
    start = torch.cat([kmeans_plus_plus(points[1:], 7, seed=1), points[:1]])
    ours, theirs = kmeans(points, start, max_iter=20), reference(points, start, 20, 5e-6)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-6)


def test_the_same_input_gives_the_same_bits() -> None:
    points = pairs(100_000)
    first, second = (kmeans(points, kmeans_plus_plus(points, 16, seed=3), max_iter=10) for _ in range(2))
    assert torch.equal(first.centroids, second.centroids)
    assert first.inertia == second.inertia


def test_dtypes() -> None:
    points = pairs(2000)
    start = grid_start(points, 16)
    assert kmeans(points.double(), start).centroids.dtype == torch.float64
    half = kmeans(points.half(), start)
    assert half.centroids.dtype == torch.float32
    assert half.inertia == pytest.approx(kmeans(points, start).inertia, rel=0.02)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"\(n, 1\) or \(n, 2\)"):
        kmeans(torch.zeros(4, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="1 to 256"):
        kmeans(torch.zeros(4, 2), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="1 to 256"):
        kmeans(torch.zeros(4, 2), torch.zeros(257, 2))
    with pytest.raises(ValueError, match="at least one point"):
        kmeans(torch.zeros(0, 2), torch.zeros(2, 2))
